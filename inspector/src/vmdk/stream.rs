//! Streams: compressed grains with a marker before each, which can be read from the first to the last without any table.
//!
//! Whoever reads one so must find the same grains as whoever goes by the tables.

use block::Result;
use byteorder::{ByteOrder, LE};

use super::{FOOTER, GRAINS, Grains, Header, SECTOR};
use crate::file::File;
use crate::report::{Check, Report};

/// Bytes of a marker before a grain. Others take a sector.
const MARKER: u64 = 12;
/// What a marker without a grain is of.
const END: u32 = 0;
const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const HEADER: u32 = 3;

/// Bytes that the grain at `at` takes in the file with its marker, if that says that it is the one of this sector.
pub(super) fn grain(file: &File, at: u64, sector: u64, grain: u64) -> Result<Option<u64>> {
    let Some(marker) = file.bytes::<{ MARKER as usize }>(at)? else {
        return Ok(None);
    };
    let len = MARKER + u64::from(LE::read_u32(&marker[8..]));
    // QEMU has room for twice a grain.
    let sane = len > MARKER && len <= 2 * grain && LE::read_u64(&marker) == sector;
    Ok((sane && at + len <= file.len()).then_some(len))
}

/// Reads the file from its first grain to its end, and finds what the tables name and nothing else.
pub(super) fn judge(
    file: &File,
    header: &Header,
    at_end: bool,
    mut grains: Grains,
    report: &mut Report,
) -> Result<()> {
    grains.starts.sort_unstable();
    grains.tables.sort_unstable();
    let (mut found, mut tables) = (0, 0);
    let mut directory = false;
    let mut at = header.overhead;
    let wrong = loop {
        if at >= file.len() {
            break None;
        }
        let Some(marker) = file.bytes::<16>(at)? else {
            break Some(at);
        };
        let (value, len, kind) = (
            LE::read_u64(&marker),
            u64::from(LE::read_u32(&marker[8..])),
            LE::read_u32(&marker[12..]),
        );
        let next = at + SECTOR;
        at = match (len, kind) {
            // QEMU writes no end, but zeros up to one.
            (0, END) if !at_end && file.data_from(at)?.is_none() => break None,
            (0, END) if at_end && value == 0 && next == file.len() && file.data_from(at)?.is_none() => next,
            (0, TABLE) if grains.tables.binary_search(&next).is_ok() && value == GRAINS * 4 / SECTOR => {
                tables += 1;
                next + GRAINS * 4
            }
            (0, DIRECTORY) if next == header.directory && value == (header.tables() * 4).div_ceil(SECTOR) => {
                directory = true;
                next + value * SECTOR
            }
            (0, HEADER) if at_end && value == 1 && next + FOOTER == file.len() => next + SECTOR,
            (1.., _) if grains.starts.binary_search(&(at, value)).is_ok() => {
                found += 1;
                at + (MARKER + len).next_multiple_of(SECTOR)
            }
            _ => break Some(at),
        };
    };
    if let Some(at) = wrong {
        let text = format!("at {at} there is nothing that its tables name, or its end");
        report.problem(Check::Structure, text);
        return Ok(());
    }
    report.require(
        found == grains.starts.len() && tables == grains.tables.len() && directory == at_end,
        Check::Structure,
        "its tables name other grains than are found from the first to the last",
    );
    Ok(())
}
