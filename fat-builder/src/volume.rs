//! A filesystem that somebody has made, FAT12, FAT16 or FAT32: where everything is by its boot sector ("Boot Sector and BPB"),
//! and its table ("FAT").
//!
//! What can be read in two ways is read in none: the tables have to be equal, unless the boot sector says which counts.

use std::ops::Range;

use block::{BlockDevice, Error, ErrorKind, Result};

use crate::layout::FIRST_CLUSTER;
use crate::spare::{Regions, Spare};

/// Bytes of a table at most: of 64 GiB in clusters of 4 KiB.
const MAX_TABLE: u64 = 64 << 20;

/// From so many clusters on, the entries of a table with a root directory of its own place have 16 bits.
const MIN_FAT16: u64 = 4085;

/// And so many are too many for that.
const MIN_FAT32: u64 = 65_525;

/// Where the root directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// Before the clusters, in bytes.
    Region(Range<u64>),
    /// In clusters, from this one on.
    Chain(u32),
}

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    /// Another cluster follows.
    Before(u32),
    Last,
    /// Not to be used.
    Bad,
}

/// A filesystem.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) cluster_size: u64,
    pub(crate) clusters: u32,
    pub(crate) root: Root,
    /// Bits of an entry.
    width: u32,
    /// Byte at which the first cluster starts.
    data: u64,
    /// Byte at which the filesystem ends.
    pub(crate) end: u64,
    pub(crate) spare: Spare,
    table: Vec<u8>,
}

/// An error for what contradicts itself.
pub(crate) fn wrong(what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the FAT filesystem contradicts itself: {what}"),
    )
}

impl Volume {
    /// Reads the boot sector and the table.
    ///
    /// # Errors
    /// `Corrupt` for what contradicts itself or is no FAT filesystem; `Unsupported` for a table of more than 64 MiB; `Io`.
    pub(crate) fn read(disk: &dyn BlockDevice) -> Result<Self> {
        let mut boot = [0; 512];
        if disk.size() < boot.len() as u64 {
            return Err(wrong("it has no boot sector"));
        }
        disk.read_at(&mut boot, 0)?;
        let two = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let four = |at: usize| two(at) | two(at + 2) << 16;
        let either = |short: u64, long: u64| if short == 0 { long } else { short };
        let (sector, cluster_sectors) = (two(11), u64::from(boot[13]));
        let (reserved, tables, root_entries) = (two(14), u64::from(boot[16]), two(17));
        let sectors = either(two(19), four(32));
        let table_sectors = either(two(22), four(36));
        if boot[510..] != [0x55, 0xAA]
            || !matches!(sector, 512 | 1024 | 2048 | 4096)
            || !cluster_sectors.is_power_of_two()
            || reserved == 0
            || !matches!(tables, 1 | 2)
            || table_sectors == 0
        {
            return Err(wrong("its boot sector is none"));
        }
        let root_at = reserved + tables * table_sectors;
        let data = root_at + (root_entries * 32).div_ceil(sector);
        if sectors <= data || sectors * sector > disk.size() {
            return Err(wrong("it has no room for what it says that it has"));
        }
        let clusters = (sectors - data) / cluster_sectors;
        let width = match (two(22), root_entries) {
            (0, 0) => 32,
            (1.., 1..) if clusters < MIN_FAT16 => 12,
            (1.., 1..) if clusters < MIN_FAT32 => 16,
            _ => return Err(wrong("it is neither FAT32 nor FAT12 or FAT16")),
        };
        let len = ((clusters + u64::from(FIRST_CLUSTER)) * width).div_ceil(8);
        if len > table_sectors * sector || clusters > 0x0FFF_FFF5 {
            return Err(wrong("its table has no room for all clusters"));
        }
        if len > MAX_TABLE {
            let message = format!("a FAT filesystem with a table of more than {MAX_TABLE} bytes");
            return Err(Error::unsupported(message));
        }
        let spare = Spare::new(
            &boot,
            &Regions {
                sector,
                reserved: reserved * sector,
                tables,
                table_len: table_sectors * sector,
                table_used: len,
                root_end: root_at * sector + root_entries * 32,
                data: data * sector,
                is_fat32: width == 32,
            },
        );
        let (flags, root) = match width {
            32 => (two(40), Root::Chain(four(44) as u32)),
            _ => (
                0,
                Root::Region(root_at * sector..root_at * sector + root_entries * 32),
            ),
        };
        if width == 32 && two(42) != 0 {
            return Err(Error::unsupported("a FAT32 filesystem of a version to come"));
        }
        let read = |number: u64| {
            let mut table = vec![0; len as usize];
            disk.read_at(&mut table, (reserved + number * table_sectors) * sector)?;
            Ok(table)
        };
        let table = if flags & 0x80 != 0 {
            let counts = flags & 0xF;
            if counts >= tables {
                return Err(wrong("the table that counts is not there"));
            }
            read(counts)?
        } else {
            let table = read(0)?;
            // The first two entries are of no cluster.
            let from = (FIRST_CLUSTER * width as u32 / 8) as usize;
            if tables == 2 && read(1)?[from..] != table[from..] {
                return Err(wrong("its two tables differ"));
            }
            table
        };
        Ok(Self {
            cluster_size: cluster_sectors * sector,
            clusters: clusters as u32,
            root,
            width: width as u32,
            data: data * sector,
            end: sectors * sector,
            spare,
            table,
        })
    }

    /// The numbers of all clusters.
    pub(crate) fn numbers(&self) -> Range<u32> {
        FIRST_CLUSTER..FIRST_CLUSTER + self.clusters
    }

    /// Where a cluster is, in bytes.
    pub(crate) fn place(&self, cluster: u32) -> Range<u64> {
        let start = self.data + u64::from(cluster - FIRST_CLUSTER) * self.cluster_size;
        start..start + self.cluster_size
    }

    /// What is behind the last cluster, and too short for another.
    pub(crate) fn rest(&self) -> Range<u64> {
        self.data + u64::from(self.clusters) * self.cluster_size..self.end
    }

    /// What the table says of a cluster.
    pub(crate) fn used(&self, cluster: u32) -> Result<Use> {
        let byte = |at: usize| u32::from(self.table[at]);
        let (at, all) = match self.width {
            12 => (cluster as usize * 3 / 2, 0xFFF),
            16 => (cluster as usize * 2, 0xFFFF),
            _ => (cluster as usize * 4, 0x0FFF_FFFF),
        };
        let low = byte(at) | byte(at + 1) << 8;
        let entry = match self.width {
            12 if cluster % 2 == 1 => low >> 4,
            12 => low & all,
            16 => low,
            // The upper four bits are nobody's.
            _ => (low | byte(at + 2) << 16 | byte(at + 3) << 24) & all,
        };
        match entry {
            0 => Ok(Use::Free),
            next if self.numbers().contains(&next) => Ok(Use::Before(next)),
            last if last >= all - 7 => Ok(Use::Last),
            bad if bad == all - 8 => Ok(Use::Bad),
            other => Err(wrong(format!("cluster {cluster} is followed by {other:#x}"))),
        }
    }
}
