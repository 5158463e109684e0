//! Where everything is ("Volume Structure"): reserved sectors, two tables, clusters.
//!
//! Clusters start at a multiple of their size, and of 4 KiB, so that no write to one is torn over pages or blocks of what is
//! below. The reserved sectors are as many more as that takes.

use block::{Error, Result};

use crate::options::Options;

/// Reserved sectors at least, which is what everybody has.
const RESERVED: u64 = 32;

/// What clusters start at a multiple of, at least.
const ALIGNMENT: u64 = 4096;

/// What tells FAT32 from FAT16 is the number of clusters, and nothing else. Readers that are off by a few get it right from
/// here on ("FAT Type Determination").
const MIN_CLUSTERS: u64 = 65_525 + 16;

/// The numbers above mean something else in the table.
const MAX_CLUSTERS: u64 = 0x0FFF_FFF5;

/// Number of the first cluster.
pub(crate) const FIRST_CLUSTER: u32 = 2;

/// Bytes of an entry of the table.
pub(crate) const ENTRY_SIZE: u64 = 4;

/// Number of tables, each the same as the other.
pub(crate) const TABLES: u64 = 2;

/// Where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) sector_size: u32,
    pub(crate) sectors: u32,
    pub(crate) cluster_sectors: u32,
    pub(crate) reserved: u32,
    /// Sectors of one table.
    pub(crate) table_sectors: u32,
    pub(crate) clusters: u32,
}

impl Layout {
    /// # Errors
    /// `InvalidInput` for sizes that cannot be.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let sector_size = options.sector_size;
        if !matches!(sector_size, 512 | 1024 | 2048 | 4096) {
            let message = format!("sectors of {sector_size} bytes cannot be made");
            return Err(Error::invalid(message).with_hint("choose 512, 1024, 2048 or 4096"));
        }
        let cluster_size = match options.cluster_size {
            None => default_cluster_size(options.size).max(sector_size),
            Some(size) if size.is_power_of_two() && (sector_size..=32 << 10).contains(&size) => size,
            Some(size) => {
                let message = format!("clusters of {size} bytes cannot be made");
                let hint = format!("choose a power of two from {sector_size} to 32768");
                return Err(Error::invalid(message).with_hint(hint));
            }
        };
        let mut sectors = options.size / u64::from(sector_size);
        if sectors == 1 << 32 {
            // Exactly 2 TiB: one sector more than can be counted is left over.
            sectors -= 1;
        }
        let layout = Self::of(sectors, sector_size, cluster_size);
        match layout {
            Some(layout) if u64::from(layout.clusters) >= MIN_CLUSTERS => Ok(layout),
            _ if sectors > u64::from(u32::MAX) || layout.is_none() => {
                Err(too_large(options.size, sector_size, cluster_size))
            }
            _ => Err(too_small(options.size, sector_size, cluster_size)),
        }
    }

    /// The layout of so many sectors; `None` where there are too many of them, or of clusters.
    fn of(sectors: u64, sector_size: u32, cluster_size: u32) -> Option<Self> {
        let sector = u64::from(sector_size);
        let cluster_sectors = u64::from(cluster_size) / sector;
        // Table sectors t must name all clusters: t * sector / 4 >= 2 + (sectors - RESERVED - TABLES * t) / cluster_sectors.
        let named = (sectors.saturating_sub(RESERVED)) + 2 * cluster_sectors;
        let table_sectors = named.div_ceil(sector / ENTRY_SIZE * cluster_sectors + TABLES);
        let start = RESERVED + TABLES * table_sectors;
        let data_start = start.next_multiple_of(ALIGNMENT.max(u64::from(cluster_size)) / sector);
        let clusters = sectors.saturating_sub(data_start) / cluster_sectors;
        if clusters > MAX_CLUSTERS {
            return None;
        }
        Some(Self {
            sector_size,
            sectors: u32::try_from(sectors).ok()?,
            cluster_sectors: cluster_sectors as u32,
            reserved: (RESERVED + data_start - start) as u32,
            table_sectors: table_sectors as u32,
            clusters: clusters as u32,
        })
    }

    pub(crate) fn cluster_size(&self) -> u32 {
        self.cluster_sectors * self.sector_size
    }

    /// Where a sector starts.
    pub(crate) fn sector(&self, sector: u32) -> u64 {
        u64::from(sector) * u64::from(self.sector_size)
    }

    /// Where one of the tables starts.
    pub(crate) fn table(&self, number: u64) -> u64 {
        self.sector(self.reserved) + number * self.table_len()
    }

    /// Bytes of one table.
    pub(crate) fn table_len(&self) -> u64 {
        self.sector(self.table_sectors)
    }

    /// Where a cluster starts.
    pub(crate) fn cluster(&self, cluster: u32) -> u64 {
        self.table(TABLES) + u64::from(cluster - FIRST_CLUSTER) * u64::from(self.cluster_size())
    }

    /// Clusters that so many bytes take.
    pub(crate) fn clusters_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.cluster_size()))
    }

    /// One past the last cluster.
    pub(crate) fn end(&self) -> u32 {
        FIRST_CLUSTER + self.clusters
    }
}

/// Microsoft's table for FAT32 ("FAT Volume Initialization").
fn default_cluster_size(size: u64) -> u32 {
    match size >> 20 {
        ..260 => 512,
        260..8192 => 4 << 10,
        8192..16384 => 8 << 10,
        16384..32768 => 16 << 10,
        _ => 32 << 10,
    }
}

fn too_small(size: u64, sector_size: u32, cluster_size: u32) -> Error {
    let sector = u64::from(sector_size);
    let mut sectors = MIN_CLUSTERS * u64::from(cluster_size) / sector;
    while Layout::of(sectors, sector_size, cluster_size)
        .is_some_and(|layout| u64::from(layout.clusters) < MIN_CLUSTERS)
    {
        sectors += u64::from(cluster_size) / sector;
    }
    let message = format!(
        "{size} bytes are too few for FAT32, which has at least {MIN_CLUSTERS} clusters of {cluster_size} bytes"
    );
    let smaller = if cluster_size > sector_size {
        ", or smaller clusters"
    } else {
        ""
    };
    Error::invalid(message).with_hint(format!(
        "choose a size of {} bytes or more{smaller}",
        sectors * sector
    ))
}

fn too_large(size: u64, sector_size: u32, cluster_size: u32) -> Error {
    let by_clusters = MAX_CLUSTERS * u64::from(cluster_size);
    let by_sectors = (1 << 32) * u64::from(sector_size);
    if by_clusters < by_sectors {
        let message = format!("{size} bytes are too many for FAT32 with clusters of {cluster_size} bytes");
        return Error::invalid(message).with_hint("choose larger clusters, of up to 32768 bytes");
    }
    let message = format!("{size} bytes are too many for FAT32, which counts sectors of {sector_size} bytes");
    Error::invalid(message).with_hint(format!("choose a size of {by_sectors} bytes or less"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: u64) -> Layout {
        Layout::new(&Options::new(size, 0)).unwrap()
    }

    #[test]
    fn the_table_names_every_cluster_and_clusters_are_aligned() {
        for sector_size in [512, 1024, 2048, 4096] {
            for cluster_size in [512, 4 << 10, 32 << 10] {
                for size in (0..200).map(|i| (300 << 20) + i * 4097 + (i << 31)) {
                    let options = Options {
                        sector_size,
                        cluster_size: Some(cluster_size),
                        ..Options::new(size, 0)
                    };
                    let Ok(layout) = Layout::new(&options) else {
                        continue;
                    };
                    let named = layout.table_len() / ENTRY_SIZE;
                    assert!(named >= u64::from(layout.end()), "{layout:?}");
                    assert!(named < u64::from(layout.end()) + 2 * 4096, "{layout:?}: too much");
                    assert!(
                        layout
                            .cluster(2)
                            .is_multiple_of(u64::from(cluster_size).max(4096))
                    );
                    assert!(layout.cluster(layout.end()) <= size);
                    assert!(size - layout.cluster(layout.end()) < u64::from(cluster_size) + 4096);
                }
            }
        }
    }

    #[test]
    fn clusters_are_as_large_as_the_table_of_the_specification_says() {
        for (size, cluster_size) in [
            (34 << 20, 512),
            ((260 << 20) - 1, 512),
            (260 << 20, 4096),
            ((8 << 30) - 1, 4096),
            (8 << 30, 8192),
            (16 << 30, 16384),
            (32 << 30, 32768),
            (2 << 40, 32768),
        ] {
            assert_eq!(layout(size).cluster_size(), cluster_size, "{size}");
        }
    }

    #[test]
    fn the_size_that_is_said_to_do_does_and_none_below_it() {
        for (sector_size, cluster_size) in [(512, 512), (512, 4096), (4096, 4096), (2048, 32 << 10)] {
            let options = |size| Options {
                sector_size,
                cluster_size: Some(cluster_size),
                ..Options::new(size, 0)
            };
            let error = Layout::new(&options(1 << 20)).unwrap_err();
            let hint = error.hint().unwrap();
            let least: u64 = hint.split(' ').nth(4).unwrap().parse().unwrap();
            assert!(Layout::new(&options(least)).is_ok(), "{hint}");
            assert!(Layout::new(&options(least - 1)).is_err(), "{hint}");
        }
    }

    #[test]
    fn sizes_at_either_end_are_refused_by_name() {
        let refused = |options: Options| Layout::new(&options).unwrap_err().to_string();
        assert!(refused(Options::new(32 << 20, 0)).starts_with("33554432 bytes are too few for FAT32"));
        assert!(refused(Options::new(0, 0)).starts_with("0 bytes are too few"));
        let most = 2 << 40;
        assert_eq!(layout(most).sectors, u32::MAX);
        assert!(
            refused(Options::new(most + 512, 0)).contains("too many for FAT32, which counts sectors of 512")
        );
        assert!(refused(Options::new(u64::MAX, 0)).contains("too many"));
        let small = Options {
            cluster_size: Some(512),
            ..Options::new(most, 0)
        };
        assert!(refused(small).contains("too many for FAT32 with clusters of 512 bytes"));
        for cluster_size in [0, 256, 3000, 64 << 10] {
            let options = Options {
                cluster_size: Some(cluster_size),
                ..Options::new(1 << 30, 0)
            };
            assert!(refused(options).contains(&format!("clusters of {cluster_size} bytes cannot be made")));
        }
        let odd = Options {
            sector_size: 520,
            ..Options::new(1 << 30, 0)
        };
        assert!(refused(odd).contains("sectors of 520 bytes"));
    }
}
