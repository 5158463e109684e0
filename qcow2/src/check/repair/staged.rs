//! A storage whose writes wait in memory, and become a step of a repair when they are committed.
//!
//! A repair writes through this. What it has written it reads back at once, so that the image can be checked again
//! before anything has reached the disk. [`commit`](Staged::commit) makes the waiting writes durable, all or (if the
//! power goes) any of them: where one write must not be seen without another, a commit stands between them. Before
//! that, the bytes they replace go to the backup, if there is one.
//!
//! A dry run never commits. Everything waits, and is dropped at the end.
//!
//! Writes wait by sector, the unit in which a disk writes. Those that change nothing are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use block::{Alignment, Error, FileId, HostExtent, Result, Storage, ZeroMode};

use super::backup::BackupWriter;
use super::room;

/// What a disk writes whole or not at all.
pub(super) const SECTOR: u64 = 512;
/// Sectors that wait at most, unless it is a dry run: 64 MiB. Writes of one step need no order among themselves.
const MAX_WAITING: usize = 128 << 10;
/// Bytes written at a time.
const MAX_WRITE: usize = 1 << 20;

/// The bytes of a sector.
pub(super) type Sector = [u8; SECTOR as usize];

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Staged<'a> {
    inner: &'a dyn Storage,
    dry_run: bool,
    waiting: Mutex<Waiting<'a>>,
}

#[derive(Debug)]
struct Waiting<'a> {
    sectors: BTreeMap<u64, Box<Sector>>,
    /// Those of them that were written to since the last commit. In a dry run, others wait from before.
    step: BTreeSet<u64>,
    /// Length of the storage with everything that waits.
    len: u64,
    inner_len: u64,
    backup: Option<BackupWriter<'a>>,
    written: u64,
}

impl<'a> Staged<'a> {
    pub(super) fn new(
        inner: &'a dyn Storage,
        backup: Option<BackupWriter<'a>>,
        dry_run: bool,
    ) -> Result<Self> {
        let len = inner.len()?;
        Ok(Self {
            inner,
            dry_run,
            waiting: Mutex::new(Waiting {
                sectors: BTreeMap::new(),
                step: BTreeSet::new(),
                len,
                inner_len: len,
                backup,
                written: 0,
            }),
        })
    }

    /// Makes everything that waits durable. Returns whether anything was.
    pub(super) fn commit(&self) -> Result<bool> {
        let mut waiting = self.waiting();
        let step = std::mem::take(&mut waiting.step);
        waiting.written += step.len() as u64 * SECTOR;
        if self.dry_run {
            return Ok(!step.is_empty());
        }
        self.write_back(&mut waiting)
    }

    /// Bytes written so far, or that would have been.
    pub(super) fn written(&self) -> u64 {
        self.waiting().written
    }

    /// Whether the storage can become longer. A dry run takes it for granted.
    pub(super) fn can_grow(&self) -> bool {
        self.dry_run || room::can_grow(self.inner)
    }

    fn write_back(&self, waiting: &mut Waiting<'a>) -> Result<bool> {
        let (inner_len, len) = (waiting.inner_len, waiting.len);
        let sectors = std::mem::take(&mut waiting.sectors);
        if sectors.is_empty() && len == inner_len {
            return Ok(false);
        }
        if let Some(backup) = &mut waiting.backup {
            backup.record(self.inner, &sectors, len)?;
        }
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (&number, bytes) in &sectors {
            let at = number * SECTOR;
            if run.0 + run.1.len() as u64 != at || run.1.len() >= MAX_WRITE {
                self.write_run(run.0, &run.1, len)?;
                run = (at, Vec::new());
            }
            run.1.extend_from_slice(&bytes[..]);
        }
        self.write_run(run.0, &run.1, len)?;
        if self.inner.len()? < len {
            self.inner.set_len(len)?;
        }
        self.inner.sync_data()?;
        waiting.inner_len = len;
        Ok(true)
    }

    /// Writes a run of sectors, but nothing past the end of the storage.
    fn write_run(&self, at: u64, bytes: &[u8], len: u64) -> Result<()> {
        let inside = (bytes.len() as u64).min(len.saturating_sub(at)) as usize;
        if inside == 0 {
            return Ok(());
        }
        self.inner.write_all_at(&bytes[..inside], at)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<'a>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// Replaces bytes of the sectors from `start` on, whose present bytes are `sectors`.
    fn put(&mut self, start: u64, sectors: &[u8], offset: u64, buf: &[u8]) {
        let mut new = sectors.to_vec();
        new[(offset - start) as usize..][..buf.len()].copy_from_slice(buf);
        let pairs = sectors
            .chunks_exact(SECTOR as usize)
            .zip(new.chunks_exact(SECTOR as usize));
        for (number, (old, new)) in (start / SECTOR..).zip(pairs) {
            if old != new {
                let mut sector = [0; SECTOR as usize];
                sector.copy_from_slice(new);
                self.sectors.insert(number, Box::new(sector));
                self.step.insert(number);
            }
        }
        self.len = self.len.max(offset + buf.len() as u64);
    }

    /// Lays what waits over bytes read from below.
    fn overlay(&self, buf: &mut [u8], offset: u64) {
        let end = offset + buf.len() as u64;
        for (number, sector) in self.sectors.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let at = number * SECTOR;
            let (from, to) = (at.max(offset), (at + SECTOR).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&sector[(from - at) as usize..(to - at) as usize]);
        }
    }
}

impl Storage for Staged<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_exact_at(buf, offset)?;
        self.waiting().overlay(buf, offset);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let start = offset / SECTOR * SECTOR;
        let end = (offset + buf.len() as u64).next_multiple_of(SECTOR);
        let mut sectors = vec![0; (end - start) as usize];
        self.read_exact_at(&mut sectors, start)?;
        let mut waiting = self.waiting();
        waiting.put(start, &sectors, offset, buf);
        if !self.dry_run && waiting.sectors.len() >= MAX_WAITING {
            self.write_back(&mut waiting)?;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, _: ZeroMode) -> Result<()> {
        let zeros = vec![0; (len as usize).min(MAX_WRITE)];
        let mut at = offset;
        while at < offset + len {
            let piece = zeros.len().min((offset + len - at) as usize);
            self.write_all_at(&zeros[..piece], at)?;
            at += piece as u64;
        }
        Ok(())
    }

    /// A hint, which is not taken: what a repair gives up can still be read by whoever looks for it.
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let extent = self.inner.host_extent(offset, len)?;
        if extent.data {
            return Ok(extent);
        }
        let waiting = self.waiting();
        let next = waiting.sectors.range(offset / SECTOR..).next();
        Ok(match next.map(|(number, _)| number * SECTOR) {
            Some(at) if at <= offset => HostExtent {
                len: (at + SECTOR - offset).min(len),
                data: true,
            },
            Some(at) => HostExtent {
                len: extent.len.min(at - offset),
                data: false,
            },
            None => extent,
        })
    }

    fn sync_data(&self) -> Result<()> {
        self.commit().map(|_| ())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.waiting().len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut waiting = self.waiting();
        if len < waiting.len {
            return Err(Error::unsupported("a repair does not shorten an image"));
        }
        waiting.len = len;
        Ok(())
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn file_id(&self) -> Option<FileId> {
        self.inner.file_id()
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.inner.allocated()
    }
}

#[cfg(test)]
mod tests {
    use block::MemStorage;
    use block::test_utils::Rng;

    use super::*;

    #[test]
    fn reads_what_waits_and_keeps_it_from_the_disk() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut model: Vec<u8> = (0..5000).map(|_| rng.below(256) as u8).collect();
            let disk = MemStorage::from(model.clone());
            let untouched = model.clone();
            let staged = Staged::new(&disk, None, false).unwrap();
            for _ in 0..20 {
                let at = rng.below(6000);
                let bytes: Vec<u8> = (0..rng.below(1500)).map(|_| rng.below(256) as u8).collect();
                staged.write_all_at(&bytes, at).unwrap();
                if !bytes.is_empty() {
                    let end = at as usize + bytes.len();
                    model.resize(model.len().max(end), 0);
                    model[at as usize..end].copy_from_slice(&bytes);
                }
                let mut read = vec![0; model.len()];
                staged.read_exact_at(&mut read, 0).unwrap();
                assert_eq!(read, model, "seed {seed}");
            }
            assert_eq!(disk.to_vec(), untouched);
            staged.commit().unwrap();
            assert_eq!(disk.to_vec(), model, "seed {seed}");
            assert!(!staged.commit().unwrap());
        }
    }

    #[test]
    fn what_waits_in_a_hole_is_data() {
        let disk = MemStorage::new();
        disk.set_len(1 << 30).unwrap();
        let staged = Staged::new(&disk, None, true).unwrap();
        staged.write_all_at(b"x", 10_000_000).unwrap();
        let mut at = 0;
        let mut data = Vec::new();
        while at < 1 << 30 {
            let extent = staged.host_extent(at, (1 << 30) - at).unwrap();
            if extent.data {
                data.push(at..at + extent.len);
            }
            at += extent.len;
        }
        assert!(data.iter().any(|range| range.contains(&10_000_000)), "{data:?}");
        assert!(staged.commit().unwrap() && disk.allocated().unwrap() == Some(0));
    }
}
