//! VHDX: two headers, two tables of regions, and in one of the regions a table of metadata. Little endian.

use block::Result;
use byteorder::{ByteOrder, LE};
use uuid::{Uuid, uuid};

use crate::file::{File, Places};
use crate::report::{Check, Report};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of the table of regions, and of that of metadata.
const TABLE: usize = 64 << 10;
/// Entries that either may have.
const MOST: usize = 2047;
const ENTRY: usize = 32;
const MIB: u64 = 1 << 20;
/// States of blocks that are there.
const PRESENT: u64 = 6;
const PARTLY_PRESENT: u64 = 7;

const BAT: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");

const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const PAGE_83: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
const LOGICAL_SECTOR: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
const PHYSICAL_SECTOR: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");

const HAS_PARENT: u32 = 1 << 1;
/// A reader that does not know an item must leave the image alone.
const REQUIRED_ITEM: u32 = 1 << 2;

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    headers(file, report)?;
    let mut metadata = None;
    let mut bat = None;
    for at in REGIONS {
        let table = file.some(at, TABLE)?;
        let Some(entries) = entries(&table, b"regi", 8, 16) else {
            continue;
        };
        for entry in entries {
            let (start, len) = (LE::read_u64(&entry[16..]), u64::from(LE::read_u32(&entry[24..])));
            match id(entry) {
                METADATA => metadata = Some((start, len)),
                BAT => bat = Some((start, len)),
                other if LE::read_u32(&entry[28..]) & 1 != 0 => {
                    report.problem(
                        Check::Features,
                        format!("it needs region {other}, which is not known"),
                    );
                }
                _ => {}
            }
        }
        break;
    }
    let (Some((metadata, metadata_len)), Some((bat, bat_len))) = (metadata, bat) else {
        report.problem(
            Check::Structure,
            "no table of regions names the metadata and the map of blocks",
        );
        return Ok(());
    };
    if report.require_inside("the map of blocks", bat, bat_len) {
        blocks_once(file, bat, bat_len, report)?;
    }
    let apart = metadata >= bat.saturating_add(bat_len) || bat >= metadata.saturating_add(metadata_len);
    report.require(
        apart && metadata.min(bat) >= 1 << 20,
        Check::Structure,
        "the metadata, the map of blocks and the headers do not lie apart",
    );
    if report.require_inside("the metadata", metadata, metadata_len) {
        items(file, metadata, metadata_len, bat_len, report)?;
    }
    Ok(())
}

/// What is there of the disk, and of bitmaps of it, lies in the file and is named once.
fn blocks_once(file: &File, bat: u64, bat_len: u64, report: &mut Report) -> Result<()> {
    let mut places = Places::new(file, MIB);
    let mut wrong = None;
    file.pieces(bat, bat + bat_len, |_, piece| {
        let entries = piece.chunks_exact(8).map(LE::read_u64);
        let mut present = entries.filter(|entry| matches!(entry & 7, PRESENT | PARTLY_PRESENT));
        wrong = present.find(|entry| {
            let at = entry >> 20;
            at == 0 || at * MIB >= file.len() || !places.take(at * MIB)
        });
        wrong.is_none()
    })?;
    if let Some(entry) = wrong {
        let text = format!("there is no block at {} MiB, or it is named twice", entry >> 20);
        report.problem(Check::Structure, text);
    }
    Ok(())
}

/// The header that counts is the one with the higher number.
fn headers(file: &File, report: &mut Report) -> Result<()> {
    let mut newest: Option<[u8; 80]> = None;
    for at in HEADERS {
        let header = file.bytes::<80>(at)?.filter(|header| header.starts_with(b"head"));
        let number = |header: &[u8; 80]| LE::read_u64(&header[8..]);
        newest = match (newest, header) {
            (Some(one), Some(other)) if number(&other) > number(&one) => Some(other),
            (one, other) => one.or(other),
        };
    }
    let Some(header) = newest else {
        report.problem(Check::Structure, "it has no header");
        return Ok(());
    };
    let version = LE::read_u16(&header[66..]);
    if version != 1 {
        report.problem(Check::Features, format!("version {version} is not known"));
    }
    // What a log holds would be written over what is judged here.
    let log = header[48..64].iter().any(|byte| *byte != 0);
    report.feature("dirty", log);
    if log {
        report.problem(
            Check::Structure,
            "it was not closed: its log has yet to be replayed",
        );
    }
    let (log_len, log_at) = (
        u64::from(LE::read_u32(&header[68..])),
        LE::read_u64(&header[72..]),
    );
    report.require_inside("the log", log_at, log_len);
    Ok(())
}

fn items(file: &File, start: u64, len: u64, bat_len: u64, report: &mut Report) -> Result<()> {
    let table = file.some(start, TABLE.min(len as usize))?;
    let Some(entries) = entries(&table, b"metadata", 10, 32) else {
        report.problem(
            Check::Structure,
            "there is no table of metadata where it should be",
        );
        return Ok(());
    };
    let mut block = 0;
    for entry in entries {
        let (at, flags) = (u64::from(LE::read_u32(&entry[16..])), LE::read_u32(&entry[24..]));
        let value = match at.checked_add(8) {
            Some(end) if end <= len => file.bytes::<8>(start + at)?.unwrap_or_default(),
            _ => [0; 8],
        };
        match id(entry) {
            FILE_PARAMETERS => {
                block = u64::from(LE::read_u32(&value));
                if LE::read_u32(&value[4..]) & HAS_PARENT != 0 {
                    report.problem(Check::References, "it is a difference to a parent image");
                }
            }
            DISK_SIZE => report.disk_size = Some(LE::read_u64(&value)),
            PARENT_LOCATOR => report.problem(Check::References, "it names a parent image"),
            PAGE_83 | LOGICAL_SECTOR | PHYSICAL_SECTOR => {}
            other if flags & REQUIRED_ITEM != 0 => {
                report.problem(
                    Check::Features,
                    format!("it needs metadata {other}, which is not known"),
                );
            }
            _ => {}
        }
    }
    let Some(size) = report.disk_size else {
        report.problem(Check::Structure, "its metadata do not say how large the disk is");
        return Ok(());
    };
    let sane = block.is_power_of_two() && (1 << 20..=1 << 28).contains(&block);
    if report.require(
        sane,
        Check::Structure,
        format!("blocks of {block} bytes cannot be"),
    ) {
        report.require(
            size.div_ceil(block) <= bat_len / 8,
            Check::Sizes,
            format!("a map of {bat_len} bytes is too short for a disk of {size} bytes"),
        );
    }
    Ok(())
}

/// The entries of a table that starts with `magic`, counts them at `count` and has them from `first` on.
fn entries<'t>(
    table: &'t [u8],
    magic: &[u8],
    count: usize,
    first: usize,
) -> Option<impl Iterator<Item = &'t [u8]>> {
    let number = usize::from(LE::read_u16(table.get(count..count + 2)?));
    let sound = table.starts_with(magic) && number <= MOST;
    let entries = table.get(first..first + number * ENTRY)?;
    sound.then(|| entries.chunks_exact(ENTRY))
}

fn id(entry: &[u8]) -> Uuid {
    Uuid::from_slice_le(&entry[..16]).unwrap_or_default()
}
