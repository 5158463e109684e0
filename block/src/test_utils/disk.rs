//! Sequences of what guests do to disks, and a model of what disks must hold after it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{BlockDevice, Result, ZeroMode};

/// Bytes that are kept together.
const SECTOR: u64 = 512;

/// What a guest does to a disk. Ranges are in bytes, of any alignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Writes `byte` to all of it.
    Write {
        /// Where.
        range: Range<u64>,
        /// What.
        byte: u8,
    },
    /// Makes it read as zeros.
    Zero {
        /// Where.
        range: Range<u64>,
        /// Whether it keeps its room.
        mode: ZeroMode,
    },
    /// Has no use for it any more.
    Discard {
        /// Where.
        range: Range<u64>,
    },
    /// Reads it.
    Read {
        /// Where.
        range: Range<u64>,
    },
    /// Makes all of it durable.
    Flush,
}

impl DiskOp {
    /// An operation on a disk of `size` bytes. `below` gives numbers below its argument, which is not 0: [`Rng::below`](super::Rng::below) for
    /// a sequence that a seed names, or what a fuzzer or proptest has to say, so that either finds the shortest one that fails.
    pub fn draw(size: u64, below: &mut dyn FnMut(u64) -> u64) -> Self {
        let kind = below(8);
        if kind == 0 {
            return Self::Flush;
        }
        // Sectors and clusters are where mistakes are: half of the ranges are made of whole ones of some size.
        let unit = [1, SECTOR, 4096, 65_536][below(4) as usize];
        let mut bound = || (below(size + 1) / unit * unit).min(size);
        let (one, other) = (bound(), bound());
        let range = one.min(other)..one.max(other);
        match kind {
            1..=3 => Self::Write {
                range,
                byte: below(256) as u8,
            },
            4 => Self::Zero {
                range,
                mode: ZeroMode::Unmap,
            },
            5 => Self::Zero {
                range,
                mode: ZeroMode::Allocate,
            },
            6 => Self::Discard { range },
            _ => Self::Read { range },
        }
    }
}

/// What a disk holds, and may hold after a power cut: of each byte what it was when it was last flushed, or anything that it was since.
///
/// A format is tested by operations that are [drawn](DiskOp::draw), done to it and to the model, and by cutting its power at any moment:
///
/// ```
/// use std::sync::Arc;
///
/// use block::test_utils::{DiskModel, DiskOp, Recorder, Rng, seeds};
/// use block::{BlockDevice, MemStorage, Storage};
/// # use block::{DeviceInfo, Extent, ExtentState, Result, ZeroMode};
/// # #[derive(Debug)]
/// # struct Flat(Arc<dyn Storage>);
/// # impl BlockDevice for Flat {
/// #     fn info(&self) -> DeviceInfo { DeviceInfo::new("flat") }
/// #     fn size(&self) -> u64 { self.0.len().unwrap() }
/// #     fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> { self.0.read_exact_at(buf, offset) }
/// #     fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> { self.0.write_all_at(buf, offset) }
/// #     fn zero_at(&self, offset: u64, len: u64, _: ZeroMode) -> Result<()> { self.0.write_all_at(&vec![0; len as usize], offset) }
/// #     fn discard_at(&self, _: u64, _: u64) -> Result<()> { Ok(()) }
/// #     fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
/// #         Ok(Extent { offset, len, state: ExtentState::Data, depth: 0, host: Some(offset) })
/// #     }
/// #     fn flush(&self) -> Result<()> { self.0.sync_data() }
/// # }
///
/// for seed in seeds(10) {
///     let recorder = Recorder::new();
///     let empty = MemStorage::new();
///     empty.set_len(64 << 10)?;
///     let disk = Flat(recorder.storage(empty)); // yours
///     let mut model = DiskModel::new(&disk)?;
///     let mut rng = Rng::new(seed);
///     let mut moments = Vec::new();
///     for _ in 0..20 {
///         let operation = DiskOp::draw(disk.size(), &mut |limit| rng.below(limit));
///         model.apply(&disk, &operation)?; // panics where it reads something else
///         moments.push((recorder.position(), model.clone()));
///     }
///     model.verify(&disk)?;
///
///     let states = recorder.crash_states();
///     for (position, model) in moments {
///         let left = states.at(position, seed).remove(0);
///         model.verify_after_power_cut(&Flat(Arc::new(left)))?;
///     }
/// }
/// # Ok::<(), block::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DiskModel {
    now: Vec<u8>,
    /// What the bytes of sectors have been since they were last flushed, what they were then before all else.
    since: BTreeMap<u64, Vec<Vec<u8>>>,
}

impl DiskModel {
    /// Of a disk as it is, and is durable. All of it is kept in memory.
    ///
    /// # Errors
    /// As [`BlockDevice::read_at`].
    pub fn new(disk: &dyn BlockDevice) -> Result<Self> {
        let mut now = vec![0; disk.size() as usize];
        disk.read_at(&mut now, 0)?;
        Ok(Self {
            now,
            since: BTreeMap::new(),
        })
    }

    /// What it reads as.
    pub fn bytes(&self) -> &[u8] {
        &self.now
    }

    /// Does something to the disk and to the model of it.
    ///
    /// # Errors
    /// Whatever the disk returns. What it has done of the operation by then is for a power cut to say.
    ///
    /// # Panics
    /// Where the disk reads something else.
    pub fn apply(&mut self, disk: &dyn BlockDevice, operation: &DiskOp) -> Result<()> {
        match operation {
            DiskOp::Write { range, byte } => {
                let data = vec![*byte; (range.end - range.start) as usize];
                self.change(range, &data);
                disk.write_at(&data, range.start)
            }
            DiskOp::Zero { range, mode } => {
                let len = range.end - range.start;
                self.change(range, &vec![0; len as usize]);
                disk.zero_at(range.start, len, *mode)
            }
            DiskOp::Discard { range } => {
                disk.discard_at(range.start, range.end - range.start)?;
                let found = read(disk, range)?;
                let before = &self.now[range.start as usize..range.end as usize];
                let is_right = |at: usize| found[at] == 0 || found[at] == before[at];
                let wrong = (0..found.len()).find(|at| !is_right(*at));
                assert_eq!(wrong, None, "{operation:?}: neither old nor zeros");
                self.change(range, &found);
                Ok(())
            }
            DiskOp::Read { range } => {
                self.compare(range.start, &read(disk, range)?);
                Ok(())
            }
            DiskOp::Flush => {
                disk.flush()?;
                self.since.clear();
                Ok(())
            }
        }
    }

    /// Reads all of a disk that nothing has happened to.
    ///
    /// # Errors
    /// As [`BlockDevice::read_at`].
    ///
    /// # Panics
    /// Where it is not as the model says.
    pub fn verify(&self, disk: &dyn BlockDevice) -> Result<()> {
        assert_eq!(disk.size(), self.now.len() as u64);
        self.compare(0, &read(disk, &(0..disk.size()))?);
        Ok(())
    }

    /// Reads all of a disk whose power was cut.
    ///
    /// # Errors
    /// As [`BlockDevice::read_at`].
    ///
    /// # Panics
    /// Where a byte is neither as it was flushed nor as it was at any time since.
    pub fn verify_after_power_cut(&self, disk: &dyn BlockDevice) -> Result<()> {
        assert_eq!(disk.size(), self.now.len() as u64);
        let found = read(disk, &(0..disk.size()))?;
        for (sector, found) in (0..).zip(found.chunks(SECTOR as usize)) {
            let Some(held) = self.since.get(&sector) else {
                self.compare(sector * SECTOR, found);
                continue;
            };
            // Writes to parts of a sector may come to the disk in any order.
            let is_right = |at: usize| held.iter().any(|held| held[at] == found[at]);
            let wrong = (0..found.len()).find(|at| !is_right(*at));
            assert_eq!(
                wrong, None,
                "in sector {sector} is a byte that is neither old nor new"
            );
        }
        Ok(())
    }

    fn sector(&self, sector: u64) -> &[u8] {
        let start = (sector * SECTOR) as usize;
        &self.now[start..(start + SECTOR as usize).min(self.now.len())]
    }

    fn change(&mut self, range: &Range<u64>, data: &[u8]) {
        let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
        for sector in sectors.clone() {
            let old = self.sector(sector).to_vec();
            self.since.entry(sector).or_insert_with(|| vec![old]);
        }
        self.now[range.start as usize..range.end as usize].copy_from_slice(data);
        for sector in sectors {
            let new = self.sector(sector).to_vec();
            self.since.entry(sector).or_default().push(new);
        }
    }

    fn compare(&self, start: u64, found: &[u8]) {
        let expected = &self.now[start as usize..][..found.len()];
        let wrong = found.iter().zip(expected).position(|(one, other)| one != other);
        if let Some(wrong) = wrong {
            let at = start + wrong as u64;
            panic!(
                "byte {at} is {:#04x} and should be {:#04x}",
                found[wrong], expected[wrong]
            );
        }
    }
}

fn read(disk: &dyn BlockDevice, range: &Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    disk.read_at(&mut bytes, range.start)?;
    Ok(bytes)
}
