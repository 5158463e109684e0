//! Writing the snapshot table.

use block::{Error, Result};
use byteorder::{BE, ByteOrder};

use super::{FIXED, KNOWN_EXTRA, MAX_SNAPSHOT_TABLE, REQUIRED_EXTRA, Snapshot, SnapshotTable};

impl SnapshotTable {
    /// The bytes of a table with these snapshots.
    ///
    /// # Errors
    /// `Unsupported` for a table that is longer than any may be.
    pub(crate) fn encode(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for snapshot in snapshots {
            snapshot.encode(&mut bytes);
        }
        if bytes.len() as u64 > MAX_SNAPSHOT_TABLE {
            let message = format!(
                "the snapshot table would take {} bytes, and {MAX_SNAPSHOT_TABLE} is the most",
                bytes.len()
            );
            return Err(
                Error::unsupported(message).with_hint("delete snapshots that are not needed any more")
            );
        }
        Ok(bytes)
    }
}

impl Snapshot {
    /// The extra data of a snapshot that is new: everything that has a meaning.
    pub(crate) fn new_extra_data(size: u64) -> Vec<u8> {
        let mut extra = vec![0; KNOWN_EXTRA];
        BE::write_u64(&mut extra[8..], size);
        // -1: no instruction was counted.
        BE::write_u64(&mut extra[16..], u64::MAX);
        extra
    }

    /// Whether the entry has all extra data that version 3 asks for.
    pub(crate) fn has_required_extra_data(&self) -> bool {
        self.extra_data.len() >= REQUIRED_EXTRA
    }

    fn encode(&self, table: &mut Vec<u8>) {
        let start = table.len();
        let extra = self.complete_extra_data();
        table.resize(start + FIXED, 0);
        let fixed = &mut table[start..];
        BE::write_u64(&mut fixed[0..], self.l1_offset.0);
        BE::write_u32(&mut fixed[8..], self.l1_entries);
        BE::write_u16(&mut fixed[12..], self.id.len() as u16);
        BE::write_u16(&mut fixed[14..], self.name.len() as u16);
        BE::write_u32(&mut fixed[16..], self.date_seconds);
        BE::write_u32(&mut fixed[20..], self.date_nanoseconds);
        BE::write_u64(&mut fixed[24..], self.vm_clock_nanoseconds);
        // Ignored by who knows of the extra data, which has room for all of it.
        BE::write_u32(&mut fixed[32..], u32::try_from(self.vm_state_size).unwrap_or(0));
        BE::write_u32(&mut fixed[36..], extra.len() as u32);
        table.extend_from_slice(&extra);
        table.extend_from_slice(self.id.as_bytes());
        table.extend_from_slice(self.name.as_bytes());
        table.resize(table.len().next_multiple_of(8), 0);
    }

    /// The extra data as it was read, with the fields that every version 3 entry must have. What an entry has left out
    /// had a meaning before, and keeps it.
    fn complete_extra_data(&self) -> Vec<u8> {
        let mut extra = self.extra_data.clone();
        if extra.len() < 8 {
            extra = self.vm_state_size.to_be_bytes().to_vec();
        }
        if extra.len() < REQUIRED_EXTRA {
            extra.truncate(8);
            extra.extend_from_slice(&self.size.to_be_bytes());
        }
        extra
    }
}
