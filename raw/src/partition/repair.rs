//! Restoring one copy of a GPT from the other.

use block::{BlockDevice, Error, Result};

use super::gpt::{CopyKind, Gpt, Table};
use super::write::{Disk, ProtectiveMbr};
use super::{Damage, Finding, MbrFault, PartitionTable, SectorSize};

/// What a repair has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// The copy that was restored from the other.
    pub restored: Option<CopyKind>,
    /// The backup is in another place now, since the one that the table named is not on the disk.
    pub moved: bool,
    /// The protective MBR.
    pub mbr: bool,
}

impl Repair {
    /// Whether nothing had to be written.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// Makes both copies of a GPT whole and the same, and the MBR protect them. The copy that is whole is the one to restore
/// from; where both are, and differ, `from` has to say which. What partitions are where is never changed.
///
/// # Errors
/// `InvalidInput` where `from` is needed: copies that differ, or a backup alone with no sign that the disk is still
/// partitioned (a file system may have been made on all of it since). `Corrupt` if the copy to restore from is damaged,
/// `Unsupported` for an MBR. Nothing is changed then. What writing gives.
pub fn repair(
    device: &dyn BlockDevice,
    sector: Option<SectorSize>,
    from: Option<CopyKind>,
) -> Result<Repair> {
    let PartitionTable::Gpt(gpt) = PartitionTable::read(device, sector)? else {
        return Err(Error::unsupported(
            "the disk has an MBR, which is never written; a GPT that is left from before does not count",
        ));
    };
    let disk = Disk::new(device, gpt.sector());
    let source = source(&gpt, from)?;
    let mbr = ProtectiveMbr::after(gpt.mbr_fault());
    let mut repair = Repair {
        mbr: mbr == ProtectiveMbr::Update,
        ..Repair::default()
    };
    let agree = gpt.copy(CopyKind::Primary).is_ok()
        && gpt.copy(CopyKind::Backup).is_ok()
        && !gpt
            .findings()
            .iter()
            .any(|finding| matches!(finding, Finding::Disagree { .. }));
    match (source, gpt.copy(source)) {
        _ if agree => {}
        (_, Err(damage)) => return Err(damaged(source, damage)),
        (CopyKind::Primary, Ok(primary)) => {
            repair.restored = Some(CopyKind::Backup);
            repair.moved = restore_backup(disk, primary)?;
        }
        (CopyKind::Backup, Ok(backup)) => {
            repair.restored = Some(CopyKind::Primary);
            disk.write_one(&backup.as_primary(disk)?)?;
        }
    }
    disk.write_mbr(mbr)?;
    disk.device.flush()?;
    Ok(repair)
}

/// Writes the backup where the primary says that it is. If that is not on the disk, it goes to the end, and the primary
/// has to say so; that is told.
fn restore_backup(disk: Disk<'_>, primary: &Table) -> Result<bool> {
    if let Ok(backup) = primary.as_backup(disk) {
        disk.write_one(&backup)?;
        return Ok(false);
    }
    disk.write_both(&primary.fitted(disk)?, ProtectiveMbr::Leave)?;
    Ok(true)
}

/// The copy to restore from.
fn source(gpt: &Gpt, from: Option<CopyKind>) -> Result<CopyKind> {
    if let Some(from) = from {
        return Ok(from);
    }
    let disagree = gpt
        .findings()
        .iter()
        .find(|finding| matches!(finding, Finding::Disagree { .. }));
    if let Some(finding) = disagree {
        return Err(Error::invalid(finding.to_string())
            .with_hint("say which one is right, with --from primary or --from backup"));
    }
    let unprotected = matches!(gpt.mbr_fault(), Some(MbrFault::Missing | MbrFault::NotProtective));
    if unprotected && gpt.copy(CopyKind::Primary) == Err(Damage::NoSignature) {
        return Err(Error::invalid(
            "only a backup table is left, and nothing says that the disk still has partitions",
        )
        .with_hint("if it does, allow with --from backup that the start of the disk is overwritten"));
    }
    Ok(gpt.read_from())
}

fn damaged(copy: CopyKind, damage: Damage) -> Error {
    let message = format!("the {copy} table is damaged itself: {damage}");
    Error::new(block::ErrorKind::Corrupt, message)
}
