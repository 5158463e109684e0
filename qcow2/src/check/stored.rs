//! Refcounts as the image stores them, in a form that answers the two questions a check asks: "is it exactly 1"
//! for any cluster, from memory, and "what are these 64" in file order.
//!
//! A refcount block that says nothing (a hole, all zeros) takes no memory, and a block that several entries of the
//! refcount table name is kept once.

use std::ops::Range;

use block::{Result, Storage};

use super::loose;
use super::reader::TableReader;
use crate::address::{ClusterIndex, HostOffset};
use crate::geometry::Geometry;

/// Refcounts that are decoded at a time. Every refcount block has a multiple of as many.
pub(super) const GROUP: usize = 64;
/// QEMU refuses I/O from here on; no file is as long.
const MAX_FILE: u64 = i64::MAX as u64 & !((1 << 30) - 1);

const ABSENT: u32 = u32::MAX;
const UNREADABLE: u32 = u32::MAX - 1;

/// Where the refcounts of a refcount block's clusters come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// There is no block, or nothing in it: all are 0.
    Absent,
    /// The block's place is impossible.
    Unreadable(HostOffset),
    /// A block.
    Block(&'a Block),
}

/// What is remembered of a refcount block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) offset: HostOffset,
    /// Refcounts that are not 0.
    pub(super) used: u64,
    /// The last of them.
    pub(super) last_used: u64,
    /// A bit for each refcount, in words from the least significant bit: it is 1.
    ones: Vec<u64>,
}

/// All refcounts of an image.
#[derive(Debug)]
pub(super) struct StoredRefcounts {
    geometry: Geometry,
    /// The refcount table as stored.
    table: Vec<u64>,
    /// For each entry of the table, a place in `blocks`, [`ABSENT`] or [`UNREADABLE`].
    sources: Vec<u32>,
    blocks: Vec<Block>,
}

impl StoredRefcounts {
    /// Reads the refcount table and all its blocks. `tick` is told of every block: done, of how many.
    pub(super) fn load(
        storage: &dyn Storage,
        geometry: Geometry,
        table: (HostOffset, u64),
        file_len: u64,
        mut tick: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<Self> {
        let mut bytes = vec![0; table.1 as usize];
        storage.read_exact_at(&mut bytes, table.0.0)?;
        let table: Vec<u64> = loose::words(&bytes).collect();
        drop(bytes);

        // Distinct blocks in file order, each with all its places in the table.
        let mut places: Vec<(u64, usize)> = Vec::new();
        let mut sources = vec![ABSENT; table.len()];
        for (index, &entry) in table.iter().enumerate() {
            match loose::refcount_block(entry).0 {
                0 => {}
                offset if geometry.is_aligned(offset) && offset <= MAX_FILE - geometry.cluster_size() => {
                    places.push((offset, index));
                }
                _ => sources[index] = UNREADABLE,
            }
        }
        places.sort_unstable();
        let mut reader = TableReader::new(storage, file_len);
        let mut blocks: Vec<Block> = Vec::new();
        let mut done = 0;
        for group in places.chunk_by(|a, b| a.0 == b.0) {
            let block = Block::read(&mut reader, geometry, HostOffset(group[0].0))?;
            if block.used > 0 {
                for &(_, index) in group {
                    sources[index] = blocks.len() as u32;
                }
                blocks.push(block);
            }
            done += group.len() as u64;
            tick(done, places.len() as u64)?;
        }
        Ok(Self {
            geometry,
            table,
            sources,
            blocks,
        })
    }

    /// The refcount table as stored.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Where the refcounts of the `index`-th refcount block's clusters come from.
    pub(super) fn source(&self, index: u64) -> Source<'_> {
        match usize::try_from(index)
            .ok()
            .and_then(|index| self.sources.get(index))
        {
            None | Some(&ABSENT) => Source::Absent,
            Some(&UNREADABLE) => Source::Unreadable(loose::refcount_block(self.table[index as usize])),
            Some(&place) => Source::Block(&self.blocks[place as usize]),
        }
    }

    /// Whether the refcount of a cluster is exactly 1. `None` if it can't be read.
    #[inline]
    pub(super) fn is_one(&self, cluster: ClusterIndex) -> Option<bool> {
        let bits = self.geometry.refcount_block_bits();
        match self.source(cluster.0 >> bits) {
            Source::Absent => Some(false),
            Source::Unreadable(_) => None,
            Source::Block(block) => {
                let index = cluster.0 & ((1 << bits) - 1);
                let word = block.ones[(index / GROUP as u64) as usize];
                Some(word >> (index % GROUP as u64) & 1 == 1)
            }
        }
    }

    /// Whether the refcounts of all these clusters can be read and are exactly 1, or none of them is, as `ones` says.
    pub(super) fn are_alike(&self, clusters: Range<u64>, ones: bool) -> bool {
        let bits = self.geometry.refcount_block_bits();
        let mut start = clusters.start;
        while start < clusters.end {
            let index = start >> bits;
            let end = clusters.end.min((index + 1) << bits);
            let alike = match self.source(index) {
                Source::Absent => !ones,
                Source::Unreadable(_) => false,
                Source::Block(block) => block.are_alike(start - (index << bits)..end - (index << bits), ones),
            };
            if !alike {
                return false;
            }
            start = end;
        }
        true
    }

    /// The refcount of a cluster, from the file; 0 if it can't be read. Slow: for messages.
    pub(super) fn read_one(&self, storage: &dyn Storage, cluster: ClusterIndex) -> Result<u64> {
        let bits = self.geometry.refcount_block_bits();
        let Source::Block(block) = self.source(cluster.0 >> bits) else {
            return Ok(0);
        };
        let index = cluster.0 & ((1 << bits) - 1);
        let order = self.geometry.refcount_order;
        let first = index / GROUP as u64 * GROUP as u64;
        let mut bytes = vec![0; group_bytes(order)];
        storage.read_exact_at(&mut bytes, block.offset.0 + (first << order) / 8)?;
        let mut group = [0; GROUP];
        decode_group(order, &bytes, &mut group);
        Ok(group[(index - first) as usize])
    }
}

impl Block {
    /// Whether all of these refcounts are exactly 1, or none is.
    fn are_alike(&self, refcounts: Range<u64>, ones: bool) -> bool {
        let group = GROUP as u64;
        (refcounts.start / group..refcounts.end.div_ceil(group)).all(|number| {
            // The bits of this word that are asked for.
            let from = u64::MAX << refcounts.start.saturating_sub(number * group);
            let to = u64::MAX >> ((number + 1) * group).saturating_sub(refcounts.end);
            let word = self.ones[number as usize];
            (if ones { !word } else { word }) & from & to == 0
        })
    }

    fn read(reader: &mut TableReader<'_>, geometry: Geometry, offset: HostOffset) -> Result<Self> {
        let order = geometry.refcount_order;
        let (mut used, mut last_used, mut ones) = (0, 0, Vec::new());
        reader.read(offset.0, offset.0 + geometry.cluster_size(), |at, piece| {
            let first = ((at - offset.0) * 8) >> order;
            let mut group = [0; GROUP];
            for (number, bytes) in (first / GROUP as u64..).zip(piece.chunks_exact(group_bytes(order))) {
                decode_group(order, bytes, &mut group);
                let Some(last) = group.iter().rposition(|&count| count != 0) else {
                    continue;
                };
                if ones.is_empty() {
                    ones = vec![0u64; (1 << geometry.refcount_block_bits()) / GROUP];
                }
                used += group.iter().map(|&count| u64::from(count != 0)).sum::<u64>();
                last_used = number * GROUP as u64 + last as u64;
                ones[number as usize] = group
                    .iter()
                    .rev()
                    .fold(0, |word, &count| word << 1 | u64::from(count == 1));
            }
            Ok(())
        })?;
        Ok(Self {
            offset,
            used,
            last_used,
            ones,
        })
    }
}

/// Bytes that [`GROUP`] refcounts take.
pub(super) fn group_bytes(order: u32) -> usize {
    (GROUP << order) / 8
}

/// Decodes [`GROUP`] refcounts ("Refcount block entry"): big-endian from a byte on, and from the least significant
/// bit of each byte when they are narrower.
pub(super) fn decode_group(order: u32, bytes: &[u8], group: &mut [u64; GROUP]) {
    match order {
        0..=2 => {
            let width = 1 << order;
            let mask = (1u8 << width) - 1;
            for (counts, byte) in group.chunks_exact_mut(8 >> order).zip(bytes) {
                for (shift, count) in (0..).step_by(width).zip(counts) {
                    *count = u64::from(byte >> shift & mask);
                }
            }
        }
        3 => decode_bytes(bytes, group, |[byte]| u64::from(byte)),
        4 => decode_bytes(bytes, group, |bytes| u64::from(u16::from_be_bytes(bytes))),
        5 => decode_bytes(bytes, group, |bytes| u64::from(u32::from_be_bytes(bytes))),
        _ => decode_bytes(bytes, group, u64::from_be_bytes),
    }
}

fn decode_bytes<const N: usize>(bytes: &[u8], group: &mut [u64; GROUP], decode: impl Fn([u8; N]) -> u64) {
    let (counts, _) = bytes.as_chunks::<N>();
    for (count, bytes) in group.iter_mut().zip(counts) {
        *count = decode(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refcount;

    #[test]
    fn groups_are_decoded_as_single_refcounts_are() {
        for order in 0..=6 {
            let bytes: Vec<u8> = (0..group_bytes(order)).map(|i| (i * 73 + 41) as u8).collect();
            let mut group = [0; GROUP];
            decode_group(order, &bytes, &mut group);
            for (index, &count) in group.iter().enumerate() {
                assert_eq!(
                    count,
                    refcount::read(&bytes, order, index),
                    "order {order}, index {index}"
                );
            }
        }
    }
}
