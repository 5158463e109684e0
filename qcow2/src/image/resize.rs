//! Changing the size of the disk. Each step leaves an image that is whole: a cut in the middle finds the old size or
//! the new one, and leaks at worst.

use block::{BlockDevice, Error, ErrorKind, Preallocation, Resize, Result, Scratch, Storage, ZeroMode};

use super::bitmap::Bitmaps;
use super::zero::Becomes;
use super::{Image, Writer};
use crate::address::{ClusterIndex, GuestOffset};
use crate::allocator::Use;
use crate::entry::{L1Entry, L2Entry};
use crate::geometry::MAX_L1_BYTES;
use crate::header::Version;
use crate::limit::Limit;

impl Image {
    /// Changes the size. Nobody else is writing.
    pub(super) fn change_size(
        &self,
        writer: &Writer,
        bitmaps: &mut Bitmaps,
        size: u64,
        how: Resize,
    ) -> Result<()> {
        let old = self.size();
        if !size.is_multiple_of(512) {
            return Err(
                Error::invalid(format!("a qcow2 disk cannot be {size} bytes long"))
                    .with_hint("give a multiple of 512"),
            );
        }
        if size < old && !how.shrink {
            return Err(Error::invalid(format!(
                "shrinking from {old} to {size} bytes would delete what lies beyond"
            ))
            .with_hint("shrink the filesystem first, then allow it with --shrink"));
        }
        self.check_snapshots()?;
        if size < old && how.preallocation != Preallocation::Off {
            return Err(Error::invalid("preallocation cannot be used when shrinking"));
        }
        bitmaps.check_resizable()?;
        self.save_bitmaps(writer, bitmaps)?;
        self.clear_autoclear(writer)?;
        if size < old {
            self.shrink(writer, bitmaps, size)
        } else {
            self.grow(writer, bitmaps, size, how.preallocation)
        }
    }

    /// Makes the header say the size, and name bitmaps of that size.
    fn switch_size(&self, writer: &Writer, bitmaps: &mut Bitmaps, size: u64) -> Result<()> {
        let directory = self.resize_bitmaps(writer, bitmaps, size)?;
        self.switch_directory(writer, bitmaps, directory, |header| header.size = size)?;
        self.set_size(size);
        Ok(())
    }

    /// A snapshot of version 2 need not say how long its disk is, and has the image's length then.
    fn check_snapshots(&self) -> Result<()> {
        let header = self.locked_header();
        if header.version >= Version::V3 || header.snapshot_count == 0 {
            return Ok(());
        }
        let message = "an image of version 2 (compat=0.10) that has snapshots cannot be resized";
        Err(Error::unsupported(message)
            .with_path_of(self.storage.path())
            .with_hint("make it one of version 3 first: `imgtool amend -o compat=1.1`"))
    }

    fn grow(
        &self,
        writer: &Writer,
        bitmaps: &mut Bitmaps,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        self.check_mappable(size)?;
        self.check_preallocation(preallocation)?;
        // What waits first: what fails from here on is the growth, and nothing else need be taken back with it.
        self.write_back()?;
        let data_len = self.data.len()?;
        self.grow_in_order(writer, bitmaps, size, preallocation)
            .inspect_err(|_| self.undo_growth(writer, size, data_len))
    }

    fn grow_in_order(
        &self,
        writer: &Writer,
        bitmaps: &mut Bitmaps,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let old = self.size();
        let entries = self.geometry.l1_entries(size);
        if entries as usize > self.l1.entries() {
            self.move_l1(writer, entries as usize)?;
        }
        let preallocation = self.grow_data_file(old, size, preallocation)?;
        self.hide_what_lies_below(writer, old, size)?;
        if preallocation != Preallocation::Off {
            self.preallocate(writer, old, size, preallocation)?;
        }
        self.switch_size(writer, bitmaps, size)
    }

    /// Refuses a size that is more than an L1 table can map.
    pub(super) fn check_mappable(&self, size: u64) -> Result<()> {
        if self.geometry.l1_entries(size) * 8 <= MAX_L1_BYTES {
            return Ok(());
        }
        let most = MAX_L1_BYTES / 8 * self.geometry.l2_coverage();
        let limit = Limit::DiskSize {
            size,
            cluster_size: self.geometry.cluster_size(),
            most,
        };
        Err(limit.error(
            ErrorKind::InvalidInput,
            "convert to an image with larger clusters",
        ))
    }

    /// Refuses to lay out clusters that would not read as zeros.
    fn check_preallocation(&self, how: Preallocation) -> Result<()> {
        if how == Preallocation::Off || self.encryption.is_none() || self.can_say_zero() {
            return Ok(());
        }
        let message =
            "an encrypted image of version 2 (compat=0.10) cannot be preallocated: it has no zero clusters";
        Err(Error::unsupported(message)
            .with_hint("make it one of version 3 first: `imgtool amend -o compat=1.1`"))
    }

    /// Makes what is added read as zeros: the rest of the last cluster, which may hold anything; clusters past the
    /// end that whoever made the disk shorter left mapped; and what a backing file that is longer than the disk was
    /// holds there.
    fn hide_what_lies_below(&self, writer: &Writer, old: u64, size: u64) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let boundary = old.next_multiple_of(cluster_size);
        self.zero(
            writer,
            GuestOffset(old),
            boundary.min(size) - old,
            ZeroMode::Allocate,
        )?;
        let end = GuestOffset(size.next_multiple_of(cluster_size));
        self.change_subclusters(writer, GuestOffset(boundary), end, Becomes::Unallocated)?;
        let below = self
            .backing
            .as_ref()
            .map_or(0, |backing| backing.size())
            .min(size);
        if below <= boundary {
            return Ok(());
        }
        if self.can_say_zero() {
            let last = GuestOffset(below.next_multiple_of(cluster_size));
            self.change_subclusters(writer, GuestOffset(boundary), last, Becomes::Zero)
        } else {
            self.zero_part(writer, GuestOffset(boundary), below - boundary, Becomes::Zero)
        }
    }

    /// Moves the L1 table to where it has room for `entries`.
    fn move_l1(&self, writer: &Writer, entries: usize) -> Result<()> {
        self.write_back()?;
        let (old_start, old_entries) = {
            let header = self.locked_header();
            (self.geometry.cluster_of(header.l1_offset).0, header.l1_entries)
        };
        let old_len = self.geometry.clusters(u64::from(old_entries) * 8);
        let count = self.geometry.clusters(entries as u64 * 8);
        let allocation = writer.meta().allocator.allocate(count, Use::Metadata)?;
        let place = self.geometry.offset_of(ClusterIndex(allocation.clusters.start));
        let written = self
            .storage
            .zero(place.0, count << self.geometry.cluster_bits, ZeroMode::Allocate);
        let written = written.and_then(|()| {
            self.storage
                .write_all_at(&self.l1.to_bytes(0, old_entries as usize), place.0)
        });
        if let Err(error) = written {
            writer.meta().allocator.give_back(allocation.clusters)?;
            return Err(error);
        }
        // The new table and its refcounts before the header that names it.
        self.write_back()?;
        self.update_header(|header| {
            header.l1_offset = place;
            header.l1_entries = entries as u32;
        })
        .inspect_err(|error| writer.latch(error))?;
        self.l1.set_entries(entries);
        // No request reads it, and the file does not name it any more.
        let released = writer.meta().allocator.release(old_start..old_start + old_len, 1);
        released.inspect_err(|error| writer.latch(error))
    }

    fn shrink(&self, writer: &Writer, bitmaps: &mut Bitmaps, size: u64) -> Result<()> {
        let old = self.size();
        // The size first: from here on nobody reaches what is about to go.
        self.switch_size(writer, bitmaps, size)?;
        self.unmap_past_end(writer, old)?;
        self.drop_refcount_blocks(writer)?;
        self.cut_data_file(size)
    }

    /// Takes back the refcount blocks that count nothing any more. One that another counts goes first, and so that may
    /// have become empty.
    fn drop_refcount_blocks(&self, writer: &Writer) -> Result<()> {
        loop {
            let dropped = writer.meta().allocator.refcounts.drop_empty_blocks()?;
            if dropped.is_empty() {
                return Ok(());
            }
            // The table first: a cut leaves clusters that are counted and not named.
            self.write_back()?;
            let released = writer.meta().allocator.release_blocks(&dropped);
            released.inspect_err(|error| writer.latch(error))?;
            self.write_back()?;
        }
    }

    /// Takes back the L2 tables from `from` on. They map nothing any more.
    pub(super) fn drop_tables(&self, writer: &Writer, from: usize) -> Result<()> {
        let tables_per_l1 = self.geometry.l2_bits() - self.geometry.slice_bits();
        let mut meta = writer.meta();
        for index in from..self.l1.entries() {
            if let L1Entry::Table { host, .. } = self.decode_l1(self.l1.load(index), index)? {
                self.l1.store(index, L1Entry::Unallocated.encode());
                meta.dirty_l1.insert(index);
                let cluster = self.geometry.cluster_of(host).0;
                meta.allocator.free(cluster..cluster + 1);
            }
        }
        self.cache.forget(|slice| slice >> tables_per_l1 >= from as u64);
        Ok(())
    }

    /// Lays out the clusters of `from .. to` in advance: mapped, and with as much room as `how` asks for. They hold
    /// nothing that is needed: what was mapped there has been hidden.
    fn preallocate(&self, writer: &Writer, from: u64, to: u64, how: Preallocation) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let end = GuestOffset(to.next_multiple_of(self.geometry.cluster_size()));
        let mut guest = GuestOffset(from.next_multiple_of(self.geometry.cluster_size()));
        while guest < end {
            self.write_back_if_full(writer)?;
            let count = (end.min(self.slice_end(guest)) - guest) >> bits;
            self.preallocate_run(writer, guest, count, how)?;
            guest += count << bits;
        }
        Ok(())
    }

    fn preallocate_run(
        &self,
        writer: &Writer,
        guest: GuestOffset,
        count: u64,
        how: Preallocation,
    ) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let _pin = writer.epoch.pin();
        let _range = writer.ranges.lock(guest.0 >> bits..(guest.0 >> bits) + count);
        let old = (0..count)
            .map(|cluster| self.lookup_to_replace(writer, guest + (cluster << bits)))
            .collect::<Result<Vec<_>>>()?;
        self.ensure_table(writer, guest)?;
        if self.geometry.data_file {
            return self.preallocate_in_data_file(writer, guest, count, how);
        }
        let allocation = writer.meta().allocator.allocate(count, Use::Data)?;
        let host = self.geometry.offset_of(ClusterIndex(allocation.clusters.start));
        let len = count << bits;
        let laid_out = match how {
            Preallocation::Full => self.fill(host.0, len),
            Preallocation::Falloc => self
                .clear(host.0, len, allocation.fresh)
                .and_then(|()| self.storage.allocate(host.0, len)),
            Preallocation::Off | Preallocation::Metadata => self.clear(host.0, len, allocation.fresh),
        };
        let mapped = laid_out.and_then(|()| {
            let entries = (0..).zip(&old).map(|(i, old)| {
                let zero = match old {
                    _ if self.encryption.is_some() && !self.geometry.extended_l2 => {
                        self.geometry.all_subclusters()
                    }
                    _ if !self.geometry.extended_l2 => 0,
                    L2Entry::Standard { subclusters, .. } => subclusters.zero,
                    L2Entry::Compressed(_) => 0,
                };
                L2Entry::preallocated(host + (i << bits), zero, self.geometry)
            });
            self.set_entries(writer, guest, entries)
        });
        if mapped.is_err() {
            writer.meta().allocator.give_back(allocation.clusters)?;
        }
        mapped
    }

    /// Makes host clusters read as zeros and lie inside the file.
    pub(super) fn clear(&self, host: u64, len: u64, fresh: bool) -> Result<()> {
        if !fresh {
            return self.storage.zero(host, len, ZeroMode::Unmap);
        }
        let end = host + len;
        if self.storage.len()? < end {
            self.storage.set_len(end)
        } else {
            Ok(())
        }
    }

    /// Writes zeros, for room that is really there.
    pub(super) fn fill(&self, host: u64, len: u64) -> Result<()> {
        let mut zeros = Scratch::new((1 << 20).min(len) as usize);
        zeros.fill(0);
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.data.write_all_at(&zeros[..step as usize], host + done)?;
            done += step;
        }
        Ok(())
    }
}
