//! Group descriptors ("Block Group Descriptors"): where a group's bitmaps are, and what is free in it.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{Checksum, seal};

use crate::Editor;

/// No inode of the group is in use: its bitmap is not read.
pub(crate) const INODE_UNINIT: u16 = 0x1;
/// No block but the group's own metadata is in use: its bitmap is not read.
pub(crate) const BLOCK_UNINIT: u16 = 0x2;

/// A group's descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) number: u32,
    bytes: Vec<u8>,
    /// Whether its flags say anything.
    has_flags: bool,
}

impl Group {
    pub(crate) fn new(number: u32, bytes: Vec<u8>, has_flags: bool) -> Self {
        Self {
            number,
            bytes,
            has_flags,
        }
    }

    fn is_wide(&self) -> bool {
        self.bytes.len() >= 64
    }

    fn u32(&self, low: usize, high: usize) -> u64 {
        let high = if self.is_wide() {
            LittleEndian::read_u32(&self.bytes[high..])
        } else {
            0
        };
        u64::from(high) << 32 | u64::from(LittleEndian::read_u32(&self.bytes[low..]))
    }

    fn set_u32(&mut self, low: usize, high: usize, value: u64) {
        LittleEndian::write_u32(&mut self.bytes[low..], value as u32);
        if self.is_wide() {
            LittleEndian::write_u32(&mut self.bytes[high..], (value >> 32) as u32);
        }
    }

    /// Says where block bitmap, inode bitmap and inode table are.
    pub(crate) fn set_places(&mut self, places: [u64; 3]) {
        for (place, [low, high]) in places.into_iter().zip([[0x00, 0x20], [0x04, 0x24], [0x08, 0x28]]) {
            self.set_u32(low, high, place);
        }
    }

    fn u16(&self, low: usize, high: usize) -> u32 {
        let high = if self.is_wide() {
            LittleEndian::read_u16(&self.bytes[high..])
        } else {
            0
        };
        u32::from(high) << 16 | u32::from(LittleEndian::read_u16(&self.bytes[low..]))
    }

    fn set_u16(&mut self, low: usize, high: usize, value: u32) {
        LittleEndian::write_u16(&mut self.bytes[low..], value as u16);
        if self.is_wide() {
            LittleEndian::write_u16(&mut self.bytes[high..], (value >> 16) as u16);
        }
    }

    pub(crate) fn block_bitmap(&self) -> u64 {
        self.u32(0x00, 0x20)
    }

    pub(crate) fn inode_bitmap(&self) -> u64 {
        self.u32(0x04, 0x24)
    }

    pub(crate) fn inode_table(&self) -> u64 {
        self.u32(0x08, 0x28)
    }

    pub(crate) fn free_blocks(&self) -> u32 {
        self.u16(0x0C, 0x2C)
    }

    pub(crate) fn set_free_blocks(&mut self, blocks: u32) {
        self.set_u16(0x0C, 0x2C, blocks);
    }

    pub(crate) fn free_inodes(&self) -> u32 {
        self.u16(0x0E, 0x2E)
    }

    pub(crate) fn set_free_inodes(&mut self, inodes: u32) {
        self.set_u16(0x0E, 0x2E, inodes);
    }

    pub(crate) fn directories(&self) -> u32 {
        self.u16(0x10, 0x30)
    }

    pub(crate) fn set_directories(&mut self, directories: u32) {
        self.set_u16(0x10, 0x30, directories);
    }

    /// Inodes at the end that were never in use.
    pub(crate) fn unused_inodes(&self) -> u32 {
        if self.has_flags { self.u16(0x1C, 0x32) } else { 0 }
    }

    pub(crate) fn set_unused_inodes(&mut self, inodes: u32) {
        if self.has_flags {
            self.set_u16(0x1C, 0x32, inodes);
        }
    }

    fn flags(&self) -> u16 {
        if self.has_flags {
            LittleEndian::read_u16(&self.bytes[0x12..])
        } else {
            0
        }
    }

    pub(crate) fn set_flags(&mut self, flags: u16) {
        LittleEndian::write_u16(&mut self.bytes[0x12..], flags);
    }

    pub(crate) fn blocks_uninit(&self) -> bool {
        self.flags() & BLOCK_UNINIT != 0
    }

    pub(crate) fn inodes_uninit(&self) -> bool {
        self.flags() & INODE_UNINIT != 0
    }

    pub(crate) fn init_blocks(&mut self) {
        if self.has_flags {
            self.set_flags(self.flags() & !BLOCK_UNINIT);
        }
    }

    pub(crate) fn init_inodes(&mut self) {
        if self.has_flags {
            self.set_flags(self.flags() & !INODE_UNINIT);
        }
    }

    /// The checksum of the block bitmap.
    pub(crate) fn set_block_bitmap_sum(&mut self, sum: Checksum) {
        self.set_u16(0x18, 0x38, sum.value());
    }

    /// The checksum of the inode bitmap.
    pub(crate) fn set_inode_bitmap_sum(&mut self, sum: Checksum) {
        self.set_u16(0x1A, 0x3A, sum.value());
    }

    pub(crate) fn is_block_bitmap_sum(&self, sum: Checksum) -> bool {
        self.is_sum(self.u16(0x18, 0x38), sum)
    }

    pub(crate) fn is_inode_bitmap_sum(&self, sum: Checksum) -> bool {
        self.is_sum(self.u16(0x1A, 0x3A), sum)
    }

    fn is_sum(&self, stored: u32, sum: Checksum) -> bool {
        let mask = if self.is_wide() { !0 } else { 0xFFFF };
        stored == sum.value() & mask
    }
}

impl Editor {
    /// A group's descriptor.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn group(&self, number: u32) -> Result<Group> {
        let size = usize::from(self.layout().descriptor_size());
        let (block, at) = self.filesystem.descriptor_place(number);
        let bytes = self.staging.block(block)?[at..at + size].to_vec();
        self.filesystem.check_descriptor(number, &bytes)?;
        let group = Group::new(number, bytes, self.superblock.has_group_checksums());
        let range = self.layout().first_data_block() + 1..self.layout().blocks();
        for (what, block) in [
            ("block bitmap", group.block_bitmap()),
            ("inode bitmap", group.inode_bitmap()),
            ("inode table", group.inode_table()),
        ] {
            if !range.contains(&block) {
                let problem =
                    format!("the {what} of block group {number} is at block {block}, outside of it");
                return Err(crate::damaged(problem));
            }
        }
        Ok(group)
    }

    /// Changes a group's descriptor.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn put_group(&mut self, group: &Group) -> Result<()> {
        let mut bytes = group.bytes.clone();
        if let Some(with) = self.descriptor_seal {
            seal(&mut bytes, group.number, with);
        }
        let (block, at) = self.filesystem.descriptor_place(group.number);
        self.change(block, |all| all[at..at + bytes.len()].copy_from_slice(&bytes))
    }
}
