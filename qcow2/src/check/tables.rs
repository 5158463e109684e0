//! Counting what the L1 and L2 tables name, and checking their flags.
//!
//! An L2 table counts as often as L1 entries name it, and is read once. The active L1 table is special: what it
//! names is the guest's disk, so that figures about the disk come from it, and COPIED means something in it and in
//! the L2 tables that it names. (In a snapshot's tables the flags are what they were, until it is applied.)

use std::ops::Range;

use block::Result;

use super::loose::{self, LooseL2};
use super::report::{Finding, TableKind};
use super::sweep::sweep;
use super::{CheckPhase, Checker};
use crate::address::HostOffset;
use crate::entry::{L2Entry, OFFSET};

/// Compressed data ends somewhere in its last sector.
const SECTOR: u64 = 512;
/// Tables that start inside a cluster may overlap, so that reading each takes longer than the file is long. So
/// many are looked into; a sound image has none.
const MAX_UNALIGNED: u32 = 1024;
/// Uses of L2 tables are merged when there are so many more than after the last time.
const MERGE_AFTER: usize = 1 << 20;

/// An L2 table, and how often it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L2Use {
    pub(super) table: HostOffset,
    /// By entries of the active L1 table: at most all of them.
    pub(super) active: u32,
    /// By entries of snapshots' L1 tables.
    snapshots: u64,
}

impl L2Use {
    pub(super) fn times(self) -> u64 {
        u64::from(self.active) + self.snapshots
    }
}

/// Uses of L2 tables, merged now and then so that a table named by many snapshots takes one place.
#[derive(Debug, Default)]
struct L2Uses {
    uses: Vec<L2Use>,
    merged: usize,
}

impl L2Uses {
    fn push(&mut self, one: L2Use) {
        if self.uses.len() == self.merged + MERGE_AFTER.max(self.merged) {
            self.merge();
        }
        self.uses.push(one);
    }

    fn merge(&mut self) {
        self.uses.sort_unstable_by_key(|one| one.table);
        self.uses.dedup_by(|next, kept| {
            let same = next.table == kept.table;
            if same {
                kept.active += next.active;
                kept.snapshots = kept.snapshots.saturating_add(next.snapshots);
            }
            same
        });
        self.merged = self.uses.len();
    }

    /// All tables, in file order.
    fn finish(mut self) -> Vec<L2Use> {
        self.merge();
        self.uses
    }
}

impl Checker<'_> {
    /// Counts the L1 tables at these places, the L2 tables they name, and all that those name.
    pub(super) fn count_tables(&mut self, active: Range<u64>, snapshots: &[Range<u64>]) -> Result<()> {
        let mut uses = L2Uses::default();
        let mut reader = self.reader();
        self.count_regions(std::slice::from_ref(&active))?;
        reader.read(active.start, active.end, |at, piece| {
            self.walk_l1(at, piece, active.start, 1, 0, &mut uses)
        })?;
        self.count_regions(snapshots)?;
        self.count_cut(snapshots);
        for segment in sweep(snapshots) {
            reader.read(segment.range.start, segment.range.end, |at, piece| {
                self.walk_l1(at, piece, 0, 0, segment.times, &mut uses)
            })?;
        }

        let uses = uses.finish();
        let total = uses.len() as u64;
        let cluster_size = self.geometry.cluster_size();
        let mut unaligned = 0;
        for (done, &one) in (0..).zip(&uses) {
            self.tick(CheckPhase::References, done, total)?;
            let table = one.table;
            self.count_region(table, cluster_size, one.times())?;
            if !self.geometry.is_aligned(table.0) {
                unaligned += 1;
                if unaligned > MAX_UNALIGNED {
                    self.for_repair.incomplete = true;
                    self.recorder.record(1, Finding::NotWalked { table });
                    continue;
                }
            }
            let mut walk = L2Walk::new(self, one);
            reader.read(table.0, table.0 + cluster_size, |at, piece| walk.piece(at, piece))?;
            let (can_be_repaired, no_table) = (walk.can_be_repaired, walk.is_no_table());
            if can_be_repaired {
                self.for_repair.l2_tables.push(one);
            }
            if no_table {
                let lost = &mut self.for_repair.lost_tables;
                *lost = lost.saturating_add(one.times());
            }
        }
        self.tick(CheckPhase::References, total, total)
    }

    /// Whether the refcount of a data cluster is exactly 1. `None` if it can't be read.
    #[inline]
    pub(super) fn is_one(&self, host: HostOffset) -> Option<bool> {
        if self.data_file {
            // Its clusters have none: each belongs to one guest cluster.
            return Some(true);
        }
        self.stored.is_one(self.geometry.cluster_of(host))
    }

    /// Looks at the L1 entries in `piece`, which lies at `at` and belongs to the active table as often as `active`
    /// says (that starts at `start`) and to so many snapshots'.
    fn walk_l1(
        &mut self,
        at: u64,
        piece: &[u8],
        start: u64,
        active: u32,
        snapshots: u64,
        uses: &mut L2Uses,
    ) -> Result<()> {
        let times = u64::from(active) + snapshots;
        for (at, entry) in (at..).step_by(8).zip(loose::words(piece)) {
            if entry == 0 {
                continue;
            }
            self.for_repair.has_tables |= active > 0;
            let (place, table) = (HostOffset(at), loose::l2_table(entry));
            if loose::l1_reserved(entry) {
                let finding = Finding::ReservedBits {
                    table: TableKind::L1,
                    at: place,
                    entry,
                };
                self.recorder.record(times, finding);
            }
            if !self.geometry.is_aligned(table.0) {
                let finding = Finding::Unaligned {
                    table: TableKind::L1,
                    at: place,
                    entry,
                };
                self.recorder.record(times, finding);
            }
            let cluster = self.geometry.cluster_of(table);
            if active > 0
                && table.0 != 0
                && let Some(one) = self.stored.is_one(cluster)
                && one != loose::is_copied(entry)
            {
                let finding = Finding::CopiedL2Table {
                    at: place,
                    l1_index: (at - start) / 8,
                    entry,
                    refcount: self.stored.read_one(self.storage, cluster)?,
                };
                self.for_repair.l1_flags = true;
                self.for_repair.missing_flags += u64::from(one);
                self.recorder.record(1, finding);
            }
            uses.push(L2Use {
                table,
                active,
                snapshots,
            });
        }
        Ok(())
    }
}

/// The walk through one L2 table.
struct L2Walk<'c, 'a> {
    checker: &'c mut Checker<'a>,
    active: u64,
    times: u64,
    /// How often a wrong COPIED flag counts.
    flags: u64,
    /// Where the next cluster would be if it followed the last one.
    next: Option<HostOffset>,
    /// An entry was found that a repair can change.
    can_be_repaired: bool,
    table: HostOffset,
    /// Entries that are not 0, and those of them that no writer makes.
    used: u64,
    impossible: u64,
    /// Where the file ends that data lies in, as far as it is known.
    data_end: u64,
}

impl<'c, 'a> L2Walk<'c, 'a> {
    fn new(checker: &'c mut Checker<'a>, one: L2Use) -> Self {
        // A table whose own refcount can't be read has no flags worth a look, nor is one at the header's place
        // part of the disk.
        let own = checker.stored.is_one(checker.geometry.cluster_of(one.table));
        let flags = if own.is_some() && one.table.0 != 0 {
            one.active.into()
        } else {
            0
        };
        Self {
            data_end: if checker.data_file {
                u64::MAX
            } else {
                checker.file_len
            },
            checker,
            active: one.active.into(),
            times: one.times(),
            flags,
            next: None,
            can_be_repaired: false,
            table: one.table,
            used: 0,
            impossible: 0,
        }
    }

    /// Whether there is no L2 table here, by what was found in it or by where it lies.
    fn is_no_table(&self) -> bool {
        let table = self.table.0;
        table == 0
            || !self.checker.geometry.is_aligned(table)
            || table >= self.checker.file_len
            || loose::is_no_l2_table(self.used, self.impossible)
    }

    fn piece(&mut self, at: u64, piece: &[u8]) -> Result<()> {
        if self.checker.geometry.extended_l2 {
            let words = L2Entry::words(piece, self.checker.geometry);
            for (at, [entry, bitmap]) in (at..).step_by(16).zip(words) {
                self.entry(at, entry, bitmap)?;
            }
            return Ok(());
        }
        let mut entries = piece.as_chunks::<8>().0;
        let mut at = at;
        while let Some(first) = entries.first() {
            let first = u64::from_be_bytes(*first);
            let (run, rest) = entries.split_at(self.run_len(first, entries));
            if first != 0 && !self.run(first, run.len() as u64)? {
                for (at, entry) in (at..).step_by(8).zip(loose::words(run.as_flattened())) {
                    self.entry(at, entry, 0)?;
                }
            }
            at += run.len() as u64 * 8;
            entries = rest;
        }
        Ok(())
    }

    /// How many entries are 0, or name clusters one after the other and have the same flags, from the first on.
    #[inline]
    fn run_len(&self, first: u64, entries: &[[u8; 8]]) -> usize {
        let step = if first == 0 {
            0
        } else {
            self.checker.geometry.cluster_size()
        };
        let mut next = first;
        let alike = entries.iter().take_while(|entry| {
            let goes_on = u64::from_be_bytes(**entry) == next;
            next = next.wrapping_add(step);
            goes_on
        });
        alike.count()
    }

    /// Takes a run of entries as one where there is nothing to find in any of them: each names a whole cluster of data
    /// that lies in the file, and says of its refcount what is so. `false`, and nothing done, for any other.
    #[inline]
    fn run(&mut self, first: u64, count: u64) -> Result<bool> {
        let geometry = self.checker.geometry;
        let LooseL2::Cluster { host, zero: false } = LooseL2::new(first, geometry) else {
            return Ok(false);
        };
        let len = count << geometry.cluster_bits;
        let clusters = geometry.cluster_of(host).0..geometry.cluster_of(host).0 + count;
        let sound = count > 1
            && !self.checker.data_file
            && !loose::l2_reserved(first)
            && geometry.is_aligned(host.0)
            // No sum of the run's gets out of the bits of an offset, then.
            && host.0 + len <= self.checker.file_len.min(OFFSET)
            && (self.flags == 0 || self.checker.stored.are_alike(clusters, loose::is_copied(first)));
        if !sound {
            return Ok(false);
        }
        self.used += count;
        if self.active > 0 {
            let report = &mut self.checker.recorder.report;
            let allocated = self.active.saturating_mul(count);
            report.allocated_clusters = report.allocated_clusters.saturating_add(allocated);
            if self.next.is_some_and(|next| next != host) {
                report.fragmented_clusters = report.fragmented_clusters.saturating_add(self.active);
            }
            self.next = Some(host + len);
        }
        self.checker.count_region(host, len, self.times)
    }

    #[inline]
    fn entry(&mut self, at: u64, entry: u64, bitmap: u64) -> Result<()> {
        let at = HostOffset(at);
        let mapping = LooseL2::new(entry, self.checker.geometry);
        self.used += u64::from(entry != 0);
        self.impossible += u64::from(loose::is_impossible(entry, mapping, self.data_end));
        if loose::l2_reserved(entry) && !matches!(mapping, LooseL2::Compressed { .. }) {
            self.record(Finding::ReservedBits {
                table: TableKind::L2,
                at,
                entry,
            });
        }
        match mapping {
            LooseL2::Compressed { host, len } => self.compressed(at, entry, bitmap, host, len),
            LooseL2::Cluster { host, zero } => self.cluster(at, entry, bitmap, host, zero),
            // In a data file a guest cluster may lie at offset 0; COPIED tells it from none.
            LooseL2::Nothing
                if self.checker.data_file && loose::is_copied(entry) && !loose::is_zero(entry) =>
            {
                self.cluster(at, entry, bitmap, HostOffset(0), false)
            }
            LooseL2::Nothing => {
                if loose::allocated_subclusters(bitmap) {
                    self.record(Finding::SubclusterBitmap { at, entry, bitmap });
                }
                Ok(())
            }
        }
    }

    #[inline]
    fn cluster(
        &mut self,
        at: HostOffset,
        entry: u64,
        bitmap: u64,
        host: HostOffset,
        zero: bool,
    ) -> Result<()> {
        let geometry = self.checker.geometry;
        if loose::contradicts_itself(bitmap) {
            self.record(Finding::SubclusterBitmap { at, entry, bitmap });
        }
        if !geometry.is_aligned(host.0) {
            let preallocated = loose::is_preallocated(zero, bitmap, geometry);
            self.can_be_repaired |= preallocated;
            self.record(if preallocated {
                Finding::UnalignedPreallocated { at, entry }
            } else {
                Finding::Unaligned {
                    table: TableKind::L2,
                    at,
                    entry,
                }
            });
        }
        if self.active > 0 {
            let report = &mut self.checker.recorder.report;
            report.allocated_clusters = report.allocated_clusters.saturating_add(self.active);
            if self.next.is_some_and(|next| next != host) {
                report.fragmented_clusters = report.fragmented_clusters.saturating_add(self.active);
            }
            self.next = Some(host + geometry.cluster_size());
        }
        if !self.checker.data_file {
            self.checker
                .count_region(host, geometry.cluster_size(), self.times)?;
        }
        self.flag(at, entry, host)
    }

    /// Compares COPIED with the refcount.
    #[inline]
    fn flag(&mut self, at: HostOffset, entry: u64, host: HostOffset) -> Result<()> {
        if self.flags == 0 {
            return Ok(());
        }
        match self.checker.is_one(host) {
            Some(one) if one != loose::is_copied(entry) => self.wrong_flag(at, entry, host),
            _ => Ok(()),
        }
    }

    #[cold]
    fn wrong_flag(&mut self, at: HostOffset, entry: u64, host: HostOffset) -> Result<()> {
        self.can_be_repaired = true;
        let checker = &mut *self.checker;
        if !loose::is_copied(entry) {
            let missing = &mut checker.for_repair.missing_flags;
            *missing = missing.saturating_add(self.flags);
        }
        let refcount = if checker.data_file {
            1
        } else if checker.recorder.keeps() {
            let cluster = checker.geometry.cluster_of(host);
            checker.stored.read_one(checker.storage, cluster)?
        } else {
            0
        };
        checker
            .recorder
            .record(self.flags, Finding::CopiedData { at, entry, refcount });
        Ok(())
    }

    fn compressed(
        &mut self,
        at: HostOffset,
        entry: u64,
        bitmap: u64,
        host: HostOffset,
        len: u64,
    ) -> Result<()> {
        if loose::is_copied(entry) {
            self.can_be_repaired = true;
            self.record(Finding::CopiedCompressed { at, entry });
        }
        if self.checker.data_file {
            self.record(Finding::CompressedWithDataFile { at, entry });
            return Ok(());
        }
        if bitmap != 0 {
            self.record(Finding::SubclusterBitmap { at, entry, bitmap });
            return Ok(());
        }
        // Two compressed clusters share a sector where they meet: none of them simply follows another.
        let report = &mut self.checker.recorder.report;
        for figure in [
            &mut report.allocated_clusters,
            &mut report.compressed_clusters,
            &mut report.fragmented_clusters,
        ] {
            *figure = figure.saturating_add(self.active);
        }
        // Nobody needs all of the last sector.
        let last_sector = (host.0.saturating_add(len) - 1) / SECTOR * SECTOR;
        if last_sector.max(host.0) >= self.checker.file_len {
            self.checker.cut(host, len);
        }
        self.checker.count_region(host, len, self.times)?;
        Ok(())
    }

    #[cold]
    fn record(&mut self, finding: Finding) {
        self.checker.recorder.record(self.times, finding);
    }
}
