//! Writing: in place where the cluster is this image's alone, into new clusters otherwise.
//!
//! An allocating write goes: range lock; look again; room from the allocator; data into the new clusters, with what
//! the guest does not overwrite copied around it in the same host write; and only then the new L2 entries, in the
//! cache. Nothing of that waits for the disk: a flush puts it in order (see [`super::flush`]). A write that fails
//! before its entries are set leaves the old data mapped and gives its room back.
//!
//! What has to be copied, and what the entries become, is worked out in [`super::cow`].

use std::io::IoSlice;

use block::{Error, Result, Scratch, Storage};

use super::cow::{Edges, Run, Target};
use super::{Image, Writer, amend};
use crate::address::{ClusterIndex, GuestOffset, HostOffset};
use crate::allocator::Use;
use crate::corruption::Corruption;
use crate::entry::{L1Entry, L2Entry, L2Mapping};

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
        if !matches!(self.mapping(guest)?, L2Mapping::Standard { copied: true, .. }) {
            return self.write_allocating(writer, data, guest);
        }
        let (mapping, len) = self.run(guest, data.len() as u64)?;
        let L2Mapping::Standard { host, copied: true } = mapping else {
            return Ok(0);
        };
        let host = host + self.geometry.in_subcluster(guest);
        self.refuse_metadata(writer, guest, host, len)?;
        self.put(&[IoSlice::new(&data[..len as usize])], guest, host)?;
        Ok(len as usize)
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

    /// What maps the cluster of `guest` now, for whoever holds its range and is about to replace that: its host
    /// clusters are taken back then, and metadata must not be.
    pub(super) fn lookup_to_replace(&self, writer: &Writer, guest: GuestOffset) -> Result<L2Entry> {
        let entry = self.entry(guest)?;
        match entry {
            L2Entry::Standard {
                host: Some((host, _)),
                ..
            } => self.refuse_metadata(writer, guest, host, 1)?,
            L2Entry::Compressed(data) => self.refuse_metadata(writer, guest, data.host, data.len)?,
            L2Entry::Standard { host: None, .. } => {}
        }
        Ok(entry)
    }

    fn write_allocating(&self, writer: &Writer, data: &[u8], guest: GuestOffset) -> Result<usize> {
        self.write_back_if_full(writer)?;
        let bits = self.geometry.cluster_bits;
        let end = (guest + data.len() as u64).min(self.slice_end(guest));
        let _range = writer.ranges.lock(guest.0 >> bits..((end.0 - 1) >> bits) + 1);

        let Some(run) = self.allocating_run(writer, guest, end)? else {
            return Ok(0);
        };
        self.ensure_table(writer, guest)?;
        let target = self.target(writer, guest, &run)?;
        let start = GuestOffset(guest.0 >> bits << bits);
        let len = (end - guest).min((target.count << bits) - (guest - start));
        let data = &data[..len as usize];
        let edges = Edges::new(&run, &target, guest - start, len, self.geometry);
        let written = self
            .write_clusters(data, guest, &target, &edges)
            .and_then(|()| self.set_entries(writer, start, edges.entries(&target, self.geometry)));
        if written.is_err() && target.new {
            let first = self.geometry.cluster_of(target.host).0;
            writer.meta().allocator.give_back(first..first + target.count)?;
        }
        written.map(|()| data.len())
    }

    /// The clusters of `guest .. end`, from the first on, that an allocating write can take as one: all keep host
    /// clusters that lie one after the other, or none does. `None` if the first can be written in place: somebody
    /// else has just allocated it.
    pub(super) fn allocating_run(
        &self,
        writer: &Writer,
        guest: GuestOffset,
        end: GuestOffset,
    ) -> Result<Option<Run>> {
        let size = self.geometry.cluster_size();
        let data_file = self.geometry.data_file;
        let kept = |entry, cluster: GuestOffset| match entry {
            // Whether it says so or not, a guest cluster has its place in a data file.
            _ if data_file => Some(HostOffset(cluster.0)),
            L2Entry::Standard {
                host: Some((host, true)),
                ..
            } => Some(host),
            _ => None,
        };
        let start = self.geometry.in_cluster(guest);
        let mut next = GuestOffset(guest.0 - start);
        let first = self.lookup_to_replace(writer, next)?;
        let mut run = Run {
            kept: kept(first, next),
            count: 1,
            first,
            last: first,
        };
        if let L2Entry::Standard { subclusters, .. } = first {
            let touched = start..(start + (end - guest)).min(size);
            let in_place = self.geometry.subclusters_touched(&touched) & !subclusters.allocated == 0;
            if run.kept.is_some() && in_place {
                return Ok(None);
            }
        }
        next += size;
        while next < end {
            let entry = self.lookup_to_replace(writer, next)?;
            if kept(entry, next) != run.kept.map(|host| host + run.count * size) {
                break;
            }
            run.count += 1;
            run.last = entry;
            next += size;
        }
        Ok(Some(run))
    }

    pub(super) fn target(&self, writer: &Writer, guest: GuestOffset, run: &Run) -> Result<Target> {
        if let Some(host) = run.kept {
            self.refuse_metadata(writer, guest, host, run.count << self.geometry.cluster_bits)?;
            return Ok(Target {
                host,
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
            // Zeros in the file are no zeros on an encrypted disk.
            fresh: allocation.fresh && self.encryption.is_none(),
        })
    }

    /// Writes `data` and, around it, what the subclusters at its edges held before.
    fn write_clusters(&self, data: &[u8], guest: GuestOffset, target: &Target, edges: &Edges) -> Result<()> {
        let mut head = Scratch::new((edges.head.end - edges.head.start) as usize);
        let start = guest.0 - self.geometry.in_cluster(guest);
        let end = self.end_of_copy(GuestOffset(start + edges.tail.end));
        let mut tail = Scratch::new(end.0.saturating_sub(start + edges.tail.start) as usize);
        self.read_old(&mut head, GuestOffset(start + edges.head.start), edges.first.copy)?;
        self.read_old(&mut tail, guest + data.len() as u64, edges.last.copy)?;
        // A place that the file has never reached reads as zeros without being written to.
        let skip = |part: &[u8]| part.is_empty() || target.fresh && is_zero(part);
        let (skip_head, skip_tail) = (skip(&head), skip(&tail));
        let at = target.host
            + if skip_head {
                edges.head.end
            } else {
                edges.head.start
            };
        let guest = GuestOffset(start + (at - target.host));
        if skip_head && skip_tail {
            return self.put(&[IoSlice::new(data)], guest, at);
        }
        let head = if skip_head { &[][..] } else { &head[..] };
        let tail = if skip_tail { &[][..] } else { &tail[..] };
        self.put(&[head, data, tail].map(IoSlice::new), guest, at)
    }

    /// Writes guest data, from `guest` on, to `host`.
    #[inline]
    fn put(&self, parts: &[IoSlice<'_>], guest: GuestOffset, host: HostOffset) -> Result<()> {
        match (&self.encryption, parts) {
            (Some(encryption), _) => self.put_encrypted(encryption, parts, guest, host),
            (None, [one]) => self.data.write_all_at(one, host.0),
            (None, _) => self.data.write_vectored_at(parts, host.0),
        }
    }

    /// What the guest sees now in part of a cluster, from `guest` on, where its subclusters are in `copy`; zeros in
    /// the others, and past the end of the disk.
    fn read_old(&self, buf: &mut [u8], guest: GuestOffset, copy: u32) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = guest + done as u64;
            let subcluster = self.geometry.subcluster_of(at);
            let copied = (copy >> subcluster).trailing_ones();
            let count = copied.max((!copy >> subcluster).trailing_ones());
            let len = (u64::from(count) << self.geometry.subcluster_bits()) - self.geometry.in_subcluster(at);
            let end = buf.len().min(done + len as usize);
            if copied > 0 {
                self.read(&mut buf[done..end], at)?;
            } else {
                buf[done..end].fill(0);
            }
            done = end;
        }
        Ok(())
    }

    /// Copies what the subclusters at the edges held around what somebody else has written to clusters, the first of
    /// which is that of `guest`.
    pub(super) fn copy_around(&self, guest: GuestOffset, target: &Target, edges: &Edges) -> Result<()> {
        let start = guest.0 - self.geometry.in_cluster(guest);
        let end = self.end_of_copy(GuestOffset(start + edges.tail.end)).0;
        for (part, cow) in [
            (edges.head.clone(), edges.first),
            (edges.tail.start..end.saturating_sub(start), edges.last),
        ] {
            let mut old = Scratch::new(part.end.saturating_sub(part.start) as usize);
            self.read_old(&mut old, GuestOffset(start + part.start), cow.copy)?;
            let there_already = old.is_empty() || target.fresh && is_zero(&old);
            if !there_already {
                let guest = GuestOffset(start + part.start);
                self.put(&[IoSlice::new(&old)], guest, target.host + part.start)?;
            }
        }
        Ok(())
    }

    /// Sets the entries of the clusters from `start` on, all in one slice whose table may be written in place, and
    /// takes back what they named before. The caller holds their range.
    pub(super) fn set_entries(
        &self,
        writer: &Writer,
        start: GuestOffset,
        entries: impl Iterator<Item = L2Entry> + Clone,
    ) -> Result<()> {
        let (slice, index) = self.slice_of(start);
        loop {
            self.load_for_update(start)?;
            let mut meta = writer.meta();
            let Some(old) = self.cache.copy(slice) else {
                continue;
            };
            let words = entries.clone().map(|entry| entry.encode(self.geometry));
            let pin = !meta.dirty_slices.contains(&slice);
            let updated = if self.geometry.extended_l2 {
                self.cache.update_pairs(slice, 2 * index, words, pin)
            } else {
                self.cache
                    .update(slice, index, words.map(|[entry, _]| entry), pin)
            };
            if !updated {
                continue;
            }
            meta.dirty_slices.insert(slice);
            for (i, new) in entries.enumerate() {
                let guest = start + ((i as u64) << self.geometry.cluster_bits);
                let old = self.decode_l2(self.words_at(&old, index + i), guest)?;
                meta.replace(old, new, self.geometry);
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
            meta.names_new = true;
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
            .and_then(|()| self.set_entries(writer, guest, std::iter::once(L2Entry::Compressed(data))));
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
            None if self.current_writer().is_none() => Err(amend::outdated(op)),
            None => Ok(writer),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Safe code that the compiler turns into wide compares.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}
