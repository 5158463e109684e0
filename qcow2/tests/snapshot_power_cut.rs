//! Power cuts in operations on snapshots: whatever of the unflushed writes is lost, torn or reordered, the image opens,
//! the disk and every snapshot that is listed are what they were or are to be, and what is written afterwards changes
//! no snapshot.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use block::test_utils::{Recorder, Rng, seeds};
use block::{Access, Backing, BlockDevice, MemStorage, Resize, SnapshotSelector};
use common::Bytes;
use qcow2::{CheckOptions, Finding, Image, OpenOptions, SnapshotProgress};

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// What an image holds: its disk, and its snapshots by name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Create,
    Apply(&'static str),
    Delete(&'static str),
    Rename(&'static str),
}

impl Op {
    fn run(self, image: &Image) -> block::Result<()> {
        match self {
            Self::Create => image.create_snapshot("new", UNIX_EPOCH, &mut go_on).map(|_| ()),
            Self::Apply(name) => image.apply_snapshot(&SnapshotSelector::name(name), &mut go_on),
            Self::Delete(name) => image
                .delete_snapshot(&SnapshotSelector::name(name), &mut go_on)
                .map(|_| ()),
            Self::Rename(name) => image.rename_snapshot(&SnapshotSelector::name(name), "renamed"),
        }
    }

    fn on(self, state: &State) -> State {
        let mut state = state.clone();
        match self {
            Self::Create => state.snapshots.push(("new".to_owned(), state.disk.clone())),
            Self::Apply(name) => {
                let found = state.snapshots.iter().find(|(given, _)| given == name);
                state.disk = found.expect("it is there").1.clone();
            }
            Self::Delete(name) => state.snapshots.retain(|(given, _)| given != name),
            Self::Rename(name) => {
                let found = state.snapshots.iter_mut().find(|(given, _)| given == name);
                "renamed".clone_into(&mut found.expect("it is there").0);
            }
        }
        state
    }
}

/// An image and what lies below it.
struct Lab {
    options: &'static str,
    backing: Option<Arc<dyn BlockDevice>>,
}

impl Lab {
    fn new(options: &'static str, backing: Option<u64>) -> Self {
        Self {
            options,
            backing: backing.map(|len| Arc::new(Bytes::pattern(len, 7)) as Arc<dyn BlockDevice>),
        }
    }

    fn below(&self) -> Backing {
        let device = self.backing.as_ref();
        device.map_or(Backing::None, |device| Backing::Device(Arc::clone(device)))
    }

    fn writable(&self, storage: Arc<dyn block::Storage>) -> block::Result<Image> {
        let options = OpenOptions {
            access: Access::WRITE,
            backing: self.below(),
            ..OpenOptions::default()
        };
        Image::open(storage, options)
    }

    /// Everything that an image holds.
    fn state(&self, storage: &Arc<MemStorage>) -> block::Result<State> {
        let options = || OpenOptions {
            backing: self.below(),
            ..OpenOptions::default()
        };
        let image = Image::open(storage.clone(), options())?;
        let mut snapshots = Vec::new();
        for snapshot in image.snapshots()? {
            let which = SnapshotSelector::id(&*snapshot.id);
            let device = Image::open_snapshot(storage.clone(), &which, options())?;
            snapshots.push((snapshot.name, read_all(&device)?));
        }
        Ok(State {
            disk: read_all(&image)?,
            snapshots,
        })
    }

    /// An image whose snapshots share some clusters with each other and with the disk, and others not.
    fn prepare(&self, seed: u64) -> MemStorage {
        let size = 80 << 10;
        let backing = self.backing.as_ref().map(|device| device.size());
        let storage = Arc::new(common::create(self.options, size, backing));
        let image = self.writable(storage.clone()).expect("open");
        let mut rng = Rng::new(seed);
        for name in ["a", "b", "c"] {
            for _ in 0..4 {
                let at = rng.below(size - 8192);
                let len = 1 + rng.below(8192);
                image
                    .write_at(&vec![rng.below(256) as u8; len as usize], at)
                    .expect("write");
            }
            image.create_snapshot(name, UNIX_EPOCH, &mut go_on).expect("take");
        }
        if !self.options.contains("0.10") {
            let how = Resize {
                shrink: true,
                ..Resize::default()
            };
            let to = if rng.coin() { 60 << 10 } else { 300 << 10 };
            image.resize(to, how).expect("resize");
        }
        image.write_at(&[9; 10_000], 20_000).expect("write");
        image.close().expect("close");
        (*storage).clone()
    }
}

fn read_all(device: &dyn BlockDevice) -> block::Result<Vec<u8>> {
    let mut bytes = vec![0; device.size() as usize];
    device.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn torture(options: &'static str, backing: Option<u64>, op: Op, seed: u64) {
    let lab = Lab::new(options, backing);
    let prepared = lab.prepare(seed);
    let old = lab.state(&Arc::new(prepared.clone())).expect("the image opens");
    let new = op.on(&old);
    let recorder = Recorder::new();
    let image = lab.writable(recorder.storage(prepared)).expect("open");
    op.run(&image).unwrap_or_else(|error| panic!("{op:?}: {error}"));
    let done = recorder.position();
    image.close().expect("close");

    let states = recorder.crash_states();
    for point in states.points() {
        for cut in seeds(6) {
            let what = format!("{options} {op:?} seed {seed} point {point} of {done} cut {cut}");
            let disk = Arc::new(states.at(point, seed * 1000 + cut).remove(0));
            let found = lab.state(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            let finished = found == new;
            assert!(
                finished || found == old && point < done,
                "{what}: neither old nor new"
            );
            judge(&disk, &what, cut == 0 && point % 8 == 0);
            goes_on(&lab, &disk, &found, &what);
            if !finished {
                let image = lab
                    .writable(disk.clone())
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                op.run(&image)
                    .unwrap_or_else(|error| panic!("{what}, again: {error}"));
                image.close().unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(
                    lab.state(&disk).expect("open") == new,
                    "{what}: not done by a second run"
                );
                judge(&disk, &what, false);
            }
        }
    }
}

/// Leaks are all that may be wrong, and COPIED flags that are missing.
fn judge(disk: &MemStorage, what: &str, with_qemu: bool) {
    let report = qcow2::check(disk, &CheckOptions::default(), &mut |_| ControlFlow::Continue(()));
    let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
    let missing = |finding: &&Finding| match finding {
        Finding::CopiedL2Table { entry, refcount, .. } | Finding::CopiedData { entry, refcount, .. } => {
            *refcount == 1 && entry >> 63 == 0
        }
        _ => false,
    };
    let missing = report.findings.iter().filter(missing).count() as u64;
    assert_eq!(
        (report.corruptions - missing, report.check_errors),
        (0, 0),
        "{what}: {report:?}"
    );
    if with_qemu {
        let (code, words) = common::qemu_check(&disk.to_vec());
        let harmless = |line: &str| !line.starts_with("ERROR") || line.contains("OFLAG_COPIED");
        assert!(code != 1 && words.lines().all(harmless), "{what}: {words}");
        assert!(missing > 0 || code == 0 || code == 3, "{what}: {words}");
    }
}

/// Writing all over the disk changes the disk, and no snapshot.
fn goes_on(lab: &Lab, disk: &MemStorage, found: &State, what: &str) {
    let copy = Arc::new(disk.clone());
    let image = lab
        .writable(copy.clone())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    for at in (0..image.size().saturating_sub(3000)).step_by(3500) {
        image
            .write_at(&[0xee; 3000], at)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let expected = read_all(&image).expect("read");
    image.close().unwrap_or_else(|error| panic!("{what}: {error}"));
    let after = lab.state(&copy).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(after.disk == expected, "{what}: a write was lost");
    assert!(
        after.snapshots == found.snapshots,
        "{what}: a write has changed a snapshot"
    );
    judge(&copy, what, false);
}

const KINDS: [(&str, Option<u64>); 5] = [
    ("cluster_size=512", None),
    ("cluster_size=1024,refcount_bits=4", Some(70 << 10)),
    ("cluster_size=512,compat=0.10", Some(50 << 10)),
    ("cluster_size=4096,refcount_bits=64", None),
    ("cluster_size=16384,extended_l2=on", Some(50 << 10)),
];

fn all_kinds(op: Op) {
    for (number, (options, backing)) in (0..).zip(KINDS) {
        torture(options, backing, op, number);
    }
}

#[test]
fn taking() {
    all_kinds(Op::Create);
}

#[test]
fn going_back() {
    all_kinds(Op::Apply("a"));
    all_kinds(Op::Apply("c"));
}

#[test]
fn deleting() {
    all_kinds(Op::Delete("a"));
    all_kinds(Op::Delete("c"));
}

#[test]
fn renaming() {
    all_kinds(Op::Rename("b"));
}
