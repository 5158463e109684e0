//! Refcounts set right where they are, in blocks that can be trusted.
//!
//! Raised and lowered in separate steps: a refcount is raised before anything else is done, so that nobody takes what
//! is in use, and lowered after everything else.

use std::ops::Range;

use block::{Result, Storage};

use super::Staged;
use crate::address::{ClusterIndex, HostOffset};
use crate::check::references::CHUNK;
use crate::check::stored::{GROUP, decode_group, group_bytes};
use crate::check::{CheckPhase, Checker, loose};
use crate::refcount;

/// Clusters whose refcounts are read at a time.
const PIECE: u64 = 1 << 16;

/// Which refcounts are set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Those that are too low.
    Raise,
    /// Those that are too high.
    Lower,
}

impl Checker<'_> {
    /// Whether a referenced cluster has no refcount block, so that raising its refcount takes a new one.
    pub(super) fn lacks_blocks(&self) -> bool {
        let keys = self.references.keys();
        let mut counts = vec![0; CHUNK as usize];
        keys.iter().any(|&key| {
            let clusters = key * CHUNK..(key + 1) * CHUNK;
            let bits = self.geometry.refcount_block_bits();
            if (clusters.start >> bits..=(clusters.end - 1) >> bits)
                .all(|index| self.block_offset(index).is_some())
            {
                return false;
            }
            if let Some(chunk) = self.references.chunk(key) {
                chunk.copy(0, &mut counts);
            }
            clusters
                .zip(&counts)
                .any(|(cluster, &count)| count > 0 && self.block_offset(cluster >> bits).is_none())
        })
    }

    /// Where the `index`-th refcount block is, as the refcount table says.
    fn block_offset(&self, index: u64) -> Option<HostOffset> {
        let entry = *self.stored.table().get(usize::try_from(index).ok()?)?;
        (entry != 0).then(|| loose::refcount_block(entry))
    }

    /// Sets refcounts to the number of references. The blocks must be [trusted](super::ForRepair). Returns how
    /// many were changed.
    pub(super) fn mend_refcounts(&mut self, staged: &Staged<'_>, direction: Direction) -> Result<u64> {
        let bits = self.geometry.refcount_block_bits();
        let clusters = self.file_clusters();
        let indices = self.block_indices(&self.references.keys(), clusters);
        let total = indices.iter().map(|range| range.end - range.start).sum();
        let mut changed = 0;
        for (done, index) in (0..).zip(indices.into_iter().flatten()) {
            self.tick(CheckPhase::Comparison, done, total)?;
            let Some(block) = self.block_offset(index) else {
                continue;
            };
            let first = index << bits;
            let end = (first + (1 << bits)).min(clusters);
            let mut at = first;
            while at < end {
                let piece = at..end.min(at + PIECE);
                at = piece.end;
                let place = block.0 + ((piece.start - first) << self.geometry.refcount_order) / 8;
                changed += self.mend_piece(staged, place, piece, direction)?;
            }
        }
        Ok(changed)
    }

    /// Sets the refcounts of `clusters`, which lie at `place`.
    fn mend_piece(
        &self,
        staged: &Staged<'_>,
        place: u64,
        clusters: Range<u64>,
        direction: Direction,
    ) -> Result<u64> {
        let order = self.geometry.refcount_order;
        let max = self.geometry.max_refcount();
        let groups = (clusters.end - clusters.start).div_ceil(GROUP as u64) as usize;
        let mut bytes = vec![0; groups * group_bytes(order)];
        staged.read_exact_at(&mut bytes, place)?;
        let mut changed = 0;
        for (number, bytes) in bytes.chunks_exact_mut(group_bytes(order)).enumerate() {
            let first = clusters.start + (number * GROUP) as u64;
            let (mut refcounts, mut counted) = ([0; GROUP], [0; GROUP]);
            decode_group(order, bytes, &mut refcounts);
            if let Some(chunk) = self.references.chunk(first / CHUNK) {
                chunk.copy((first % CHUNK) as usize, &mut counted);
            }
            let here = (clusters.end - first).min(GROUP as u64) as usize;
            let before = changed;
            for (index, (&stored, &references)) in refcounts[..here].iter().zip(&counted[..here]).enumerate()
            {
                let references = references.min(max);
                let wrong = match direction {
                    Direction::Raise => stored < references,
                    Direction::Lower => stored > references,
                };
                if wrong {
                    refcount::write(bytes, order, index, references);
                    changed += 1;
                }
            }
            if changed > before {
                staged.write_all_at(bytes, place + (number * group_bytes(order)) as u64)?;
            }
        }
        Ok(changed)
    }

    /// Whether refcount blocks count all these clusters.
    pub(super) fn has_blocks_for(&self, clusters: Range<u64>) -> bool {
        let bits = self.geometry.refcount_block_bits();
        (clusters.start >> bits..=(clusters.end - 1) >> bits).all(|index| self.block_offset(index).is_some())
    }

    /// References to a cluster, as far as a refcount can hold them.
    pub(super) fn countable_references(&self, cluster: ClusterIndex) -> u64 {
        self.references.get(cluster).min(self.geometry.max_refcount())
    }
}
