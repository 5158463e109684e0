//! Moving the backup to the end of a disk whose size has changed.

use block::{BlockDevice, Error, Result};

use super::create::ALIGNMENT;
use super::gpt::{CopyKind, Gpt, Table};
use super::write::{Disk, ProtectiveMbr};
use super::{Finding, Lba, Partition, PartitionTable, SectorSize, entry};

/// What was done to make a table fit its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grown {
    /// The sector where the backup was, and the one where it is now, if it was moved.
    pub backup: Option<(Lba, Lba)>,
    /// The partition that has grown: as it was, and as it is.
    pub partition: Option<(Partition, Partition)>,
}

/// Makes the GPT fit the disk's size: its backup moves to the last sector, and what lies before can be used. With
/// `last_partition`, the partition that lies last on the disk grows to the end of that, at a multiple of 1 MiB; what
/// is in it does not. A disk that was cut is treated the same way, if all partitions are still on it.
///
/// # Errors
/// `InvalidInput` if partitions do not fit; `Corrupt` for a table that has to be repaired first; `Unsupported` for an
/// MBR. Nothing is changed then. What writing gives.
pub fn grow(device: &dyn BlockDevice, sector: Option<SectorSize>, last_partition: bool) -> Result<Grown> {
    let PartitionTable::Gpt(gpt) = PartitionTable::read(device, sector)? else {
        return Err(Error::unsupported(
            "the disk has an MBR, which has no backup to move and is never written",
        ));
    };
    let disk = Disk::new(device, gpt.sector());
    let primary = whole_primary(&gpt)?;
    let mut table = primary.fitted(disk)?;
    let mut grown = Grown::default();
    if last_partition {
        grown.partition = extend_last(&mut table, disk);
    }
    if table.header.alternate_lba != primary.header.alternate_lba {
        grown.backup = Some((primary.header.alternate_lba, table.header.alternate_lba));
    }
    if table == *primary && gpt.copy(CopyKind::Backup).is_ok() {
        return Ok(grown);
    }
    let hybrid = gpt.mbr_fault() == Some(super::MbrFault::Hybrid);
    let mbr = if hybrid {
        ProtectiveMbr::Leave
    } else {
        ProtectiveMbr::Update
    };
    disk.write_both(&table, mbr)?;
    if let Ok(old) = gpt.copy(CopyKind::Backup) {
        forget(disk, old, &table)?;
    }
    Ok(grown)
}

/// The primary table, if nothing is wrong that would be carried along.
fn whole_primary(gpt: &Gpt) -> Result<&Table> {
    let unsound = gpt.findings().iter().find(|finding| match finding {
        Finding::Damaged { copy, .. } => *copy == CopyKind::Primary,
        Finding::Disagree { .. } | Finding::Overlap { .. } | Finding::Backwards { .. } => true,
        // What is cut off by the disk's end is said with the size that is needed.
        Finding::OutOfRange {
            first, first_usable, ..
        } => first < first_usable,
        _ => false,
    });
    match (unsound, gpt.copy(CopyKind::Primary)) {
        (None, Ok(primary)) => Ok(primary),
        (Some(finding), _) => Err(Error::new(block::ErrorKind::Corrupt, finding.to_string())
            .with_hint("imgtool partition verify lists all that is wrong, and imgtool partition repair restores a damaged copy")),
        (None, Err(damage)) => Err(Error::corrupt(damage)),
    }
}

/// Lets the partition that ends last reach to the end of what can be used.
fn extend_last(table: &mut Table, disk: Disk<'_>) -> Option<(Partition, Partition)> {
    let old = table
        .partitions(disk.sector)
        .into_iter()
        .max_by_key(|partition| partition.last)?;
    let end = disk.sector.start(Lba(table.header.last_usable.0 + 1)) / ALIGNMENT * ALIGNMENT;
    let last = Lba((end / disk.sector.bytes()).saturating_sub(1));
    if last <= old.last {
        return None;
    }
    entry::move_to(table.entry_mut(old.number), old.first, last);
    table.header.entries_checksum = crc32fast::hash(&table.array);
    let new = Partition { last, ..old.clone() };
    Some((old, new))
}

/// Clears an old backup that does not count any more, so that nobody finds it; where the new one reaches into it, it
/// is gone already.
fn forget(disk: Disk<'_>, old: &Table, new: &Table) -> Result<()> {
    let new_start = new.header.alternate_lba.0 - new.header.array_sectors(disk.sector);
    let (first, last) = (old.header.entries_lba, old.header.my_lba);
    if last.0 >= new_start || first <= new.header.entries_lba {
        return Ok(());
    }
    let header = vec![0; disk.sector.bytes() as usize];
    let array = vec![0; old.array.len()];
    disk.device.write_at(&header, disk.sector.start(last))?;
    disk.device.write_at(&array, disk.sector.start(first))?;
    disk.device.flush()
}
