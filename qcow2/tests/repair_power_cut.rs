//! Power cuts during a repair: wherever it is cut, what could be read still can be and reads the same, no refcount or flag
//! is more dangerous than it was, and another repair finishes the job.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::test_utils::{Recorder, seeds};
use block::{BlockDevice, MemStorage, Storage};
use qcow2::{CheckOptions, Finding, Header, Image, OpenOptions, RepairChange, RepairOptions, RepairReport};

fn repair(storage: &dyn Storage) -> RepairReport {
    qcow2::repair(storage, &RepairOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })
    .expect("repair")
}

fn check(storage: &dyn Storage) -> qcow2::CheckReport {
    qcow2::check(storage, &CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })
    .expect("check")
}

/// The disk, or nothing if no reader opens the image.
fn content(storage: &MemStorage) -> Option<Vec<u8>> {
    let image = Image::open(Arc::new(storage.clone()), OpenOptions::default()).ok()?;
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

/// A sound image of 256 KiB in QEMU's hand, with two snapshots of which the first shares clusters with the disk.
fn sound(options: &str) -> MemStorage {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("image");
    let image = common::text(&path);
    common::run_ok(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, image, "256k"],
    );
    let io = |commands: &[&str]| {
        let mut args = vec!["-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(image);
        common::run_ok("qemu-io", &args);
    };
    io(&["write -P 1 0 60k", "write -P 2 100k 30k"]);
    common::run_ok("qemu-img", &["snapshot", "-c", "first", image]);
    io(&["write -P 3 20k 90k", "write -P 4 200k 20k"]);
    common::run_ok("qemu-img", &["snapshot", "-c", "second", image]);
    io(&["write -P 5 8k 30k"]);
    common::load(&path)
}

/// The words of an image in memory, and where its tables are.
struct Damaged {
    storage: MemStorage,
    header: Header,
}

impl Damaged {
    fn new(options: &str) -> Self {
        let storage = sound(options);
        let header = Header::read(&storage).expect("a sound header");
        Self { storage, header }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.storage.read_exact_at(&mut bytes, at).expect("memory");
        u64::from_be_bytes(bytes)
    }

    fn set(&self, at: u64, bytes: &[u8]) {
        self.storage.write_all_at(bytes, at).expect("memory");
    }

    /// Offsets of the used entries of the first L2 tables.
    fn entries(&self) -> Vec<u64> {
        let (start, end) = (self.header.l1_offset.0, u64::from(self.header.l1_entries) * 8);
        let tables = (0..end)
            .step_by(8)
            .map(|at| self.word(start + at) & 0x00ff_ffff_ffff_fe00);
        let size = self.header.geometry.cluster_size();
        tables
            .filter(|table| *table != 0)
            .flat_map(|table| (table..table + size).step_by(8))
            .filter(|at| self.word(*at) != 0)
            .collect()
    }

    /// Flips COPIED in some entries, and gives clusters of other entries away.
    fn scramble(&self) {
        for (number, at) in self.entries().into_iter().enumerate() {
            if number % 3 == 0 {
                self.set(at, &(self.word(at) ^ 1 << 63).to_be_bytes());
            }
        }
        let block = self.word(self.header.refcount_table_offset.0);
        // 16-bit refcounts: some too low, some too high.
        for (cluster, value) in [
            (5u64, 0u16),
            (9, 7),
            (11, 0),
            (14, 2),
            (20, 1),
            (23, 0),
            (26, 5),
            (31, 0),
        ] {
            self.set(block + cluster * 2, &value.to_be_bytes());
        }
    }
}

/// Repairs an image and cuts the power everywhere. The repair must make a change of each kind in `expected`.
fn torture(damaged: &Damaged, what: &str, expected: &[fn(&RepairChange) -> bool]) {
    let before = content(&damaged.storage);
    let recorder = Recorder::new();
    let storage = recorder.storage(damaged.storage.clone());
    let report = repair(&*storage);
    for (number, kind) in expected.iter().enumerate() {
        assert!(
            report.changes.iter().any(kind),
            "{what}: no {number} in {:?}",
            report.changes
        );
    }
    assert!(report.after.is_clean(), "{what}: {:?}", report.after);
    let readable = before
        .clone()
        .or_else(|| content(&storage.snapshot()))
        .expect("readable");
    let states = recorder.crash_states();
    for point in states.points() {
        for cut in seeds(6) {
            let what = format!("{what}, point {point}, cut {cut}");
            let disk = states.at(point, cut).remove(0);
            if before.is_some() {
                assert!(
                    content(&disk).as_ref() == Some(&readable),
                    "{what}: reads differently"
                );
            }
            // (A refcount that can't be read is none that is wrong.)
            let now = check(&disk);
            let missing = |finding: &&Finding| match finding {
                Finding::CopiedData { entry, .. } | Finding::CopiedL2Table { entry, .. } => entry >> 63 == 0,
                _ => false,
            };
            // A missing flag costs a copy and harms nobody.
            let dangers = |report: &qcow2::CheckReport| {
                report.corruptions - report.findings.iter().filter(missing).count() as u64
            };
            assert!(
                dangers(&now) <= dangers(&report.before),
                "{what}: {:?}",
                now.findings
            );
            let again = repair(&disk);
            assert!(again.after.is_clean(), "{what}: {:?}", again.after);
            assert!(
                content(&disk).as_ref() == Some(&readable),
                "{what}: reads differently after all"
            );
            if cut == 0 {
                let (code, words) = common::qemu_check(&disk.to_vec());
                assert_eq!(code, 0, "{what}: {words}");
            }
        }
    }
}

const CUT: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::L1Cut { .. });
const RAISED: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::Raised { .. });
const LOWERED: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::Lowered { .. });
const CLEARED: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::CopiedCleared { .. });
const SET: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::CopiedSet { .. });
const REBUILT: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::Rebuilt { .. });
const SNAPSHOTS: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::SnapshotTable { .. });
const ZEROED: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::Preallocated { .. });
const UNMARKED: fn(&RepairChange) -> bool = |change| matches!(change, RepairChange::Unmarked);

#[test]
fn an_l1_table_cut_where_it_lies_over_something_else() {
    let damaged = Damaged::new("cluster_size=2k");
    damaged.scramble();
    let l1_to_end = damaged.storage.len().expect("memory") - damaged.header.l1_offset.0;
    damaged.set(36, &((l1_to_end / 8) as u32).to_be_bytes());
    let needed = damaged.header.l1_entries;
    let repaired = damaged.storage.clone();
    let report = repair(&repaired);
    let cut = RepairChange::L1Cut { entries: needed };
    assert_eq!(report.changes.first(), Some(&cut), "{report:?}");
    torture(&damaged, "an L1 table that is too long", &[CUT, RAISED]);
}

#[test]
fn refcounts_and_flags() {
    for options in ["cluster_size=2k", "cluster_size=4k,compat=0.10"] {
        let damaged = Damaged::new(options);
        damaged.scramble();
        torture(&damaged, options, &[RAISED, LOWERED, CLEARED, SET]);
    }
}

#[test]
fn a_refcount_structure_made_anew() {
    for options in ["cluster_size=512", "cluster_size=4k,refcount_bits=8"] {
        let damaged = Damaged::new(options);
        let table = damaged.header.refcount_table_offset.0;
        // A block at a place where none can be, and one that is missing.
        damaged.set(table, &0x1234_0200u64.to_be_bytes());
        damaged.set(table + 8, &[0; 8]);
        // Marked corrupt, as QEMU does when it notices.
        damaged.set(79, &[2]);
        torture(&damaged, options, &[REBUILT, UNMARKED]);
    }
}

#[test]
fn a_snapshot_table_written_anew() {
    let damaged = Damaged::new("cluster_size=1k");
    let table = damaged.header.snapshots_offset.0;
    // The first entry loses its extra data to its name, which is then too long to be one but is not looked at.
    let mut names = [0; 2];
    damaged
        .storage
        .read_exact_at(&mut names, table + 14)
        .expect("memory");
    let len = u16::from_be_bytes(names) + 24;
    damaged.set(table + 14, &len.to_be_bytes());
    damaged.set(table + 36, &[0; 4]);
    damaged.scramble();
    let repaired = damaged.storage.clone();
    repair(&repaired);
    let (code, words) = common::qemu_check(&repaired.to_vec());
    assert_eq!(code, 0, "{words}");
    torture(&damaged, "snapshots", &[SNAPSHOTS, LOWERED]);
}

#[test]
fn zero_clusters_at_impossible_places() {
    let damaged = Damaged::new("cluster_size=4k");
    let entries = damaged.entries();
    for at in entries.iter().step_by(4) {
        damaged.set(*at, &(damaged.word(*at) & !(1 << 63) | 0x201).to_be_bytes());
    }
    let repaired = damaged.storage.clone();
    let report = repair(&repaired);
    assert!(
        report.changes.iter().any(ZEROED) && report.after.is_clean(),
        "{report:?}"
    );
    torture(&damaged, "zero clusters", &[ZEROED, LOWERED]);
}
