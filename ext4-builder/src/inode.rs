//! Inodes ("Inode Table"): 256 bytes each, with times to the nanosecond and the first extents inside.

use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::geometry::BLOCK_SIZE;

/// Bytes in an inode.
pub(crate) const INODE_SIZE: usize = 256;

/// Bytes that fields take beyond the first 128: up to the upper half of the version and the project.
pub(crate) const EXTRA_SIZE: u16 = 32;

/// Number of the root directory's inode.
pub(crate) const ROOT_INODE: u32 = 2;

/// The first number that is not reserved; by custom that of `lost+found`.
pub(crate) const FIRST_FREE_INODE: u32 = 11;

const MODE_DIRECTORY: u16 = 0o040_000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xF30A;
/// Extents that fit in the inode.
const INLINE_EXTENTS: u16 = 4;

/// A directory whose blocks lie side by side.
#[derive(Debug)]
pub(crate) struct DirectoryInode {
    pub(crate) permissions: u16,
    pub(crate) links: u16,
    pub(crate) first_block: u64,
    pub(crate) blocks: u16,
    /// Seconds since 1970, at most [`MAX_TIME`](crate::MAX_TIME).
    pub(crate) time: u64,
}

impl DirectoryInode {
    /// Inode `number` as it is on disk.
    pub(crate) fn to_bytes(&self, number: u32, filesystem: Checksum) -> [u8; INODE_SIZE] {
        let mut bytes = empty();
        let len = u64::from(self.blocks) * BLOCK_SIZE;
        LittleEndian::write_u16(&mut bytes[0x00..], MODE_DIRECTORY | self.permissions);
        LittleEndian::write_u32(&mut bytes[0x04..], len as u32);
        LittleEndian::write_u16(&mut bytes[0x1A..], self.links);
        LittleEndian::write_u32(&mut bytes[0x1C..], (len / 512) as u32);
        LittleEndian::write_u32(&mut bytes[0x20..], FLAG_EXTENTS);
        self.put_extent(&mut bytes[0x28..]);
        // Access, change, modification, creation: seconds, and the field with the bits above 32.
        for (seconds, extra) in [(0x08, 0x8C), (0x0C, 0x84), (0x10, 0x88), (0x90, 0x94)] {
            LittleEndian::write_u32(&mut bytes[seconds..], self.time as u32);
            LittleEndian::write_u32(&mut bytes[extra..], epoch(self.time));
        }
        seal(&mut bytes, number, filesystem);
        bytes
    }

    /// The root of the extent tree ("Extent Tree"): a header and one extent.
    fn put_extent(&self, bytes: &mut [u8]) {
        LittleEndian::write_u16(&mut bytes[0..], EXTENT_MAGIC);
        LittleEndian::write_u16(&mut bytes[2..], 1);
        LittleEndian::write_u16(&mut bytes[4..], INLINE_EXTENTS);
        LittleEndian::write_u16(&mut bytes[16..], self.blocks);
        LittleEndian::write_u16(&mut bytes[18..], (self.first_block >> 32) as u16);
        LittleEndian::write_u32(&mut bytes[20..], self.first_block as u32);
    }
}

/// Reserved inode `number`, which nothing uses: zeros, under a checksum.
pub(crate) fn reserved(number: u32, filesystem: Checksum) -> [u8; INODE_SIZE] {
    let mut bytes = empty();
    seal(&mut bytes, number, filesystem);
    bytes
}

fn empty() -> [u8; INODE_SIZE] {
    let mut bytes = [0; INODE_SIZE];
    LittleEndian::write_u16(&mut bytes[0x80..], EXTRA_SIZE);
    bytes
}

/// Writes the checksum; its own fields count as zeros, which they still are. Generations are all 0.
fn seal(bytes: &mut [u8; INODE_SIZE], number: u32, filesystem: Checksum) {
    let (low, high) = filesystem.of_inode(number, 0).with(bytes).halves();
    LittleEndian::write_u16(&mut bytes[0x7C..], low);
    LittleEndian::write_u16(&mut bytes[0x82..], high);
}

/// How many times 2^32 seconds are to be added to the field's 32 bits, which count as signed.
fn epoch(seconds: u64) -> u32 {
    ((seconds + (1 << 31)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_past_2038_carry_into_the_epoch() {
        assert_eq!(epoch(0x7FFF_FFFF), 0);
        assert_eq!(epoch(0x8000_0000), 1);
        assert_eq!(epoch(0x1_0000_0000), 1);
        assert_eq!(epoch(crate::MAX_TIME), 3);
    }
}
