//! VMDK streams as `VMware` writes them: tables behind the grains, each with a marker, and a copy of the header at the end.

use byteorder::{ByteOrder, LE};

const SECTOR: usize = 512;
const TABLE: usize = 2048;

/// The same stream with its tables moved behind its grains.
pub(crate) fn from_qemu(stream: &[u8]) -> Vec<u8> {
    let sectors = |at: usize| LE::read_u64(&stream[at..]) as usize * SECTOR;
    let (directory, overhead) = (sectors(56), sectors(64));
    let table = LE::read_u32(&stream[directory..]) as usize * SECTOR;
    let mut end = overhead;
    while let Some(len @ 1..) = stream.get(end + 8..end + 12).map(LE::read_u32) {
        end += (12 + len as usize).next_multiple_of(SECTOR);
    }
    let mut bytes = stream.to_vec();
    bytes.resize(end, 0);
    // The text stays; the tables in front go.
    let text_end = sectors(28) + sectors(36);
    bytes[text_end..overhead].fill(0);
    LE::write_u32(&mut bytes[8..], 0x3_0001);
    LE::write_u64(&mut bytes[48..], 0);
    LE::write_u64(&mut bytes[56..], u64::MAX);
    marker(&mut bytes, TABLE / SECTOR, 1);
    let place = (bytes.len() / SECTOR) as u32;
    bytes.extend(&stream[table..table + TABLE]);
    marker(&mut bytes, 1, 2);
    let directory = (bytes.len() / SECTOR) as u64;
    bytes.extend(place.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    marker(&mut bytes, 1, 3);
    let footer = bytes.len();
    bytes.extend_from_within(..SECTOR);
    LE::write_u64(&mut bytes[footer + 56..], directory);
    bytes.resize(bytes.len() + SECTOR, 0);
    bytes
}

/// A marker of what is behind it, in whole sectors.
fn marker(bytes: &mut Vec<u8>, sectors: usize, kind: u32) {
    let at = bytes.len();
    bytes.resize(at + SECTOR, 0);
    LE::write_u64(&mut bytes[at..], sectors as u64);
    LE::write_u32(&mut bytes[at + 12..], kind);
}
