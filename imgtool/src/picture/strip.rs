//! Bytes of a range, counted by cell and class.

use std::ops::Range;

use super::{CELLS, COLOURS, Class};
use crate::output::human_size;

/// Counts for each class.
pub(super) type Counts = [u64; Class::COUNT];

/// A range of a disk or a file, in cells of nearly the same length.
#[derive(Clone, Debug)]
pub(super) struct Strip {
    /// Bytes of the range.
    pub(super) len: u64,
    /// Bytes of each class in each cell.
    pub(super) cells: Vec<Counts>,
    /// In all of them.
    pub(super) totals: Counts,
}

impl Strip {
    pub(super) fn new(len: u64) -> Self {
        Self {
            len,
            cells: vec![[0; Class::COUNT]; len.min(CELLS) as usize],
            totals: [0; Class::COUNT],
        }
    }

    /// Where a cell starts.
    pub(super) fn start_of(&self, cell: usize) -> u64 {
        let start = u128::from(self.len) * cell as u128 / self.cells.len().max(1) as u128;
        // No more than the length, which fits.
        start as u64
    }

    pub(super) fn cell(&self, cell: usize) -> Range<u64> {
        self.start_of(cell)..self.start_of(cell + 1)
    }

    /// Counts `len` bytes at `offset`; what lies outside the range is left out.
    pub(super) fn add(&mut self, offset: u64, len: u64, class: Class) {
        let end = offset.saturating_add(len).min(self.len);
        if offset >= end {
            return;
        }
        let index = class.index();
        self.totals[index] += end - offset;
        // A cell before it at most, as the start of one is rounded down.
        let mut cell = (u128::from(offset) * self.cells.len() as u128 / u128::from(self.len)) as usize;
        let mut at = offset;
        while at < end {
            let cell_end = self.start_of(cell + 1);
            let part = end.min(cell_end).saturating_sub(at);
            self.cells[cell][index] += part;
            at += part;
            cell += 1;
        }
    }

    pub(super) fn total(&self, class: Class) -> u64 {
        self.totals[class.index()]
    }

    /// `12 MiB data, 1 MiB compressed`
    pub(super) fn figures(&self) -> String {
        let sum = |of: fn(usize) -> Class| (0..COLOURS).map(|layer| self.total(of(layer))).sum::<u64>();
        let parts = [
            (sum(Class::Data), "data"),
            (sum(Class::Compressed), "compressed"),
            (self.total(Class::Zero), "zeros"),
        ];
        let parts = parts
            .into_iter()
            .filter(|(bytes, what)| *bytes > 0 || *what == "data");
        let parts = parts.map(|(bytes, what)| format!("{} {what}", human_size(bytes)));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// Takes from one class what another counts: in each cell, no more than there is.
    pub(super) fn subtract(&mut self, class: Class, taken: Class) {
        for counts in self.cells.iter_mut().chain([&mut self.totals]) {
            counts[class.index()] = counts[class.index()].saturating_sub(counts[taken.index()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_counted_once_and_in_its_cell() {
        for len in [1, 5, 959, 960, 961, 1000, 1 << 20, (1 << 40) + 7, u64::MAX / 2] {
            let mut strip = Strip::new(len);
            let mut at = 0;
            let mut step = 1;
            while at < len {
                strip.add(at, step.min(len - at), Class::Data(step as usize % 3));
                at += step.min(len - at);
                step = step.saturating_mul(3).saturating_add(1);
            }
            let total: u64 = strip.totals.iter().sum();
            assert_eq!(total, len);
            for cell in 0..strip.cells.len() {
                let range = strip.cell(cell);
                assert_eq!(
                    strip.cells[cell].iter().sum::<u64>(),
                    range.end - range.start,
                    "{len}: {cell}"
                );
            }
        }
    }

    #[test]
    fn what_lies_outside_is_left_out() {
        let mut strip = Strip::new(1000);
        strip.add(1000, 5, Class::Zero);
        strip.add(990, u64::MAX, Class::Zero);
        assert_eq!(strip.total(Class::Zero), 10);
        let mut none = Strip::new(0);
        none.add(0, 10, Class::Zero);
        assert_eq!(none.total(Class::Zero), 0);
    }
}
