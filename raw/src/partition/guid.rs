//! GUIDs, as partition tables write them: the first three fields little-endian, the others as they are read.

use std::fmt;
use std::str::FromStr;

use block::{Error, Result, escape};

/// Bytes of a GUID as text, hyphens included.
const TEXT_LEN: usize = 36;

/// Where each byte of the text lies on the disk.
const PLACES: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

/// A GUID, in the order of bytes that it has on the disk (UEFI specification, appendix A).
///
/// Text is in upper case; lower case is understood.
///
/// ```
/// use raw::partition::Guid;
///
/// let guid: Guid = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b".parse()?;
/// assert_eq!(guid.to_string(), "C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
/// assert_eq!(guid.to_bytes()[..4], [0x28, 0x73, 0x2a, 0xc1]);
/// # Ok::<(), block::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All zeros: no GUID, and the type of an entry that is not used.
    pub const NIL: Self = Self([0; 16]);

    /// The GUID in these bytes, as on a disk.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, as on a disk.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether all of it is zeros.
    pub fn is_nil(self) -> bool {
        self == Self::NIL
    }

    /// The GUID that `seed` gives for a `number`, always the same: of version 4, as if all its bits were drawn. Seeds
    /// that are drawn give GUIDs that are unique.
    pub fn from_seed(seed: [u8; 16], number: u32) -> Self {
        let seed = u128::from_le_bytes(seed);
        let salt = mix(u64::from(number) + 1);
        let low = mix(seed as u64 ^ salt);
        let high = mix((seed >> 64) as u64 ^ mix(salt) ^ low);
        let mut bytes = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
        // Version and variant (RFC 9562); the version is in the upper half of a little-endian field.
        bytes[7] = bytes[7] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// The GUID that 36 characters of text in upper case stand for, for constants.
    pub(super) const fn of(text: &str) -> Self {
        match parse(text.as_bytes()) {
            Some(guid) => guid,
            None => panic!("a constant that is no GUID"),
        }
    }
}

/// The finaliser of `SplitMix64`: every bit of the result depends on every bit of `x`, and no two give the same.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

const fn parse(text: &[u8]) -> Option<Guid> {
    if text.len() != TEXT_LEN {
        return None;
    }
    let mut bytes = [0; 16];
    let (mut at, mut byte) = (0, 0);
    while byte < 16 {
        if matches!(at, 8 | 13 | 18 | 23) {
            if text[at] != b'-' {
                return None;
            }
            at += 1;
        }
        let (Some(high), Some(low)) = (digit(text[at]), digit(text[at + 1])) else {
            return None;
        };
        bytes[PLACES[byte]] = high << 4 | low;
        at += 2;
        byte += 1;
    }
    Some(Guid(bytes))
}

const fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

impl FromStr for Guid {
    type Err = Error;

    /// # Errors
    /// `InvalidInput` for all that is not 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
    fn from_str(text: &str) -> Result<Self> {
        parse(text.as_bytes()).ok_or_else(|| {
            Error::invalid(format!("\"{}\" is no GUID", escape(text)))
                .with_hint("a GUID looks like 0FC63DAF-8483-4772-8E79-3D69D8477DE4")
        })
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, place) in PLACES.into_iter().enumerate() {
            if matches!(number, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02X}", self.0[place])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_those_of_the_specification() {
        let text = "00112233-4455-6677-8899-AABBCCDDEEFF";
        let guid: Guid = text.parse().unwrap();
        assert_eq!(
            guid.to_bytes(),
            [
                0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff
            ]
        );
        assert_eq!(guid.to_string(), text);
        assert_eq!(text.to_lowercase().parse::<Guid>().unwrap(), guid);
    }

    #[test]
    fn what_is_no_guid_is_refused() {
        for text in [
            "",
            "00112233-4455-6677-8899-AABBCCDDEEF",
            "00112233-4455-6677-8899-AABBCCDDEEFFF",
            "00112233x4455-6677-8899-AABBCCDDEEFF",
            "0011223-34455-6677-8899-AABBCCDDEEFF",
            "00112233-4455-6677-8899-AABBCCDDEEFG",
            "{0112233-4455-6677-8899-AABBCCDDEEF}",
            "00112233-4455-6677-8899-AABBCCDDEÉ",
        ] {
            assert!(text.parse::<Guid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_seed_always_gives_the_same_and_every_number_another() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..10 {
            for number in 0..100 {
                let guid = Guid::from_seed([seed; 16], number);
                assert_eq!(guid, Guid::from_seed([seed; 16], number));
                let text = guid.to_string();
                assert!(
                    &text[14..15] == "4" && "89AB".contains(&text[19..20]),
                    "{text}: version 4"
                );
                assert!(seen.insert(guid));
            }
        }
    }
}
