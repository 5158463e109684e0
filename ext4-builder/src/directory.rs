//! Directory blocks ("Linear Directories"): entries that fill the block, and a tail with its checksum.

use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::inode::FileType;

/// An entry's bytes before its name.
const ENTRY_HEADER: usize = 8;
/// The tail looks like an unused entry of this length and type to those who don't know it.
const TAIL_SIZE: usize = 12;
const TAIL_TYPE: u8 = 0xDE;

/// A name in a directory: 1 to 255 bytes, neither `/` nor NUL among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it stands for.
    pub inode: u32,
    /// What that is.
    pub file_type: FileType,
    /// Its bytes.
    pub name: &'a [u8],
}

impl<'a> Entry<'a> {
    /// An entry that names a directory.
    pub fn directory(inode: u32, name: &'a [u8]) -> Self {
        Self {
            inode,
            file_type: FileType::Directory,
            name,
        }
    }

    /// Bytes that the entry needs.
    pub fn size(self) -> usize {
        (ENTRY_HEADER + self.name.len()).next_multiple_of(4)
    }
}

/// Bytes of a block that entries can take.
pub fn room(block_size: usize, has_checksum: bool) -> usize {
    block_size - if has_checksum { TAIL_SIZE } else { 0 }
}

/// Fills a block with entries, which must fit its [`room`]: the last reaches to its end, or to the tail, where
/// `inode` is the seed for the checksum in it. Without entries the block is one unused entry.
pub fn fill<'a>(block: &mut [u8], entries: impl IntoIterator<Item = Entry<'a>>, inode: Option<Checksum>) {
    block.fill(0);
    let end = room(block.len(), inode.is_some());
    let mut last = 0;
    let mut offset = 0;
    for entry in entries {
        let size = entry.size();
        let room = &mut block[offset..offset + size];
        put_entry(room, size, entry.inode, entry.file_type as u8, entry.name);
        last = offset;
        offset += size;
    }
    LittleEndian::write_u16(&mut block[last + 4..], (end - last) as u16);
    if let Some(inode) = inode {
        put_entry(&mut block[end..], TAIL_SIZE, 0, TAIL_TYPE, b"");
        let checksum = inode.with(&block[..end]);
        LittleEndian::write_u32(&mut block[end + ENTRY_HEADER..], checksum.value());
    }
}

/// An entry of `len` bytes in all.
pub fn put_entry(bytes: &mut [u8], len: usize, inode: u32, file_type: u8, name: &[u8]) {
    LittleEndian::write_u32(bytes, inode);
    LittleEndian::write_u16(&mut bytes[4..], len as u16);
    bytes[6] = name.len() as u8;
    bytes[7] = file_type;
    bytes[ENTRY_HEADER..ENTRY_HEADER + name.len()].copy_from_slice(name);
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
        let names = [(2, "."), (2, ".."), (11, "lost+found")];
        let entries = names.map(|(number, name)| Entry::directory(number, name.as_bytes()));
        let mut bytes = [0; 4096];
        fill(&mut bytes, entries, Some(Checksum::START));
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
        let mut bytes = [0xFF; 4096];
        fill(&mut bytes, [], Some(Checksum::START));
        let found = walk(&bytes);
        assert_eq!(found, [(0, 4084, 0, String::new()), (0, 12, 0xDE, String::new())]);
    }

    #[test]
    fn without_a_checksum_the_last_entry_reaches_to_the_end() {
        let mut bytes = [0; 1024];
        fill(
            &mut bytes,
            [Entry::directory(5, b"abcd"), Entry::directory(6, b"abcde")],
            None,
        );
        assert_eq!(
            walk(&bytes),
            [(5, 12, 2, "abcd".into()), (6, 1012, 2, "abcde".into())]
        );
    }
}
