//! Long names ("Long File Name Implementation"): up to 255 units of UTF-16 over entries of thirteen, the last part first,
//! right before the entry with the short name.

use block::{Error, Result};

use crate::directory_entry::{ATTR_LONG_NAME, Entry};

/// Units of a name at most.
const MAX_UNITS: usize = 255;

/// Units in an entry.
const UNITS: usize = 13;

/// Where they are in it.
const PLACES: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Marks the entry that has the last part.
const LAST: u8 = 0x40;

/// The name that these bytes are.
///
/// # Errors
/// `InvalidInput` for one that FAT cannot hold.
pub(crate) fn check(name: &[u8]) -> Result<&str> {
    let refuse = |shown: &str, why: &str, hint: &'static str| {
        Error::invalid(format!("FAT cannot hold the name {shown:?}: {why}")).with_hint(hint)
    };
    let Ok(text) = str::from_utf8(name) else {
        let shown = String::from_utf8_lossy(name);
        return Err(refuse(&shown, "it is not UTF-8", "rename it"));
    };
    let wrong = |c: char| c < ' ' || "\"*/:<>?\\|".contains(c);
    if text.is_empty() || text == "." || text == ".." {
        return Err(refuse(text, "it is no name of a file", "choose another"));
    }
    if let Some(c) = text.chars().find(|c| wrong(*c)) {
        let why = format!("{c:?} is not allowed");
        return Err(refuse(
            text,
            &why,
            "none of \" * / : < > ? \\ | and control characters is",
        ));
    }
    if text.ends_with(['.', ' ']) {
        return Err(refuse(
            text,
            "dots and spaces at the end are no part of a name",
            "rename it",
        ));
    }
    let units = units(text);
    if units > MAX_UNITS {
        let why = format!("it has {units} units of UTF-16");
        return Err(refuse(text, &why, "names have 255 at most"));
    }
    Ok(text)
}

fn units(name: &str) -> usize {
    name.encode_utf16().count()
}

/// Entries that the name takes.
pub(crate) fn entry_count(name: &str) -> usize {
    units(name).div_ceil(UNITS)
}

/// What two names that FAT takes for one have in common: all letters are in upper case, one for one.
pub(crate) fn folded(name: &str) -> String {
    name.chars()
        .map(|c| {
            let mut upper = c.to_uppercase();
            match (upper.next(), upper.next()) {
                (Some(only), None) => only,
                _ => c,
            }
        })
        .collect()
}

/// The entries of the name, in their order; `checksum` is the one of the short name.
pub(crate) fn entries(name: &str, checksum: u8) -> Vec<Entry> {
    let mut units: Vec<u16> = name.encode_utf16().collect();
    let count = units.len().div_ceil(UNITS);
    // What is left of the last one: an end, and ones.
    if units.len() < count * UNITS {
        units.push(0);
        units.resize(count * UNITS, 0xFFFF);
    }
    let entry = |(index, units): (usize, &[u16])| {
        let mut entry = [0; size_of::<Entry>()];
        let last = if index + 1 == count { LAST } else { 0 };
        entry[0] = (index as u8 + 1) | last;
        entry[11] = ATTR_LONG_NAME;
        entry[13] = checksum;
        for (unit, place) in units.iter().zip(PLACES) {
            entry[place..place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        entry
    };
    units.chunks(UNITS).enumerate().map(entry).rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification_comes_out() {
        let [last, first] = entries("The quick brown.fox", 0x07)[..] else {
            panic!("two entries")
        };
        assert_eq!((last[0], first[0]), (0x42, 0x01));
        assert_eq!(&first[1..11], b"T\0h\0e\0 \0q\0");
        assert_eq!(&first[14..26], b"u\0i\0c\0k\0 \0b\0");
        assert_eq!(&first[28..32], b"r\0o\0");
        assert_eq!(&last[1..11], b"w\0n\0.\0f\0o\0");
        assert_eq!(&last[14..26], b"x\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
        assert_eq!(&last[28..32], b"\xff\xff\xff\xff");
        assert_eq!(
            (last[11], last[12], last[13], &last[26..28]),
            (0x0F, 0, 0x07, &[0, 0][..])
        );
        // No end where there is no room for one.
        assert_eq!(&entries("thirteen unit", 0)[0][28..32], b"i\0t\0");
    }

    #[test]
    fn what_fat_cannot_hold_is_refused_with_the_reason() {
        let long = "x".repeat(256);
        let wide = "\u{1F600}".repeat(128);
        for (name, why) in [
            (&b""[..], "no name"),
            (b".", "no name"),
            (b"..", "no name"),
            (b"a/b", "'/' is not allowed"),
            (b"a:b", "':' is not allowed"),
            (b"a\\b", "'\\\\' is not allowed"),
            (b"a\nb", "'\\n' is not allowed"),
            (b"a?", "'?'"),
            (b"a.", "at the end"),
            (b"a ", "at the end"),
            (b"a\xff", "UTF-8"),
            (long.as_bytes(), "256 units"),
            (wide.as_bytes(), "256 units"),
        ] {
            let error = check(name).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
        let long = "x".repeat(255);
        for name in [&long[..], " a", ".a", "a b.c d", "[+,;=]", "\u{7f}", "ü"] {
            assert_eq!(check(name.as_bytes()).unwrap(), name);
        }
    }

    #[test]
    fn names_that_differ_in_case_fold_to_one() {
        assert_eq!(
            folded("aÄß\u{1F600}z"),
            folded("AäßX".replace('X', "\u{1F600}Z").as_str())
        );
        assert_ne!(folded("a"), folded("b"));
    }
}
