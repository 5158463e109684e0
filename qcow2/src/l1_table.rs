//! The active L1 table in memory: a flat array of atomics that grows without moving, so that it is read without a
//! lock while an image is resized.

use std::sync::OnceLock;

use block::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::geometry::MAX_L1_BYTES;

/// Entries of a chunk; a chunk is allocated when its first entry is set, so that an empty table takes no memory.
const CHUNK: usize = 4096;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct L1Table {
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
    entries: AtomicUsize,
}

impl L1Table {
    /// A table of `entries` zeros.
    pub(crate) fn new(entries: usize) -> Self {
        let chunks = (MAX_L1_BYTES as usize / 8).div_ceil(CHUNK);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            entries: AtomicUsize::new(entries),
        }
    }

    /// Entries in the table.
    pub(crate) fn entries(&self) -> usize {
        self.entries.load(Ordering::Acquire)
    }

    /// Changes the number of entries. New ones are zero, provided those cut off earlier were set to zero.
    pub(crate) fn set_entries(&self, entries: usize) {
        self.entries.store(entries, Ordering::Release);
    }

    /// The entry's 64 bits; zero past the end.
    #[inline]
    pub(crate) fn load(&self, index: usize) -> u64 {
        let chunk = self.chunks.get(index / CHUNK).and_then(OnceLock::get);
        chunk.map_or(0, |chunk| chunk[index % CHUNK].load(Ordering::Acquire))
    }

    /// Sets an entry. `index` is below 4,194,304, the most that a table of 32 MiB holds.
    pub(crate) fn store(&self, index: usize, entry: u64) {
        let chunk = &self.chunks[index / CHUNK];
        if entry == 0 && chunk.get().is_none() {
            return;
        }
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(0)).collect());
        chunk[index % CHUNK].store(entry, Ordering::Release);
    }

    /// The entries from `start` on as they are stored in the file.
    pub(crate) fn to_bytes(&self, start: usize, count: usize) -> Vec<u8> {
        (start..start + count)
            .flat_map(|index| self.load(index).to_be_bytes())
            .collect()
    }
}
