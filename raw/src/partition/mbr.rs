//! The master boot record: partitions of the old kind, and the record that protects a GPT from those who know no other.
//!
//! # Logical partitions
//!
//! An extended partition holds a list: each record in it names one logical partition, relative to the record, and the
//! next record, relative to the extended partition. The list comes from the disk, so it may lead anywhere: records
//! are looked for inside the extended partition only, and so many at most that a list in a circle ends.

use block::{BlockDevice, Result};
use byteorder::{ByteOrder, LittleEndian as LE};

use super::finding::{Finding, MbrFault};
use super::{Lba, Partition, PartitionKind, SectorSize};

/// Bytes of the record, whatever the sector size.
pub(super) const LEN: usize = 512;

/// Bytes at its start that are not about partitions: boot code and the disk's signature.
const CODE: usize = 446;

const SIGNATURE_AT: usize = 440;
const MAGIC_AT: usize = 510;
const MAGIC: u16 = 0xaa55;

/// The type of an entry that protects a GPT.
const PROTECTIVE: u8 = 0xee;

/// Logical partitions at most, as many as Linux sees.
const MAX_LOGICAL: u32 = 252;

/// An entry, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    boot: u8,
    kind: u8,
    first: u32,
    sectors: u32,
}

impl Entry {
    fn parse(bytes: &[u8]) -> Self {
        Self {
            boot: bytes[0],
            kind: bytes[4],
            first: LE::read_u32(&bytes[8..]),
            sectors: LE::read_u32(&bytes[12..]),
        }
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The first 512 bytes of a disk, or of a logical partition's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    entries: [Entry; 4],
    signature: u32,
}

impl Record {
    /// The record in `bytes`, if there is one. The boot sector of a file system has the same magic number, and
    /// something else where the entries are.
    pub(super) fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let entries = [0, 1, 2, 3].map(|number| Entry::parse(&bytes[CODE + 16 * number..]));
        let plausible = entries.iter().all(|entry| matches!(entry.boot, 0 | 0x80));
        (LE::read_u16(&bytes[MAGIC_AT..]) == MAGIC && plausible).then(|| Self {
            entries,
            signature: LE::read_u32(&bytes[SIGNATURE_AT..]),
        })
    }

    fn used(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_used())
    }

    /// There are partitions, and nothing says that a GPT counts.
    pub(super) fn is_legacy(&self) -> bool {
        !self.is_protective() && self.used().count() > 0
    }

    pub(super) fn is_protective(&self) -> bool {
        self.used().any(|entry| entry.kind == PROTECTIVE)
    }

    /// What is wrong with it as the one that protects a GPT on a disk of so many sectors.
    pub(super) fn protective_fault(record: Option<&Self>, disk_sectors: u64) -> Option<MbrFault> {
        let Some(record) = record else {
            return Some(MbrFault::Missing);
        };
        let Some(entry) = record.used().find(|entry| entry.kind == PROTECTIVE) else {
            return Some(MbrFault::NotProtective);
        };
        if record.used().count() > 1 {
            return Some(MbrFault::Hybrid);
        }
        if entry.first != 1 {
            return Some(MbrFault::Start(entry.first));
        }
        let whole = protected_sectors(disk_sectors);
        // Some tools always write the largest number.
        (entry.sectors != whole && entry.sectors != u32::MAX).then_some(MbrFault::Length {
            sectors: entry.sectors,
            whole,
        })
    }
}

fn protected_sectors(disk_sectors: u64) -> u32 {
    u32::try_from(disk_sectors.saturating_sub(1)).unwrap_or(u32::MAX)
}

/// Makes the record in `bytes` protect a GPT (UEFI specification, 5.2.3); boot code and disk signature stay.
pub(super) fn protect(bytes: &mut [u8; LEN], disk_sectors: u64) {
    bytes[CODE..].fill(0);
    let entry = &mut bytes[CODE..CODE + 16];
    // Cylinder, head and sector of the first sector but one, and the largest there can be.
    entry[1..4].copy_from_slice(&[0, 2, 0]);
    entry[4] = PROTECTIVE;
    entry[5..8].copy_from_slice(&[0xff; 3]);
    LE::write_u32(&mut entry[8..], 1);
    LE::write_u32(&mut entry[12..], protected_sectors(disk_sectors));
    LE::write_u16(&mut bytes[MAGIC_AT..], MAGIC);
}

/// The partitions of an MBR, logical ones included. It can be listed and its partitions used; it is never written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mbr {
    disk_signature: u32,
    partitions: Vec<Partition>,
    findings: Vec<Finding>,
}

impl Mbr {
    pub(super) fn read(device: &dyn BlockDevice, record: &Record, sector: SectorSize) -> Result<Self> {
        let mut mbr = Self {
            disk_signature: record.signature,
            partitions: Vec::new(),
            findings: Vec::new(),
        };
        for (number, entry) in (1..).zip(record.entries).filter(|(_, entry)| entry.is_used()) {
            mbr.add(number, Lba(0), entry, sector);
        }
        if let Some(extended) = record.used().find(|entry| entry.is_extended()) {
            mbr.read_logical(device, *extended, sector)?;
        }
        let disk = Lba(device.size() / sector.bytes());
        mbr.findings.extend(super::finding::of_ranges(
            mbr.partitions
                .iter()
                .filter(|partition| !partition.is_container()),
            Lba(1),
            Lba(disk.0.saturating_sub(1)),
        ));
        Ok(mbr)
    }

    /// Follows the list in an extended partition.
    fn read_logical(&mut self, device: &dyn BlockDevice, extended: Entry, sector: SectorSize) -> Result<()> {
        let (start, sectors) = (u64::from(extended.first), u64::from(extended.sectors));
        let mut offset = 0;
        let mut number = 5;
        for _ in 0..MAX_LOGICAL {
            let at = Lba(start + offset);
            let byte = sector.start(at);
            let mut bytes = [0; LEN];
            if offset >= sectors || device.size().saturating_sub(byte) < LEN as u64 {
                self.findings.push(Finding::Mbr(MbrFault::ListOutside(at)));
                return Ok(());
            }
            device.read_at(&mut bytes, byte)?;
            let Some(record) = Record::parse(&bytes) else {
                self.findings.push(Finding::Mbr(MbrFault::ListBroken(at)));
                return Ok(());
            };
            if let Some(entry) = record.used().find(|entry| !entry.is_extended()) {
                self.add(number, at, *entry, sector);
                number += 1;
            }
            match record.used().find(|entry| entry.is_extended()) {
                Some(next) => offset = u64::from(next.first),
                None => return Ok(()),
            }
        }
        self.findings.push(Finding::Mbr(MbrFault::ListEndless));
        Ok(())
    }

    fn add(&mut self, number: u32, base: Lba, entry: Entry, sector: SectorSize) {
        let first = base.0 + u64::from(entry.first);
        self.partitions.push(Partition {
            number,
            first: Lba(first),
            last: Lba(first + u64::from(entry.sectors) - 1),
            sector,
            kind: PartitionKind::Mbr(entry.kind),
            guid: None,
            name: String::new(),
            // Bit 2 of a GPT's attributes says the same.
            attributes: u64::from(entry.boot == 0x80) << 2,
        });
    }

    /// The number by which Windows and Linux know the disk.
    pub fn disk_signature(&self) -> u32 {
        self.disk_signature
    }

    pub(super) fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }
}
