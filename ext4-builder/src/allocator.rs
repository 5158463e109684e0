//! Gives out blocks, upwards from the start of the disk.
//!
//! A [`Cursor`] moves up and steps over the fixed places, the copies of superblock and descriptors, whose size has to be
//! known beforehand; nothing else has to. What is freed can be given out again, but not before it is certain that
//! nobody is still writing there ([`settle`](Allocator::settle)): who moves data does so in other threads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use block::{Error, ErrorKind, Result};

use crate::geometry::{Geometry, next_with_superblock};

/// Blocks side by side.
pub(crate) type Run = Range<u64>;

/// A position that moves upwards, and over the fixed places.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    geometry: Geometry,
    /// Blocks of each fixed place.
    copy_blocks: u32,
    next: u64,
    /// The first group from `next` on that has a copy.
    copy: u32,
}

impl Cursor {
    /// Behind the copy in group 0, the first of those of `copy_blocks` each.
    pub(crate) fn new(geometry: Geometry, copy_blocks: u32) -> Self {
        let next = geometry.first_block(0) + u64::from(copy_blocks);
        Self {
            geometry,
            copy_blocks,
            next,
            copy: 1,
        }
    }

    /// Above all that was given out.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The next blocks that lie side by side: `count`, or those that are left before a fixed place.
    pub(crate) fn take(&mut self, count: u64) -> Run {
        let len = count.min(self.room());
        self.next += len;
        self.next - len..self.next
    }

    /// `count` blocks side by side, which is no more than there can be. What is too short before that is skipped.
    pub(crate) fn take_contiguous(&mut self, count: u64, skipped: &mut Vec<Run>) -> Run {
        while self.room() < count {
            skipped.push(self.take(u64::MAX));
        }
        self.take(count)
    }

    /// `count` blocks.
    pub(crate) fn take_all(&mut self, mut count: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        while count > 0 {
            let run = self.take(count);
            count -= run.end - run.start;
            runs.push(run);
        }
        runs
    }

    /// Moves up to `block`, or behind the fixed place that is there.
    pub(crate) fn move_to(&mut self, block: u64) {
        while self.room() > 0 && self.next < block {
            self.take(block - self.next);
        }
        self.room();
    }

    /// Blocks up to the next fixed place, from behind the one that is here.
    fn room(&mut self) -> u64 {
        if self.next == self.geometry.first_block(self.copy) {
            self.next += u64::from(self.copy_blocks);
            self.copy = next_with_superblock(self.copy);
        }
        self.geometry.first_block(self.copy) - self.next
    }
}

/// Blocks in use below a cursor, and those that were freed again.
#[derive(Debug)]
pub(crate) struct Allocator {
    cursor: Cursor,
    /// No block from here on can be given out.
    end: u64,
    /// Free runs by start: their ends. None touches another.
    free: BTreeMap<u64, u64>,
    /// The same by length, for the best fit.
    by_len: BTreeSet<(u64, u64)>,
    /// Freed, but perhaps still being written to.
    unsettled: Vec<Run>,
}

impl Allocator {
    /// From `cursor` up to the block `end`.
    pub(crate) fn new(cursor: Cursor, end: u64) -> Self {
        Self {
            cursor,
            end,
            free: BTreeMap::new(),
            by_len: BTreeSet::new(),
            unsettled: Vec::new(),
        }
    }

    /// Above all that was ever given out.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// `count` blocks, in as few runs as can be.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn allocate(&mut self, mut count: u64) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        while count > 0 {
            let run = self.allocate_run(count).inspect_err(|_| {
                for run in runs.drain(..) {
                    self.unsettled.push(run);
                }
            })?;
            count -= run.end - run.start;
            runs.push(run);
        }
        Ok(runs)
    }

    /// One block.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn allocate_block(&mut self) -> Result<u64> {
        Ok(self.allocate_run(1)?.start)
    }

    /// The smallest free run that holds `count` blocks, else what is next, else the largest free run.
    fn allocate_run(&mut self, count: u64) -> Result<Run> {
        if let Some(&(len, start)) = self.by_len.range((count, 0)..).next() {
            return Ok(self.take_free(start, len, count));
        }
        let room = self.cursor.room().min(self.end.saturating_sub(self.cursor.next));
        if room > 0 {
            return Ok(self.cursor.take(count.min(room)));
        }
        match self.by_len.last() {
            Some(&(len, start)) => Ok(self.take_free(start, len, len)),
            None => Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "the filesystem is full: {count} more blocks do not fit on {}",
                    self.end
                ),
            )
            .with_hint("choose a larger size, or none to have what fits")),
        }
    }

    fn take_free(&mut self, start: u64, len: u64, count: u64) -> Run {
        self.by_len.remove(&(len, start));
        self.free.remove(&start);
        if count < len {
            self.put_free(start + count..start + len);
        }
        start..start + count
    }

    fn put_free(&mut self, run: Run) {
        self.free.insert(run.start, run.end);
        self.by_len.insert((run.end - run.start, run.start));
    }

    /// Takes blocks back. They are not given out again before all is settled.
    pub(crate) fn release(&mut self, run: Run) {
        self.unsettled.push(run);
    }

    /// Nobody writes to blocks that were given back before this.
    pub(crate) fn settle(&mut self) {
        for mut run in std::mem::take(&mut self.unsettled) {
            if let Some((&start, &end)) = self.free.range(..run.start).next_back()
                && end == run.start
            {
                self.take_free(start, end - start, end - start);
                run.start = start;
            }
            if let Some(&end) = self.free.get(&run.end) {
                self.take_free(run.end, end - run.end, end - run.end);
                run.end = end;
            }
            self.put_free(run);
        }
    }

    /// What is free below the cursor, in order.
    pub(crate) fn free(&self) -> impl Iterator<Item = Run> {
        self.free.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Runs are ranges, and there may be one.
mod tests {
    use super::*;

    fn allocator(copy_blocks: u32, end: u64) -> Allocator {
        Allocator::new(Cursor::new(Geometry::new(4096), copy_blocks), end)
    }

    #[test]
    fn steps_over_the_copies() {
        let mut allocator = allocator(10, u64::MAX);
        let runs = allocator.allocate(32_768 * 4).unwrap();
        assert_eq!(runs, [10..32_768, 32_778..98_304, 98_314..131_102]);
        let mut cursor = Cursor::new(Geometry::new(4096), 10);
        cursor.move_to(32_768 * 3 + 4);
        assert_eq!(cursor.next(), 32_768 * 3 + 10);
        cursor.take(7);
        let mut skipped = Vec::new();
        assert_eq!(cursor.take_contiguous(65_520, &mut skipped), 163_850..229_370);
        assert_eq!(skipped, [98_321..163_840]);
    }

    #[test]
    fn what_is_freed_comes_back_when_it_is_settled_and_the_best_fit_first() {
        let mut allocator = allocator(10, u64::MAX);
        assert_eq!(allocator.allocate(100).unwrap(), [10..110]);
        for run in [20..25, 50..60, 25..30, 80..83] {
            allocator.release(run);
        }
        assert_eq!(allocator.allocate_block().unwrap(), 110);
        allocator.settle();
        assert_eq!(allocator.free().collect::<Vec<_>>(), [20..30, 50..60, 80..83]);
        assert_eq!(allocator.allocate(3).unwrap(), [80..83]);
        assert_eq!(allocator.allocate(9).unwrap(), [20..29]);
        assert_eq!(allocator.allocate(11).unwrap(), [111..122]);
        assert_eq!(allocator.free().collect::<Vec<_>>(), [29..30, 50..60]);
    }

    #[test]
    fn fills_what_is_free_before_it_is_full() {
        let mut allocator = allocator(10, 20);
        assert_eq!(allocator.allocate(8).unwrap(), [10..18]);
        allocator.release(11..13);
        allocator.release(14..15);
        allocator.settle();
        assert_eq!(allocator.allocate(5).unwrap(), [18..20, 11..13, 14..15]);
        assert_eq!(allocator.allocate(1).unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
