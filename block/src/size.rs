//! Sizes as people write them: `10G`, `1.5T`, `0x1000`, `512`.

use crate::{Error, Result, escape};

/// Largest size of a disk: a file cannot be longer.
const MAX: u64 = i64::MAX as u64;

/// The unit of a disk's size, in bytes.
const SECTOR: u64 = 512;

const HINT: &str =
    "sizes are bytes, or a number with one of the suffixes k M G T P E (powers of 1024), such as 10G or 1.5T";

/// Bytes that `text` stands for: decimal digits with an optional fraction and suffix (b k M G T P E in either case,
/// powers of 1024), or `0x` and hexadecimal digits.
///
/// # Errors
/// `InvalidInput` for everything else, for a fraction of a byte without a suffix, and for 2^63 or more.
pub fn parse(text: &str) -> Result<u64> {
    bytes(text).map_err(|why| Error::invalid(no_size(text, why)).with_hint(HINT))
}

/// [`parse()`] for the value of an option, which an error names.
///
/// # Errors
/// As there.
pub fn of(option: &str, text: &str) -> Result<u64> {
    let named = |why| Error::invalid(format!("{option}: {}", no_size(text, why))).with_hint(HINT);
    bytes(text).map_err(named)
}

fn bytes(text: &str) -> Result<u64, &'static str> {
    let bytes = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits),
        None => decimal(text),
    };
    u64::try_from(bytes?)
        .ok()
        .filter(|bytes| *bytes <= MAX)
        .ok_or("it is larger than a disk can be (2^63 - 1 bytes)")
}

/// [`parse()`] for a new disk, whose size is this in whole sectors.
///
/// # Errors
/// As there.
pub fn parse_disk(text: &str) -> Result<u64> {
    let bytes = parse(text)?;
    if whole_sectors(bytes) > MAX {
        let why = "in whole sectors it is larger than a disk can be (2^63 - 1 bytes)";
        return Err(Error::invalid(no_size(text, why)).with_hint(HINT));
    }
    Ok(bytes)
}

/// `bytes` rounded up to whole sectors; at most 2^63 - 1 of them.
pub fn whole_sectors(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR)
}

/// A new size of a disk: as it is, or what is added to or taken from the size it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many bytes.
    To(u64),
    /// So many bytes more than there are.
    Grow(u64),
    /// So many bytes less than there are.
    Shrink(u64),
}

impl NewSize {
    /// A size, with a sign if it is a difference.
    ///
    /// # Errors
    /// As [`parse()`].
    pub fn parse(text: &str) -> Result<Self> {
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => parse(more).map(Self::Grow),
            (_, Some(less)) => parse(less).map(Self::Shrink),
            _ => parse(text).map(Self::To),
        }
    }

    /// The size that a disk of `size` bytes gets, in whole sectors.
    ///
    /// # Errors
    /// `InvalidInput` where nothing would be left, or more than 2^63 - 1 bytes.
    pub fn of(self, size: u64) -> Result<u64> {
        let new = match self {
            Self::To(new) => Some(new),
            Self::Grow(more) => size.checked_add(more),
            Self::Shrink(less) => size.checked_sub(less).filter(|new| *new > 0),
        };
        let new = new
            .and_then(|new| new.checked_next_multiple_of(SECTOR))
            .filter(|new| *new <= MAX);
        new.ok_or_else(|| match self {
            Self::Shrink(less) => Error::invalid(format!(
                "cannot take {less} bytes from a disk of {size} bytes: nothing would be left"
            )),
            _ => Error::invalid("the new size is larger than a disk can be (2^63 - 1 bytes)"),
        })
    }
}

fn no_size(text: &str, why: &str) -> String {
    format!("\"{}\" is no size: {why}", escape(text))
}

fn hexadecimal(digits: &str) -> Result<u128, &'static str> {
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err("after 0x there are hexadecimal digits, and no suffix");
    }
    // More digits than fit are more bytes than there can be.
    Ok(u128::from_str_radix(digits, 16).unwrap_or(u128::MAX))
}

fn decimal(text: &str) -> Result<u128, &'static str> {
    if text.starts_with('-') {
        return Err("it is negative");
    }
    let number_len = text
        .bytes()
        .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
        .count();
    let (number, suffix) = text.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err("it has to start with a number");
    }
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ if suffix.starts_with(['e', 'E']) => return Err("numbers with an exponent are not understood"),
        _ => return Err("the suffix is not known"),
    };
    if shift == 0 && fraction.bytes().any(|digit| digit != b'0') {
        return Err("there are no fractions of a byte");
    }
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().unwrap_or(u128::from(u64::MAX))
    };
    let unit = 1u128 << shift;
    Ok(whole.min(u128::from(u64::MAX)) * unit + part_of(fraction, unit))
}

/// 0.`digits` of `unit`, to the nearest byte.
fn part_of(digits: &str, unit: u128) -> u128 {
    // 18 digits tell more than a unit of 2^60 can show, and keep the product in range.
    let digits = &digits[..digits.len().min(18)];
    let scale = 10u128.pow(digits.len() as u32);
    let numerator: u128 = if digits.is_empty() {
        0
    } else {
        digits.parse().unwrap_or(0)
    };
    (numerator * unit + scale / 2) / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("00010", 10),
            ("1b", 1),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("1.5T", 3 << 39),
            ("1.G", 1 << 30),
            (".5G", 1 << 29),
            ("0.1k", 102),
            ("1.9999999999999999k", 2048),
            ("1.23456789012345678901234567890k", 1264),
            ("7.9E", 9_108_079_886_394_091_110),
            ("0x10", 16),
            ("0X1f", 31),
            ("9223372036854775807", MAX),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_by_name() {
        for text in [
            "",
            ".",
            "b",
            "G",
            "-1",
            "1e9",
            "1E9",
            "10GB",
            "1kb",
            "1KiB",
            "1,5G",
            "1_000",
            "0x",
            "0x10k",
            "0x1G",
            "0b11",
            "1.5",
            "1.5b",
            "nan",
            "inf",
            " 1",
            "1 ",
            "1..2G",
            "1G1",
            "8E",
            "9223372036854775808",
            "18446744073709551616",
            "99999999999999999999999999999999999999999999",
            "0xffffffffffffffffffff",
            "٣",
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.message().contains(&format!("\"{text}\"")),
                "{text}: {error}"
            );
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn a_disk_has_whole_sectors() {
        assert_eq!(whole_sectors(parse_disk("1000").unwrap()), 1024);
        assert_eq!(parse_disk("0").unwrap(), 0);
        assert!(parse_disk("9223372036854775807").is_err());
    }

    #[test]
    fn a_new_size_is_absolute_or_relative() {
        let new = |text: &str, size| NewSize::parse(text).and_then(|new| new.of(size));
        assert_eq!(new("10k", 512).unwrap(), 10240);
        assert_eq!(new("+1k", 512).unwrap(), 1536);
        assert_eq!(new("-1k", 4096).unwrap(), 3072);
        assert_eq!(new("1000", 0).unwrap(), 1024);
        assert_eq!(new("0", 4096).unwrap(), 0);
        for (text, size) in [
            ("-4k", 4096),
            ("-5k", 4096),
            ("+7E", 1 << 62),
            ("--1", 0),
            ("+-1", 0),
            ("abc", 0),
        ] {
            assert!(new(text, size).is_err(), "{text} of {size}");
        }
    }
}
