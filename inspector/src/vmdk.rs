//! VMDK: a text that describes the disk, alone or in a sparse file that holds it. Little endian.
//!
//! A text alone names the files that hold the disk, any files. So does a sparse file without a capacity, and one whose text
//! has several extents: only those that hold their one extent themselves are safe.

use block::{Result, escape};
use byteorder::{ByteOrder, LE};

use crate::file::{File, Places};
use crate::report::{Check, Report};

const SECTOR: u64 = 512;
/// Grains that a table names.
const GRAINS: u64 = 512;
/// Entries up to this one name nothing: the grain is not there, or full of zeros.
const ZEROS: u32 = 1;
/// Bytes of the longest text. Usual ones have 10 or 20 KiB of room.
const MAX_TEXT: u64 = 1 << 20;
/// The directory of grains lies at the end.
const AT_END: u64 = u64::MAX;
/// No parent.
const NO_PARENT: &str = "ffffffff";
const SPARSE: [&str; 2] = ["monolithicsparse", "streamoptimized"];

/// Whether a file that starts so is a text that describes a disk: comments, and a version.
pub(crate) fn is_descriptor(head: &[u8]) -> bool {
    if head.len() > 21 && head[..21].eq_ignore_ascii_case(b"# Disk DescriptorFile") {
        return true;
    }
    let lines = head.split(|byte| *byte == b'\n');
    let mut lines = lines.map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    first.is_some_and(|line| matches!(line, b"version=1" | b"version=2" | b"version=3"))
}

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    let Some(header) = file.bytes::<512>(0)?.filter(|header| header.starts_with(b"KDMV")) else {
        let text = "it is not a sparse file, and describes a disk in other files";
        report.problem(Check::References, text);
        return Ok(());
    };
    let version = LE::read_u32(&header[4..]);
    if !(1..=3).contains(&version) {
        report.problem(Check::Features, format!("version {version} is not known"));
    }
    let header = match file.len().checked_sub(2 * SECTOR) {
        Some(footer) if LE::read_u64(&header[56..]) == AT_END => {
            let footer = file.bytes::<512>(footer)?;
            let Some(footer) = footer.filter(|footer| footer.starts_with(b"KDMV")) else {
                report.problem(Check::End, "it does not end with its footer");
                return Ok(());
            };
            footer
        }
        _ => header,
    };
    let field = |at: usize| LE::read_u64(&header[at..]);
    let capacity = field(12);
    report.disk_size = capacity.checked_mul(SECTOR);
    let text = "its header gives the disk no size, and leaves it to a text that may name any file";
    report.require(capacity > 0, Check::References, text);
    report.require(
        report.disk_size.is_some(),
        Check::Sizes,
        format!("no disk can have {capacity} sectors"),
    );
    directory(file, &header, report)?;
    let (at, len) = (field(28).saturating_mul(SECTOR), field(36).saturating_mul(SECTOR));
    if at == 0 || len == 0 || len > MAX_TEXT {
        let text = format!("the text that describes it has {len} bytes, and should have up to {MAX_TEXT}");
        report.problem(Check::Structure, text);
    } else if report.require_inside("the text that describes it", at, len) {
        describe(&file.some(at, len as usize)?, report);
    }
    Ok(())
}

/// The directory names tables that name grains. Nothing is named twice.
fn directory(file: &File, header: &[u8; 512], report: &mut Report) -> Result<()> {
    let (capacity, grain) = (LE::read_u64(&header[12..]), LE::read_u64(&header[20..]));
    let per_table = u64::from(LE::read_u32(&header[44..]));
    let sane = grain.is_power_of_two() && (8..=1 << 16).contains(&grain) && per_table == GRAINS;
    let text = format!("grains of {grain} sectors, {per_table} to a table, cannot be");
    if !report.require(sane, Check::Structure, text) {
        return Ok(());
    }
    let tables = capacity.div_ceil(grain * GRAINS);
    let start = LE::read_u64(&header[56..]).saturating_mul(SECTOR);
    if !report.require_inside("the grain directory", start, tables.saturating_mul(4)) {
        return Ok(());
    }
    let mut places = Places::new(file, SECTOR);
    let named = |piece: &[u8], start: &mut Vec<u32>| {
        start.extend(
            piece
                .chunks_exact(4)
                .map(LE::read_u32)
                .filter(|entry| *entry > ZEROS),
        );
    };
    let mut tables_at = Vec::new();
    file.pieces(start, start + tables * 4, |_, piece| {
        named(piece, &mut tables_at);
        true
    })?;
    let mut grains = Vec::new();
    for table in tables_at {
        let table = u64::from(table) * SECTOR;
        let Some(entries) = file
            .bytes::<{ GRAINS as usize * 4 }>(table)?
            .filter(|_| places.take(table))
        else {
            let text = format!("there is no grain table at {table}, or it is named twice");
            report.problem(Check::Structure, text);
            return Ok(());
        };
        grains.clear();
        named(&entries, &mut grains);
        let wrong = grains
            .iter()
            .find(|grain| !places.take(u64::from(**grain) * SECTOR));
        if let Some(grain) = wrong {
            let text = format!(
                "there is no grain at {}, or it is named twice",
                u64::from(*grain) * SECTOR
            );
            report.problem(Check::Structure, text);
            return Ok(());
        }
    }
    Ok(())
}

/// `key="value"` in a line of its own, and extents as `RW 8192 SPARSE "name"`.
fn describe(text: &[u8], report: &mut Report) {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let Ok(text) = str::from_utf8(text) else {
        report.problem(Check::Structure, "the text that describes it is not UTF-8");
        return;
    };
    let mut extents = 0;
    let mut kind = String::new();
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        match key.trim().to_ascii_lowercase().as_str() {
            "createtype" => kind = value,
            "parentcid" if value != NO_PARENT => {
                report.problem(Check::References, "it is a difference to a parent image");
            }
            "parentfilenamehint" => {
                let text = format!("it names a parent image: {}", escape(line));
                report.problem(Check::References, text);
            }
            _ => {
                let mut words = line.split_whitespace();
                if matches!(words.next(), Some("RW" | "RDONLY" | "NOACCESS")) {
                    extents += 1;
                    extent(words, line, report);
                }
            }
        }
    }
    if !SPARSE.contains(&kind.as_str()) {
        let text = format!(
            "its type is \"{}\", and only {} hold their disk themselves",
            escape(&kind),
            SPARSE.join(" and ")
        );
        report.problem(Check::References, text);
    }
    report.require(
        extents == 1,
        Check::References,
        format!("it has {extents} extents, and only one can be in this file"),
    );
}

fn extent<'w>(mut words: impl Iterator<Item = &'w str>, line: &str, report: &mut Report) {
    let (_size, kind) = (words.next(), words.next());
    let name = line.split('"').nth(1).unwrap_or_default();
    if kind != Some("SPARSE") || name.contains('/') {
        let text = format!("it has an extent in another file: {}", escape(line));
        report.problem(Check::References, text);
    }
}
