//! Files with holes, in the form that GNU tar, libarchive and Go's `archive/tar` read ("Storing Sparse Files", PAX format 1.0).
//!
//! Records before the header have the file's own name and size; the header has another name, which programs that know nothing of
//! this unpack to, and the size of what is stored: a map in decimal, filled up to a block, and behind it the pieces that the map lists.

use block::Result;
use ext4_reader::{Filesystem, Inode};

use super::BLOCK;

/// Pieces of a file at most, since all of them are kept: readers have limits too.
const MAX_PIECES: usize = 1 << 20;

/// Where a file has data.
#[derive(Debug)]
pub(super) struct Map {
    /// Offsets and lengths in bytes, in order.
    pieces: Vec<(u64, u64)>,
    size: u64,
}

impl Map {
    /// That of a file; `None` where it has no holes, or cannot be told in this way and is to be stored with zeros.
    pub(super) fn of(filesystem: &Filesystem, inode: &Inode) -> Result<Option<Self>> {
        let runs = filesystem.content(inode)?;
        Self::of_runs(runs.map(|run| run.map(|run| (run.offset, run.len))), inode.size())
    }

    /// That of a file of `size` bytes with data at these offsets, of these lengths.
    fn of_runs(runs: impl Iterator<Item = Result<(u64, u64)>>, size: u64) -> Result<Option<Self>> {
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for run in runs {
            let (start, more) = run?;
            let full = pieces.len() == MAX_PIECES;
            match pieces.last_mut() {
                Some((offset, len)) if *offset + *len == start => *len += more,
                // Only the last piece may end within a block.
                Some((_, len)) if !len.is_multiple_of(BLOCK as u64) => return Ok(None),
                _ if full => return Ok(None),
                _ => pieces.push((start, more)),
            }
        }
        let map = Self { pieces, size };
        // A map takes a block or more, which a hole of less does not make good.
        let is_smaller = map.stored() + (BLOCK as u64) < size;
        Ok(is_smaller.then_some(map))
    }

    /// Bytes of data.
    pub(super) fn data(&self) -> u64 {
        self.pieces.iter().map(|(_, len)| len).sum()
    }

    /// Bytes that the archive has of the file: the map and the data.
    pub(super) fn stored(&self) -> u64 {
        self.text().len() as u64 + self.data()
    }

    /// The map as it is stored, in whole blocks.
    pub(super) fn text(&self) -> Vec<u8> {
        let ends = self.pieces.last().map_or(0, |(offset, len)| offset + len);
        // An empty piece at its end says how long a file is that ends with a hole.
        let end = (ends < self.size).then_some((self.size, 0));
        let pieces = self.pieces.iter().copied().chain(end);
        let mut text = format!("{}\n", self.pieces.len() + usize::from(end.is_some())).into_bytes();
        for (offset, len) in pieces {
            text.extend(format!("{offset}\n{len}\n").into_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        text
    }

    /// What the file is called for programs that do not know of maps.
    pub(super) fn stand_in(path: &[u8]) -> Vec<u8> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        [b"./GNUSparseFile.0/", &name[..name.len().min(80)]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_too_many_pieces_is_stored_with_its_holes() {
        let every_other = |pieces: u64| (0..pieces).map(|piece| Ok((piece * 8192, 4096)));
        let of = |pieces: u64| Map::of_runs(every_other(pieces), pieces * 8192).unwrap();
        let most = MAX_PIECES as u64;
        assert_eq!(of(most).unwrap().data(), most * 4096);
        assert!(of(most + 1).is_none());
        // What is adjacent is one piece.
        let adjacent = (0..=most).map(|piece| Ok((piece * 4096, 4096)));
        let size = (most + 1) * 8192;
        assert_eq!(Map::of_runs(adjacent, size).unwrap().unwrap().pieces.len(), 1);
    }
}
