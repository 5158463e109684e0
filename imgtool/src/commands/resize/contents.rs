//! What is laid out on a disk, and so does not follow when the disk gets another size: an ext2, ext3 or ext4 filesystem that is all
//! of it, or the partitions of a table.

use std::fmt::Write;
use std::sync::Arc;

use block::view::Window;
use block::{BlockDevice, Error, ErrorKind, Result};
use ext4_reader::Filesystem;
use raw::partition::{Partition, PartitionTable};

use crate::output::human_size;

/// What is laid out on a disk.
#[derive(Debug)]
pub(super) enum Contents {
    /// Nothing that is known.
    Unknown,
    /// A filesystem that starts where the disk does, of so many bytes.
    Filesystem(u64),
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
            Ok(table) => Ok(Self::Table(table)),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(Self::Unknown),
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
            Self::Filesystem(end) => ("the ext filesystem on the disk".to_owned(), *end, "resize2fs"),
            Self::Table(table) => match last(table) {
                None => return Ok(()),
                Some(last) => (format!("partition {}", last.number), end_of(last), "parted"),
            },
        };
        if end <= size {
            return Ok(());
        }
        let message = format!(
            "{what} ends at byte {end} ({}), and the disk would at {size}",
            human_size(end)
        );
        let hint = format!(
            "make it smaller first, with {how} say; --shrink --force cuts it off, and what lies there is lost"
        );
        Err(Error::invalid(message).with_hint(hint))
    }
}

impl Contents {
    /// What has to be said of a `disk` called `name` that has grown: that this has not, and what makes it grow.
    pub(super) fn next_step(&self, disk: &Arc<dyn BlockDevice>, name: &str) -> Option<String> {
        let table = match self {
            Self::Unknown => return None,
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
