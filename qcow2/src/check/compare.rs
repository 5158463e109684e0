//! The merge: stored refcounts against counted references, in ascending order of clusters.
//!
//! Only what may differ is visited: clusters that have a refcount block with something in it, and clusters that
//! were referenced. A refcount block that says something about clusters which nothing references need not be read
//! again once no more findings are kept: how many refcounts are not 0 is known.

use std::cmp::Ordering;
use std::ops::Range;

use block::Result;

use super::references::CHUNK;
use super::report::{Finding, Severity, TableKind};
use super::stored::{GROUP, Source, decode_group, group_bytes};
use super::{CheckPhase, Checker, loose};
use crate::address::{ClusterIndex, HostOffset};

/// Clusters whose refcounts are read at a time.
const PIECE: u64 = 1 << 16;
/// How many refcount blocks are compared between two reports of progress.
const TICK: u64 = 16;

/// What is in use of some clusters.
#[derive(Clone, Copy, Debug, Default)]
struct InUse {
    /// Refcounts that are not 0.
    refcounts: u64,
    /// The last cluster with a refcount or a reference.
    last: Option<u64>,
}

impl Checker<'_> {
    /// Counts the refcount blocks and checks where they are. The last references: a block must have no other.
    pub(super) fn count_refcount_blocks(&mut self) -> Result<()> {
        let clusters = self.file_clusters();
        let max = self.geometry.max_refcount();
        self.for_repair.distrusted = self.has_impossible_refcount_table(clusters);
        let table = self.header.refcount_table_offset;
        for index in 0..self.stored.table().len() {
            let entry = self.stored.table()[index];
            if entry == 0 {
                continue;
            }
            let (block, index) = (loose::refcount_block(entry), index as u64);
            let finding = if loose::refcount_reserved(entry) {
                Finding::ReservedBits {
                    table: TableKind::Refcount,
                    at: table + index * 8,
                    entry,
                }
            } else if !self.geometry.is_aligned(block.0) {
                Finding::Unaligned {
                    table: TableKind::Refcount,
                    at: table + index * 8,
                    entry,
                }
            } else if self.geometry.cluster_of(block).0 >= clusters {
                Finding::RefcountBlockOutside { index, block }
            } else {
                if self.count_region(block, self.geometry.cluster_size(), 1)? {
                    let cluster = self.geometry.cluster_of(block).0;
                    self.for_repair.refcount_structure.push(cluster);
                }
                let references = self.references.get(self.geometry.cluster_of(block));
                // Where refcounts have one bit, that is an overflow and nothing else.
                self.for_repair.distrusted |= references > 1;
                let references = references.min(max);
                if references == 1 {
                    continue;
                }
                Finding::RefcountBlockShared { index, references }
            };
            self.for_repair.distrusted = true;
            self.recorder.record(1, finding);
        }
        // What is written to the table would be read as something else. (An entry that takes the header for a table finds the
        // refcount table named there, wherever that lies.)
        let is_shared = |cluster| self.references.get(ClusterIndex(cluster)) > 1;
        self.for_repair.distrusted |= !is_shared(0) && self.refcount_table_clusters().any(is_shared);
        Ok(())
    }

    /// Whether the refcount table lies where the header places something else too, or past the end of the file.
    fn has_impossible_refcount_table(&self, clusters: u64) -> bool {
        let table = self.refcount_table_clusters();
        let others = [
            (HostOffset(0), 1),
            (self.header.l1_offset, u64::from(self.header.l1_entries) * 8),
            (
                self.header.snapshots_offset,
                u64::from(self.header.snapshot_count),
            ),
        ];
        let overlaps = |&(start, len): &(HostOffset, u64)| {
            let start = self.geometry.cluster_of(start).0;
            len > 0 && start < table.end && table.start < start.saturating_add(self.geometry.clusters(len))
        };
        table.end > clusters || others.iter().any(overlaps)
    }

    /// Clusters of the refcount table.
    pub(super) fn refcount_table_clusters(&self) -> Range<u64> {
        let start = self.geometry.cluster_of(self.header.refcount_table_offset).0;
        start..start + u64::from(self.header.refcount_table_clusters)
    }

    /// Compares everything, and says where the image ends.
    pub(super) fn compare(&mut self) -> Result<()> {
        let bits = self.geometry.refcount_block_bits();
        let clusters = self.file_clusters();
        let keys = self.references.keys();
        let indices = self.block_indices(&keys, clusters);
        let total = indices.iter().map(|range| range.end - range.start).sum();
        let (mut highest, mut done) = (0, 0);
        for index in indices.into_iter().flatten() {
            if done % TICK == 0 {
                self.tick(CheckPhase::Comparison, done, total)?;
            }
            done += 1;
            let first = index << bits;
            let end = (first + (1 << bits)).min(clusters);
            if let Some(last) = self.compare_block(index, first..end, &keys)? {
                highest = last;
            }
        }
        self.recorder.report.image_end_offset = (highest + 1) << self.geometry.cluster_bits;
        self.tick(CheckPhase::Comparison, total, total)
    }

    /// The numbers of the refcount blocks that have anything to compare, as ascending ranges.
    pub(super) fn block_indices(&self, keys: &[u64], clusters: u64) -> Vec<Range<u64>> {
        let bits = self.geometry.refcount_block_bits();
        let blocks = clusters.div_ceil(1 << bits).min(self.stored.table().len() as u64);
        let stored = (0..blocks)
            .filter(|&index| !matches!(self.stored.source(index), Source::Absent))
            .map(|index| index..index + 1);
        let counted = keys.iter().map(|key| {
            let first = key * CHUNK;
            let last = (first + CHUNK - 1).min(clusters - 1);
            first >> bits..(last >> bits) + 1
        });
        let mut ranges: Vec<_> = stored.chain(counted).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, kept| {
            let joins = next.start <= kept.end;
            if joins {
                kept.end = kept.end.max(next.end);
            }
            joins
        });
        ranges
    }

    /// Compares the clusters of one refcount block. Returns the last one that is in use.
    fn compare_block(&mut self, index: u64, clusters: Range<u64>, keys: &[u64]) -> Result<Option<u64>> {
        let len = clusters.end - clusters.start;
        let block = match self.stored.source(index) {
            Source::Unreadable(block) => {
                let finding = Finding::RefcountUnreadable {
                    first: ClusterIndex(clusters.start),
                    clusters: len,
                    block,
                };
                self.recorder.record(len, finding);
                for range in counted_ranges(keys, &clusters) {
                    for cluster in range.map(ClusterIndex) {
                        self.check_overflow(cluster, self.references.get(cluster));
                    }
                }
                return Ok(None);
            }
            Source::Absent => None,
            Source::Block(block) => Some((block.offset, block.used, block.last_used)),
        };
        let place = block.map(|(offset, ..)| offset);
        if let Some((_, used, last_used)) = block
            && (self.recorder.keeps() || last_used >= len)
        {
            debug_assert!(used > 0);
            return Ok(self.compare_clusters(place, clusters.start, clusters)?.last);
        }
        let mut total = InUse::default();
        let first_key = keys.partition_point(|key| (key + 1) * CHUNK <= clusters.start);
        for key in keys[first_key..]
            .iter()
            .take_while(|key| **key * CHUNK < clusters.end)
        {
            let range = clusters.start.max(key * CHUNK)..clusters.end.min((key + 1) * CHUNK);
            let part = self.compare_clusters(place, clusters.start, range)?;
            total.refcounts += part.refcounts;
            total.last = part.last.or(total.last);
        }
        if let Some((_, used, last_used)) = block {
            // Nothing references the rest.
            self.recorder.count(Severity::Leak, used - total.refcounts);
            total.last = total.last.max(Some(clusters.start + last_used));
        }
        Ok(total.last)
    }

    /// Compares `clusters` with what a refcount block (all zero without one) whose first cluster is `first` says.
    fn compare_clusters(
        &mut self,
        block: Option<HostOffset>,
        first: u64,
        clusters: Range<u64>,
    ) -> Result<InUse> {
        let order = self.geometry.refcount_order;
        let mut total = InUse::default();
        let mut bytes = Vec::new();
        let mut at = clusters.start;
        while at < clusters.end {
            let end = clusters.end.min(at + PIECE);
            bytes.clear();
            bytes.resize((end - at).div_ceil(GROUP as u64) as usize * group_bytes(order), 0);
            if let Some(block) = block {
                let offset = block.0 + ((at - first) << order) / 8;
                self.storage.read_exact_at(&mut bytes, offset)?;
            }
            for bytes in bytes.chunks_exact(group_bytes(order)) {
                let here = (end - at).min(GROUP as u64);
                self.compare_group(at..at + here, bytes, &mut total);
                at += here;
            }
        }
        Ok(total)
    }

    /// Compares a group of stored refcounts, those of `clusters`, with the counters.
    fn compare_group(&mut self, clusters: Range<u64>, bytes: &[u8], total: &mut InUse) {
        let (mut refcounts, mut counted) = ([0; GROUP], [0; GROUP]);
        match self.references.chunk(clusters.start / CHUNK) {
            Some(chunk) => chunk.copy((clusters.start % CHUNK) as usize, &mut counted),
            None if bytes.iter().all(|&byte| byte == 0) => return,
            None => {}
        }
        decode_group(self.geometry.refcount_order, bytes, &mut refcounts);
        let here = (clusters.end - clusters.start) as usize;
        let (refcounts, counted) = (&refcounts[..here], &counted[..here]);
        let max = self.geometry.max_refcount();
        if refcounts != counted || counted.iter().any(|&references| references > max) {
            for (cluster, (&refcount, &references)) in (clusters.start..).zip(refcounts.iter().zip(counted)) {
                self.compare_cluster(ClusterIndex(cluster), refcount, references);
            }
        }
        total.refcounts += refcounts
            .iter()
            .map(|&refcount| u64::from(refcount != 0))
            .sum::<u64>();
        let in_use = |(refcount, references): (&u64, &u64)| refcount | references != 0;
        if let Some(index) = refcounts.iter().zip(counted).rposition(in_use) {
            total.last = Some(clusters.start + index as u64);
        }
    }

    fn compare_cluster(&mut self, cluster: ClusterIndex, refcount: u64, references: u64) {
        self.check_overflow(cluster, references);
        let references = references.min(self.geometry.max_refcount());
        let finding = match refcount.cmp(&references) {
            Ordering::Equal => return,
            Ordering::Greater => Finding::Leak {
                cluster,
                refcount,
                references,
            },
            Ordering::Less => {
                self.for_repair.uncounted |= refcount == 0;
                Finding::RefcountTooLow {
                    cluster,
                    refcount,
                    references,
                }
            }
        };
        self.recorder.record(1, finding);
    }

    fn check_overflow(&mut self, cluster: ClusterIndex, references: u64) {
        let max = self.geometry.max_refcount();
        if references > max {
            let finding = Finding::RefcountOverflow {
                cluster,
                references,
                max,
            };
            self.recorder.record(references - max, finding);
        }
    }
}

/// The parts of `clusters` that have counters; `keys` are those of all counters, ascending.
pub(super) fn counted_ranges(keys: &[u64], clusters: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let Range { start, end } = *clusters;
    let first = keys.partition_point(|key| (key + 1) * CHUNK <= start);
    keys[first..]
        .iter()
        .map(|key| key * CHUNK)
        .take_while(move |counters| *counters < end)
        .map(move |counters| start.max(counters)..end.min(counters + CHUNK))
}
