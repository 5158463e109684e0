//! Small files and directories inside their inodes ("Inline Data"): the first 60 bytes in place of the map, the rest
//! as the value of an attribute that is there even where nothing is left for it. It has to fit the inode together
//! with all other attributes.
//!
//! As with the kernel, an empty file has an empty extent tree instead, and a symlink that is too long for the map has
//! a block.

use byteorder::{ByteOrder, LittleEndian};

use crate::directory::{Entry, fill};
use crate::inode::{MAP_SIZE, XATTR_ROOM};
use crate::xattr::{Xattr, fits_inode};

/// Bytes before a directory's entries: its parent, which stands for `..`; there is no `.` either.
const PARENT_SIZE: usize = 4;

/// Bytes of the largest file that fits, where there are no other attributes.
pub(crate) const MAX_FILE: usize = 128;

/// Contents as the inode holds them, which gets [`FLAG_INLINE_DATA`](crate::inode::FLAG_INLINE_DATA).
#[derive(Debug, PartialEq, Eq)]
pub struct InlineData {
    /// In place of the inode's map.
    pub map: [u8; MAP_SIZE],
    /// To be planned for with the other attributes.
    pub xattr: Xattr,
    /// The inode's size.
    pub size: u64,
}

/// A file's contents; `None` where they do not fit beside the other attributes.
pub(crate) fn file(contents: &[u8], xattrs: &[Xattr]) -> Option<InlineData> {
    let (first, rest) = contents.split_at(contents.len().min(MAP_SIZE));
    let mut map = [0; MAP_SIZE];
    map[..first.len()].copy_from_slice(first);
    inline(map, rest.to_vec(), contents.len() as u64, xattrs, XATTR_ROOM)
}

/// A directory with these entries besides `.` and `..`; `None` where they do not fit the inode's `room` beside the other
/// attributes.
pub fn directory(parent: u32, entries: &[Entry<'_>], xattrs: &[Xattr], room: usize) -> Option<InlineData> {
    let mut map = [0; MAP_SIZE];
    LittleEndian::write_u32(&mut map, parent);
    let mut left = MAP_SIZE - PARENT_SIZE;
    let in_map = entries.iter().take_while(|entry| {
        let fits = entry.size() <= left;
        left = left.saturating_sub(entry.size());
        fits
    });
    let (first, rest) = entries.split_at(in_map.count());
    fill(&mut map[PARENT_SIZE..], first.iter().copied(), None);
    let size: usize = rest.iter().map(|entry| entry.size()).sum();
    if size > room {
        return None;
    }
    let mut value = vec![0; size];
    if !rest.is_empty() {
        fill(&mut value, rest.iter().copied(), None);
    }
    inline(map, value, (MAP_SIZE + size) as u64, xattrs, room)
}

fn inline(
    map: [u8; MAP_SIZE],
    value: Vec<u8>,
    size: u64,
    xattrs: &[Xattr],
    room: usize,
) -> Option<InlineData> {
    let xattr = Xattr::inline_data(value);
    let all = xattrs.iter().chain([&xattr]);
    fits_inode(all, room).then_some(InlineData { map, xattr, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_depends_on_other_attributes() {
        // 96 bytes, 8 of them around all entries, 20 for each of ours and theirs.
        assert!(file(&[1; MAX_FILE], &[]).is_some());
        assert!(file(&[1; MAX_FILE + 1], &[]).is_none());
        let other = Xattr::new(b"user.a", b"1234").unwrap().unwrap();
        assert!(file(&[1; 60 + 44], std::slice::from_ref(&other)).is_some());
        assert!(file(&[1; 60 + 45], &[other]).is_none());
    }

    #[test]
    fn entries_go_on_where_the_map_ends() {
        let names = ["a".repeat(40), "b".repeat(9), "c".repeat(3)];
        let entries: Vec<Entry<'_>> = names
            .iter()
            .map(|name| Entry::directory(20, name.as_bytes()))
            .collect();
        let inline = directory(2, &entries, &[], XATTR_ROOM).unwrap();
        // 48 of 56 bytes are taken; 20 and 12 follow.
        assert_eq!(inline.size, 60 + 32);
        assert_eq!(inline.map[4 + 4..4 + 6], [56, 0]);
        assert_eq!(inline.xattr.value()[4..6], [20, 0]);
        assert_eq!(inline.xattr.value()[20 + 4..20 + 6], [12, 0]);
        let many: Vec<Entry<'_>> = (0..9).map(|_| Entry::directory(20, b"0123456")).collect();
        assert!(directory(2, &many[..7], &[], XATTR_ROOM).is_some());
        assert!(directory(2, &many, &[], XATTR_ROOM).is_none());
    }
}
