//! Digests ("Digests" in the image specification's descriptors): what a blob is called, and what its bytes must come to.

use std::fmt::{self, Write};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{Error, Result};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256, Sha512};

use super::fault::Fault;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// What bytes come to, by a cryptographic hash function.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Digest {
    /// From its text, such as `sha256:` and 64 digits.
    ///
    /// # Errors
    /// `Corrupt` for what is none; `Unsupported` for functions other than SHA-256 and SHA-512.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            let text = block::escape(text).chars().take(200).collect();
            Fault::NoDigest { text }.error()
        };
        let (name, digits) = text.split_once(':').ok_or_else(wrong)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ if name.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !name.is_empty() => {
                return Err(Fault::Algorithm(name.to_owned()).error());
            }
            _ => return Err(wrong()),
        };
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            // Upper case would make two names of one.
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let pairs = digits.as_bytes().chunks_exact(2);
        let bytes: Option<Vec<u8>> = pairs
            .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
            .collect();
        match bytes {
            Some(bytes) if digits.len() == algorithm.len() * 2 => Ok(Self { algorithm, bytes }),
            _ => Err(wrong()),
        }
    }

    /// Where a layout has the blob.
    pub(super) fn path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.digits())
    }

    fn digits(&self) -> String {
        self.bytes.iter().fold(String::new(), |mut digits, byte| {
            // Writing to a string does not fail.
            let _ = write!(digits, "{byte:02x}");
            digits
        })
    }

    fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Box::default()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        }
    }

    /// Fails unless bytes come to this.
    pub(super) fn check(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let mut hasher = self.hasher();
        hasher.add(bytes);
        self.check_found(what, &hasher.finish())
    }

    fn check_found(&self, what: &str, found: &Self) -> Result<()> {
        if found == self {
            return Ok(());
        }
        Err(Fault::Digest {
            what: what.to_owned(),
            stated: self.to_string(),
            found: found.to_string(),
        }
        .error())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.digits())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[derive(Debug)]
enum Hasher {
    Sha256(Box<Sha256>),
    Sha512(Box<Sha512>),
}

impl Hasher {
    fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(&mut self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest {
                algorithm: Algorithm::Sha256,
                bytes: hasher.finalize_reset().to_vec(),
            },
            Self::Sha512(hasher) => Digest {
                algorithm: Algorithm::Sha512,
                bytes: hasher.finalize_reset().to_vec(),
            },
        }
    }
}

/// An input that must come to a digest. What it gives must not be relied on before it has ended without an error.
#[derive(Debug)]
pub(super) struct Verified<R> {
    input: R,
    what: String,
    digest: Digest,
    hasher: Hasher,
    /// Bytes that it must have, where that is known, and has had.
    size: Option<u64>,
    read: u64,
    ended: Ended,
}

/// Whether an input has ended, and was what it should be.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended(Arc<AtomicBool>);

impl Ended {
    /// Fails before the end.
    pub(super) fn check(&self, what: &str) -> Result<()> {
        if self.0.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Fault::Unread {
            what: what.to_owned(),
        }
        .error())
    }
}

impl<R: Read> Verified<R> {
    /// `what` is for messages.
    pub(super) fn new(input: R, what: String, digest: Digest, size: Option<u64>) -> Self {
        Self {
            input,
            what,
            hasher: digest.hasher(),
            digest,
            size,
            read: 0,
            ended: Ended::default(),
        }
    }

    /// What tells of its end.
    pub(super) fn ended(&self) -> Ended {
        self.ended.clone()
    }

    fn size_is(&self, found: u64) -> Error {
        Fault::Size {
            what: self.what.clone(),
            stated: self.size.unwrap_or(found),
            found,
        }
        .error()
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.ended.0.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let len = self.input.read(buffer)?;
        self.read += len as u64;
        if len > 0 {
            if self.size.is_some_and(|size| self.read > size) {
                return Err(self.size_is(self.read).into());
            }
            self.hasher.add(&buffer[..len]);
            return Ok(len);
        }
        if self.size.is_some_and(|size| self.read != size) {
            return Err(self.size_is(self.read).into());
        }
        let found = self.hasher.finish();
        self.digest.check_found(&self.what, &found)?;
        self.ended.0.store(true, Ordering::Release);
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of "abc", from FIPS 180.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_512: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn digests_are_those_of_the_standard() {
        for text in [ABC, ABC_512] {
            let digest = Digest::parse(text).unwrap();
            assert_eq!(digest.to_string(), text);
            digest.check("it", b"abc").unwrap();
            let error = digest.check("it", b"abd").unwrap_err();
            assert_eq!(error.kind(), block::ErrorKind::Corrupt);
        }
        assert_eq!(
            Digest::parse(ABC).unwrap().path(),
            format!("blobs/sha256/{}", &ABC[7..])
        );
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_digest() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../../etc/passwd",
            "../sha256:00",
            &ABC[..70],
            &format!("{ABC}0"),
            &ABC.to_uppercase(),
            &ABC.replace("ba78", "BA78"),
        ] {
            Digest::parse(text).unwrap_err();
        }
        let error = Digest::parse("md5:900150983cd24fb0d6963f7d28e17f72").unwrap_err();
        assert_eq!(error.kind(), block::ErrorKind::Unsupported);
    }

    #[test]
    fn an_input_ends_well_only_if_it_is_what_was_meant() {
        let read = |bytes: &'static [u8], size| {
            let mut input = Verified::new(bytes, "it".into(), Digest::parse(ABC).unwrap(), size);
            let ended = input.ended();
            let result = input.read_to_end(&mut Vec::new());
            assert_eq!(ended.check("it").is_ok(), result.is_ok());
            result.map_err(|error| super::super::fault::read_error("it", error).to_string())
        };
        assert_eq!(read(b"abc", Some(3)).unwrap(), 3);
        assert_eq!(read(b"abc", None).unwrap(), 3);
        assert!(read(b"abcd", Some(3)).unwrap_err().contains("should have 3"));
        assert!(read(b"ab", Some(3)).unwrap_err().contains("should have 3"));
        assert!(read(b"abd", Some(3)).unwrap_err().contains("digest is sha256:"));
        let input = Verified::new(&b"abc"[..], "it".into(), Digest::parse(ABC).unwrap(), Some(3));
        input.ended().check("it").unwrap_err();
    }
}
