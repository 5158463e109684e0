//! Gives out blocks, upwards from the start of the disk.
//!
//! A [`Cursor`] moves up and steps over the fixed places, the copies of superblock and descriptors, whose size has to be
//! known beforehand; nothing else has to. What is freed can be given out again, but not before it is certain that
//! nobody is still writing there ([`settle`](Allocator::settle)): who moves data does so in other threads.
//!
//! A disk that is too small for a tree is used up before all of the tree is known. Blocks are given out past its end
//! then, so that in the end it can be said how large it would have to be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

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
    /// Blocks that were passed besides the fixed places.
    taken: u64,
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
            taken: 0,
        }
    }

    /// Above all that was given out.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Blocks that it has given out.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// The next blocks that lie side by side: `count`, or those that are left before a fixed place.
    pub(crate) fn take(&mut self, count: u64) -> Run {
        let len = count.min(self.room());
        self.next += len;
        self.taken += len;
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
    /// The disk's end.
    end: u64,
    overflowed: bool,
    /// Free runs by start: their ends. None touches another.
    free: BTreeMap<u64, u64>,
    /// The same by length, for the best fit.
    by_len: BTreeSet<(u64, u64)>,
    /// Freed, but perhaps still being written to.
    unsettled: Vec<Run>,
}

impl Allocator {
    /// From `cursor` up to the block `end`, and from there on when all below is given out.
    pub(crate) fn new(cursor: Cursor, end: u64) -> Self {
        Self {
            cursor,
            end,
            overflowed: false,
            free: BTreeMap::new(),
            by_len: BTreeSet::new(),
            unsettled: Vec::new(),
        }
    }

    /// Above all that was ever given out.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether blocks past the end were given out.
    pub(crate) fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// `count` blocks, in as few runs as can be.
    pub(crate) fn allocate(&mut self, mut count: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        while count > 0 {
            let run = self.allocate_run(count);
            count -= run.end - run.start;
            runs.push(run);
        }
        runs
    }

    /// One block.
    pub(crate) fn allocate_block(&mut self) -> u64 {
        self.allocate_run(1).start
    }

    /// The smallest free run that holds `count` blocks, else what is next, else the largest free run.
    fn allocate_run(&mut self, count: u64) -> Run {
        if let Some(&(len, start)) = self.by_len.range((count, 0)..).next() {
            return self.take_free(start, len, count);
        }
        let room = self.cursor.room().min(self.end.saturating_sub(self.cursor.next));
        if room > 0 {
            return self.cursor.take(count.min(room));
        }
        if let Some(&(len, start)) = self.by_len.last() {
            return self.take_free(start, len, len);
        }
        self.overflowed = true;
        self.cursor.take(count)
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
        let runs = allocator.allocate(32_768 * 4);
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
        assert_eq!(allocator.allocate(100), [10..110]);
        for run in [20..25, 50..60, 25..30, 80..83] {
            allocator.release(run);
        }
        assert_eq!(allocator.allocate_block(), 110);
        allocator.settle();
        assert_eq!(allocator.free().collect::<Vec<_>>(), [20..30, 50..60, 80..83]);
        assert_eq!(allocator.allocate(3), [80..83]);
        assert_eq!(allocator.allocate(9), [20..29]);
        assert_eq!(allocator.allocate(11), [111..122]);
        assert_eq!(allocator.free().collect::<Vec<_>>(), [29..30, 50..60]);
    }

    #[test]
    fn fills_what_is_free_before_it_is_full() {
        let mut allocator = allocator(10, 20);
        assert_eq!(allocator.allocate(8), [10..18]);
        allocator.release(11..13);
        allocator.release(14..15);
        allocator.settle();
        assert_eq!(allocator.allocate(5), [18..20, 11..13, 14..15]);
        assert!(!allocator.overflowed());
        assert_eq!(allocator.allocate(1), [20..21]);
        assert!(allocator.overflowed());
    }
}
