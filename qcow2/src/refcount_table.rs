//! The refcounts of an image that is open for writing ("Host cluster management"): the refcount table in memory,
//! and a cache of the refcount blocks it names.
//!
//! Nothing here writes on its own. Changed blocks stay in the cache until a flush takes them
//! ([`RefcountTable::take_writes`]) and writes them in this order, each step made durable before the next: the
//! blocks; the table entries of new blocks; and where the table has moved, the header that names it. A crash in
//! between leaves clusters that are counted and not used, never the other way round.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use block::{Error, Result, Storage};

use crate::address::{ClusterIndex, HostOffset};
use crate::corruption::Corruption;
use crate::entry::decode_refcount_table_entry;
use crate::geometry::{Geometry, MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES};
use crate::refcount;

/// Bytes of refcount blocks kept in memory, unless more are waiting to be written.
const CACHE_BYTES: u64 = 4 << 20;

/// Bytes to be written somewhere.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) at: HostOffset,
    pub(crate) bytes: Vec<u8>,
}

/// What a flush writes of the refcounts, in this order.
#[derive(Debug, Default)]
pub(crate) struct RefcountWrites {
    pub(crate) blocks: Vec<Write>,
    /// Entries for blocks that are new or gone, or the whole table at a new place.
    pub(crate) table: Vec<Write>,
    /// Where the header finds the table from now on: offset and clusters.
    pub(crate) moved_to: Option<(HostOffset, u32)>,
    written: Vec<usize>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct RefcountTable {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    /// Entries as in the file; 0 is no block.
    table: Vec<u64>,
    place: HostOffset,
    blocks: HashMap<usize, CachedBlock>,
    capacity: usize,
    clock: u64,
    /// Blocks that the table in the file does not name yet, or still does.
    unlinked: BTreeSet<usize>,
    /// Clusters of the table that the header in the file names. Others than the table's own once it has moved.
    named: Range<u64>,
    /// Clusters of the table that a flush under way is about to make the header name.
    about_to_be_named: Option<Range<u64>>,
}

#[derive(Debug)]
struct CachedBlock {
    bytes: Vec<u8>,
    /// Bytes that differ from the file's.
    dirty: Range<usize>,
    /// Taken by a flush and not known to be written yet: what the file holds is older.
    writing: bool,
    last_used: u64,
}

impl CachedBlock {
    /// Changes the refcounts `indexes` by `by`.
    fn add(&mut self, order: u32, indexes: Range<usize>, by: i64) {
        refcount::add(&mut self.bytes, order, indexes.clone(), by);
        self.mark_dirty(order, indexes);
    }

    fn mark_dirty(&mut self, order: u32, indexes: Range<usize>) {
        let start = (indexes.start << order) / 8;
        let end = (indexes.end << order).div_ceil(8);
        self.dirty = if self.dirty.is_empty() {
            start..end
        } else {
            self.dirty.start.min(start)..self.dirty.end.max(end)
        };
    }
}

/// Why clusters cannot have another reference.
pub(crate) fn refcount_overflow(geometry: Geometry) -> Error {
    let (bits, max) = (1u32 << geometry.refcount_order, geometry.max_refcount());
    Error::unsupported(format!(
        "refcounts of {bits} bits count {max} references to a cluster at most, and more would be needed"
    ))
    .with_hint(format!(
        "give it wider refcounts first: `imgtool amend -o refcount_bits={}`",
        (2 * bits).clamp(16, 64)
    ))
}

impl RefcountTable {
    /// Reads the table, `clusters` clusters at `place`.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        geometry: Geometry,
        place: HostOffset,
        clusters: u32,
    ) -> Result<Self> {
        let len = u64::from(clusters) << geometry.cluster_bits;
        let mut bytes = vec![0; len as usize];
        storage.read_exact_at(&mut bytes, place.0)?;
        let table = bytes
            .chunks_exact(8)
            .map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default()));
        Ok(Self {
            table: table.collect(),
            place,
            blocks: HashMap::new(),
            capacity: (CACHE_BYTES >> geometry.cluster_bits).max(2) as usize,
            clock: 0,
            unlinked: BTreeSet::new(),
            named: geometry.cluster_of(place).0..geometry.cluster_of(place).0 + u64::from(clusters),
            about_to_be_named: None,
            storage,
            geometry,
        })
    }

    /// Every cluster that holds the table or a block that it names properly.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let geometry = self.geometry;
        let table = self.table_clusters();
        let blocks = self
            .table
            .iter()
            .filter(move |entry| **entry != 0 && geometry.is_aligned(**entry))
            .map(move |entry| {
                let cluster = geometry.cluster_of(HostOffset(*entry)).0;
                cluster..cluster + 1
            });
        std::iter::once(table).chain(blocks)
    }

    fn table_clusters(&self) -> Range<u64> {
        let start = self.geometry.cluster_of(self.place).0;
        start..start + self.geometry.clusters(self.table.len() as u64 * 8)
    }

    /// The refcount of a cluster.
    pub(crate) fn refcount(&mut self, cluster: ClusterIndex) -> Result<u64> {
        let (number, index) = self.split(cluster);
        let order = self.geometry.refcount_order;
        Ok(self
            .block(number)?
            .map_or(0, |block| refcount::read(&block.bytes, order, index)))
    }

    /// The first cluster from `from` on whose refcount is zero (or is not, if `used`), below `end`.
    fn find(&mut self, from: ClusterIndex, used: bool, end: u64) -> Result<Option<ClusterIndex>> {
        let order = self.geometry.refcount_order;
        let bits = self.geometry.refcount_block_bits();
        let mut cluster = from;
        while cluster.0 < end {
            let (number, index) = self.split(cluster);
            if number >= self.table.len() {
                return Ok((!used).then_some(cluster));
            }
            let found = match self.block(number)? {
                Some(block) => refcount::find(&block.bytes, order, index, used),
                None => (!used).then_some(index),
            };
            if let Some(index) = found {
                let cluster = ClusterIndex(((number as u64) << bits) + index as u64);
                return Ok((cluster.0 < end).then_some(cluster));
            }
            cluster = ClusterIndex((number as u64 + 1) << bits);
        }
        Ok(None)
    }

    /// One past the last cluster that is counted; `from` if none is from there on.
    pub(crate) fn end_from(&mut self, from: ClusterIndex) -> Result<ClusterIndex> {
        let limit = MAX_HOST_OFFSET >> self.geometry.cluster_bits;
        let mut end = from;
        while let Some(used) = self.find(end, true, limit)? {
            end = self.find(used, false, limit)?.unwrap_or(ClusterIndex(limit));
        }
        Ok(end)
    }

    /// The first run of `count` free clusters from `from` on (first fit).
    pub(crate) fn find_free(&mut self, from: ClusterIndex, count: u64) -> Result<ClusterIndex> {
        let end = MAX_HOST_OFFSET >> self.geometry.cluster_bits;
        let mut from = from;
        loop {
            let Some(start) = self.find(from, false, end)? else {
                return Err(self.too_large());
            };
            match self.find(start, true, start.0 + count)? {
                Some(used) => from = used,
                None if start.0 + count <= end => return Ok(start),
                None => return Err(self.too_large()),
            }
        }
    }

    /// Sets a cluster's refcount. The block that holds it must exist: see [`missing_block`](Self::missing_block).
    pub(crate) fn set(&mut self, cluster: ClusterIndex, value: u64) -> Result<()> {
        let (number, index) = self.split(cluster);
        let order = self.geometry.refcount_order;
        let Some(block) = self.block(number)? else {
            return Err(Error::corrupt(Corruption::NoRefcountBlock { cluster }));
        };
        refcount::write(&mut block.bytes, order, index, value);
        block.mark_dirty(order, index..index + 1);
        Ok(())
    }

    /// The lowest and the highest refcount of `clusters`, of which there is one at least.
    pub(crate) fn extremes(&mut self, clusters: Range<u64>) -> Result<(u64, u64)> {
        let order = self.geometry.refcount_order;
        let (mut low, mut high) = (u64::MAX, 0);
        for (number, indexes) in self.pieces(clusters) {
            let (piece_low, piece_high) = match self.block(number)? {
                Some(block) => refcount::extremes(&block.bytes, order, indexes),
                None => (0, 0),
            };
            (low, high) = (low.min(piece_low), high.max(piece_high));
        }
        Ok((low, high))
    }

    /// Adds `by` to the refcount of each of `clusters`, block by block.
    ///
    /// # Errors
    /// `Unsupported` where that is more than a refcount can hold; those before are raised then.
    pub(crate) fn raise(&mut self, clusters: Range<u64>, by: u64) -> Result<()> {
        let (order, max) = (self.geometry.refcount_order, self.geometry.max_refcount());
        for (number, indexes) in self.pieces(clusters) {
            let first = self.cluster_at(number, indexes.start);
            let Some(block) = self.block(number)? else {
                return Err(Error::corrupt(Corruption::NoRefcountBlock { cluster: first }));
            };
            let (_, high) = refcount::extremes(&block.bytes, order, indexes.clone());
            if high.checked_add(by).is_none_or(|raised| raised > max) {
                return Err(refcount_overflow(self.geometry));
            }
            block.add(order, indexes, by.cast_signed());
        }
        Ok(())
    }

    /// Takes `by` from the refcount of each of `clusters`, block by block, and hands those that have none left to
    /// `unused`, in runs.
    ///
    /// # Errors
    /// `Corrupt` for a refcount that is lower than that; those before are lowered then.
    pub(crate) fn lower(
        &mut self,
        clusters: Range<u64>,
        by: u64,
        unused: &mut dyn FnMut(Range<u64>),
    ) -> Result<()> {
        let order = self.geometry.refcount_order;
        for (number, indexes) in self.pieces(clusters) {
            let first = self.cluster_at(number, indexes.start);
            let freed_twice = |cluster| Error::corrupt(Corruption::FreedTwice { cluster });
            let block = self.block(number)?.ok_or_else(|| freed_twice(first))?;
            let (low, _) = refcount::extremes(&block.bytes, order, indexes.clone());
            if low < by {
                let lowest = indexes
                    .clone()
                    .find(|i| refcount::read(&block.bytes, order, *i) == low);
                let index = lowest.unwrap_or(indexes.start);
                return Err(freed_twice(self.cluster_at(number, index)));
            }
            block.add(order, indexes.clone(), by.wrapping_neg().cast_signed());
            let offset = first.0 - indexes.start as u64;
            let mut at = indexes.start;
            while low == by && at < indexes.end {
                let start = refcount::find(&block.bytes, order, at, false).unwrap_or(indexes.end);
                if start >= indexes.end {
                    break;
                }
                let end = refcount::find(&block.bytes, order, start, true).unwrap_or(indexes.end);
                at = end.min(indexes.end);
                unused(offset + start as u64..offset + at as u64);
            }
        }
        Ok(())
    }

    /// The parts of `clusters` that are counted by one block each: its number, and which of its refcounts.
    fn pieces(&self, clusters: Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let bits = self.geometry.refcount_block_bits();
        let mut at = clusters.start;
        std::iter::from_fn(move || {
            (at < clusters.end).then(|| {
                let number = at >> bits;
                let (first, end) = (number << bits, clusters.end.min((number + 1) << bits));
                let indexes = (at - first) as usize..(end - first) as usize;
                at = end;
                (number as usize, indexes)
            })
        })
    }

    fn cluster_at(&self, number: usize, index: usize) -> ClusterIndex {
        ClusterIndex(((number as u64) << self.geometry.refcount_block_bits()) + index as u64)
    }

    /// Whether so many blocks wait to be written that a long job should see to it.
    pub(crate) fn is_full(&self) -> bool {
        self.blocks.len() > self.capacity
    }

    /// The first refcount block that the clusters need and that does not exist.
    pub(crate) fn missing_block(&self, clusters: Range<u64>) -> Option<usize> {
        let bits = self.geometry.refcount_block_bits();
        let numbers = (clusters.start >> bits) as usize..=((clusters.end - 1) >> bits) as usize;
        numbers
            .into_iter()
            .find(|number| self.table.get(*number).is_none_or(|entry| *entry == 0))
    }

    /// Which block holds a cluster's refcount.
    pub(crate) fn block_number(&self, cluster: ClusterIndex) -> usize {
        self.split(cluster).0
    }

    /// Whether the table has an entry for block `number`.
    pub(crate) fn has_entry(&self, number: usize) -> bool {
        number < self.table.len()
    }

    /// Makes block `number`, all zero, in the free cluster `cluster`. Its own refcount is the caller's to set.
    pub(crate) fn add_block(&mut self, number: usize, cluster: ClusterIndex) {
        let len = self.geometry.cluster_size() as usize;
        self.table[number] = self.geometry.offset_of(cluster).0;
        self.unlinked.insert(number);
        self.clock += 1;
        let block = CachedBlock {
            bytes: vec![0; len],
            dirty: 0..len,
            writing: false,
            last_used: self.clock,
        };
        self.blocks.insert(number, block);
    }

    /// Takes the blocks out of the table that count no cluster, or none but their own. Gives their clusters.
    pub(crate) fn drop_empty_blocks(&mut self) -> Result<Vec<ClusterIndex>> {
        let order = self.geometry.refcount_order;
        let mut dropped = Vec::new();
        for number in 0..self.table.len() {
            let Some(block) = self.block(number)? else {
                continue;
            };
            let first = refcount::find(&block.bytes, order, 0, true);
            let second = first.and_then(|first| refcount::find(&block.bytes, order, first + 1, true));
            let cluster = self.geometry.cluster_of(HostOffset(self.table[number]));
            let own = first.is_some_and(|first| self.cluster_at(number, first) == cluster);
            if second.is_none() && (first.is_none() || own) {
                self.table[number] = 0;
                self.unlinked.insert(number);
                self.blocks.remove(&number);
                dropped.push(cluster);
            }
        }
        Ok(dropped)
    }

    /// Clusters of a table that has an entry for block `number`, and room to grow.
    pub(crate) fn grown_clusters(&self, number: usize) -> Result<u64> {
        let entries = (number as u64 + 1) * 3 / 2;
        let most = MAX_REFCOUNT_TABLE_BYTES >> self.geometry.cluster_bits;
        let clusters = self.geometry.clusters(entries * 8).min(most.max(1));
        if clusters << (self.geometry.cluster_bits - 3) <= number as u64 {
            return Err(self.too_large());
        }
        Ok(clusters)
    }

    /// Moves the table to `clusters` free clusters from `start` on. Their refcounts are the caller's to set. Gives
    /// back where the table was, if the file does not name that place and is not about to.
    pub(crate) fn move_to(&mut self, start: ClusterIndex, clusters: u64) -> Option<Range<u64>> {
        let old = self.table_clusters();
        let kept = old == self.named || Some(&old) == self.about_to_be_named.as_ref();
        self.place = self.geometry.offset_of(start);
        self.table
            .resize((clusters << (self.geometry.cluster_bits - 3)) as usize, 0);
        (!kept).then_some(old)
    }

    /// Takes the blocks that have to be written, whether the table in the file names them or not. Give them back to
    /// [`written`](Self::written) when they have been.
    pub(crate) fn take_blocks(&mut self) -> RefcountWrites {
        let mut writes = RefcountWrites::default();
        for (number, block) in &mut self.blocks {
            if block.dirty.is_empty() {
                continue;
            }
            // Whole sectors: a tear can't split a refcount, and the disk need not read before it writes.
            let start = block.dirty.start / 512 * 512;
            let end = block.dirty.end.next_multiple_of(512).min(block.bytes.len());
            let at = HostOffset(self.table[*number]) + start as u64;
            writes.blocks.push(Write {
                at,
                bytes: block.bytes[start..end].to_vec(),
            });
            writes.written.push(*number);
            block.dirty = 0..0;
            block.writing = true;
        }
        writes.blocks.sort_by_key(|write| write.at);
        writes
    }

    /// Takes everything that has to be written. Give it back to [`written`](Self::written) when it has been.
    pub(crate) fn take_writes(&mut self) -> RefcountWrites {
        let mut writes = self.take_blocks();
        let unlinked = std::mem::take(&mut self.unlinked);
        let entry = |number: usize| self.table[number].to_be_bytes();
        if self.has_moved() {
            self.about_to_be_named = Some(self.table_clusters());
            let bytes = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            writes.table.push(Write {
                at: self.place,
                bytes,
            });
            writes.moved_to = Some((
                self.place,
                self.geometry.clusters(self.table.len() as u64 * 8) as u32,
            ));
        } else {
            let write = |number| Write {
                at: self.place + number as u64 * 8,
                bytes: entry(number).to_vec(),
            };
            writes.table.extend(unlinked.into_iter().map(write));
        }
        writes
    }

    /// Everything in `writes` is in the file. Gives back the clusters of the table that the header no longer names.
    pub(crate) fn written(&mut self, writes: &RefcountWrites) -> Option<Range<u64>> {
        for number in &writes.written {
            if let Some(block) = self.blocks.get_mut(number) {
                block.writing = false;
            }
        }
        self.evict();
        // By now the table may have moved on, or have moved for the first time: what counts is what was written.
        let named = self.about_to_be_named.take()?;
        Some(std::mem::replace(&mut self.named, named))
    }

    /// Whether anything waits to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        self.has_moved() || !self.unlinked.is_empty() || self.blocks.values().any(|b| !b.dirty.is_empty())
    }

    /// Whether the table lies elsewhere than the header in the file says.
    fn has_moved(&self) -> bool {
        self.table_clusters() != self.named
    }

    fn split(&self, cluster: ClusterIndex) -> (usize, usize) {
        let bits = self.geometry.refcount_block_bits();
        (
            (cluster.0 >> bits) as usize,
            (cluster.0 & ((1 << bits) - 1)) as usize,
        )
    }

    fn block(&mut self, number: usize) -> Result<Option<&mut CachedBlock>> {
        // Most of a table often is empty, and is gone through whole: no block is kept that it does not name.
        let Some(entry) = self.table.get(number).copied().filter(|entry| *entry != 0) else {
            return Ok(None);
        };
        self.clock += 1;
        if !self.blocks.contains_key(&number) {
            let Some(host) = self.block_offset(entry, number)? else {
                return Ok(None);
            };
            self.evict();
            let mut bytes = vec![0; self.geometry.cluster_size() as usize];
            self.storage.read_exact_at(&mut bytes, host.0)?;
            self.blocks.insert(
                number,
                CachedBlock {
                    bytes,
                    dirty: 0..0,
                    writing: false,
                    last_used: 0,
                },
            );
        }
        let mut block = self.blocks.get_mut(&number);
        if let Some(block) = &mut block {
            block.last_used = self.clock;
        }
        Ok(block)
    }

    fn block_offset(&self, entry: u64, number: usize) -> Result<Option<HostOffset>> {
        let corrupt = |corruption| Error::corrupt(corruption).with_path_of(self.storage.path());
        let host = decode_refcount_table_entry(entry, number as u64, self.geometry).map_err(corrupt)?;
        let Some(start) = host else { return Ok(None) };
        let (len, file_len) = (self.geometry.cluster_size(), self.storage.len()?);
        if start.0.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(corrupt(Corruption::BeyondEnd {
                what: "refcount block",
                start,
                len,
                file_len,
            }));
        }
        Ok(Some(start))
    }

    /// Makes room for another block: the clean one that was used longest ago goes.
    fn evict(&mut self) {
        while self.blocks.len() >= self.capacity {
            let clean = self
                .blocks
                .iter()
                .filter(|(_, block)| block.dirty.is_empty() && !block.writing);
            let Some(number) = clean
                .min_by_key(|(_, block)| block.last_used)
                .map(|(number, _)| *number)
            else {
                return;
            };
            self.blocks.remove(&number);
        }
    }

    fn too_large(&self) -> Error {
        Error::new(
            block::ErrorKind::NoSpace,
            "the image file has reached the largest size that its refcount table can count",
        )
        .with_path_of(self.storage.path())
        .with_hint("convert it to an image with larger clusters")
    }
}

#[cfg(test)]
mod tests;
