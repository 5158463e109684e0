//! A cache of table slices that is read without a lock.
//!
//! A mapping table (a qcow2 L2 table, the owners of a chain's clusters) is cut into *slices* of up to 512
//! 64-bit entries. The cache is a fixed array of sets of [`WAYS`] slots; a slot holds one slice.
//!
//! **Reading** takes no lock and allocates nothing. Every slice has a slot where it goes if that is free, its *home*, so
//! that a look there is mostly all it takes; else it is in another slot of its set. A reader finds the slot whose tag
//! is the slice, reads the slot's version, the tag again and the entry, and then the version once more: a change means
//! that the slot was given to another slice meanwhile, and counts as a miss. Entries, tags and versions are atomics, so
//! this is safe code, and a reader sees an entry as it was before or after an update, never half of it.
//!
//! **Filling** happens under the set's mutex, which is never held over I/O. A loader takes a [`Ticket`], reads the
//! slice from the file with no lock held, and offers it with [`insert`](SliceCache::insert). If a slice of that
//! set that had been changed was evicted in between, what the loader read may be older than what was written
//! back, so the ticket is void and the loader reads again. A victim is found with CLOCK: one bit per slot, set by
//! readers, cleared as the hand passes.
//!
//! **Changing** an entry ([`update`](SliceCache::update)) pins the slot: a pinned slot is never evicted, so the
//! cache is the truth about it until its owner has written it back and calls [`unpin`](SliceCache::unpin). The
//! cache knows nothing of where slices come from and go to; order of write-back is its owner's business.
//!
//! **Pairs.** Where an entry is 128 bits wide (qcow2's extended L2 entries) it takes two places, which change
//! together: [`update_pairs`](SliceCache::update_pairs) moves the slot's version as a change of hands does, and
//! a reader of a pair ([`get_pair`](SliceCache::get_pair)) that finds it moving looks again under the set's lock.
//! So only readers that meet a change of their very slice ever wait, and for no more than a few stores.

use std::ops::Range;
use std::sync::{OnceLock, PoisonError};

use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::{Mutex, MutexGuard};

/// Slots in a set.
pub const WAYS: usize = 8;

/// Entries in a slice at most: 4 KiB of 64-bit entries, the unit of load and write-back.
pub const MAX_SLICE_ENTRIES: usize = 512;

/// See the [module](self).
#[derive(Debug)]
pub struct SliceCache {
    sets: Box<[Set]>,
    /// Entries in a slice.
    slice_entries: usize,
    /// A slice's home is the slot that the top bits of its number times this tell.
    multiplier: u64,
    /// 64 - log2(slots): how far those bits are shifted down.
    shift: u32,
}

/// One set. Tags come first and fill a line of the processor's cache, so that a search reads one. A slot is in one as
/// well: half of it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Set {
    /// Slice number + 1; 0 is an empty slot.
    tags: [AtomicU64; WAYS],
    slots: [Slot; WAYS],
    fill: Mutex<Fill>,
}

#[derive(Debug, Default)]
#[repr(align(32))]
struct Slot {
    /// Odd while the slot changes hands, or pairs in it change.
    version: AtomicU32,
    /// Read since the hand passed.
    referenced: AtomicBool,
    /// Allocated when the slot is first filled, and then kept.
    entries: OnceLock<Box<[AtomicU64]>>,
}

#[derive(Debug, Default)]
struct Fill {
    hand: usize,
    pins: [u32; WAYS],
    /// Bit per way: changed since it was loaded.
    changed: u32,
    /// Counts evictions of changed slices.
    generation: u64,
}

/// Leave to insert what was read from the file after it was taken; see [`SliceCache::ticket`].
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

/// What became of an [`insert`](SliceCache::insert).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The slice is in the cache: this one, or one that was there before (and is as new or newer).
    Yes,
    /// What was offered may be outdated: take a new ticket and read again.
    Stale,
    /// Every slot of the set is pinned: write back first.
    Full,
}

impl SliceCache {
    /// A cache of `slice_entries` entries a slice (a power of two, 512 at most) for a table of `slices` slices,
    /// in at most `budget` bytes of entries. Memory is taken as slots are first filled.
    pub fn new(slice_entries: usize, slices: u64, budget: usize) -> Self {
        assert!(slice_entries.is_power_of_two() && slice_entries <= MAX_SLICE_ENTRIES);
        let affordable = (budget / (slice_entries * 8 * WAYS)).max(1);
        let useful = usize::try_from(slices.div_ceil(WAYS as u64))
            .unwrap_or(usize::MAX)
            .max(1);
        // Rounded down to a power of two, so that the hash can be a shift.
        let sets = 1usize
            << affordable
                .min(useful.checked_next_power_of_two().unwrap_or(affordable))
                .ilog2();
        let shift = 64 - (sets * WAYS).trailing_zeros();
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
            slice_entries,
            multiplier: if slices <= (sets * WAYS) as u64 {
                // Every slice has a slot of its own.
                1 << shift
            } else {
                // Fibonacci hashing: slices at a power-of-two stride spread over all sets.
                0x9e37_79b9_7f4a_7c15
            },
            shift,
        }
    }

    /// Entries in a slice.
    pub fn slice_entries(&self) -> usize {
        self.slice_entries
    }

    /// How many slices fit.
    pub fn slots(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// The `index`-th entry of slice `slice`, if it is in the cache.
    #[inline]
    pub fn get(&self, slice: u64, index: usize) -> Option<u64> {
        self.read(slice, |slots| Some(slots.get(index)?.load(Ordering::Acquire)))
    }

    /// The entries at `index` and after it, as they were inserted or as one [`update_pairs`](Self::update_pairs) left
    /// them both, if the slice is in the cache.
    #[inline]
    pub fn get_pair(&self, slice: u64, index: usize) -> Option<[u64; 2]> {
        self.read(slice, |slots| pair(slots, index))
            .or_else(|| self.locked_pair(slice, index))
    }

    /// How many of these entries of slice `slice`, as many of them as it has, are each `step` more than the one before,
    /// the first of them, which is `first`, not counted: 0 if it is not, or the slice not in the cache.
    pub fn even_run(&self, slice: u64, entries: Range<usize>, first: u64, step: u64) -> usize {
        let run = self.read(slice, |slots| {
            let mut next = Some(first);
            let even = |slot: &&AtomicU64| {
                let wanted = next;
                next = next.and_then(|entry| entry.checked_add(step));
                wanted == Some(slot.load(Ordering::Acquire))
            };
            let slots = slots.get(entries.start..)?.iter().take(entries.len());
            Some(slots.take_while(even).count())
        });
        run.unwrap_or(0).saturating_sub(1)
    }

    #[cold]
    fn locked_pair(&self, slice: u64, index: usize) -> Option<[u64; 2]> {
        let (set, _) = self.home(slice);
        let _fill = set.lock();
        pair(set.slots[set.way_of(slice)?].entries.get()?, index)
    }

    /// What `read` finds in a slice, if that is in the cache and does not move meanwhile.
    #[inline]
    fn read<T>(&self, slice: u64, read: impl FnOnce(&[AtomicU64]) -> Option<T>) -> Option<T> {
        let (set, home) = self.home(slice);
        let tag = slice + 1;
        let (way, version) = set
            .holds(home, tag)
            .or_else(|| set.search(tag).and_then(|way| set.holds(way, tag)))?;
        let slot = &set.slots[way];
        let found = read(slot.entries.get()?)?;
        fence(Ordering::Acquire);
        if slot.version.load(Ordering::Relaxed) != version {
            return None;
        }
        // Written only when it changes: a store on every hit would bounce the line between cores.
        if !slot.referenced.load(Ordering::Relaxed) {
            slot.referenced.store(true, Ordering::Relaxed);
        }
        Some(found)
    }

    /// Leave to read `slice` from the file and [insert](Self::insert) it.
    pub fn ticket(&self, slice: u64) -> Ticket {
        Ticket(self.home(slice).0.lock().generation)
    }

    /// Offers a slice read after `ticket` was taken. `entries` has [`slice_entries`](Self::slice_entries) of them.
    pub fn insert(&self, slice: u64, entries: &[u64], ticket: Ticket) -> Inserted {
        assert_eq!(entries.len(), self.slice_entries);
        let (set, home) = self.home(slice);
        let mut fill = set.lock();
        if set.way_of(slice).is_some() {
            return Inserted::Yes;
        }
        if fill.generation != ticket.0 {
            return Inserted::Stale;
        }
        let Some(way) = set.victim(&mut fill, home) else {
            return Inserted::Full;
        };
        if fill.changed & (1 << way) != 0 {
            fill.changed &= !(1 << way);
            fill.generation += 1;
        }
        let slot = &set.slots[way];
        let slots = slot
            .entries
            .get_or_init(|| entries.iter().map(|_| AtomicU64::new(0)).collect());
        set.moving(way, || {
            set.tags[way].store(slice + 1, Ordering::Relaxed);
            for (slot, entry) in slots.iter().zip(entries) {
                slot.store(*entry, Ordering::Relaxed);
            }
        });
        slot.referenced.store(true, Ordering::Relaxed);
        Inserted::Yes
    }

    /// Changes the entries from `index` on to `values` and pins the slice once if `pin`. `false`, and nothing
    /// done, if the slice is not in the cache.
    pub fn update(&self, slice: u64, index: usize, values: impl IntoIterator<Item = u64>, pin: bool) -> bool {
        self.change(slice, pin, |_, _, slots| {
            for (slot, value) in slots[index..].iter().zip(values) {
                slot.store(value, Ordering::Release);
            }
        })
    }

    /// As [`update`](Self::update), for pairs of entries: [`get_pair`](Self::get_pair) finds both of a pair as they
    /// were, or both as they are now.
    pub fn update_pairs(
        &self,
        slice: u64,
        index: usize,
        values: impl IntoIterator<Item = [u64; 2]>,
        pin: bool,
    ) -> bool {
        self.change(slice, pin, |set, way, slots| {
            set.moving(way, || {
                for (slot, value) in slots[index..].iter().zip(values.into_iter().flatten()) {
                    slot.store(value, Ordering::Relaxed);
                }
            });
        })
    }

    /// Changes a slice and pins it once if `pin`. `false`, and nothing done, if it is not in the cache.
    fn change(&self, slice: u64, pin: bool, change: impl FnOnce(&Set, usize, &[AtomicU64])) -> bool {
        let (set, _) = self.home(slice);
        let mut fill = set.lock();
        let Some(way) = set.way_of(slice) else {
            return false;
        };
        let Some(slots) = set.slots[way].entries.get() else {
            return false;
        };
        change(set, way, slots);
        fill.changed |= 1 << way;
        fill.pins[way] += u32::from(pin);
        true
    }

    /// A copy of the slice, if it is in the cache. Consistent with respect to [`update`](Self::update).
    pub fn copy(&self, slice: u64) -> Option<Box<[u64]>> {
        let (set, _) = self.home(slice);
        let _fill = set.lock();
        let slots = set.slots[set.way_of(slice)?].entries.get()?;
        Some(slots.iter().map(|slot| slot.load(Ordering::Relaxed)).collect())
    }

    /// Undoes one pin of [`update`](Self::update): the slice has been written back.
    pub fn unpin(&self, slice: u64) {
        let (set, _) = self.home(slice);
        let mut fill = set.lock();
        if let Some(way) = set.way_of(slice) {
            fill.pins[way] = fill.pins[way].saturating_sub(1);
        }
    }

    /// Drops every slice for which `gone` says so, pinned or not: its table no longer exists. Whoever is reading one
    /// from the file right now will not get it in.
    pub fn forget(&self, gone: impl Fn(u64) -> bool) {
        for set in &self.sets {
            let mut fill = set.lock();
            fill.generation += 1;
            for way in 0..WAYS {
                let tag = set.tags[way].load(Ordering::Relaxed);
                if tag != 0 && gone(tag - 1) {
                    set.moving(way, || set.tags[way].store(0, Ordering::Relaxed));
                    fill.pins[way] = 0;
                    fill.changed &= !(1 << way);
                }
            }
        }
    }

    /// The set of a slice, and which way of it is its home.
    #[inline]
    fn home(&self, slice: u64) -> (&Set, usize) {
        let slot = (slice.wrapping_mul(self.multiplier) >> self.shift) as usize;
        (&self.sets[slot / WAYS], slot % WAYS)
    }
}

impl Set {
    fn lock(&self) -> MutexGuard<'_, Fill> {
        // Nothing that runs under this lock can leave it half changed.
        self.fill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change that no reader may see half of. The set is locked.
    fn moving(&self, way: usize, change: impl FnOnce()) {
        let current = &self.slots[way].version;
        let version = current.load(Ordering::Relaxed);
        current.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change();
        current.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Whether a way has this tag and is not moving; it, and the version that it has as long as that stays so.
    #[inline]
    fn holds(&self, way: usize, tag: u64) -> Option<(usize, u32)> {
        let version = self.slots[way].version.load(Ordering::Acquire);
        let holds = self.tags[way].load(Ordering::Relaxed) == tag && version & 1 == 0;
        holds.then_some((way, version))
    }

    /// The way with this tag.
    fn search(&self, tag: u64) -> Option<usize> {
        // Without a branch for each: which way a slice is in can't be predicted.
        let ways = self.tags.iter().enumerate();
        let found = ways.fold(0u32, |found, (way, t)| {
            found | u32::from(t.load(Ordering::Relaxed) == tag) << way
        });
        (found != 0).then(|| found.trailing_zeros() as usize % WAYS)
    }

    /// Where a slice is. Stable while the set is locked.
    fn way_of(&self, slice: u64) -> Option<usize> {
        self.tags
            .iter()
            .position(|tag| tag.load(Ordering::Relaxed) == slice + 1)
    }

    /// The slot to give up: an empty one, `home` first, or the first unpinned one that was not read since the hand passed.
    fn victim(&self, fill: &mut Fill, home: usize) -> Option<usize> {
        let is_empty = |way: &usize| self.tags[*way].load(Ordering::Relaxed) == 0;
        if let Some(empty) = [home].into_iter().chain(0..WAYS).find(is_empty) {
            return Some(empty);
        }
        // Twice round: the first clears the bits.
        for _ in 0..2 * WAYS {
            let way = fill.hand;
            fill.hand = (fill.hand + 1) % WAYS;
            if fill.pins[way] == 0 && !self.slots[way].referenced.swap(false, Ordering::Relaxed) {
                return Some(way);
            }
        }
        None
    }
}

fn pair(slots: &[AtomicU64], index: usize) -> Option<[u64; 2]> {
    let [first, second] = slots.get(index..)?.first_chunk()?;
    Some([first.load(Ordering::Relaxed), second.load(Ordering::Relaxed)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of one set of 8 slices of 4 entries.
    fn small() -> SliceCache {
        SliceCache::new(4, 1 << 20, 1)
    }

    fn fill(cache: &SliceCache, slice: u64) -> Inserted {
        cache.insert(
            slice,
            &[slice, slice + 1, slice + 2, slice + 3],
            cache.ticket(slice),
        )
    }

    #[test]
    fn gives_back_what_was_inserted() {
        let cache = SliceCache::new(512, 1000, 1 << 20);
        let entries: Vec<u64> = (0..512).collect();
        assert_eq!(cache.get(7, 3), None);
        assert_eq!(cache.insert(7, &entries, cache.ticket(7)), Inserted::Yes);
        assert_eq!(cache.get(7, 3), Some(3));
        assert_eq!(cache.get(8, 3), None);
    }

    #[test]
    fn runs_go_as_far_as_entries_are_even() {
        let cache = small();
        let mut entries = [0; 4];
        for step in [0, 64] {
            for (place, entry) in (0..).zip(&mut entries) {
                *entry = 1000 + place * step;
            }
            let slice = 1 + step;
            assert_eq!(cache.even_run(slice, 0..9, 1000, step), 0, "it is not there");
            cache.insert(slice, &entries, cache.ticket(slice));
            assert_eq!(cache.even_run(slice, 0..9, 1000, step), 3);
            assert_eq!(cache.even_run(slice, 1..9, 1000 + step, step), 2);
            assert_eq!(cache.even_run(slice, 0..9, 1000, step + 1), 0);
            assert_eq!(cache.even_run(slice, 0..9, 1001, step), 0, "it is another by now");
            assert_eq!(cache.even_run(slice, 3..9, 1000 + 3 * step, step), 0);
            assert_eq!(cache.even_run(slice, 4..9, 1000, step), 0);
            assert_eq!(
                cache.even_run(slice, 0..2, 1000, step),
                1,
                "no more was asked for"
            );
            assert_eq!(cache.even_run(slice, 0..1, 1000, step), 0);
            cache.update(slice, 2, [1], false);
            assert_eq!(cache.even_run(slice, 0..9, 1000, step), 1);
            cache.update(slice, 0, [u64::MAX, 63], false);
            assert_eq!(
                cache.even_run(slice, 0..9, u64::MAX, 64),
                0,
                "no sum goes past the end"
            );
        }
    }

    #[test]
    fn a_table_that_fits_is_never_evicted() {
        for slices in [1, 8, 9, 100, 128] {
            let cache = SliceCache::new(4, slices, 1 << 20);
            for slice in 0..slices {
                fill(&cache, slice);
            }
            assert!(
                (0..slices).all(|slice| cache.get(slice, 0) == Some(slice)),
                "{slices} slices"
            );
        }
    }

    #[test]
    fn evicts_what_was_not_read() {
        let cache = small();
        for slice in 0..8 {
            fill(&cache, slice);
        }
        // The first pass of the hand clears every bit and takes slot 0; then only slice 5 is read.
        fill(&cache, 100);
        assert_eq!(cache.get(5, 0), Some(5));
        for slice in 101..107 {
            fill(&cache, slice);
        }
        assert_eq!(cache.get(5, 0), Some(5));
        assert_eq!(cache.get(1, 0), None);
    }

    #[test]
    fn a_pinned_slice_stays() {
        let cache = small();
        for slice in 0..8 {
            fill(&cache, slice);
            assert!(cache.update(slice, 1, [42], true));
        }
        assert_eq!(fill(&cache, 9), Inserted::Full);
        cache.unpin(3);
        assert_eq!(fill(&cache, 9), Inserted::Yes);
        assert_eq!(cache.get(3, 1), None);
        assert_eq!(cache.get(4, 1), Some(42));
    }

    #[test]
    fn what_was_read_before_a_changed_slice_left_is_stale() {
        let cache = small();
        fill(&cache, 0);
        cache.update(0, 0, [99], true);
        cache.unpin(0);
        let ticket = cache.ticket(0);
        for slice in 1..20 {
            fill(&cache, slice);
        }
        assert_eq!(cache.get(0, 0), None);
        assert_eq!(cache.insert(0, &[0; 4], ticket), Inserted::Stale);
        assert_eq!(fill(&cache, 0), Inserted::Yes);
    }

    #[test]
    fn forgotten_slices_are_gone_and_cannot_come_back() {
        let cache = small();
        fill(&cache, 1);
        fill(&cache, 2);
        cache.update(2, 0, [7], true);
        let ticket = cache.ticket(3);
        cache.forget(|slice| slice >= 2);
        assert_eq!((cache.get(1, 0), cache.get(2, 0)), (Some(1), None));
        assert_eq!(cache.insert(3, &[0; 4], ticket), Inserted::Stale);
    }

    /// How often threads do something: Miri, which tries orders of events that a processor may take, is slow.
    const OFTEN: u64 = if cfg!(miri) { 150 } else { 100_000 };

    #[test]
    fn readers_never_see_another_slices_entries() {
        // Entry i of slice s is s * 1000 + i, and more slices than slots: every hit must match its slice.
        let cache = small();
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let cache = &cache;
                scope.spawn(move || {
                    let mut x = thread + 1;
                    for _ in 0..OFTEN {
                        x = x
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let (slice, index) = ((x >> 33) % 24, ((x >> 60) % 4) as usize);
                        if let Some(entry) = cache.get(slice, index) {
                            assert_eq!(entry, slice * 1000 + index as u64);
                        } else {
                            let entries = [0, 1, 2, 3].map(|i| slice * 1000 + i);
                            cache.insert(slice, &entries, cache.ticket(slice));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn pairs_change_together() {
        let cache = small();
        fill(&cache, 0);
        assert!(cache.update_pairs(0, 2, [[0, 0]], false));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..OFTEN {
                    assert!(cache.update_pairs(0, 2, [[i, u64::MAX - i]], false));
                }
                done.store(true, Ordering::Release);
            });
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let [first, second] = cache.get_pair(0, 2).expect("it is never evicted");
                    assert!((first, second) == (0, 0) || second == u64::MAX - first);
                    assert!(last <= first);
                    last = first;
                }
            });
        });
        assert_eq!(cache.get_pair(0, 0), Some([0, 1]));
        assert_eq!(cache.get_pair(0, 3), None);
        assert_eq!(cache.get_pair(1, 0), None);
    }
}
