//! Fingerprints: what a template is called whatever its aliases are, the SHA-256 of its image file.

use std::fmt::{self, Write as _};
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use block::{Error, Result, escape};
use ops::Control;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::document;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// The SHA-256 of a file, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of the file at `path`, read as it is.
    ///
    /// # Errors
    /// `Io`; `Interrupted` when the job is stopped.
    pub fn of_file(path: &Path, control: &Control<'_>) -> Result<Self> {
        let failed = |error| Error::io("read", error).with_path(path);
        let mut file = document::open(path).map_err(failed)?;
        let total = file.metadata().map_err(failed)?.len();
        let (mut hash, mut buffer, mut done) = (Sha256::new(), vec![0; CHUNK], 0);
        loop {
            control.check()?;
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            hash.update(&buffer[..read]);
            done += read as u64;
            control.report(done.min(total), total);
        }
        Ok(Self(hash.finalize().into()))
    }

    /// Of bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The first 12 digits, enough for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("\"{}\" is no fingerprint", escape(text)));
        let hexadecimal = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.bytes().all(hexadecimal) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        let mut text = String::with_capacity(64);
        // Writing to a string does not fail.
        let _ = write!(text, "{fingerprint}");
        text
    }
}
