//! The metadata of a VHDX disk: five items that each image has, once each.

use block::Result;
use byteorder::{ByteOrder, LE};
use uuid::{Uuid, uuid};

use super::{MIB, TABLE, entries, id};
use crate::file::File;
use crate::report::{Check, Report};

const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const PAGE_83: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
const LOGICAL_SECTOR: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
const PHYSICAL_SECTOR: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");

/// Bits of the parameters: blocks stay when they are discarded, and what is not there is in a parent.
const LEAVE_ALLOCATED: u32 = 1 << 0;
const HAS_PARENT: u32 = 1 << 1;
/// Flags of an item: it is of the disk and not of the file, and a reader that does not know it must leave the image alone.
const OF_DISK: u32 = 1 << 1;
const REQUIRED: u32 = 1 << 2;
/// Bytes of the largest disk.
const MAX_DISK: u64 = 64 << 40;

/// What the metadata say of the disk.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) size: u64,
    /// Bytes of a block.
    pub(super) block: u64,
    /// Bytes of a logical sector.
    pub(super) sector: u64,
}

/// The items in the region at `start`. `None` where one is missing or wrong, which is told.
pub(super) fn judge(file: &File, start: u64, len: u64, report: &mut Report) -> Result<Option<Disk>> {
    let table = file.some(start, TABLE.min(len as usize))?;
    let Some(entries) = entries(&table, b"metadata", 10, 32) else {
        report.problem(
            Check::Structure,
            "there is no table of metadata where it should be",
        );
        return Ok(None);
    };
    let mut disk = Disk::default();
    let mut found = Vec::new();
    let mut places = Vec::new();
    for entry in entries {
        let (at, length, flags) = (
            u64::from(LE::read_u32(&entry[16..])),
            u64::from(LE::read_u32(&entry[20..])),
            LE::read_u32(&entry[24..]),
        );
        let value = match at.checked_add(16) {
            Some(end) if at >= TABLE as u64 && end <= len => file.bytes::<16>(start + at)?,
            _ => None,
        };
        let Some(value) = value else {
            report.problem(
                Check::Structure,
                format!("there is no item of the metadata at {at}"),
            );
            return Ok(None);
        };
        let kind = id(entry);
        let as_usual = item(kind, &value, &mut disk, report);
        if as_usual != Some((length, flags)) {
            let text = format!(
                "item {kind} of the metadata, of {length} bytes and with flags {flags:#x}, is not known"
            );
            report.problem(Check::Features, text);
        }
        found.push(kind);
        places.push((at, at + length));
    }
    found.sort_unstable();
    let count = found.len();
    found.dedup();
    places.sort_unstable();
    let apart = places.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    report.require(
        count == 5 && found.len() == 5 && apart,
        Check::Structure,
        "its metadata are not five items that lie apart",
    );
    Ok(sane(&disk, report).then_some(disk))
}

/// Takes the value of an item. The length and the flags that it should have, if it is known.
fn item(kind: Uuid, value: &[u8; 16], disk: &mut Disk, report: &mut Report) -> Option<(u64, u32)> {
    let number = LE::read_u32(value);
    match kind {
        FILE_PARAMETERS => {
            disk.block = u64::from(number);
            let flags = LE::read_u32(&value[4..]);
            if flags & HAS_PARENT != 0 {
                report.problem(Check::References, "it is a difference to a parent image");
            }
            let unknown = flags & !(LEAVE_ALLOCATED | HAS_PARENT);
            report.require(
                unknown == 0,
                Check::Features,
                format!("parameters {unknown:#x} are not known"),
            );
            Some((8, REQUIRED))
        }
        DISK_SIZE => {
            disk.size = LE::read_u64(value);
            Some((8, REQUIRED | OF_DISK))
        }
        PAGE_83 => Some((16, REQUIRED | OF_DISK)),
        LOGICAL_SECTOR => {
            disk.sector = u64::from(number);
            Some((4, REQUIRED | OF_DISK))
        }
        PHYSICAL_SECTOR => {
            let text = format!("physical sectors of {number} bytes are not known");
            report.require(matches!(number, 512 | 4096), Check::Features, text);
            Some((4, REQUIRED | OF_DISK))
        }
        PARENT_LOCATOR => {
            report.problem(Check::References, "it names a parent image");
            None
        }
        _ => None,
    }
}

fn sane(disk: &Disk, report: &mut Report) -> bool {
    let &Disk { size, block, sector } = disk;
    // QEMU counts sectors of 4096 bytes as if they had 512.
    report.require(
        sector == 512,
        Check::Features,
        format!("logical sectors of {sector} bytes are not the same disk to all programs"),
    ) & report.require(
        block.is_power_of_two() && (MIB..=256 * MIB).contains(&block),
        Check::Structure,
        format!("blocks of {block} bytes cannot be"),
    ) & report.require(
        size > 0 && size.is_multiple_of(512) && size <= MAX_DISK,
        Check::Sizes,
        format!("no such disk has {size} bytes"),
    )
}
