//! Checksums of VHD and VHDX that are right again after a change, as whoever means harm would make them.

use byteorder::{BE, ByteOrder, LE};

/// Makes those right that `bytes` have where they should be.
pub(crate) fn mend(bytes: &mut [u8]) {
    let end = bytes.len().saturating_sub(512);
    let header = bytes.get(16..24).map_or(0, BE::read_u64) as usize;
    sum(bytes, end, 512, b"conectix", 64);
    sum(bytes, 0, 512, b"conectix", 64);
    sum(bytes, header, 1024, b"cxsparse", 36);
    if bytes.starts_with(b"vhdxfile") {
        crc(bytes, 64 << 10, 4096, b"head");
        crc(bytes, 128 << 10, 4096, b"head");
        crc(bytes, 192 << 10, 64 << 10, b"regi");
        crc(bytes, 256 << 10, 64 << 10, b"regi");
    }
}

/// The complement of the sum of all bytes but these four.
fn sum(bytes: &mut [u8], at: usize, len: usize, magic: &[u8], place: usize) {
    let Some(part) = at.checked_add(len).and_then(|end| bytes.get_mut(at..end)) else {
        return;
    };
    if part.starts_with(magic) {
        part[place..place + 4].fill(0);
        let sum: u32 = part.iter().map(|byte| u32::from(*byte)).sum();
        BE::write_u32(&mut part[place..], !sum);
    }
}

/// CRC-32C of all bytes, with zeros for itself.
fn crc(bytes: &mut [u8], at: usize, len: usize, magic: &[u8]) {
    let Some(part) = bytes.get_mut(at..at + len) else {
        return;
    };
    if part.starts_with(magic) {
        part[4..8].fill(0);
        let crc = crc32c::crc32c(part);
        LE::write_u32(&mut part[4..], crc);
    }
}
