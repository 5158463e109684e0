//! Room for new metadata: clusters that nothing references, whatever their refcounts say.
//!
//! It is found at the end of the file, where nothing at all can be overwritten, and between what is referenced where the
//! storage cannot grow.
//!
//! A file that was cut has things behind its end that something references. In a longer file they would be there, as zeros,
//! and nobody could tell any more that they are lost. So room is first looked for between what is referenced, and the file
//! grows no further than to the first of them.

use std::collections::BTreeSet;

use block::{Error, ErrorKind, Result, Storage};

use crate::address::ClusterIndex;
use crate::check::Checker;
use crate::check::references::References;
use crate::geometry::MAX_HOST_OFFSET;

/// Gives out unreferenced clusters, and counts a reference to each.
#[derive(Debug)]
pub(super) struct Room<'c> {
    pub(super) references: &'c mut References,
    /// Clusters that must be left alone although nothing references them.
    avoided: BTreeSet<u64>,
    next: u64,
    /// One past the last cluster that may be given out.
    end: u64,
    taken: BTreeSet<u64>,
}

impl<'c> Room<'c> {
    /// Room behind the file, which ends before cluster `end`, and in front of cluster `limit`.
    pub(super) fn behind(references: &'c mut References, end: u64, limit: u64) -> Self {
        Self {
            references,
            avoided: BTreeSet::new(),
            next: end,
            end: limit,
            taken: BTreeSet::new(),
        }
    }

    /// Room in the whole clusters in front of `end`.
    pub(super) fn within(references: &'c mut References, end: u64, avoided: BTreeSet<u64>) -> Self {
        Self {
            references,
            avoided,
            next: 1,
            end,
            taken: BTreeSet::new(),
        }
    }

    /// The next run of `count` clusters.
    pub(super) fn take(&mut self, count: u64) -> Result<u64> {
        let mut start = self.next;
        let mut cluster = start;
        while cluster < start + count {
            if cluster >= self.end {
                let message = "there is no room for new metadata, and the image cannot grow";
                return Err(Error::new(ErrorKind::NoSpace, message));
            }
            if self.references.get(ClusterIndex(cluster)) != 0 || self.avoided.contains(&cluster) {
                start = cluster + 1;
            }
            cluster += 1;
        }
        for cluster in start..start + count {
            self.references.add(ClusterIndex(cluster), 1)?;
            self.taken.insert(cluster);
        }
        if count == 1 {
            self.next = start + 1;
        }
        Ok(start)
    }

    /// Takes back a cluster that was given out.
    pub(super) fn take_back(&mut self, cluster: u64) {
        if self.taken.remove(&cluster) {
            self.references.remove(ClusterIndex(cluster));
        }
    }

    /// Takes back everything that was given out.
    pub(super) fn take_back_all(&mut self) {
        while let Some(cluster) = self.taken.pop_first() {
            self.references.remove(ClusterIndex(cluster));
        }
    }
}

/// Whether a storage can become longer.
pub(super) fn can_grow(storage: &dyn Storage) -> bool {
    let same_len = storage.len().and_then(|len| storage.set_len(len));
    !same_len.is_err_and(|error| error.kind() == ErrorKind::Unsupported)
}

/// Whether there was no room.
pub(super) fn is_no_space<T>(result: &Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::NoSpace)
}

/// Does what takes clusters, which are referenced from then on, in the best room that has enough. Those in `old` are
/// not taken.
pub(super) fn in_best_room<T>(
    checker: &mut Checker<'_>,
    can_grow: bool,
    old: &BTreeSet<u64>,
    mut place: impl FnMut(&mut Room<'_>) -> Result<T>,
) -> Result<T> {
    let whole = checker.file_len >> checker.geometry.cluster_bits;
    let end = checker.geometry.clusters(checker.file_len);
    let limit = checker.for_repair.first_missing;
    let inside_first = !can_grow || limit.is_some();
    let limit = limit.unwrap_or(MAX_HOST_OFFSET >> checker.geometry.cluster_bits);
    let references = &mut checker.references;
    let mut inside = |references: &mut _| place(&mut Room::within(references, whole, old.clone()));
    let first = inside_first.then(|| inside(references));
    match first {
        Some(result) if !can_grow || !is_no_space(&result) => return result,
        _ => {}
    }
    let behind = place(&mut Room::behind(references, end, limit));
    if inside_first || !is_no_space(&behind) {
        return behind;
    }
    match place(&mut Room::within(references, whole, old.clone())) {
        // Why the file cannot grow says more than that nothing in it is free.
        within if is_no_space(&within) => behind,
        within => within,
    }
}
