//! CRC-32C as ext4 uses it ("Checksums" in the kernel's ext4 documentation).
//!
//! ext4 keeps the raw register of the CRC: it starts from a seed and is not inverted at the end. Every structure's
//! checksum starts from the filesystem's seed, so that one copied from another filesystem does not match.

use byteorder::{ByteOrder, LittleEndian};

/// The register after some bytes: a checksum, and the seed of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(u32);

impl Checksum {
    /// Before any byte.
    pub const START: Self = Self(!0);

    /// The register that a field holds.
    pub fn of_value(value: u32) -> Self {
        Self(value)
    }

    /// What everything but the superblock starts from.
    pub fn of_filesystem(uuid: &[u8; 16]) -> Self {
        Self::START.with(uuid)
    }

    /// What an inode and its directory blocks start from.
    #[must_use]
    pub fn of_inode(self, number: u32, generation: u32) -> Self {
        self.with_u32(number).with_u32(generation)
    }

    /// After `bytes` too.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        // The crate inverts on the way in and out; ext4 does neither.
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// After a little-endian number too.
    #[must_use]
    pub fn with_u32(self, value: u32) -> Self {
        let mut bytes = [0; 4];
        LittleEndian::write_u32(&mut bytes, value);
        self.with(&bytes)
    }

    /// All 32 bits.
    pub fn value(self) -> u32 {
        self.0
    }

    /// Low and high half, which small structures keep apart.
    pub fn halves(self) -> (u16, u16) {
        (self.0 as u16, (self.0 >> 16) as u16)
    }
}

/// CRC-16 (the polynomial of ARC), which is all that filesystems without CRC-32C have; goes on from `register`.
pub(crate) fn crc16(register: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(register, |register, &byte| {
        (0..8).fold(register ^ u16::from(byte), |register, _| {
            (register >> 1) ^ (if register & 1 == 1 { 0xA001 } else { 0 })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_16_is_that_of_arc() {
        assert_eq!(crc16(0, b"123456789"), 0xBB3D);
    }

    #[test]
    fn is_crc_32c_without_the_last_inversion() {
        // The check value of CRC-32C is 0xe3069283.
        assert_eq!(Checksum::START.with(b"123456789").value(), !0xe306_9283);
    }

    #[test]
    fn continues_where_it_stopped() {
        let in_two = Checksum::START.with(b"1234").with(b"56789");
        assert_eq!(in_two, Checksum::START.with(b"123456789"));
    }
}
