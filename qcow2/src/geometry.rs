//! The shape of an image: everything that follows from its cluster size, refcount width and kind of L2 entries.

use std::ops::Range;

use block::slice_cache::MAX_SLICE_ENTRIES;

use crate::address::{ClusterIndex, GuestOffset, HostOffset};

/// Smallest log2 of a cluster size: 512 bytes ("Header", bytes 20-23).
pub(crate) const MIN_CLUSTER_BITS: u32 = 9;
/// Largest log2 of a cluster size that QEMU opens, and so do we: 2 MiB.
pub(crate) const MAX_CLUSTER_BITS: u32 = 21;
/// Smallest log2 of a cluster size with extended L2 entries: a subcluster is at least a sector.
pub(crate) const MIN_CLUSTER_BITS_EXTENDED_L2: u32 = 14;
/// Largest refcount order: 64-bit refcounts ("Header", bytes 96-99).
pub(crate) const MAX_REFCOUNT_ORDER: u32 = 6;
/// Largest L1 table, in bytes (QEMU's limit, kept).
pub(crate) const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table, in bytes (QEMU's limit, kept).
pub(crate) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Subclusters of a cluster with extended L2 entries.
pub(crate) const SUBCLUSTERS: u32 = 32;
/// Host offsets in table entries are 56 bits wide.
pub(crate) const MAX_HOST_OFFSET: u64 = 1 << 56;

/// The shape of an image. All fields were checked when the header was parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// log2 of the cluster size, 9..=21.
    pub cluster_bits: u32,
    /// log2 of the width of a refcount in bits, 0..=6.
    pub refcount_order: u32,
    /// L2 entries are 128 bits wide, with 32 subclusters each.
    pub extended_l2: bool,
    /// Guest clusters lie in an external data file, each at its guest offset.
    pub data_file: bool,
}

impl Geometry {
    /// Bytes in a cluster.
    pub fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// log2 of the bytes of an L2 entry.
    pub fn l2_entry_bits(self) -> u32 {
        if self.extended_l2 { 4 } else { 3 }
    }

    /// log2 of the entries of an L2 table.
    pub fn l2_bits(self) -> u32 {
        self.cluster_bits - self.l2_entry_bits()
    }

    /// Bytes of the disk that one L2 table maps.
    pub fn l2_coverage(self) -> u64 {
        1 << (self.cluster_bits + self.l2_bits())
    }

    /// log2 of the entries of a slice: the part of an L2 table that is cached, loaded and written as one.
    pub fn slice_bits(self) -> u32 {
        self.l2_bits()
            .min(MAX_SLICE_ENTRIES.ilog2() + 3 - self.l2_entry_bits())
    }

    /// 64-bit words of a slice.
    pub fn slice_words(self) -> usize {
        1 << (self.slice_bits() + self.l2_entry_bits() - 3)
    }

    /// Subclusters of a cluster: the parts that have a state of their own. Without extended L2 entries a cluster
    /// is its only one.
    pub fn subclusters(self) -> u32 {
        if self.extended_l2 { SUBCLUSTERS } else { 1 }
    }

    /// A bit for each subcluster of a cluster.
    pub fn all_subclusters(self) -> u32 {
        u32::MAX >> (32 - self.subclusters())
    }

    /// log2 of the bytes of a subcluster.
    pub fn subcluster_bits(self) -> u32 {
        self.cluster_bits - self.subclusters().ilog2()
    }

    /// Bytes in a subcluster.
    pub fn subcluster_size(self) -> u64 {
        1 << self.subcluster_bits()
    }

    /// Which subcluster of its cluster `guest` lies in.
    pub fn subcluster_of(self, guest: GuestOffset) -> u32 {
        (self.in_cluster(guest) >> self.subcluster_bits()) as u32
    }

    /// A bit for each subcluster that `range`, bytes of a cluster, touches.
    pub(crate) fn subclusters_touched(self, range: &Range<u64>) -> u32 {
        let bits = self.subcluster_bits();
        subcluster_mask((range.start >> bits) as u32..range.end.div_ceil(1 << bits) as u32)
    }

    /// A bit for each subcluster that lies whole in `range`, bytes of a cluster.
    pub(crate) fn subclusters_inside(self, range: &Range<u64>) -> u32 {
        let bits = self.subcluster_bits();
        subcluster_mask(range.start.div_ceil(1 << bits) as u32..(range.end >> bits) as u32)
    }

    /// Where `guest` lies in its subcluster.
    pub fn in_subcluster(self, guest: GuestOffset) -> u64 {
        guest.0 & (self.subcluster_size() - 1)
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_entries(self, size: u64) -> u64 {
        size.div_ceil(self.l2_coverage())
    }

    /// Which L1 entry maps `guest`.
    pub fn l1_index(self, guest: GuestOffset) -> usize {
        (guest.0 >> (self.cluster_bits + self.l2_bits())) as usize
    }

    /// Which entry of its L2 table maps `guest`.
    pub fn l2_index(self, guest: GuestOffset) -> usize {
        ((guest.0 >> self.cluster_bits) & ((1 << self.l2_bits()) - 1)) as usize
    }

    /// log2 of the refcounts in a refcount block.
    pub fn refcount_block_bits(self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// The largest refcount that fits.
    pub fn max_refcount(self) -> u64 {
        u64::MAX >> (64 - (1u32 << self.refcount_order))
    }

    /// Where `guest` lies in its cluster.
    pub fn in_cluster(self, guest: GuestOffset) -> u64 {
        guest.0 & (self.cluster_size() - 1)
    }

    /// Whether a host offset starts a cluster.
    pub fn is_aligned(self, host: u64) -> bool {
        host & (self.cluster_size() - 1) == 0
    }

    /// Clusters that `bytes` bytes take.
    pub fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// The cluster that holds `host`.
    pub fn cluster_of(self, host: HostOffset) -> ClusterIndex {
        ClusterIndex(host.0 >> self.cluster_bits)
    }

    /// Where a cluster starts.
    pub fn offset_of(self, cluster: ClusterIndex) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }
}

/// A bit for each subcluster of `range`.
fn subcluster_mask(range: Range<u32>) -> u32 {
    let below = |end: u32| u32::MAX.checked_shr(SUBCLUSTERS - end).unwrap_or(0);
    below(range.end) & !below(range.start.min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subclusters_of_a_range() {
        let mut geometry = Geometry {
            cluster_bits: 16,
            refcount_order: 4,
            extended_l2: true,
            data_file: false,
        };
        let both = |geometry: Geometry, range| {
            (
                geometry.subclusters_touched(&range),
                geometry.subclusters_inside(&range),
            )
        };
        assert_eq!(both(geometry, 0..65536), (u32::MAX, u32::MAX));
        assert_eq!(both(geometry, 0..2048), (1, 1));
        assert_eq!(both(geometry, 1..2048), (1, 0));
        assert_eq!(both(geometry, 2047..6145), (0b1111, 0b110));
        assert_eq!(both(geometry, 65535..65536), (1 << 31, 0));
        geometry.extended_l2 = false;
        assert_eq!(both(geometry, 0..65536), (1, 1));
        assert_eq!(both(geometry, 1..65536), (1, 0));
        assert_eq!(geometry.all_subclusters(), 1);
    }
}
