//! What disk is made: `[disk]`.

use std::num::NonZeroU32;
use std::str::FromStr;

use block::{Error, Result, escape};
use ext4_builder::{Compat, Free, Inodes, Journal, Options, Size, Time};
use serde::{Deserialize, Deserializer, de};
use uuid::Uuid;

use crate::settings::size_text;

/// Hundredths of the root filesystem that are free where nothing is said.
const FREE: u8 = 20;

/// What disk is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct DiskOptions {
    /// Bytes of the disk.
    #[serde(with = "size_text")]
    pub size: Option<u64>,
    /// What is free, where the disk is as large as the tree takes.
    pub free: Option<FreeRoom>,
    /// Name of the root filesystem.
    #[serde(deserialize_with = "label")]
    pub label: Option<String>,
    /// UUID of the root filesystem, from which all others on the disk follow; drawn where nothing is said.
    pub uuid: Option<Uuid>,
    /// Bytes in a block.
    #[serde(deserialize_with = "block_size")]
    pub block_size: Option<u64>,
    /// The journal.
    #[serde(deserialize_with = "journal")]
    pub journal: Option<JournalSize>,
    /// Number of inodes.
    pub inodes: Option<NonZeroU32>,
    /// Hundredths of the blocks that only root may fill.
    #[serde(deserialize_with = "reserved")]
    pub reserved: Option<u8>,
    /// Small files are in their inodes.
    pub inline_data: Option<bool>,
    /// The oldest kernel that must be able to use it.
    pub compat: Option<Kernel>,
    /// Bytes that the root can grow to while it is mounted.
    #[serde(with = "size_text")]
    pub grow: Option<u64>,
    /// Bytes of the EFI system partition.
    #[serde(with = "size_text")]
    pub esp_size: Option<u64>,
    /// The image is compressed.
    pub compress: Option<bool>,
}

/// `20%`, or a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FreeRoom(Free);

/// `none`, or a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct JournalSize(Journal);

/// A kernel that filesystems are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Kernel {
    /// Without checksums of metadata but for block groups.
    #[serde(rename = "linux-3.10")]
    Linux3_10,
    /// Without an orphan file.
    #[serde(rename = "linux-4.19")]
    Linux4_19,
    /// The same.
    #[serde(rename = "linux-5.15")]
    Linux5_15,
    /// All that there is.
    #[serde(rename = "latest")]
    Latest,
}

impl FromStr for FreeRoom {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(percent) = text.strip_suffix('%') else {
            return block::size::parse(text).map(Free::Bytes).map(Self);
        };
        let wrong = || {
            Error::invalid(format!(
                "\"{}\" is no part of a filesystem: there are 0% to 90%",
                escape(text)
            ))
        };
        let percent = percent.parse().ok().filter(|percent| *percent <= 90);
        percent.map(Free::Percent).map(Self).ok_or_else(wrong)
    }
}

impl FromStr for JournalSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self(match text {
            "none" => Journal::None,
            text => Journal::Bytes(block::size::parse(text)?),
        }))
    }
}

/// A key alone, unless no filesystem can be made as it says, whatever other keys do.
fn possible<E: de::Error>(alone: DiskOptions) -> Result<DiskOptions, E> {
    alone.validate().map_err(E::custom)?;
    Ok(alone)
}

fn label<'d, D: Deserializer<'d>>(from: D) -> Result<Option<String>, D::Error> {
    let alone = DiskOptions {
        label: Option::deserialize(from)?,
        ..DiskOptions::default()
    };
    possible(alone).map(|alone| alone.label)
}

fn block_size<'d, D: Deserializer<'d>>(from: D) -> Result<Option<u64>, D::Error> {
    let alone = DiskOptions {
        block_size: size_text::deserialize(from)?,
        ..DiskOptions::default()
    };
    possible(alone).map(|alone| alone.block_size)
}

fn reserved<'d, D: Deserializer<'d>>(from: D) -> Result<Option<u8>, D::Error> {
    let alone = DiskOptions {
        reserved: Option::deserialize(from)?,
        ..DiskOptions::default()
    };
    possible(alone).map(|alone| alone.reserved)
}

fn journal<'d, D: Deserializer<'d>>(from: D) -> Result<Option<JournalSize>, D::Error> {
    let journal = Option::deserialize(from)?;
    // How long it may be follows from the size of blocks, which another recipe may say.
    let with = |block_size| DiskOptions {
        journal,
        block_size: Some(block_size),
        ..DiskOptions::default()
    };
    if with(1024).validate().is_err() && with(2048).validate().is_err() {
        possible(with(4096))?;
    }
    Ok(journal)
}

impl TryFrom<String> for FreeRoom {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl TryFrom<String> for JournalSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl DiskOptions {
    pub(super) fn then(self, later: Self) -> Self {
        // A size and what is to be free rule each other out.
        let (size, free) = match (later.size, later.free) {
            (None, None) => (self.size, self.free),
            later => later,
        };
        Self {
            size,
            free,
            label: later.label.or(self.label),
            uuid: later.uuid.or(self.uuid),
            block_size: later.block_size.or(self.block_size),
            journal: later.journal.or(self.journal),
            inodes: later.inodes.or(self.inodes),
            reserved: later.reserved.or(self.reserved),
            inline_data: later.inline_data.or(self.inline_data),
            compat: later.compat.or(self.compat),
            grow: later.grow.or(self.grow),
            esp_size: later.esp_size.or(self.esp_size),
            compress: later.compress.or(self.compress),
        }
    }

    /// The keys that say what a filesystem is to be like that is made.
    pub(super) fn of_new_filesystem(&self) -> Vec<&'static str> {
        let keys = [
            (self.size.is_some(), "size"),
            (self.free.is_some(), "free"),
            (self.label.is_some(), "label"),
            (self.uuid.is_some(), "uuid"),
            (self.block_size.is_some(), "block-size"),
            (self.journal.is_some(), "journal"),
            (self.inodes.is_some(), "inodes"),
            (self.reserved.is_some(), "reserved"),
            (self.inline_data.is_some(), "inline-data"),
            (self.compat.is_some(), "compat"),
            (self.grow.is_some(), "grow"),
            (self.esp_size.is_some(), "esp-size"),
        ];
        let said = keys.into_iter().filter(|(is_said, _)| *is_said);
        said.map(|(_, key)| key).collect()
    }

    /// Fails for options of which no filesystem can be made.
    pub(super) fn validate(&self) -> Result<()> {
        self.root(None).validate()
    }

    /// The options of the root filesystem. No time in it is later than `epoch`, if that is given.
    pub(super) fn root(&self, epoch: Option<Time>) -> Options {
        let size = match (self.size, self.free) {
            (Some(size), _) => Size::Given(block::size::whole_sectors(size)),
            (None, Some(FreeRoom(free))) => Size::Fit(free),
            (None, None) => Size::Fit(Free::Percent(FREE)),
        };
        let uuid = self.uuid.unwrap_or_else(Uuid::new_v4);
        let mut options = Options::new(size, *uuid.as_bytes());
        options.label = self.label.clone().unwrap_or_default();
        options.time = epoch.unwrap_or_default();
        options.clamp = epoch;
        options.growth = self.grow;
        options.inline_data = self.inline_data.unwrap_or(options.inline_data);
        options.reserved_percent = self.reserved.unwrap_or(options.reserved_percent);
        if let Some(bytes) = self.block_size {
            options.block_size = u32::try_from(bytes).unwrap_or(u32::MAX);
        }
        if let Some(JournalSize(journal)) = self.journal {
            options.journal = journal;
        }
        if let Some(count) = self.inodes {
            options.inodes = Inodes::Count(count.get());
        }
        options.compat = match self.compat {
            Some(Kernel::Linux3_10) => Compat::Linux3_10,
            Some(Kernel::Linux4_19) => Compat::Linux4_19,
            Some(Kernel::Linux5_15) => Compat::Linux5_15,
            Some(Kernel::Latest) | None => Compat::Latest,
        };
        options
    }
}
