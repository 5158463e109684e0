//! The orphan file ("Orphan file"): slots for the numbers of inodes that are to be deleted or truncated, so that the
//! kernel needs no list through all of them. It starts with zeros in all slots; every block ends with a tail.

use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;

const MAGIC: u32 = 0x0B10_CA04;
/// Magic and checksum at the end of each block.
pub const TAIL_SIZE: usize = 8;

/// Blocks of the file that a filesystem of so many gets.
pub(crate) fn default_blocks(filesystem: u64) -> u32 {
    (filesystem / 4096).clamp(32, 512) as u32
}

/// A block of the file, at block `number` of the disk, whose slots start with these bytes. `inode` is the seed of the file's inode,
/// if the filesystem has checksums.
pub fn block(block_size: usize, number: u64, first: &[u8], inode: Option<Checksum>) -> Vec<u8> {
    let mut bytes = vec![0; block_size];
    let (slots, tail) = bytes.split_at_mut(block_size - TAIL_SIZE);
    slots[..first.len()].copy_from_slice(first);
    LittleEndian::write_u32(tail, MAGIC);
    if let Some(inode) = inode {
        let checksum = inode.with(&number.to_le_bytes()).with(slots);
        LittleEndian::write_u32(&mut tail[4..], checksum.value());
    }
    bytes
}
