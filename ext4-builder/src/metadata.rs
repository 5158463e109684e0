//! What is said of files, and of a filesystem.

use crate::time::Time;

/// A file, directory or anything else in a [`Builder`](crate::Builder)'s tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub(crate) u32);

/// What is stored of a file besides its contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The lower 12 bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub accessed: Time,
    /// Last change of metadata.
    pub changed: Time,
    /// Last change of contents.
    pub modified: Time,
    /// Creation.
    pub created: Time,
}

impl Metadata {
    /// All times the same, and the rest 0.
    pub fn at(time: Time) -> Self {
        Self {
            accessed: time,
            changed: time,
            modified: time,
            created: time,
            ..Self::default()
        }
    }
}

/// What has a name and neither contents nor entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// A pipe with a name.
    Fifo,
    /// A socket.
    Socket,
    /// A device of characters.
    CharacterDevice {
        /// Up to 4095.
        major: u32,
        /// Up to 1048575.
        minor: u32,
    },
    /// A device of blocks.
    BlockDevice {
        /// Up to 4095.
        major: u32,
        /// Up to 1048575.
        minor: u32,
    },
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks in the filesystem.
    pub blocks: u64,
    /// Blocks that are free.
    pub free_blocks: u64,
    /// Inodes, the reserved ones included.
    pub inodes: u32,
    /// Inodes that are free.
    pub free_inodes: u32,
    /// Blocks of the journal.
    pub journal_blocks: u64,
}

impl Summary {
    /// Bytes in the filesystem.
    pub fn size(&self) -> u64 {
        self.blocks * u64::from(self.block_size)
    }
}
