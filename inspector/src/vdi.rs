//! VDI: a header, a map of blocks, and the blocks. Little endian.

use block::Result;
use byteorder::{ByteOrder, LE};

use crate::file::File;
use crate::report::{Check, Report};

/// Version 1.1, the only one that there is since 2007.
const VERSION: u32 = 0x0001_0001;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
/// Entries of the map from here on name no block.
const NONE: u32 = 0xffff_fffe;

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    let Some(header) = file.bytes::<512>(0)? else {
        report.problem(Check::Structure, "the file ends in its header");
        return Ok(());
    };
    let field = |at: usize| LE::read_u32(&header[at..]);
    let version = field(68);
    if version != VERSION {
        report.problem(Check::Features, format!("version {version:#x} is not known"));
        return Ok(());
    }
    let kind = field(76);
    let (map, data) = (u64::from(field(340)), u64::from(field(344)));
    let size = LE::read_u64(&header[368..]);
    let (block, blocks, allocated) = (
        u64::from(field(376)),
        u64::from(field(384)),
        u64::from(field(388)),
    );
    report.disk_size = Some(size);
    if header[424..456].iter().any(|byte| *byte != 0) {
        report.problem(Check::References, "it names a parent image");
    }
    if !matches!(kind, DYNAMIC | FIXED) {
        report.problem(Check::Features, format!("image type {kind} depends on others"));
    }
    let sane = block.is_power_of_two() && block >= 512 && field(380) == 0;
    let text = format!(
        "blocks of {block} bytes and {} of extra data cannot be",
        field(380)
    );
    if !report.require(sane, Check::Structure, text) {
        return Ok(());
    }
    report.require(
        size.div_ceil(block) <= blocks && allocated <= blocks,
        Check::Sizes,
        format!("{blocks} blocks, of which {allocated} are there, are not what a disk of {size} bytes has"),
    );
    let apart = map >= 512 && map + blocks * 4 <= data;
    report.require(
        apart,
        Check::Structure,
        format!("the map at {map} does not lie between the header and the blocks at {data}"),
    );
    if report.require_inside("the map of blocks", map, blocks * 4) {
        blocks_once(file, map, blocks, allocated, report)?;
    }
    let end = data + allocated * block;
    // The last block of a disk may be cut where the disk ends.
    let least = end.saturating_sub(block);
    report.require(
        least <= file.len(),
        Check::Structure,
        format!("its blocks reach to {end}, and the file to {}", file.len()),
    );
    if let Some(at) = file.data_from(end)? {
        report.problem(
            Check::End,
            format!("its blocks end at {end}, and there is data at {at}"),
        );
    }
    Ok(())
}

/// No block of the file is two of the disk.
fn blocks_once(file: &File, map: u64, blocks: u64, allocated: u64, report: &mut Report) -> Result<()> {
    // `allocated` is at most as many as the map in the file has entries, or that is wrong already.
    let mut seen = vec![false; allocated.min(blocks) as usize];
    let mut wrong = None;
    file.pieces(map, map + blocks * 4, |_, piece| {
        let mut entries = piece
            .chunks_exact(4)
            .map(LE::read_u32)
            .filter(|entry| *entry < NONE);
        wrong = entries.find(|entry| {
            let before = seen
                .get_mut(*entry as usize)
                .map(|seen| std::mem::replace(seen, true));
            before != Some(false)
        });
        wrong.is_none()
    })?;
    if let Some(entry) = wrong {
        let text = format!("block {entry} is mapped twice, or is not one of {allocated}");
        report.problem(Check::Structure, text);
    }
    Ok(())
}
