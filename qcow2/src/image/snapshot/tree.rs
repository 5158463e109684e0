//! The L2 tables of one L1 table, gone through in the order in which they lie in the file.
//!
//! A batch of tables is read at a time, neighbours as one, so that memory is bounded and I/O large, however the tables
//! were given out. What a batch refers to is a list of ranges of host clusters, which becomes a step function (this
//! range, so many references) in the order of the refcount blocks: those, too, are gone through from front to back.

use std::ops::Range;

use block::{Error, ErrorKind, Result, Storage};

use super::super::{Image, Writer};
use super::references::{Collected, References, Runs};
use super::watch::Steps;
use crate::address::{ClusterIndex, HostOffset};
use crate::corruption::Corruption;
use crate::entry::{L1Entry, L2Entry, clear_copied, set_copied};
use crate::refcount_table::refcount_overflow;

/// Bytes of L2 tables that are in memory at once.
const BATCH: u64 = 4 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(in crate::image) struct Tree {
    /// Where the tables start, ascending.
    tables: Vec<HostOffset>,
}

/// What is going to happen to the refcounts of all that a tree refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    Raise,
    Lower,
}

/// Some of the tables of a tree.
pub(in crate::image) struct Batch<'a> {
    pub(in crate::image) tables: &'a [HostOffset],
    /// Their bytes, one after the other.
    pub(in crate::image) bytes: Vec<u8>,
}

impl Tree {
    /// The tree of an L1 table with these entries.
    pub(super) fn new(image: &Image, l1: &[u64]) -> Result<Self> {
        let mut tables = Vec::new();
        for (index, entry) in l1.iter().enumerate() {
            if let L1Entry::Table { host, .. } = image.decode_l1(*entry, index)? {
                tables.push(host);
            }
        }
        tables.sort_unstable();
        if let Some(pair) = tables.windows(2).find(|pair| pair[0] == pair[1]) {
            let (what, cluster) = ("an L2 table", image.geometry.cluster_of(pair[0]));
            return Err(image.corrupt(Corruption::MetadataShared { what, cluster }));
        }
        Self::of_tables(image, tables)
    }

    /// Of these tables, which are in the order in which they lie in the file.
    pub(in crate::image) fn of_tables(image: &Image, tables: Vec<HostOffset>) -> Result<Self> {
        if let Some(last) = tables.last() {
            image.check_inside("L2 table", *last, image.geometry.cluster_size())?;
        }
        Ok(Self { tables })
    }

    pub(in crate::image) fn tables(&self) -> &[HostOffset] {
        &self.tables
    }

    /// Calls `each` with all tables, a batch at a time.
    pub(in crate::image) fn for_each_batch(
        &self,
        image: &Image,
        steps: &mut Steps<'_>,
        mut each: impl FnMut(&mut Batch<'_>) -> Result<()>,
    ) -> Result<()> {
        let size = image.geometry.cluster_size();
        let mut bytes = Vec::new();
        for tables in self.tables.chunks((BATCH / size).max(1) as usize) {
            bytes.resize(tables.len() * size as usize, 0);
            for (start, run) in runs(tables, size) {
                let place = &mut bytes[start * size as usize..][..run * size as usize];
                image.storage.read_exact_at(place, tables[start].0)?;
            }
            let mut batch = Batch { tables, bytes };
            each(&mut batch)?;
            bytes = batch.bytes;
            steps.done(tables.len() as u64)?;
        }
        Ok(())
    }

    /// Makes sure that the tree is sound, and that its references can be counted: before anything is changed.
    /// `fixed` are the clusters of all other metadata than L2 tables, ascending.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for more references than a refcount can hold.
    pub(super) fn verify(
        &self,
        image: &Image,
        writer: &Writer,
        fixed: &[Range<u64>],
        counting: Counting,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        self.refuse_metadata(image, fixed).map_err(hint_repair)?;
        // A cluster with compressed data may be named by tables of several batches: then its refcount, which a sound
        // image does not have too low, stands for what is not known yet.
        let several = self.tables.len() as u64 * image.geometry.cluster_size() > BATCH;
        let max = image.geometry.max_refcount();
        self.for_each_batch(image, steps, |batch| {
            let Collected {
                mut whole,
                mut compressed,
            } = batch.references(image)?;
            for range in whole.ranges().chain(compressed.ranges()) {
                if let Some(cluster) = writer.metadata_map().first_in(range) {
                    return Err(image.corrupt(Corruption::DataIsMetadata { cluster }));
                }
            }
            batch.add_tables(image, &mut whole);
            let mut meta = writer.meta();
            let mut check = |clusters: Range<u64>, count: u64, more: bool| {
                let cluster = ClusterIndex(clusters.start);
                let (low, high) = meta.allocator.refcounts.extremes(clusters)?;
                if low < count {
                    return Err(image.corrupt(Corruption::CountedTooLow { cluster }));
                }
                let count = if more { high } else { count };
                if counting == Counting::Raise && high.checked_add(count).is_none_or(|sum| sum > max) {
                    return Err(refcount_overflow(image.geometry).with_path_of(image.storage.path()));
                }
                Ok(())
            };
            whole
                .steps()
                .try_for_each(|(clusters, count)| check(clusters, count, false))?;
            compressed
                .steps()
                .try_for_each(|(clusters, count)| check(clusters, count, several))
        })
        .map_err(hint_repair)
    }

    /// No table of the tree may lie where there is something else.
    fn refuse_metadata(&self, image: &Image, fixed: &[Range<u64>]) -> Result<()> {
        for table in &self.tables {
            let (what, cluster) = ("an L2 table", image.geometry.cluster_of(*table));
            let before = fixed.partition_point(|range| range.start <= cluster.0);
            if before > 0 && fixed[before - 1].contains(&cluster.0) {
                return Err(image.corrupt(Corruption::MetadataShared { what, cluster }));
            }
        }
        Ok(())
    }

    /// Clears COPIED in all tables, without a sync. Whether any flag was set.
    pub(super) fn clear_copied(&self, image: &Image, steps: &mut Steps<'_>) -> Result<bool> {
        let entry_len = 1 << image.geometry.l2_entry_bits();
        let table_len = image.geometry.cluster_size() as usize;
        let mut any = false;
        self.for_each_batch(image, steps, |batch| {
            let tables = batch.bytes.chunks_exact_mut(table_len);
            let changed: Vec<bool> = tables.map(|table| clear_copied(table, entry_len)).collect();
            any |= changed.contains(&true);
            batch.write(image, &changed)
        })?;
        Ok(any)
    }

    /// Counts every reference of the tree once more, or once less. Refcount blocks are written early where there are
    /// many; the rest, and the sync, are left to a flush.
    pub(super) fn count(
        &self,
        image: &Image,
        writer: &Writer,
        counting: Counting,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        self.for_each_batch(image, steps, |batch| {
            let Collected {
                mut whole,
                compressed,
            } = batch.references(image)?;
            whole.append(compressed);
            batch.add_tables(image, &mut whole);
            for (clusters, count) in whole.steps() {
                let mut meta = writer.meta();
                match counting {
                    Counting::Raise => meta.allocator.refcounts.raise(clusters, count)?,
                    Counting::Lower => meta.allocator.release(clusters, count)?,
                }
                let full = meta.allocator.refcounts.is_full();
                drop(meta);
                if full {
                    image.write_refcounts(writer)?;
                }
            }
            Ok(())
        })
    }

    /// Sets COPIED wherever a refcount is exactly 1, in all tables whose own refcount is, without a sync.
    pub(super) fn set_copied(&self, image: &Image, writer: &Writer, steps: &mut Steps<'_>) -> Result<()> {
        self.for_each_batch(image, steps, |batch| {
            let alone = image.refcounts_of_one(writer, batch.tables)?;
            // What cannot be decoded is left alone.
            let host = |words| match L2Entry::decode(words, 0, image.geometry, image.zero_flag) {
                Ok(L2Entry::Standard {
                    host: Some((host, false)),
                    ..
                }) => Some(host),
                _ => None,
            };
            let per_table = 1 << image.geometry.l2_bits();
            let entries = L2Entry::words(&batch.bytes, image.geometry).enumerate();
            let runs = Runs::collect(
                image,
                entries
                    .filter(|(slot, _)| alone[slot / per_table])
                    .filter_map(|(slot, words)| Some((slot, host(words)?))),
            );
            let mut changed = vec![false; batch.tables.len()];
            runs.for_each_counted_once(writer, |slot| {
                let entry = &mut batch.bytes[slot << image.geometry.l2_entry_bits()..];
                changed[slot / per_table] |= set_copied(entry);
            })?;
            batch.write(image, &changed)
        })
    }
}

impl Batch<'_> {
    /// What the tables refer to.
    fn references(&self, image: &Image) -> Result<Collected> {
        let mut collected = Collected::default();
        let (geometry, size) = (image.geometry, image.geometry.cluster_size() as usize);
        for table in self.bytes.chunks_exact(size) {
            for (index, words) in (0..).zip(L2Entry::words(table, geometry)) {
                let entry = L2Entry::decode(words, index, geometry, image.zero_flag)
                    .map_err(|corruption| image.corrupt(corruption))?;
                match entry {
                    L2Entry::Compressed(_) => collected.compressed.add(entry.host_clusters(geometry)),
                    L2Entry::Standard { host: Some(_), .. } => {
                        collected.whole.add(entry.host_clusters(geometry));
                    }
                    L2Entry::Standard { host: None, .. } => {}
                }
            }
        }
        Ok(collected)
    }

    /// The tables themselves are referred to as well, once each.
    fn add_tables(&self, image: &Image, references: &mut References) {
        for table in self.tables {
            let cluster = image.geometry.cluster_of(*table).0;
            references.add(cluster..cluster + 1);
        }
    }

    /// Writes the tables that have changed, neighbours as one.
    pub(in crate::image) fn write(&self, image: &Image, changed: &[bool]) -> Result<()> {
        let size = image.geometry.cluster_size();
        for (start, run) in runs(self.tables, size) {
            let mut at = start;
            while at < start + run {
                let alike = changed[at..start + run]
                    .iter()
                    .take_while(|c| **c == changed[at])
                    .count();
                if changed[at] {
                    let bytes = &self.bytes[at * size as usize..][..alike * size as usize];
                    image.storage.write_all_at(bytes, self.tables[at].0)?;
                }
                at += alike;
            }
        }
        Ok(())
    }
}

/// Runs of tables that lie next to each other: index of the first, and how many.
fn runs(tables: &[HostOffset], size: u64) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let first = *tables.get(start)?;
        let neighbours = tables[start..].iter().zip(0u64..);
        at += neighbours
            .take_while(|(table, i)| **table == first + i * size)
            .count();
        Some((start, at - start))
    })
}

fn hint_repair(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Corrupt => error.with_hint("the image must be repaired before it is written to"),
        _ => error,
    }
}
