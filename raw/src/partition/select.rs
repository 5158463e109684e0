//! How a partition is named: by its number, its name or its GUID.

use std::fmt;
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
