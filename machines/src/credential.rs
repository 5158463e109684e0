//! Names of credentials for systemd in the guest.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use block::{Error, Result, escape};
use serde::{Deserialize, Serialize};

/// What the guest is told, by name.
pub type Credentials = BTreeMap<CredentialName, String>;

/// The name of a credential. systemd makes a file of that name (systemd.exec(5), `SetCredential=`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CredentialName(String);

impl CredentialName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CredentialName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !matches!(name, "" | "." | "..") && name.len() <= 255 && name.chars().all(fine) {
            return Ok(Self(name.to_owned()));
        }
        let message = format!("\"{}\" is no name of a credential", escape(name));
        Err(Error::invalid(message)
            .with_hint("use up to 255 letters, digits, full stops, hyphens and underscores"))
    }
}

impl TryFrom<String> for CredentialName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<CredentialName> for String {
    fn from(name: CredentialName) -> Self {
        name.0
    }
}

impl fmt::Display for CredentialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_files_can_have_and_no_path() {
        for name in ["a", "ssh.authorized_keys.root", "A-1"] {
            assert_eq!(name.parse::<CredentialName>().unwrap().as_str(), name);
        }
        let long = "x".repeat(256);
        for name in ["", ".", "..", "a b", "a/b", "a:b", "a=b", "é", &long] {
            assert!(name.parse::<CredentialName>().is_err(), "{name}");
        }
    }
}
