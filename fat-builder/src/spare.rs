//! Room before the clusters that nothing of the filesystem is in ("Boot Sector and BPB", "FAT"): reserved sectors, the ends of the
//! tables behind the last cluster, and what is left of the root directory's last sector.
//!
//! A boot loader may go on in reserved sectors, at places that only its own boot sector knows. So they are nobody's only where
//! the boot sector loads nothing: where mkfs.fat made it, which prints a line there, or this crate.

use std::ops::Range;

use crate::boot_sector::{BOOT_CODE, BOOT_RECORD};

/// Where the code in a boot sector starts: of FAT32, and of FAT12 and FAT16.
const CODE_32: usize = 90;
const CODE: usize = 62;
/// And where it ends.
const SIGNATURE: usize = 510;

/// What mkfs.fat has a BIOS print.
const NOT_BOOTABLE: &[u8] = b"This is not a bootable disk";

/// Room that is not used, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// What nothing is in.
    pub(crate) free: Vec<Range<u64>>,
    /// What a boot loader may be in.
    pub(crate) loader: Vec<Range<u64>>,
}

/// Where all is that comes before the clusters, in bytes.
#[derive(Debug)]
pub(crate) struct Regions {
    /// Of a sector.
    pub(crate) sector: u64,
    /// All sectors before the tables.
    pub(crate) reserved: u64,
    pub(crate) tables: u64,
    pub(crate) table_len: u64,
    /// Of a table, what has entries of clusters.
    pub(crate) table_used: u64,
    /// The last entry of a root directory that has a place of its own.
    pub(crate) root_end: u64,
    pub(crate) data: u64,
    pub(crate) is_fat32: bool,
}

impl Spare {
    pub(crate) fn new(boot: &[u8; 512], regions: &Regions) -> Self {
        let mut free: Vec<Range<u64>> = (0..regions.tables)
            .map(|number| {
                let start = regions.reserved + number * regions.table_len;
                start + regions.table_used..start + regions.table_len
            })
            .collect();
        free.push(regions.root_end..regions.data);
        let reserved = reserved(boot, regions);
        if loads_something(boot, regions.is_fat32) {
            return Self {
                free,
                loader: reserved,
            };
        }
        free.extend(reserved);
        Self {
            free,
            loader: Vec::new(),
        }
    }
}

/// Reserved sectors that are neither the boot sector nor the one with free counts nor their copies.
fn reserved(boot: &[u8; 512], regions: &Regions) -> Vec<Range<u64>> {
    let mut kept = vec![0];
    if regions.is_fat32 {
        let two = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let (counts, copy) = (two(48), two(50));
        kept.extend([counts, copy, copy.saturating_add(counts)]);
        // The third sector of the record has a signature, and so does its copy.
        kept.extend([0, copy].map(|start| start + u64::from(BOOT_RECORD) - 1));
    }
    let sectors = 0..regions.reserved / regions.sector;
    let free = sectors.filter(|sector| !kept.contains(sector));
    free.map(|sector| sector * regions.sector..(sector + 1) * regions.sector)
        .collect()
}

/// Whether a boot sector has code that is not known to load nothing.
fn loads_something(boot: &[u8; 512], is_fat32: bool) -> bool {
    let code = &boot[if is_fat32 { CODE_32 } else { CODE }..SIGNATURE];
    let is_own = code.starts_with(&BOOT_CODE) && code[BOOT_CODE.len()..].iter().all(|byte| *byte == 0);
    let says_so = code.windows(NOT_BOOTABLE.len()).any(|part| part == NOT_BOOTABLE);
    !is_own && !says_so && code.iter().any(|byte| *byte != 0)
}
