//! Private keys, told by what files begin with: in words (PEM and others), in ASN.1 without any (DER), and either of them compressed.

use std::io::Read;

use block::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use regex::bytes::Regex;

/// Bytes at the start of a file, and of what is compressed in it, in which keys are looked for.
pub(super) const START: u64 = 256 << 10;

/// How a private key announces itself: in a file of its own, among other text, and in JSON. A program that reads such has no
/// line that ends there.
const WORDS: &str = concat!(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\r\n\\]",
    r"|-----BEGIN OpenVPN Static key V1-----\r?\n",
    r"|PuTTY-User-Key-File-[0-9]",
    r"|AGE-SECRET-KEY-1[0-9A-Z]",
);

const GZIP: [u8; 2] = [0x1F, 0x8B];

/// Tags of ASN.1.
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// What an elliptic curve's key says next: which curve, or the public key.
const CONTEXT: [u8; 2] = [0xA0, 0xA1];
/// How a key may be encrypted by a password: by PKCS#5, and as PKCS#12 does.
const BY_PASSWORD: [&[u8]; 2] = [
    b"\x2A\x86\x48\x86\xF7\x0D\x01\x05",
    b"\x2A\x86\x48\x86\xF7\x0D\x01\x0C\x01",
];

/// Tells private keys.
pub(super) struct PrivateKeys(Regex);

impl PrivateKeys {
    /// # Errors
    /// None that there could be.
    pub(super) fn new() -> Result<Self> {
        let words = Regex::new(WORDS).map_err(|error| Error::invalid(error.to_string()))?;
        Ok(Self(words))
    }

    /// Whether there is one in a file that starts so.
    pub(super) fn are_in(&self, start: &[u8]) -> bool {
        self.are_plain_in(start) || (start.starts_with(&GZIP) && self.are_plain_in(&unpacked(start)))
    }

    fn are_plain_in(&self, start: &[u8]) -> bool {
        self.0.is_match(start) || is_der(start)
    }
}

/// What is compressed, as far as it is there and sound.
fn unpacked(start: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error stays.
    let _ = MultiGzDecoder::new(start).take(START).read_to_end(&mut bytes);
    bytes
}

/// Whether a file is a private key in DER: PKCS#8, encrypted or not (RFC 5958), RSA's and DSA's own form (RFC 8017), or that
/// of elliptic curves (RFC 5915). A file that has more behind it is none, nor is one of which not all is there.
fn is_der(file: &[u8]) -> bool {
    let Some((SEQUENCE, key, [])) = element(file) else {
        return false;
    };
    match element(key) {
        Some((INTEGER, [0 | 1], rest)) => match element(rest) {
            Some((SEQUENCE, algorithm, rest)) => {
                starts_with(algorithm, OBJECT) && starts_with(rest, OCTET_STRING)
            }
            Some((OCTET_STRING, _, rest)) => CONTEXT.iter().any(|tag| starts_with(rest, *tag)),
            // A modulus and its exponents, or a group and its keys: numbers, and nothing else.
            Some((INTEGER, _, rest)) => numbers(rest).is_some_and(|count| count >= 4),
            _ => false,
        },
        Some((SEQUENCE, algorithm, rest)) => match element(algorithm) {
            Some((OBJECT, name, _)) => {
                let by_password = BY_PASSWORD.iter().any(|known| name.starts_with(known));
                by_password && matches!(element(rest), Some((OCTET_STRING, _, [])))
            }
            _ => false,
        },
        _ => false,
    }
}

fn starts_with(bytes: &[u8], tag: u8) -> bool {
    element(bytes).is_some_and(|(found, ..)| found == tag)
}

/// How many numbers there are, if there is nothing else.
fn numbers(mut bytes: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !bytes.is_empty() {
        let (INTEGER, _, rest) = element(bytes)? else {
            return None;
        };
        (bytes, count) = (rest, count + 1);
    }
    Some(count)
}

/// The first element of some DER: its tag, its content and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, len], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match len {
        0..=0x7F => (usize::from(len), rest),
        // The length of the length: what is longer than three bytes is longer than what is looked at.
        0x81..=0x83 => {
            let (len, rest) = rest.split_at_checked(usize::from(len & 0x7F))?;
            let len = len.iter().fold(0, |value, byte| value << 8 | usize::from(*byte));
            (len, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_programs_that_read_them() {
        let keys = PrivateKeys::new().unwrap();
        for text in [
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
            "note: -----BEGIN RSA PRIVATE KEY-----\r\nMIIE",
            "-----BEGIN PRIVATE KEY-----\nMIIE",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n",
            "{\"private_key\": \"-----BEGIN PRIVATE KEY-----\\nMIIE",
            "PuTTY-User-Key-File-3: ssh-ed25519",
            "# x\nAGE-SECRET-KEY-1QQ",
        ] {
            assert!(keys.are_in(text.as_bytes()), "{text}");
        }
        for text in [
            "-----BEGIN PUBLIC KEY-----\nMIIB",
            "-----BEGIN OPENSSH PRIVATE KEY-----\0",
            "b'-----BEGIN OPENSSH PRIVATE KEY-----' in text",
            "PRIVATE KEY-----",
        ] {
            assert!(!keys.are_in(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn elements_are_no_longer_than_what_is_there() {
        let at = |bytes: &'static [u8]| element(bytes);
        assert_eq!(at(b"\x02\x01\x07\x05"), Some((2, &b"\x07"[..], &b"\x05"[..])));
        assert_eq!(at(b"\x04\x81\x02ab"), Some((4, &b"ab"[..], &b""[..])));
        for bytes in [
            &b""[..],
            b"\x30",
            b"\x30\x02a",
            b"\x30\x80ab",
            b"\x30\x84\0\0\0\x01a",
            b"\x30\x83\xFF\xFF",
            b"\x30\xFF",
        ] {
            assert_eq!(element(bytes), None, "{bytes:?}");
            assert!(!is_der(bytes));
        }
    }
}
