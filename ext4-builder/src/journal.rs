//! The journal ("Journal (jbd2)"): inode 8, a file of which the first block says that nothing is to be replayed.
//! Alone in ext4, its numbers are big-endian. It starts without features; the kernel adds those that it wants.

use byteorder::{BigEndian, ByteOrder, LittleEndian};

use crate::inode::MAP_SIZE;

/// Number of the journal's inode.
pub(crate) const JOURNAL_INODE: u32 = 8;

/// Bytes of the superblock's copy of where the journal is.
pub(crate) const BACKUP_SIZE: usize = MAP_SIZE + 8;

/// What the superblock says of the copy: that it is of an inode's map and size.
pub(crate) const BACKUP_TYPE: u8 = 1;

const MAGIC: u32 = 0xC03B_3998;
const SUPERBLOCK_V2: u32 = 4;

/// Lengths of journals, each behind the number of blocks from which on a filesystem has it.
pub(crate) const LENGTHS: [(u64, u32); 8] = [
    (2048, 1024),
    (0x8000, 4096),
    (0x4_0000, 8192),
    (0x8_0000, 16384),
    (4 << 20, 32768),
    (8 << 20, 65536),
    (16 << 20, 131_072),
    (32 << 20, 262_144),
];

/// Blocks of the journal that a filesystem of so many gets; `None` where it is too small to have one.
pub(crate) fn default_blocks(filesystem: u64) -> Option<u32> {
    let reached = LENGTHS.iter().rev().find(|(from, _)| *from <= filesystem);
    reached.map(|(_, blocks)| *blocks)
}

/// The first block of a journal of so many blocks in the filesystem with this UUID. The others need not be written:
/// what they hold is not read, unless it carries the next transaction's number.
pub(crate) fn first_block(block_size: usize, blocks: u32, uuid: &[u8; 16]) -> Vec<u8> {
    let mut bytes = vec![0; block_size];
    for (offset, value) in [
        (0x00, MAGIC),
        (0x04, SUPERBLOCK_V2),
        (0x0C, block_size as u32),
        (0x10, blocks),
        (0x14, 1), // the first block of the log
        (0x18, 1), // the first transaction's number
        (0x40, 1), // filesystems that use it
    ] {
        BigEndian::write_u32(&mut bytes[offset..], value);
    }
    bytes[0x30..0x40].copy_from_slice(uuid);
    bytes
}

/// The superblock's copy of the journal inode's map and size, for when that is lost.
pub(crate) fn backup(map: &[u8; MAP_SIZE], size: u64) -> [u8; BACKUP_SIZE] {
    let mut bytes = [0; BACKUP_SIZE];
    bytes[..MAP_SIZE].copy_from_slice(map);
    LittleEndian::write_u32(&mut bytes[MAP_SIZE..], (size >> 32) as u32);
    LittleEndian::write_u32(&mut bytes[MAP_SIZE + 4..], size as u32);
    bytes
}
