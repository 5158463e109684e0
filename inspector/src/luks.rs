//! LUKS: disks that are encrypted as a whole. Version 1 is parsed.

use block::{ErrorKind, Result};
use encryption::{HEADER_LEN, Luks};

use crate::file::File;
use crate::report::{Check, Report};

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    report.feature("encryption-luks", true);
    match Luks::parse(&file.some(0, HEADER_LEN)?) {
        Ok(luks) => {
            let payload = luks.payload_offset();
            report.require_inside("the header with its keys", 0, payload);
            report.disk_size = file.len().checked_sub(payload);
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            report.problem(Check::Features, error.message().to_owned());
        }
        Err(error) => report.problem(Check::Structure, error.message().to_owned()),
    }
    Ok(())
}
