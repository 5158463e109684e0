//! The superblock ("Super Block") as it is, with the fields that a change of the filesystem touches.
//!
//! It has two sectors, and its checksum is at the end of the second. A power cut between the two would leave a superblock that
//! nobody takes for one, a kernel before it looks at the journal. So the second sector is left as it is, checksum and all, and
//! one field of the first that means nothing is chosen so that the checksum is right.

use block::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{Checksum, HashVersion, NameHash};

/// Where it starts on the disk, and its length.
pub(crate) const OFFSET: u64 = 1024;
pub(crate) const SIZE: usize = 1024;

pub(crate) const COMPATIBLE: usize = 0x5C;
pub(crate) const INCOMPATIBLE: usize = 0x60;
pub(crate) const READ_ONLY_COMPATIBLE: usize = 0x64;

pub(crate) const RECOVER: u32 = 0x4;
const CHECKSUM: usize = SIZE - 4;
/// Bytes that a disk writes whole or not at all.
pub(crate) const SECTOR: usize = 512;
/// The number of a snapshot, in a form of snapshots that was never used (`s_snapshot_id`).
const FREE_FIELD: usize = 0x184;
const METADATA_CHECKSUMS: u32 = 0x400;
const LARGE_FILES: u32 = 0x2;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const FLAG_UNSIGNED_HASH: u32 = 2;
/// The lengths of extra fields that inodes are made with where the superblock does not say.
const EXTRA_SIZE: u16 = 32;

/// Its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    bytes: [u8; SIZE],
}

impl Superblock {
    pub(crate) fn new(bytes: &[u8; SIZE]) -> Self {
        Self { bytes: *bytes }
    }

    /// The bytes, under a checksum where the filesystem has those.
    pub(crate) fn sealed(&self) -> [u8; SIZE] {
        let mut bytes = self.bytes;
        if self.has(READ_ONLY_COMPATIBLE, METADATA_CHECKSUMS) {
            let sum = checksum(&bytes);
            LittleEndian::write_u32(&mut bytes[CHECKSUM..], sum);
        }
        bytes
    }

    /// The first sector, sealed so that it goes with the second as it is on the disk; and the second, where that is to change
    /// and the first is there.
    pub(crate) fn sectors(&self, disk: &[u8; SIZE]) -> ([u8; SECTOR], Option<[u8; SECTOR]>) {
        let (mut first, mut second) = ([0; SECTOR], [0; SECTOR]);
        let mut bytes = *disk;
        bytes[..SECTOR].copy_from_slice(&self.bytes[..SECTOR]);
        let has_checksum = self.has(READ_ONLY_COMPATIBLE, METADATA_CHECKSUMS);
        if has_checksum {
            balance(&mut bytes, LittleEndian::read_u32(&disk[CHECKSUM..]));
        }
        first.copy_from_slice(&bytes[..SECTOR]);
        if self.bytes[SECTOR..CHECKSUM] == disk[SECTOR..CHECKSUM] {
            return (first, None);
        }
        bytes[SECTOR..CHECKSUM].copy_from_slice(&self.bytes[SECTOR..CHECKSUM]);
        if has_checksum {
            let sum = checksum(&bytes);
            LittleEndian::write_u32(&mut bytes[CHECKSUM..], sum);
        }
        second.copy_from_slice(&bytes[SECTOR..]);
        (first, Some(second))
    }

    pub(crate) fn u16(&self, offset: usize) -> u16 {
        LittleEndian::read_u16(&self.bytes[offset..])
    }

    pub(crate) fn u32(&self, offset: usize) -> u32 {
        LittleEndian::read_u32(&self.bytes[offset..])
    }

    pub(crate) fn set_u16(&mut self, offset: usize, value: u16) {
        LittleEndian::write_u16(&mut self.bytes[offset..], value);
    }

    pub(crate) fn set_u32(&mut self, offset: usize, value: u32) {
        LittleEndian::write_u32(&mut self.bytes[offset..], value);
    }

    /// The features of a set: none in the first revision.
    pub(crate) fn features(&self, set: usize) -> u32 {
        if self.u32(0x4C) == 0 { 0 } else { self.u32(set) }
    }

    pub(crate) fn has(&self, set: usize, feature: u32) -> bool {
        self.features(set) & feature != 0
    }

    pub(crate) fn is_64bit(&self) -> bool {
        self.has(INCOMPATIBLE, 0x80)
    }

    /// Whether values of extended attributes may have inodes of their own (`ea_inode`).
    pub(crate) fn has_large_values(&self) -> bool {
        self.has(INCOMPATIBLE, 0x400)
    }

    pub(crate) fn has_extents(&self) -> bool {
        self.has(INCOMPATIBLE, 0x40)
    }

    pub(crate) fn has_file_types(&self) -> bool {
        self.has(INCOMPATIBLE, 0x2)
    }

    pub(crate) fn has_large_directories(&self) -> bool {
        self.has(INCOMPATIBLE, 0x4000)
    }

    pub(crate) fn has_indexes(&self) -> bool {
        self.has(COMPATIBLE, 0x20)
    }

    pub(crate) fn has_huge_files(&self) -> bool {
        self.has(READ_ONLY_COMPATIBLE, 0x8)
    }

    /// Says that there are files of 2 GiB and more.
    pub(crate) fn set_has_large_files(&mut self) {
        self.set_u32(READ_ONLY_COMPATIBLE, self.u32(READ_ONLY_COMPATIBLE) | LARGE_FILES);
    }

    pub(crate) fn has_large_files(&self) -> bool {
        self.has(READ_ONLY_COMPATIBLE, LARGE_FILES)
    }

    pub(crate) fn has_many_links(&self) -> bool {
        self.has(READ_ONLY_COMPATIBLE, 0x20)
    }

    /// Whether groups have checksums, and so say what of them is not initialised.
    pub(crate) fn has_group_checksums(&self) -> bool {
        self.has(READ_ONLY_COMPATIBLE, 0x10 | 0x400)
    }

    pub(crate) fn needs_recovery(&self) -> bool {
        self.has(INCOMPATIBLE, RECOVER)
    }

    pub(crate) fn set_needs_recovery(&mut self, needed: bool) {
        let others = self.u32(INCOMPATIBLE) & !RECOVER;
        self.set_u32(INCOMPATIBLE, others | if needed { RECOVER } else { 0 });
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.u16(0x3A) & STATE_CLEAN != 0
    }

    pub(crate) fn set_clean(&mut self, clean: bool) {
        let others = self.u16(0x3A) & !STATE_CLEAN;
        self.set_u16(0x3A, others | if clean { STATE_CLEAN } else { 0 });
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.u16(0x3A) & STATE_ERRORS != 0
    }

    /// The first of a list of inodes that are to be deleted.
    pub(crate) fn last_orphan(&self) -> u32 {
        self.u32(0xE8)
    }

    pub(crate) fn set_last_orphan(&mut self, inode: u32) {
        self.set_u32(0xE8, inode);
    }

    pub(crate) fn free_blocks(&self) -> u64 {
        self.wide(0x0C, 0x158)
    }

    pub(crate) fn set_free_blocks(&mut self, blocks: u64) {
        self.set_wide(0x0C, 0x158, blocks);
    }

    pub(crate) fn free_inodes(&self) -> u32 {
        self.u32(0x10)
    }

    pub(crate) fn set_free_inodes(&mut self, inodes: u32) {
        self.set_u32(0x10, inodes);
    }

    /// Blocks that are kept behind each copy of the descriptors, for more of them.
    pub(crate) fn reserved_descriptor_blocks(&self) -> u16 {
        if self.has(COMPATIBLE, 0x10) {
            self.u16(0xCE)
        } else {
            0
        }
    }

    /// How many of `all` blocks of descriptors are behind the superblock, and not in groups of their own (`meta_bg`).
    pub(crate) fn plain_descriptor_blocks(&self, all: u32) -> u32 {
        if self.has(INCOMPATIBLE, 0x10) {
            self.u32(0x104).min(all)
        } else {
            all
        }
    }

    /// Says that blocks of descriptors from the `first` on are in groups of their own, and that none are kept behind the others.
    pub(crate) fn set_meta_groups(&mut self, first: u32) {
        self.set_u32(COMPATIBLE, self.u32(COMPATIBLE) & !0x10);
        self.set_u16(0xCE, 0);
        self.set_u32(INCOMPATIBLE, self.u32(INCOMPATIBLE) | 0x10);
        self.set_u32(0x104, first);
    }

    /// Says that it was written to at a time, unless it was later.
    pub(crate) fn set_written(&mut self, seconds: i64) {
        // The upper bits are in the second sector, which stays as it is: 2106 is far.
        let upper = i64::from(self.bytes[0x274]);
        if seconds >> 32 == upper && seconds as u32 > self.u32(0x30) {
            self.set_u32(0x30, seconds as u32);
        }
    }

    /// Bytes of extra fields in new inodes.
    pub(crate) fn extra_size(&self, inode_size: u16) -> u16 {
        let wanted = self.u16(0x15E).max(self.u16(0x15C));
        let wanted = if wanted == 0 || !wanted.is_multiple_of(4) {
            EXTRA_SIZE
        } else {
            wanted
        };
        wanted.min(inode_size - 128)
    }

    /// The hash of names in new indexes. `None` for one that is not known.
    pub(crate) fn hash(&self, version: u8) -> Option<NameHash> {
        let mut seed = [0; 16];
        seed.copy_from_slice(&self.bytes[0xEC..0xFC]);
        Some(NameHash {
            version: match version {
                0 => HashVersion::Legacy,
                1 => HashVersion::HalfMd4,
                2 => HashVersion::Tea,
                _ => return None,
            },
            signed: self.u32(0x160) & FLAG_UNSIGNED_HASH == 0,
            seed,
        })
    }

    /// The hash of names in new indexes.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(crate) fn default_hash(&self) -> Result<NameHash> {
        let version = self.bytes[0xFC];
        self.hash(version)
            .ok_or_else(|| Error::unsupported(format!("names are hashed in the unknown way {version}")))
    }

    pub(crate) fn wide(&self, low: usize, high: usize) -> u64 {
        let high = if self.is_64bit() { self.u32(high) } else { 0 };
        u64::from(high) << 32 | u64::from(self.u32(low))
    }

    pub(crate) fn set_wide(&mut self, low: usize, high: usize, value: u64) {
        self.set_u32(low, value as u32);
        if self.is_64bit() {
            self.set_u32(high, (value >> 32) as u32);
        }
    }
}

fn checksum(bytes: &[u8; SIZE]) -> u32 {
    Checksum::START.with(&bytes[..CHECKSUM]).value()
}

/// Sets the free field so that the checksum is `wanted`.
///
/// A bit of the field changes the same bits of the checksum whatever else there is. So it is a matter of choosing, from what
/// each of the 32 bits does, those that together make the difference.
fn balance(bytes: &mut [u8; SIZE], wanted: u32) {
    let mut with = |field: u32| {
        LittleEndian::write_u32(&mut bytes[FREE_FIELD..], field);
        checksum(bytes)
    };
    let plain = with(0);
    // By their highest bit, changes of the checksum, each with the bits of the field that make it. 32 bits in a row make 32
    // that are independent, so that there is one for each.
    let mut changes = [(0_u32, 0_u32); 32];
    let reduced = |mut change: u32, mut field: u32, changes: &[(u32, u32); 32]| {
        while let Some(bit) = change.checked_ilog2() {
            let (other, bits) = changes[bit as usize];
            if other == 0 {
                break;
            }
            change ^= other;
            field ^= bits;
        }
        (change, field)
    };
    for bit in 0..32 {
        let (change, field) = reduced(with(1 << bit) ^ plain, 1 << bit, &changes);
        if let Some(highest) = change.checked_ilog2() {
            changes[highest as usize] = (change, field);
        }
    }
    let (_, field) = reduced(plain ^ wanted, 0, &changes);
    let sum = with(field);
    debug_assert_eq!(sum, wanted);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_each_sector_goes_with_the_other() {
        let mut bytes = [0x5A; SIZE];
        LittleEndian::write_u32(&mut bytes[READ_ONLY_COMPATIBLE..], METADATA_CHECKSUMS);
        let mut superblock = Superblock::new(&bytes);
        let disk = superblock.sealed();
        for free in 0..1000 {
            superblock.set_free_blocks(free * 7919);
            let (first, second) = superblock.sectors(&disk);
            assert_eq!(second, None);
            let mut now = disk;
            now[..SECTOR].copy_from_slice(&first);
            assert_eq!(checksum(&now).to_le_bytes(), now[CHECKSUM..]);
            assert_eq!(Superblock::new(&now).free_blocks(), free * 7919);
        }
        superblock.set_u32(0x270, 1);
        let (first, second) = superblock.sectors(&disk);
        let mut now = disk;
        now[..SECTOR].copy_from_slice(&first);
        assert_eq!(checksum(&now).to_le_bytes(), now[CHECKSUM..]);
        now[SECTOR..].copy_from_slice(&second.unwrap());
        assert_eq!(checksum(&now).to_le_bytes(), now[CHECKSUM..]);
        assert_eq!(Superblock::new(&now).u32(0x270), 1);
    }
}
