//! The GPT header (UEFI specification, 5.3.2): what one sector says, checked for itself.

use block::ErrorKind;
use byteorder::{ByteOrder, LittleEndian as LE};
use thiserror::Error;

use super::entry::MIN_ENTRY_SIZE;
use super::{Guid, Lba, SectorSize};

/// What a header starts with.
const SIGNATURE: &[u8; 8] = b"EFI PART";

/// Version 1.0, the only one there is.
const REVISION: u32 = 0x0001_0000;

/// Bytes of a header that mean something.
const LEN: usize = 92;

/// Bytes of entries at most: a thousand times what disks have, and little enough to hold in memory.
const MAX_ARRAY: u64 = 4 << 20;

/// Largest entry, in bytes: the size of a large sector.
const MAX_ENTRY_SIZE: u32 = 4096;

/// Why one copy of the table cannot be used, with the values that were seen.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// There is no header.
    #[error("there is no header")]
    NoSignature,
    /// The disk ends before the place where it has to be.
    #[error("the disk ends before it")]
    BeyondEnd,
    /// A later version of the format.
    #[error("its revision is {0:#x}, and only {REVISION:#x} is known")]
    Revision(u32),
    /// A length that no header has.
    #[error("its header has {0} bytes, and there must be {LEN} at least and a sector at most")]
    HeaderSize(u32),
    /// Not the header that was written.
    #[error("the checksum of its header is {stored:#010x} and should be {computed:#010x}")]
    HeaderChecksum {
        /// As stored.
        stored: u32,
        /// Of what is there.
        computed: u32,
    },
    /// Not the header that was written here.
    #[error("its header says that it is in sector {0}")]
    Place(Lba),
    /// A size that the format does not have.
    #[error(
        "its entries have {0} bytes each, and a power of two from {MIN_ENTRY_SIZE} to {MAX_ENTRY_SIZE} is possible"
    )]
    EntrySize(u32),
    /// More entries than anyone has.
    #[error("it has {0} entries, more than are possible")]
    EntryCount(u32),
    /// The entries lie where something else does, or past the end of the disk.
    #[error("its {sectors} sectors of entries cannot be in sector {first}")]
    EntriesPlace {
        /// The first of them.
        first: Lba,
        /// How many.
        sectors: u64,
    },
    /// A range that runs backwards or over the table.
    #[error("partitions cannot be in sectors {first} to {last}, as it says")]
    Usable {
        /// First sector that a partition may have.
        first: Lba,
        /// The last.
        last: Lba,
    },
    /// Not the entries that were written.
    #[error("the checksum of its entries is {stored:#010x} and should be {computed:#010x}")]
    EntriesChecksum {
        /// As stored.
        stored: u32,
        /// Of what is there.
        computed: u32,
    },
}

impl Damage {
    /// What a caller can do about it.
    pub(super) fn kind(self) -> ErrorKind {
        match self {
            Self::Revision(_) => ErrorKind::Unsupported,
            _ => ErrorKind::Corrupt,
        }
    }
}

/// A header, without its own checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where it is.
    pub(super) my_lba: Lba,
    /// Where the other copy is.
    pub(super) alternate_lba: Lba,
    pub(super) first_usable: Lba,
    pub(super) last_usable: Lba,
    pub(super) disk_guid: Guid,
    pub(super) entries_lba: Lba,
    pub(super) entry_count: u32,
    pub(super) entry_size: u32,
    pub(super) entries_checksum: u32,
}

impl Header {
    /// The header in `sector`, the bytes of the sector `at`. Whether what it says fits the disk is another question.
    pub(super) fn parse(sector: &[u8], at: Lba) -> Result<Self, Damage> {
        if &sector[..8] != SIGNATURE {
            return Err(Damage::NoSignature);
        }
        let revision = LE::read_u32(&sector[8..]);
        if revision >> 16 != REVISION >> 16 {
            return Err(Damage::Revision(revision));
        }
        let size = LE::read_u32(&sector[12..]);
        if !(LEN..=sector.len()).contains(&(size as usize)) {
            return Err(Damage::HeaderSize(size));
        }
        let stored = LE::read_u32(&sector[16..]);
        let computed = checksum(&sector[..size as usize]);
        if stored != computed {
            return Err(Damage::HeaderChecksum { stored, computed });
        }
        let lba = |at| Lba(LE::read_u64(&sector[at..]));
        let mut disk_guid = [0; 16];
        disk_guid.copy_from_slice(&sector[56..72]);
        let header = Self {
            my_lba: lba(24),
            alternate_lba: lba(32),
            first_usable: lba(40),
            last_usable: lba(48),
            disk_guid: Guid::from_bytes(disk_guid),
            entries_lba: lba(72),
            entry_count: LE::read_u32(&sector[80..]),
            entry_size: LE::read_u32(&sector[84..]),
            entries_checksum: LE::read_u32(&sector[88..]),
        };
        if header.my_lba != at {
            return Err(Damage::Place(header.my_lba));
        }
        if !(MIN_ENTRY_SIZE..=MAX_ENTRY_SIZE).contains(&header.entry_size)
            || !header.entry_size.is_power_of_two()
        {
            return Err(Damage::EntrySize(header.entry_size));
        }
        if header.entry_count == 0 || header.array_len() > MAX_ARRAY {
            return Err(Damage::EntryCount(header.entry_count));
        }
        Ok(header)
    }

    /// The bytes of the sector that holds it.
    pub(super) fn encode(&self, sector: SectorSize) -> Vec<u8> {
        let mut bytes = vec![0; sector.bytes() as usize];
        bytes[..8].copy_from_slice(SIGNATURE);
        LE::write_u32(&mut bytes[8..], REVISION);
        LE::write_u32(&mut bytes[12..], LEN as u32);
        for (at, lba) in [
            (24, self.my_lba),
            (32, self.alternate_lba),
            (40, self.first_usable),
            (48, self.last_usable),
            (72, self.entries_lba),
        ] {
            LE::write_u64(&mut bytes[at..], lba.0);
        }
        bytes[56..72].copy_from_slice(&self.disk_guid.to_bytes());
        LE::write_u32(&mut bytes[80..], self.entry_count);
        LE::write_u32(&mut bytes[84..], self.entry_size);
        LE::write_u32(&mut bytes[88..], self.entries_checksum);
        let checksum = checksum(&bytes[..LEN]);
        LE::write_u32(&mut bytes[16..], checksum);
        bytes
    }

    /// Bytes of the entries. Two factors of 32 bits cannot overflow.
    pub(super) fn array_len(&self) -> u64 {
        u64::from(self.entry_count) * u64::from(self.entry_size)
    }

    /// Sectors of the entries.
    pub(super) fn array_sectors(&self, sector: SectorSize) -> u64 {
        self.array_len().div_ceil(sector.bytes())
    }

    /// Fails unless the header, its entries and the usable range lie apart, and the entries on a disk of so many
    /// sectors. Whether the usable range does is left open: a disk may have been cut since.
    pub(super) fn check_places(&self, sector: SectorSize, disk_sectors: u64) -> Result<(), Damage> {
        let usable = Damage::Usable {
            first: self.first_usable,
            last: self.last_usable,
        };
        // An empty range ends one before it starts.
        let end = self.last_usable.0.checked_add(1).ok_or(usable)?;
        let inside = |lba: Lba| self.first_usable <= lba && lba.0 < end;
        if self.first_usable.0 > end || self.first_usable.0 < 2 || inside(self.my_lba) {
            return Err(usable);
        }
        let (first, sectors) = (self.entries_lba, self.array_sectors(sector));
        let misplaced = Damage::EntriesPlace { first, sectors };
        let entries_end = first.0.checked_add(sectors).ok_or(misplaced)?;
        let holds_header = first <= self.my_lba && self.my_lba.0 < entries_end;
        let meets_usable = first.0 < end && self.first_usable.0 < entries_end;
        if first.0 < 2 || entries_end > disk_sectors || holds_header || meets_usable {
            return Err(misplaced);
        }
        Ok(())
    }
}

/// The CRC-32 of a header, whose own field counts as zeros.
fn checksum(header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..16]);
    hasher.update(&[0; 4]);
    hasher.update(&header[20..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a disk of 64 MiB has it.
    fn header() -> Header {
        Header {
            my_lba: Lba(1),
            alternate_lba: Lba(131_071),
            first_usable: Lba(34),
            last_usable: Lba(131_038),
            disk_guid: Guid::from_seed([7; 16], 0),
            entries_lba: Lba(2),
            entry_count: 128,
            entry_size: 128,
            entries_checksum: 0x1234_5678,
        }
    }

    /// What comes back after a change of the bytes, with the checksum put right.
    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Header, Damage> {
        let mut bytes = header().encode(SectorSize::B512);
        change(&mut bytes);
        let len = (LE::read_u32(&bytes[12..]) as usize).clamp(LEN, 512);
        let checksum = checksum(&bytes[..len]);
        LE::write_u32(&mut bytes[16..], checksum);
        Header::parse(&bytes, Lba(1))
    }

    #[test]
    fn what_is_written_reads_back() {
        for sector in SectorSize::ALL {
            let bytes = header().encode(sector);
            assert_eq!(bytes.len() as u64, sector.bytes());
            assert_eq!(Header::parse(&bytes, Lba(1)), Ok(header()));
        }
    }

    #[test]
    fn any_bit_that_changes_is_noticed() {
        let bytes = header().encode(SectorSize::B512);
        for bit in 0..LEN * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&bytes, Lba(1)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name_even_with_a_right_checksum() {
        let set_u32 = |at: usize, value: u32| changed(|bytes| LE::write_u32(&mut bytes[at..], value));
        assert_eq!(changed(|_| ()), Ok(header()));
        assert_eq!(changed(|bytes| bytes[0] = 0), Err(Damage::NoSignature));
        assert_eq!(set_u32(8, 0x0002_0000), Err(Damage::Revision(0x0002_0000)));
        for size in [0, 91, 513, u32::MAX] {
            assert_eq!(set_u32(12, size), Err(Damage::HeaderSize(size)));
        }
        assert!(set_u32(12, 512).is_ok());
        assert_eq!(set_u32(24, 2), Err(Damage::Place(Lba(2))));
        for size in [0, 1, 64, 129, 192, 8192, u32::MAX] {
            assert_eq!(set_u32(84, size), Err(Damage::EntrySize(size)));
        }
        for count in [0, 32769, u32::MAX] {
            assert_eq!(set_u32(80, count), Err(Damage::EntryCount(count)));
        }
    }

    #[test]
    fn places_are_checked_against_each_other_and_the_disk() {
        let sectors = 131_072;
        let check = |change: &dyn Fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            header.check_places(SectorSize::B512, sectors)
        };
        assert_eq!(check(&|_| ()), Ok(()));
        // Nothing is usable, or everything to the end and beyond: a disk may have been cut.
        assert_eq!(check(&|h| h.last_usable = Lba(33)), Ok(()));
        assert_eq!(check(&|h| h.last_usable = Lba(1 << 50)), Ok(()));
        for (first, last) in [(34, 32), (0, 100), (1, 100), (34, u64::MAX), (u64::MAX, 5)] {
            let result = check(&|h| (h.first_usable, h.last_usable) = (Lba(first), Lba(last)));
            assert!(
                matches!(result, Err(Damage::Usable { .. })),
                "{first} {last}: {result:?}"
            );
        }
        for entries in [0, 1, 3, 34, 1000, 131_038, 131_041, u64::MAX - 31, u64::MAX] {
            let result = check(&|h| h.entries_lba = Lba(entries));
            assert!(
                matches!(result, Err(Damage::EntriesPlace { .. })),
                "{entries}: {result:?}"
            );
        }
        let backup = |h: &mut Header| (h.my_lba, h.entries_lba) = (Lba(131_071), Lba(131_039));
        assert_eq!(check(&backup), Ok(()));
        let over_itself = |h: &mut Header| (h.my_lba, h.entries_lba) = (Lba(131_071), Lba(131_040));
        assert!(check(&over_itself).is_err());
    }
}
