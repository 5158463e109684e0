//! What was given for an archive, where it is none: known by its first bytes, or by being text.

/// Files that people have, by what they start with.
const KNOWN: [(&[u8], &str); 11] = [
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"070701", "a cpio archive"),
    (b"070702", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"!<arch>\n", "an ar archive, as Debian's packages are"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"QFI\xfb", "a disk image in qcow2 format"),
    (b"hsqs", "a squashfs image"),
    (b"\x7fELF", "a program"),
];

/// What a file is that starts with these bytes, and is no archive.
pub(super) fn name(start: &[u8]) -> Option<&'static str> {
    let known = KNOWN.iter().find(|(magic, _)| start.starts_with(magic));
    known
        .map(|(_, name)| *name)
        .or_else(|| is_text(start).then_some("a text"))
}

/// A header has NUL bytes, and no text has.
fn is_text(start: &[u8]) -> bool {
    let plain = |byte: &u8| *byte >= b' ' || b"\t\n\r\x0c\x1b".contains(byte);
    // Its last character may be cut.
    let is_utf_8 = str::from_utf8(start).map_or_else(|error| error.error_len().is_none(), |_| true);
    !start.is_empty() && is_utf_8 && start.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_told_from_other_bytes() {
        for text in ["<html>\r\n\t", "größer", "a"] {
            assert_eq!(name(text.as_bytes()), Some("a text"), "{text}");
        }
        assert_eq!(name(&"ö".as_bytes()[..1]), Some("a text"), "it goes on");
        for other in [&b""[..], b"a\0", b"\xff\xfea", b"a\x01"] {
            assert_eq!(name(other), None, "{other:?}");
        }
        assert_eq!(name(b"PK\x03\x04\x14\0"), Some("a zip archive"));
    }
}
