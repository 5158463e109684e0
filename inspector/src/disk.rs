//! Raw disks, and the partition tables on them.

use block::{Access, ErrorKind, Result};
use raw::partition::{PartitionTable, Severity};

use crate::Format;
use crate::file::File;
use crate::report::{Check, Report};

pub(crate) fn judge(file: &File, report: &mut Report) -> Result<()> {
    report.disk_size = Some(file.len());
    judge_table(file, report)
}

/// What is wrong with the partition table, if there is one.
pub(crate) fn judge_table(file: &File, report: &mut Report) -> Result<()> {
    let has = |format| report.signatures.iter().any(|one| one.format == format);
    let (gpt, mbr) = (has(Format::Gpt), has(Format::Mbr));
    report.feature("partition-table-gpt", gpt);
    report.feature("partition-table-mbr", mbr);
    if !gpt && !mbr {
        return Ok(());
    }
    let disk = raw::Image::open(file.storage().clone(), Access::READ)?;
    match PartitionTable::read(&disk, None) {
        Ok(table) => {
            let errors = table
                .findings()
                .iter()
                .filter(|one| one.severity() == Severity::Error);
            for finding in errors {
                report.problem(Check::Structure, format!("partition table: {finding}"));
            }
        }
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(error) => report.problem(Check::Structure, error.message().to_owned()),
    }
    Ok(())
}
