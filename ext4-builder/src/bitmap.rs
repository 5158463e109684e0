//! Block and inode bitmaps ("Block and Inode Bitmaps"): one block each per group, a set bit is in use.

use bitvec::prelude::*;

use crate::geometry::BLOCK_SIZE;

/// A group's bitmap. Bits that stand for nothing, past the end of the group, are set: they can't be allocated.
#[derive(Debug)]
pub(crate) struct Bitmap {
    bits: BitBox<u8, Lsb0>,
}

impl Bitmap {
    /// A bitmap of `len` bits, at most 8 to a byte of a block, of which the first `used` are in use.
    pub(crate) fn new(len: u32, used: u32) -> Self {
        let mut bits = bitbox![u8, Lsb0; 0; BLOCK_SIZE as usize * 8];
        bits[..used as usize].fill(true);
        bits[len as usize..].fill(true);
        Self { bits }
    }

    /// The block as it is on disk.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bits.as_raw_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_the_lowest_bit_and_pads_with_ones() {
        let bitmap = Bitmap::new(20, 11);
        assert_eq!(bitmap.as_bytes()[..4], [0xff, 0x07, 0xf0, 0xff]);
        assert_eq!(bitmap.as_bytes().len(), 4096);
        assert!(bitmap.as_bytes()[4..].iter().all(|&byte| byte == 0xff));
    }
}
