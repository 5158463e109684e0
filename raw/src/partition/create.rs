//! Making a new GPT.

use block::{BlockDevice, Error, Result};

use super::finding;
use super::gpt::{PRIMARY, Table};
use super::header::Header;
use super::write::{Disk, ProtectiveMbr};
use super::{Guid, Lba, Partition, PartitionKind, PartitionTable, SectorSize, entry};

/// What partitions start and end at multiples of, in bytes, where the caller does not say: what every disk, and every
/// cluster of an image, is happy with.
pub(super) const ALIGNMENT: u64 = 1 << 20;

/// Entries of a table, and bytes of each: what the specification wants at least.
const ENTRIES: u32 = 128;

/// A partition of a new table.
#[derive(Clone, Debug)]
pub struct NewPartition {
    kind: PartitionKind,
    number: Option<u32>,
    start: Option<u64>,
    size: Option<u64>,
    name: String,
    attributes: u64,
    guid: Option<Guid>,
}

impl NewPartition {
    /// A partition of some type, with all the room that there is for it.
    pub fn new(kind: PartitionKind) -> Self {
        Self {
            kind,
            number: None,
            start: None,
            size: None,
            name: String::new(),
            attributes: 0,
            guid: None,
        }
    }

    /// Its number. Without one, it is the lowest that is free.
    #[must_use]
    pub fn number(self, number: u32) -> Self {
        let number = Some(number);
        Self { number, ..self }
    }

    /// Where it starts, in bytes. Without this, at the next MiB behind the partition before it in the list.
    #[must_use]
    pub fn start(self, start: u64) -> Self {
        let start = Some(start);
        Self { start, ..self }
    }

    /// Its length in bytes, rounded up to whole sectors. Without this, it reaches to the next partition whose start was
    /// given, or to the end of the disk.
    #[must_use]
    pub fn size(self, size: u64) -> Self {
        let size = Some(size);
        Self { size, ..self }
    }

    /// Its name: at most 36 units of UTF-16.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        let name = name.into();
        Self { name, ..self }
    }

    /// Its attributes, as in [`Partition::attributes`].
    #[must_use]
    pub fn attributes(self, attributes: u64) -> Self {
        Self { attributes, ..self }
    }

    /// The GUID that is its own. Without one, it follows from the seed.
    #[must_use]
    pub fn guid(self, guid: Guid) -> Self {
        let guid = Some(guid);
        Self { guid, ..self }
    }
}

/// What a new table is to be. The same layout on disks of one size gives the same bytes.
#[derive(Clone, Debug)]
pub struct Layout {
    seed: [u8; 16],
    sector: SectorSize,
    disk_guid: Option<Guid>,
    overwrite: bool,
    partitions: Vec<NewPartition>,
}

impl Layout {
    /// No partitions yet, and GUIDs that follow from `seed`: draw one for disks that are to be told apart.
    pub fn new(seed: [u8; 16]) -> Self {
        Self {
            seed,
            sector: SectorSize::default(),
            disk_guid: None,
            overwrite: false,
            partitions: Vec::new(),
        }
    }

    /// The same, with one more partition, behind the others.
    #[must_use]
    pub fn with(mut self, partition: NewPartition) -> Self {
        self.partitions.push(partition);
        self
    }

    /// The sector size that the guest will see.
    #[must_use]
    pub fn sector(self, sector: SectorSize) -> Self {
        Self { sector, ..self }
    }

    /// The GUID of the disk. Without one, it follows from the seed.
    #[must_use]
    pub fn disk_guid(self, guid: Guid) -> Self {
        let disk_guid = Some(guid);
        Self { disk_guid, ..self }
    }

    /// Permission to write over a table, or anything else, that is there.
    #[must_use]
    pub fn overwrite(self, overwrite: bool) -> Self {
        Self { overwrite, ..self }
    }

    /// The table that this makes on a disk of so many sectors.
    fn table(&self, sectors: u64) -> Result<Table> {
        let array_sectors =
            (u64::from(ENTRIES) * u64::from(entry::MIN_ENTRY_SIZE)).div_ceil(self.sector.bytes());
        // A sector for partitions at least, between MBR, header and entries, and entries and header.
        if sectors < 4 + 2 * array_sectors {
            let bytes = self.sector.start(Lba(4 + 2 * array_sectors));
            return Err(Error::invalid(format!(
                "the disk is too short for a partition table, which needs {bytes} bytes with its backup"
            )));
        }
        let mut header = Header {
            my_lba: PRIMARY,
            alternate_lba: Lba(sectors - 1),
            first_usable: Lba(2 + array_sectors),
            last_usable: Lba(sectors - 2 - array_sectors),
            disk_guid: self.disk_guid.unwrap_or(Guid::from_seed(self.seed, 0)),
            entries_lba: Lba(2),
            entry_count: ENTRIES,
            entry_size: entry::MIN_ENTRY_SIZE,
            entries_checksum: 0,
        };
        let partitions = self.place(header.first_usable, header.last_usable)?;
        let mut table = Table::new(header, vec![0; header.array_len() as usize]);
        for partition in &partitions {
            let (PartitionKind::Gpt(kind), Some(guid)) = (partition.kind, partition.guid) else {
                let message = format!("partition {} has a type of the MBR", partition.number);
                return Err(Error::invalid(message).with_hint("give it the type GUID of a GPT"));
            };
            entry::encode(partition, kind, guid, table.entry_mut(partition.number))?;
        }
        header.entries_checksum = crc32fast::hash(&table.array);
        Ok(Table { header, ..table })
    }

    /// Gives each partition its number, GUID and sectors.
    fn place(&self, first_usable: Lba, last_usable: Lba) -> Result<Vec<Partition>> {
        let numbers = self.numbers()?;
        let mut behind = self.sector.start(first_usable);
        let mut placed: Vec<Partition> = Vec::new();
        for (i, (new, number)) in self.partitions.iter().zip(numbers).enumerate() {
            let start = new.start.unwrap_or_else(|| behind.next_multiple_of(ALIGNMENT));
            let limit = || {
                let later = self.partitions[i + 1..].iter().filter_map(|later| later.start);
                let next = later.filter(|later| *later > start).min();
                let end = self.sector.start(Lba(last_usable.0 + 1));
                next.unwrap_or(end / ALIGNMENT * ALIGNMENT)
            };
            let end = match new.size {
                Some(size) => size
                    .checked_next_multiple_of(self.sector.bytes())
                    .and_then(|size| start.checked_add(size)),
                None => Some(limit()),
            };
            let end = end.filter(|end| *end > start).ok_or_else(|| {
                Error::invalid(match new.size {
                    Some(0) => format!("partition {number} would have no sectors"),
                    Some(_) => format!("partition {number} is larger than any disk"),
                    None => format!("there is no room left for partition {number}"),
                })
            })?;
            if !start.is_multiple_of(self.sector.bytes()) {
                let message = format!("partition {number} cannot start at {start}, which is inside a sector");
                return Err(Error::invalid(message));
            }
            behind = end;
            placed.push(Partition {
                number,
                first: Lba(start / self.sector.bytes()),
                last: Lba(end / self.sector.bytes() - 1),
                sector: self.sector,
                kind: new.kind,
                guid: Some(new.guid.unwrap_or(Guid::from_seed(self.seed, number))),
                name: new.name.clone(),
                attributes: new.attributes,
            });
        }
        match finding::of_ranges(placed.iter(), first_usable, last_usable).first() {
            Some(finding) => Err(Error::invalid(finding.to_string())),
            None => Ok(placed),
        }
    }

    fn numbers(&self) -> Result<Vec<u32>> {
        let mut taken: Vec<u32> = self.partitions.iter().filter_map(|new| new.number).collect();
        taken.sort_unstable();
        if let Some([twice, ..]) = taken.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid(format!("there cannot be two partitions {twice}")));
        }
        let mut free = (1..).filter(|number| taken.binary_search(number).is_err());
        let numbers = self
            .partitions
            .iter()
            .map(|new| new.number.or_else(|| free.next()));
        numbers
            .map(|number| {
                number
                    .filter(|number| (1..=ENTRIES).contains(number))
                    .ok_or_else(|| Error::invalid(format!("partitions have numbers from 1 to {ENTRIES}")))
            })
            .collect()
    }
}

/// Makes a new GPT on a disk, and gives back what it reads as.
///
/// # Errors
/// `InvalidInput` for partitions that overlap or do not fit, and for a disk that holds something where none was
/// allowed to be [overwritten](Layout::overwrite): nothing is changed then. What writing gives.
pub fn create(device: &dyn BlockDevice, layout: &Layout) -> Result<PartitionTable> {
    let disk = Disk::new(device, layout.sector);
    let table = layout.table(disk.sectors())?;
    if !layout.overwrite {
        check_blank(device)?;
    }
    disk.write_both(&table, ProtectiveMbr::New)?;
    PartitionTable::read(device, Some(layout.sector))
}

/// Fails for a disk that has a partition table, or anything else at its start or its end: nearly all file systems
/// have something there.
fn check_blank(device: &dyn BlockDevice) -> Result<()> {
    const HINT: &str = "if nothing there is needed, allow with --force that it is overwritten";
    if let Ok(table) = PartitionTable::read(device, None) {
        let message = format!(
            "the disk has a partition table ({}) already, with {} partitions",
            table.format(),
            table.partitions().len()
        );
        return Err(Error::invalid(message).with_hint(HINT));
    }
    let mut bytes = vec![0; ALIGNMENT.min(device.size()) as usize];
    for start in [0, device.size() - bytes.len() as u64] {
        device.read_at(&mut bytes, start)?;
        if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
            let message = "the disk is not empty: there is something";
            return Err(Error::invalid(message)
                .with_offset(start + at as u64)
                .with_hint(HINT));
        }
    }
    Ok(())
}
