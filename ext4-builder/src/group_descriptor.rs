//! Group descriptors ("Block Group Descriptors"): where a group's metadata is, and what is free in it.

use byteorder::{ByteOrder, LittleEndian};

use crate::bitmap::Bitmap;
use crate::checksum::Checksum;
use crate::geometry::Geometry;

/// Bytes in a descriptor, with the upper halves that `64bit` adds.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;

/// No inode of the group is in use: its bitmap is not read.
const INODE_UNINIT: u16 = 0x1;
/// No block but the group's own metadata is in use: its bitmap is not read.
const BLOCK_UNINIT: u16 = 0x2;
/// The group's part of the inode table is zeroed.
const INODE_ZEROED: u16 = 0x4;

/// The state of one block group.
#[derive(Debug)]
pub(crate) struct GroupDescriptor {
    group: u32,
    /// Blocks in use, counted from the group's start; all others are free.
    used_blocks: u32,
    /// Inodes in use, counted from the group's first; all others are free.
    used_inodes: u32,
    directories: u32,
    /// Block and inode bitmap, where the group has any.
    bitmaps: Option<(Bitmap, Bitmap)>,
}

impl GroupDescriptor {
    /// A group in which the first blocks and inodes, and no others, are in use.
    pub(crate) fn new(
        geometry: &Geometry,
        group: u32,
        used_blocks: u32,
        used_inodes: u32,
        directories: u32,
    ) -> Self {
        let blocks = geometry.blocks_in(group);
        // The last group may be short, which only its bitmap's padding says: it always has one.
        let untouched = used_blocks == geometry.overhead(group) && used_inodes == 0;
        let bitmaps = (!untouched || group == geometry.groups() - 1).then(|| {
            let inodes = Bitmap::new(geometry.inodes_per_group(), used_inodes);
            (Bitmap::new(blocks, used_blocks), inodes)
        });
        Self {
            group,
            used_blocks,
            used_inodes,
            directories,
            bitmaps,
        }
    }

    /// The bitmaps to write, where the group has any: of blocks, and of inodes.
    pub(crate) fn bitmaps(&self) -> Option<(&Bitmap, &Bitmap)> {
        self.bitmaps.as_ref().map(|(blocks, inodes)| (blocks, inodes))
    }

    /// The descriptor as it is on disk.
    pub(crate) fn to_bytes(&self, geometry: &Geometry, filesystem: Checksum) -> [u8; DESCRIPTOR_SIZE] {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        let free_inodes = geometry.inodes_per_group() - self.used_inodes;
        split_u32(&mut bytes, 0x00, 0x20, geometry.block_bitmap(self.group));
        split_u32(&mut bytes, 0x04, 0x24, geometry.inode_bitmap(self.group));
        split_u32(&mut bytes, 0x08, 0x28, geometry.inode_table(self.group));
        split_u16(
            &mut bytes,
            0x0C,
            0x2C,
            geometry.blocks_in(self.group) - self.used_blocks,
        );
        split_u16(&mut bytes, 0x0E, 0x2E, free_inodes);
        split_u16(&mut bytes, 0x10, 0x30, self.directories);
        // Never used since the table was zeroed: all that are free.
        split_u16(&mut bytes, 0x1C, 0x32, free_inodes);

        let mut flags = INODE_ZEROED;
        if let Some((blocks, inodes)) = &self.bitmaps {
            let inode_bytes = geometry.inodes_per_group() as usize / 8;
            split_u16(&mut bytes, 0x18, 0x38, filesystem.with(blocks.as_bytes()).value());
            split_u16(
                &mut bytes,
                0x1A,
                0x3A,
                filesystem.with(&inodes.as_bytes()[..inode_bytes]).value(),
            );
        } else {
            flags |= INODE_UNINIT | BLOCK_UNINIT;
        }
        LittleEndian::write_u16(&mut bytes[0x12..], flags);

        // Its own field counts as zero, which it still is.
        let (checksum, _) = filesystem.with_u32(self.group).with(&bytes).halves();
        LittleEndian::write_u16(&mut bytes[0x1E..], checksum);
        bytes
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
