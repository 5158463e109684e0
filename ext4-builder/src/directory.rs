//! Directory blocks ("Linear Directories"): entries that fill the block, and a tail with its checksum.

use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::geometry::BLOCK_SIZE;

const TYPE_DIRECTORY: u8 = 2;
/// An entry's bytes before its name.
const ENTRY_HEADER: usize = 8;
/// The tail looks like an unused entry of this length and type to those who don't know it.
const TAIL_SIZE: usize = 12;
const TAIL_TYPE: u8 = 0xDE;

/// One block of the directory that `inode` is the checksum seed of, with subdirectories as (inode, name), `.` and
/// `..` among them.
///
/// The names must fit, with 8 bytes each and rounded up to 4: what is written here is known beforehand.
pub(crate) fn block(entries: &[(u32, &str)], inode: Checksum) -> [u8; BLOCK_SIZE as usize] {
    let mut bytes = [0; BLOCK_SIZE as usize];
    let end = bytes.len() - TAIL_SIZE;
    let mut offset = 0;
    for (index, &(number, name)) in entries.iter().enumerate() {
        let is_last = index + 1 == entries.len();
        let len = if is_last {
            end - offset
        } else {
            (ENTRY_HEADER + name.len()).next_multiple_of(4)
        };
        put_entry(&mut bytes[offset..offset + len], number, TYPE_DIRECTORY, name);
        offset += len;
    }
    if entries.is_empty() {
        put_entry(&mut bytes[..end], 0, 0, "");
    }
    put_entry(&mut bytes[end..], 0, TAIL_TYPE, "");
    let checksum = inode.with(&bytes[..end]);
    LittleEndian::write_u32(&mut bytes[end + ENTRY_HEADER..], checksum.value());
    bytes
}

/// An entry that takes all of `bytes`.
fn put_entry(bytes: &mut [u8], inode: u32, file_type: u8, name: &str) {
    let len = bytes.len() as u16;
    LittleEndian::write_u32(bytes, inode);
    LittleEndian::write_u16(&mut bytes[4..], len);
    bytes[6] = name.len() as u8;
    bytes[7] = file_type;
    bytes[ENTRY_HEADER..ENTRY_HEADER + name.len()].copy_from_slice(name.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (inode, length, type, name) of every entry, walked as a kernel does.
    fn walk(bytes: &[u8]) -> Vec<(u32, u16, u8, String)> {
        let mut entries = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = LittleEndian::read_u16(&rest[4..]);
            let name = String::from_utf8_lossy(&rest[8..8 + usize::from(rest[6])]).into_owned();
            entries.push((LittleEndian::read_u32(rest), len, rest[7], name));
            rest = &rest[usize::from(len)..];
        }
        entries
    }

    #[test]
    fn the_last_entry_reaches_to_the_tail() {
        let bytes = block(&[(2, "."), (2, ".."), (11, "lost+found")], Checksum::START);
        let found = walk(&bytes);
        let dots = [(2, 12, 2, ".".into()), (2, 12, 2, "..".into())];
        assert_eq!(found[..2], dots);
        assert_eq!(
            found[2..],
            [(11, 4060, 2, "lost+found".into()), (0, 12, 0xDE, String::new())]
        );
    }

    #[test]
    fn an_empty_block_is_one_unused_entry() {
        let found = walk(&block(&[], Checksum::START));
        assert_eq!(found, [(0, 4084, 0, String::new()), (0, 12, 0xDE, String::new())]);
    }
}
