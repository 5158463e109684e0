//! Write-back, in the order that makes every crash harmless.
//!
//! Between two syncs, writes reach the disk in any order, or not at all. So, each step durable before the next:
//!
//! 1. guest data and new L2 tables, empty or copies (all written already), and refcount blocks;
//! 2. entries for new refcount blocks in the refcount table, or the header where the whole table moved;
//! 3. L2 and L1 entries;
//! 4. in memory only: what step 3 has stopped naming can be reused.
//!
//! Wherever a cut falls, clusters may be counted that nothing names (leaks), and never the other way round. Steps
//! with nothing to do cost nothing: a flush with no metadata to write is one sync, one after allocating writes two, and
//! one before anything was written, or after settling, is none (see [`file`](super::file)). Between flushes nothing syncs;
//! the cache is written back early only when half of it waits.
//!
//! # Lazy refcounts
//!
//! An image may say that its refcounts can be postponed ("Lazy refcounts bit"). A flush that the guest asks for then leaves
//! out the refcounts of step 1, and step 2. They stay in memory until something needs them in the file. In between, the file
//! names clusters that it counts as free, and says so: the incompatible bit "dirty" makes whoever opens it for writing next
//! count all references anew ([`recover`](crate::recover)), without a look at the refcounts that are there. So the order is:
//!
//! 1. before the first refcount is postponed: the dirty bit;
//! 2. guest data and new L2 tables;
//! 3. L2 and L1 entries;
//! 4. in memory only: what step 3 has stopped naming can be reused.
//!
//! What makes a cut harmless is that a recovery needs nothing but references, and these are in order without refcounts: an
//! entry reaches the disk after the data or the table that it names (2 before 3), and a cluster is given out again when no
//! entry on the disk names it any more (3 before 4), whatever its refcount in the file is. A cut before step 1 is durable
//! finds the old entries, which all name what the file counts.
//!
//! With the refcounts gone from step 2, it often has nothing left to do: where entries only give up what they named, as
//! zeroes and discards do, nothing has to be on the disk before they are, and the flush is one sync instead of two.
//!
//! Everything else that writes back (closing, snapshots, bitmaps, amending, other sizes) wants refcounts to be right. It
//! writes all that was postponed in the order above, as if nothing had been, and clears the dirty bit last: the file counts
//! everything that it names from the moment that step 1 is durable, and names nothing else before the next flush. So does a
//! flush when more refcount blocks wait than are to be kept in memory, except that the bit stays.

use std::ops::Range;

use block::{Result, Storage};

use super::{Image, Meta, Writer};
use crate::address::HostOffset;
use crate::entry::L1Entry;
use crate::feature::{CompatibleFeatures, IncompatibleFeatures};
use crate::refcount_table::{RefcountWrites, Write};

/// Runs of freed clusters that may wait for a flush before one is made.
const MAX_WAITING: usize = 1 << 16;

/// What becomes of the refcounts in an image that may postpone them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refcounts {
    /// They are right in the file afterwards.
    Right,
    /// They may wait.
    Postponed,
}

/// What a flush has taken out of [`Meta`].
#[derive(Default)]
struct Batch {
    /// Refcounts are left behind that the file needs, unless it says that it is dirty.
    postponed: bool,
    /// Something must be durable before the mappings are written.
    ordered: bool,
    refcounts: RefcountWrites,
    freed: Vec<Range<u64>>,
    slices: Vec<u64>,
    /// L2 slices and L1 entries.
    mappings: Vec<Write>,
}

impl Image {
    /// Writes everything back, in order, and makes it durable; refcounts are right in the file then. A failure is
    /// remembered: which of the metadata reached the disk is then unknown, so every later write is refused with the same
    /// error.
    pub(super) fn write_back(&self) -> Result<()> {
        self.write_back_with(Refcounts::Right)
    }

    /// [`write_back`](Self::write_back), but for refcounts that may wait.
    pub(super) fn write_back_for_guest(&self) -> Result<()> {
        self.write_back_with(Refcounts::Postponed)
    }

    fn write_back_with(&self, refcounts: Refcounts) -> Result<()> {
        let Some(writer) = self.current_writer() else {
            return Ok(());
        };
        let _one_at_a_time = writer.flushing();
        self.writer("flush")?;
        let result = self.write_back_in_order(writer, refcounts);
        result.inspect_err(|error| writer.latch(error))
    }

    fn write_back_in_order(&self, writer: &Writer, refcounts: Refcounts) -> Result<()> {
        let (l1_offset, lazy, dirty) = {
            let header = self.locked_header();
            let lazy = header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS);
            let dirty = header.incompatible.contains(IncompatibleFeatures::DIRTY);
            (header.l1_offset, lazy, dirty)
        };
        let postpone = lazy && refcounts == Refcounts::Postponed;
        let batch = self.take_batch(&mut writer.meta(), l1_offset, postpone)?;
        if batch.postponed && !dirty {
            self.update_header(|header| header.incompatible.insert(IncompatibleFeatures::DIRTY))?;
        }
        self.write_each(&batch.refcounts.blocks)?;
        if self.geometry.data_file {
            self.data.sync_what_waits(writer)?;
        }
        if batch.ordered || batch.mappings.is_empty() {
            self.storage.sync_what_waits(writer)?;
        }
        if !batch.refcounts.table.is_empty() {
            self.write_each(&batch.refcounts.table)?;
            self.storage.sync_data()?;
        }
        if let Some((offset, clusters)) = batch.refcounts.moved_to {
            self.update_header(|header| {
                header.refcount_table_offset = offset;
                header.refcount_table_clusters = clusters;
            })?;
        }
        if !batch.mappings.is_empty() {
            self.write_each(&batch.mappings)?;
            self.storage.sync_data()?;
        }
        if dirty && refcounts == Refcounts::Right {
            self.update_header(|header| header.incompatible.remove(IncompatibleFeatures::DIRTY))?;
        }
        let mut meta = writer.meta();
        for slice in &batch.slices {
            self.cache.unpin(*slice);
        }
        meta.allocator
            .end_flush(&batch.refcounts, batch.freed, &writer.epoch)
    }

    /// Takes what waits, as it is now. Later changes wait for the next flush.
    fn take_batch(&self, meta: &mut Meta, l1_offset: HostOffset, postpone: bool) -> Result<Batch> {
        let postpone = postpone && !meta.allocator.refcounts.is_full();
        let (refcounts, freed) = meta.allocator.begin_flush(postpone)?;
        let mut batch = Batch {
            postponed: postpone && meta.allocator.refcounts.is_dirty(),
            ordered: std::mem::take(&mut meta.names_new) || !postpone,
            refcounts,
            freed,
            ..Batch::default()
        };
        for slice in std::mem::take(&mut meta.dirty_slices) {
            batch.slices.push(slice);
            let index = self.geometry.l1_index(self.slice_start(slice));
            if let Some(entries) = self.cache.copy(slice)
                && let L1Entry::Table { host, .. } = self.decode_l1(self.l1.load(index), index)?
            {
                let bytes = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
                batch.mappings.push(Write {
                    at: self.slice_place(slice, host),
                    bytes,
                });
            }
        }
        for index in std::mem::take(&mut meta.dirty_l1) {
            let bytes = self.l1.load(index).to_be_bytes().to_vec();
            batch.mappings.push(Write {
                at: l1_offset + index as u64 * 8,
                bytes,
            });
        }
        Ok(batch)
    }

    /// Writes back early when much waits. Called with no range held.
    pub(super) fn write_back_if_full(&self, writer: &Writer) -> Result<()> {
        let meta = writer.meta();
        let full = meta.dirty_slices.len() > self.cache.slots() / 2 || meta.allocator.waiting() > MAX_WAITING;
        drop(meta);
        if full { self.write_back_for_guest() } else { Ok(()) }
    }

    /// Writes each, those that touch as one.
    pub(super) fn write_each(&self, writes: &[Write]) -> Result<()> {
        let mut rest = writes;
        while let Some((first, after)) = rest.split_first() {
            let mut end = first.at + first.bytes.len() as u64;
            let touching = after.iter().take_while(|write| {
                let touches = write.at == end;
                end += write.bytes.len() as u64;
                touches
            });
            let (run, after) = rest.split_at(1 + touching.count());
            match run {
                [one] => self.storage.write_all_at(&one.bytes, one.at.0)?,
                run => {
                    let bytes = run
                        .iter()
                        .flat_map(|write| &write.bytes)
                        .copied()
                        .collect::<Vec<_>>();
                    self.storage.write_all_at(&bytes, first.at.0)?;
                }
            }
            rest = after;
        }
        Ok(())
    }
}
