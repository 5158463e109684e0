//! Which host clusters hold metadata, so that nothing else is ever written there.
//!
//! A sound image never maps guest data onto its own tables, nor has a refcount of zero for one of them. A damaged
//! or hostile one may do both, and without this map a guest's write would then change the tables that confine it.
//! Every write of guest data and every allocation asks here first.

use std::collections::HashMap;
use std::ops::Range;

use bitvec::prelude::{BitArr, BitArray, Lsb0};

use crate::address::ClusterIndex;

/// Clusters of a chunk. Chunks without metadata take no memory, so that the map's size goes with the metadata's,
/// whatever the length of the file.
const CHUNK: u64 = 4096;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct MetadataMap {
    chunks: HashMap<u64, BitArr!(for CHUNK as usize, in u64, Lsb0)>,
}

impl MetadataMap {
    pub(crate) fn insert(&mut self, clusters: Range<u64>) {
        for cluster in clusters {
            let chunk = self.chunks.entry(cluster / CHUNK).or_insert(BitArray::ZERO);
            chunk.set((cluster % CHUNK) as usize, true);
        }
    }

    pub(crate) fn remove(&mut self, clusters: Range<u64>) {
        let mut start = clusters.start;
        while start < clusters.end {
            let number = start / CHUNK;
            let end = clusters.end.min((number + 1) * CHUNK);
            if let Some(chunk) = self.chunks.get_mut(&number) {
                let base = number * CHUNK;
                chunk[(start - base) as usize..(end - base) as usize].fill(false);
            }
            start = end;
        }
    }

    /// The first cluster of `clusters` that holds metadata.
    pub(crate) fn first_in(&self, clusters: Range<u64>) -> Option<ClusterIndex> {
        let mut start = clusters.start;
        while start < clusters.end {
            let number = start / CHUNK;
            let end = clusters.end.min((number + 1) * CHUNK);
            if let Some(chunk) = self.chunks.get(&number) {
                let base = number * CHUNK;
                if let Some(bit) = chunk[(start - base) as usize..(end - base) as usize].first_one() {
                    return Some(ClusterIndex(start + bit as u64));
                }
            }
            start = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_across_chunks() {
        let mut map = MetadataMap::default();
        map.insert(5000..5002);
        map.insert(1 << 40..(1 << 40) + 1);
        assert_eq!(map.first_in(0..5000), None);
        assert_eq!(map.first_in(0..10_000), Some(ClusterIndex(5000)));
        assert_eq!(map.first_in(5001..1 << 20), Some(ClusterIndex(5001)));
        map.remove(5000..5002);
        assert_eq!(map.first_in(0..10_000), None);
        assert_eq!(
            map.first_in((1 << 40)..(1 << 40) + 1),
            Some(ClusterIndex(1 << 40))
        );
    }
}
