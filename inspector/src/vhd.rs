//! VHD: a footer, and for disks that grow a copy of it at the start, a header and a table of blocks. Big endian.

use block::Result;
use byteorder::{BE, ByteOrder};

use crate::disk::judge_table;
use crate::file::File;
use crate::report::{Check, Report};

const FOOTER: usize = 512;
const HEADER: usize = 1024;
const VERSION: u32 = 0x0001_0000;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// An entry that names no block.
const NONE: u32 = u32::MAX;
const SECTOR: u64 = 512;

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    let end = file.len().saturating_sub(FOOTER as u64);
    let Some(footer) = file
        .bytes::<FOOTER>(end)?
        .filter(|footer| footer.starts_with(b"conectix"))
    else {
        report.problem(Check::End, "it does not end with its footer");
        return Ok(());
    };
    checksum("footer", &footer, 64, report);
    let version = BE::read_u32(&footer[12..]);
    if version != VERSION {
        report.problem(Check::Features, format!("version {version:#x} is not known"));
    }
    let size = BE::read_u64(&footer[48..]);
    report.disk_size = Some(size);
    match BE::read_u32(&footer[60..]) {
        FIXED => {
            let text = format!(
                "a fixed disk of {size} bytes does not fill a file of {}",
                file.len()
            );
            report.require(size == end, Check::Sizes, text);
            judge_table(file, report)
        }
        DYNAMIC => dynamic(file, &footer, end, report),
        DIFFERENCING => {
            report.problem(Check::References, "it is a difference to a parent image");
            Ok(())
        }
        kind => {
            report.problem(Check::Features, format!("disk type {kind} is not known"));
            Ok(())
        }
    }
}

fn dynamic(file: &File, footer: &[u8; FOOTER], end: u64, report: &mut Report) -> Result<()> {
    let size = BE::read_u64(&footer[48..]);
    if file.bytes::<FOOTER>(0)?.as_ref() != Some(footer) {
        report.problem(
            Check::Structure,
            "the copy of the footer at the start differs from it",
        );
    }
    let at = BE::read_u64(&footer[16..]);
    let header = file.bytes::<HEADER>(at)?;
    let Some(header) = header.filter(|header| header.starts_with(b"cxsparse")) else {
        report.problem(Check::Structure, format!("there is no header at {at}"));
        return Ok(());
    };
    checksum("header", &header, 36, report);
    if header[40..56]
        .iter()
        .chain(&header[576..768])
        .any(|byte| *byte != 0)
    {
        report.problem(Check::References, "it names a parent image");
    }
    let (table, entries) = (
        BE::read_u64(&header[16..]),
        u64::from(BE::read_u32(&header[28..])),
    );
    let block = u64::from(BE::read_u32(&header[32..]));
    if !report.require(
        block.is_power_of_two() && (1 << 12..=1 << 28).contains(&block),
        Check::Structure,
        format!("blocks of {block} bytes cannot be"),
    ) {
        return Ok(());
    }
    report.require(
        entries.saturating_mul(block) >= size,
        Check::Sizes,
        format!("{entries} blocks are too few for a disk of {size} bytes"),
    );
    report.require(
        at >= FOOTER as u64 && table >= at + HEADER as u64,
        Check::Structure,
        format!("the table of blocks at {table} does not lie behind the header at {at}"),
    );
    if report.require_inside("the table of blocks", table, entries * 4) {
        blocks(file, table, entries, block, end, report)?;
    }
    Ok(())
}

/// Blocks lie between the table and the footer, and apart.
fn blocks(file: &File, table: u64, entries: u64, block: u64, end: u64, report: &mut Report) -> Result<()> {
    // In front of each is a bitmap of its sectors.
    let bitmap = (block / SECTOR / 8).next_multiple_of(SECTOR);
    let mut starts = Vec::new();
    file.pieces(table, table + entries * 4, |_, piece| {
        let named = piece
            .chunks_exact(4)
            .map(BE::read_u32)
            .filter(|entry| *entry != NONE);
        starts.extend(named.map(|entry| u64::from(entry) * SECTOR));
        true
    })?;
    starts.sort_unstable();
    let first = starts.first().copied().unwrap_or(u64::MAX);
    let last = starts.last().map_or(0, |last| last + bitmap + block);
    report.require(
        first >= table + entries * 4 && last <= end,
        Check::Structure,
        format!("blocks lie from {first} to {last}, and not between the table of them and the footer"),
    );
    let mut pairs = starts.iter().zip(starts.iter().skip(1));
    let overlap = pairs.find(|(one, next)| *one + bitmap + block > **next);
    if let Some((one, next)) = overlap {
        let text = format!("the blocks at {one} and {next} are not apart");
        report.problem(Check::Structure, text);
    }
    let last = last.max(table + entries * 4);
    if let Some(at) = file.data_from(last)?.filter(|at| *at < end) {
        report.problem(
            Check::End,
            format!("its blocks end at {last}, and there is data at {at}"),
        );
    }
    Ok(())
}

/// The complement of the sum of all bytes but its own, which are at `at`.
fn checksum(what: &str, bytes: &[u8], at: usize, report: &mut Report) {
    let others = bytes[..at].iter().chain(&bytes[at + 4..]);
    let sum = !others.fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    report.require(
        sum == BE::read_u32(&bytes[at..]),
        Check::Structure,
        format!("the checksum of the {what} is wrong"),
    );
}
