//! VDI: a header, a map of blocks, and the blocks. Little endian.

use block::Result;
use byteorder::{ByteOrder, LE};

use crate::file::{File, Places};
use crate::report::{Check, Report};

/// Version 1.1, the only one that there is since 2007.
const VERSION: u32 = 0x0001_0001;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
/// Bytes of a block, in all images that there are.
const BLOCK: u64 = 1 << 20;
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
    let (sector, extra) = (field(360), field(380));
    let text = format!(
        "blocks of {block} bytes in sectors of {sector} and with {extra} of extra data are not known"
    );
    if !report.require(
        block == BLOCK && sector == 512 && extra == 0,
        Check::Features,
        text,
    ) {
        return Ok(());
    }
    report.require(
        [map, data, size].iter().all(|bytes| bytes.is_multiple_of(512)),
        Check::Structure,
        format!("the map at {map}, the blocks at {data} and the disk of {size} bytes are no whole sectors"),
    );
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
    // A map that is nearly all hole may be of more blocks than there is memory for.
    let mut places = Places::within(allocated.min(blocks), 1);
    let (mut wrong, mut seen) = (None, 0);
    file.pieces(map, map + blocks * 4, |_, piece| {
        seen += piece.len() as u64 / 4;
        let mut entries = piece
            .chunks_exact(4)
            .map(LE::read_u32)
            .filter(|entry| *entry < NONE);
        wrong = entries.find(|entry| !places.take(u64::from(*entry)));
        wrong.is_none()
    })?;
    // Entries in holes are zeros, and name the first block.
    if wrong.is_none() && seen < blocks && (seen + 1 < blocks || !places.take(0)) {
        wrong = Some(0);
    }
    if let Some(entry) = wrong {
        let text = format!("block {entry} is mapped twice, or is not one of {allocated}");
        report.problem(Check::Structure, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Limits, inspect};

    #[test]
    fn a_map_that_is_a_hole_names_the_first_block_again_and_again() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let (map, data) = (4096, 4096 + 2048 * 4);
        let mut header = [0; 512];
        for (at, value) in [
            (64, 0xbeda_107f),
            (68, VERSION),
            (76, DYNAMIC),
            (340, map),
            (344, data),
            (360, 512),
            (376, 1 << 20),
            (384, 2048),
            (388, 1),
        ] {
            LE::write_u32(&mut header[at..], value);
        }
        LE::write_u64(&mut header[368..], 2048 << 20);
        std::fs::write(place.path(), header).unwrap();
        place.as_file().set_len(u64::from(data) + (1 << 20)).unwrap();
        let storage = Arc::new(raw::File::open(place.path()).unwrap());
        let report = inspect(storage, &Limits::default()).unwrap();
        let texts: Vec<&str> = report.problems.iter().map(|one| one.text.as_str()).collect();
        assert_eq!(texts, ["block 0 is mapped twice, or is not one of 1"]);
    }
}
