//! VMDK: sparse files that hold one disk, with a text that describes it. Little endian.
//!
//! Such a file says most things twice: streams repeat their header at the end and have a marker before each grain, others
//! have a second directory, and the text names what the header says. Programs differ in which of these they believe, and QEMU
//! looks for a parent image in a place of its own. So only what common programs write is safe, `monolithicSparse` and
//! `streamOptimized` files that are their own only extent, and only where all places say the same. A text alone names any files, and
//! so does a sparse file without a capacity.

mod stream;
mod text;

use block::Result;
use byteorder::{ByteOrder, LE};

use crate::Limits;
use crate::file::{File, Places};
use crate::report::{Check, Report};

const SECTOR: u64 = 512;
/// Entries of a grain table.
const GRAINS: u64 = 512;
/// Tables of the largest disk that QEMU opens.
const MAX_TABLES: u64 = 32 << 20;
/// An entry of a grain that is full of zeros, where the header has [`ZERO_GRAINS`].
const ZEROS: u32 = 1;
/// The directory of grains lies at the end, where a copy of the header says so.
const AT_END: u64 = u64::MAX;
/// Where the copy of the header lies then, from the end: its marker is before it, and that of the end behind.
const FOOTER: u64 = 2 * SECTOR;

const NEW_LINES: u32 = 1 << 0;
const BACKUP: u32 = 1 << 1;
const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
const KNOWN: u32 = NEW_LINES | BACKUP | ZERO_GRAINS | COMPRESSED | MARKERS;

/// What a header says. Places and lengths are in bytes.
struct Header {
    flags: u32,
    /// In sectors, as in the file.
    capacity: u64,
    grain: u64,
    text: u64,
    text_len: u64,
    backup: u64,
    directory: u64,
    /// All tables lie before this, and all grains behind, but for directories at the end.
    overhead: u64,
}

impl Header {
    fn parse(bytes: &[u8; 512]) -> Self {
        let field = |at: usize| LE::read_u64(&bytes[at..]);
        let sectors = |at: usize| field(at).saturating_mul(SECTOR);
        Self {
            flags: LE::read_u32(&bytes[8..]),
            capacity: field(12),
            grain: sectors(20),
            text: sectors(28),
            text_len: sectors(36),
            backup: sectors(48),
            directory: sectors(56),
            overhead: sectors(64),
        }
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn disk_size(&self) -> u64 {
        self.capacity.saturating_mul(SECTOR)
    }

    /// Grain tables that the disk takes.
    fn tables(&self) -> u64 {
        self.disk_size().div_ceil(self.grain * GRAINS)
    }
}

pub(crate) fn judge(file: &File, limits: &Limits, report: &mut Report) -> Result<()> {
    let Some(bytes) = file.bytes::<512>(0)?.filter(|header| header.starts_with(b"KDMV")) else {
        let text = "it is not a sparse file, and describes a disk in other files";
        report.problem(Check::References, text);
        return Ok(());
    };
    let mut header = Header::parse(&bytes);
    report.disk_size = header.capacity.checked_mul(SECTOR);
    if header.capacity == 0 {
        let text = "its header gives the disk no size, and leaves it to a text that may name any file";
        report.problem(Check::References, text);
    }
    let placed = text::judge(file, &header, report)?;
    if !is_common(&bytes, &header, report) || !placed || header.capacity == 0 {
        return Ok(());
    }
    report.require(
        file.len().is_multiple_of(SECTOR),
        Check::End,
        "it does not end with a whole sector",
    );
    let at_end = LE::read_u64(&bytes[56..]) == AT_END;
    if at_end {
        let Some(directory) = footer(file, &bytes, report)? else {
            return Ok(());
        };
        header.directory = directory;
    }
    let mut places = Places::new(file, SECTOR);
    let apart = places.take(0) && places.take_all(header.text, header.text_len);
    report.require(
        apart,
        Check::Structure,
        "the text that describes it lies in the header",
    );
    let Some(grains) = grains(file, &header, at_end, &mut places, report)? else {
        return Ok(());
    };
    let ratio = grains.count.saturating_mul(header.grain) / file.len().max(1);
    report.require(
        ratio <= limits.max_ratio,
        Check::Sizes,
        format!(
            "each byte of the file stands for {ratio} of data, and {} are the limit",
            limits.max_ratio
        ),
    );
    if header.has(COMPRESSED) {
        return stream::judge(file, &header, at_end, grains, report);
    }
    if let Some(at) = file.data_from(grains.end)? {
        let text = format!("its last grain ends at {}, and there is data at {at}", grains.end);
        report.problem(Check::End, text);
    }
    Ok(())
}

/// Whether the header is one that common programs write. What is wrong beyond is told.
fn is_common(bytes: &[u8; 512], header: &Header, report: &mut Report) -> bool {
    let version = LE::read_u32(&bytes[4..]);
    report.require(
        (1..=3).contains(&version),
        Check::Features,
        format!("version {version} is not known"),
    );
    let unknown = header.flags & !KNOWN;
    let compression = LE::read_u16(&bytes[77..]);
    let streams = (header.has(COMPRESSED), header.has(MARKERS));
    report.require(
        unknown == 0
            && header.has(NEW_LINES)
            && matches!((compression, streams), (0, (false, false)) | (1, (true, true))),
        Check::Features,
        format!(
            "flags {:#x} with compression {compression} are not known",
            header.flags
        ),
    );
    report.feature("compressed", header.has(COMPRESSED));
    report.feature("dirty", bytes[72] != 0);
    report.require(bytes[72] == 0, Check::Structure, "it was not closed");
    report.require(
        bytes[73..77] == *b"\n \r\n",
        Check::Structure,
        "its ends of lines were changed on the way",
    );
    report.require(
        bytes[79..].iter().all(|byte| *byte == 0),
        Check::Features,
        "its header goes on behind its last field",
    );
    let per_table = u64::from(LE::read_u32(&bytes[44..]));
    let grain = header.grain / SECTOR;
    let text = format!("grains of {grain} sectors, {per_table} to a table, cannot be");
    let sane = grain.is_power_of_two() && (8..=1 << 16).contains(&grain) && per_table == GRAINS;
    let covered = header.capacity.checked_mul(SECTOR).is_some();
    let text_of_size = format!("no disk can have {} sectors", header.capacity);
    report.require(sane, Check::Structure, text) & report.require(covered, Check::Sizes, text_of_size)
}

/// The copy of the header at the end says the same, but for where the directory is, which is given.
fn footer(file: &File, header: &[u8; 512], report: &mut Report) -> Result<Option<u64>> {
    let at = file.len().saturating_sub(FOOTER);
    let footer = file
        .bytes::<512>(at)?
        .filter(|footer| footer.starts_with(b"KDMV"));
    let Some(footer) = footer else {
        report.problem(Check::End, "it does not end with its footer");
        return Ok(None);
    };
    let same = footer[..56] == header[..56] && footer[64..] == header[64..];
    report.require(
        same,
        Check::Structure,
        "the header and its copy at the end differ",
    );
    let directory = Header::parse(&footer).directory;
    let found = directory < at;
    report.require(
        found,
        Check::Structure,
        "the copy of the header does not say where the grain directory is",
    );
    Ok(found.then_some(directory))
}

/// Grains that are there.
#[derive(Default)]
struct Grains {
    count: u64,
    /// Behind the last one, or the last table.
    end: u64,
    /// Of streams: where each is, and its first sector of the disk.
    starts: Vec<(u64, u64)>,
    /// Of streams with a directory at the end: where the tables are.
    tables: Vec<u64>,
}

/// The directory names tables that name grains. Each is in the file, lies where those of its kind do, and is named once. `None` where
/// one is not, which is told.
fn grains(
    file: &File,
    header: &Header,
    at_end: bool,
    places: &mut Places,
    report: &mut Report,
) -> Result<Option<Grains>> {
    let behind = if at_end { header.overhead } else { 0 };
    let before = if at_end { file.len() } else { header.overhead };
    let tables = header.tables();
    if !report.require(
        tables <= MAX_TABLES,
        Check::Sizes,
        format!("its disk takes {tables} grain tables, and {MAX_TABLES} are the limit"),
    ) {
        return Ok(None);
    }
    let Some(primary) = directory(file, header.directory, tables, behind..before, places, report)? else {
        return Ok(None);
    };
    if header.has(BACKUP) != (header.backup != 0) || (at_end && header.has(BACKUP)) {
        let text = "its flags and its header differ in whether there is a second grain directory";
        report.problem(Check::Structure, text);
        return Ok(None);
    }
    let backup = if header.has(BACKUP) {
        let Some(backup) = directory(file, header.backup, tables, behind..before, places, report)? else {
            return Ok(None);
        };
        Some(backup)
    } else {
        None
    };
    let mut grains = Grains {
        end: header.overhead,
        ..Grains::default()
    };
    for (index, (number, table)) in primary.iter().copied().enumerate() {
        let named = entries(file, table)?;
        if let Some((_, other)) = backup.as_ref().map(|backup| backup[index])
            && entries(file, other)? != named
        {
            let text = format!("the grain tables at {table} and {other} differ");
            report.problem(Check::Structure, text);
            return Ok(None);
        }
        if let Err(text) = of_table(file, header, number * GRAINS, &named, places, &mut grains)? {
            report.problem(Check::Structure, text);
            return Ok(None);
        }
    }
    if at_end {
        grains.tables = primary.into_iter().map(|(_, table)| table).collect();
    }
    Ok(Some(grains))
}

/// The tables that the directory at `at` names: their numbers, and their places `between` these.
fn directory(
    file: &File,
    at: u64,
    tables: u64,
    between: std::ops::Range<u64>,
    places: &mut Places,
    report: &mut Report,
) -> Result<Option<Vec<(u64, u64)>>> {
    let inside = |at: u64, len: u64| at >= between.start && at.saturating_add(len) <= between.end;
    let len = tables.saturating_mul(4);
    if !report.require_inside("the grain directory", at, len) {
        return Ok(None);
    }
    if !inside(at, len) || !places.take_all(at, len) {
        let text = format!("there is no grain directory at {at}, or something else is");
        report.problem(Check::Structure, text);
        return Ok(None);
    }
    let mut found = Vec::new();
    let mut wrong = None;
    file.pieces(at, at + len, |offset, piece| {
        let entries = piece.chunks_exact(4).map(LE::read_u32);
        let named = ((offset - at) / 4..)
            .zip(entries)
            .filter(|(_, entry)| *entry != 0);
        for (number, entry) in named {
            let table = u64::from(entry) * SECTOR;
            if !inside(table, GRAINS * 4) || !places.take_all(table, GRAINS * 4) {
                wrong = Some(table);
                return false;
            }
            found.push((number, table));
        }
        true
    })?;
    // Streams have no tables for what is all zeros.
    let missing = between.start == 0 && found.len() as u64 != tables;
    if let Some(table) = wrong.or(missing.then_some(0)) {
        let text = format!("there is no grain table at {table}, or something else is");
        report.problem(Check::Structure, text);
        return Ok(None);
    }
    Ok(Some(found))
}

/// The entries of the table at `at`, which is in the file.
fn entries(file: &File, at: u64) -> Result<Vec<u32>> {
    let bytes = file.some(at, GRAINS as usize * 4)?;
    Ok(bytes.chunks_exact(4).map(LE::read_u32).collect())
}

/// Adds the grains of a table, of which the first is number `first` of the disk. What is wrong with one, if anything.
fn of_table(
    file: &File,
    header: &Header,
    first: u64,
    entries: &[u32],
    places: &mut Places,
    grains: &mut Grains,
) -> Result<std::result::Result<(), String>> {
    for (number, entry) in (first..).zip(entries.iter().copied()) {
        if entry == 0 || (entry == ZEROS && header.has(ZERO_GRAINS)) {
            continue;
        }
        let at = u64::from(entry) * SECTOR;
        let left = header.disk_size().saturating_sub(number * header.grain);
        // The last grain of a file may be cut where the disk ends.
        let len = if header.has(COMPRESSED) {
            stream::grain(file, at, number * header.grain / SECTOR, header.grain)?
        } else {
            let there = file.len().saturating_sub(at).min(header.grain);
            (there >= left.min(header.grain)).then_some(there)
        };
        let len = len.filter(|len| left > 0 && at >= header.overhead && places.take_all(at, *len));
        let Some(len) = len else {
            return Ok(Err(format!(
                "there is no grain {number} at {at}, or something else is"
            )));
        };
        grains.count += 1;
        grains.end = grains.end.max(at + len);
        if header.has(COMPRESSED) {
            grains.starts.push((at, number * header.grain / SECTOR));
        }
    }
    Ok(Ok(()))
}
