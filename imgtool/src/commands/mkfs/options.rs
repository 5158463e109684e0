//! What the filesystem is to be like.

use block::{Error, Result, escape};
use clap::{Args, ValueEnum};
use ext4_builder::{Compat, Free, Inodes, Journal, Options, Size, Time};
use uuid::Uuid;

use crate::size;

/// The environment variable that stands for the time of a build, as reproducible-builds.org has it.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What is free of a filesystem that is made to fit, in hundredths.
const FREE: u8 = 20;

#[derive(Clone, Debug, Args)]
pub(in crate::commands) struct FilesystemArgs {
    /// Size of the filesystem [default: what the source takes, and --free 20%; on a disk, all of it]
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["free", "shrink"])]
    size: Option<String>,
    /// Make it as large as the source takes, and so much more: a size, or hundredths of the whole, such as 20%
    #[arg(long, value_name = "SIZE", conflicts_with = "shrink")]
    free: Option<String>,
    /// Make it as small as can be
    #[arg(long)]
    shrink: bool,
    /// Room to grow to: descriptors are kept for this size, and beyond it are put elsewhere [default: 1024 times --size, or 512G]
    #[arg(long, value_name = "SIZE")]
    grow: Option<String>,
    /// Bytes in a block: 1k, 2k or 4k
    #[arg(long, default_value = "4k", value_name = "SIZE")]
    block_size: String,
    /// Size of the journal, or none [default: by the size of the filesystem]
    #[arg(long, value_name = "SIZE")]
    journal: Option<String>,
    /// Number of inodes, which must do for the source [default: one for every 16 KiB, and more where that takes more]
    #[arg(long, value_name = "N")]
    inodes: Option<u32>,
    /// Hundredths of the blocks that only root may fill, up to 50
    #[arg(long, default_value_t = 5, value_name = "PERCENT")]
    reserved: u8,
    /// Name of the volume, up to 16 bytes
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
    /// UUID of the filesystem [default: drawn]
    #[arg(long)]
    uuid: Option<String>,
    /// UUID that seeds the hashes of names in large directories [default: that of the filesystem]
    #[arg(long, value_name = "UUID")]
    hash_seed: Option<String>,
    /// Put small files and directories into their inodes
    #[arg(long)]
    inline_data: bool,
    /// The oldest kernel that must be able to use it
    #[arg(long, value_enum, default_value_t, value_name = "KERNEL")]
    compat: CompatArg,
}

/// Kernels that filesystems are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum CompatArg {
    /// Without checksums of metadata but for block groups
    #[value(name = "linux-3.10")]
    Linux3_10,
    /// Without an orphan file
    #[value(name = "linux-4.19")]
    Linux4_19,
    /// The same
    #[value(name = "linux-5.15")]
    Linux5_15,
    /// With all that mke2fs uses today
    #[default]
    Latest,
}

impl FilesystemArgs {
    /// The options; what is on a disk of a fixed size fills it.
    pub(in crate::commands) fn options(&self, disk: Option<u64>) -> Result<Options> {
        let size = self.size(disk)?;
        let uuid = match &self.uuid {
            Some(text) => parse_uuid(text)?,
            None => Uuid::new_v4().into_bytes(),
        };
        let hash_seed = self.hash_seed.as_deref().map(parse_uuid).transpose()?;
        let epoch = epoch()?;
        let mut options = Options::new(size, uuid);
        options.block_size = u32::try_from(size::parse(&self.block_size)?).unwrap_or(u32::MAX);
        options.hash_seed = hash_seed.unwrap_or(uuid);
        options.label.clone_from(&self.label);
        options.time = epoch.unwrap_or_default();
        options.clamp = epoch;
        options.reserved_percent = self.reserved;
        options.inline_data = self.inline_data;
        options.growth = self.grow.as_deref().map(size::parse).transpose()?;
        options.compat = match self.compat {
            CompatArg::Linux3_10 => Compat::Linux3_10,
            CompatArg::Linux4_19 => Compat::Linux4_19,
            CompatArg::Linux5_15 => Compat::Linux5_15,
            CompatArg::Latest => Compat::Latest,
        };
        options.journal = match self.journal.as_deref() {
            None => Journal::Default,
            Some("none") => Journal::None,
            Some(text) => Journal::Bytes(size::parse(text)?),
        };
        if let Some(count) = self.inodes {
            options.inodes = Inodes::Count(count);
        }
        Ok(options)
    }

    fn size(&self, disk: Option<u64>) -> Result<Size> {
        if self.shrink {
            return Ok(Size::Shrink);
        }
        if let Some(text) = &self.size {
            return size::parse_disk(text).map(Size::Given);
        }
        match (&self.free, disk) {
            (None, Some(size)) => Ok(Size::Given(size)),
            (None, None) => Ok(Size::Fit(Free::Percent(FREE))),
            (Some(text), _) => free(text).map(Size::Fit),
        }
    }
}

/// `20%`, or a size.
fn free(text: &str) -> Result<Free> {
    let Some(percent) = text.strip_suffix('%') else {
        return size::parse(text).map(Free::Bytes);
    };
    percent.parse().map(Free::Percent).map_err(|_| {
        Error::invalid(format!("\"{}\" is no part of a filesystem", escape(text)))
            .with_hint("there are 0% to 90%, and sizes such as 500M")
    })
}

/// The time that the environment states.
pub(in crate::commands) fn epoch() -> Result<Option<Time>> {
    let Some(text) = std::env::var_os(EPOCH) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    match text.parse() {
        Ok(secs) => Ok(Some(Time { secs, nanos: 0 })),
        Err(_) => Err(Error::invalid(format!(
            "{EPOCH} is \"{}\", which is no number of seconds",
            escape(&text)
        ))
        .with_hint(format!(
            "set it to the seconds since 1970, or unset it: unset {EPOCH}"
        ))),
    }
}

/// The bytes of a UUID as it is written everywhere: in groups of 8, 4, 4, 4 and 12 hexadecimal digits.
fn parse_uuid(text: &str) -> Result<[u8; 16]> {
    let refuse = || {
        Error::invalid(format!("\"{}\" is no UUID", escape(text)))
            .with_hint("a UUID looks like 0a6d0b5c-9c5f-4d0a-8a6e-2f3b1c9d7e41")
    };
    // The crate takes other ways to write one, too.
    let uuid = Uuid::try_parse(text)
        .ok()
        .filter(|uuid| uuid.to_string().eq_ignore_ascii_case(text));
    uuid.map(Uuid::into_bytes).ok_or_else(refuse)
}

/// The UUID, as it is written everywhere.
pub(in crate::commands) fn show_uuid(uuid: &[u8; 16]) -> String {
    Uuid::from_bytes(*uuid).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_as_they_are_written() {
        let text = "0a6d0b5c-9c5f-4d0a-8a6e-2f3b1c9d7e41";
        let uuid = parse_uuid(text).unwrap();
        assert_eq!((uuid[0], uuid[15]), (0x0A, 0x41));
        assert_eq!(show_uuid(&uuid), text);
        assert_eq!(parse_uuid(&text.to_uppercase()).unwrap(), uuid);
        for wrong in [
            "",
            "0a6d0b5c9c5f4d0a8a6e2f3b1c9d7e41",
            "0a6d0b5c-9c5f-4d0a-8a6e-2f3b1c9d7e4g",
            "+a6d0b5c-9c5f-4d0a-8a6e-2f3b1c9d7e41",
        ] {
            assert!(parse_uuid(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_to_be_free_is_a_part_or_a_size() {
        assert_eq!(free("20%").unwrap(), Free::Percent(20));
        assert_eq!(free("1.5G").unwrap(), Free::Bytes(3 << 29));
        for wrong in ["%", "-1%", "1.5%", "300%", "x"] {
            assert!(free(wrong).is_err(), "{wrong}");
        }
    }
}
