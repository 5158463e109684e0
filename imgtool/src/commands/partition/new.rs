//! New partitions, as the command line describes them.

use std::io::{self, Write};

use block::{Error, Result, escape};
use raw::partition::{Guid, NewPartition, PartitionKind};

use crate::option_list::OptionList;
use crate::size;

/// Names of attributes, and their bits.
pub(super) const ATTRIBUTES: [(&str, u32); 6] = [
    ("required", 0),
    ("no-block-io", 1),
    ("legacy-boot", 2),
    ("grow-fs", 59),
    ("read-only", 60),
    ("no-auto", 63),
];

/// The partition that `text` describes.
pub(super) fn parse(text: &str) -> Result<NewPartition> {
    let mut options = OptionList::parse(&[text.to_owned()])?;
    let kind = options.take("type");
    let mut partition = NewPartition::new(match kind {
        Some(kind) => kind.parse()?,
        None => PartitionKind::LINUX,
    });
    if let Some(number) = options.take("number") {
        let number = number.parse().map_err(|_| {
            Error::invalid(format!("\"{}\" is no number of a partition", escape(&number)))
                .with_hint("there are 1 to 128")
        })?;
        partition = partition.number(number);
    }
    if let Some(start) = options.take("start") {
        partition = partition.start(size::of("start", &start)?);
    }
    if let Some(size) = options.take("size") {
        partition = partition.size(size::of("size", &size)?);
    }
    if let Some(name) = options.take("name") {
        partition = partition.name(name);
    }
    if let Some(guid) = options.take("uuid") {
        partition = partition.guid(guid.parse::<Guid>()?);
    }
    if let Some(names) = options.take("attributes") {
        partition = partition.attributes(attributes(&names)?);
    }
    match options.untaken() {
        None => Ok(partition),
        Some(key) => {
            let message = format!("partitions have no \"{}\"", escape(key));
            Err(Error::invalid(message)
                .with_hint("there are number, start, size, type, name, uuid and attributes"))
        }
    }
}

/// The bits of attributes whose names are joined by `+`.
fn attributes(names: &str) -> Result<u64> {
    let bit = |name: &str| {
        let known = ATTRIBUTES.iter().find(|(known, _)| *known == name);
        known.map(|(_, bit)| 1u64 << bit).ok_or_else(|| {
            let known: Vec<_> = ATTRIBUTES.iter().map(|(name, _)| *name).collect();
            let message = format!("there is no attribute \"{}\"", escape(name));
            Error::invalid(message)
                .with_hint(format!("there are {}; several are joined by +", known.join(", ")))
        })
    };
    names.split('+').try_fold(0, |all, name| Ok(all | bit(name)?))
}

/// The keys and the types.
pub(super) fn print_help(out: &mut dyn Write) -> io::Result<()> {
    write!(
        out,
        "\
Keys of a new partition:
  attributes=NAME+NAME     What others are to know of it
  name=NAME                Its name, 36 characters at most
  number=N                 Its number, from 1 to 128 [the lowest that is free]
  size=SIZE                Its size [all the room that there is]
  start=OFFSET             Where it starts [behind the partition before it, at a multiple of 1 MiB]
  type=TYPE                What it is for: a GUID, or a name [linux]
  uuid=GUID                The GUID that is its own [drawn]
"
    )?;
    let attributes: Vec<_> = ATTRIBUTES.iter().map(|(name, _)| *name).collect();
    writeln!(out, "\nAttributes: {}\n\nTypes:", attributes.join(", "))?;
    for name in PartitionKind::names() {
        if let Ok(PartitionKind::Gpt(guid)) = name.parse() {
            writeln!(out, "  {name:<14} {guid}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_understood_or_refused_by_name() {
        for text in [
            "size=1M",
            "type=efi,name=a,,b,size=1.5G,number=7,start=1M",
            "attributes=legacy-boot+read-only",
        ] {
            parse(text).unwrap();
        }
        for (text, what) in [
            ("size=1e9", "\"1e9\" is no size"),
            ("type=linus", "no partition type \"linus\""),
            ("number=x", "\"x\" is no number"),
            ("label=x", "no \"label\""),
            ("uuid=1", "\"1\" is no GUID"),
            ("attributes=fast", "no attribute \"fast\""),
            ("attributes=", "no attribute \"\""),
            ("", "nothing between two commas"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
        assert_eq!(attributes("required+legacy-boot+no-auto").unwrap(), 1 << 63 | 5);
    }
}
