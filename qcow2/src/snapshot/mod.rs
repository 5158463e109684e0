//! Internal snapshots: each names an L1 table of its own ("Snapshots").

mod encode;
mod read;
mod select;
#[cfg(test)]
mod tests;

use crate::address::HostOffset;

pub(crate) use select::{check_name, find, new_id};

/// Bytes that an entry of the snapshot table takes at least: its fixed fields.
pub(crate) const MIN_SNAPSHOT_LEN: u64 = FIXED as u64;
/// Most bytes of extra data in an entry (QEMU's limit, kept).
pub(crate) const MAX_EXTRA_DATA: u32 = 1024;
/// Longest snapshot table in bytes (QEMU's limit, kept).
pub(crate) const MAX_SNAPSHOT_TABLE: u64 = 64 << 20;

const FIXED: usize = 40;
/// Extra data that has a meaning: VM state size, disk size, icount.
const KNOWN_EXTRA: usize = 24;
/// Extra data that version 3 asks for: all of it but the icount.
const REQUIRED_EXTRA: usize = 16;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table starts. Means nothing if that has no entries.
    pub l1_offset: HostOffset,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Unique ID, a number by custom. From the file: escape it before it is printed.
    pub id: String,
    /// Name. From the file: escape it before it is printed.
    pub name: String,
    /// When it was taken: seconds since the Epoch.
    pub date_seconds: u32,
    /// When it was taken: nanoseconds of the last second.
    pub date_nanoseconds: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of VM state, stored behind the disk; 0 for none.
    pub vm_state_size: u64,
    /// Length of the disk in bytes; the image's own where the entry does not say, as old ones don't.
    pub size: u64,
    /// Instruction count of record and replay, where it was on.
    pub icount: Option<u64>,
    /// All extra data as stored, known fields included.
    pub extra_data: Vec<u8>,
}

/// The snapshot table, whose length follows from its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotTable {
    /// The snapshots, in the order of the table.
    pub snapshots: Vec<Snapshot>,
    /// Length of the table in bytes, with the padding of its last entry.
    pub len: u64,
}
