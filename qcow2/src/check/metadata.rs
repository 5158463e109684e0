//! Counting what the header names besides the active L1 table: the snapshot table with the snapshots' L1 tables,
//! and the bitmap directory with the bitmaps' tables and data.
//!
//! Both are read as far as they make sense. What is wrong with one entry is recorded, and the others are counted.

use std::ops::Range;

use block::{Result, Storage};

use super::report::{Finding, Table};
use super::sweep::sweep;
use super::{Checker, loose, table_range};
use crate::address::HostOffset;
use crate::extension::BitmapsExtension;
use crate::geometry::MAX_L1_BYTES;
use crate::header::{Header, Version};

/// Bytes of an entry of the snapshot table before its extra data ("Snapshots").
const SNAPSHOT_ENTRY: usize = 40;
/// Extra data that version 3 asks for: the size of the VM's state, and of the disk.
const SNAPSHOT_EXTRA: u32 = 16;
/// Bytes of an entry of the bitmap directory before its extra data ("Bitmap directory").
const BITMAP_ENTRY: usize = 24;
/// Entries a bitmap's table may have (QEMU's limit, kept).
const MAX_BITMAP_TABLE: u32 = 0x800_0000;
/// Bytes a bitmap directory may take (QEMU's limit, kept).
const MAX_DIRECTORY: u64 = 65_535 * 1024;

impl Checker<'_> {
    /// Counts the snapshot table. Returns where the snapshots' L1 tables are.
    pub(super) fn count_snapshots(&mut self, header: &Header) -> Result<Vec<Range<u64>>> {
        let mut tables = Vec::new();
        if header.snapshot_count == 0 {
            return Ok(tables);
        }
        if self.data_file {
            let snapshots = header.snapshot_count.into();
            self.recorder.record(1, Finding::SnapshotsWithDataFile { snapshots });
        }
        Ok(tables)
    }
}
