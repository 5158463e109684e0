//! Writing: in place where the cluster is this image's alone, into new clusters otherwise.
//!
//! An allocating write goes: range lock; look again; room from the allocator; data into the new clusters, with what
//! the guest does not overwrite copied around it in the same host write; and only then the new L2 entries, in the
//! cache. Nothing of that waits for the disk: a flush puts it in order (see [`super::flush`]). A write that fails
//! before its entries are set leaves the old data mapped and gives its room back.

use std::io::IoSlice;
use std::ops::Range;

use block::{Error, Result};

use super::{Image, Writer};
use crate::address::{ClusterIndex, GuestOffset, HostOffset};
use crate::allocator::Use;
use crate::corruption::Corruption;
use crate::entry::{L1Entry, L2Mapping};
use crate::scratch::Scratch;

/// Where the clusters of an allocating write go.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) host: HostOffset,
    /// How many guest clusters.
    pub(super) count: u64,
    /// Given out just now, and not the host clusters that zero clusters kept.
    pub(super) new: bool,
    /// Reads as zeros until it is written to.
    fresh: bool,
}

impl Image {
    /// Writes `data` from `guest` on. The range lies on the disk.
    pub(super) fn write(&self, writer: &Writer, mut data: &[u8], mut guest: GuestOffset) -> Result<()> {
        let _pin = writer.epoch.pin();
        while !data.is_empty() {
            let done = self.write_some(writer, data, guest)?;
            data = &data[done..];
            guest += done as u64;
        }
        Ok(())
    }

    /// Writes the first run of `data` that can be written as one. How many bytes that was; 0: look again.
    fn write_some(&self, writer: &Writer, data: &[u8], guest: GuestOffset) -> Result<usize> {
        let mapping = self.mapping(guest)?;
        let L2Mapping::Standard { host, copied: true } = mapping else {
            return self.write_allocating(writer, data, guest);
        };
        let len = self.run_length(mapping, guest, data.len())?;
        let host = host + self.geometry.in_cluster(guest);
        self.refuse_metadata(writer, guest, host, len as u64)?;
        self.data.write_all_at(&data[..len], host.0)?;
        Ok(len)
    }

    /// Guest data is never written over metadata, whatever an L2 entry says.
    pub(super) fn refuse_metadata(
        &self,
        writer: &Writer,
        guest: GuestOffset,
        host: HostOffset,
        len: u64,
    ) -> Result<()> {
        if self.geometry.data_file {
            return Ok(());
        }
        let clusters = self.geometry.cluster_of(host).0..self.geometry.cluster_of(host + (len - 1)).0 + 1;
        match writer.metadata_map().first_in(clusters) {
            Some(cluster) => Err(self
                .corrupt(Corruption::MappedToMetadata { guest, cluster })
                .with_hint("the image must be repaired before it is written to")),
            None => Ok(()),
        }
    }

    /// What maps `guest` now, for whoever holds its range and is about to replace that: its host clusters are taken
    /// back then, and metadata must not be.
    pub(super) fn lookup_to_replace(&self, writer: &Writer, guest: GuestOffset) -> Result<L2Mapping> {
        let mapping = self.mapping(guest)?;
        match mapping {
            L2Mapping::Standard { host, .. }
            | L2Mapping::Zero {
                preallocated: Some((host, _)),
            } => self.refuse_metadata(writer, guest, host, 1)?,
            L2Mapping::Compressed(data) => self.refuse_metadata(writer, guest, data.host, data.len)?,
            L2Mapping::Unallocated | L2Mapping::Zero { preallocated: None } => {}
        }
        Ok(mapping)
    }

    fn write_allocating(&self, writer: &Writer, data: &[u8], guest: GuestOffset) -> Result<usize> {
        self.write_back_if_full(writer)?;
        let bits = self.geometry.cluster_bits;
        let end = (guest + data.len() as u64).min(self.slice_end(guest));
        let clusters = guest.0 >> bits..((end.0 - 1) >> bits) + 1;
        let _range = writer.ranges.lock(clusters.clone());

        let Some(run) = self.allocating_run(writer, clusters)? else {
            return Ok(0);
        };
        self.ensure_table(writer, guest)?;
        let target = self.target(writer, guest, run)?;
        let start = GuestOffset(guest.0 >> bits << bits);
        let len = (data.len() as u64).min(target.count * self.geometry.cluster_size() - (guest - start));
        let data = &data[..len as usize];
        let written = self.write_clusters(data, guest, &target).and_then(|()| {
            let entries = (0..target.count).map(|i| L2Mapping::Standard {
                host: target.host + (i << bits),
                copied: true,
            });
            self.set_mappings(writer, start, entries)
        });
        if written.is_err() && target.new {
            let first = self.geometry.cluster_of(target.host).0;
            writer.meta().allocator.give_back(first..first + target.count)?;
        }
        written.map(|()| data.len())
    }

    /// How many of `clusters`, from the first on, can't be written in place, alike in whether they keep host
    /// clusters. `None` if the first can be: somebody else has just allocated it.
    pub(super) fn allocating_run(&self, writer: &Writer, clusters: Range<u64>) -> Result<Option<Run>> {
        let size = self.geometry.cluster_size();
        let mapping_of =
            |cluster: u64| self.lookup_to_replace(writer, GuestOffset(cluster << self.geometry.cluster_bits));
        let kept = |mapping| match mapping {
            _ if self.geometry.data_file => None,
            L2Mapping::Zero {
                preallocated: Some((host, true)),
            } => Some(host),
            _ => None,
        };
        let first = mapping_of(clusters.start)?;
        if matches!(first, L2Mapping::Standard { copied: true, .. }) {
            return Ok(None);
        }
        let first = kept(first);
        let mut count = 1;
        for cluster in clusters.start + 1..clusters.end {
            let next = mapping_of(cluster)?;
            let alike = match (first, kept(next)) {
                (Some(first), Some(next)) => first + count * size == next,
                (None, None) => !matches!(next, L2Mapping::Standard { copied: true, .. }),
                _ => false,
            };
            if !alike {
                break;
            }
            count += 1;
        }
        Ok(Some(Run { kept: first, count }))
    }

    pub(super) fn target(&self, writer: &Writer, guest: GuestOffset, run: Run) -> Result<Target> {
        if let Some(host) = run.kept {
            self.refuse_metadata(writer, guest, host, run.count << self.geometry.cluster_bits)?;
            return Ok(Target {
                host,
                count: run.count,
                new: false,
                fresh: false,
            });
        }
        if self.geometry.data_file {
            return Ok(Target {
                host: HostOffset(guest.0 - self.geometry.in_cluster(guest)),
                count: run.count,
                new: false,
                fresh: false,
            });
        }
        let allocation = writer.meta().allocator.allocate(run.count, Use::Data)?;
        let host = self.geometry.offset_of(ClusterIndex(allocation.clusters.start));
        Ok(Target {
            host,
            count: run.count,
            new: true,
            fresh: allocation.fresh,
        })
    }

    /// Writes `data` and, around it, what the guest's clusters held before.
    fn write_clusters(&self, data: &[u8], guest: GuestOffset, target: &Target) -> Result<()> {
        let size = self.geometry.cluster_size();
        let head_len = self.geometry.in_cluster(guest);
        let end = self.end_of_copy(GuestOffset(guest.0 - head_len) + target.count * size);
        let tail_len = end.0.saturating_sub(guest.0 + data.len() as u64);
        let mut head = Scratch::new(head_len as usize);
        let mut tail = Scratch::new(tail_len as usize);
        self.read_old(&mut head, GuestOffset(guest.0 - head_len))?;
        self.read_old(&mut tail, guest + data.len() as u64)?;
        // A place that the file has never reached reads as zeros without being written to.
        let skip = |part: &[u8]| part.is_empty() || target.fresh && is_zero(part);
        match (skip(&head), skip(&tail)) {
            (true, true) => self.data.write_all_at(data, (target.host + head_len).0),
            (skip_head, skip_tail) => {
                let start = if skip_head {
                    target.host + head_len
                } else {
                    target.host
                };
                let head = if skip_head { &[][..] } else { &head[..] };
                let tail = if skip_tail { &[][..] } else { &tail[..] };
                let parts = [head, data, tail].map(IoSlice::new);
                self.data.write_vectored_at(&parts, start.0)
            }
        }
    }

    /// Copies what the clusters of `len` bytes at `guest`, which somebody else has written, held around them.
    pub(super) fn copy_around(&self, guest: GuestOffset, len: u64, target: &Target) -> Result<()> {
        let start = GuestOffset(guest.0 - self.geometry.in_cluster(guest));
        let (head, tail) = (
            start..guest,
            guest + len..self.end_of_copy(start + (target.count << self.geometry.cluster_bits)),
        );
        for part in [head, tail] {
            let mut old = Scratch::new(part.end.0.saturating_sub(part.start.0) as usize);
            self.read_old(&mut old, part.start)?;
            let there_already = old.is_empty() || target.fresh && is_zero(&old);
            if !there_already {
                self.data
                    .write_all_at(&old, (target.host + (part.start - start)).0)?;
            }
        }
        Ok(())
    }

    /// What the guest sees now in part of a cluster; zeros past the end of the disk.
    fn read_old(&self, buf: &mut [u8], guest: GuestOffset) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.read_mapped(self.mapping(guest)?, buf, guest)
    }

    /// Sets the mappings of the clusters from `start` on, all in one slice whose table may be written in place, and
    /// takes back what they named before. The caller holds their range.
    pub(super) fn set_mappings(
        &self,
        writer: &Writer,
        start: GuestOffset,
        mappings: impl Iterator<Item = L2Mapping> + Clone,
    ) -> Result<()> {
        let (slice, index) = self.slice_of(start);
        loop {
            self.load_for_update(start)?;
            let mut meta = writer.meta();
            let Some(old) = self.cache.copy(slice) else {
                continue;
            };
            let entries = mappings.clone().map(|mapping| mapping.encode(self.geometry));
            let pin = !meta.dirty_slices.contains(&slice);
            if !self.cache.update(slice, index, entries, pin) {
                continue;
            }
            meta.dirty_slices.insert(slice);
            for (i, new) in mappings.enumerate() {
                let table_index = self.geometry.l2_index(start) + i;
                let old =
                    L2Mapping::decode(old[index + i], table_index as u64, self.geometry, self.zero_flag)
                        .map_err(|corruption| self.corrupt(corruption))?;
                meta.take_back(old, new, self.geometry);
            }
            return Ok(());
        }
    }

    /// Makes sure that the L2 table for `guest` exists and may be written in place.
    pub(super) fn ensure_table(&self, writer: &Writer, guest: GuestOffset) -> Result<()> {
        let index = self.geometry.l1_index(guest);
        loop {
            let entry = self.l1.load(index);
            let old = self.decode_l1(entry, index)?;
            if matches!(old, L1Entry::Table { copied: true, .. }) {
                return Ok(());
            }
            let allocation = writer.meta().allocator.allocate(1, Use::Metadata)?;
            let host = self.geometry.offset_of(ClusterIndex(allocation.clusters.start));
            let written = self.write_new_table(old, host);
            let mut meta = writer.meta();
            if written.is_err() || self.l1.load(index) != entry {
                // The write failed, or somebody else has just made the table.
                meta.allocator.give_back(allocation.clusters)?;
                drop(meta);
                written?;
                continue;
            }
            self.l1
                .store(index, L1Entry::Table { host, copied: true }.encode());
            meta.dirty_l1.insert(index);
            if let L1Entry::Table { host, .. } = old {
                let cluster = self.geometry.cluster_of(host).0;
                meta.allocator.free(cluster..cluster + 1);
            }
            return Ok(());
        }
    }

    /// Writes a new L2 table: empty, or the copy of one that a snapshot shares.
    fn write_new_table(&self, old: L1Entry, host: HostOffset) -> Result<()> {
        let size = self.geometry.cluster_size();
        match old {
            L1Entry::Unallocated => self.storage.zero(host.0, size, block::ZeroMode::Allocate),
            L1Entry::Table { host: old, .. } => {
                self.check_inside("L2 table", old, size)?;
                let mut table = Scratch::new(size as usize);
                self.storage.read_exact_at(&mut table, old.0)?;
                self.storage.write_all_at(&table, host.0)
            }
        }
    }

    /// Stores compressed data for the cluster at `guest`.
    pub(super) fn write_compressed(
        &self,
        writer: &Writer,
        compressed: &[u8],
        guest: GuestOffset,
    ) -> Result<()> {
        self.write_back_if_full(writer)?;
        let _pin = writer.epoch.pin();
        let cluster = guest.0 >> self.geometry.cluster_bits;
        let _range = writer.ranges.lock(cluster..cluster + 1);
        self.lookup_to_replace(writer, guest)?;
        self.ensure_table(writer, guest)?;
        let data = writer
            .meta()
            .allocator
            .allocate_compressed(compressed.len() as u64)?;
        let written = self
            .storage
            .write_all_at(compressed, data.host.0)
            .and_then(|()| self.set_mappings(writer, guest, std::iter::once(L2Mapping::Compressed(data))));
        if written.is_err() {
            writer.meta().allocator.give_back_compressed(data)?;
        }
        written
    }

    /// Refuses a write where none can be: read-only, or after a failure that left the metadata in doubt.
    pub(super) fn writer(&self, op: &str) -> Result<&Writer> {
        let Some(writer) = &self.writer else {
            return Err(Error::read_only(op).with_path_of(self.storage.path()));
        };
        match writer.failed.get() {
            Some(error) => Err(error.clone()),
            None => Ok(writer),
        }
    }
}

/// Clusters that an allocating write can take as one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Where the host clusters are that they keep, if they do.
    kept: Option<HostOffset>,
    count: u64,
}

fn is_zero(bytes: &[u8]) -> bool {
    // Safe code that the compiler turns into wide compares.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}
