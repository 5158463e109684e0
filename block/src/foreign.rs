//! Formats of images that are known by their first bytes and not read, so that none is taken for a raw disk: whoever copied or grew one as
//! that would have a disk of nonsense, or a broken image.
//!
//! Signatures as QEMU's probes have them, and the formats' names as QEMU's drivers do. A raw disk may start like this too, for its guest
//! writes what it likes: then it has to be said that it is raw.

/// What a file starts with, and the format.
const SIGNATURES: [(&[u8], &str); 8] = [
    (b"QED\0", "qed"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"conectix", "vpc"),
    (b"vhdxfile", "vhdx"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"Bochs Virtual HD Image", "bochs"),
];

/// Where a VDI image says that it is one, in bytes, and how.
const VDI: (usize, [u8; 4]) = (64, [0x7f, 0x10, 0xda, 0xbe]);

/// The foreign format that a file which starts with `head` is in, if it is one. QEMU looks at 512 bytes.
pub fn foreign_format(head: &[u8]) -> Option<&'static str> {
    foreign_formats(head).next().map(|(name, _)| name)
}

/// All foreign formats that a file which starts with `head` could be taken for, each with where its signature is, in bytes.
pub fn foreign_formats(head: &[u8]) -> impl Iterator<Item = (&'static str, u64)> {
    let known = SIGNATURES
        .iter()
        .filter(move |(magic, _)| head.starts_with(magic));
    let text = is_vmdk_text(head).then_some(("vmdk", 0));
    let (at, magic) = VDI;
    let vdi = (head.get(at..at + 4) == Some(&magic)).then_some(("vdi", at as u64));
    known.map(|(_, name)| (*name, 0)).chain(text).chain(vdi)
}

/// Whether a text is one that describes a VMDK image: it says so, or starts with its version behind lines that say nothing.
fn is_vmdk_text(head: &[u8]) -> bool {
    if head.len() > 21 && head[..21].eq_ignore_ascii_case(b"# Disk DescriptorFile") {
        return true;
    }
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    first.is_some_and(|line| matches!(line, b"version=1" | b"version=2" | b"version=3"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_not_foreign() {
        assert_eq!(foreign_format(b""), None);
        assert_eq!(foreign_format(&[0; 512]), None);
        assert_eq!(foreign_format(b"QFI\xfb\0\0\0\x03"), None);
        assert_eq!(foreign_format(b"KDM"), None);
        assert_eq!(foreign_format(b"#!/bin/sh\nversion=4\n"), None);
        assert_eq!(foreign_format(b"# a disk\n\nversion=1\n"), Some("vmdk"));
    }
}
