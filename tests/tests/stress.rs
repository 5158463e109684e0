//! Eight threads that write, zero, discard, read and flush one image, and a ninth that takes and deletes snapshots meanwhile.
//!
//! The disk is divided into units, each with an owner among the threads, so that clusters have several. What a unit holds follows
//! from its version, which its owner counts up: before a change, which may then be seen, and after it, which then must be. So
//! a snapshot holds of each sector a version between what had to be there when it was begun and what could when it was there.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::UNIX_EPOCH;

use block::test_utils::{Rng, seeds};
use block::{Access, Backing, BlockDevice, SnapshotSelector, ZeroMode};
use qcow2::{Image, OpenOptions, SnapshotProgress};
use tests::{Lab, Shape};

const THREADS: u64 = 8;
const SECTOR: usize = 512;
const UNITS: u64 = 160;
const CHANGES: usize = 300;

/// What is known of a unit.
#[derive(Default)]
struct Unit {
    /// The newest version that may be seen.
    begun: AtomicU64,
    /// The oldest.
    done: AtomicU64,
}

/// How a unit gets a version.
enum Change {
    Write,
    Zero(ZeroMode),
    Discard,
}

struct Stress {
    image: Image,
    units: Vec<Unit>,
    /// Bytes.
    unit: u64,
    working: AtomicUsize,
}

impl Stress {
    /// The first version is that of a new disk.
    fn change(&self, unit: u64, version: u64) -> Change {
        // Whole clusters alone are discarded for certain.
        let discards = self.unit.is_multiple_of(self.image.geometry().cluster_size());
        match (unit * 7 + version) % 8 {
            _ if version == 0 => Change::Discard,
            0 => Change::Zero(ZeroMode::Allocate),
            1 => Change::Zero(ZeroMode::Unmap),
            2 if discards => Change::Discard,
            _ => Change::Write,
        }
    }

    /// The byte that a unit is full of.
    fn byte(&self, unit: u64, version: u64) -> u8 {
        match self.change(unit, version) {
            Change::Write => ((unit * 31 + version) % 255 + 1) as u8,
            Change::Zero(_) | Change::Discard => 0,
        }
    }

    /// Fails unless each sector of a unit is of one of these versions.
    fn assert_of(&self, unit: u64, data: &[u8], [oldest, newest]: [u64; 2], what: &str) {
        for (number, sector) in data.chunks(SECTOR).enumerate() {
            let is = |version| sector.iter().all(|byte| *byte == self.byte(unit, version));
            assert!(
                (oldest..=newest).any(is),
                "{what}: sector {number} of unit {unit} holds {:#x} and is of no version from {oldest} to {newest}",
                sector[0]
            );
        }
    }

    /// What one of the threads does.
    fn work(&self, thread: u64, mut rng: Rng) {
        let mut data = vec![0; self.unit as usize];
        for _ in 0..CHANGES {
            let unit = rng.below(UNITS / THREADS) * THREADS + thread;
            let (state, at) = (&self.units[unit as usize], unit * self.unit);
            let version = state.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let changed = match self.change(unit, version) {
                Change::Write => {
                    data.fill(self.byte(unit, version));
                    self.image.write_at(&data, at)
                }
                Change::Zero(mode) => self.image.zero_at(at, self.unit, mode),
                Change::Discard => self.image.discard_at(at, self.unit),
            };
            changed.expect("a change");
            state.done.store(version, Ordering::SeqCst);
            if rng.below(16) == 0 {
                self.image.flush().expect("flush");
            }
            // Its own is what it was made, and others' nothing that never was.
            self.look(unit, &mut data);
            self.look(rng.below(UNITS), &mut data);
        }
        self.working.fetch_sub(1, Ordering::SeqCst);
    }

    fn look(&self, unit: u64, data: &mut [u8]) {
        let state = &self.units[unit as usize];
        let oldest = state.done.load(Ordering::SeqCst);
        self.image.read_at(data, unit * self.unit).expect("read");
        let newest = state.begun.load(Ordering::SeqCst);
        self.assert_of(unit, data, [oldest, newest], "read");
    }

    /// Takes snapshots until nobody works any more, and keeps four of them; the versions that each may hold.
    fn snapshots(&self) -> Vec<(String, Vec<[u64; 2]>)> {
        let go_on = &mut |_: SnapshotProgress| ControlFlow::Continue(());
        let mut kept: Vec<(String, Vec<[u64; 2]>)> = Vec::new();
        let mut taken = 0;
        while self.working.load(Ordering::SeqCst) > 0 {
            let name = format!("s{taken}");
            let oldest = self.units.iter().map(|unit| unit.done.load(Ordering::SeqCst));
            let oldest: Vec<u64> = oldest.collect();
            self.image
                .create_snapshot(&name, UNIX_EPOCH, go_on)
                .expect("a snapshot");
            let newest = self.units.iter().map(|unit| unit.begun.load(Ordering::SeqCst));
            kept.push((
                name,
                oldest.into_iter().zip(newest).map(<[u64; 2]>::from).collect(),
            ));
            taken += 1;
            if kept.len() > 4 {
                let (name, _) = kept.remove(taken % 4);
                let which = SnapshotSelector::name(&name);
                self.image.delete_snapshot(&which, go_on).expect("deleted");
            }
        }
        assert!(taken > 1, "{taken} snapshots");
        kept
    }
}

fn stress(shape: Shape, unit: u64, seed: u64) {
    let lab = Lab::new();
    lab.create("disk", shape, UNITS * unit, None);
    let file = raw::OpenOptions::new().write(true).open(lab.path("disk"));
    let options = OpenOptions {
        access: Access::WRITE,
        backing: Backing::None,
        // Little enough that slices are evicted and written back under way.
        l2_cache: 16 << 10,
        ..OpenOptions::default()
    };
    let stress = Stress {
        image: Image::open(Arc::new(file.expect("the file opens")), options).expect("the image opens"),
        units: (0..UNITS).map(|_| Unit::default()).collect(),
        unit,
        working: AtomicUsize::new(THREADS as usize),
    };
    let kept = thread::scope(|scope| {
        for thread in 0..THREADS {
            let stress = &stress;
            scope.spawn(move || stress.work(thread, Rng::new(seed * THREADS + thread)));
        }
        stress.snapshots()
    });
    let versions: Vec<[u64; 2]> = stress
        .units
        .iter()
        .map(|unit| {
            [
                unit.done.load(Ordering::SeqCst),
                unit.begun.load(Ordering::SeqCst),
            ]
        })
        .collect();
    // QEMU looks at what a flush has left in the file, before it is closed.
    stress.image.flush().expect("flush");
    std::fs::copy(lab.path("disk"), lab.path("flushed")).expect("room for a copy");
    stress.judge(&lab, "flushed", &[], &versions);
    for (name, versions) in &kept {
        stress.judge(&lab, "flushed", &["-l", name], versions);
    }
    let figures = lab.qemu_check("flushed").expect("a check");
    assert_eq!(figures.corruptions + figures.check_errors, 0, "flushed");
    stress.image.close().expect("close");
    lab.assert_clean("disk");
}

impl Stress {
    fn judge(&self, lab: &Lab, name: &str, selection: &[&str], versions: &[[u64; 2]]) {
        let seen = lab.qemu_reads(name, "qcow2", selection);
        let mut data = vec![0; self.unit as usize];
        for (unit, versions) in (0..).zip(versions) {
            seen.read_exact_at(&mut data, unit * self.unit).expect("read");
            self.assert_of(unit, &data, *versions, &format!("QEMU, {selection:?}"));
        }
    }
}

fn shape(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> Shape {
    Shape {
        cluster_bits,
        refcount_order,
        v2: false,
        zstd: false,
        extended_l2,
        lazy: false,
    }
}

#[test]
fn clusters_have_an_owner() {
    seeds(2).for_each(|seed| stress(shape(12, 4, false), 8 << 10, seed));
}

#[test]
fn clusters_have_several_owners() {
    seeds(2).for_each(|seed| stress(shape(16, 4, false), 6 << 10, seed));
}

#[test]
fn small_clusters() {
    seeds(2).for_each(|seed| stress(shape(9, 6, false), 2560, seed));
}

#[test]
fn subclusters() {
    seeds(2).for_each(|seed| stress(shape(14, 4, true), 2 << 10, seed));
}
