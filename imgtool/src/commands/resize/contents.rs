//! What is laid out on a disk, and so does not follow when the disk gets another size: an ext2, ext3 or ext4 filesystem that is all
//! of it, the partitions of a table, or another [filesystem or volume](super::superblocks).

use std::fmt::Write;
use std::sync::Arc;

use block::view::Window;
use block::{BlockDevice, Error, ErrorKind, Result};
use ext4_reader::Filesystem;
use raw::partition::{Partition, PartitionTable};

use super::superblocks::{Known, known};
use crate::output::human_size;

/// What is laid out on a disk.
#[derive(Debug)]
pub(super) enum Contents {
    /// Nothing that is known.
    Unknown,
    /// An ext filesystem that starts where the disk does, of so many bytes.
    Filesystem(u64),
    /// Another filesystem, or what else there may be.
    Known(Known),
    /// Partitions.
    Table(PartitionTable),
}

impl Contents {
    /// Looks at a disk, which must not change meanwhile.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported` for a filesystem or a table of which it cannot be told where it ends; `Io`.
    pub(super) fn of(disk: &Arc<dyn BlockDevice>) -> Result<Self> {
        if Filesystem::is_on(&**disk)? {
            let filesystem = Filesystem::open(disk.clone())?;
            let superblock = filesystem.superblock();
            return Ok(Self::Filesystem(superblock.blocks() * superblock.block_size()));
        }
        match PartitionTable::read(&**disk, None) {
            // Of partitions, what was there before them may have left its mark.
            Ok(table) if last(&table).is_some() => Ok(Self::Table(table)),
            Ok(table) => Ok(known(&**disk)?.map_or(Self::Table(table), Self::Known)),
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                Ok(known(&**disk)?.map_or(Self::Unknown, Self::Known))
            }
            Err(error) => Err(error),
        }
    }

    /// Fails where something of it lies behind the first `size` bytes of the disk.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub(super) fn check_fits(&self, size: u64) -> Result<()> {
        let (what, end, how) = match self {
            Self::Unknown => return Ok(()),
            Self::Filesystem(end) => {
                let how = "make it smaller first, with resize2fs say";
                ("the ext filesystem on the disk".to_owned(), *end, how)
            }
            Self::Known(Known { name, end, how }) => match end {
                Some(end) => (format!("what is on the disk, {name},"), *end, *how),
                None => return Err(says_no_end(name, how)),
            },
            Self::Table(table) => match last(table) {
                None => return Ok(()),
                Some(last) => {
                    let how = "make it smaller first, with parted say";
                    (format!("partition {}", last.number), end_of(last), how)
                }
            },
        };
        if end <= size {
            return Ok(());
        }
        let message = format!(
            "{what} ends at byte {end} ({}), and the disk would at {size}",
            human_size(end)
        );
        let hint = format!("{how}; --shrink --force cuts it off, and what lies there is lost");
        Err(Error::invalid(message).with_hint(hint))
    }
}

impl Contents {
    /// What has to be said of a `disk` called `name` that has grown: that this has not, and what makes it grow.
    pub(super) fn next_step(&self, disk: &Arc<dyn BlockDevice>, name: &str) -> Option<String> {
        let table = match self {
            Self::Unknown | Self::Known(_) => return None,
            Self::Filesystem(_) => {
                return Some(format!(
                    "the filesystem on the disk is as it was; next: imgtool fs grow {name}"
                ));
            }
            Self::Table(PartitionTable::Mbr(_)) => {
                return Some(
                    "the partitions are as they were; those of an MBR are for the guest to grow".to_owned(),
                );
            }
            Self::Table(table) => table,
        };
        let mut text = format!("the partitions are as they were; next: imgtool partition grow --last {name}");
        if let Some(last) = last(table)
            && let Ok(window) = Window::new(disk.clone(), last.start(), last.len())
            && Filesystem::is_on(&window).unwrap_or(false)
        {
            write!(text, ", then imgtool fs grow {name}#{}", last.number).ok()?;
        }
        Some(text)
    }
}

fn says_no_end(name: &str, how: &str) -> Error {
    let message = format!("there is {name} on the disk, which does not say where it ends");
    let hint = format!("{how}; --shrink --force cuts the disk off, and what lies there is lost");
    Error::invalid(message).with_hint(hint)
}

/// The partition that ends last; what only protects a GPT spans the disk, whatever its size.
fn last(table: &PartitionTable) -> Option<&Partition> {
    let partitions = table
        .partitions()
        .iter()
        .filter(|partition| !partition.is_empty());
    partitions.max_by_key(|partition| (end_of(partition), !partition.is_container()))
}

fn end_of(partition: &Partition) -> u64 {
    partition.start().saturating_add(partition.len())
}
