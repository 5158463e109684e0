//! Sparse files: which ranges of a file its archive stores, as of the GNU tar manual ("Storing Sparse Files").
//!
//! Four formats say it: the old one of GNU in the header and in blocks that follow it, and three that add records to
//! an extended header. Of these, 0.0 has a record for each number, 0.1 one for all, and 1.0 puts the map in front of
//! the data. All end up in one list here.

use std::ops::Range;

use super::fault::Fault;
use super::header::{BLOCK, number, unsigned};
use super::pax::digits;

/// Pieces that a file may have; a million and more, where ext4 files in practice have some ten thousand extents.
const MAX_PIECES: usize = 1 << 21;

/// The ranges of a file that are stored, in order, growing as the map is read.
#[derive(Clone, Debug, Default)]
pub(super) struct PieceList {
    ranges: Vec<Range<u64>>,
    stored: u64,
}

impl PieceList {
    pub(super) fn push(&mut self, offset: u64, len: u64) -> Result<(), Fault> {
        if len == 0 {
            return Ok(());
        }
        // GNU tar starts every piece in a block of its own, other programs do not: an archive where that matters
        // means different things to different readers, and no program writes one.
        if !self.stored.is_multiple_of(BLOCK as u64) {
            return Err(Fault::SparseMap(
                "a piece within the file is not made of whole blocks",
            ));
        }
        let end = offset
            .checked_add(len)
            .ok_or(Fault::SparseMap("a piece is too long"))?;
        self.stored += len;
        let full = self.ranges.len() == MAX_PIECES;
        match self.ranges.last_mut() {
            Some(last) if offset < last.end => {
                return Err(Fault::SparseMap("pieces overlap, or are out of order"));
            }
            Some(last) if offset == last.end => last.end = end,
            _ if full => return Err(Fault::SparseMap("it has too many pieces")),
            _ => self.ranges.push(offset..end),
        }
        Ok(())
    }

    /// The ranges of a file of `size` bytes whose archive has `stored` bytes of data.
    pub(super) fn finish(self, size: u64, stored: u64) -> Result<Vec<Range<u64>>, Fault> {
        if self.ranges.last().is_some_and(|last| last.end > size) {
            return Err(Fault::SparseMap("a piece reaches past the end of the file"));
        }
        if self.stored != stored {
            return Err(Fault::SparseMap("its pieces are not as long as the data"));
        }
        Ok(self.ranges)
    }

    /// Adds the pieces of a block in the old format, of 24 bytes each. None follow one without a length.
    pub(super) fn add_gnu(&mut self, pieces: &[u8]) -> Result<(), Fault> {
        for piece in pieces.chunks_exact(24) {
            let (offset, len) = piece.split_at(12);
            if number(len, "length in a sparse file")? == 0 {
                break;
            }
            self.push(
                unsigned(offset, "offset in a sparse file")?,
                unsigned(len, "length in a sparse file")?,
            )?;
        }
        Ok(())
    }
}

/// The pieces in a block that follows a header in the old format, and whether there is another such block.
pub(super) fn gnu_extension(block: &[u8; BLOCK]) -> (&[u8], bool) {
    (&block[..21 * 24], block[21 * 24] != 0)
}

/// What an extended header says of a sparse file.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The file's name where the header has a made-up one, for readers that know nothing of this.
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) count: Option<u64>,
    pub(super) pieces: PieceList,
    /// The offset whose length is to follow.
    pub(super) offset: Option<u64>,
}

/// Where the map of a sparse file is.
#[derive(Debug)]
pub(super) enum PaxMap {
    /// In the records, formats 0.0 and 0.1.
    Records { size: u64, pieces: PieceList },
    /// In front of the data, format 1.0.
    Data { size: u64 },
}

impl SparseRecords {
    /// The map, if these records say that there is one.
    pub(super) fn map(self) -> Result<Option<PaxMap>, Fault> {
        let no_size = Fault::SparseMap("the file's size is missing");
        match (self.major, self.minor) {
            (Some(1), Some(0)) => Ok(Some(PaxMap::Data {
                size: self.size.ok_or(no_size)?,
            })),
            (None | Some(0), _) => {
                if self.size.is_none() && self.count.is_none() {
                    return Ok(None);
                }
                if self.offset.is_some() {
                    return Err(Fault::SparseMap("a length is missing"));
                }
                Ok(Some(PaxMap::Records {
                    size: self.size.ok_or(no_size)?,
                    pieces: self.pieces,
                }))
            }
            (Some(major), minor) => Err(Fault::SparseVersion {
                major,
                minor: minor.unwrap_or_default(),
            }),
        }
    }
}

/// A map of format 1.0 while its blocks are read: decimal numbers, each on its line, first how many pieces there
/// are, then offset and length of each; the last block's rest is zeros.
#[derive(Debug, Default)]
pub(super) struct MapParser {
    line: Vec<u8>,
    /// Pieces that are still to come, when it is known.
    left: Option<u64>,
    offset: Option<u64>,
    pieces: PieceList,
}

impl MapParser {
    /// Takes a block, and says whether it was the last one.
    pub(super) fn add(&mut self, block: &[u8; BLOCK]) -> Result<bool, Fault> {
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                // No number is longer, hence no line either.
                if self.line.len() > 20 {
                    return Err(Fault::SparseMap("a line is no number"));
                }
                continue;
            }
            let number = digits(&self.line).ok_or(Fault::SparseMap("a line is no number"))?;
            self.line.clear();
            if self.add_number(number)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the next number, and says whether it was the last one.
    fn add_number(&mut self, number: u64) -> Result<bool, Fault> {
        let left = match (self.left, self.offset.take()) {
            (None, _) => number,
            (Some(left), None) => {
                self.offset = Some(number);
                left
            }
            (Some(left), Some(offset)) => {
                self.pieces.push(offset, number)?;
                left - 1
            }
        };
        self.left = Some(left);
        Ok(left == 0)
    }

    pub(super) fn pieces(self) -> PieceList {
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_in_order_and_within_the_file() {
        let list = |pieces: &[(u64, u64)]| {
            let mut list = PieceList::default();
            for &(offset, len) in pieces {
                list.push(offset, len)?;
            }
            list.finish(4096, pieces.iter().map(|&(_, len)| len).sum())
        };
        assert_eq!(
            list(&[(0, 512), (512, 512), (2048, 7)]).unwrap(),
            [0..1024, 2048..2055]
        );
        assert_eq!(list(&[(4096, 0)]).unwrap(), []);
        list(&[(512, 512), (0, 512)]).unwrap_err();
        list(&[(0, 1024), (512, 512)]).unwrap_err();
        list(&[(0, 7), (512, 512)]).unwrap_err();
        list(&[(4096, 1)]).unwrap_err();
        list(&[(u64::MAX, 512)]).unwrap_err();
    }

    #[test]
    fn there_are_2097152_pieces_at_most() {
        let mut list = PieceList::default();
        for piece in 0..1 << 21 {
            list.push(1024 * piece, 512).unwrap();
        }
        // What continues the last one is no other piece.
        list.push((1024 << 21) - 512, 512).unwrap();
        list.push(1024 << 21, 512).unwrap();
        let fault = list.push((1024 << 21) + 1024, 512).unwrap_err();
        assert!(fault.to_string().contains("too many pieces"), "{fault}");
    }

    #[test]
    fn a_map_may_span_blocks() {
        let mut text = b"100\n".to_vec();
        (0..100_u64).for_each(|piece| text.extend_from_slice(format!("{}\n512\n", piece * 4096).as_bytes()));
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let mut parser = MapParser::default();
        let (blocks, []) = text.as_chunks() else {
            unreachable!("whole blocks")
        };
        let (last, first) = blocks.split_last().unwrap();
        assert!(first.iter().all(|block| !parser.add(block).unwrap()));
        assert!(parser.add(last).unwrap());
        let ranges = parser.pieces().finish(1 << 20, 51200).unwrap();
        assert_eq!((ranges.len(), ranges[99].clone()), (100, 405_504..406_016));
    }
}
