//! LUKS: disks that are encrypted as a whole. Version 1 is parsed.

use block::{ErrorKind, Result};
use encryption::{HEADER_LEN, Luks, STRIPES};

use crate::file::File;
use crate::report::{Check, Report};

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    report.feature("encryption-luks", true);
    match Luks::parse(&file.some(0, HEADER_LEN)?) {
        Ok(luks) => {
            let payload = luks.payload_offset();
            report.require_inside("the header with its keys", 0, payload);
            report.disk_size = file.len().checked_sub(payload);
            judge_header(&luks, report);
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            report.problem(Check::Features, error.message().to_owned());
        }
        Err(error) => report.problem(Check::Structure, error.message().to_owned()),
    }
    Ok(())
}

/// What is wrong with a header that can be parsed: QEMU wants the slots in order that hold no key, too.
pub(crate) fn judge_header(luks: &Luks, report: &mut Report) {
    for error in [luks.spec().err(), luks.hash().err()].into_iter().flatten() {
        report.problem(Check::Features, error.message().to_owned());
    }
    let mut slots: Vec<_> = (0..luks.slots().len()).map(|slot| luks.material(slot)).collect();
    slots.sort_by_key(|material| material.start);
    let starts = slots.iter().skip(1).map(|material| material.start);
    let ends = starts.chain([luks.payload_offset() as usize]);
    let apart = slots.iter().zip(ends).all(|(material, end)| material.end <= end);
    let behind = slots.iter().all(|material| material.start >= HEADER_LEN);
    report.require(
        apart && behind && luks.slots().iter().all(|slot| slot.stripes == STRIPES),
        Check::Structure,
        "its key slots do not lie apart between the header and the data, or are not as long as they should be",
    );
}
