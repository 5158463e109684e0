//! The sector with free counts ("FAT32 `FSInfo` Sector Structure"): hints, so that mounting need not read the table.

/// The first 512 bytes of the sector: how many clusters are free, and where to look for the next.
pub(crate) fn encode(free: u32, next: Option<u32>) -> [u8; 512] {
    let mut bytes = [0; 512];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, 0x4161_5252);
    put(484, 0x6141_7272);
    put(488, free);
    put(492, next.unwrap_or(u32::MAX));
    put(508, 0xAA55_0000);
    bytes
}
