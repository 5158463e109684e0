//! Where things are ("Layout" and "Block Groups"): the disk in groups of 128 MiB, each with its own metadata.
//!
//! A group starts with what it keeps for the whole filesystem, a copy of the superblock and the table of group
//! descriptors, where it has one (`sparse_super`: group 0, 1 and the powers of 3, 5 and 7). Then follow its block
//! bitmap, its inode bitmap, and its part of the inode table. All the rest is for data.

use block::{Error, Result};

use crate::group_descriptor::DESCRIPTOR_SIZE;
use crate::inode::{FIRST_FREE_INODE, INODE_SIZE};

/// Bytes in a filesystem block.
pub const BLOCK_SIZE: u64 = 4096;

/// Blocks in a group, as many as a block has bits.
pub(crate) const BLOCKS_PER_GROUP: u32 = BLOCK_SIZE as u32 * 8;

/// The smallest disk: 1 MiB.
pub const MIN_SIZE: u64 = 1 << 20;

/// The largest disk: 16 TiB, where block numbers outgrow 32 bits.
pub const MAX_SIZE: u64 = 1 << 44;

/// Inodes in a block of the inode table; a group's part of it is whole blocks.
const INODES_PER_BLOCK: u32 = (BLOCK_SIZE / INODE_SIZE as u64) as u32;

/// As many as the inode bitmap has bits.
const MAX_INODES_PER_GROUP: u32 = BLOCKS_PER_GROUP;

/// A last group with less room for data than this is left off: its metadata would be most of it.
const MIN_DATA_BLOCKS: u32 = 64;

/// How a filesystem is laid out on its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    blocks: u64,
    groups: u32,
    inodes_per_group: u32,
}

impl Geometry {
    /// The layout for a disk of `size` bytes with one inode for every `bytes_per_inode`.
    ///
    /// # Errors
    /// `InvalidInput` for a size outside [`MIN_SIZE`]..=[`MAX_SIZE`], and where there is no room for the inodes.
    pub(crate) fn new(size: u64, bytes_per_inode: u64) -> Result<Self> {
        if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(
                Error::invalid(format!("cannot make an ext4 filesystem of {size} bytes"))
                    .with_hint("choose a size from 1 MiB to 16 TiB"),
            );
        }
        if bytes_per_inode < BLOCK_SIZE / 4 {
            return Err(
                Error::invalid(format!("one inode for every {bytes_per_inode} bytes is too many"))
                    .with_hint("choose 1024 bytes per inode or more"),
            );
        }
        let blocks = size / BLOCK_SIZE;
        let groups = blocks.div_ceil(u64::from(BLOCKS_PER_GROUP)) as u32;
        let inodes = (size / bytes_per_inode).max(u64::from(FIRST_FREE_INODE));
        // The number of all inodes must fit 32 bits.
        let limit = MAX_INODES_PER_GROUP.min(u32::MAX / groups);
        let inodes_per_group = inodes
            .div_ceil(u64::from(groups))
            .next_multiple_of(u64::from(INODES_PER_BLOCK))
            .min(u64::from(limit - limit % INODES_PER_BLOCK)) as u32;
        let whole = Self {
            blocks,
            groups,
            inodes_per_group,
        };
        whole.without_stub(bytes_per_inode)
    }

    /// The same without a last group that is too short to be of use.
    fn without_stub(mut self, bytes_per_inode: u64) -> Result<Self> {
        let last = self.groups - 1;
        if self.blocks_in(last) >= self.overhead(last) + MIN_DATA_BLOCKS {
            return Ok(self);
        }
        if last == 0 {
            return Err(Error::invalid(format!(
                "one inode for every {bytes_per_inode} bytes leaves no room for data on {} blocks",
                self.blocks
            ))
            .with_hint("choose more bytes per inode"));
        }
        self.blocks = first_block(last);
        self.groups = last;
        Ok(self)
    }

    /// Blocks in the filesystem; the last few of the disk may be left over.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Block groups in the filesystem.
    pub fn groups(&self) -> u32 {
        self.groups
    }

    /// Inodes in the filesystem, the reserved ones included.
    pub fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    /// Inodes in each group.
    pub(crate) fn inodes_per_group(&self) -> u32 {
        self.inodes_per_group
    }

    /// Blocks in a group: fewer in the last.
    pub(crate) fn blocks_in(&self, group: u32) -> u32 {
        (self.blocks - first_block(group)).min(u64::from(BLOCKS_PER_GROUP)) as u32
    }

    /// Blocks that the table of group descriptors takes.
    pub(crate) fn descriptor_blocks(&self) -> u32 {
        (self.groups * DESCRIPTOR_SIZE as u32).div_ceil(BLOCK_SIZE as u32)
    }

    /// The block of a group's block bitmap.
    pub(crate) fn block_bitmap(&self, group: u32) -> u64 {
        let copies = if has_superblock(group) {
            1 + self.descriptor_blocks()
        } else {
            0
        };
        first_block(group) + u64::from(copies)
    }

    /// The block of a group's inode bitmap.
    pub(crate) fn inode_bitmap(&self, group: u32) -> u64 {
        self.block_bitmap(group) + 1
    }

    /// The first block of a group's part of the inode table.
    pub(crate) fn inode_table(&self, group: u32) -> u64 {
        self.inode_bitmap(group) + 1
    }

    /// Blocks in a group's part of the inode table.
    pub(crate) fn inode_table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// The first block of a group that is free for data.
    pub(crate) fn first_data_block(&self, group: u32) -> u64 {
        self.inode_table(group) + u64::from(self.inode_table_blocks())
    }

    /// Blocks of a group that hold its metadata.
    pub(crate) fn overhead(&self, group: u32) -> u32 {
        (self.first_data_block(group) - first_block(group)) as u32
    }

    /// Blocks of all groups that hold metadata.
    pub(crate) fn total_overhead(&self) -> u64 {
        (0..self.groups)
            .map(|group| u64::from(self.overhead(group)))
            .sum()
    }
}

/// A group's first block.
pub(crate) fn first_block(group: u32) -> u64 {
    u64::from(group) * u64::from(BLOCKS_PER_GROUP)
}

/// Whether a group has a copy of the superblock and the descriptors; group 0's are the ones in use.
pub(crate) fn has_superblock(group: u32) -> bool {
    let is_power_of = |base: u32| {
        let mut power = u64::from(base);
        while power < u64::from(group) {
            power *= u64::from(base);
        }
        power == u64::from(group)
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_in_groups_0_1_and_powers_of_3_5_7() {
        let copies: Vec<u32> = (0..130).filter(|&group| has_superblock(group)).collect();
        assert_eq!(copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn a_last_group_of_metadata_alone_is_left_off() {
        let one_group = u64::from(BLOCKS_PER_GROUP) * BLOCK_SIZE;
        let geometry = Geometry::new(one_group + 10 * BLOCK_SIZE, 16384).unwrap();
        assert_eq!(
            (geometry.groups(), geometry.blocks()),
            (1, u64::from(BLOCKS_PER_GROUP))
        );
    }

    #[test]
    fn the_number_of_inodes_fits_32_bits_on_the_largest_disk() {
        let geometry = Geometry::new(MAX_SIZE, 1024).unwrap();
        assert_eq!(geometry.groups(), 1 << 17);
        assert_eq!(geometry.inodes(), u32::MAX / (1 << 17) / 16 * 16 * (1 << 17));
    }

    #[test]
    fn sizes_and_inodes_that_cannot_be_are_refused() {
        for (size, bytes_per_inode) in [
            (0, 16384),
            (MIN_SIZE - 1, 16384),
            (MAX_SIZE + 1, 16384),
            (MIN_SIZE, 1023),
            (MIN_SIZE, 0),
        ] {
            let error = Geometry::new(size, bytes_per_inode).unwrap_err();
            assert_eq!(error.kind(), block::ErrorKind::InvalidInput);
            assert!(error.hint().is_some());
        }
    }
}
