//! VHD: a footer, and for disks that grow a copy of it at the start, a header and a table of blocks. Big endian.
//!
//! Two things are said in several ways: the size, for which some programs multiply the geometry, and which sectors of a block are
//! there, for which QEMU does not look at the bitmaps. A safe image is one where it does not matter whom one asks.

use block::Result;
use byteorder::{BE, ByteOrder};

use crate::Limits;
use crate::disk::judge_table;
use crate::file::File;
use crate::report::{Check, Report};

const FOOTER: usize = 512;
const HEADER: usize = 1024;
const VERSION: u32 = 0x0001_0000;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// An entry that names no block, and a place of nothing.
const NONE: u32 = u32::MAX;
const NOWHERE: u64 = u64::MAX;
const SECTOR: u64 = 512;
/// Bytes of the largest disk that there may be.
const MAX_DISK: u64 = 2040 << 30;
/// The largest geometry: disks that are larger have it, too.
const MAX_GEOMETRY: [u8; 4] = [0xff, 0xff, 16, 255];
/// Programs that QEMU knows to write the size, and not only a geometry.
const WITH_SIZE: [&[u8; 4]; 6] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0"];

pub(crate) fn judge(file: &File, limits: &Limits, report: &mut Report) -> Result<()> {
    let end = file.len().saturating_sub(FOOTER as u64);
    let Some(footer) = file
        .bytes::<FOOTER>(end)?
        .filter(|footer| footer.starts_with(b"conectix"))
    else {
        report.problem(Check::End, "it does not end with its footer of 512 bytes");
        return Ok(());
    };
    report.disk_size = Some(BE::read_u64(&footer[48..]));
    judge_footer(&footer, report);
    let start = file.bytes::<8>(0)?;
    match BE::read_u32(&footer[60..]) {
        FIXED => {
            let size = BE::read_u64(&footer[48..]);
            let text = format!(
                "a fixed disk of {size} bytes does not fill a file of {}",
                file.len()
            );
            report.require(size == end, Check::Sizes, text);
            report.require(
                start.as_ref() != Some(b"conectix") && BE::read_u64(&footer[16..]) == NOWHERE,
                Check::Structure,
                "it is a fixed disk, and has what disks have that grow",
            );
            judge_table(file, report)
        }
        DYNAMIC => dynamic(file, &footer, end, limits, report),
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

fn judge_footer(footer: &[u8; FOOTER], report: &mut Report) {
    checksum("footer", footer, 64, report);
    let (features, version) = (BE::read_u32(&footer[8..]), BE::read_u32(&footer[12..]));
    report.require(
        version == VERSION && features & !1 & !2 == 0,
        Check::Features,
        format!("version {version:#x} with features {features:#x} is not known"),
    );
    report.require(
        footer[84..].iter().all(|byte| *byte == 0),
        Check::Features,
        "it holds the state of a machine, or its footer goes on behind its last field",
    );
    let size = BE::read_u64(&footer[48..]);
    report.require(
        size.is_multiple_of(SECTOR) && size <= MAX_DISK,
        Check::Sizes,
        format!("no such disk has {size} bytes"),
    );
    let geometry: [u8; 4] = [footer[56], footer[57], footer[58], footer[59]];
    let cylinders = u64::from(BE::read_u16(&geometry));
    let product = cylinders * u64::from(geometry[2]) * u64::from(geometry[3]) * SECTOR;
    let by_size = geometry == MAX_GEOMETRY || WITH_SIZE.iter().any(|name| footer[28..32] == **name);
    report.require(
        product == size || by_size,
        Check::Sizes,
        format!("the disk has {size} bytes, and {product} by its geometry"),
    );
}

fn dynamic(file: &File, footer: &[u8; FOOTER], end: u64, limits: &Limits, report: &mut Report) -> Result<()> {
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
    let version = BE::read_u32(&header[24..]);
    report.require(
        version == VERSION && BE::read_u64(&header[8..]) == NOWHERE,
        Check::Features,
        format!("a header of version {version:#x}, or one with another behind it, is not known"),
    );
    // Its identifier, time and name, and where the name is in other words. Nothing else is behind them.
    if header[40..].iter().any(|byte| *byte != 0) {
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
    let blocks = Blocks {
        table,
        entries,
        block,
        used: size.div_ceil(block),
    };
    report.require(
        entries >= blocks.used,
        Check::Sizes,
        format!("{entries} blocks are too few for a disk of {size} bytes"),
    );
    report.require(
        at >= FOOTER as u64 && table >= at + HEADER as u64 && table.is_multiple_of(SECTOR),
        Check::Structure,
        format!("the table of blocks at {table} does not lie behind the header at {at}"),
    );
    if report.require_inside("the table of blocks", table, entries * 4) {
        let named = blocks.judge(file, end, report)?;
        let ratio = named.saturating_mul(block) / file.len().max(1);
        report.require(
            ratio <= limits.max_ratio,
            Check::Sizes,
            format!(
                "each byte of the file stands for {ratio} of data, and {} are the limit",
                limits.max_ratio
            ),
        );
    }
    Ok(())
}

/// The table of blocks.
struct Blocks {
    table: u64,
    entries: u64,
    /// Bytes of each.
    block: u64,
    /// Entries that the disk takes.
    used: u64,
}

impl Blocks {
    /// Blocks lie between the table and the footer, and apart. How many there are.
    fn judge(&self, file: &File, end: u64, report: &mut Report) -> Result<u64> {
        let &Self {
            table,
            entries,
            block,
            used,
        } = self;
        // In front of each is a bitmap of its sectors.
        let bitmap = (block / SECTOR / 8).next_multiple_of(SECTOR);
        let behind = (table + entries * 4).next_multiple_of(SECTOR);
        // As many as the file has room for, and one that shows that there are more.
        let most = file.len() / (bitmap + block) + 1;
        let mut starts = Vec::new();
        let (mut more, mut seen) = (false, 0);
        file.pieces(table, table + entries * 4, |at, piece| {
            seen += piece.len() as u64;
            let first = (at - table) / 4;
            for (number, entry) in (first..).zip(piece.chunks_exact(4).map(BE::read_u32)) {
                if entry != NONE {
                    starts.push(u64::from(entry) * SECTOR);
                    more |= number >= used || starts.len() as u64 > most;
                }
            }
            !more
        })?;
        report.require(
            !more && seen == entries * 4,
            Check::Structure,
            "its table names more blocks than there can be",
        );
        starts.sort_unstable();
        let first = starts.first().copied().unwrap_or(u64::MAX);
        let last = starts.last().map_or(0, |last| last + bitmap + block);
        report.require(
            first >= behind && last <= end,
            Check::Structure,
            format!("blocks lie from {first} to {last}, and not between the table of them and the footer"),
        );
        let mut pairs = starts.iter().zip(starts.iter().skip(1));
        let overlap = pairs.find(|(one, next)| *one + bitmap + block > **next);
        if let Some((one, next)) = overlap {
            let text = format!("the blocks at {one} and {next} are not apart");
            report.problem(Check::Structure, text);
        } else if !more && last <= end {
            for start in &starts {
                bitmap_agrees(file, *start, bitmap, block, report)?;
            }
        }
        let last = last.max(behind);
        if let Some(at) = file.data_from(last)?.filter(|at| *at < end) {
            let text = format!("its blocks end at {last}, and there is data at {at}");
            report.problem(Check::End, text);
        }
        Ok(starts.len() as u64)
    }
}

/// A sector that the bitmap in front of a block says not to be there is full of zeros, and so reads as such for whoever does not look
/// at the bitmap.
fn bitmap_agrees(file: &File, start: u64, bitmap: u64, block: u64, report: &mut Report) -> Result<()> {
    let bits = file.some(start, (block / SECTOR).div_ceil(8) as usize)?;
    if bits.iter().all(|byte| *byte == u8::MAX) {
        return Ok(());
    }
    let data = start + bitmap;
    let mut wrong = None;
    file.pieces(data, data + block, |at, piece| {
        let first = (at - data) / SECTOR;
        let mut sectors = (first..).zip(piece.chunks(SECTOR as usize));
        let there = |sector: u64| bits[sector as usize / 8] & (0x80 >> (sector % 8)) != 0;
        wrong = sectors
            .find(|(sector, bytes)| !there(*sector) && bytes.iter().any(|byte| *byte != 0))
            .map(|(sector, _)| sector);
        wrong.is_none()
    })?;
    if let Some(sector) = wrong {
        let text =
            format!("sector {sector} of the block at {start} has data, and its bitmap says that it has none");
        report.problem(Check::Structure, text);
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
