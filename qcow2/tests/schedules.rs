//! Threads on one image, whose every use of a lock or an atomic is a place where another may go on (`make schedules`).
//!
//! The order in which they do is drawn anew each time, by Shuttle, which runs one at a time: so a test meets orders that take
//! a machine years. What fails prints its schedule, and `shuttle::replay` runs that again. Atomics are in order here,
//! whatever they ask for: that they ask for enough is left to Miri (`make miri`).
//!
//! What a unit of the disk holds follows from its number and its version, which its owner counts up before a change,
//! when it may be seen, and after it, when it must be.
#![cfg(shuttle)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use block::slice_cache::SliceCache;
use block::test_utils::{Rng, seeds};
use block::{Access, BlockDevice, MemStorage, SnapshotSelector, ZeroMode};
use qcow2::{CheckOptions, CreateOptions, Image, OpenOptions};
use shuttle::rand::RngCore;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread;

const CLUSTER: u64 = 512;
/// What one slice of L2 entries maps: all of a table.
const SLICE: u64 = 64 * CLUSTER;
/// More slices than the cache has room for, which is 8.
const SLICES: u64 = 10;
/// A slice has two units that share a cluster, two clusters that are a unit each, and nothing else.
const UNITS: u64 = 4 * SLICES;
const CHANGES: usize = 6;

/// Runs `test` by schedules of two kinds: any order at all, and few changes of thread at places that are drawn. `TORTURE=10`
/// has ten times as many.
fn check(count: u64, test: fn()) {
    for seed in seeds(count) {
        run(RandomScheduler::new_from_seed(seed, 10), test);
        run(PctScheduler::new_from_seed(seed, 3, 10), test);
    }
}

fn run(scheduler: impl Scheduler + 'static, test: fn()) {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    shuttle::Runner::new(scheduler, config).run(test);
}

/// Random numbers that are part of the schedule.
fn rng() -> Rng {
    Rng::new(shuttle::rand::thread_rng().next_u64())
}

#[derive(Default)]
struct Unit {
    /// The newest version that may be seen.
    begun: AtomicU64,
    /// The oldest.
    done: AtomicU64,
}

/// Where a unit lies on the disk, and how long it is.
fn place(unit: u64) -> (u64, u64) {
    let start = unit / 4 * SLICE;
    match unit % 4 {
        half @ 0..2 => (start + half * CLUSTER / 2, CLUSTER / 2),
        whole => (start + (whole - 1) * CLUSTER, CLUSTER),
    }
}

/// The byte that a unit is full of.
fn byte(unit: u64, version: u64) -> u8 {
    if version.is_multiple_of(3) {
        0
    } else {
        (unit * 6 + version) as u8
    }
}

struct Disk {
    storage: Arc<MemStorage>,
    image: Image,
    units: Vec<Unit>,
}

impl Disk {
    fn new() -> Self {
        let storage = Arc::new(MemStorage::new());
        let options = CreateOptions {
            size: SLICES * SLICE,
            cluster_bits: CLUSTER.ilog2(),
            ..CreateOptions::default()
        };
        qcow2::create(&*storage, &options).expect("an image");
        Self {
            image: open(&storage),
            storage,
            units: (0..UNITS).map(|_| Unit::default()).collect(),
        }
    }

    /// Changes a unit to its next version.
    fn change(&self, unit: u64) {
        let (at, len) = place(unit);
        let version = self.units[unit as usize].begun.fetch_add(1, Ordering::SeqCst) + 1;
        let changed = match byte(unit, version) {
            0 if version.is_multiple_of(2) && len == CLUSTER => self.image.discard_at(at, len),
            0 => self.image.zero_at(at, len, ZeroMode::Unmap),
            byte => self.image.write_at(&vec![byte; len as usize], at),
        };
        changed.expect("a change");
        self.units[unit as usize].done.store(version, Ordering::SeqCst);
    }

    /// Reads a unit: it must be of a version that could be there.
    fn look(&self, unit: u64) {
        let oldest = self.units[unit as usize].done.load(Ordering::SeqCst);
        let data = read(&self.image, unit);
        let newest = self.units[unit as usize].begun.load(Ordering::SeqCst);
        judge(unit, &data, oldest, newest);
    }

    /// What one of `threads` does. Every so many units are its own.
    fn work(&self, thread: u64, threads: u64, mut rng: Rng) {
        for _ in 0..CHANGES {
            let unit = rng.below(UNITS / threads) * threads + thread;
            self.change(unit);
            if rng.below(3) == 0 {
                self.image.flush().expect("flush");
            }
            self.look(unit);
            self.look(rng.below(UNITS));
        }
    }

    /// Closes the image: what is in the file then is sound, and all that was written.
    fn judge(self) {
        self.image.close().expect("close");
        let go_on = &mut |_| ControlFlow::Continue(());
        let report = qcow2::check(&*self.storage, &CheckOptions::default(), go_on).expect("a check");
        assert!(report.is_clean(), "{report:?}");
        let image = open(&self.storage);
        for (number, unit) in (0..).zip(&self.units) {
            let version = unit.done.load(Ordering::SeqCst);
            judge(number, &read(&image, number), version, version);
        }
    }
}

fn open(storage: &Arc<MemStorage>) -> Image {
    let options = OpenOptions {
        access: Access::WRITE,
        l2_cache: 1,
        ..OpenOptions::default()
    };
    Image::open(storage.clone(), options).expect("the image opens")
}

fn read(image: &Image, unit: u64) -> Vec<u8> {
    let (at, len) = place(unit);
    let mut data = vec![0xff; len as usize];
    image.read_at(&mut data, at).expect("read");
    data
}

fn judge(unit: u64, data: &[u8], oldest: u64, newest: u64) {
    for seen in data {
        let is = |version| *seen == byte(unit, version);
        assert!(
            (oldest..=newest).any(is),
            "unit {unit} holds {seen:#x} and is of no version from {oldest} to {newest}"
        );
    }
}

/// Starts threads and waits for them.
fn threads(count: u64, disk: Disk, work: fn(&Disk, u64)) -> Disk {
    let disk = Arc::new(disk);
    let threads: Vec<_> = (0..count)
        .map(|thread| {
            let disk = Arc::clone(&disk);
            thread::spawn(move || work(&disk, thread))
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread fails");
    }
    Arc::into_inner(disk).expect("the threads have ended")
}

#[test]
fn three_threads_share_an_image() {
    check(100, || {
        threads(3, Disk::new(), |disk, thread| disk.work(thread, 3, rng())).judge();
    });
}

#[test]
fn a_snapshot_is_taken_meanwhile() {
    check(50, || {
        let disk = threads(3, Disk::new(), |disk, thread| match thread {
            2 => snapshot(&disk.image),
            _ => disk.work(thread, 2, rng()),
        });
        disk.judge();
    });
}

fn snapshot(image: &Image) {
    let go_on = &mut |_| ControlFlow::Continue(());
    image
        .create_snapshot("one", UNIX_EPOCH, go_on)
        .expect("a snapshot");
    image.flush().expect("flush");
    let which = SnapshotSelector::name("one");
    image.delete_snapshot(&which, go_on).expect("deleted");
}

/// Two who free and allocate the same few clusters again and again, and one who reads.
#[test]
fn what_is_freed_is_not_reused_under_a_reader() {
    check(100, || {
        let disk = Disk::new();
        (0..4).for_each(|unit| disk.change(unit));
        let disk = threads(3, disk, |disk, thread| match thread {
            2 => (0..12).for_each(|round| disk.look(2 + round % 2)),
            _ => {
                for _ in 0..6 {
                    disk.change(2 + thread);
                    disk.image.flush().expect("flush");
                }
            }
        });
        disk.judge();
    });
}

/// A cache that has room for fewer slices than are read, and the first slice as it is in the file. A slice is its number and a
/// version.
struct Cached {
    cache: SliceCache,
    file: shuttle::sync::atomic::AtomicU64,
}

impl Cached {
    fn load(&self, slice: u64) {
        let ticket = self.cache.ticket(slice);
        let version = if slice == 0 {
            self.file.load(Ordering::SeqCst)
        } else {
            0
        };
        self.cache.insert(slice, &[slice, version], ticket);
    }

    /// Changes the first slice, writes it back and lets it go, again and again.
    fn write(&self) {
        for version in 1..3 {
            while !self.cache.update_pairs(0, 0, [[0, version]], true) {
                self.load(0);
            }
            self.file.store(version, Ordering::SeqCst);
            self.cache.unpin(0);
        }
    }

    /// Nobody sees another slice's entries, nor older ones than the file has.
    fn read(&self, slices: impl Iterator<Item = u64>) {
        for slice in slices {
            let oldest = self.file.load(Ordering::SeqCst);
            match self.cache.get_pair(slice, 0) {
                Some([seen, version]) => assert!(
                    seen == slice && (slice != 0 || version >= oldest),
                    "slice {slice} holds {seen}, {version} where the file has {oldest}"
                ),
                None => self.load(slice),
            }
        }
    }
}

#[test]
fn a_slice_is_never_another_one_nor_older_than_the_file() {
    check(1500, || {
        let cached = Arc::new(Cached {
            cache: SliceCache::new(2, 1 << 20, 1),
            file: 0.into(),
        });
        (10..18).for_each(|slice| cached.load(slice));
        let threads = [0, 1, 2].map(|number| {
            let cached = Arc::clone(&cached);
            thread::spawn(move || match number {
                0 => cached.write(),
                1 => cached.read([0; 3].into_iter()),
                // Others, so that none stays for long.
                _ => cached.read(1..11),
            })
        });
        for thread in threads {
            thread.join().expect("no thread fails");
        }
    });
}
