//! How many references each cluster of the file has: the one big table of a check.
//!
//! Counters live in chunks that appear with their first reference, so that memory follows what is referenced and
//! not how long a file says it is. A counter is one byte wide until a count in its chunk outgrows that; then the
//! chunk's counters become two, and at last eight bytes wide. An image without snapshots thus costs a byte for each
//! cluster: 16 MiB for 1 TiB in clusters of 64 KiB.
//!
//! A damaged file of a few MiB can name clusters all over its 2^63 bytes, each in a chunk of its own. Chunks
//! therefore have a budget that follows from what the file takes on its host.

use std::collections::HashMap;
use std::ops::Range;

use block::{Error, ErrorKind, Result};

use crate::address::ClusterIndex;

/// log2 of the counters in a chunk.
const CHUNK_BITS: u32 = 14;
/// Counters in a chunk.
pub(super) const CHUNK: u64 = 1 << CHUNK_BITS;
/// Bytes of counters that any file may cost: 16 TiB of clusters of 64 KiB.
const MIN_BUDGET: u64 = 256 << 20;

/// Counters of [`CHUNK`] consecutive clusters.
#[derive(Debug)]
pub(super) enum Chunk {
    Narrow(Box<[u8]>),
    Medium(Box<[u16]>),
    Wide(Box<[u64]>),
}

impl Chunk {
    fn bytes(&self) -> u64 {
        CHUNK
            * match self {
                Self::Narrow(_) => 1,
                Self::Medium(_) => 2,
                Self::Wide(_) => 8,
            }
    }

    #[inline]
    fn get(&self, index: usize) -> u64 {
        match self {
            Self::Narrow(counters) => u64::from(counters[index]),
            Self::Medium(counters) => u64::from(counters[index]),
            Self::Wide(counters) => counters[index],
        }
    }

    /// Adds, unless the counter is too narrow for the sum.
    #[inline]
    fn add(&mut self, index: usize, times: u64) -> bool {
        let sum = self.get(index).saturating_add(times);
        match self {
            Self::Narrow(counters) => store(&mut counters[index], sum),
            Self::Medium(counters) => store(&mut counters[index], sum),
            Self::Wide(counters) => store(&mut counters[index], sum),
        }
    }

    fn set_zero(&mut self, index: usize) {
        match self {
            Self::Narrow(counters) => counters[index] = 0,
            Self::Medium(counters) => counters[index] = 0,
            Self::Wide(counters) => counters[index] = 0,
        }
    }

    /// Adds to a run of counters, unless one of them is too narrow for the sum or counters have become wide, which is rare.
    #[inline]
    fn add_run(&mut self, run: Range<usize>, times: u64) -> bool {
        let (Self::Narrow(counters), Ok(times)) = (self, u8::try_from(times)) else {
            return false;
        };
        let counters = &mut counters[run];
        // Two passes without a branch, each of many counters at once.
        let most = counters.iter().fold(0, |most, counter| most.max(*counter));
        if most > u8::MAX - times {
            return false;
        }
        for counter in counters {
            *counter += times;
        }
        true
    }

    fn decrement(&mut self, index: usize) {
        match self {
            Self::Narrow(counters) => counters[index] = counters[index].saturating_sub(1),
            Self::Medium(counters) => counters[index] = counters[index].saturating_sub(1),
            Self::Wide(counters) => counters[index] = counters[index].saturating_sub(1),
        }
    }

    fn widen(&mut self) {
        *self = match self {
            Self::Narrow(counters) => Self::Medium(counters.iter().map(|&count| count.into()).collect()),
            Self::Medium(counters) => Self::Wide(counters.iter().map(|&count| count.into()).collect()),
            Self::Wide(_) => return,
        };
    }

    /// Copies the counters from `first` on.
    pub(super) fn copy(&self, first: usize, out: &mut [u64]) {
        let range = first..first + out.len();
        match self {
            Self::Narrow(counters) => copy(&counters[range], out),
            Self::Medium(counters) => copy(&counters[range], out),
            Self::Wide(counters) => copy(&counters[range], out),
        }
    }
}

fn store<T: TryFrom<u64>>(counter: &mut T, count: u64) -> bool {
    T::try_from(count).map(|count| *counter = count).is_ok()
}

fn copy<T: Copy + Into<u64>>(counters: &[T], out: &mut [u64]) {
    for (out, &count) in out.iter_mut().zip(counters) {
        *out = count.into();
    }
}

/// References counted so far, by cluster.
#[derive(Debug)]
pub(super) struct References {
    chunks: Vec<Chunk>,
    /// Place in `chunks` by cluster number / [`CHUNK`].
    places: HashMap<u64, usize>,
    /// The key and place last used: consecutive clusters take one look-up in all.
    last: (u64, usize),
    /// One past the highest cluster referenced.
    end: u64,
    /// Bytes that further chunks may take.
    budget: u64,
    limit: u64,
}

impl References {
    /// `host_bytes`: what the file takes on its host. The entry that holds a reference takes at least 8 bytes.
    pub(super) fn new(host_bytes: u64) -> Self {
        let limit = (host_bytes / 4).max(MIN_BUDGET);
        Self {
            chunks: Vec::new(),
            places: HashMap::new(),
            last: (u64::MAX, 0),
            end: 0,
            budget: limit,
            limit,
        }
    }

    /// Counts `times` references to a cluster.
    ///
    /// # Errors
    /// `Unsupported` when the counters would take more memory than a sound file can need.
    #[inline]
    pub(super) fn add(&mut self, cluster: ClusterIndex, times: u64) -> Result<()> {
        let (key, index) = (cluster.0 >> CHUNK_BITS, (cluster.0 % CHUNK) as usize);
        if key != self.last.0 {
            self.last = (key, self.place(key)?);
        }
        self.end = self.end.max(cluster.0 + 1);
        while !self.chunks[self.last.1].add(index, times) {
            self.widen_last()?;
        }
        Ok(())
    }

    /// Counts `times` references to each of a run of clusters.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn add_run(&mut self, clusters: Range<u64>, times: u64) -> Result<()> {
        let mut start = clusters.start;
        while start < clusters.end {
            let key = start >> CHUNK_BITS;
            let end = clusters.end.min((key + 1) << CHUNK_BITS);
            if key != self.last.0 {
                self.last = (key, self.place(key)?);
            }
            let first = (start % CHUNK) as usize;
            if self.chunks[self.last.1].add_run(first..first + (end - start) as usize, times) {
                self.end = self.end.max(end);
            } else {
                (start..end).try_for_each(|cluster| self.add(ClusterIndex(cluster), times))?;
            }
            start = end;
        }
        Ok(())
    }

    /// Takes back one reference to a cluster, which must have been counted.
    pub(super) fn remove(&mut self, cluster: ClusterIndex) {
        if let Some(&place) = self.places.get(&(cluster.0 >> CHUNK_BITS)) {
            self.chunks[place].decrement((cluster.0 % CHUNK) as usize);
        }
    }

    /// Takes back all references to a cluster.
    pub(super) fn clear(&mut self, cluster: ClusterIndex) {
        if let Some(&place) = self.places.get(&(cluster.0 >> CHUNK_BITS)) {
            self.chunks[place].set_zero((cluster.0 % CHUNK) as usize);
        }
    }

    /// References to a cluster.
    pub(super) fn get(&self, cluster: ClusterIndex) -> u64 {
        self.chunk(cluster.0 >> CHUNK_BITS)
            .map_or(0, |chunk| chunk.get((cluster.0 % CHUNK) as usize))
    }

    /// One past the highest cluster referenced.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The counters of the clusters from `key * CHUNK` on, if one of them was ever referenced.
    pub(super) fn chunk(&self, key: u64) -> Option<&Chunk> {
        self.places.get(&key).map(|&place| &self.chunks[place])
    }

    /// The keys of all chunks, ascending.
    pub(super) fn keys(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.places.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    fn place(&mut self, key: u64) -> Result<usize> {
        if let Some(&place) = self.places.get(&key) {
            return Ok(place);
        }
        self.spend(CHUNK)?;
        self.places.insert(key, self.chunks.len());
        self.chunks
            .push(Chunk::Narrow(vec![0; CHUNK as usize].into_boxed_slice()));
        Ok(self.chunks.len() - 1)
    }

    #[cold]
    fn widen_last(&mut self) -> Result<()> {
        let place = self.last.1;
        let before = self.chunks[place].bytes();
        self.spend(before * if before == CHUNK { 1 } else { 3 })?;
        self.chunks[place].widen();
        Ok(())
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.budget = self.budget.checked_sub(bytes).ok_or_else(|| {
            let limit = self.limit >> 20;
            Error::new(
                ErrorKind::Unsupported,
                format!("counting the references takes more than {limit} MiB: they are scattered too widely"),
            )
            .with_hint("no writer makes such an image; if it can be read, convert it to a new one")
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_at_every_width() {
        let mut references = References::new(0);
        let cluster = |i: u64| ClusterIndex(i * 1_000_003);
        for (i, times) in [1, 255, 256, 65_535, 65_536, u64::MAX].into_iter().enumerate() {
            references.add(cluster(i as u64), times).unwrap();
            assert_eq!(references.get(cluster(i as u64)), times);
        }
        references.add(cluster(1), 1).unwrap();
        references.add(cluster(5), 1).unwrap();
        assert_eq!(references.get(cluster(1)), 256);
        assert_eq!(references.get(cluster(5)), u64::MAX);
        assert_eq!(references.end(), 5_000_016);
    }

    #[test]
    fn widening_keeps_the_neighbours() {
        let mut references = References::new(0);
        for i in 0..100 {
            references.add(ClusterIndex(i), i).unwrap();
        }
        references.add(ClusterIndex(7), 1 << 40).unwrap();
        let mut counts = [0; 100];
        references.chunk(0).unwrap().copy(0, &mut counts);
        for (i, &count) in (0u64..).zip(&counts) {
            assert_eq!(count, if i == 7 { 7 + (1 << 40) } else { i });
        }
    }

    #[test]
    fn a_run_is_as_its_clusters_one_by_one() {
        let (mut runs, mut singles) = (References::new(0), References::new(0));
        let mut rng = block::test_utils::Rng::new(7);
        for _ in 0..300 {
            let start = rng.below(2 * CHUNK);
            let (end, times) = (start + rng.below(CHUNK), 1 + rng.below(4));
            runs.add_run(start..end, times).unwrap();
            for cluster in start..end {
                singles.add(ClusterIndex(cluster), times).unwrap();
            }
        }
        assert_eq!(runs.end(), singles.end());
        for cluster in (0..runs.end()).map(ClusterIndex) {
            assert_eq!(runs.get(cluster), singles.get(cluster), "{cluster:?}");
        }
    }

    #[test]
    fn scattered_references_meet_the_budget() {
        let mut references = References::new(0);
        let error = (0..1 << 20)
            .find_map(|i| references.add(ClusterIndex(i << 30), 1).err())
            .expect("no limit");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
