//! Where the parts of a new image go.
//!
//! ```text
//! | header | refcount table | refcount block 0 | L1 table | further refcount blocks | encryption header | further refcount blocks | L2 tables | data |
//! ```
//!
//! An encryption header is there with LUKS. L2 tables and data are there only if they are preallocated, and data not where an external file holds it. Up to
//! there it is the layout that `qemu-img create` arrives at, down to the order of the further refcount blocks: a
//! block is taken when the first cluster that it counts is, and lies in the next free cluster, which may need
//! another block first. Where QEMU has to move a refcount table that has become too small for the image's own
//! tables, ours is large enough from the start.

use block::{Error, Result};

use super::CreateOptions;
use crate::address::{ClusterIndex, HostOffset};
use crate::geometry::{Geometry, MAX_CLUSTER_BITS, MAX_HOST_OFFSET, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES};

/// Bytes in an entry of an L1, L2 or refcount table.
pub(crate) const ENTRY: u64 = 8;

/// A run of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: ClusterIndex,
    pub(super) count: u64,
}

impl Run {
    pub(super) fn end(self) -> ClusterIndex {
        self.start + self.count
    }
}

/// How much of the disk a new image maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) l2_tables: u64,
    pub(super) clusters: u64,
}

impl Mapped {
    /// The whole disk.
    pub(super) fn all(options: &CreateOptions) -> Self {
        let geometry = options.geometry();
        Self {
            l2_tables: geometry.l1_entries(options.size),
            clusters: geometry.clusters(options.size),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) geometry: Geometry,
    pub(super) refcount_table: Run,
    /// Where each refcount block is, in the order of the refcount table.
    pub(super) refcount_blocks: Vec<ClusterIndex>,
    pub(super) l1: Run,
    pub(super) l1_entries: u64,
    pub(super) encryption: Run,
    pub(super) l2: Run,
    pub(super) data: Run,
    /// What the L2 tables map: `data`, or the same clusters of a data file.
    pub(super) mapped: Run,
}

impl Layout {
    /// Lays out an image; `options` are valid but for the size.
    pub(super) fn of(options: &CreateOptions, mapped: Mapped) -> Result<Self> {
        let geometry = options.geometry();
        let l1_entries = geometry.l1_entries(options.size);
        let l1_bytes = l1_entries * ENTRY;
        if l1_bytes > MAX_L1_BYTES {
            let largest = geometry.l2_coverage().saturating_mul(MAX_L1_BYTES / ENTRY);
            return Err(too_large(options, &format!("{largest} bytes at most")));
        }
        let parts = Parts {
            geometry,
            l1: geometry.clusters(l1_bytes),
            encryption: geometry.clusters(options.encryption_header_len()),
            l2: mapped.l2_tables,
            data: if geometry.data_file { 0 } else { mapped.clusters },
        };
        let mut layout = parts.place(l1_entries).ok_or_else(|| {
            too_large(
                options,
                "its preallocated clusters are more than refcounts can count",
            )
        })?;
        if geometry.data_file {
            layout.mapped = Run {
                start: ClusterIndex(0),
                count: mapped.clusters,
            };
        }
        if layout.end().0 > MAX_HOST_OFFSET >> geometry.cluster_bits {
            return Err(too_large(options, "the preallocated file would exceed 64 PiB"));
        }
        Ok(layout)
    }

    pub(super) fn host(&self, cluster: ClusterIndex) -> HostOffset {
        self.geometry.offset_of(cluster)
    }

    /// The first cluster behind the image. All in front of it are in use, once.
    pub(super) fn end(&self) -> ClusterIndex {
        self.data.end()
    }

    /// Length of the file in bytes. An L1 table at the end takes what it needs, and not whole clusters.
    pub(super) fn file_len(&self) -> u64 {
        if self.l1.count > 0 && self.l1.end() == self.end() {
            self.host(self.l1.start).0 + self.l1_entries * ENTRY
        } else {
            self.host(self.end()).0
        }
    }
}

fn too_large(options: &CreateOptions, limit: &str) -> Error {
    let message = format!(
        "a disk of {} bytes is too large for clusters of {} bytes: {limit}",
        options.size,
        options.geometry().cluster_size()
    );
    Error::invalid(message).with_hint(if options.cluster_bits < MAX_CLUSTER_BITS {
        "use larger clusters"
    } else {
        "there are no larger clusters: make the disk smaller"
    })
}

/// Clusters that refcounts take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RefcountClusters {
    pub(crate) table: u64,
    pub(crate) blocks: u64,
}

/// What it takes to count `others` clusters, and the refcount table and blocks themselves.
pub(crate) fn refcount_clusters(geometry: Geometry, others: u64) -> RefcountClusters {
    let mut clusters = RefcountClusters::default();
    loop {
        let counted = others + clusters.table + clusters.blocks;
        let blocks = counted.div_ceil(1 << geometry.refcount_block_bits());
        let needed = RefcountClusters {
            table: geometry.clusters(blocks * ENTRY),
            blocks,
        };
        if needed == clusters {
            return clusters;
        }
        clusters = needed;
    }
}

/// Clusters of each part whose size does not depend on refcounts.
struct Parts {
    geometry: Geometry,
    l1: u64,
    encryption: u64,
    l2: u64,
    data: u64,
}

impl Parts {
    /// `None` if the refcount table would exceed its limit.
    fn place(&self, l1_entries: u64) -> Option<Layout> {
        let entries_per_cluster = self.geometry.cluster_size() / ENTRY;
        let max_table = (MAX_REFCOUNT_TABLE_BYTES >> self.geometry.cluster_bits).max(1);
        let counted = 1 + self.l1 + self.encryption + self.l2 + self.data;
        let mut table = refcount_clusters(self.geometry, counted).table.max(1);
        loop {
            if table > max_table {
                return None;
            }
            if let Ok((refcount_blocks, encryption, end)) =
                self.place_blocks(table, table * entries_per_cluster)
            {
                let run = |start, count| Run { start, count };
                let l1 = run(ClusterIndex(table + 2), self.l1);
                let l2 = run(ClusterIndex(end), self.l2);
                let data = run(l2.end(), self.data);
                return Some(Layout {
                    geometry: self.geometry,
                    refcount_table: run(ClusterIndex(1), table),
                    refcount_blocks,
                    l1,
                    l1_entries,
                    encryption: run(encryption, self.encryption),
                    l2,
                    data,
                    mapped: data,
                });
            }
            table += 1;
        }
    }

    /// Places the refcount blocks of an image whose refcount table has `table` clusters and room for `limit` of
    /// them. Returns them with where the encryption header goes, and the first cluster behind the last; `Err` if they
    /// are too many.
    fn place_blocks(
        &self,
        table: u64,
        limit: u64,
    ) -> Result<(Vec<ClusterIndex>, ClusterIndex, u64), TooMany> {
        let per_block = 1 << self.geometry.refcount_block_bits();
        let mut blocks = Blocks {
            places: vec![ClusterIndex(table + 1)],
            next: table + 2 + self.l1,
            per_block,
            limit,
        };
        for number in 0..blocks.next.div_ceil(per_block) {
            blocks.ensure(number)?;
        }
        let encryption = blocks.next;
        blocks.next += self.encryption;
        for number in encryption / per_block..blocks.next.div_ceil(per_block) {
            blocks.ensure(number)?;
        }
        while (blocks.places.len() as u64) * per_block < blocks.next + self.l2 + self.data {
            blocks.ensure(blocks.places.len() as u64)?;
        }
        Ok((blocks.places, ClusterIndex(encryption), blocks.next))
    }
}

/// The refcount table has no room for another block.
struct TooMany;

struct Blocks {
    /// Cluster 0, the header, where there is none yet.
    places: Vec<ClusterIndex>,
    /// The next free cluster.
    next: u64,
    per_block: u64,
    limit: u64,
}

impl Blocks {
    /// Places a block, and those that count the clusters of the blocks placed.
    fn ensure(&mut self, mut number: u64) -> Result<(), TooMany> {
        loop {
            if number >= self.limit {
                return Err(TooMany);
            }
            let index = number as usize;
            if index >= self.places.len() {
                self.places.resize(index + 1, ClusterIndex(0));
            }
            if self.places[index] != ClusterIndex(0) {
                return Ok(());
            }
            let cluster = self.next;
            self.places[index] = ClusterIndex(cluster);
            self.next += 1;
            number = cluster / self.per_block;
        }
    }
}
