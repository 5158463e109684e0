//! Reading what can be read of a damaged disk.
//!
//! Where a read fails, its halves are tried, and theirs, down to single sectors: what can be read is, and only the rest
//! reads as zeros. Where an image cannot even say where its data is, a whole cluster is given up at once. What was lost
//! is kept for a report.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{BlockDevice, DeviceInfo, Error, Extent, ExtentState, Result, ZeroMode};

/// The least that can be lost, in bytes.
const SECTOR: u64 = 512;

/// What is given up at once where nothing is known of clusters, in bytes.
const PIECE: u64 = 4096;

/// How many runs are kept for the report; more are only counted.
const MOST_RUNS: usize = 4096;

/// A disk that reads as zeros where it cannot be read. It cannot be written to.
#[derive(Debug)]
pub struct Salvaged {
    device: Arc<dyn BlockDevice>,
    lost: Mutex<Lost>,
}

/// What could not be read.
#[derive(Debug, Default)]
pub struct Lost {
    /// Bytes.
    pub bytes: u64,
    /// Where they are on the disk: the end of every run by its start, apart from each other. Those after some thousands
    /// are left out.
    pub runs: BTreeMap<u64, u64>,
    /// Runs were left out.
    pub incomplete: bool,
    /// Why, for the first that was found.
    pub error: Option<Error>,
}

impl Salvaged {
    /// Whatever can be read of `device`.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            lost: Mutex::default(),
        }
    }

    /// What could not be read so far.
    pub fn lost(&self) -> MutexGuard<'_, Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes from `offset` on up to where the next cluster begins.
    fn to_next_cluster(&self, offset: u64) -> u64 {
        let cluster = self.device.info().cluster_size.unwrap_or(PIECE).max(SECTOR);
        cluster - offset % cluster
    }

    fn give_up(&self, buf: &mut [u8], offset: u64, error: Error) {
        buf.fill(0);
        self.lost().add(offset..offset + buf.len() as u64, error);
    }
}

impl Lost {
    fn add(&mut self, range: Range<u64>, error: Error) {
        self.error.get_or_insert(error);
        let (mut start, mut end) = (range.start, range.end);
        // A range may be read, and lost, again.
        let mut known = 0;
        while let Some((&other, &other_end)) = self.runs.range(..=end).next_back()
            && other_end >= start
        {
            known += other_end.min(range.end).saturating_sub(other.max(range.start));
            self.runs.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.bytes += range.end - range.start - known;
        if self.runs.len() < MOST_RUNS {
            self.runs.insert(start, end);
        } else {
            self.incomplete = true;
        }
    }
}

impl BlockDevice for Salvaged {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Err(error) = self.device.read_at(buf, offset) else {
            return Ok(());
        };
        let len = buf.len() as u64;
        let size = self.size();
        if offset > size || len > size - offset {
            return Err(error);
        }
        if len <= SECTOR {
            self.give_up(buf, offset, error);
            return Ok(());
        }
        let cut = self.to_next_cluster(offset).min(len);
        let clusters = self.device.info().cluster_size.is_some();
        let cut = if clusters && self.device.extent_at(offset, cut).is_err() {
            self.give_up(&mut buf[..cut as usize], offset, error);
            cut
        } else {
            let middle = (offset + len / 2) / SECTOR * SECTOR;
            let cut = if middle > offset {
                middle - offset
            } else {
                SECTOR - offset % SECTOR
            };
            self.read_at(&mut buf[..cut as usize], offset)?;
            cut
        };
        self.read_at(&mut buf[cut as usize..], offset + cut)
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Err(Error::read_only("write zeros"))
    }

    fn discard_at(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let size = self.size();
        let cluster = self.to_next_cluster(offset).min(len);
        let device = &self.device;
        // What is wrong may be further on.
        let found = device
            .extent_at(offset, len)
            .or_else(|_| device.extent_at(offset, cluster));
        match found {
            Err(_) if offset < size && len > 0 => Ok(Extent {
                offset,
                // Whoever reads it finds out what there is.
                len: cluster.min(size - offset),
                state: ExtentState::Data,
                depth: 0,
                host: None,
            }),
            found => found,
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Bytes of which some sectors cannot be read, and some clusters of 4 KiB not be found.
    #[derive(Debug)]
    struct Damaged {
        bytes: Vec<u8>,
        bad_sectors: Vec<u64>,
        bad_clusters: Vec<u64>,
    }

    impl Damaged {
        fn new(sectors: u64, bad_sectors: &[u64], bad_clusters: &[u64]) -> Self {
            let byte = |at| 1 + (at / 7 % 250) as u8;
            Self {
                bytes: (0..sectors * SECTOR).map(byte).collect(),
                bad_sectors: bad_sectors.to_vec(),
                bad_clusters: bad_clusters.to_vec(),
            }
        }

        fn expected(&self) -> Vec<u8> {
            let mut bytes = self.bytes.clone();
            for (list, unit) in [(&self.bad_sectors, SECTOR), (&self.bad_clusters, PIECE)] {
                for index in list {
                    let end = ((index + 1) * unit).min(bytes.len() as u64);
                    bytes[(index * unit) as usize..end as usize].fill(0);
                }
            }
            bytes
        }

        fn hits(list: &[u64], unit: u64, range: Range<u64>) -> bool {
            let mut starts = list.iter().map(|index| index * unit);
            starts.any(|start| start < range.end && range.start < start + unit)
        }
    }

    impl BlockDevice for Damaged {
        fn info(&self) -> DeviceInfo {
            let mut info = DeviceInfo::new("damaged");
            info.cluster_size = Some(PIECE);
            info
        }

        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            let range = offset..offset + buf.len() as u64;
            if Self::hits(&self.bad_sectors, SECTOR, range.clone())
                || Self::hits(&self.bad_clusters, PIECE, range.clone())
            {
                return Err(Error::io("read", io::Error::from_raw_os_error(5)).with_offset(offset));
            }
            buf.copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
            Ok(())
        }

        fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
            Err(Error::read_only("write"))
        }

        fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
            Err(Error::read_only("write zeros"))
        }

        fn discard_at(&self, _: u64, _: u64) -> Result<()> {
            Err(Error::read_only("discard"))
        }

        fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
            // As a format that joins neighbours and looks at each.
            if offset >= self.size() || Self::hits(&self.bad_clusters, PIECE, offset..offset + len) {
                return Err(Error::io("look up", io::Error::from_raw_os_error(5)));
            }
            Ok(Extent {
                offset,
                len: len.min(self.size() - offset),
                state: ExtentState::Data,
                depth: 0,
                host: None,
            })
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    fn runs(salvaged: &Salvaged) -> Vec<(u64, u64)> {
        salvaged.lost().runs.clone().into_iter().collect()
    }

    #[test]
    fn only_what_cannot_be_read_is_zero() {
        for (bad_sectors, bad_clusters) in [
            (&[3, 4, 9, 99][..], &[][..]),
            (&[], &[0, 2, 12]),
            (&[0, 17, 63], &[1, 5, 6]),
            (&[], &[]),
        ] {
            let damaged = Arc::new(Damaged::new(101, bad_sectors, bad_clusters));
            for step in [512, 700, 4096, 20_000, 101 * 512] {
                let salvaged = Salvaged::new(damaged.clone());
                let mut seen = vec![0xee; damaged.bytes.len()];
                let mut at = 0;
                for part in seen.chunks_mut(step) {
                    salvaged.read_at(part, at).unwrap();
                    at += part.len() as u64;
                }
                let expected = damaged.expected();
                // A sector that a request cuts is lost in parts.
                assert!(seen == expected, "{bad_sectors:?} {bad_clusters:?} {step}");
                // The damaged bytes are never 0 where they can be read.
                let zeros: u64 = expected.iter().map(|byte| u64::from(*byte == 0)).sum();
                assert_eq!(salvaged.lost().bytes, zeros);
                let total: u64 = runs(&salvaged).iter().map(|(start, end)| end - start).sum();
                assert_eq!((total, salvaged.lost().error.is_some()), (zeros, zeros > 0));
            }
        }
    }

    #[test]
    fn what_is_lost_twice_counts_once() {
        let mut lost = Lost::default();
        let error = || Error::invalid("x");
        for range in [10..20, 30..40, 15..17, 5..10, 18..35, 50..60, 0..100, 200..201] {
            lost.add(range, error());
        }
        assert_eq!(lost.bytes, 101);
        assert_eq!(lost.runs.into_iter().collect::<Vec<_>>(), [(0, 100), (200, 201)]);
    }

    #[test]
    fn a_lot_of_runs_are_only_counted() {
        let mut lost = Lost::default();
        for run in 0..10_000 {
            lost.add(run * 2..run * 2 + 1, Error::invalid("x"));
        }
        assert_eq!(
            (lost.bytes, lost.runs.len(), lost.incomplete),
            (10_000, MOST_RUNS, true)
        );
    }

    #[test]
    fn past_the_end_is_still_an_error() {
        let salvaged = Salvaged::new(Arc::new(Damaged::new(2, &[], &[])));
        salvaged.extent_at(1024, 1).unwrap_err();
        assert_eq!(salvaged.lost().bytes, 0);
    }
}
