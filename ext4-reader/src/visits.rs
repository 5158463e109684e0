//! Walks over whole trees, in filesystems that may be damaged or made to harm.

use std::collections::HashSet;

use block::Result;

use crate::corruption::Corruption;
use crate::inode::{FileKind, Flags, Inode, InodeNumber};
use crate::superblock::Superblock;

/// Keeps a walk from going in circles, and from reading the same blocks for ever under different names.
///
/// A directory has one name, and a block one file. So whoever walks a tree says which directories are entered and what
/// content is read, and is told when that is more than there can be.
#[derive(Debug)]
pub struct Visits {
    directories: HashSet<InodeNumber>,
    /// Bytes of directories that can still come.
    directories_left: u64,
    /// Bytes of anything that can still come. `None` where files may share blocks; directories never do.
    left: Option<u64>,
}

impl Visits {
    /// Before a walk.
    pub fn new(superblock: &Superblock) -> Self {
        let all = superblock.blocks() * superblock.block_size();
        Self {
            directories: HashSet::new(),
            directories_left: all,
            left: (!superblock.shares_blocks()).then_some(all),
        }
    }

    /// Takes note of a directory that is about to be read.
    ///
    /// # Errors
    /// `Corrupt` if it was before, or if directories are larger than they can be.
    pub fn enter(&mut self, directory: &Inode) -> Result<()> {
        let number = directory.number();
        if directory.kind() == FileKind::Directory && !self.directories.insert(number) {
            return Err(Corruption::DirectoryTwice { number }.into());
        }
        // Only a flag that a reader goes by can be believed: what is kept in the inode takes no block.
        if directory.flags.contains(Flags::INLINE_DATA) {
            return Ok(());
        }
        let left = self.directories_left.checked_sub(directory.size());
        self.directories_left = left.ok_or(Corruption::ClaimedTwice)?;
        self.read(directory.size())
    }

    /// Takes note of `len` bytes of content that are about to be read.
    ///
    /// # Errors
    /// `Corrupt` if there cannot be so many.
    pub fn read(&mut self, len: u64) -> Result<()> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(len).ok_or(Corruption::ClaimedTwice)?;
        }
        Ok(())
    }
}
