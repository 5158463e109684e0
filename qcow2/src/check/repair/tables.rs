//! Entries of L1 and L2 tables set right: COPIED flags, and zero clusters that keep a host cluster at an impossible place.
//!
//! An entry of a damaged image can make anything seem a table, the guest's data too, and so can a header that says an L1
//! table to be longer than it is. A table is written to only where nothing else references its cluster, and only if most of
//! its entries could be entries of a table. What is left alone can still be read, and is said in the report.

use block::{Result, Storage};

use super::Staged;
use crate::address::HostOffset;
use crate::check::loose::{self, LooseL2};
use crate::check::tables::L2Use;
use crate::check::{CheckPhase, Checker, table_range};

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;

/// What is set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mend {
    /// Zero clusters lose the host cluster that they keep at an unaligned place.
    Preallocated,
    /// COPIED is cleared where it must not be: the cluster has another user, or is compressed.
    ClearCopied {
        /// Refcounts that are too high are going to be lowered, and count as lowered.
        lowered: bool,
    },
    /// COPIED is set where it should be.
    SetCopied,
}

impl Checker<'_> {
    /// Sets the entries right of all tables that the check has found something in. Returns how many were changed.
    pub(super) fn mend_tables(&mut self, staged: &Staged<'_>, mend: Mend) -> Result<u64> {
        let mut changed = 0;
        if mend != Mend::Preallocated && self.for_repair.l1_flags {
            changed += self.mend_l1(staged, mend)?;
        }
        let tables = std::mem::take(&mut self.for_repair.l2_tables);
        for (done, &one) in (0..).zip(&tables) {
            self.tick(CheckPhase::References, done, tables.len() as u64)?;
            changed += self.mend_l2(staged, mend, one)?;
        }
        self.for_repair.l2_tables = tables;
        Ok(changed)
    }

    /// Sets the COPIED flags of the active L1 table.
    fn mend_l1(&mut self, staged: &Staged<'_>, mend: Mend) -> Result<u64> {
        let mut l1 = table_range(self.header.l1_offset, self.header.l1_entries.into());
        // Of one that is cut, the entries that are there whole.
        l1.end = l1
            .end
            .min(l1.start + self.file_len.saturating_sub(l1.start) / 8 * 8);
        if l1.start == 0 {
            return Ok(0);
        }
        let mut changed = 0;
        for start in l1.clone().step_by(PIECE as usize) {
            let mut bytes = vec![0; (l1.end - start).min(PIECE) as usize];
            staged.read_exact_at(&mut bytes, start)?;
            let mut piece_changed = 0;
            for (at, bytes) in (start..).step_by(8).zip(bytes.as_chunks_mut::<8>().0) {
                let entry = u64::from_be_bytes(*bytes);
                let table = loose::l2_table(entry);
                if table.0 == 0 {
                    continue;
                }
                let one = self.stored.is_one(self.geometry.cluster_of(table));
                let new = self.with_right_flag(entry, table, one, mend);
                if new == entry {
                    continue;
                }
                if self.references.get(self.geometry.cluster_of(HostOffset(at))) == 1 {
                    piece_changed += 1;
                    *bytes = new.to_be_bytes();
                } else {
                    self.for_repair.spared_tables.insert(self.header.l1_offset);
                }
            }
            if piece_changed > 0 {
                staged.write_all_at(&bytes, start)?;
                changed += piece_changed;
            }
        }
        Ok(changed)
    }

    /// Sets the entries of an L2 table.
    fn mend_l2(&mut self, staged: &Staged<'_>, mend: Mend, one: L2Use) -> Result<u64> {
        let (geometry, table) = (self.geometry, one.table.0);
        let cluster = geometry.cluster_of(one.table);
        let cluster_size = geometry.cluster_size();
        if !geometry.is_aligned(table)
            || table == 0
            || table.saturating_add(cluster_size) > self.file_len.next_multiple_of(cluster_size)
        {
            return Ok(0);
        }
        let flags = one.active > 0 && self.stored.is_one(cluster).is_some();
        if mend != Mend::Preallocated && !flags {
            return Ok(0);
        }
        let mut bytes = vec![0; cluster_size as usize];
        staged.read_exact_at(&mut bytes, table)?;
        let own = self.references.get(cluster) == one.times() && self.looks_like_l2(&bytes);
        let mut changed = 0;
        for bytes in bytes.chunks_exact_mut(1 << geometry.l2_entry_bits()) {
            let (entry, bitmap) = entry_of(bytes);
            let new = self.mended_entry(entry, bitmap, mend);
            if new != entry {
                bytes[..8].copy_from_slice(&new.to_be_bytes());
                changed += 1;
            }
        }
        if changed > 0 && !own {
            self.for_repair.spared_tables.insert(one.table);
            return Ok(0);
        }
        if changed > 0 {
            // What the file does not hold of its last cluster stays so.
            let len = cluster_size.min(self.file_len - table) as usize;
            staged.write_all_at(&bytes[..len], table)?;
        }
        Ok(changed)
    }

    fn mended_entry(&self, entry: u64, bitmap: u64, mend: Mend) -> u64 {
        match (LooseL2::new(entry, self.geometry), mend) {
            (LooseL2::Cluster { host, zero }, Mend::Preallocated) => {
                let unaligned = !self.geometry.is_aligned(host.0);
                if unaligned && loose::is_preallocated(zero, bitmap, self.geometry) {
                    loose::without_host(self.geometry)
                } else {
                    entry
                }
            }
            (LooseL2::Compressed { .. }, Mend::ClearCopied { .. }) => loose::with_copied(entry, false),
            (LooseL2::Cluster { host, .. }, Mend::ClearCopied { .. } | Mend::SetCopied) => {
                self.with_right_flag(entry, host, self.is_one(host), mend)
            }
            // In a data file COPIED tells a guest cluster at offset 0 from none.
            (LooseL2::Nothing | LooseL2::Compressed { .. }, _) => entry,
        }
    }

    /// The entry, which names `host`, with the flag that `mend` gives it; `one`: its refcount is 1 as stored.
    fn with_right_flag(&self, entry: u64, host: HostOffset, one: Option<bool>, mend: Mend) -> u64 {
        let copied = match (mend, one) {
            (Mend::SetCopied, Some(true)) => true,
            (Mend::ClearCopied { lowered }, Some(false)) => {
                let references = self.countable_references(self.geometry.cluster_of(host));
                let kept = lowered && references == 1;
                kept && loose::is_copied(entry)
            }
            _ => return entry,
        };
        loose::with_copied(entry, copied)
    }

    /// Whether these bytes could be an L2 table.
    fn looks_like_l2(&self, bytes: &[u8]) -> bool {
        let data_end = if self.data_file { u64::MAX } else { self.file_len };
        let (mut used, mut impossible) = (0, 0);
        for bytes in bytes.chunks_exact(1 << self.geometry.l2_entry_bits()) {
            let (entry, _) = entry_of(bytes);
            let mapping = LooseL2::new(entry, self.geometry);
            used += u64::from(entry != 0);
            impossible += u64::from(loose::is_impossible(entry, mapping, data_end));
        }
        !loose::is_no_l2_table(used, impossible)
    }
}

/// An L2 entry, and its bitmap if it has one.
fn entry_of(bytes: &[u8]) -> (u64, u64) {
    let mut words = loose::words(bytes);
    (words.next().unwrap_or(0), words.next().unwrap_or(0))
}
