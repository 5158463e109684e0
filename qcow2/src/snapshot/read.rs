//! Reading the snapshot table, which lies wherever its maker put it and says what it likes.

use block::{Error, Result, Storage};
use byteorder::{BE, ByteOrder};

use super::{FIXED, KNOWN_EXTRA, MAX_EXTRA_DATA, MAX_SNAPSHOT_TABLE, Snapshot, SnapshotTable};
use crate::address::HostOffset;
use crate::corruption::Corruption;
use crate::geometry::{Geometry, MAX_L1_BYTES};
use crate::header::Header;

/// Bytes of the table read at once: room for the longest entry there can be, many times over.
const WINDOW: u64 = 1 << 20;

impl SnapshotTable {
    /// Reads the snapshot table of an image. L1 tables are checked for their place, and not read.
    ///
    /// # Errors
    /// `Corrupt` for an entry that contradicts the format or exceeds a limit, `Unsupported` for a name that is not
    /// UTF-8, `Io`; each with the storage's path.
    pub fn read(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let named = |error: Error| error.with_path_of(storage.path());
        let file_len = storage.len()?;
        let mut reader = Reader {
            storage,
            start: header.snapshots_offset.0,
            file_len,
            window: Vec::new(),
            window_start: 0,
        };
        let mut table = Self::default();
        for number in 0..header.snapshot_count {
            let entry = Entry {
                number,
                header,
                file_len,
            };
            let snapshot = entry.read(&mut reader, &mut table.len).map_err(named)?;
            table.snapshots.push(snapshot);
        }
        entries_disjoint(header, &table).map_err(|error| named(error.into()))?;
        Ok(table)
    }
}

/// The table's true length is known only now; what the header places must not begin inside it.
fn entries_disjoint(header: &Header, table: &SnapshotTable) -> Result<(), Corruption> {
    let start = header.snapshots_offset;
    for (second, at) in [
        ("the L1 table", header.l1_offset),
        ("the refcount table", header.refcount_table_offset),
    ] {
        if at >= start && at.0 - start.0 < table.len {
            let first = "the snapshot table";
            return Err(Corruption::Overlap { first, second, at });
        }
    }
    Ok(())
}

/// Reads the table in large pieces, since entries are small and of unknown length.
struct Reader<'a> {
    storage: &'a dyn Storage,
    start: u64,
    file_len: u64,
    window: Vec<u8>,
    /// Where the window starts in the table.
    window_start: u64,
}

impl Reader<'_> {
    /// `len` bytes at `at` in the table.
    fn bytes(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        let end = at + len as u64;
        let beyond = || Corruption::BeyondEnd {
            what: "the snapshot table",
            start: HostOffset(self.start),
            len: end,
            file_len: self.file_len,
        };
        let available = self.file_len.checked_sub(self.start).ok_or_else(beyond)?;
        if end > available {
            return Err(beyond().into());
        }
        if end > MAX_SNAPSHOT_TABLE {
            return Err(Error::from(Corruption::TooLong {
                what: "the snapshot table",
                len: end,
                limit: MAX_SNAPSHOT_TABLE,
            }));
        }
        if at < self.window_start || end > self.window_start + self.window.len() as u64 {
            let window = WINDOW.min(available - at).max(len as u64);
            self.window.resize(window as usize, 0);
            self.window_start = at;
            self.storage.read_exact_at(&mut self.window, self.start + at)?;
        }
        Ok(&self.window[(at - self.window_start) as usize..][..len])
    }
}

struct Entry<'a> {
    number: u32,
    header: &'a Header,
    file_len: u64,
}

impl Entry<'_> {
    /// Reads the entry at `at` in the table, and moves `at` behind it.
    fn read(&self, reader: &mut Reader<'_>, at: &mut u64) -> Result<Snapshot> {
        let fixed: [u8; FIXED] = reader.bytes(*at, FIXED)?.try_into().unwrap_or([0; FIXED]);
        let (id_len, name_len) = (
            usize::from(BE::read_u16(&fixed[12..])),
            usize::from(BE::read_u16(&fixed[14..])),
        );
        let extra_len = BE::read_u32(&fixed[36..]);
        if extra_len > MAX_EXTRA_DATA {
            return Err(self.problem("extra data size", extra_len.into(), "1024 bytes is the most"));
        }
        let extra_len = extra_len as usize;
        let rest = reader.bytes(*at + FIXED as u64, extra_len + id_len + name_len)?;
        let (extra, names) = rest.split_at(extra_len);
        let (id, name) = names.split_at(id_len);
        let snapshot = Snapshot {
            l1_offset: HostOffset(BE::read_u64(&fixed[0..])),
            l1_entries: BE::read_u32(&fixed[8..]),
            id: self.text("ID", id)?,
            name: self.text("name", name)?,
            date_seconds: BE::read_u32(&fixed[16..]),
            date_nanoseconds: BE::read_u32(&fixed[20..]),
            vm_clock_nanoseconds: BE::read_u64(&fixed[24..]),
            vm_state_size: match extra.get(..8) {
                Some(field) => BE::read_u64(field),
                None => BE::read_u32(&fixed[32..]).into(),
            },
            size: extra.get(8..16).map_or(self.header.size, BE::read_u64),
            icount: extra
                .get(16..KNOWN_EXTRA)
                .map(BE::read_u64)
                .filter(|icount| *icount != u64::MAX),
            extra_data: extra.to_vec(),
        };
        *at = (*at + (FIXED + rest.len()) as u64).next_multiple_of(8);
        self.check_l1(&snapshot)?;
        Ok(snapshot)
    }

    fn check_l1(&self, snapshot: &Snapshot) -> Result<()> {
        let geometry: Geometry = self.header.geometry;
        let entries = u64::from(snapshot.l1_entries);
        if entries * 8 > MAX_L1_BYTES {
            return Err(self.problem("L1 size", entries, "the L1 table may take 32 MiB at most"));
        }
        if geometry.l1_entries(snapshot.size) > entries {
            return Err(self.problem("L1 size", entries, "the snapshot's disk needs more L1 entries"));
        }
        let start = snapshot.l1_offset;
        if entries == 0 {
            return Ok(());
        }
        if start.0 == 0 || !geometry.is_aligned(start.0) {
            let rule = "it must be a multiple of the cluster size, and not 0";
            return Err(self.problem("L1 offset", start.0, rule));
        }
        if start
            .0
            .checked_add(entries * 8)
            .is_none_or(|end| end > self.file_len)
        {
            return Err(Error::from(Corruption::BeyondEnd {
                what: "the L1 table of a snapshot",
                start,
                len: entries * 8,
                file_len: self.file_len,
            }));
        }
        Ok(())
    }

    fn text(&self, what: &str, bytes: &[u8]) -> Result<String> {
        String::from_utf8(bytes.to_vec()).map_err(|_| {
            let number = self.number;
            Error::unsupported(format!("the {what} of snapshot {number} (from 0) is not UTF-8"))
        })
    }

    fn problem(&self, field: &'static str, value: u64, rule: &'static str) -> Error {
        Error::from(Corruption::Entry {
            what: "snapshot",
            index: self.number.into(),
            field,
            value,
            rule,
        })
    }
}
