//! ISO 9660: a list of volume descriptors from the 17th sector of 2048 bytes on.

use block::Result;
use byteorder::{ByteOrder, LE};

use crate::file::File;
use crate::report::{Check, Report};
use crate::{Format, Signature, disk};

const SECTOR: u64 = 2048;
/// Where the list starts.
const DESCRIPTORS: u64 = 16 * SECTOR;
/// Descriptors that are looked at. Discs have two to six.
const MOST: u64 = 64;
/// A descriptor that says where everything is.
const PRIMARY: u8 = 1;

/// The signatures of optical discs. UDF continues the list that ISO 9660 begins, and a disc may be both.
pub(crate) fn signature(file: &File) -> Result<Option<Signature>> {
    let mut udf = None;
    for number in 0..MOST {
        let offset = DESCRIPTORS + number * SECTOR + 1;
        let found = |format| Some(Signature { format, offset });
        match file.bytes::<5>(offset)?.as_ref() {
            Some(b"CD001") => return Ok(found(Format::Iso)),
            Some(b"NSR02" | b"NSR03") => udf = udf.or(found(Format::Udf)),
            Some(b"BEA01" | b"TEA01" | b"BOOT2") => {}
            _ => break,
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
        if descriptor[0] == PRIMARY {
            return volume(file, &descriptor, report);
        }
    }
    report.problem(Check::Structure, "there is no primary volume descriptor");
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
