//! Counting what the header names besides the active L1 table: the snapshot table with the snapshots' L1 tables,
//! and the bitmap directory with the bitmaps' tables and data.
//!
//! Both tables have entries of variable length, so that one which can't be read hides those after it. What comes before
//! is counted.

use std::ops::Range;

use block::{Result, Storage};
use byteorder::{BE, ByteOrder};

use super::report::{Finding, TableKind};
use super::sweep::sweep;
use super::{Checker, loose, table_range};
use crate::address::HostOffset;
use crate::extension::BitmapsExtension;
use crate::geometry::MAX_L1_BYTES;
use crate::header::{Header, MAX_SNAPSHOTS, Version};
use crate::snapshot::{MAX_EXTRA_DATA, MAX_SNAPSHOT_TABLE};

/// Bytes of an entry of the snapshot table before its extra data ("Snapshots").
pub(super) const SNAPSHOT_ENTRY: usize = 40;
/// Extra data that version 3 asks for: the size of the VM's state, and of the disk.
pub(super) const SNAPSHOT_EXTRA: u32 = 16;
/// Bytes of an entry of the bitmap directory before its extra data ("Bitmap directory").
const BITMAP_ENTRY: usize = 24;
/// Where a snapshot table may start at most, so that its end is an offset of a file too.
const MAX_TABLE_OFFSET: u64 = i64::MAX as u64 - MAX_SNAPSHOT_TABLE;
/// Most entries of a bitmap's table (QEMU's limit, kept).
const MAX_BITMAP_TABLE: u32 = 0x800_0000;

/// How a damaged snapshot table can be written anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct SnapshotTableRepair {
    /// Snapshots that are kept, the first of the table.
    pub(super) kept: u32,
    /// Bytes that they take as they are.
    pub(super) len: u64,
}

impl Checker<'_> {
    /// Counts the snapshot table. Returns where the snapshots' L1 tables are.
    pub(super) fn count_snapshots(&mut self, header: &Header) -> Result<Vec<Range<u64>>> {
        let mut l1_tables = Vec::new();
        if header.snapshot_count == 0 {
            return Ok(l1_tables);
        }
        if self.data_file {
            let snapshots = header.snapshot_count.into();
            self.recorder
                .record(1, Finding::SnapshotsWithDataFile { snapshots });
        }
        let start = header.snapshots_offset;
        if !self.geometry.is_aligned(start.0) || start.0 > MAX_TABLE_OFFSET {
            self.unreadable_snapshots(start, "it does not start with a cluster of the file");
            return Ok(l1_tables);
        }
        let (count, mut kept) = (header.snapshot_count, 0);
        let mut damaged = false;
        let mut entries = Entries::new(self.storage, start.0..start.0 + MAX_SNAPSHOT_TABLE);
        let mut len = 0;
        while kept < count.min(MAX_SNAPSHOTS) {
            let Some(entry) = entries.next::<SNAPSHOT_ENTRY>()? else {
                break;
            };
            let extra = BE::read_u32(&entry[36..]);
            let names = u64::from(BE::read_u16(&entry[12..])) + u64::from(BE::read_u16(&entry[14..]));
            if !entries.skip(u64::from(extra) + names) {
                break;
            }
            len = entries.at - start.0;
            let l1_offset = HostOffset(BE::read_u64(&entry[0..]));
            let l1_entries = u64::from(BE::read_u32(&entry[8..]));
            let index = u64::from(kept);
            let mut problem = |problem| {
                let finding = Finding::SnapshotTable {
                    index,
                    problem,
                    l1_offset,
                    l1_entries,
                };
                self.recorder.record(1, finding);
            };
            if extra > MAX_EXTRA_DATA {
                damaged = true;
                problem("it has more than 1024 bytes of extra data");
            } else if header.version >= Version::V3 && extra < SNAPSHOT_EXTRA {
                damaged = true;
                problem("it lacks the sizes of disk and VM state");
            }
            if !self.geometry.is_aligned(l1_offset.0) {
                problem("its L1 table is not cluster aligned");
                self.for_repair.incomplete = true;
            } else if l1_entries > MAX_L1_BYTES / 8 {
                problem("its L1 table is too large");
                self.for_repair.incomplete = true;
            } else {
                l1_tables.push(table_range(l1_offset, l1_entries));
            }
            kept += 1;
        }
        if kept < count {
            damaged = true;
            let overhanging = count - kept;
            let finding = Finding::OverhangingSnapshots { kept, overhanging };
            self.recorder.record(overhanging.into(), finding);
        }
        if start.0 + len > self.file_len {
            // What lies there reads as zeros, and is no snapshot.
            self.unreadable_snapshots(start, "it reaches past the end of the file");
        } else if damaged {
            self.for_repair.snapshot_table = Some(SnapshotTableRepair { kept, len });
        }
        self.count_region(start, len, 1)?;
        Ok(l1_tables)
    }

    fn unreadable_snapshots(&mut self, table: HostOffset, problem: &'static str) {
        self.for_repair.incomplete = true;
        self.recorder
            .record(1, Finding::SnapshotTableUnreadable { table, problem });
    }

    /// Counts the bitmap directory, the bitmaps' tables, and their data.
    pub(super) fn count_bitmaps(&mut self, bitmaps: &BitmapsExtension) -> Result<()> {
        let start = bitmaps.directory_offset.0;
        self.count_region(bitmaps.directory_offset, bitmaps.directory_size, 1)?;
        let mut tables = Vec::new();
        let end = start.saturating_add(bitmaps.directory_size);
        let mut entries = Entries::new(self.storage, start..end.min(self.file_len));
        for _ in 0..bitmaps.count {
            let at = HostOffset(entries.at);
            let problem = match entries.next()? {
                Some(entry) => {
                    let table = table_range(
                        HostOffset(BE::read_u64(&entry[0..])),
                        BE::read_u32(&entry[8..]).into(),
                    );
                    let problem = bitmap_problem(&entry, !self.geometry.is_aligned(table.start));
                    if problem.is_none() {
                        tables.push(table);
                    }
                    let names = u64::from(BE::read_u16(&entry[18..])) + u64::from(BE::read_u32(&entry[20..]));
                    if entries.skip(names) {
                        problem
                    } else {
                        Some("an entry reaches past its end")
                    }
                }
                None => Some("it has fewer entries than the header says"),
            };
            if let Some(problem) = problem {
                self.for_repair.incomplete = true;
                self.recorder.record(1, Finding::BitmapDirectory { at, problem });
            }
            if problem.is_some_and(|_| entries.ended) {
                break;
            }
        }
        self.count_regions(&tables)?;
        self.count_cut(&tables);
        self.count_bitmap_data(&tables)
    }

    fn count_bitmap_data(&mut self, tables: &[Range<u64>]) -> Result<()> {
        let mut reader = self.reader();
        for segment in sweep(tables) {
            reader.read(segment.range.start, segment.range.end, |at, piece| {
                for (at, entry) in (at..).step_by(8).zip(loose::words(piece)) {
                    let (host, broken) = loose::bitmap_entry(entry, self.geometry);
                    if broken {
                        let finding = Finding::ReservedBits {
                            table: TableKind::Bitmap,
                            at: HostOffset(at),
                            entry,
                        };
                        self.recorder.record(segment.times, finding);
                    } else if host.0 != 0 {
                        self.count_region(host, self.geometry.cluster_size(), segment.times)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// What is wrong with an entry of the bitmap directory.
fn bitmap_problem(entry: &[u8; BITMAP_ENTRY], unaligned: bool) -> Option<&'static str> {
    let granularity_bits = entry[17];
    if BE::read_u64(&entry[0..]) == 0 || unaligned {
        Some("a bitmap's table is not cluster aligned, or is said to be in the header")
    } else if !(1..=MAX_BITMAP_TABLE).contains(&BE::read_u32(&entry[8..])) {
        Some("a bitmap's table is empty or too large")
    } else if BE::read_u32(&entry[12..]) & !7 != 0 {
        Some("a bitmap has reserved flags set")
    } else if entry[16] != 1 || !(9..=31).contains(&granularity_bits) {
        Some("a bitmap is of an unknown type or granularity")
    } else if !(1..=1023).contains(&BE::read_u16(&entry[18..])) {
        Some("a bitmap's name is empty or too long")
    } else {
        None
    }
}

/// The fixed parts of a table's entries, each of which starts at a multiple of 8 bytes.
struct Entries<'a> {
    storage: &'a dyn Storage,
    /// Where the last entry ends, or the next one begins.
    at: u64,
    end: u64,
    /// Nothing more can be read.
    ended: bool,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'a> Entries<'a> {
    /// Bytes read at a time.
    const READ: u64 = 64 << 10;

    fn new(storage: &'a dyn Storage, range: Range<u64>) -> Self {
        Self {
            storage,
            at: range.start,
            end: range.end,
            ended: false,
            buffer: Vec::new(),
            buffer_at: range.start,
        }
    }

    /// The next entry's fixed part; what follows it must be [skipped](Self::skip).
    fn next<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        let start = self.at.next_multiple_of(8);
        let end = start + N as u64;
        if self.ended || end > self.end {
            self.ended = true;
            return Ok(None);
        }
        if start < self.buffer_at || end > self.buffer_at + self.buffer.len() as u64 {
            self.buffer.resize(Self::READ.min(self.end - start) as usize, 0);
            self.storage.read_exact_at(&mut self.buffer, start)?;
            self.buffer_at = start;
        }
        self.at = end;
        let mut entry = [0; N];
        entry.copy_from_slice(&self.buffer[(start - self.buffer_at) as usize..][..N]);
        Ok(Some(entry))
    }

    /// Skips `len` bytes. `false` if there are fewer.
    fn skip(&mut self, len: u64) -> bool {
        self.ended |= self.end - self.at < len;
        self.at = self.at.saturating_add(len);
        !self.ended
    }
}
