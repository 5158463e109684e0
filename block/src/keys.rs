//! What opens encrypted images: passphrases, and who has them.

use std::fmt::{self, Debug};
use std::path::Path;

use zeroize::Zeroizing;

use crate::Result;

/// What a user has to know to open an encrypted image: any bytes. Its memory is wiped when it is dropped, and it is
/// never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// A passphrase of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Who has the passphrases of a chain's images. It is asked about those that are encrypted, and about no others.
pub trait KeyRing: Debug + Send + Sync {
    /// The passphrases that may open the image at `image`, the likeliest first; none if nobody knows one.
    ///
    /// # Errors
    /// Whatever keeps it from telling: `Io` for a file that cannot be read.
    fn passphrases(&self, image: &Path) -> Result<Vec<Passphrase>>;
}

/// The same passphrases for all images.
impl KeyRing for Vec<Passphrase> {
    fn passphrases(&self, _: &Path) -> Result<Vec<Passphrase>> {
        Ok(self.clone())
    }
}

/// What an image is opened with, should it be encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// Nothing: an encrypted image is refused.
    #[default]
    None,
    /// Nothing, and an encrypted image is opened all the same, for what it says of itself: reading and writing its data
    /// fail.
    Locked,
    /// The first of these that opens it.
    Passphrases(Vec<Passphrase>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_not_shown() {
        assert_eq!(
            format!("{:?}", Some(Passphrase::new("hunter2"))),
            "Some(Passphrase(..))"
        );
    }
}
