//! Hosts that fail: every call that changes the file is made to, one by one.
//!
//! One sequence of requests is run again and again. Each time another call fails, once or from then on, with an I/O
//! error or a full disk. Then some request must have said so; what did succeed must be there; and what lies in the
//! file must open, be whole but for leaks, and hold what was flushed.
//!
//! The unit of the book-keeping is a sector that holds one byte throughout.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::test_utils::{Fault, FaultStorage, IoOp, Rng};
use block::{Access, Backing, BlockDevice, MemStorage, Resize, Result, Storage, ZeroMode};
use qcow2::{CheckOptions, CheckReport, Header, Image, IncompatibleFeatures, OpenOptions};
use tests::{Lab, Shape};

const SECTOR: u64 = 512;
/// Longest disk, in sectors.
const LONGEST: u64 = 320;
/// Bytes of the backing file; what it holds is this byte.
const BELOW: u64 = 70 << 10;
const BELOW_BYTE: u8 = 0xbb;

/// Requests in sectors; `byte` is what is written.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write { at: u64, len: u64, byte: u8 },
    Compressed { at: u64, len: u64, byte: u8 },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
    Resize { sectors: u64 },
    Flush,
}

fn steps(shape: Shape, seed: u64) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let cluster = shape.cluster_size() / SECTOR;
    let mut sectors = LONGEST / 2;
    let mut steps = Vec::new();
    for number in 1..60u8 {
        let at = rng.below(sectors);
        let len = (1 + rng.below(3 * cluster + 4)).min(sectors - at);
        steps.push(match rng.below(12) {
            0 => Step::Zero {
                at,
                len,
                unmap: rng.coin(),
            },
            1 | 2 => Step::Discard { at, len },
            3 | 4 => Step::Compressed {
                at: at / cluster * cluster,
                len: cluster.min(sectors - at / cluster * cluster),
                byte: number,
            },
            5 => {
                sectors = 1 + rng.below(LONGEST);
                Step::Resize { sectors }
            }
            6 | 7 => Step::Flush,
            _ => Step::Write {
                at,
                len,
                byte: number,
            },
        });
    }
    steps.push(Step::Flush);
    steps
}

impl Step {
    fn apply(self, image: &Image) -> Result<()> {
        match self {
            Self::Write { at, len, byte } => {
                image.write_at(&vec![byte; (len * SECTOR) as usize], at * SECTOR)
            }
            Self::Compressed { at, len, byte } => {
                let mut cluster = vec![byte; (len * SECTOR) as usize];
                cluster.resize(image.geometry().cluster_size() as usize, 0);
                let writer = image.compressed().expect("qcow2 compresses");
                match writer.compress(&cluster)? {
                    Some(compressed) => writer.write_compressed_at(&compressed, at * SECTOR),
                    None => image.write_at(&cluster[..(len * SECTOR) as usize], at * SECTOR),
                }
            }
            Self::Zero { at, len, unmap } => {
                let mode = if unmap {
                    ZeroMode::Unmap
                } else {
                    ZeroMode::Allocate
                };
                image.zero_at(at * SECTOR, len * SECTOR, mode)
            }
            Self::Discard { at, len } => image.discard_at(at * SECTOR, len * SECTOR),
            Self::Resize { sectors } => {
                let how = Resize {
                    shrink: true,
                    ..Resize::default()
                };
                image.resize(sectors * SECTOR, how)
            }
            Self::Flush => image.flush(),
        }
    }
}

/// What the disk may hold, sector by sector up to the longest that it can be: any of these bytes.
#[derive(Clone, Debug)]
struct Book {
    shape: Shape,
    over_backing: bool,
    sizes: Vec<u64>,
    /// As the disk reads now.
    now: Vec<Vec<u8>>,
    /// As it may read from the file alone.
    stored: Vec<Vec<u8>>,
}

impl Book {
    fn new(shape: Shape, over_backing: bool) -> Self {
        let below = if over_backing { BELOW / SECTOR } else { 0 };
        let byte = |sector| if sector < below { BELOW_BYTE } else { 0 };
        let now: Vec<_> = (0..LONGEST).map(|sector| vec![byte(sector)]).collect();
        let mut book = Self {
            shape,
            over_backing,
            sizes: vec![LONGEST / 2],
            stored: now.clone(),
            now,
        };
        // What a longer disk gets is zeros, whatever lies below.
        for sector in LONGEST / 2..LONGEST {
            book.now[sector as usize] = vec![0];
            book.stored[sector as usize] = vec![0];
        }
        book
    }

    /// What a step did, or tried to do.
    fn record(&mut self, step: Step, done: bool) {
        let size = *self.sizes.last().expect("a size");
        match step {
            Step::Write { at, len, byte } | Step::Compressed { at, len, byte } => {
                self.set(at, len, byte, done);
            }
            Step::Zero { at, len, .. } => self.set(at, len, 0, done),
            Step::Discard { .. } if self.shape.v2 && self.over_backing => {}
            Step::Discard { at, len } => {
                let cluster = self.shape.cluster_size() / SECTOR;
                let start = at.next_multiple_of(cluster);
                let end = if at + len == size {
                    size
                } else {
                    (at + len) / cluster * cluster
                };
                if self.shape.extended_l2 {
                    // Subclusters are whole sectors here; those of a compressed cluster stay.
                    self.set(at, len, 0, false);
                }
                self.set(start, end.saturating_sub(start), 0, done);
            }
            Step::Resize { sectors } => {
                let shorter = sectors.min(size);
                self.set(shorter, LONGEST - shorter, 0, done);
                if done {
                    self.sizes = vec![sectors];
                } else {
                    self.sizes.insert(0, sectors);
                }
            }
            Step::Flush if done => self.stored.clone_from(&self.now),
            Step::Flush => {}
        }
    }

    fn set(&mut self, at: u64, len: u64, byte: u8, done: bool) {
        for sector in at as usize..(at + len) as usize {
            if done {
                self.now[sector].clear();
            }
            self.now[sector].push(byte);
            self.stored[sector].push(byte);
        }
    }
}

/// Fails unless the disk reads as one of the `allowed`.
fn judge(image: &Image, allowed: &[Vec<u8>], what: &str) {
    let size = image.size() / SECTOR;
    let mut disk = vec![0x5a; image.size() as usize];
    image
        .read_at(&mut disk, 0)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    for (number, sector) in disk.chunks(SECTOR as usize).enumerate() {
        let byte = sector[0];
        // A write may be cut off inside a cluster, and never inside a sector here.
        assert!(
            sector.iter().all(|other| *other == byte) && allowed[number].contains(&byte),
            "{what}: sector {number} of {size} holds {byte:#x}, not one of {:x?}",
            allowed[number]
        );
    }
}

struct Case {
    shape: Shape,
    over_backing: bool,
    seed: u64,
}

impl Case {
    fn template(&self) -> MemStorage {
        let storage = MemStorage::new();
        let backing = self.over_backing.then_some(("base.raw", "raw"));
        let options = self.shape.create_options(LONGEST / 2 * SECTOR, backing);
        qcow2::create(&storage, &options).expect("a new image");
        storage
    }

    fn open(&self, storage: Arc<dyn Storage>) -> Result<Image> {
        let backing = if self.over_backing {
            let below = Arc::new(MemStorage::from(vec![BELOW_BYTE; BELOW as usize]));
            Backing::Device(Arc::new(raw::Image::open(below, Access::READ)?))
        } else {
            Backing::None
        };
        let options = OpenOptions {
            access: Access::WRITE,
            backing,
            l2_cache: 1,
            ..OpenOptions::default()
        };
        Image::open(storage, options)
    }

    /// Calls that a run without faults makes.
    fn calls(&self, ops: &[IoOp]) -> u64 {
        let faults = Arc::new(FaultStorage::new(Arc::new(self.template())));
        let image = self.open(faults.clone()).expect("open");
        let before = faults.calls(ops);
        let mut book = Book::new(self.shape, self.over_backing);
        for step in steps(self.shape, self.seed) {
            step.apply(&image)
                .unwrap_or_else(|error| panic!("{step:?}: {error}"));
            book.record(step, true);
        }
        let calls = faults.calls(ops) - before;
        judge(&image, &book.now, "without faults");
        calls
    }

    /// One run with a fault. What the file holds then, as if the process had been killed there.
    fn run(&self, fault: &Fault, what: &str) -> MemStorage {
        let memory = Arc::new(self.template());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        let image = self.open(faults.clone()).expect("open");
        faults.inject(fault.clone());
        let mut book = Book::new(self.shape, self.over_backing);
        let mut failures = 0;
        for step in steps(self.shape, self.seed) {
            let failed_before = faults.failed();
            let size = image.size() / SECTOR;
            if !fits(step, size) {
                // After a resize that failed, what was meant for the rest of the disk cannot be.
                continue;
            }
            let result = step.apply(&image);
            assert!(
                result.is_err() || faults.failed() == failed_before,
                "{what}: {step:?} succeeded although the host failed"
            );
            failures += u64::from(result.is_err());
            book.record(step, result.is_ok());
        }
        assert!(faults.failed() > 0 && failures > 0, "{what}: nothing failed");
        faults.heal();
        judge(&image, &book.now, &format!("{what}, going on"));

        let stored = MemStorage::clone(&memory);
        self.judge_stored(&stored, &book, &format!("{what}, killed"));
        let closed = image.close();
        let report = self.judge_stored(&memory, &book, &format!("{what}, closed"));
        assert!(
            closed.is_err() || report.leaks == 0,
            "{what}: closed with leaks: {:?}",
            report.findings
        );
        stored
    }

    /// Judges what the file holds; one that is marked dirty as opening it for writing makes it.
    fn judge_stored(&self, stored: &MemStorage, book: &Book, what: &str) -> CheckReport {
        let header = Header::read(stored).expect("a header");
        let dirty = header.incompatible.contains(IncompatibleFeatures::DIRTY);
        assert!(self.shape.lazy || !dirty, "{what}: nothing was to be postponed");
        let recovered = stored.clone();
        if dirty {
            qcow2::recover(&recovered).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        self.judge_sound(&recovered, book, what)
    }

    fn judge_sound(&self, stored: &MemStorage, book: &Book, what: &str) -> CheckReport {
        let report = qcow2::check(stored, &CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            report.corruptions + report.check_errors == 0,
            "{what}: {:?}",
            report.findings
        );
        let again = Arc::new(MemStorage::clone(stored));
        let image = self
            .open(again.clone())
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        judge(&image, &book.stored, what);
        // And it can be used again.
        image.write_at(&[1; 512], 0).expect("write");
        image.close().expect("close");
        let after = qcow2::check(&*again, &CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        assert_eq!(after.expect("a check").corruptions, 0, "{what}: written to again");
        report
    }

    fn every_call_fails(&self, ops: &[IoOp]) {
        let calls = self.calls(ops);
        assert!(calls > 40, "only {calls} calls");
        let lab = Lab::new();
        for call in 1..=calls {
            for error in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
                for (lasts, fault) in [
                    ("once", Fault::nth(call, error)),
                    ("from then on", Fault::from_nth(call, error)),
                ] {
                    let what = format!("seed {}: call {call} fails {lasts}, {error}", self.seed);
                    let stored = self.run(&fault.on(ops), &what);
                    if call % 40 == 7 && lasts == "once" && !self.shape.lazy {
                        self.judge_by_qemu(&lab, &stored, &what);
                    }
                }
            }
        }
    }

    fn judge_by_qemu(&self, lab: &Lab, stored: &MemStorage, what: &str) {
        std::fs::write(lab.path("image"), stored.to_vec()).expect("room for the image");
        std::fs::write(lab.path("base.raw"), vec![BELOW_BYTE; BELOW as usize]).expect("room for the base");
        let figures = lab.assert_same_check("image");
        assert_eq!(
            figures.corruptions + figures.check_errors,
            0,
            "{what}, shape {:?}",
            self.shape
        );
    }
}

/// Whether a step lies on a disk of `size` sectors.
fn fits(step: Step, size: u64) -> bool {
    match step {
        Step::Write { at, len, .. }
        | Step::Compressed { at, len, .. }
        | Step::Zero { at, len, .. }
        | Step::Discard { at, len } => at + len <= size,
        Step::Resize { .. } | Step::Flush => true,
    }
}

fn shape(cluster_bits: u32, refcount_order: u32) -> Shape {
    Shape {
        cluster_bits,
        refcount_order,
        v2: false,
        zstd: false,
        extended_l2: false,
        lazy: false,
    }
}

#[test]
fn changes_of_an_image_with_small_clusters() {
    for seed in 0..2 {
        let case = Case {
            shape: shape(9, 6),
            over_backing: false,
            seed,
        };
        case.every_call_fails(&IoOp::CHANGES);
    }
}

/// What a failure leaves is dirty more often than not.
#[test]
fn changes_of_an_image_with_lazy_refcounts() {
    for (seed, over_backing) in [(9, false), (10, true)] {
        let case = Case {
            shape: Shape {
                lazy: true,
                ..shape(9, 6)
            },
            over_backing,
            seed,
        };
        case.every_call_fails(&IoOp::CHANGES);
    }
}

#[test]
fn changes_of_an_overlay() {
    for seed in 2..5 {
        let case = Case {
            shape: shape(12, 4),
            over_backing: true,
            seed,
        };
        case.every_call_fails(&IoOp::CHANGES);
    }
}

#[test]
fn changes_of_an_overlay_with_subclusters() {
    for seed in 7..9 {
        let case = Case {
            shape: Shape {
                extended_l2: true,
                ..shape(14, 4)
            },
            over_backing: true,
            seed,
        };
        case.every_call_fails(&IoOp::CHANGES);
    }
}

#[test]
fn changes_of_an_old_overlay() {
    let case = Case {
        shape: Shape {
            v2: true,
            ..shape(10, 4)
        },
        over_backing: true,
        seed: 5,
    };
    case.every_call_fails(&IoOp::CHANGES);
}

#[test]
fn reads_too() {
    let case = Case {
        shape: shape(9, 3),
        over_backing: true,
        seed: 6,
    };
    case.every_call_fails(&IoOp::ALL);
}

/// A failed write of metadata leaves it in doubt what the file says: nothing is written on top of that.
#[test]
fn after_a_failed_flush_writes_are_refused_with_the_first_error_and_reads_go_on() {
    let case = Case {
        shape: shape(12, 4),
        over_backing: true,
        seed: 0,
    };
    for op in [IoOp::Write, IoOp::Sync] {
        let faults = Arc::new(FaultStorage::new(Arc::new(case.template())));
        let image = case.open(faults.clone()).expect("open");
        image.write_at(&[1; 5000], 3000).expect("write");
        faults.inject(Fault::nth(1, io::ErrorKind::BrokenPipe).on(&[op]));
        let first = image.flush().unwrap_err().to_string();
        assert!(first.contains("injected fault"), "{first}");
        let changes = faults.calls(&IoOp::CHANGES);
        let results = [
            image.write_at(&[2; 512], 0),
            image.write_at(&[2; 512], 3000),
            image.zero_at(0, 8192, ZeroMode::Unmap),
            image.discard_at(0, 8192),
            image.resize(1 << 20, Resize::default()),
            image.flush(),
        ];
        for result in results {
            assert_eq!(result.unwrap_err().to_string(), first);
        }
        let mut seen = [0; 5002];
        image.read_at(&mut seen, 2999).expect("reads go on");
        assert!(seen[0] == BELOW_BYTE && seen[5001] == BELOW_BYTE && seen[1..5001] == [1; 5000]);
        assert_eq!(image.close().unwrap_err().to_string(), first);
        assert_eq!(faults.calls(&IoOp::CHANGES), changes, "something was written");
    }
}

#[test]
fn a_fault_while_opening_is_an_error_and_changes_nothing() {
    let case = Case {
        shape: shape(9, 4),
        over_backing: false,
        seed: 0,
    };
    let template = case.template();
    let faults = Arc::new(FaultStorage::new(Arc::new(template.clone())));
    let image = case.open(faults.clone()).expect("open");
    let calls = faults.calls(&IoOp::ALL);
    drop(image);
    assert!(calls > 2);
    for call in 1..=calls {
        let memory = Arc::new(template.clone());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        faults.inject(Fault::nth(call, io::ErrorKind::Other));
        let opened = case.open(faults.clone());
        assert!(opened.is_err(), "call {call} of {calls}");
        assert!(memory.to_vec() == template.to_vec());
    }
}
