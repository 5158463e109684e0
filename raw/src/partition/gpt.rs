//! Reading a GPT: both copies, which of them counts, and what is wrong.
//!
//! The primary table is in sectors 1 and up. The backup is where the primary says; where the primary is damaged, it is
//! looked for in the disk's last sector. A copy is whole if the checksums of its header and its entries are right and
//! it lies where it may (see [`Damage`] for what that takes). The primary counts if it is whole, and the backup if
//! not: whoever else reads the disk does the same.

use std::collections::HashMap;
use std::fmt;

use block::{BlockDevice, Error, Result};

use super::finding::{self, Finding, MbrFault};
use super::header::Header;
use super::mbr::Record;
use super::{Damage, Guid, Lba, Partition, SectorSize, entry};

/// Which copy of a GPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyKind {
    /// The one at the start of the disk.
    Primary,
    /// The one at its end.
    Backup,
}

impl fmt::Display for CopyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

/// Where the primary header is.
pub(super) const PRIMARY: Lba = Lba(1);

/// One copy, whole.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) header: Header,
    /// The entries, as stored.
    pub(super) array: Vec<u8>,
}

/// The entries are long, and nearly all zeros.
impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Table {
    /// The copy whose header is in sector `at`.
    fn read(
        device: &dyn BlockDevice,
        at: Lba,
        sector: SectorSize,
        disk_sectors: u64,
    ) -> Result<Result<Self, Damage>> {
        if at.0 >= disk_sectors {
            return Ok(Err(Damage::BeyondEnd));
        }
        let mut bytes = vec![0; sector.bytes() as usize];
        device.read_at(&mut bytes, sector.start(at))?;
        let parsed = Header::parse(&bytes, at).and_then(|header| {
            header.check_places(sector, disk_sectors)?;
            Ok(header)
        });
        let header = match parsed {
            Ok(header) => header,
            Err(damage) => return Ok(Err(damage)),
        };
        let mut array = vec![0; header.array_len() as usize];
        device.read_at(&mut array, sector.start(header.entries_lba))?;
        let (stored, computed) = (header.entries_checksum, crc32fast::hash(&array));
        if stored != computed {
            return Ok(Err(Damage::EntriesChecksum { stored, computed }));
        }
        Ok(Ok(Self { header, array }))
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.array.chunks(self.header.entry_size as usize)
    }

    /// The bytes of the entry of a partition that is there.
    pub(super) fn entry_mut(&mut self, number: u32) -> &mut [u8] {
        let size = self.header.entry_size as usize;
        let start = (number as usize - 1) * size;
        &mut self.array[start..start + size]
    }

    pub(super) fn partitions(&self, sector: SectorSize) -> Vec<Partition> {
        (1..)
            .zip(self.entries())
            .filter_map(|(number, bytes)| entry::parse(bytes, number, sector))
            .collect()
    }

    /// In what two copies differ that should say the same.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let (a, b) = (&self.header, &other.header);
        match () {
            () if a.disk_guid != b.disk_guid => Some("disk GUIDs"),
            () if (a.entry_count, a.entry_size) != (b.entry_count, b.entry_size) => Some("entries"),
            () if self.array != other.array => Some("partitions"),
            () if (a.first_usable, a.last_usable) != (b.first_usable, b.last_usable) => {
                Some("ranges for partitions")
            }
            () => None,
        }
    }
}

/// The GPT of a disk, as it was read.
#[derive(Clone, Debug)]
pub struct Gpt {
    sector: SectorSize,
    disk_sectors: u64,
    primary: Result<Table, Damage>,
    backup: Result<Table, Damage>,
    /// Where the backup is, or was looked for.
    backup_lba: Lba,
    partitions: Vec<Partition>,
    findings: Vec<Finding>,
}

impl Gpt {
    /// The GPT of a disk, for the sector size that one is found for; the primary table of either counts before the
    /// backup of any.
    pub(super) fn find(
        device: &dyn BlockDevice,
        record: Option<&Record>,
        sector: Option<SectorSize>,
    ) -> Result<Self> {
        let sectors = sector.map_or(SectorSize::ALL.to_vec(), |sector| vec![sector]);
        let candidates = sectors
            .into_iter()
            .map(|sector| Self::read(device, record, sector));
        let candidates = candidates.collect::<Result<Vec<_>>>()?;
        let damages: Vec<_> = candidates.iter().map(Self::damage).collect();
        let whole = |copy: fn(&Self) -> bool| candidates.iter().position(copy);
        let found = whole(|gpt| gpt.primary.is_ok()).or_else(|| whole(|gpt| gpt.backup.is_ok()));
        if let Some(found) = found {
            return Ok(candidates.into_iter().nth(found).expect("it is one of them"));
        }
        let protects = record.is_some_and(Record::is_protective);
        let left = |(primary, backup): &(Option<Damage>, Option<Damage>)| {
            [primary, backup]
                .into_iter()
                .flatten()
                .any(|damage| !matches!(damage, Damage::NoSignature | Damage::BeyondEnd))
        };
        let Some((Some(primary), Some(backup))) = damages
            .iter()
            .find(|damages| left(damages))
            .or(damages.first().filter(|_| protects))
        else {
            return Err(Error::invalid("there is no partition table on the disk")
                .with_hint("imgtool partition create makes one"));
        };
        let both = BothDamaged {
            primary: *primary,
            backup: *backup,
        };
        Err(match primary.kind() {
            block::ErrorKind::Unsupported => Error::unsupported(both.to_string()),
            _ => Error::corrupt(both),
        })
    }

    fn read(device: &dyn BlockDevice, record: Option<&Record>, sector: SectorSize) -> Result<Self> {
        let disk_sectors = device.size() / sector.bytes();
        let last = Lba(disk_sectors.saturating_sub(1));
        let primary = Table::read(device, PRIMARY, sector, disk_sectors)?;
        let backup_lba = primary.as_ref().map_or(last, |table| table.header.alternate_lba);
        let backup = match backup_lba {
            // A table cannot be its own backup, and a disk of two sectors has none.
            PRIMARY if primary.is_ok() => Err(Damage::Place(PRIMARY)),
            PRIMARY => Err(Damage::BeyondEnd),
            at => Table::read(device, at, sector, disk_sectors)?,
        };
        let mut gpt = Self {
            sector,
            disk_sectors,
            backup_lba,
            partitions: Vec::new(),
            findings: Vec::new(),
            primary,
            backup,
        };
        if let Some((_, table)) = gpt.whole() {
            gpt.partitions = table.partitions(sector);
            gpt.findings = gpt.verify(record);
        }
        Ok(gpt)
    }

    /// The copy that counts.
    pub(super) fn whole(&self) -> Option<(CopyKind, &Table)> {
        let primary = self.primary.as_ref().ok().map(|table| (CopyKind::Primary, table));
        primary.or(self.backup.as_ref().ok().map(|table| (CopyKind::Backup, table)))
    }

    pub(super) fn copy(&self, kind: CopyKind) -> Result<&Table, Damage> {
        match kind {
            CopyKind::Primary => self.primary.as_ref(),
            CopyKind::Backup => self.backup.as_ref(),
        }
        .map_err(|damage| *damage)
    }

    fn damage(&self) -> (Option<Damage>, Option<Damage>) {
        (
            self.primary.as_ref().err().copied(),
            self.backup.as_ref().err().copied(),
        )
    }

    fn verify(&self, record: Option<&Record>) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (copy, at, damage) in [
            (CopyKind::Primary, PRIMARY, self.damage().0),
            (CopyKind::Backup, self.backup_lba, self.damage().1),
        ] {
            findings.extend(damage.map(|damage| Finding::Damaged { copy, at, damage }));
        }
        if let (Ok(primary), Ok(backup)) = (&self.primary, &self.backup) {
            let what = primary.difference(backup);
            findings.extend(what.map(|what| Finding::Disagree { what }));
        }
        let last = Lba(self.disk_sectors - 1);
        if self.backup.is_ok() && self.backup_lba != last {
            findings.push(Finding::BackupNotAtEnd {
                at: self.backup_lba,
                last,
            });
        }
        findings.extend(Record::protective_fault(record, self.disk_sectors).map(Finding::Mbr));
        let Some((_, table)) = self.whole() else {
            return findings;
        };
        let Header {
            first_usable,
            last_usable,
            ..
        } = table.header;
        if last_usable > last {
            findings.push(Finding::DiskTooShort { last_usable, last });
        }
        findings.extend(finding::of_ranges(
            self.partitions.iter(),
            first_usable,
            last_usable.min(last),
        ));
        findings.extend(duplicates(&self.partitions));
        findings
    }

    /// What is wrong with the protective MBR.
    pub(super) fn mbr_fault(&self) -> Option<MbrFault> {
        self.findings.iter().find_map(|finding| match finding {
            Finding::Mbr(fault) => Some(*fault),
            _ => None,
        })
    }

    /// The sector size that it counts in.
    pub fn sector(&self) -> SectorSize {
        self.sector
    }

    /// Whole sectors of the disk.
    pub fn disk_sectors(&self) -> u64 {
        self.disk_sectors
    }

    /// The GUID of the disk.
    pub fn disk_guid(&self) -> Guid {
        self.whole()
            .map_or(Guid::NIL, |(_, table)| table.header.disk_guid)
    }

    /// The first and the last sector that partitions may have.
    pub fn usable(&self) -> (Lba, Lba) {
        self.whole().map_or((Lba(0), Lba(0)), |(_, table)| {
            (table.header.first_usable, table.header.last_usable)
        })
    }

    /// Which copy the partitions are from.
    pub fn read_from(&self) -> CopyKind {
        self.whole().map_or(CopyKind::Primary, |(copy, _)| copy)
    }

    pub(super) fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

/// GUIDs that are there twice, or missing.
fn duplicates(partitions: &[Partition]) -> Vec<Finding> {
    let mut seen = HashMap::new();
    let mut findings = Vec::new();
    for partition in partitions {
        let (number, Some(guid)) = (partition.number, partition.guid) else {
            continue;
        };
        let first = if guid.is_nil() {
            Some(number)
        } else {
            seen.insert(guid, number)
        };
        findings.extend(first.map(|other| Finding::DuplicateGuid {
            number: other,
            other: number,
            guid,
        }));
    }
    findings
}

/// Nothing says any more where partitions are.
#[derive(Debug, thiserror::Error)]
#[error("both copies of the partition table are damaged; the primary: {primary}; the backup: {backup}")]
struct BothDamaged {
    primary: Damage,
    backup: Damage,
}
