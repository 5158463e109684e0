//! Copy-on-write, as arithmetic: what a write to some clusters makes of their L2 entries, and what of the old data has
//! to be copied around it.
//!
//! The unit is the subcluster; without extended L2 entries a cluster has one. A write allocates the subclusters that
//! it touches, and copies the rest of those that it touches in part. Where the cluster keeps its host cluster, that
//! is all: what is allocated in it stays, and may be being read and written to meanwhile. Where it moves to a new one
//! (its old host cluster is shared with a snapshot), the other allocated subclusters are copied too; and all of them
//! where it was compressed.

use std::ops::Range;

use crate::address::HostOffset;
use crate::entry::{L2Entry, Subclusters};
use crate::geometry::Geometry;

/// Clusters that an allocating write can take as one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Where the host clusters are that they keep, if they do.
    pub(super) kept: Option<HostOffset>,
    pub(super) count: u64,
    /// The entry of the first of them, as it is.
    pub(super) first: L2Entry,
    /// The entry of the last.
    pub(super) last: L2Entry,
}

/// Where the clusters of an allocating write go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) host: HostOffset,
    /// How many guest clusters.
    pub(super) count: u64,
    /// Given out just now, and not host clusters that the guest's clusters had.
    pub(super) new: bool,
    /// Reads as zeros until it is written to.
    pub(super) fresh: bool,
}

/// What becomes of a cluster of which a part is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cow {
    /// Its entry afterwards.
    pub(super) entry: L2Entry,
    /// Subclusters whose old data has to be copied where it is not written over.
    pub(super) copy: u32,
}

impl Cow {
    /// Writes `range`, bytes of the cluster, into the host cluster at `host`: the one it has if `kept`.
    fn new(old: L2Entry, host: HostOffset, kept: bool, range: &Range<u64>, geometry: Geometry) -> Self {
        let touched = geometry.subclusters_touched(range);
        let written = geometry.subclusters_inside(range);
        let (allocated, zero) = match old {
            L2Entry::Compressed(_) => (geometry.all_subclusters(), 0),
            L2Entry::Standard { subclusters, .. } => (subclusters.allocated, subclusters.zero),
        };
        let copy = if kept {
            touched & !allocated
        } else {
            touched | allocated
        };
        Self {
            entry: L2Entry::Standard {
                host: Some((host, true)),
                subclusters: Subclusters {
                    allocated: allocated | touched,
                    zero: zero & !touched,
                },
            },
            copy: copy & !written,
        }
    }
}

/// What becomes of the clusters at the edges of an allocating write (those in between are written over) and what is
/// copied around its data. Ranges are in bytes from the start of the first cluster.
#[derive(Clone, Debug)]
pub(super) struct Edges {
    pub(super) first: Cow,
    pub(super) last: Cow,
    /// What is copied in front of the data.
    pub(super) head: Range<u64>,
    /// What is copied behind it.
    pub(super) tail: Range<u64>,
}

impl Edges {
    /// Writes `len` bytes from `start` on, which reach into the last cluster of `run` and no further.
    pub(super) fn new(run: &Run, target: &Target, start: u64, len: u64, geometry: Geometry) -> Self {
        let size = geometry.cluster_size();
        let end = start + len;
        let before = (end - 1) / size * size;
        let last_start = if before == 0 { start } else { 0 };
        let cow = |old, offset, range| Cow::new(old, target.host + offset, !target.new, &range, geometry);
        let first = cow(run.first, 0, start..end.min(size));
        let last = cow(run.last, before, last_start..end - before);
        let bits = geometry.subcluster_bits();
        let copied_from = u64::from(first.copy.trailing_zeros()) << bits;
        let copied_to = before + (u64::from(u32::BITS - last.copy.leading_zeros()) << bits);
        Self {
            first,
            last,
            head: copied_from.min(start)..start,
            tail: end..copied_to.max(end),
        }
    }

    /// The entries of all the clusters afterwards.
    pub(super) fn entries(
        &self,
        target: &Target,
        geometry: Geometry,
    ) -> impl Iterator<Item = L2Entry> + Clone {
        let (first, last, target) = (self.first.entry, self.last.entry, *target);
        (0..target.count).map(move |i| match i {
            0 => first,
            _ if i + 1 == target.count => last,
            _ => L2Entry::allocated(target.host + (i << geometry.cluster_bits), geometry),
        })
    }
}
