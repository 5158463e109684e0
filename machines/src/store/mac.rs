//! Addresses of network cards.

use std::fmt;
use std::str::FromStr;

use block::{Error, Result, escape};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// An Ethernet address, in text as `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// One that is always the same for a UUID, and locally administered. It does not start with 0xfe: so libvirt has the addresses
    /// of the taps of its bridges start, and refuses a machine whose address does.
    pub fn of(uuid: &Uuid) -> Self {
        let digest = Sha256::digest(uuid.as_bytes());
        let mut mac = [0; 6];
        mac.copy_from_slice(&digest[..6]);
        // The two lowest bits of the first octet: locally administered, and of one station.
        mac[0] = mac[0] & 0xfc | 0x02;
        if mac[0] == 0xfe {
            mac[0] = 0xfa;
        }
        Self(mac)
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why| {
            Error::invalid(format!(
                "\"{}\" is no address of a network card: {why}",
                escape(text)
            ))
            .with_hint("such as 52:54:00:12:34:56")
        };
        let mut mac = [0; 6];
        let parts: Vec<&str> = text.split(':').collect();
        if parts.len() != mac.len() {
            return Err(wrong("it has to be six numbers with colons between them"));
        }
        for (byte, part) in mac.iter_mut().zip(parts) {
            let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| digits)
                .ok_or_else(|| wrong("numbers are two hexadecimal digits"))?;
        }
        if mac == [0; 6] {
            return Err(wrong("it is none"));
        }
        if mac[0] & 1 != 0 {
            return Err(wrong("it is one of a group (the first number is odd)"));
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_ones_that_bridges_of_libvirt_take() {
        let mut firsts: Vec<u8> = (0..4096).map(|n| Mac::of(&Uuid::from_u128(n)).0[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert!(firsts.iter().all(|first| first & 3 == 2 && *first != 0xfe));
        assert_eq!(firsts.len(), 63);
    }
}
