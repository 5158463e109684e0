//! Changing a filesystem in an image: what all commands that do have in common.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use block::chain::Chain;
use block::{Access, BlockDevice, Error, FileId, Result};
use clap::Args;
use ext4_builder::Time;
use ext4_editor::{Attributes, Editor, LastLink, Options};
use ext4_reader::FileKind;
use serde_json::Value;

use super::mode::octal;
use super::{Outcome, describe, explain_none};
use crate::arguments::OpenArgs;
use crate::commands::mkfs::epoch;
use crate::image_name::ImageName;
use crate::images::Opening;
use crate::output::{self, OutputFormat};

/// The filesystem that is changed.
#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// How to print what was done; for people, only what is not what was asked for
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(super) output: OutputFormat,
    #[command(flatten)]
    open: OpenArgs,
    /// The image, or a partition of the disk in one
    image: PathBuf,
}

/// A filesystem that can be changed. The image is locked meanwhile.
pub(super) struct Target {
    pub(super) editor: Editor,
    disk: Arc<dyn BlockDevice>,
    chain: Chain,
    image: PathBuf,
}

impl TargetArgs {
    pub(super) fn open(&self) -> Result<Target> {
        self.open.check()?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access::WRITE,
            direct: false,
        };
        let name = ImageName::parse(&self.image)?;
        let chain = opening.chain_to_change(&name.path, self.format.as_deref())?;
        let disk = name.filesystem_on(chain.device())?;
        let editor = Editor::open(disk.clone(), Options::new(now()?))
            .map_err(|error| explain_none(error, &name, &self.image, &chain))?;
        Ok(Target {
            editor,
            disk,
            chain,
            image: self.image.clone(),
        })
    }

    /// Makes a change, all of it or nothing, and tells programs what it says of it.
    pub(super) fn change(
        &self,
        out: &mut dyn Write,
        change: impl FnOnce(&mut Editor) -> Result<Value>,
    ) -> Outcome {
        let mut target = self.open()?;
        let changed = change(&mut target.editor);
        let told = target.finish(changed)?;
        if self.output == OutputFormat::Json {
            output::json(out, &told)?;
        }
        Ok(0)
    }
}

impl Target {
    /// Bytes of the filesystem.
    pub(super) fn size(&self) -> u64 {
        let superblock = self.editor.filesystem().superblock();
        superblock.blocks() * superblock.block_size()
    }

    /// Bytes that it could have.
    pub(super) fn disk_size(&self) -> u64 {
        self.disk.size()
    }

    /// The files that are written to and read from.
    pub(super) fn files(&self) -> Vec<FileId> {
        let layers = self.chain.layers().iter();
        let files = layers.flat_map(|layer| std::iter::once(&layer.storage).chain(&layer.data_file));
        files.filter_map(|file| file.file_id()).collect()
    }

    /// Makes a change durable, where there was no error.
    pub(super) fn finish<T>(mut self, changed: Result<T>) -> Result<T> {
        let finished = changed.and_then(|told| {
            self.editor.commit()?;
            self.chain.settle()?;
            Ok(told)
        });
        finished.map_err(|error| error.with_path(&self.image))
    }
}

/// What a file is, for programs, as other commands have it.
pub(super) fn file_json(editor: &Editor, path: &[u8], last: LastLink) -> Result<Value> {
    let filesystem = editor.filesystem();
    let inode = filesystem.resolve(path, last)?;
    let target = match inode.kind() {
        FileKind::Symlink => Some(filesystem.read_link(&inode)?),
        _ => None,
    };
    Ok(describe::json(path, &inode, target.as_deref()))
}

/// The time of changes: what the environment states, or that of the clock.
fn now() -> Result<Time> {
    if let Some(time) = epoch()? {
        return Ok(time);
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Error::invalid("the clock is before 1970").with_hint("set it"))?;
    Ok(Time {
        secs: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos(),
    })
}

/// Mode and owner of what is made.
#[derive(Debug, Args)]
pub(super) struct AttributeArgs {
    /// Permissions, in octal digits
    #[arg(long, value_name = "MODE", value_parser = octal)]
    mode: Option<u16>,
    /// Owner, as numbers
    #[arg(long, value_name = "UID[:GID]", value_parser = owner)]
    owner: Option<Owner>,
}

impl AttributeArgs {
    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            permissions: self.mode,
            uid: self.owner.and_then(|owner| owner.uid),
            gid: self.owner.and_then(|owner| owner.gid),
            ..Attributes::default()
        }
    }
}

/// An owner, a group or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// `1000`, `1000:1000` or `:1000`.
pub(super) fn owner(text: &str) -> Result<Owner, String> {
    let id = |text: &str| match text {
        "" => Ok(None),
        _ if text.bytes().all(|digit| digit.is_ascii_digit()) => text.parse().map(Some).map_err(|_| ()),
        _ => Err(()),
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
    match (id(uid), id(gid)) {
        (Ok(uid), Ok(gid)) if uid.is_some() || gid.is_some() => Ok(Owner { uid, gid }),
        _ => Err("an owner is a number, with a group behind a colon: 1000, 1000:1000 or :1000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers() {
        let both = Owner {
            uid: Some(1),
            gid: Some(4_000_000_000),
        };
        assert_eq!(owner("1:4000000000"), Ok(both));
        assert_eq!(owner(":5").unwrap().uid, None);
        for text in ["", ":", "root", "1:x", "5000000000", "-1"] {
            assert!(owner(text).is_err(), "{text}");
        }
    }
}
