//! Block and inode bitmaps ("Block and Inode Bitmaps"): one block each per group, a set bit is in use.

use bitvec::prelude::*;

/// A group's bitmap. Bits that stand for nothing, past the end of the group, are set: they can't be allocated.
#[derive(Debug)]
pub(crate) struct Bitmap {
    bits: BitBox<u8, Lsb0>,
}

impl Bitmap {
    /// A bitmap in a block of `block_size` bytes, for the first `len` of its bits. None of them is in use.
    pub(crate) fn new(block_size: u64, len: u32) -> Self {
        let mut bits = bitbox![u8, Lsb0; 0; block_size as usize * 8];
        bits[len as usize..].fill(true);
        Self { bits }
    }

    /// Says that the bits from `start` to before `end` are in use.
    pub(crate) fn set(&mut self, start: u32, end: u32) {
        self.bits[start as usize..end as usize].fill(true);
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
        let mut bitmap = Bitmap::new(4096, 20);
        bitmap.set(0, 3);
        bitmap.set(2, 11);
        assert_eq!(bitmap.as_bytes()[..4], [0xff, 0x07, 0xf0, 0xff]);
        assert_eq!(bitmap.as_bytes().len(), 4096);
        assert!(bitmap.as_bytes()[4..].iter().all(|&byte| byte == 0xff));
    }
}
