//! A damaged snapshot table written anew: without entries beyond its limits, and with the extra data that version 3 asks
//! for and no more than the limit allows.
//!
//! The table's length follows from its entries, so it can't be changed in place. The new one goes to clusters of its own;
//! they are counted and the table is written, each durable, before the header names it. The old one's clusters leak then,
//! and are given back with all others.

use std::collections::BTreeSet;

use block::{Result, Storage};
use byteorder::{BE, ByteOrder};

use super::{Change, Engine};
use crate::address::HostOffset;
use crate::check::Checker;
use crate::check::metadata::{SNAPSHOT_ENTRY, SNAPSHOT_EXTRA, SnapshotTableRepair};
use crate::check::repair::refcounts::Direction;
use crate::check::repair::room::{in_best_room, is_no_space};
use crate::header::{Header, Version};
use crate::snapshot::MAX_EXTRA_DATA;

/// Extra data that has a meaning: sizes of VM state and disk, instruction count.
const KNOWN_EXTRA: usize = 24;
/// Where the header has the number of snapshots; the table's place follows.
const NB_SNAPSHOTS: u64 = 60;

impl<'a> Engine<'a> {
    /// Writes the snapshot table anew if it is damaged. Returns whether it was.
    pub(super) fn mend_snapshot_table(&mut self, checker: &mut Checker<'a>) -> Result<bool> {
        let Some(damage) = checker.for_repair.snapshot_table else {
            return Ok(false);
        };
        let header = checker.header.clone();
        let table = new_table(checker.storage, &header, damage)?;
        let mut place = HostOffset(0);
        if !table.is_empty() {
            let clusters = checker.geometry.clusters(table.len() as u64);
            let can_grow = self.staged.can_grow();
            let start = in_best_room(checker, can_grow, &BTreeSet::new(), |room| room.take(clusters));
            if checker.for_repair.first_missing.is_some() && is_no_space(&start) {
                return Ok(false);
            }
            let start = start?;
            if checker.has_blocks_for(start..start + clusters) {
                checker.mend_refcounts(self.staged, Direction::Raise)?;
                self.staged.commit()?;
            } else if !self.rebuild(checker)? {
                return Ok(false);
            }
            place = HostOffset(start << checker.geometry.cluster_bits);
            self.staged.write_all_at(&table, place.0)?;
            self.staged.commit()?;
        }
        let mut fields = [0; 12];
        BE::write_u32(&mut fields, damage.kept);
        BE::write_u64(&mut fields[4..], place.0);
        self.staged.write_all_at(&fields, NB_SNAPSHOTS)?;
        self.staged.commit()?;
        self.changes.push(Change::SnapshotTable {
            at: place,
            kept: damage.kept,
            dropped: header.snapshot_count - damage.kept,
        });
        Ok(true)
    }
}

/// The table with its kept entries as they should be.
fn new_table(storage: &dyn Storage, header: &Header, damage: SnapshotTableRepair) -> Result<Vec<u8>> {
    let mut old = vec![0; damage.len as usize];
    storage.read_exact_at(&mut old, header.snapshots_offset.0)?;
    let mut new = Vec::with_capacity(old.len());
    let mut at = 0;
    for _ in 0..damage.kept {
        let entry = &old[at..];
        let extra = BE::read_u32(&entry[36..]) as usize;
        let names = usize::from(BE::read_u16(&entry[12..])) + usize::from(BE::read_u16(&entry[14..]));
        let end = SNAPSHOT_ENTRY + extra + names;
        push_entry(
            &mut new,
            &entry[..SNAPSHOT_ENTRY],
            &entry[SNAPSHOT_ENTRY..][..extra],
            &entry[SNAPSHOT_ENTRY + extra..end],
            header,
        );
        at = (at + end).next_multiple_of(8).min(old.len());
    }
    Ok(new)
}

fn push_entry(table: &mut Vec<u8>, fixed: &[u8], extra: &[u8], names: &[u8], header: &Header) {
    let mut extra = match extra.len() {
        // What is behind the known fields of so much is nothing that any program wrote.
        len if len > MAX_EXTRA_DATA as usize => extra[..KNOWN_EXTRA].to_vec(),
        _ => extra.to_vec(),
    };
    let complete = SNAPSHOT_EXTRA as usize;
    if header.version >= Version::V3 && extra.len() < complete {
        // The fixed fields have a shorter size of the VM's state; the disk was as long as it is.
        if extra.len() < 8 {
            let vm_state = u64::from(BE::read_u32(&fixed[32..]));
            extra = vm_state.to_be_bytes().to_vec();
        }
        extra.truncate(8);
        extra.extend_from_slice(&header.size.to_be_bytes());
    }
    let start = table.len();
    table.extend_from_slice(fixed);
    BE::write_u32(&mut table[start + 36..], extra.len() as u32);
    table.extend_from_slice(&extra);
    table.extend_from_slice(names);
    table.resize(table.len().next_multiple_of(8), 0);
}
