//! What instances, aliases and profiles may be called: names that are safe as those of files, too.

use std::fmt;
use std::str::FromStr;

use block::{Error, Result, escape};
use serde::{Deserialize, Serialize};

/// Characters of a name at most: those of a label in the domain name system (RFC 1035, section 2.3.4).
const MAX_LEN: usize = 63;

/// Characters of a name with its domain at most.
const MAX_DOMAIN: usize = 253;

/// The name of an instance, which is a hostname too: letters, digits and `-` in the middle (RFC 1123, section 2.1), in lower
/// case, since two that differ in case only would be one on the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// The name of a template or a profile: as that of an instance, with `.` and `_` in the middle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Alias(String);

impl FromStr for InstanceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_name(text, "-") {
            return Ok(Self(text.to_owned()));
        }
        Err(
            Error::invalid(format!("\"{}\" cannot be the name of a machine", escape(text))).with_hint(
                "a name is a hostname: up to 63 of a-z, 0-9 and -, with no - at the start or the end",
            ),
        )
    }
}

impl FromStr for Alias {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_name(text, "-._") {
            return Ok(Self(text.to_owned()));
        }
        Err(
            Error::invalid(format!("\"{}\" cannot be a name", escape(text))).with_hint(
                "a name has up to 63 of a-z, 0-9 and, in the middle, - . _: such as debian-12 or web_1.2",
            ),
        )
    }
}

/// What a machine calls itself: the name of one, or that with its domain behind it (RFC 1123, section 2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostname(String);

impl Hostname {
    /// As text, with the domain where there is one.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() <= MAX_DOMAIN && text.split('.').all(|label| is_name(label, "-")) {
            return Ok(Self(text.to_owned()));
        }
        Err(
            Error::invalid(format!("\"{}\" cannot be a hostname", escape(text))).with_hint(
                "a hostname is up to 63 of a-z, 0-9 and -, with no - at the start or the end; a domain may follow: web.example.org",
            ),
        )
    }
}

fn is_name(text: &str, inside: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= MAX_LEN
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || inside.contains(c))
}

macro_rules! is_text {
    ($name:ident) => {
        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse().map_err(|error: Error| error.to_string())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

is_text!(InstanceName);
is_text!(Alias);

/// Those of `known` that `wanted` may have been meant for, the nearest first; at most three.
pub fn nearest<'n>(wanted: &str, known: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (distance(wanted, name), name))
        .filter(|(distance, name)| *distance <= 1 + wanted.len() / 3 || name.starts_with(wanted))
        .collect();
    near.sort_unstable();
    near.into_iter().map(|(_, name)| name).take(3).collect()
}

/// How many characters have to be put in, left out or changed to make one of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hostnames() {
        for good in ["web", "web-1", "1", &"a".repeat(63)] {
            assert_eq!(good.parse::<InstanceName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a.b",
            "A",
            "a b",
            "../a",
            "a/b",
            "ä",
            "a\n",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
        }
        for good in ["web", "web.example.org", "1.2"] {
            assert_eq!(good.parse::<Hostname>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "web.", ".org", "a..b", "a.-b", "A.b", &"a.".repeat(127)] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad}");
        }
        assert!("debian_12.1".parse::<Alias>().is_ok());
        for bad in [".", "..", ".a", "a.", "a/b", "A"] {
            assert!(bad.parse::<Alias>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_meant_is_found() {
        let known = ["debian-12", "debian-12-cloud", "busybox"];
        assert_eq!(nearest("debain-12", known), ["debian-12"]);
        assert_eq!(nearest("debian", known), ["debian-12", "debian-12-cloud"]);
        assert_eq!(nearest("fedora", known), [""; 0]);
        assert_eq!((distance("kitten", "sitting"), distance("", "ab")), (3, 2));
    }
}
