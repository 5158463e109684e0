//! Gives out host clusters and takes them back.
//!
//! **Giving out** is first fit from a moving mark, as QEMU does it: the mark is below every cluster that was freed
//! and goes up with what is given out. A new refcount block goes into the first free cluster, so where a whole
//! block's worth of clusters is new, into the first cluster that it describes itself.
//!
//! **Taking back** has three steps, for a freed cluster may still be named by the file, and used by a request that
//! is under way. *Freed*: nothing in memory names it any more. *Dropped*: a flush has made that durable; the refcount
//! can fall. *Reused*: every request that ran when it was freed has ended (see [`crate::epoch`]); only then is the
//! refcount lowered in memory, the room given back to the host, and the mark moved down.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use block::sync::RwLock;
use block::{Error, Result, Storage};

use crate::address::{ClusterIndex, HostOffset};
use crate::corruption::Corruption;
use crate::entry::{CompressedCluster, max_compressed_offset};
use crate::epoch::Epoch;
use crate::geometry::Geometry;
use crate::metadata_map::MetadataMap;
use crate::refcount_table::{RefcountTable, RefcountWrites};

/// What clusters are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Data,
    Metadata,
}

/// Clusters that were given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) clusters: Range<u64>,
    /// The file has never reached there: they read as zeros.
    pub(crate) fresh: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Allocator {
    pub(crate) refcounts: RefcountTable,
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    metadata: Arc<RwLock<MetadataMap>>,
    /// No cluster below is free.
    mark: ClusterIndex,
    /// First cluster that the file has never reached.
    untouched: u64,
    /// Where the next compressed cluster goes, if the one before left room in its host cluster.
    packing: Option<HostOffset>,
    /// No longer named in memory; once for each reference that went.
    freed: Vec<Range<u64>>,
    /// No longer named in the file, and the epoch in which that was noticed.
    dropped: VecDeque<(u64, Vec<Range<u64>>)>,
    /// A failure that left the refcounts in memory half changed: they must not reach the file.
    failed: Option<Error>,
}

impl Allocator {
    pub(crate) fn new(
        refcounts: RefcountTable,
        storage: Arc<dyn Storage>,
        geometry: Geometry,
        metadata: Arc<RwLock<MetadataMap>>,
    ) -> Result<Self> {
        let untouched = geometry.clusters(storage.len()?);
        Ok(Self {
            refcounts,
            storage,
            geometry,
            metadata,
            mark: ClusterIndex(0),
            untouched,
            packing: None,
            freed: Vec::new(),
            dropped: VecDeque::new(),
            failed: None,
        })
    }

    /// Gives out `count` adjacent clusters with a refcount of 1.
    pub(crate) fn allocate(&mut self, count: u64, purpose: Use) -> Result<Allocation> {
        self.refuse_if_failed()?;
        loop {
            let start = self.refcounts.find_free(self.mark, count)?;
            if self.ensure_blocks(start.0..start.0 + count)? {
                // A new block may have taken what was found.
                continue;
            }
            return self.take(start, count, purpose);
        }
    }

    /// Gives out the free clusters `start .. start + count`, whose refcount blocks exist.
    fn take(&mut self, start: ClusterIndex, count: u64, purpose: Use) -> Result<Allocation> {
        let clusters = start.0..start.0 + count;
        self.refuse_metadata(clusters.clone())?;
        for cluster in clusters.clone() {
            if let Err(error) = self.refcounts.set(ClusterIndex(cluster), 1) {
                self.lower(clusters.start..cluster)?;
                return Err(error);
            }
        }
        self.mark = self.mark.max(ClusterIndex(clusters.end));
        let fresh = clusters.start >= self.untouched;
        self.untouched = self.untouched.max(clusters.end);
        if purpose == Use::Metadata {
            self.metadata_map_mut(|map| map.insert(clusters.clone()));
        }
        Ok(Allocation { clusters, fresh })
    }

    /// An image whose refcounts call its own tables free must not be written to.
    fn refuse_metadata(&self, clusters: Range<u64>) -> Result<()> {
        let map = self
            .metadata
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match map.first_in(clusters) {
            Some(cluster) => Err(Error::corrupt(Corruption::MetadataCountedFree { cluster })
                .with_path_of(self.storage.path())
                .with_hint("the image must be repaired before it is written to")),
            None => Ok(()),
        }
    }

    fn metadata_map_mut(&self, change: impl FnOnce(&mut MetadataMap)) {
        change(
            &mut self
                .metadata
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
    }

    /// Makes the refcount blocks for `clusters`. Whether any had to be made.
    fn ensure_blocks(&mut self, clusters: Range<u64>) -> Result<bool> {
        let mut made = false;
        while let Some(number) = self.refcounts.missing_block(clusters.clone()) {
            self.make_block(number)?;
            made = true;
        }
        Ok(made)
    }

    fn make_block(&mut self, number: usize) -> Result<()> {
        if !self.refcounts.has_entry(number) {
            return self.grow_table(number);
        }
        let cluster = self.refcounts.find_free(self.mark, 1)?;
        let own = self.refcounts.block_number(cluster);
        if own != number && self.refcounts.missing_block(cluster.0..cluster.0 + 1).is_some() {
            return self.make_block(own);
        }
        self.refuse_metadata(cluster.0..cluster.0 + 1)?;
        self.refcounts.add_block(number, cluster);
        let taken = self.take(cluster, 1, Use::Metadata).map(|_| ());
        self.or_fail(taken)
    }

    /// Moves the refcount table to where it can have an entry for block `number`.
    fn grow_table(&mut self, number: usize) -> Result<()> {
        let count = self.refcounts.grown_clusters(number)?;
        let start = self.refcounts.find_free(self.mark, count)?;
        self.refuse_metadata(start.0..start.0 + count)?;
        let abandoned = self.refcounts.move_to(start, count);
        // The new table can describe where it lies; its blocks must not go there, so the mark passes it first.
        self.mark = self.mark.max(ClusterIndex(start.0 + count));
        let taken = self
            .ensure_blocks(start.0..start.0 + count)
            .and_then(|_| self.take(start, count, Use::Metadata))
            .and_then(|_| abandoned.map_or(Ok(()), |clusters| self.lower(clusters)));
        self.or_fail(taken)
    }

    /// Remembers a failure after which refcounts and what they count do not agree.
    fn or_fail(&mut self, result: Result<()>) -> Result<()> {
        if let Err(error) = &result {
            self.failed.get_or_insert_with(|| error.clone());
        }
        result
    }

    fn refuse_if_failed(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Gives out room for `len` bytes of compressed data, in the host cluster of the one before if there is room.
    pub(crate) fn allocate_compressed(&mut self, len: u64) -> Result<CompressedCluster> {
        let size = self.geometry.cluster_size();
        let host = match self.packing.take() {
            Some(host) if self.share(host, len)? => host,
            _ => self
                .geometry
                .offset_of(ClusterIndex(self.allocate(1, Use::Data)?.clusters.start)),
        };
        let end = host + len;
        if end.0 > max_compressed_offset(self.geometry) {
            return Err(Error::new(
                block::ErrorKind::NoSpace,
                "the image file is too large for more compressed clusters",
            )
            .with_path_of(self.storage.path()));
        }
        self.packing = (!end.0.is_multiple_of(size)).then_some(end);
        Ok(CompressedCluster { host, len })
    }

    /// Counts another reference to the cluster that `host` lies in, and takes the next one too if `len` bytes
    /// reach into it. `false`, and nothing done, where that can't be.
    fn share(&mut self, host: HostOffset, len: u64) -> Result<bool> {
        let cluster = self.geometry.cluster_of(host);
        let last = self.geometry.cluster_of(host + (len - 1));
        let refcount = self.refcounts.refcount(cluster)?;
        if refcount == 0 || refcount >= self.geometry.max_refcount() {
            return Ok(false);
        }
        if last != cluster {
            let free = self.refcounts.missing_block(last.0..last.0 + 1).is_none()
                && self.refcounts.refcount(last)? == 0;
            if !free {
                return Ok(false);
            }
            self.take(last, 1, Use::Data)?;
        }
        self.refcounts.set(cluster, refcount + 1)?;
        Ok(true)
    }

    /// Takes back clusters that nothing in memory names any more; the file still may.
    pub(crate) fn free(&mut self, clusters: Range<u64>) {
        match self.freed.last_mut() {
            Some(last) if last.end == clusters.start => last.end = clusters.end,
            _ => self.freed.push(clusters),
        }
    }

    /// Takes back clusters that nothing has ever named: the write they were meant for failed.
    pub(crate) fn give_back(&mut self, clusters: Range<u64>) -> Result<()> {
        self.lower(clusters)
    }

    /// Takes back refcount blocks that the table in the file no longer names.
    pub(crate) fn release_blocks(&mut self, blocks: &[ClusterIndex]) -> Result<()> {
        for block in blocks {
            let cluster = block.0..block.0 + 1;
            if self.refcounts.missing_block(cluster.clone()).is_some() {
                // What counted it has gone with it.
                self.vacate(cluster)?;
            } else {
                self.lower(cluster)?;
            }
        }
        Ok(())
    }

    /// Takes back room for compressed data that nothing has ever named.
    pub(crate) fn give_back_compressed(&mut self, data: CompressedCluster) -> Result<()> {
        self.packing = None;
        self.lower(self.clusters_of(data))
    }

    /// The host clusters that compressed data touches.
    pub(crate) fn clusters_of(&self, data: CompressedCluster) -> Range<u64> {
        self.geometry.cluster_of(data.host).0..self.geometry.cluster_of(data.host + (data.len - 1)).0 + 1
    }

    /// How many runs of clusters wait for a flush.
    pub(crate) fn waiting(&self) -> usize {
        self.freed.len()
    }

    /// Starts a flush: what has to be written of the refcounts, nothing if they are to `wait`, and what will be dropped
    /// when that is done.
    ///
    /// # Errors
    /// The failure of an allocation after which refcounts and what they count do not agree.
    pub(crate) fn begin_flush(&mut self, wait: bool) -> Result<(RefcountWrites, Vec<Range<u64>>)> {
        self.refuse_if_failed()?;
        let writes = if wait {
            RefcountWrites::default()
        } else {
            self.refcounts.take_writes()
        };
        Ok((writes, std::mem::take(&mut self.freed)))
    }

    /// Ends a flush that has made everything durable: lowers the refcounts of what nobody can be using any more.
    pub(crate) fn end_flush(
        &mut self,
        writes: &RefcountWrites,
        mut dropped: Vec<Range<u64>>,
        epoch: &Epoch,
    ) -> Result<()> {
        dropped.extend(self.refcounts.written(writes));
        if !dropped.is_empty() {
            self.dropped.push_back((epoch.now(), dropped));
        }
        epoch.advance();
        while self.dropped.front().is_some_and(|(then, _)| epoch.passed(*then)) {
            for clusters in self.dropped.pop_front().map(|(_, runs)| runs).unwrap_or_default() {
                self.lower(clusters)?;
            }
        }
        Ok(())
    }

    /// Whether a flush would find anything to do.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.freed.is_empty() || !self.dropped.is_empty() || self.refcounts.is_dirty()
    }

    /// Lowers refcounts by one, and gives the room of those that reach zero back to the host.
    fn lower(&mut self, clusters: Range<u64>) -> Result<()> {
        self.release(clusters, 1)
    }

    /// Takes back `references` references to each of `clusters` that neither the file nor any request knows any more,
    /// and gives the room of those that have none left back to the host.
    pub(crate) fn release(&mut self, clusters: Range<u64>, references: u64) -> Result<()> {
        let mut unused: Vec<Range<u64>> = Vec::new();
        let lowered = self
            .refcounts
            .lower(clusters, references, &mut |run| match unused.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => unused.push(run),
            });
        lowered.map_err(|error| error.with_path_of(self.storage.path()))?;
        unused.into_iter().try_for_each(|run| self.vacate(run))
    }

    fn vacate(&mut self, clusters: Range<u64>) -> Result<()> {
        self.mark = self.mark.min(ClusterIndex(clusters.start));
        if self
            .packing
            .is_some_and(|host| clusters.contains(&self.geometry.cluster_of(host).0))
        {
            self.packing = None;
        }
        self.metadata_map_mut(|map| map.remove(clusters.clone()));
        let (start, len) = (clusters.start, clusters.end - clusters.start);
        let bits = self.geometry.cluster_bits;
        self.storage.discard(start << bits, len << bits)
    }
}
