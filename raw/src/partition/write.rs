//! Writing a GPT, so that a power cut at any point leaves one copy whole.
//!
//! A copy is only whole if the checksum in its header is right for the entries too, so one that was torn does not count,
//! and nothing has to be written in order within it. Between the copies there is a flush:
//!
//! - A new table, and one that changes: the backup, flush, the protective MBR and the primary, flush. Until the first
//!   flush the old primary counts. After it the new backup is whole, and stands in while the primary is torn.
//! - A repair writes the copy that is damaged and leaves the other alone.
//!
//! Nothing is written where a partition is, whatever the header says of where partitions may be.

use block::{BlockDevice, Error, Result};

use super::finding::MbrFault;
use super::gpt::{PRIMARY, Table};
use super::header::Header;
use super::{Damage, Lba, Partition, SectorSize, mbr};

/// A disk, and the sectors that it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk<'a> {
    pub(super) device: &'a dyn BlockDevice,
    pub(super) sector: SectorSize,
}

impl<'a> Disk<'a> {
    pub(super) fn new(device: &'a dyn BlockDevice, sector: SectorSize) -> Self {
        Self { device, sector }
    }

    pub(super) fn sectors(self) -> u64 {
        self.device.size() / self.sector.bytes()
    }

    /// Writes both copies of a table that changes, the one given as the primary and its backup.
    pub(super) fn write_both(self, primary: &Table, mbr: ProtectiveMbr) -> Result<()> {
        let backup = primary.as_backup(self)?;
        self.check_free(primary)?;
        self.check_free(&backup)?;
        self.write_copy(&backup)?;
        self.device.flush()?;
        self.write_mbr(mbr)?;
        self.write_copy(primary)?;
        self.device.flush()
    }

    /// Writes one copy beside one that is whole.
    pub(super) fn write_one(self, table: &Table) -> Result<()> {
        self.check_free(table)?;
        self.write_copy(table)?;
        self.device.flush()
    }

    fn write_copy(self, table: &Table) -> Result<()> {
        let sectors = table.header.array_sectors(self.sector);
        let mut array = table.array.clone();
        array.resize((sectors * self.sector.bytes()) as usize, 0);
        self.device
            .write_at(&array, self.sector.start(table.header.entries_lba))?;
        self.device.write_at(
            &table.header.encode(self.sector),
            self.sector.start(table.header.my_lba),
        )
    }

    /// Writes the protective MBR. What belongs to no part of it stays as it is, unless it is to be new.
    pub(super) fn write_mbr(self, how: ProtectiveMbr) -> Result<()> {
        let mut bytes = [0; mbr::LEN];
        match how {
            ProtectiveMbr::Leave => return Ok(()),
            ProtectiveMbr::New => {
                let rest = vec![0; self.sector.bytes() as usize - mbr::LEN];
                self.device.write_at(&rest, mbr::LEN as u64)?;
            }
            ProtectiveMbr::Update => self.device.read_at(&mut bytes, 0)?,
        }
        mbr::protect(&mut bytes, self.sectors());
        self.device.write_at(&bytes, 0)
    }

    /// Fails if a partition of the table lies where this copy of it is to be written.
    fn check_free(self, table: &Table) -> Result<()> {
        let header = &table.header;
        let entries_end = header.entries_lba.0 + header.array_sectors(self.sector);
        let areas = [
            (header.entries_lba, Lba(entries_end - 1)),
            (header.my_lba, header.my_lba),
        ];
        let meets = |partition: &Partition| {
            let meets = |(first, last): (Lba, Lba)| partition.first <= last && first <= partition.last;
            areas.into_iter().any(meets)
        };
        match table
            .partitions(self.sector)
            .iter()
            .find(|partition| meets(partition))
        {
            None => Ok(()),
            Some(partition) => Err(Error::invalid(format!(
                "partition {} has sectors {} to {}, where the table in sector {} would be written",
                partition.number, partition.first, partition.last, header.my_lba
            ))),
        }
    }
}

/// What becomes of the MBR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtectiveMbr {
    /// It is as it should be, or has partitions of its own that somebody wanted there.
    Leave,
    /// It is written anew; boot code and disk signature stay.
    Update,
    /// All of sector 0 is written anew.
    New,
}

impl ProtectiveMbr {
    /// What becomes of one of which this was found.
    pub(super) fn after(fault: Option<MbrFault>) -> Self {
        match fault {
            None | Some(MbrFault::Hybrid) => Self::Leave,
            Some(_) => Self::Update,
        }
    }
}

impl Table {
    /// A primary table with this header and these entries.
    pub(super) fn new(mut header: Header, array: Vec<u8>) -> Self {
        header.entries_checksum = crc32fast::hash(&array);
        Self { header, array }
    }

    /// The backup of this primary table, where its header says that it is: behind its entries.
    pub(super) fn as_backup(&self, disk: Disk<'_>) -> Result<Self> {
        let at = self.header.alternate_lba;
        let entries = at.0.checked_sub(self.header.array_sectors(disk.sector));
        self.moved(disk, at, PRIMARY, entries.map(Lba))
    }

    /// The primary table of this backup.
    pub(super) fn as_primary(&self, disk: Disk<'_>) -> Result<Self> {
        self.moved(disk, PRIMARY, self.header.my_lba, Some(Lba(PRIMARY.0 + 1)))
    }

    fn moved(&self, disk: Disk<'_>, at: Lba, other: Lba, entries: Option<Lba>) -> Result<Self> {
        let header = Header {
            my_lba: at,
            alternate_lba: other,
            entries_lba: entries.unwrap_or_default(),
            ..self.header
        };
        let fits = if header.my_lba.0 < disk.sectors() {
            header.check_places(disk.sector, disk.sectors())
        } else {
            Err(Damage::BeyondEnd)
        };
        match fits {
            Ok(()) => Ok(Self::new(header, self.array.clone())),
            Err(_) => Err(Error::invalid(format!(
                "there is no room for a partition table in sector {at}, beside sectors {} to {} for partitions",
                header.first_usable, header.last_usable
            ))),
        }
    }

    /// This primary table with its backup in the last sector of the disk, and everything before that for partitions.
    ///
    /// # Errors
    /// `InvalidInput` for a partition that would not be all on the disk.
    pub(super) fn fitted(&self, disk: Disk<'_>) -> Result<Self> {
        let sectors = disk.sectors();
        let reserved = self.header.array_sectors(disk.sector) + 2;
        let last_usable = sectors
            .checked_sub(reserved)
            .filter(|last| *last + 1 >= self.header.first_usable.0);
        let Some(last_usable) = last_usable else {
            return Err(Error::invalid(format!(
                "a disk of {sectors} sectors has no room for its partition table"
            )));
        };
        let partitions = self.partitions(disk.sector);
        if let Some(partition) = partitions.iter().find(|partition| partition.last.0 > last_usable) {
            let end = disk.sector.start(Lba(partition.last.0.saturating_add(reserved)));
            return Err(Error::invalid(format!(
                "the disk is too short: partition {} reaches to sector {}, and the last one that it could have is {last_usable}",
                partition.number, partition.last
            ))
            .with_hint(format!("make it larger: with imgtool resize, {end} bytes at least")));
        }
        let header = Header {
            alternate_lba: Lba(sectors - 1),
            last_usable: Lba(last_usable),
            ..self.header
        };
        Ok(Self::new(header, self.array.clone()))
    }
}
