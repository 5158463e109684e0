//! Short names (the field `DIR_Name` of "Directory Structure"): eight characters and three, in upper case, filled up with spaces. Here
//! they are ASCII only: what other characters mean depends on the reader's code page.

/// A name of 8.3 characters, as it is in a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ShortName(pub(crate) [u8; 11]);

impl ShortName {
    /// The directory itself.
    pub(crate) const DOT: Self = Self(*b".          ");

    /// The directory that it is in.
    pub(crate) const DOT_DOT: Self = Self(*b"..         ");

    /// The short name that a name is but for its case, where there is one.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let has_dot = base.len() < name.len();
        let fits = (1..=8).contains(&base.len()) && extension.len() <= 3 && has_dot != extension.is_empty();
        let allowed = |part: &str| part.bytes().all(is_allowed);
        (fits && allowed(base) && allowed(extension)).then(|| Self::of_parts(base, extension))
    }

    /// At most 8 and 3 characters of ASCII, in upper case.
    pub(crate) fn of_parts(base: &str, extension: &str) -> Self {
        let mut bytes = [b' '; 11];
        bytes[..base.len()].copy_from_slice(base.as_bytes());
        bytes[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
        bytes.make_ascii_uppercase();
        Self(bytes)
    }

    /// Whether this says all of the name, its case too.
    pub(crate) fn is_all_of(name: &str) -> bool {
        Self::of(name).is_some() && !name.bytes().any(|byte| byte.is_ascii_lowercase())
    }

    /// What the entries of a long name have to tell that they belong to this one.
    pub(crate) fn checksum(self) -> u8 {
        self.0
            .iter()
            .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
    }
}

/// Whether a character can be in a short name, if need be in upper case.
pub(crate) fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"$%'-_@~`!(){}^#&".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_short_are_their_own() {
        for (name, short) in [
            ("A", b"A          "),
            ("bootx64.efi", b"BOOTX64 EFI"),
            ("12345678.ABC", b"12345678ABC"),
            ("$%'-_@~`.!(}", b"$%'-_@~`!(}"),
            ("EFI", b"EFI        "),
        ] {
            assert_eq!(ShortName::of(name), Some(ShortName(*short)), "{name}");
        }
        for name in [
            "",
            ".a",
            "a.",
            "a.b.c",
            "123456789",
            "a.html",
            "a b",
            "a+b",
            "é",
            "a;b",
            "a.[",
            "..",
            ".",
        ] {
            assert_eq!(ShortName::of(name), None, "{name}");
        }
        assert!(
            ShortName::is_all_of("A.B") && !ShortName::is_all_of("A.b") && !ShortName::is_all_of("ABCDEFGHI")
        );
    }

    #[test]
    fn the_checksum_is_the_one_of_the_specification() {
        // Its function, word by word.
        fn reference(name: &[u8; 11]) -> u8 {
            let mut sum = 0u8;
            for byte in name {
                sum = (if sum & 1 != 0 { 0x80u8 } else { 0 })
                    .wrapping_add(sum >> 1)
                    .wrapping_add(*byte);
            }
            sum
        }
        for name in [b"BOOTX64 EFI", b"A          ", b"QUICKB~1FOX"] {
            assert_eq!(ShortName(*name).checksum(), reference(name));
        }
    }
}
