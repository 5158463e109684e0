//! VHDX: two headers, two tables of regions, and in one of the regions a table of metadata. Little endian.
//!
//! A safe image has both headers and both tables whole by their checksums, both tables the same and neither header with a log
//! that has yet to be replayed; and in the regions only what a disk without a parent takes.

mod metadata;

use block::Result;
use byteorder::{ByteOrder, LE};
use uuid::{Uuid, uuid};

use crate::file::{File, Places};
use crate::report::{Check, Report};
use metadata::Disk;

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a header that its checksum is of.
const HEADER: usize = 4096;
/// Bytes of the table of regions, and of that of metadata.
const TABLE: usize = 64 << 10;
/// Entries that either may have.
const MOST: usize = 2047;
const ENTRY: usize = 32;
const MIB: u64 = 1 << 20;
/// States of blocks: not there, full of zeros, there.
const ABSENT: u64 = 0;
const ZERO: u64 = 2;
const PRESENT: u64 = 6;

const BAT: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");

/// Where something lies in the file.
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    len: u64,
}

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    let log = headers(file, report)?;
    let Some((bat, metadata)) = regions(file, report)? else {
        return Ok(());
    };
    let mut places = Places::new(file, MIB);
    places.take(0);
    for (what, region) in [
        ("log", log),
        ("map of blocks", Some(bat)),
        ("metadata", Some(metadata)),
    ] {
        let Some(Region { start, len }) = region else {
            continue;
        };
        // Nothing that starts behind the end of the file is taken place by place.
        let whole = report.require_inside(&format!("the {what}"), start, len) && len.is_multiple_of(MIB);
        if !whole || !places.take_all(start, len) {
            let text = format!("the {what} at {start} lies in something else, or is no whole MiB");
            report.problem(Check::Structure, text);
            return Ok(());
        }
    }
    if let Some(disk) = metadata::judge(file, metadata.start, metadata.len, report)? {
        report.disk_size = Some(disk.size);
        if report.problems.is_empty() {
            blocks(file, bat, &disk, &mut places, report)?;
        }
    }
    Ok(())
}

/// Both headers say the same, but for which is the newer one. Where the log is.
fn headers(file: &File, report: &mut Report) -> Result<Option<Region>> {
    let mut found = Vec::new();
    for at in HEADERS {
        let header = file.bytes::<HEADER>(at)?;
        let Some(header) = header.filter(|header| whole(header, b"head")) else {
            report.problem(
                Check::Structure,
                format!("there is no header at {at}, or its checksum is wrong"),
            );
            return Ok(None);
        };
        found.push(header);
    }
    let [one, other] = found.as_slice() else {
        return Ok(None);
    };
    report.require(
        one[8..16] != other[8..16],
        Check::Structure,
        "neither of its headers is the newer one",
    );
    report.require(
        one[64..] == other[64..],
        Check::Structure,
        "its headers differ in the version, or in where the log is",
    );
    let (log_version, version) = (LE::read_u16(&one[64..]), LE::read_u16(&one[66..]));
    report.require(
        version == 1 && log_version == 0,
        Check::Features,
        format!("version {version} with a log of version {log_version} is not known"),
    );
    report.require(
        one[80..].iter().all(|byte| *byte == 0),
        Check::Features,
        "its headers go on behind their last field",
    );
    // What a log holds would be written over what is judged here.
    let log = found
        .iter()
        .any(|header| header[48..64].iter().any(|byte| *byte != 0));
    report.feature("dirty", log);
    report.require(
        !log,
        Check::Structure,
        "it was not closed: its log has yet to be replayed",
    );
    Ok(Some(Region {
        start: LE::read_u64(&one[72..]),
        len: u64::from(LE::read_u32(&one[68..])),
    }))
}

/// The map of blocks, and the metadata.
fn regions(file: &File, report: &mut Report) -> Result<Option<(Region, Region)>> {
    let table = file.some(REGIONS[0], TABLE)?;
    let sound = table.len() == TABLE && whole(&table, b"regi") && file.some(REGIONS[1], TABLE)? == table;
    let entries = entries(&table, b"regi", 8, 16).filter(|_| sound);
    let Some(entries) = entries else {
        report.problem(
            Check::Structure,
            "its tables of regions differ, or their checksums are wrong",
        );
        return Ok(None);
    };
    let (mut bat, mut metadata, mut number) = (None, None, 0);
    for entry in entries {
        number += 1;
        let region = Region {
            start: LE::read_u64(&entry[16..]),
            len: u64::from(LE::read_u32(&entry[24..])),
        };
        match id(entry) {
            BAT => bat = Some(region),
            METADATA => metadata = Some(region),
            other => {
                let text = format!("it has region {other}, which is not known");
                report.problem(Check::Features, text);
            }
        }
        let flags = LE::read_u32(&entry[28..]);
        report.require(
            flags <= 1,
            Check::Features,
            format!("a region with flags {flags:#x} is not known"),
        );
    }
    let (Some(bat), Some(metadata), 2) = (bat, metadata, number) else {
        report.problem(
            Check::Structure,
            "its tables of regions do not name the metadata and the map of blocks, once each",
        );
        return Ok(None);
    };
    let behind = table[16 + number * ENTRY..].iter().all(|byte| *byte == 0);
    report.require(
        behind,
        Check::Features,
        "its tables of regions go on behind their last entry",
    );
    Ok(Some((bat, metadata)))
}

/// What is there of the disk lies in the file and apart. Bitmaps, of what a parent would have, are not there.
fn blocks(file: &File, bat: Region, disk: &Disk, places: &mut Places, report: &mut Report) -> Result<()> {
    // After so many blocks there is an entry of a bitmap of theirs.
    let chunk = (1u64 << 23) * disk.sector / disk.block;
    let blocks = disk.size.div_ceil(disk.block);
    let entries = blocks + blocks.saturating_sub(1) / chunk;
    if !report.require(
        entries <= bat.len / 8,
        Check::Sizes,
        format!(
            "a map of {} bytes is too short for a disk of {} bytes",
            bat.len, disk.size
        ),
    ) {
        return Ok(());
    }
    let mut wrong = None;
    let mut end = MIB;
    file.pieces(bat.start, bat.start + bat.len, |at, piece| {
        let first = (at - bat.start) / 8;
        let mut named = (first..).zip(piece.chunks_exact(8).map(LE::read_u64));
        wrong = named.find(|(number, entry)| {
            let (state, reserved, at) = (
                entry & 7,
                entry >> 3 & 0x1_ffff,
                (entry >> 20).saturating_mul(MIB),
            );
            let of_block = *number < entries && number % (chunk + 1) != chunk;
            let sound = match state {
                ABSENT => *entry == 0,
                ZERO => of_block,
                PRESENT => {
                    end = end.max(at.saturating_add(disk.block));
                    of_block && at.saturating_add(disk.block) <= file.len() && places.take_all(at, disk.block)
                }
                _ => false,
            };
            !sound || reserved != 0
        });
        wrong.is_none()
    })?;
    if let Some((number, entry)) = wrong {
        let text = format!(
            "there is no block at {} MiB, or something else is (entry {number} of the map)",
            entry >> 20
        );
        report.problem(Check::Structure, text);
    }
    Ok(())
}

/// It has this signature, and the checksum that is behind that is the one of its bytes.
fn whole(bytes: &[u8], magic: &[u8]) -> bool {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &[0; 4]);
    bytes.starts_with(magic) && LE::read_u32(&bytes[4..]) == crc32c::crc32c_append(sum, &bytes[8..])
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
