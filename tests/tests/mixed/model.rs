//! What an image must hold: its disk, its snapshots, and which parts of the disk its bitmaps call dirty.

use std::ops::Range;

/// A dirty bitmap.
#[derive(Clone, Debug)]
pub(crate) struct Track {
    pub(crate) name: String,
    pub(crate) granularity: u64,
    pub(crate) enabled: bool,
    /// A bit for each granule; `None` for a bitmap that nobody came to save.
    pub(crate) bits: Option<Vec<bool>>,
}

impl Track {
    pub(crate) fn new(name: String, granularity: u64, enabled: bool, size: usize) -> Self {
        let bits = Some(vec![false; size.div_ceil(granularity as usize)]);
        Self {
            name,
            granularity,
            enabled,
            bits,
        }
    }

    /// What is dirty on a disk of `size` bytes: in runs, from the first byte of each to one past its last.
    pub(crate) fn ranges(&self, size: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let bits = self.bits.iter().flatten().enumerate();
        for (number, _) in bits.filter(|(_, dirty)| **dirty) {
            let start = number as u64 * self.granularity;
            let end = size.min(start + self.granularity);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    fn set(&mut self, range: &Range<usize>) {
        let granularity = self.granularity as usize;
        if let Some(bits) = &mut self.bits {
            bits[range.start / granularity..range.end.div_ceil(granularity)].fill(true);
        }
    }

    fn resize(&mut self, size: usize) {
        let count = size.div_ceil(self.granularity as usize);
        if let Some(bits) = &mut self.bits {
            bits.resize(count, false);
        }
    }
}

/// An internal snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) name: String,
    pub(crate) disk: Vec<u8>,
}

/// Everything that an image holds.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) disk: Vec<u8>,
    pub(crate) snapshots: Vec<Taken>,
    pub(crate) bitmaps: Vec<Track>,
}

impl Model {
    pub(crate) fn new(disk: Vec<u8>) -> Self {
        Self {
            disk,
            snapshots: Vec::new(),
            bitmaps: Vec::new(),
        }
    }

    /// Sets bits of the enabled bitmaps.
    pub(crate) fn mark(&mut self, range: &Range<usize>) {
        for track in self.bitmaps.iter_mut().filter(|track| track.enabled) {
            track.set(range);
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8], range: &Range<usize>) {
        self.mark(range);
        self.disk[range.clone()].copy_from_slice(bytes);
    }

    pub(crate) fn zero(&mut self, range: &Range<usize>) {
        self.mark(range);
        self.disk[range.clone()].fill(0);
    }

    pub(crate) fn resize(&mut self, size: usize) {
        self.disk.resize(size, 0);
        for track in &mut self.bitmaps {
            track.resize(size);
        }
    }

    /// Going back to a snapshot makes all of the disk dirty.
    pub(crate) fn go_back(&mut self, number: usize) {
        self.resize(self.snapshots[number].disk.len());
        self.disk.clone_from(&self.snapshots[number].disk);
        self.mark(&(0..self.disk.len()));
    }

    /// A bitmap whose bits nobody knows stands in the way of another size.
    pub(crate) fn can_resize(&self) -> bool {
        self.bitmaps.iter().all(|track| track.bits.is_some())
    }
}

impl Model {
    /// Makes dirty in one bitmap what is so in another.
    pub(crate) fn merge(&mut self, number: usize, source: usize) {
        for range in self.bitmaps[source].ranges(self.disk.len() as u64) {
            self.bitmaps[number].set(&(range.start as usize..range.end as usize));
        }
    }
}
