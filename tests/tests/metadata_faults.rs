//! Hosts that fail while snapshots and bitmaps are changed, or an image is repaired: every call is made to fail, one by
//! one, once or from then on, with an I/O error or a full disk.
//!
//! Whoever asked is told, unless what was asked for is there all the same. The file then holds all of what was before
//! or all of what was asked for, and nothing in between; it is whole but for leaks and missing COPIED flags, and another
//! run finishes the job.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use block::test_utils::{Fault, FaultStorage, IoOp};
use block::{Access, Backing, BlockDevice, MemStorage, Result, SnapshotSelector, Storage, ZeroMode};
use byteorder::{BE, ByteOrder};
use qcow2::{CheckOptions, CheckReport, Finding, Image, OpenOptions, RepairOptions, SnapshotProgress};
use tests::{Lab, Shape};

const SIZE: u64 = 80 << 10;
const BELOW: u64 = 70 << 10;

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn open(shape: Shape, storage: Arc<dyn Storage>, access: Access) -> Result<Image> {
    Image::open(storage, options(shape, access))
}

/// Images with subclusters lie over a backing file.
fn options(shape: Shape, access: Access) -> OpenOptions {
    let backing = if shape.extended_l2 {
        let below = Arc::new(MemStorage::from(vec![0xbb; BELOW as usize]));
        Backing::Device(Arc::new(raw::Image::open(below, Access::READ).expect("raw")))
    } else {
        Backing::None
    };
    OpenOptions {
        access,
        backing,
        ..OpenOptions::default()
    }
}

/// An image with data, zeros, two snapshots of different sizes, and, in version 3, three bitmaps.
fn template(shape: Shape) -> MemStorage {
    let storage = Arc::new(MemStorage::new());
    let backing = shape.extended_l2.then_some(("base.raw", "raw"));
    qcow2::create(&*storage, &shape.create_options(SIZE, backing)).expect("a new image");
    let image = open(shape, storage.clone(), Access::WRITE).expect("open");
    let wrote = |at: u64, byte| image.write_at(&[byte; 10_000], at).expect("write");
    wrote(0, 1);
    wrote(30_000, 2);
    image.zero_at(4096, 8192, ZeroMode::Allocate).expect("zero");
    image.create_snapshot("a", UNIX_EPOCH, &mut go_on).expect("take");
    wrote(20_000, 3);
    if !shape.v2 {
        image
            .resize(SIZE + 9 * 512, block::Resize::default())
            .expect("grow");
        let added = image.edit_bitmaps(|bitmaps| {
            bitmaps.add("on", Some(1024), true)?;
            bitmaps.add("off", Some(512), false)?;
            bitmaps.add("more", Some(4096), true)
        });
        added.expect("add");
    }
    wrote(12_000, 4);
    image.create_snapshot("b", UNIX_EPOCH, &mut go_on).expect("take");
    wrote(60_000, 5);
    image.close().expect("close");
    (*storage).clone()
}

/// A bitmap: its name, whether it is enabled, and what is dirty, if anybody knows.
type Track = (String, bool, Option<Vec<Range<u64>>>);

/// All that an image holds.
#[derive(Clone, Debug, PartialEq)]
struct State {
    disk: Vec<u8>,
    snapshots: Vec<(String, String, Vec<u8>)>,
    bitmaps: Vec<Track>,
}

fn read(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).expect("read");
    bytes
}

impl State {
    fn of(shape: Shape, storage: &Arc<MemStorage>) -> Result<Self> {
        let image = open(shape, storage.clone(), Access::READ)?;
        let mut snapshots = Vec::new();
        for snapshot in image.snapshots()? {
            let which = SnapshotSelector::id(&*snapshot.id);
            let shown = Image::open_snapshot(storage.clone(), &which, options(shape, Access::READ))?;
            snapshots.push((snapshot.id.clone(), snapshot.name.clone(), read(&shown)));
        }
        let mut bitmaps = Vec::new();
        for bitmap in image.bitmaps()? {
            let bits = (!bitmap.in_use)
                .then(|| image.dirty_bits(&bitmap.name))
                .transpose()?;
            let ranges = bits.map(|bits| bits.ranges().collect());
            bitmaps.push((bitmap.name, bitmap.auto, ranges));
        }
        Ok(Self {
            disk: read(&image),
            snapshots,
            bitmaps,
        })
    }
}

fn check(storage: &MemStorage, what: &str) -> CheckReport {
    let report = qcow2::check(storage, &CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    });
    report.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Nothing is wrong but leaks, and COPIED flags that are missing: that wastes room as well, and harms nobody.
fn assert_whole(storage: &MemStorage, what: &str) {
    let report = check(storage, what);
    let missing = report.findings.iter().filter(|finding| {
        matches!(finding, Finding::CopiedData { entry, refcount: 1, .. }
            | Finding::CopiedL2Table { entry, refcount: 1, .. } if entry >> 63 == 0)
    });
    let wrong = report.corruptions + report.check_errors;
    assert_eq!(wrong, missing.count() as u64, "{what}: {:?}", report.findings);
}

/// Runs `act` once for each way in which one of `calls` calls can fail.
fn for_every_fault(calls: u64, mut act: impl FnMut(u64, Fault, &str)) {
    for call in 1..=calls {
        for error in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
            act(
                call,
                Fault::nth(call, error),
                &format!("call {call} of {calls} fails once, {error}"),
            );
            act(
                call,
                Fault::from_nth(call, error),
                &format!("call {call} of {calls} and all later ones fail, {error}"),
            );
        }
    }
}

/// What is done to an image.
type Act = fn(&Image) -> Result<()>;

fn every_call_fails(lab: &Lab, shape: Shape, name: &str, act: Act) {
    let template = template(shape);
    let memory = Arc::new(template.clone());
    let old = State::of(shape, &memory).expect("a sound image");
    let faults = Arc::new(FaultStorage::new(memory.clone()));
    let image = open(shape, faults.clone(), Access::WRITE).expect("open");
    let before = faults.calls(&IoOp::ALL);
    act(&image).unwrap_or_else(|error| panic!("{name}: {error}"));
    let calls = faults.calls(&IoOp::ALL) - before;
    drop(image);
    let new = State::of(shape, &memory).expect("a sound image");
    assert!(new != old && calls > 3, "{name}: {calls} calls");
    let mut refused = 0;
    for_every_fault(calls, |call, fault, what| {
        let what = format!("{name}: {what}");
        let memory = Arc::new(template.clone());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        let image = open(shape, faults.clone(), Access::WRITE).expect("open");
        faults.inject(fault);
        let result = act(&image);
        assert!(faults.failed() > 0, "{what}: nothing failed");
        refused += u64::from(result.is_err());
        faults.heal();
        let going_on = read(&image);
        assert!(
            going_on == old.disk && result.is_err() || going_on == new.disk,
            "{what}: reads differently"
        );

        // Killed there, and closed.
        let killed = Arc::new(MemStorage::clone(&memory));
        let closed = image.close();
        for (stored, how) in [(&killed, "killed"), (&memory, "closed")] {
            let what = format!("{what}, {how}");
            assert_whole(stored, &what);
            let state = State::of(shape, stored).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(
                state == new || result.is_err() && state == old,
                "{what}: {result:?}, neither as before nor as it should be: {:?}",
                state.bitmaps
            );
            if state == old {
                let image = open(shape, stored.clone(), Access::WRITE).expect("open");
                act(&image).unwrap_or_else(|error| panic!("{what}, again: {error}"));
                image.close().expect("close");
                assert_whole(stored, &format!("{what}, again"));
                assert!(State::of(shape, stored).expect("sound") == new, "{what}, again");
            }
        }
        assert!(
            closed.is_err() || result.is_err() || check(&memory, &what).leaks == 0,
            "{what}: leaks that nobody was told of"
        );
        if call % 24 == 5 {
            std::fs::write(lab.path("image"), killed.to_vec()).expect("room for the image");
            std::fs::write(lab.path("base.raw"), vec![0xbb; BELOW as usize]).expect("room");
            lab.assert_same_check("image");
        }
    });
    assert!(refused > 0, "{name}: no fault was told of");
}

const fn shape(cluster_bits: u32, v2: bool, extended_l2: bool) -> Shape {
    Shape {
        cluster_bits,
        refcount_order: 4,
        v2,
        zstd: false,
        extended_l2,
        lazy: false,
    }
}

const SHAPES: [Shape; 3] = [
    shape(9, false, false),
    shape(11, true, false),
    shape(14, false, true),
];

fn snapshots(name: &str, act: Act) {
    let lab = Lab::new();
    for shape in SHAPES {
        every_call_fails(&lab, shape, name, act);
    }
}

#[test]
fn a_snapshot_is_taken() {
    snapshots("take", |image| {
        image.create_snapshot("new", UNIX_EPOCH, &mut go_on).map(drop)
    });
}

#[test]
fn a_snapshot_for_which_there_is_no_room_leaves_every_flag_as_it_was() {
    for shape in SHAPES {
        let template = template(shape);
        let leaves_flags_out = |fault| {
            let memory = Arc::new(template.clone());
            let faults = Arc::new(FaultStorage::new(memory.clone()));
            let image = open(shape, faults.clone(), Access::WRITE).expect("open");
            faults.inject(fault);
            let result = image.create_snapshot("new", UNIX_EPOCH, &mut go_on);
            faults.heal();
            drop(image);
            result.is_err() && check(&memory, "no room").corruptions > 0
        };
        // Where nothing works from then on, the first call after a flag was cleared is known by what it leaves.
        let full = io::ErrorKind::StorageFull;
        let first = (1..100)
            .find(|call| leaves_flags_out(Fault::from_nth(*call, full)))
            .expect("a flag is cleared");
        assert!(!leaves_flags_out(Fault::nth(first, full)), "call {first}");
    }
}

#[test]
fn the_disk_goes_back_to_a_snapshot() {
    snapshots("apply", |image| {
        image.apply_snapshot(&SnapshotSelector::name("b"), &mut go_on)
    });
}

#[test]
fn a_snapshot_is_deleted() {
    snapshots("delete", |image| {
        let which = SnapshotSelector::name("a");
        image.delete_snapshot(&which, &mut go_on).map(drop)
    });
}

#[test]
fn a_snapshot_is_renamed() {
    snapshots("rename", |image| {
        image.rename_snapshot(&SnapshotSelector::name("b"), "another name")
    });
}

#[test]
fn bitmaps_are_changed() {
    let lab = Lab::new();
    let acts: [(&str, Act); 6] = [
        ("add", |image| {
            image.edit_bitmaps(|bitmaps| bitmaps.add("new", None, true))
        }),
        ("remove", |image| {
            image.edit_bitmaps(|bitmaps| bitmaps.remove("on"))
        }),
        ("clear", |image| image.edit_bitmaps(|bitmaps| bitmaps.clear("on"))),
        ("switch", |image| {
            image.edit_bitmaps(|bitmaps| {
                bitmaps.disable("on")?;
                bitmaps.enable("off")
            })
        }),
        ("merge", |image| {
            let source = image.dirty_bits("more")?;
            image.edit_bitmaps(|bitmaps| bitmaps.merge("off", &source))
        }),
        ("remove all", |image| {
            image.edit_bitmaps(|bitmaps| {
                ["off", "more", "on"]
                    .iter()
                    .try_for_each(|name| bitmaps.remove(name))
            })
        }),
    ];
    for shape in SHAPES.into_iter().filter(|shape| !shape.v2) {
        for (name, act) in acts {
            every_call_fails(&lab, shape, name, act);
        }
    }
}

/// Where things lie in an image of 512-byte clusters with 16-bit refcounts.
struct Places {
    bytes: Vec<u8>,
}

impl Places {
    fn word(&self, at: u64) -> u64 {
        BE::read_u64(&self.bytes[at as usize..])
    }

    fn poke(&mut self, at: u64, word: u64) {
        BE::write_u64(&mut self.bytes[at as usize..], word);
    }

    /// The `number`-th mapped L2 entry of the active disk.
    fn l2_entry(&self, number: usize) -> u64 {
        let tables = (0..3).map(|index| self.word(self.word(40) + index * 8) & ((1 << 56) - 512));
        let entries = tables
            .filter(|table| *table != 0)
            .flat_map(|table| (0..64).map(move |index| table + index * 8));
        let mut mapped = entries.filter(|entry| self.word(*entry) & ((1 << 56) - 512) != 0);
        mapped.nth(number).expect("a mapped cluster")
    }

    /// Where the refcount of a cluster is.
    fn refcount(&self, cluster: u64) -> usize {
        let block = self.word(self.word(48) + cluster / 256 * 8);
        (block + cluster % 256 * 2) as usize
    }

    fn cluster_of(&self, entry: u64) -> u64 {
        (self.word(entry) & ((1 << 56) - 512)) / 512
    }

    fn count(&mut self, cluster: u64, refcount: u16) {
        let at = self.refcount(cluster);
        BE::write_u16(&mut self.bytes[at..], refcount);
    }
}

type Damage = fn(&mut Places);

/// Ways in which an image is damaged; none hides any data.
const DAMAGES: [(&str, Damage); 6] = [
    ("refcounts too low", |places| {
        for number in 0..9 {
            let cluster = places.cluster_of(places.l2_entry(number));
            places.count(cluster, 0);
        }
    }),
    ("refcounts too high", |places| {
        for number in 3..9 {
            let cluster = places.cluster_of(places.l2_entry(number));
            places.count(cluster, 7);
        }
    }),
    ("COPIED flags wrong", |places| {
        for number in 0..60 {
            let entry = places.l2_entry(number);
            places.poke(entry, places.word(entry) ^ 1 << 63);
        }
    }),
    ("a refcount block missing", |places| {
        places.poke(places.word(48), 0);
    }),
    ("the refcount table elsewhere", |places| {
        places.poke(48, 1 << 40);
    }),
    ("marked dirty and corrupt, and everything at once", |places| {
        places.poke(72, places.word(72) | 3);
        for number in 0..9 {
            let entry = places.l2_entry(number);
            let cluster = places.cluster_of(entry);
            places.poke(entry, places.word(entry) ^ 1 << 63);
            places.count(cluster, number as u16 % 4);
        }
    }),
];

fn damaged(shape: Shape, damage: fn(&mut Places)) -> MemStorage {
    let mut places = Places {
        bytes: template(shape).to_vec(),
    };
    damage(&mut places);
    MemStorage::from(places.bytes)
}

fn repair(storage: &dyn Storage, backup: &dyn Storage) -> Result<qcow2::RepairReport> {
    let options = RepairOptions {
        backup: Some(backup),
        ..RepairOptions::default()
    };
    qcow2::repair(storage, &options, &mut |_| ControlFlow::Continue(()))
}

/// As [`State::of`], for an image whose refcounts may be too bad for it to be opened: a copy is repaired first.
fn state_of_damaged(shape: Shape, storage: &MemStorage, what: &str) -> State {
    let copy = Arc::new(storage.clone());
    let report = repair(&*copy, &MemStorage::new()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let wrong = report.after.corruptions + report.after.check_errors;
    assert_eq!(wrong, 0, "{what}: {:?}", report.after.findings);
    State::of(shape, &copy).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// One run of a repair with a fault in the image's file, or in that of the backup.
fn repair_with_fault(shape: Shape, damaged: &MemStorage, in_backup: bool, fault: &Fault, what: &str) {
    let sound = Arc::new(template(shape));
    let whole = State::of(shape, &sound).expect("a sound image");
    let memory = Arc::new(damaged.clone());
    let backup = Arc::new(MemStorage::new());
    let faulty = |behind: &Arc<MemStorage>, fails: bool| {
        let faults = FaultStorage::new(behind.clone());
        if fails {
            faults.inject(fault.clone());
        }
        faults
    };
    let (file, kept) = (faulty(&memory, !in_backup), faulty(&backup, in_backup));
    let result = repair(&file, &kept);
    assert!(file.failed() + kept.failed() > 0, "{what}: nothing failed");
    let now = check(&memory, what);
    // A host that can't make a file longer is got along with.
    assert!(
        result.is_err() || now.is_clean(),
        "{what}: no success, although it says so: {:?}",
        now.findings
    );
    let was = check(damaged, what);
    assert!(
        now.corruptions + now.check_errors <= was.corruptions + was.check_errors,
        "{what}: worse than before: {:?}",
        now.findings
    );
    // What is opened all the same reads as it did.
    if let Ok(state) = State::of(shape, &memory) {
        assert!(state == whole, "{what}: reads differently");
    }
    assert!(
        state_of_damaged(shape, &memory, what) == whole,
        "{what}: reads differently when repaired"
    );
    // The backup leads back to what was there, as far as it was needed.
    if memory.to_vec() != damaged.to_vec() {
        qcow2::restore(&*memory, &*backup).unwrap_or_else(|error| panic!("{what}, restore: {error}"));
        let restored = memory.to_vec();
        let was = damaged.to_vec();
        assert!(
            restored[..was.len()] == was[..],
            "{what}: the backup does not lead back"
        );
    }
}

#[test]
fn an_image_is_repaired() {
    let shape = SHAPES[0];
    for (name, damage) in DAMAGES {
        let damaged = damaged(shape, damage);
        assert!(
            check(&damaged, name).corruptions + check(&damaged, name).leaks > 0,
            "{name}"
        );
        let file = FaultStorage::new(Arc::new(damaged.clone()));
        let kept = FaultStorage::new(Arc::new(MemStorage::new()));
        let report = repair(&file, &kept).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(report.after.is_clean(), "{name}: {:?}", report.after.findings);
        for (in_backup, calls) in [(false, file.calls(&IoOp::ALL)), (true, kept.calls(&IoOp::ALL))] {
            assert!(calls > 1);
            for_every_fault(calls, |_, fault, what| {
                let whose = if in_backup { "backup" } else { "image" };
                let what = format!("{name}, {whose}: {what}");
                repair_with_fault(shape, &damaged, in_backup, &fault, &what);
            });
        }
    }
}
