//! The superblock ("Super Block"): 1024 bytes at byte 1024 of the disk, and copies for when it is lost.

use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::features::Features;
use crate::geometry::{FLEX_GROUPS, Geometry};
use crate::group_descriptor::DESCRIPTOR_SIZE;
use crate::inode::{EXTRA_SIZE, FIRST_FREE_INODE, INODE_SIZE};
use crate::journal::{self, JOURNAL_INODE};
use crate::layout::Layout;
use crate::options::Options;
use crate::time::Time;

/// Where the superblock is on the disk.
pub(crate) const SUPERBLOCK_OFFSET: u64 = 1024;

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

/// What a superblock says.
#[derive(Debug)]
pub(crate) struct Superblock<'a> {
    pub(crate) options: &'a Options,
    pub(crate) geometry: Geometry,
    pub(crate) features: Features,
    pub(crate) layout: &'a Layout,
    pub(crate) free_blocks: u64,
    pub(crate) free_inodes: u32,
    /// The filesystem's seed, where there are checksums.
    pub(crate) seed: Option<Checksum>,
    /// The map and the size of the journal's inode, should that be lost.
    pub(crate) journal: Option<[u8; journal::BACKUP_SIZE]>,
    pub(crate) orphan_file_inode: Option<u32>,
}

impl Superblock<'_> {
    /// The superblock, or the copy of it, that is stored in `group`.
    pub(crate) fn to_bytes(&self, group: u32) -> [u8; SUPERBLOCK_SIZE] {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        let mut put = Fields(&mut bytes);
        let layout = self.layout;
        let groups = layout.groups.len() as u32;
        let log_block_size = (self.geometry.block_size() / 1024).ilog2();
        let reserved = layout.blocks * u64::from(self.options.reserved_percent) / 100;

        put.u32(0x00, groups * layout.inodes_per_group);
        put.split(0x04, 0x150, layout.blocks);
        put.split(0x08, 0x154, reserved);
        put.split(0x0C, 0x158, self.free_blocks);
        put.u32(0x10, self.free_inodes);
        put.u32(0x14, self.geometry.first_data_block() as u32);
        put.u32(0x18, log_block_size);
        put.u32(0x1C, log_block_size);
        put.u32(0x20, self.geometry.blocks_per_group());
        put.u32(0x24, self.geometry.blocks_per_group());
        put.u32(0x28, layout.inodes_per_group);
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
        put.u32(0x5C, self.features.compatible());
        put.u32(0x60, self.features.incompatible());
        put.u32(0x64, self.features.read_only_compatible());
        put.bytes(0x68, &self.options.uuid);
        put.bytes(0x78, self.options.label.as_bytes());
        put.u16(0xCE, layout.reserved_descriptor_blocks as u16);
        put.bytes(0xEC, &self.options.hash_seed);
        put.u8(0xFC, HASH_HALF_MD4);
        put.u16(0xFE, DESCRIPTOR_SIZE as u16);
        put.u32(0x100, DEFAULT_MOUNT_USER_XATTR_AND_ACL);
        put.u16(0x15C, EXTRA_SIZE);
        put.u16(0x15E, EXTRA_SIZE);
        put.u32(0x160, FLAG_SIGNED_HASH);
        put.u8(0x174, FLEX_GROUPS.ilog2() as u8);
        put.u32(0x248, layout.overhead(self.geometry) as u32);
        put.time(0x30, 0x274, self.options.time); // last write
        put.time(0x40, 0x277, self.options.time); // last check
        put.time(0x108, 0x276, self.options.time); // creation
        self.put_journal(&mut put);

        if let Some(seed) = self.seed {
            put.u8(0x175, CHECKSUM_CRC32C);
            put.u32(0x270, seed.value());
            let checksum = Checksum::START.with(&bytes[..0x3FC]);
            LittleEndian::write_u32(&mut bytes[0x3FC..], checksum.value());
        }
        bytes
    }

    fn put_journal(&self, put: &mut Fields<'_>) {
        if let Some(backup) = &self.journal {
            put.u32(0xE0, JOURNAL_INODE);
            put.u8(0xFD, journal::BACKUP_TYPE);
            put.bytes(0x10C, backup);
        }
        if let Some(inode) = self.orphan_file_inode {
            put.u32(0x280, inode);
        }
    }
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

    /// Seconds whose bits above 32 have a byte elsewhere; none before 1970.
    fn time(&mut self, low: usize, high: usize, time: Time) {
        let seconds = time.secs.max(0);
        self.u32(low, seconds as u32);
        self.u8(high, (seconds >> 32) as u8);
    }

    fn bytes(&mut self, offset: usize, value: &[u8]) {
        self.0[offset..offset + value.len()].copy_from_slice(value);
    }
}
