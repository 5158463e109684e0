//! Partition tables: GPT in full, MBR to read.
//!
//! A table is on a disk, so everything here works on any [`BlockDevice`]: a raw file, a qcow2 image, a chain. And a
//! partition is a disk again, as a [`Window`]: it can be read, written, converted, compared.
//!
//! ```
//! use std::sync::Arc;
//! use block::{Access, BlockDevice, MemStorage, Preallocation};
//! use raw::partition::{self, Layout, NewPartition, PartitionTable};
//!
//! let storage = MemStorage::new();
//! raw::create(&storage, 1 << 30, Preallocation::Off)?;
//! let disk: Arc<dyn BlockDevice> = Arc::new(raw::Image::open(Arc::new(storage), Access::WRITE)?);
//!
//! let layout = Layout::new([7; 16])
//!     .with(NewPartition::new("efi".parse()?).size(64 << 20).name("ESP"))
//!     .with(NewPartition::new("root-x86-64".parse()?).name("root"));
//! partition::create(&*disk, &layout)?;
//!
//! let table = PartitionTable::read(&*disk, None)?;
//! assert!(table.findings().is_empty());
//! let esp = table.open(disk.clone(), &"name:ESP".parse()?)?;
//! assert_eq!(esp.size(), 64 << 20);
//! # Ok::<(), block::Error>(())
//! ```
//!
//! # Trust
//!
//! A guest writes to its disk what it likes, so nothing that a table says is believed: places are checked against the
//! disk before anything is read there, and counts before anything is allocated. A partition is opened only if nothing
//! casts doubt on where it is.

mod create;
mod entry;
mod finding;
mod gpt;
mod grow;
mod guid;
mod header;
mod kind;
mod mbr;
mod repair;
mod sector;
mod select;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use block::view::Window;
use block::{BlockDevice, Error, Result};

pub use create::{Layout, NewPartition, create};
pub use finding::{Finding, MbrFault, Severity};
pub use gpt::{CopyKind, Gpt};
pub use grow::{Grown, grow};
pub use guid::Guid;
pub use header::Damage;
pub use kind::PartitionKind;
pub use mbr::Mbr;
pub use repair::{Repair, repair};
pub use sector::{Lba, SectorSize};
pub use select::{Selector, split_name};

/// One partition, as a table describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1 on. Numbers need not be in the order of the disk, nor all be there.
    pub number: u32,
    /// Its first sector.
    pub first: Lba,
    /// Its last sector.
    pub last: Lba,
    /// The sectors that these are.
    pub sector: SectorSize,
    /// What it is for.
    pub kind: PartitionKind,
    /// The GUID that is its own; an MBR has none.
    pub guid: Option<Guid>,
    /// Its name, which may be empty and need not be the only one of its kind.
    pub name: String,
    /// Attributes of a GPT: bit 0 for what the platform requires, 1 for what firmware is to leave alone, 2 for what an
    /// old BIOS can boot (the active partition of an MBR too); bits 48 to 63 have meanings that depend on the type.
    pub attributes: u64,
}

impl Partition {
    /// Its first byte on the disk.
    pub fn start(&self) -> u64 {
        self.sector.start(self.first)
    }

    /// Its length in bytes; 0 where it ends before it starts.
    pub fn len(&self) -> u64 {
        let sectors = (self.last.0.saturating_add(1)).saturating_sub(self.first.0);
        self.sector.start(Lba(sectors))
    }

    /// Whether it has no bytes, which is no partition.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// It only holds other partitions: the extended partition of an MBR, and what protects a GPT.
    pub fn is_container(&self) -> bool {
        matches!(self.kind, PartitionKind::Mbr(0x05 | 0x0f | 0x85 | 0xee))
    }
}

/// The partitions of a disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PartitionTable {
    /// A GUID partition table.
    Gpt(Box<Gpt>),
    /// Partitions in a master boot record.
    Mbr(Mbr),
}

impl PartitionTable {
    /// Reads the table of a disk. Where a GPT's primary table is damaged, its backup stands in, which
    /// [`findings`](Self::findings) tell. The sector size is found out unless it is stated.
    ///
    /// # Errors
    /// `InvalidInput` where there is no table, `Corrupt` where both copies of a GPT are damaged, and what reading
    /// gives.
    pub fn read(device: &dyn BlockDevice, sector: Option<SectorSize>) -> Result<Self> {
        let mut first = [0; mbr::LEN];
        if device.size() >= first.len() as u64 {
            device.read_at(&mut first, 0)?;
        }
        let record = mbr::Record::parse(&first);
        if let Some(record) = record.as_ref().filter(|record| record.is_legacy()) {
            let sector = sector.unwrap_or_default();
            return Ok(Self::Mbr(Mbr::read(device, record, sector)?));
        }
        Ok(Self::Gpt(Box::new(Gpt::find(device, record.as_ref(), sector)?)))
    }

    /// `gpt` or `mbr`.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Gpt(_) => "gpt",
            Self::Mbr(_) => "mbr",
        }
    }

    /// The sector size that the table counts in.
    pub fn sector(&self) -> SectorSize {
        match self {
            Self::Gpt(gpt) => gpt.sector(),
            Self::Mbr(mbr) => mbr
                .partitions()
                .first()
                .map_or(SectorSize::B512, |first| first.sector),
        }
    }

    /// The partitions, by number.
    pub fn partitions(&self) -> &[Partition] {
        match self {
            Self::Gpt(gpt) => gpt.partitions(),
            Self::Mbr(mbr) => mbr.partitions(),
        }
    }

    /// All that is wrong with the table.
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::Gpt(gpt) => gpt.findings(),
            Self::Mbr(mbr) => mbr.findings(),
        }
    }

    /// The partition that `which` names.
    ///
    /// # Errors
    /// `InvalidInput` where there is none, or several of one name; the hint lists those there are.
    pub fn find(&self, which: &Selector) -> Result<&Partition> {
        which.find(self.partitions())
    }

    /// The partition that `which` names, if nothing casts doubt on where it is: all of it is on the disk then.
    ///
    /// # Errors
    /// As [`find`](Self::find); `Corrupt` if the primary table is damaged, or the partition overlaps another or is not
    /// all on the disk; `InvalidInput` for one that only holds others.
    pub fn locate(&self, which: &Selector) -> Result<&Partition> {
        let partition = self.find(which)?;
        if partition.is_container() {
            let message = format!("partition {} only holds other partitions", partition.number);
            return Err(Error::invalid(message));
        }
        let doubt = self.findings().iter().find(|finding| {
            let damaged = matches!(
                finding,
                Finding::Damaged {
                    copy: CopyKind::Primary,
                    ..
                }
            );
            damaged || finding.misplaces(partition.number)
        });
        match doubt {
            None => Ok(partition),
            Some(finding) => Err(Error::corrupt(Doubt(finding.clone()))),
        }
    }

    /// The partition that `which` names, as a disk of its own on `device`, from which the table was read.
    ///
    /// # Errors
    /// As [`locate`](Self::locate).
    pub fn open(&self, device: Arc<dyn BlockDevice>, which: &Selector) -> Result<Window> {
        let partition = self.locate(which)?;
        Window::new(device, partition.start(), partition.len())
    }
}

/// Why a partition is not opened.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be said where the partition is: {0}")]
struct Doubt(Finding);
