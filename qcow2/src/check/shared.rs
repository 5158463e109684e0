//! Clusters that two things lie in, although every refcount agrees.
//!
//! A refcount may be as high as the references that there are, so that a check has nothing against an L2 entry that names a
//! table, or against all entries naming one cluster: a small file then holds a disk full of data, and who writes to it
//! writes to something else too. No program makes such images. This walks what the active L1 table names, each table
//! once, with two bits for each cluster of the file.

use std::fmt;

use bitvec::vec::BitVec;
use block::{Result, Storage};
use byteorder::{BE, ByteOrder};

use super::reader::TableReader;
use super::{refcount_table_len, table_range};
use crate::address::{ClusterIndex, HostOffset};
use crate::entry::{L1Entry, L2Entry, OFFSET};
use crate::geometry::Geometry;
use crate::header::Header;
use crate::snapshot::SnapshotTable;

/// A cluster that two things lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedCluster {
    /// The cluster.
    pub cluster: ClusterIndex,
    /// What was found in it last.
    what: &'static str,
}

impl fmt::Display for SharedCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, what } = self;
        write!(
            f,
            "{what} lies in cluster {cluster}, which is in use for something else"
        )
    }
}

/// Finds a cluster that two structures, two clusters of the disk, or one of each lie in. Data that is compressed may share its
/// clusters with other such data. Disks of snapshots share data with the active one, and are not looked into, and neither are
/// tables of bitmaps.
///
/// What a [check](super::check) reports is not reported again: an image without corruptions is expected.
///
/// # Errors
/// `Corrupt` for entries that a check would have reported; `Io`.
pub fn find_shared(storage: &dyn Storage, header: &Header) -> Result<Option<SharedCluster>> {
    let file_len = storage.len()?;
    let mut finder = Finder {
        geometry: header.geometry,
        zero_flag: header.has_zero_flag(),
        used: BitVec::repeat(false, header.geometry.clusters(file_len) as usize),
        compressed: BitVec::repeat(false, header.geometry.clusters(file_len) as usize),
        shared: None,
    };
    finder.structures(storage, header, file_len)?;
    let l1 = table_range(header.l1_offset, header.l1_entries.into());
    let mut tables = Vec::new();
    let mut reader = TableReader::new(storage, file_len);
    reader.read(l1.start, l1.end, |at, piece| {
        let first = (at - l1.start) / 8;
        for (index, entry) in (first..).zip(piece.chunks_exact(8)) {
            if let L1Entry::Table { host, .. } = L1Entry::decode(BE::read_u64(entry), index, header.geometry)?
            {
                finder.occupy("an L2 table", host, header.geometry.cluster_size());
                tables.push(host);
            }
        }
        Ok(())
    })?;
    tables.sort_unstable();
    for table in tables {
        if finder.shared.is_some() {
            break;
        }
        let end = table.0 + header.geometry.cluster_size();
        reader.read(table.0, end, |at, piece| {
            finder.l2_entries((at - table.0) / 8, piece)
        })?;
    }
    Ok(finder.shared)
}

struct Finder {
    geometry: Geometry,
    zero_flag: bool,
    /// Clusters that hold a table, or a cluster of the disk.
    used: BitVec,
    /// Clusters that hold compressed data.
    compressed: BitVec,
    shared: Option<SharedCluster>,
}

impl Finder {
    fn structures(&mut self, storage: &dyn Storage, header: &Header, file_len: u64) -> Result<()> {
        self.occupy("the header", HostOffset(0), header.geometry.cluster_size());
        let table = header.refcount_table_offset;
        self.occupy("the refcount table", table, refcount_table_len(header));
        self.occupy("the L1 table", header.l1_offset, u64::from(header.l1_entries) * 8);
        if let Some(encryption) = &header.extensions.encryption_header {
            self.occupy("the encryption header", encryption.offset, encryption.len);
        }
        if header.snapshot_count > 0 {
            let snapshots = SnapshotTable::read(storage, header)?;
            self.occupy("the snapshot table", header.snapshots_offset, snapshots.len);
            for one in &snapshots.snapshots {
                self.occupy(
                    "a snapshot's L1 table",
                    one.l1_offset,
                    u64::from(one.l1_entries) * 8,
                );
            }
        }
        let mut reader = TableReader::new(storage, file_len);
        let end = table.0.saturating_add(refcount_table_len(header));
        reader.read(table.0, end, |_, piece| {
            let blocks = piece
                .chunks_exact(8)
                .map(BE::read_u64)
                .filter(|entry| *entry & OFFSET != 0);
            for entry in blocks {
                let block = HostOffset(entry & !0x1ff);
                self.occupy("a refcount block", block, header.geometry.cluster_size());
            }
            Ok(())
        })
    }

    fn l2_entries(&mut self, first_word: u64, piece: &[u8]) -> Result<()> {
        let geometry = self.geometry;
        let first = first_word >> (geometry.l2_entry_bits() - 3);
        for (index, words) in (first..).zip(L2Entry::words(piece, geometry)) {
            match L2Entry::decode(words, index, geometry, self.zero_flag)? {
                L2Entry::Compressed(data) => self.add_compressed(data.host, data.len),
                L2Entry::Standard { host, .. } => {
                    if let Some((host, _)) = host {
                        self.occupy("data", host, geometry.cluster_size());
                    }
                }
            }
        }
        Ok(())
    }

    fn clusters(&self, start: HostOffset, len: u64) -> std::ops::Range<usize> {
        let last = self.used.len() as u64;
        let end = self.geometry.clusters(start.0.saturating_add(len)).min(last);
        (start.0 >> self.geometry.cluster_bits).min(end) as usize..end as usize
    }

    /// `what` lies in these bytes, and nothing else may.
    fn occupy(&mut self, what: &'static str, start: HostOffset, len: u64) {
        // One is enough, and a hostile image has tables over each other without end.
        if len == 0 || self.shared.is_some() {
            return;
        }
        for cluster in self.clusters(start, len) {
            if self.used.replace(cluster, true) || self.compressed[cluster] {
                self.found(what, cluster);
            }
        }
    }

    /// The last sector of compressed data may be counted to the next cluster as well, which need not be there.
    fn add_compressed(&mut self, start: HostOffset, len: u64) {
        for cluster in self.clusters(start, len) {
            self.compressed.set(cluster, true);
            if self.used[cluster] {
                self.found("compressed data", cluster);
            }
        }
    }

    fn found(&mut self, what: &'static str, cluster: usize) {
        let cluster = ClusterIndex(cluster as u64);
        self.shared.get_or_insert(SharedCluster { cluster, what });
    }
}
