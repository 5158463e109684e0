//! What is on the disk and in no file: contents of deleted files above all, which stay where they were.
//!
//! Four places have them: blocks that are free; inodes that are free, which may have held a short content themselves; the
//! journal, which has older copies of metadata; and blocks that a file has without a content in them, since room was
//! reserved for it ("unwritten") or lies past its end.

use std::iter;
use std::ops::Range;

use block::Result;
use ext4_builder::format::FileType;
use ext4_reader::format::Blocks;

use crate::group_descriptor::Group;
use crate::{Editor, bitmap};

/// A file with hashes of its content behind its end (fs-verity).
const VERITY: u32 = 0x10_0000;

impl Editor {
    /// The bytes of the device that hold nothing of the filesystem, as it was last committed, sorted and apart from each
    /// other. They may be made zeros while nobody uses the filesystem.
    ///
    /// # Errors
    /// `InvalidInput` while there are changes that are not committed; `Corrupt`, `Unsupported`, `Io`.
    pub fn leftovers(&self) -> Result<Vec<Range<u64>>> {
        if self.failed || !self.staging.blocks().is_empty() {
            let message = "what the filesystem holds is known only when all changes are committed";
            return Err(block::Error::invalid(message));
        }
        let mut ranges = Vec::new();
        for number in 0..self.layout().groups() {
            let group = self.group(number)?;
            self.free_blocks_of(&group, &mut ranges)?;
            self.inodes_of(&group, &mut ranges)?;
        }
        if let Some(journal) = self.filesystem.journal()? {
            let mut log = journal.blocks.iter();
            // Its first block says that nothing is to be replayed.
            ranges.extend(log.by_ref().filter_map(|run| self.bytes_from(run, 1)));
        }
        Ok(merged(ranges))
    }

    fn free_blocks_of(&self, group: &Group, ranges: &mut Vec<Range<u64>>) -> Result<()> {
        let (bits, start) = (self.block_bitmap(group)?, self.first_block(group.number));
        let size = self.layout().block_size();
        let free = bitmap::clear_runs(&bits, self.blocks_in(group.number));
        ranges.extend(
            free.map(|run| (start + u64::from(run.start)) * size..(start + u64::from(run.end)) * size),
        );
        Ok(())
    }

    /// Free inodes of a group, and what those in use have without a content.
    fn inodes_of(&self, group: &Group, ranges: &mut Vec<Range<u64>>) -> Result<()> {
        let layout = self.layout();
        let (per_group, first) = (
            layout.inodes_per_group(),
            group.number * layout.inodes_per_group(),
        );
        let bits = self.inode_bitmap(group)?;
        let count = (layout.inodes() - first).min(per_group);
        let own = (layout.first_inode() - 1).saturating_sub(first).min(count);
        let table = group.inode_table() * layout.block_size();
        let place = |bit: u32| table + u64::from(bit) * u64::from(layout.inode_size());
        let mut used = own;
        for free in bitmap::clear_runs(&bits, count).chain(iter::once(count..count)) {
            for bit in used..free.start {
                self.empty_blocks_of(first + bit + 1, ranges)?;
            }
            let free = free.start.max(own)..free.end;
            used = free.end.max(own);
            ranges.push(place(free.start)..place(used));
        }
        Ok(())
    }

    fn empty_blocks_of(&self, number: u32, ranges: &mut Vec<Range<u64>>) -> Result<()> {
        let inode = self.load(number)?;
        if inode.file_type() != FileType::Regular || !Self::has_blocks(&inode) {
            return Ok(());
        }
        let inode = self.reader_inode(number)?;
        if inode.flags() & VERITY != 0 {
            return Ok(());
        }
        let size = self.layout().block_size();
        for run in self.filesystem.allocation(&inode)?.content {
            let from = if run.unwritten {
                0
            } else {
                inode.size().div_ceil(size)
            };
            ranges.extend(self.bytes_from(&run, from));
        }
        Ok(())
    }

    /// What a run has from a block of the file on.
    fn bytes_from(&self, run: &Blocks, logical: u64) -> Option<Range<u64>> {
        let skip = logical.saturating_sub(run.logical);
        let size = self.layout().block_size();
        (skip < run.len).then(|| (run.physical + skip) * size..(run.physical + run.len) * size)
    }
}

/// The same bytes in as few ranges as there can be.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => merged.push(range),
        }
    }
    merged
}
