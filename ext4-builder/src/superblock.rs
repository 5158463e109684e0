//! The superblock ("Super Block"): 1024 bytes at byte 1024 of the disk, and copies for when it is lost.

use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::geometry::{BLOCK_SIZE, BLOCKS_PER_GROUP, Geometry};
use crate::group_descriptor::DESCRIPTOR_SIZE;
use crate::inode::{EXTRA_SIZE, FIRST_FREE_INODE, INODE_SIZE};
use crate::{Parameters, Usage};

/// Bytes in the superblock.
pub(crate) const SUPERBLOCK_SIZE: usize = 1024;

const MAGIC: u16 = 0xEF53;
const STATE_CLEAN: u16 = 1;
const ERRORS_CONTINUE: u16 = 1;
const REVISION_DYNAMIC: u32 = 1;
const NEVER: u16 = 0xFFFF;
const HASH_HALF_MD4: u8 = 1;
const FLAG_SIGNED_HASH: u32 = 1;
const DEFAULT_MOUNT_USER_XATTR_AND_ACL: u32 = 0x4 | 0x8;
const CHECKSUM_CRC32C: u8 = 1;
/// Log2 of the block size over 1024.
const LOG_BLOCK_SIZE: u32 = (BLOCK_SIZE / 1024).ilog2();

/// What a kernel that does not know it may ignore: extended attributes, indexed directories.
const FEATURES_COMPATIBLE: u32 = 0x8 | 0x20;
/// What a kernel that does not know it must not mount: file types in directories, extents, 64bit.
const FEATURES_INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80;
/// What a kernel that does not know it must not write to: `sparse_super`, `large_file`, `huge_file`, `dir_nlink`,
/// `extra_isize`, `metadata_csum`.
const FEATURES_READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// The superblock, or the copy of it, that is stored in `group`.
pub(crate) fn superblock(
    parameters: &Parameters,
    geometry: &Geometry,
    usage: &Usage,
    group: u32,
) -> [u8; SUPERBLOCK_SIZE] {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    let mut put = Fields(&mut bytes);
    let free_blocks = geometry.blocks() - usage.blocks;
    let reserved = geometry.blocks() * u64::from(parameters.reserved_percent) / 100;

    put.u32(0x00, geometry.inodes());
    put.split(0x04, 0x150, geometry.blocks());
    put.split(0x08, 0x154, reserved);
    put.split(0x0C, 0x158, free_blocks);
    put.u32(0x10, geometry.inodes() - usage.inodes);
    put.u32(0x18, LOG_BLOCK_SIZE);
    put.u32(0x1C, LOG_BLOCK_SIZE);
    put.u32(0x20, BLOCKS_PER_GROUP);
    put.u32(0x24, BLOCKS_PER_GROUP);
    put.u32(0x28, geometry.inodes_per_group());
    put.u16(0x36, NEVER);
    put.u16(0x38, MAGIC);
    // Whoever falls back to a copy cannot know how old it is, so that one is never called clean.
    put.u16(0x3A, if group == 0 { STATE_CLEAN } else { 0 });
    put.u16(0x3C, ERRORS_CONTINUE);
    put.u32(0x4C, REVISION_DYNAMIC);
    put.u32(0x54, FIRST_FREE_INODE);
    put.u16(0x58, INODE_SIZE as u16);
    // Groups that hold copies are few and low, but the field is narrow: the highest of them do not fit.
    put.u16(0x5A, group as u16);
    put.u32(0x5C, FEATURES_COMPATIBLE);
    put.u32(0x60, FEATURES_INCOMPATIBLE);
    put.u32(0x64, FEATURES_READ_ONLY_COMPATIBLE);
    put.bytes(0x68, &parameters.uuid);
    put.bytes(0x78, parameters.label.as_bytes());
    put.bytes(0xEC, &parameters.hash_seed);
    put.u8(0xFC, HASH_HALF_MD4);
    put.u16(0xFE, DESCRIPTOR_SIZE as u16);
    put.u32(0x100, DEFAULT_MOUNT_USER_XATTR_AND_ACL);
    put.u16(0x15C, EXTRA_SIZE);
    put.u16(0x15E, EXTRA_SIZE);
    put.u32(0x160, FLAG_SIGNED_HASH);
    put.u8(0x175, CHECKSUM_CRC32C);
    put.u32(0x248, geometry.total_overhead() as u32);
    put.time(0x30, 0x274, parameters.time); // last write
    put.time(0x40, 0x277, parameters.time); // last check
    put.time(0x108, 0x276, parameters.time); // creation

    let checksum = Checksum::START.with(&bytes[..0x3FC]);
    LittleEndian::write_u32(&mut bytes[0x3FC..], checksum.value());
    bytes
}

/// Little-endian fields at the offsets that the documentation gives.
struct Fields<'a>(&'a mut [u8; SUPERBLOCK_SIZE]);

impl Fields<'_> {
    fn u8(&mut self, offset: usize, value: u8) {
        self.0[offset] = value;
    }

    fn u16(&mut self, offset: usize, value: u16) {
        LittleEndian::write_u16(&mut self.0[offset..], value);
    }

    fn u32(&mut self, offset: usize, value: u32) {
        LittleEndian::write_u32(&mut self.0[offset..], value);
    }

    /// A number whose upper half has a field elsewhere.
    fn split(&mut self, low: usize, high: usize, value: u64) {
        self.u32(low, value as u32);
        self.u32(high, (value >> 32) as u32);
    }

    /// Seconds whose bits above 32 have a byte elsewhere.
    fn time(&mut self, low: usize, high: usize, seconds: u64) {
        self.u32(low, seconds as u32);
        self.u8(high, (seconds >> 32) as u8);
    }

    fn bytes(&mut self, offset: usize, value: &[u8]) {
        self.0[offset..offset + value.len()].copy_from_slice(value);
    }
}
