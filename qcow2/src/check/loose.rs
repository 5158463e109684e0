//! Table entries as they are, before anything about them is trusted.
//!
//! Where an image is opened, an entry that contradicts the format is an error and has no other meaning
//! ([`L2Mapping`](crate::L2Mapping)). A check needs both: it reports the contradiction and still counts what the
//! entry names, since other programs will follow it too.

use crate::address::HostOffset;
use crate::entry::{COMPRESSED, COPIED, CompressedCluster, OFFSET, Subclusters, ZERO};
use crate::geometry::Geometry;

/// Bits 0-8 of a refcount table entry are reserved.
const REFCOUNT_RESERVED: u64 = 0x1ff;
/// Bits 0-8 and 56-62 of an L1 entry are reserved.
const L1_RESERVED: u64 = !(OFFSET | COPIED);
/// Bits 1-8 and 56-61 of a standard L2 entry are reserved.
const L2_RESERVED: u64 = !(OFFSET | COPIED | COMPRESSED | ZERO);
/// Bits 1-8 and 56-63 of a bitmap table entry are reserved.
const BITMAP_RESERVED: u64 = !(OFFSET | 1);

/// The big-endian words of a table.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_be_bytes(*word))
}

/// COPIED is set.
#[inline]
pub(super) fn is_copied(entry: u64) -> bool {
    entry & COPIED != 0
}

/// The refcount block that an entry of the refcount table names; 0 for none.
pub(super) fn refcount_block(entry: u64) -> HostOffset {
    HostOffset(entry & !REFCOUNT_RESERVED)
}

/// Whether reserved bits of a refcount table entry are set.
pub(super) fn refcount_reserved(entry: u64) -> bool {
    entry & REFCOUNT_RESERVED != 0
}

/// The L2 table that an L1 entry names; 0 for none.
pub(super) fn l2_table(entry: u64) -> HostOffset {
    HostOffset(entry & OFFSET)
}

/// Whether reserved bits of an L1 entry are set.
pub(super) fn l1_reserved(entry: u64) -> bool {
    entry & L1_RESERVED != 0
}

/// What an entry of a bitmap table says: the cluster it names (0 for none), and whether it breaks the rules.
pub(super) fn bitmap_entry(entry: u64, geometry: Geometry) -> (HostOffset, bool) {
    let host = entry & OFFSET;
    let broken = entry & BITMAP_RESERVED != 0 || !geometry.is_aligned(host) || (host != 0 && entry & 1 != 0);
    (HostOffset(host), broken)
}

/// What an L2 entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LooseL2 {
    /// No host cluster.
    Nothing,
    /// A host cluster, kept for later or not.
    Cluster { host: HostOffset, zero: bool },
    /// Compressed data.
    Compressed { host: HostOffset, len: u64 },
}

impl LooseL2 {
    /// Reads the first (or only) 64 bits of an entry.
    #[inline]
    pub(super) fn new(entry: u64, geometry: Geometry) -> Self {
        if entry & COMPRESSED != 0 {
            let CompressedCluster { host, len } = CompressedCluster::of_descriptor(entry, geometry);
            return Self::Compressed { host, len };
        }
        match entry & OFFSET {
            0 => Self::Nothing,
            host => Self::Cluster {
                host: HostOffset(host),
                zero: entry & ZERO != 0 && !geometry.extended_l2,
            },
        }
    }
}

/// Whether an L2 entry is none that a writer makes for a file (of data) of `len` bytes.
#[inline]
pub(super) fn is_impossible(entry: u64, mapping: LooseL2, len: u64) -> bool {
    match mapping {
        LooseL2::Nothing => l2_reserved(entry),
        LooseL2::Cluster { host, .. } => l2_reserved(entry) || host.0 >= len,
        LooseL2::Compressed { host, .. } => host.0 >= len,
    }
}

/// Whether a table with so many entries in use, of which so many are impossible, is none.
pub(super) fn is_no_l2_table(used: u64, impossible: u64) -> bool {
    impossible * 2 > used
}

/// Whether reserved bits of an L2 entry that is not compressed are set.
#[inline]
pub(super) fn l2_reserved(entry: u64) -> bool {
    entry & L2_RESERVED != 0
}

/// Bit 0 of an L2 entry is set.
pub(super) fn is_zero(entry: u64) -> bool {
    entry & ZERO != 0
}

/// Whether a subcluster bitmap ("Extended L2 Entries") says that subclusters are allocated: its lower half.
pub(super) fn allocated_subclusters(bitmap: u64) -> bool {
    Subclusters::from_bitmap(bitmap).allocated != 0
}

/// Whether an entry that names a host cluster only keeps it for later, and all of it reads as zeros or from below.
pub(super) fn is_preallocated(zero: bool, bitmap: u64, geometry: Geometry) -> bool {
    zero || (geometry.extended_l2 && !allocated_subclusters(bitmap))
}

/// The entry with COPIED set or not.
pub(super) fn with_copied(entry: u64, copied: bool) -> u64 {
    if copied { entry | COPIED } else { entry & !COPIED }
}

/// The entry of a cluster that reads as it did when it [kept a host cluster](is_preallocated), and keeps none. With
/// extended entries the bitmap says what reads as zeros.
pub(super) fn without_host(geometry: Geometry) -> u64 {
    if geometry.extended_l2 { 0 } else { ZERO }
}

/// Whether a subcluster bitmap says of one subcluster that it is allocated and that it reads as zeros.
pub(super) fn contradicts_itself(bitmap: u64) -> bool {
    Subclusters::from_bitmap(bitmap).contradict()
}
