//! ISO 9660: a list of volume descriptors from the 17th sector of 2048 bytes on.

use block::Result;
use byteorder::{ByteOrder, LE};

use crate::file::File;
use crate::report::{Check, Report};
use crate::{Format, Signature, disk};

const SECTOR: u64 = 2048;
/// Where the list starts.
const DESCRIPTORS: u64 = 16 * SECTOR;
/// Descriptors that are looked at, as by Linux. Discs have two to six.
const MOST: u64 = 85;
/// A descriptor that says where everything is.
const PRIMARY: u8 = 1;
/// The one that ends the list.
const LAST: u8 = 255;

/// The signatures of optical discs. UDF continues the list that ISO 9660 begins, and a disc may be both. Linux goes on past what is
/// no descriptor until it finds one of ISO 9660 or of what was before it, and gives up looking for UDF there.
pub(crate) fn signature(file: &File) -> Result<Option<Signature>> {
    let list = file.some(DESCRIPTORS, (MOST * SECTOR) as usize)?;
    let mut udf = None;
    let mut in_order = true;
    for (number, descriptor) in (0..).zip(list.chunks(SECTOR as usize)) {
        let found = |format, at| {
            let offset = DESCRIPTORS + number * SECTOR + at;
            Some(Signature { format, offset })
        };
        match descriptor.get(1..6) {
            Some(b"CD001") => return Ok(found(Format::Iso, 1)),
            _ if descriptor.get(9..14) == Some(b"CDROM") => return Ok(found(Format::Iso, 9)),
            Some(b"NSR02" | b"NSR03") if in_order => udf = udf.or(found(Format::Udf, 1)),
            Some(b"BEA01" | b"TEA01" | b"BOOT2") => {}
            _ => in_order = false,
        }
    }
    Ok(udf)
}

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    report.disk_size = Some(file.len());
    disk::judge_table(file, report)?;
    for number in 0..MOST {
        let Some(descriptor) = file.bytes::<2048>(DESCRIPTORS + number * SECTOR)? else {
            break;
        };
        if descriptor[1..6] != *b"CD001" {
            break;
        }
        match descriptor[0] {
            PRIMARY => return volume(file, &descriptor, report),
            LAST => break,
            _ => {}
        }
    }
    report.problem(
        Check::Structure,
        "there is no primary volume descriptor where its list of them starts",
    );
    Ok(())
}

fn volume(file: &File, descriptor: &[u8; 2048], report: &mut Report) -> Result<()> {
    let blocks = u64::from(LE::read_u32(&descriptor[80..]));
    let block = u64::from(LE::read_u16(&descriptor[128..]));
    if !report.require(
        matches!(block, 512 | 1024 | 2048),
        Check::Structure,
        format!("its blocks have {block} bytes, and not 512, 1024 or 2048"),
    ) {
        return Ok(());
    }
    let len = blocks * block;
    report.require_inside("the volume", 0, len);
    if let Some(at) = file.data_from(len)? {
        report.problem(
            Check::End,
            format!("the volume ends at {len}, and there is data at {at}"),
        );
    }
    Ok(())
}
