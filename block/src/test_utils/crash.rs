//! What a disk may hold after a power cut.
//!
//! The contract of [`Storage`] is all that is assumed. What was written before a sync that has completed is there,
//! in order, the last write winning where they overlap. Of what came after it, each change is kept, lost or torn,
//! whatever became of the others, and those that are kept may have reached the disk in any order:
//!
//! - a write or zeroing keeps all of its sectors of 512 bytes, the first few, or any of them;
//! - a discard leaves zeros or the bytes as they were, sector by sector;
//! - the new length of a storage that grows may be kept without the bytes (they read as zeros then), and is kept
//!   as far as there are bytes that are; one that was cut is cut or not.
//!
//! A state is named by a point in the log and a seed, so a failure found once can be looked at again.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Change, Entry, Rng, torture};
use crate::{MemStorage, Storage, ZeroMode};

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// A change of more sectors than this is torn at random sectors only, not at every one.
const MAX_PIECES: u64 = 4096;

/// The states in which a power cut can leave the storages of a [`Recorder`](super::Recorder).
///
/// ```
/// use block::test_utils::{Recorder, seeds};
/// use block::{MemStorage, Storage};
///
/// // A format: a record of 1 KiB, and a header that says whether it is valid.
/// let recorder = Recorder::new();
/// let storage = recorder.storage(MemStorage::new());
/// storage.write_all_at(&[7; 1024], 512)?;
/// storage.sync_data()?; // without this one, the loop below fails
/// storage.write_all_at(b"valid", 0)?;
/// storage.sync_data()?;
/// let promised = recorder.position();
///
/// let states = recorder.crash_states();
/// for point in states.points() {
///     for seed in seeds(16) {
///         let disk = states.at(point, seed).remove(0).to_vec();
///         let valid = disk.starts_with(b"valid");
///         assert!(!valid || disk[512..] == [7; 1024], "point {point}, seed {seed}");
///         assert!(valid || point < promised, "point {point}, seed {seed}");
///     }
/// }
/// # Ok::<(), block::Error>(())
/// ```
#[derive(Debug)]
pub struct CrashStates {
    entries: Vec<Entry>,
    /// For each storage, what was durable from which entry on; ascending.
    durable: Vec<Vec<(usize, MemStorage)>>,
    /// States that were asked for.
    asked: AtomicU64,
}

impl CrashStates {
    pub(super) fn new(initial: &[MemStorage], entries: Vec<Entry>) -> Self {
        let live: Vec<_> = initial.to_vec();
        let mut durable: Vec<_> = initial.iter().map(|storage| vec![(0, storage.clone())]).collect();
        for (number, Entry { storage, change }) in entries.iter().enumerate() {
            if *change == Change::Sync {
                durable[*storage].push((number + 1, live[*storage].clone()));
            } else {
                for effect in whole(change) {
                    effect.apply(&live[*storage]);
                }
            }
        }
        Self {
            entries,
            durable,
            asked: AtomicU64::new(0),
        }
    }

    /// Where the power can go: `n` is after `n` entries of the log, before the next.
    pub fn points(&self) -> RangeInclusive<usize> {
        0..=self.entries.len()
    }

    /// The log.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What each storage holds, in the order in which they were added, when the power goes at `point`.
    ///
    /// Seed 0 loses everything that was not synced, seed 1 keeps everything (a killed process, not a power cut),
    /// and every other one chooses: exactly one change lost, exactly one kept, or a fate for each.
    pub fn at(&self, point: usize, seed: u64) -> Vec<MemStorage> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut rng = Rng::new(Rng::new(seed).next_u64() ^ point as u64);
        (0..self.durable.len())
            .map(|storage| {
                let (since, disk) = self.durable_at(storage, point);
                let pending: Vec<&Change> = self.entries[since..point]
                    .iter()
                    .filter(|entry| entry.storage == storage)
                    .map(|entry| &entry.change)
                    .collect();
                for effect in survivors(&pending, seed, &mut rng) {
                    effect.apply(&disk);
                }
                disk
            })
            .collect()
    }

    /// What the last completed sync before `point` made durable, and the number of the entry after it.
    fn durable_at(&self, storage: usize, point: usize) -> (usize, MemStorage) {
        let synced = &self.durable[storage];
        let last = synced.partition_point(|(since, _)| *since <= point) - 1;
        (synced[last].0, synced[last].1.clone())
    }
}

impl Drop for CrashStates {
    fn drop(&mut self) {
        torture::log(*self.asked.get_mut());
    }
}

/// A part of a change that is kept or lost as one.
#[derive(Clone, Copy, Debug)]
enum Effect<'a> {
    Bytes {
        offset: u64,
        bytes: &'a [u8],
    },
    Zero {
        offset: u64,
        len: u64,
        mode: ZeroMode,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    /// A discard that leaves zeros.
    Forget {
        offset: u64,
        len: u64,
    },
    Grow(u64),
    Cut(u64),
}

impl Effect<'_> {
    fn apply(&self, disk: &MemStorage) {
        let len = disk.len().expect("memory knows its length");
        let applied = match *self {
            Self::Bytes { offset, bytes } => disk.write_all_at(bytes, offset),
            Self::Zero { offset, len, mode } => disk.zero(offset, len, mode),
            Self::Discard { offset, len } => disk.discard(offset, len),
            Self::Forget { offset, len: n } => {
                disk.zero(offset, n.min(len.saturating_sub(offset)), ZeroMode::Unmap)
            }
            Self::Grow(to) => disk.set_len(len.max(to)),
            Self::Cut(to) => disk.set_len(len.min(to)),
        };
        applied.expect("memory took this change before");
    }
}

/// All of a change, as it was made.
fn whole(change: &Change) -> Vec<Effect<'_>> {
    match *change {
        Change::Write { offset, ref bytes } => vec![Effect::Bytes { offset, bytes }],
        Change::Zero { offset, len, mode } => vec![Effect::Zero { offset, len, mode }],
        Change::Discard { offset, len } => vec![Effect::Discard { offset, len }],
        Change::Allocate { len: 0, .. } | Change::Sync => vec![],
        Change::Allocate { offset, len } => vec![Effect::Grow(offset + len)],
        Change::SetLen { from, to } if to < from => vec![Effect::Cut(to)],
        Change::SetLen { to, .. } => vec![Effect::Grow(to)],
    }
}

/// Chooses what of the `pending` changes reaches the disk, and in which order.
fn survivors<'a>(pending: &[&'a Change], seed: u64, rng: &mut Rng) -> Vec<Effect<'a>> {
    if pending.is_empty() || seed == 0 {
        return Vec::new();
    }
    let odd_one_out = rng.below(pending.len() as u64) as usize;
    let kept = |keep: &dyn Fn(usize) -> bool| {
        let kept = pending.iter().enumerate().filter(|(number, _)| keep(*number));
        kept.flat_map(|(_, change)| whole(change)).collect()
    };
    if seed == 1 {
        return kept(&|_| true);
    }
    match rng.below(8) {
        0 => kept(&|number| number != odd_one_out),
        1 => kept(&|number| number == odd_one_out),
        way => {
            let mut effects: Vec<_> = pending.iter().flat_map(|change| fate(change, rng)).collect();
            if way % 2 == 0 {
                rng.shuffle(&mut effects);
            }
            effects
        }
    }
}

/// What is left of one change: nothing, all of it, its beginning, or some of its sectors.
fn fate<'a>(change: &'a Change, rng: &mut Rng) -> Vec<Effect<'a>> {
    let choice = rng.below(4);
    match choice {
        0 => return Vec::new(),
        1 => return whole(change),
        _ => {}
    }
    let (offset, len) = match *change {
        Change::Write { offset, ref bytes } => (offset, bytes.len() as u64),
        Change::Zero { offset, len, .. } | Change::Discard { offset, len } => (offset, len),
        Change::Allocate { .. } | Change::SetLen { .. } | Change::Sync => return whole(change),
    };
    let mut pieces = pieces(offset, len, rng);
    if choice == 2 {
        pieces.truncate(rng.below(pieces.len() as u64 + 1) as usize);
    } else {
        pieces.retain(|_| rng.coin());
    }
    let mut effects: Vec<_> = pieces
        .into_iter()
        .map(|(start, end)| piece(change, start, end))
        .collect();
    if !matches!(change, Change::Discard { .. }) && len > 0 && rng.coin() {
        effects.push(Effect::Grow(offset + len));
    }
    effects
}

/// The part of a change from `start` to `end`.
fn piece(change: &Change, start: u64, end: u64) -> Effect<'_> {
    match *change {
        Change::Write { offset, ref bytes } => Effect::Bytes {
            offset: start,
            bytes: &bytes[(start - offset) as usize..(end - offset) as usize],
        },
        Change::Zero { mode, .. } => Effect::Zero {
            offset: start,
            len: end - start,
            mode,
        },
        _ => Effect::Forget {
            offset: start,
            len: end - start,
        },
    }
}

/// Cuts a range at the disk's sectors, as (start, end): at each of them, or at some if they are too many.
fn pieces(offset: u64, len: u64, rng: &mut Rng) -> Vec<(u64, u64)> {
    let end = offset + len;
    let (first, last) = (offset / SECTOR + 1, end.div_ceil(SECTOR));
    let mut cuts: Vec<u64> = if last.saturating_sub(first) < MAX_PIECES {
        (first..last).collect()
    } else {
        (1..MAX_PIECES).map(|_| first + rng.below(last - first)).collect()
    };
    cuts.sort_unstable();
    cuts.dedup();
    let mut start = offset;
    let mut pieces: Vec<_> = cuts
        .into_iter()
        .map(|cut| (std::mem::replace(&mut start, cut * SECTOR), cut * SECTOR))
        .collect();
    if len > 0 {
        pieces.push((start, end));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::{Recorder, RecordingStorage};
    use super::*;

    fn recorded(act: impl FnOnce(&Arc<RecordingStorage>)) -> CrashStates {
        let recorder = Recorder::new();
        let storage = recorder.storage(MemStorage::new());
        act(&storage);
        recorder.crash_states()
    }

    /// All disks that 300 seeds give after the whole log.
    fn disks(states: &CrashStates) -> BTreeSet<Vec<u8>> {
        let end = *states.points().end();
        (0..300).map(|seed| states.at(end, seed)[0].to_vec()).collect()
    }

    #[test]
    fn what_was_synced_is_there_the_last_write_winning() {
        let states = recorded(|storage| {
            storage.write_all_at(&[1; 1000], 0).unwrap();
            storage.write_all_at(&[2; 10], 5).unwrap();
            storage.sync_data().unwrap();
        });
        let mut expected = vec![1; 1000];
        expected[5..15].fill(2);
        assert_eq!(disks(&states), BTreeSet::from([expected]));
    }

    #[test]
    fn a_sync_that_has_not_completed_promises_nothing() {
        let states = recorded(|storage| {
            storage.write_all_at(&[1], 0).unwrap();
            storage.sync_data().unwrap();
        });
        let before: BTreeSet<_> = (0..50).map(|seed| states.at(1, seed)[0].to_vec()).collect();
        assert!(before.contains(&vec![]) && before.contains(&vec![1]));
    }

    #[test]
    fn unsynced_writes_are_lost_in_every_combination() {
        let states = recorded(|storage| {
            storage.set_len(3 * 512).unwrap();
            storage.sync_data().unwrap();
            for sector in 0..3u8 {
                storage
                    .write_all_at(&[sector + 1; 512], u64::from(sector) * 512)
                    .unwrap();
            }
        });
        assert_eq!(disks(&states).len(), 8);
    }

    #[test]
    fn a_write_is_torn_at_sectors_and_nowhere_else() {
        let states = recorded(|storage| {
            storage.set_len(2048).unwrap();
            storage.sync_data().unwrap();
            // Half a sector, two whole ones, half a sector.
            storage.write_all_at(&[9; 1536], 256).unwrap();
        });
        let disks = disks(&states);
        assert_eq!(disks.len(), 16);
        for disk in disks {
            for part in [256..512, 512..1024, 1024..1536, 1536..1792] {
                assert!(disk[part.clone()].iter().all(|byte| *byte == disk[part.start]));
            }
        }
    }

    #[test]
    fn a_lost_write_may_still_have_grown_the_storage() {
        let states = recorded(|storage| storage.write_all_at(&[9; 512], 512).unwrap());
        let mut full = vec![0; 512];
        full.resize(1024, 9);
        assert_eq!(disks(&states), BTreeSet::from([vec![], vec![0; 1024], full]));
    }

    #[test]
    fn overlapping_unsynced_writes_may_land_in_either_order() {
        let states = recorded(|storage| {
            storage.write_all_at(&[1; 8], 0).unwrap();
            storage.write_all_at(&[2; 8], 0).unwrap();
        });
        let disks = disks(&states);
        assert!(disks.contains(&vec![1; 8]) && disks.contains(&vec![2; 8]));
    }

    #[test]
    fn a_discard_leaves_zeros_or_not_and_the_length_alone() {
        let states = recorded(|storage| {
            storage.write_all_at(&[1; 1024], 0).unwrap();
            storage.sync_data().unwrap();
            storage.discard(0, u64::MAX).unwrap();
        });
        let disks = disks(&states);
        assert_eq!(disks.len(), 4);
        assert!(disks.iter().all(|disk| disk.len() == 1024));
    }

    #[test]
    fn a_cut_is_made_or_not() {
        let states = recorded(|storage| {
            storage.write_all_at(&[1; 8], 0).unwrap();
            storage.sync_data().unwrap();
            storage.set_len(4).unwrap();
        });
        assert_eq!(disks(&states), BTreeSet::from([vec![1; 8], vec![1; 4]]));
    }

    #[test]
    fn zeroing_a_huge_range_is_torn_without_taking_long() {
        let states = recorded(|storage| {
            storage.write_all_at(&[1; 8], 1 << 40).unwrap();
            storage.sync_data().unwrap();
            storage.zero(0, 1 << 41, ZeroMode::Unmap).unwrap();
            storage.discard(0, 1 << 42).unwrap();
        });
        for seed in 0..20 {
            states.at(*states.points().end(), seed);
        }
    }

    #[test]
    fn a_missing_sync_is_found() {
        // A header that says "valid" before what it vouches for is durable.
        let states = recorded(|storage| {
            storage.write_all_at(&[7; 512], 512).unwrap();
            storage.write_all_at(b"valid", 0).unwrap();
            storage.sync_data().unwrap();
        });
        let broken = states.points().any(|point| {
            (0..16).any(|seed| {
                let disk = states.at(point, seed)[0].to_vec();
                disk.starts_with(b"valid") && disk.get(512..) != Some(&[7; 512])
            })
        });
        assert!(broken);
    }

    #[test]
    fn one_storages_sync_says_nothing_about_another() {
        let recorder = Recorder::new();
        let [image, data] = [0, 1].map(|_| recorder.storage(MemStorage::new()));
        data.write_all_at(&[1], 0).unwrap();
        image.write_all_at(&[2], 0).unwrap();
        image.sync_data().unwrap();
        let states = recorder.crash_states();
        let lost = states.at(3, 0);
        assert_eq!((lost[0].to_vec(), lost[1].to_vec()), (vec![2], vec![]));
    }

    #[test]
    fn a_state_is_named_by_point_and_seed() {
        let states = recorded(|storage| {
            for byte in 0..20 {
                storage.write_all_at(&[byte; 700], u64::from(byte) * 300).unwrap();
            }
        });
        for seed in 0..20 {
            assert_eq!(states.at(15, seed)[0].to_vec(), states.at(15, seed)[0].to_vec());
        }
        // Seed 1 keeps everything in order.
        assert_eq!(states.at(20, 1)[0].to_vec().len(), 19 * 300 + 700);
    }
}
