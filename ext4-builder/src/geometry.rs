//! Where groups are ("Layout" and "Block Groups"): the disk in groups of as many blocks as a block has bits.
//!
//! The first blocks of group 0, 1 and the powers of 3, 5 and 7 (`sparse_super`) are taken by a copy of the superblock and
//! of the group descriptors. These are the only places that the format fixes; `flex_bg` lets everything else lie
//! anywhere.

use crate::group_descriptor::DESCRIPTOR_SIZE;
use crate::inode::INODE_SIZE;

/// Groups whose bitmaps and inode tables lie together (`flex_bg`), as mke2fs has it.
pub(crate) const FLEX_GROUPS: u32 = 16;

/// The format's arithmetic for one block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    block_size: u32,
}

impl Geometry {
    pub(crate) fn new(block_size: u32) -> Self {
        Self { block_size }
    }

    pub(crate) fn block_size(self) -> u64 {
        u64::from(self.block_size)
    }

    /// Whole blocks that `bytes` reach into.
    pub(crate) fn blocks_of(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block_size())
    }

    /// As many as a block of bitmap has bits.
    pub(crate) fn blocks_per_group(self) -> u32 {
        self.block_size * 8
    }

    /// As many as the inode bitmap has bits.
    pub(crate) fn max_inodes_per_group(self) -> u32 {
        self.block_size * 8
    }

    /// Where group 0 starts: the block that has byte 1024 in it.
    pub(crate) fn first_data_block(self) -> u64 {
        u64::from(self.block_size == 1024)
    }

    /// A group's first block.
    pub(crate) fn first_block(self, group: u32) -> u64 {
        self.first_data_block() + u64::from(group) * u64::from(self.blocks_per_group())
    }

    /// Groups of a filesystem of `blocks`.
    pub(crate) fn groups(self, blocks: u64) -> u32 {
        let groups = (blocks - self.first_data_block()).div_ceil(u64::from(self.blocks_per_group()));
        u32::try_from(groups).unwrap_or(u32::MAX)
    }

    /// Descriptors in a block.
    pub(crate) fn descriptors_per_block(self) -> u32 {
        self.block_size / DESCRIPTOR_SIZE as u32
    }

    /// Blocks of the table of all descriptors.
    pub(crate) fn descriptor_blocks(self, groups: u32) -> u32 {
        groups.div_ceil(self.descriptors_per_block())
    }

    /// Inodes in a block of the inode table.
    pub(crate) fn inodes_per_block(self) -> u32 {
        self.block_size / INODE_SIZE as u32
    }

    /// What the number of inodes in a group is a multiple of: whole blocks of the table, whole bytes of the bitmap.
    pub(crate) fn inodes_granule(self) -> u32 {
        self.inodes_per_block().max(8)
    }
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

/// The first group after `group` that has a copy.
pub(crate) fn next_with_superblock(group: u32) -> u32 {
    // The powers of 3 alone leave none out for longer than this.
    (group + 1..=group.saturating_mul(3).max(1))
        .find(|&group| has_superblock(group))
        .unwrap_or(u32::MAX)
}

/// The groups below `groups` that have a copy.
pub(crate) fn groups_with_superblock(groups: u32) -> impl Iterator<Item = u32> {
    (0..groups).filter(|&group| has_superblock(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_in_groups_0_1_and_powers_of_3_5_7() {
        let copies: Vec<u32> = groups_with_superblock(130).collect();
        assert_eq!(copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn group_0_of_small_blocks_starts_behind_the_boot_block() {
        let small = Geometry::new(1024);
        assert_eq!((small.first_block(0), small.first_block(2)), (1, 16385));
        assert_eq!((small.groups(8193), small.groups(8194)), (1, 2));
        let large = Geometry::new(4096);
        assert_eq!((large.first_block(0), large.first_block(2)), (0, 65536));
        assert_eq!((large.groups(32768), large.groups(32769)), (1, 2));
    }
}
