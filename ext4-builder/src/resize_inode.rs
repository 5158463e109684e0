//! The blocks that descriptors of a larger filesystem will need ("Special inodes", inode 7): they follow the
//! descriptors in every group that has a copy of them, and belong to an inode, so that nobody else takes them.
//!
//! It is mapped in the old way ("Direct/Indirect Block Addressing"), by one double-indirect block alone. That leads
//! to the blocks in the first group, each at the place that it would have among all descriptor blocks. And each of
//! them is in turn an indirect block that leads to its copies in the other groups.

use byteorder::{ByteOrder, LittleEndian};

use crate::inode::{FileType, Inode};

/// Number of the inode.
pub(crate) const RESIZE_INODE: u32 = 7;

/// The word of an inode's map that leads to the double-indirect block.
const DOUBLE_INDIRECT: usize = 13;
/// Blocks that an inode's map leads to directly.
const DIRECT_BLOCKS: u64 = 12;

/// What is reserved.
#[derive(Clone, Copy, Debug)]
pub struct Reserved<'a> {
    /// Bytes in a block.
    pub block_size: usize,
    /// Blocks of descriptors in use, in each copy.
    pub descriptors: u32,
    /// Blocks behind them, in each copy; with the descriptors at most a quarter of `block_size`.
    pub blocks: u32,
    /// The first blocks of groups that have a copy, in order, from the first group's on. A superblock is there,
    /// then the descriptors. All numbers fit 32 bits.
    pub groups: &'a [u64],
}

impl Reserved<'_> {
    /// The inode, with its double-indirect block at block `double_indirect`, and without times.
    pub(crate) fn inode(&self, double_indirect: u64) -> Inode {
        let block_size = self.block_size as u64;
        let addresses = block_size / 4;
        let taken = 1 + u64::from(self.blocks) * self.groups.len() as u64;
        let mut inode = Inode {
            mode: FileType::Regular.mode() | 0o600,
            links: 1,
            // All that direct, indirect and double-indirect blocks can lead to.
            size: (DIRECT_BLOCKS + addresses + addresses * addresses) * block_size,
            sectors: taken * (block_size / 512),
            ..Inode::default()
        };
        put(&mut inode.map, DOUBLE_INDIRECT, double_indirect);
        inode
    }

    /// The double-indirect block.
    pub fn double_indirect(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.block_size];
        for (index, block) in self.indirect_blocks() {
            put(&mut bytes, index, block);
        }
        bytes
    }

    /// The reserved blocks of the first group, as (number, bytes). Their copies are zeros.
    pub fn indirect(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        self.indirect_blocks().map(|(_, block)| {
            let mut bytes = vec![0; self.block_size];
            for (index, &group) in self.groups[1..].iter().enumerate() {
                put(&mut bytes, index, group + (block - self.groups[0]));
            }
            (block, bytes)
        })
    }

    /// The reserved blocks of the first group, each with its place among all descriptor blocks.
    fn indirect_blocks(&self) -> impl Iterator<Item = (usize, u64)> {
        let first = self.groups[0] + 1;
        // The last place of a block of addresses is followed by its first.
        let addresses = self.block_size / 4;
        (self.descriptors..self.descriptors + self.blocks)
            .map(move |index| (index as usize % addresses, first + u64::from(index)))
    }
}

/// Block `number` as an address at place `index`.
fn put(bytes: &mut [u8], index: usize, number: u64) {
    LittleEndian::write_u32(&mut bytes[index * 4..], number as u32);
}
