//! What tables refer to, as ranges of host clusters in the order of the refcounts.

use std::ops::Range;

use block::Result;

use super::super::{Image, Writer};
use crate::address::HostOffset;

/// References to host clusters: any number of ranges, in any order, over each other or not.
///
/// Where they start and where they end is all that is kept. Sorted, that is a step function: how often each cluster is
/// referred to, from the first to the last.
#[derive(Debug, Default)]
pub(super) struct References {
    starts: Vec<u64>,
    ends: Vec<u64>,
}

/// References of some tables, apart where it matters that several may name one cluster.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// To whole clusters.
    pub(super) whole: References,
    /// To clusters that hold compressed data, of several guest clusters as a rule.
    pub(super) compressed: References,
}

impl References {
    /// Adds a reference to each of `clusters`.
    #[inline]
    pub(super) fn add(&mut self, clusters: Range<u64>) {
        match self.ends.last_mut() {
            Some(end) if *end == clusters.start => *end = clusters.end,
            _ => {
                self.starts.push(clusters.start);
                self.ends.push(clusters.end);
            }
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        self.starts.extend(other.starts);
        self.ends.extend(other.ends);
    }

    /// The ranges as they were added. Not after [`steps`](Self::steps).
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.starts
            .iter()
            .zip(&self.ends)
            .map(|(start, end)| *start..*end)
    }

    /// Ranges that do not overlap, ascending, and how often each of their clusters is referred to.
    pub(super) fn steps(&mut self) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        self.starts.sort_unstable();
        self.ends.sort_unstable();
        let mut starts = self.starts.iter().copied().peekable();
        let mut ends = self.ends.iter().copied().peekable();
        let (mut at, mut count) = (0, 0u64);
        std::iter::from_fn(move || {
            loop {
                let next = match (starts.peek(), ends.peek()) {
                    (Some(start), Some(end)) => *start.min(end),
                    (None, Some(end)) => *end,
                    (_, None) => return None,
                };
                let step = (at..next, count);
                while starts.next_if_eq(&next).is_some() {
                    count += 1;
                }
                while ends.next_if_eq(&next).is_some() {
                    count -= 1;
                }
                at = next;
                if step.1 > 0 {
                    return Some(step);
                }
            }
        })
    }
}

/// Entries that name one cluster each, in the order of these clusters.
#[derive(Debug)]
pub(super) struct Runs(Vec<Run>);

/// Entries next to each other that name clusters next to each other.
#[derive(Debug)]
struct Run {
    /// The first cluster.
    cluster: u64,
    /// The first entry's number.
    slot: u32,
    len: u32,
}

impl Runs {
    /// Takes the numbers of entries, ascending and below 2^32, and the host clusters that they name.
    pub(super) fn collect(image: &Image, entries: impl Iterator<Item = (usize, HostOffset)>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (slot, host) in entries {
            let (slot, cluster) = (slot as u32, image.geometry.cluster_of(host).0);
            match runs.last_mut() {
                Some(run) if run.cluster + u64::from(run.len) == cluster && run.slot + run.len == slot => {
                    run.len += 1;
                }
                _ => runs.push(Run {
                    cluster,
                    slot,
                    len: 1,
                }),
            }
        }
        runs.sort_unstable_by_key(|run| run.cluster);
        Self(runs)
    }

    /// Calls `found` with the number of each entry whose cluster has a refcount of exactly 1.
    pub(super) fn for_each_counted_once(&self, writer: &Writer, mut found: impl FnMut(usize)) -> Result<()> {
        let mut meta = writer.meta();
        for run in &self.0 {
            let clusters = run.cluster..run.cluster + u64::from(run.len);
            let (low, high) = meta.allocator.refcounts.extremes(clusters.clone())?;
            for (slot, cluster) in (run.slot as usize..).zip(clusters) {
                let once = if low == high {
                    low == 1
                } else {
                    meta.allocator
                        .refcounts
                        .refcount(crate::address::ClusterIndex(cluster))?
                        == 1
                };
                if once {
                    found(slot);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use block::test_utils::Rng;

    use super::*;

    #[test]
    fn steps_count_what_was_added() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let (mut references, mut counts) = (References::default(), [0u64; 100]);
            for _ in 0..rng.below(40) {
                let start = rng.below(90);
                let end = start + 1 + rng.below(10);
                references.add(start..end);
                counts[start as usize..end as usize]
                    .iter_mut()
                    .for_each(|count| *count += 1);
            }
            let (mut seen, mut last) = ([0; 100], 0);
            for (clusters, count) in references.steps() {
                assert!(
                    clusters.start >= last && clusters.start < clusters.end,
                    "seed {seed}"
                );
                last = clusters.end;
                seen[clusters.start as usize..clusters.end as usize].fill(count);
            }
            assert_eq!(seen, counts, "seed {seed}");
        }
    }
}
