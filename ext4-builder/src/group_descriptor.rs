//! Group descriptors ("Block Group Descriptors"): where a group's metadata is, and what is free in it.

use byteorder::{ByteOrder, LittleEndian};

use crate::bitmap::Bitmap;
use crate::checksum::{Checksum, crc16};
use crate::layout::GroupPlace;

/// Bytes in a descriptor, with the upper halves that `64bit` adds.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;

/// No inode of the group is in use: its bitmap is not read.
const INODE_UNINIT: u16 = 0x1;
/// No block but the group's own metadata is in use: its bitmap is not read.
const BLOCK_UNINIT: u16 = 0x2;
/// The group's part of the inode table is zeroed.
const INODE_ZEROED: u16 = 0x4;

/// What the checksums of a filesystem's descriptors start from.
#[derive(Clone, Copy, Debug)]
pub enum Seal {
    /// `metadata_csum`: the filesystem's seed.
    Crc32c(Checksum),
    /// `uninit_bg`: its UUID.
    Crc16([u8; 16]),
}

impl Seal {
    /// What all other checksums start from, where there are any.
    pub fn seed(self) -> Option<Checksum> {
        match self {
            Self::Crc32c(seed) => Some(seed),
            Self::Crc16(_) => None,
        }
    }
}

/// The state of one block group.
#[derive(Debug)]
pub(crate) struct GroupDescriptor {
    pub(crate) group: u32,
    pub(crate) place: GroupPlace,
    pub(crate) free_blocks: u32,
    pub(crate) inodes_per_group: u32,
    /// Inodes in use, counted from the group's first; all others are free.
    pub(crate) used_inodes: u32,
    pub(crate) directories: u32,
    /// Block bitmap, unless no block is in use but the copy of superblock and descriptors.
    pub(crate) blocks: Option<Bitmap>,
    /// Inode bitmap, unless no inode is in use.
    pub(crate) inodes: Option<Bitmap>,
}

impl GroupDescriptor {
    /// The descriptor as it is on disk.
    pub(crate) fn to_bytes(&self, seal: Seal) -> [u8; DESCRIPTOR_SIZE] {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        let free_inodes = self.inodes_per_group - self.used_inodes;
        split_u32(&mut bytes, 0x00, 0x20, self.place.block_bitmap);
        split_u32(&mut bytes, 0x04, 0x24, self.place.inode_bitmap);
        split_u32(&mut bytes, 0x08, 0x28, self.place.inode_table);
        split_u16(&mut bytes, 0x0C, 0x2C, self.free_blocks);
        split_u16(&mut bytes, 0x0E, 0x2E, free_inodes);
        split_u16(&mut bytes, 0x10, 0x30, self.directories);
        // Never used since the table was zeroed: all that are free.
        split_u16(&mut bytes, 0x1C, 0x32, free_inodes);

        let mut flags = INODE_ZEROED;
        let inode_bytes = self.inodes_per_group as usize / 8;
        match &self.blocks {
            Some(blocks) => put_bitmap(&mut bytes, 0x18, 0x38, seal, blocks.as_bytes()),
            None => flags |= BLOCK_UNINIT,
        }
        match &self.inodes {
            Some(inodes) => put_bitmap(&mut bytes, 0x1A, 0x3A, seal, &inodes.as_bytes()[..inode_bytes]),
            None => flags |= INODE_UNINIT,
        }
        LittleEndian::write_u16(&mut bytes[0x12..], flags);

        self::seal(&mut bytes, self.group, seal);
        bytes
    }
}

/// Puts the checksum of a group's descriptor, of any size, into it.
pub fn seal(descriptor: &mut [u8], group: u32, seal: Seal) {
    const FIELD: std::ops::Range<usize> = 0x1E..0x20;
    descriptor[FIELD].fill(0);
    // Its own field counts as zero in one, and not at all in the other.
    let checksum = match seal {
        Seal::Crc32c(seed) => seed.with_u32(group).with(descriptor).halves().0,
        Seal::Crc16(uuid) => {
            let mut checksum = crc16(!0, &uuid);
            checksum = crc16(checksum, &group.to_le_bytes());
            checksum = crc16(checksum, &descriptor[..FIELD.start]);
            crc16(checksum, &descriptor[FIELD.end..])
        }
    };
    LittleEndian::write_u16(&mut descriptor[FIELD], checksum);
}

fn put_bitmap(bytes: &mut [u8], low: usize, high: usize, seal: Seal, bitmap: &[u8]) {
    if let Some(seed) = seal.seed() {
        split_u16(bytes, low, high, seed.with(bitmap).value());
    }
}

fn split_u16(bytes: &mut [u8], low: usize, high: usize, value: u32) {
    LittleEndian::write_u16(&mut bytes[low..], value as u16);
    LittleEndian::write_u16(&mut bytes[high..], (value >> 16) as u16);
}

fn split_u32(bytes: &mut [u8], low: usize, high: usize, value: u64) {
    LittleEndian::write_u32(&mut bytes[low..], value as u32);
    LittleEndian::write_u32(&mut bytes[high..], (value >> 32) as u32);
}
