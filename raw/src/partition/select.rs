//! How a partition is named: by its number, its name or its GUID.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use block::{Error, Result, escape};

use super::{Guid, Partition};

/// Which partition is meant, as text: `2`, `name:root`, `uuid:0FC63DAF-...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// By number, from 1 on.
    Number(u32),
    /// By name.
    Name(String),
    /// By the GUID that is its own.
    Guid(Guid),
}

impl Selector {
    /// The one of `partitions` that is meant.
    pub(super) fn find<'a>(&self, partitions: &'a [Partition]) -> Result<&'a Partition> {
        let is_meant = |partition: &&Partition| match self {
            Self::Number(number) => partition.number == *number,
            Self::Name(name) => partition.name == *name,
            Self::Guid(guid) => partition.guid == Some(*guid),
        };
        let mut meant = partitions.iter().filter(is_meant);
        match (meant.next(), meant.next()) {
            (Some(partition), None) => Ok(partition),
            (found, _) => {
                let many = if found.is_some() { "more than one" } else { "no" };
                let message = format!("there is {many} partition {}", escape(&self.to_string()));
                Err(Error::invalid(message).with_hint(list(partitions)))
            }
        }
    }
}

/// Takes the name of a partition in an image apart: `IMAGE#2`, `IMAGE#name:root`, `IMAGE#uuid:GUID`.
///
/// A name that a file has is that file's, whatever it looks like. Any other is taken apart at the first `#` with something before
/// it that `is_image`, and behind it what looks like a partition.
///
/// # Errors
/// `InvalidInput` for what looks like a partition and is none, such as `IMAGE#0`.
pub fn split_name(name: &Path, is_image: impl Fn(&Path) -> bool) -> Result<(&Path, Option<Selector>)> {
    if fs::symlink_metadata(name).is_ok() {
        return Ok((name, None));
    }
    let bytes = name.as_os_str().as_bytes();
    let hashes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'#');
    let mut parts = hashes.filter_map(|(at, _)| {
        let partition = std::str::from_utf8(&bytes[at + 1..]).ok()?;
        Some((Path::new(OsStr::from_bytes(&bytes[..at])), partition))
    });
    match parts.find(|(image, partition)| looks_like_one(partition) && is_image(image)) {
        Some((image, partition)) => {
            let selector = partition.parse().map_err(|error: Error| error.with_path(name))?;
            Ok((image, Some(selector)))
        }
        None => Ok((name, None)),
    }
}

fn looks_like_one(partition: &str) -> bool {
    let number = !partition.is_empty() && partition.bytes().all(|byte| byte.is_ascii_digit());
    number || partition.starts_with("name:") || partition.starts_with("uuid:")
}

/// `there are 1 (ESP), 2 (root) and 14`.
fn list(partitions: &[Partition]) -> String {
    let describe = |partition: &Partition| match partition.name.as_str() {
        "" => partition.number.to_string(),
        name => format!("{} ({})", partition.number, escape(name)),
    };
    match partitions {
        [] => "the table is empty".to_owned(),
        [only] => format!("there is only {}", describe(only)),
        [others @ .., last] => {
            let others: Vec<_> = others.iter().map(describe).collect();
            format!("there are {} and {}", others.join(", "), describe(last))
        }
    }
}

impl FromStr for Selector {
    type Err = Error;

    /// # Errors
    /// `InvalidInput` for what is no number from 1 on, nor starts with `name:` or `uuid:`.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix("name:") {
            return Ok(Self::Name(name.to_owned()));
        }
        if let Some(guid) = text.strip_prefix("uuid:") {
            return guid.parse().map(Self::Guid);
        }
        match text.parse() {
            Ok(number) if number > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Self::Number(number))
            }
            _ => Err(Error::invalid(format!("\"{}\" names no partition", escape(text)))
                .with_hint("a partition is named by its number, as name:LABEL or as uuid:GUID")),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Guid(guid) => write!(f, "uuid:{guid}"),
        }
    }
}
