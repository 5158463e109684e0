//! The ways in which a filesystem contradicts the format, each with the values that were seen.
//!
//! The enum is private to the crate: callers see [`block::ErrorKind::Corrupt`] and a sentence, and a new check is
//! no change of the interface.

use block::Error;
use thiserror::Error as ThisError;

use crate::inode::InodeNumber;

/// A contradiction, as found while parsing.
#[derive(Clone, Debug, ThisError, PartialEq, Eq)]
pub(crate) enum Corruption {
    #[error("the superblock's field {field} is {value}: {problem}")]
    Superblock {
        field: &'static str,
        value: u64,
        problem: &'static str,
    },
    #[error("the filesystem has {filesystem} bytes, and the disk only {disk}: the rest of it is missing")]
    CutOff { filesystem: u64, disk: u64 },
    #[error("the checksum of {what} is {stored:#x}, and should be {computed:#x}")]
    Checksum {
        what: String,
        stored: u32,
        computed: u32,
    },
    #[error("the inode table of block group {group} is at block {block}, outside of the filesystem")]
    InodeTable { group: u32, block: u64 },
    #[error("there is no inode {number}: the filesystem has {count}")]
    NoInode { number: InodeNumber, count: u32 },
    #[error("inode {number}: {problem} ({value})")]
    Inode {
        number: InodeNumber,
        problem: &'static str,
        value: u64,
    },
    #[error("inode {number}: extent tree, {place}: {problem} ({value})")]
    ExtentTree {
        number: InodeNumber,
        place: String,
        problem: &'static str,
        value: u64,
    },
    #[error("inode {number}: its block map names block {block}, outside of the filesystem")]
    BlockMap { number: InodeNumber, block: u64 },
    #[error("directory inode {number}: entry at byte {offset}: {problem}")]
    Directory {
        number: InodeNumber,
        offset: u64,
        problem: &'static str,
    },
    #[error("directory inode {number} is reached on two ways")]
    DirectoryTwice { number: InodeNumber },
    #[error(
        "the files that were read hold more than the filesystem has room for: blocks are claimed more than once"
    )]
    ClaimedTwice,
    #[error("inode {number}: extended attributes: {problem}")]
    Xattr {
        number: InodeNumber,
        problem: &'static str,
    },
    #[error("journal block {block}: {problem}")]
    Journal { block: u64, problem: &'static str },
}

impl From<Corruption> for Error {
    fn from(corruption: Corruption) -> Self {
        Error::corrupt(corruption)
    }
}

/// Fails unless the checksums are the same. `what` is only called on failure.
pub(crate) fn verify(stored: u32, computed: u32, what: impl FnOnce() -> String) -> block::Result<()> {
    if stored == computed {
        return Ok(());
    }
    let what = what();
    Err(Corruption::Checksum {
        what,
        stored,
        computed,
    }
    .into())
}
