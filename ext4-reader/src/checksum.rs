//! CRC-32C as ext4 uses it ("Checksums" in the kernel's ext4 documentation), and the CRC-16 of older descriptors.

/// The raw register after some bytes: a checksum, and the seed of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checksum(pub(crate) u32);

impl Checksum {
    /// Before any byte.
    pub(crate) const START: Self = Self(!0);

    /// After `bytes` too.
    #[must_use]
    pub(crate) fn with(self, bytes: &[u8]) -> Self {
        // The crate inverts on the way in and out; ext4 does neither.
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// The low half, which is all that small structures have room for.
    pub(crate) fn low(self) -> u16 {
        self.0 as u16
    }
}

/// CRC-16 (polynomial 0x8005, reflected), started from all ones.
pub(crate) fn crc16(parts: &[&[u8]]) -> u16 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xA001 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn give_the_check_values_of_the_catalogue() {
        assert_eq!(Checksum::START.with(b"1234").with(b"56789").0, !0xE306_9283);
        // CRC-16/MODBUS.
        assert_eq!(crc16(&[b"1234", b"56789"]), 0x4B37);
    }
}
