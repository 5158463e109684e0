//! Extent trees ("Extent Tree"): where a file's blocks are, as runs. Four runs fit the inode; more of them go to
//! leaf blocks, their places to index blocks, and so on until four entries are left for the inode.
//!
//! The tree is built from the leaves up and every block is full but the last of its level: the kernel splits what it
//! adds to. Blocks of a level are handed out in order as they fill, so that memory is needed for one block and for
//! one entry per block of the level below.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::inode::MAP_SIZE;

/// Blocks that an extent can hold; an unwritten one holds one less.
pub const MAX_LEN: u32 = 32_768;

const MAGIC: u16 = 0xF30A;
const HEADER_SIZE: usize = 12;
const ENTRY_SIZE: usize = 12;
/// Entries that fit an inode.
const INLINE_ENTRIES: usize = (MAP_SIZE - HEADER_SIZE) / ENTRY_SIZE;

/// A run of blocks. Those of a file are sorted and do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block, counted in the file.
    pub logical: u32,
    /// The first block, counted on the disk; 48 bits.
    pub physical: u64,
    /// Blocks, at least 1 and at most [`MAX_LEN`], or one less if unwritten.
    pub len: u32,
    /// Allocated, but reads as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The run in pieces that an entry can say.
    pub fn pieces(self) -> impl Iterator<Item = Self> {
        let max = MAX_LEN - u32::from(self.unwritten);
        (0..self.len).step_by(max as usize).map(move |start| Self {
            logical: self.logical + start,
            physical: self.physical + u64::from(start),
            len: max.min(self.len - start),
            unwritten: self.unwritten,
        })
    }

    fn to_bytes(self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        let len = self.len as u16 + if self.unwritten { MAX_LEN as u16 } else { 0 };
        LittleEndian::write_u32(&mut bytes[0..], self.logical);
        LittleEndian::write_u16(&mut bytes[4..], len);
        LittleEndian::write_u16(&mut bytes[6..], (self.physical >> 32) as u16);
        LittleEndian::write_u32(&mut bytes[8..], self.physical as u32);
        bytes
    }
}

/// An entry that leads to a block of the level below.
struct Index {
    /// The first block of the file that is found there: the first entry's own.
    logical: u32,
    node: u64,
}

impl Index {
    fn to_bytes(&self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        LittleEndian::write_u32(&mut bytes[0..], self.logical);
        LittleEndian::write_u32(&mut bytes[4..], self.node as u32);
        LittleEndian::write_u16(&mut bytes[8..], (self.node >> 32) as u16);
        bytes
    }
}

/// Builds the tree of a file's extents, with blocks of `block_size` under a checksum if the inode has a seed for it.
/// `write` takes each block of the tree and says where it put it. Returns the inode's map.
///
/// # Errors
/// Those of `write`.
pub fn tree(
    extents: &[Extent],
    block_size: usize,
    inode: Option<Checksum>,
    mut write: impl FnMut(&[u8]) -> Result<u64>,
) -> Result<[u8; MAP_SIZE]> {
    if let Some(map) = inline(extents) {
        return Ok(map);
    }
    let mut writer = Level {
        block_size,
        inode,
        write: &mut write,
    };
    let mut depth = 0;
    let mut entries = writer.write(depth, extents, |extent| (extent.logical, extent.to_bytes()))?;
    while entries.len() > INLINE_ENTRIES {
        depth += 1;
        entries = writer.write(depth, &entries, |index| (index.logical, index.to_bytes()))?;
    }
    Ok(root(depth + 1, entries.iter().map(Index::to_bytes)))
}

/// The map of a file with extents that all fit the inode.
pub(crate) fn inline(extents: &[Extent]) -> Option<[u8; MAP_SIZE]> {
    let fit = extents.len() <= INLINE_ENTRIES;
    fit.then(|| root(0, extents.iter().map(|extent| extent.to_bytes())))
}

/// Blocks that the tree of so many extents takes outside the inode.
pub fn tree_blocks(extents: usize, block_size: usize) -> u64 {
    let mut blocks = 0;
    let mut entries = extents;
    while entries > INLINE_ENTRIES {
        entries = entries.div_ceil(capacity(block_size));
        blocks += entries as u64;
    }
    blocks
}

/// Entries that fit a block. What is left of it, 4 or 8 bytes, has room for the checksum.
fn capacity(block_size: usize) -> usize {
    (block_size - HEADER_SIZE) / ENTRY_SIZE
}

/// Writes nodes.
struct Level<'a, W> {
    block_size: usize,
    inode: Option<Checksum>,
    write: &'a mut W,
}

impl<W: FnMut(&[u8]) -> Result<u64>> Level<'_, W> {
    /// Writes a level's blocks, and returns the entries that lead to them.
    fn write<T>(
        &mut self,
        depth: u16,
        entries: &[T],
        encode: impl Fn(&T) -> (u32, [u8; ENTRY_SIZE]),
    ) -> Result<Vec<Index>> {
        let capacity = capacity(self.block_size);
        let mut block = vec![0; self.block_size];
        let mut above = Vec::with_capacity(entries.len().div_ceil(capacity));
        for entries in entries.chunks(capacity) {
            block.fill(0);
            let bytes = entries.iter().map(|entry| encode(entry).1);
            put_node(&mut block, capacity, depth, bytes);
            if let Some(inode) = self.inode {
                let (node, tail) = block.split_at_mut(HEADER_SIZE + capacity * ENTRY_SIZE);
                LittleEndian::write_u32(tail, inode.with(node).value());
            }
            above.push(Index {
                logical: encode(&entries[0]).0,
                node: (self.write)(&block)?,
            });
        }
        Ok(above)
    }
}

fn root(depth: u16, entries: impl ExactSizeIterator<Item = [u8; ENTRY_SIZE]>) -> [u8; MAP_SIZE] {
    let mut map = [0; MAP_SIZE];
    put_node(&mut map, INLINE_ENTRIES, depth, entries);
    map
}

/// A header, and entries that fit.
fn put_node(
    bytes: &mut [u8],
    capacity: usize,
    depth: u16,
    entries: impl ExactSizeIterator<Item = [u8; ENTRY_SIZE]>,
) {
    LittleEndian::write_u16(&mut bytes[0..], MAGIC);
    LittleEndian::write_u16(&mut bytes[2..], entries.len() as u16);
    LittleEndian::write_u16(&mut bytes[4..], capacity as u16);
    LittleEndian::write_u16(&mut bytes[6..], depth);
    for (room, entry) in bytes[HEADER_SIZE..].chunks_exact_mut(ENTRY_SIZE).zip(entries) {
        room.copy_from_slice(&entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scattered(count: u32) -> Vec<Extent> {
        let extent = |index| Extent {
            logical: index * 2,
            physical: u64::from(index) * 2 + 1000,
            len: 1,
            unwritten: false,
        };
        (0..count).map(extent).collect()
    }

    #[test]
    fn four_extents_need_no_block() {
        let map = tree(&scattered(4), 4096, None, |_| panic!("a block")).unwrap();
        assert_eq!(map[..8], [0x0A, 0xF3, 4, 0, 4, 0, 0, 0]);
        assert_eq!(tree_blocks(4, 4096), 0);
    }

    #[test]
    fn blocks_are_as_many_as_foretold() {
        for (count, block_size) in [
            (5, 1024),
            (340 * 4, 4096),
            (340 * 4 + 1, 4096),
            (84 * 84 * 4 + 1, 1024),
        ] {
            let mut written = 0;
            let write = |_: &[u8]| {
                written += 1;
                Ok(written)
            };
            tree(&scattered(count), block_size, None, write).unwrap();
            assert_eq!(tree_blocks(count as usize, block_size), written, "{count}");
        }
    }

    #[test]
    fn long_runs_come_apart_at_their_limits() {
        let run = Extent {
            logical: 10,
            physical: 100,
            len: MAX_LEN + 1,
            unwritten: false,
        };
        let lengths: Vec<_> = run.pieces().map(|piece| (piece.logical, piece.len)).collect();
        assert_eq!(lengths, [(10, 32768), (32778, 1)]);
        let run = Extent {
            unwritten: true,
            ..run
        };
        let lengths: Vec<_> = run.pieces().map(|piece| (piece.physical, piece.len)).collect();
        assert_eq!(lengths, [(100, 32767), (32867, 2)]);
    }
}
