//! Hosts that fail while an image is amended: every call that changes the file is made to, one by one, once or from then
//! on, with an I/O error or a full disk. The amendment must say so; what the file holds then reads as before, is whole but
//! for leaks, and another run finishes the job.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::test_utils::{Fault, FaultStorage, IoOp};
use block::{Access, Backing, BlockDevice, MemStorage, Result, SnapshotSelector, Storage, ZeroMode};
use qcow2::{Amendment, CheckOptions, Header, Image, OpenOptions, SnapshotProgress, Version};
use tests::{Lab, Shape};

const SIZE: u64 = 80 << 10;
const BELOW: u64 = 70 << 10;

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

struct Case {
    shape: Shape,
    over_backing: bool,
    amendment: Amendment,
}

impl Case {
    fn open(&self, storage: Arc<dyn Storage>, access: Access) -> Result<Image> {
        Image::open(storage, self.options(access)?)
    }

    fn options(&self, access: Access) -> Result<OpenOptions> {
        let backing = if self.over_backing {
            let below = Arc::new(MemStorage::from(vec![0xbb; BELOW as usize]));
            Backing::Device(Arc::new(raw::Image::open(below, Access::READ)?))
        } else {
            Backing::None
        };
        Ok(OpenOptions {
            access,
            backing,
            ..OpenOptions::default()
        })
    }

    /// An image with data and zero clusters of every kind, some of which two snapshots share.
    fn template(&self) -> MemStorage {
        let storage = Arc::new(MemStorage::new());
        let backing = self.over_backing.then_some(("base.raw", "raw"));
        qcow2::create(&*storage, &self.shape.create_options(SIZE, backing)).expect("a new image");
        let image = self.open(storage.clone(), Access::WRITE).expect("open");
        let wrote = |at: u64, byte| image.write_at(&[byte; 10_000], at).expect("write");
        let zeroed = |at, mode| image.zero_at(at, 8192, mode).expect("zero");
        let date = std::time::UNIX_EPOCH;
        wrote(0, 1);
        wrote(30_000, 2);
        zeroed(4096, ZeroMode::Allocate);
        zeroed(40_960, ZeroMode::Unmap);
        if self.shape.refcount_order > 0 {
            image.create_snapshot("a", date, &mut go_on).expect("take");
            wrote(20_000, 3);
            zeroed(20_480, ZeroMode::Allocate);
            image.create_snapshot("b", date, &mut go_on).expect("take");
        }
        wrote(60_000, 4);
        image.close().expect("close");
        (*storage).clone()
    }

    /// The disk and the snapshots' disks.
    fn state(&self, storage: &Arc<MemStorage>) -> Vec<Vec<u8>> {
        let image = self.open(storage.clone(), Access::READ).expect("open");
        let read = |image: &Image| {
            let mut bytes = vec![0; image.size() as usize];
            image.read_at(&mut bytes, 0).expect("read");
            bytes
        };
        let mut state = vec![read(&image)];
        for snapshot in image.snapshots().expect("snapshots") {
            let which = SnapshotSelector::id(&*snapshot.id);
            let options = self.options(Access::READ).expect("a backing device");
            let snapshot = Image::open_snapshot(storage.clone(), &which, options).expect("open");
            state.push(read(&snapshot));
        }
        state
    }

    fn amend(&self, storage: Arc<dyn Storage>) -> Result<bool> {
        let image = self.open(storage, Access::WRITE)?;
        image.amend(&self.amendment, &mut |_| ControlFlow::Continue(()))
    }

    fn is_done(&self, storage: &MemStorage) -> bool {
        let header = Header::read(storage).expect("a header");
        let (version, order) = (self.amendment.version, self.amendment.refcount_order);
        version.is_none_or(|version| header.version == version)
            && order.is_none_or(|order| header.geometry.refcount_order == order)
    }

    fn every_call_fails(&self, ops: &[IoOp]) {
        let template = self.template();
        let memory = Arc::new(template.clone());
        let old = self.state(&memory);
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        let image = self.open(faults.clone(), Access::WRITE).expect("open");
        let before = faults.calls(ops);
        image
            .amend(&self.amendment, &mut |_| ControlFlow::Continue(()))
            .expect("without faults");
        let calls = faults.calls(ops) - before;
        drop(image);
        assert!(self.is_done(&memory) && self.state(&memory) == old && calls > 3);
        let lab = Lab::new();
        for call in 1..=calls {
            for error in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
                for (lasts, fault) in [
                    ("once", Fault::nth(call, error)),
                    ("from then on", Fault::from_nth(call, error)),
                ] {
                    let what = format!("call {call} of {calls} fails {lasts}, {error}");
                    let memory = Arc::new(template.clone());
                    let faults = Arc::new(FaultStorage::new(memory.clone()));
                    let image = self.open(faults.clone(), Access::WRITE).expect("open");
                    faults.inject(fault.on(ops));
                    let result = image.amend(&self.amendment, &mut |_| ControlFlow::Continue(()));
                    drop(image);
                    assert!(faults.failed() > 0, "{what}: nothing failed");
                    // What is given up of room, or would be of length, is not what was asked for.
                    assert!(result.is_err() || self.is_done(&memory), "{what}: {result:?}");
                    self.judge(&memory, &old, &what);
                    if call % 16 == 5 && lasts == "once" {
                        std::fs::write(lab.path("image"), memory.to_vec()).expect("room for the image");
                        std::fs::write(lab.path("base.raw"), vec![0xbb; BELOW as usize]).expect("room");
                        let figures = lab.assert_same_check("image");
                        assert_eq!(figures.corruptions + figures.check_errors, 0, "{what}");
                    }
                    self.amend(memory.clone())
                        .unwrap_or_else(|error| panic!("{what}, again: {error}"));
                    assert!(self.is_done(&memory), "{what}: not done by another run");
                    self.judge(&memory, &old, &what);
                }
            }
        }
    }

    fn judge(&self, stored: &Arc<MemStorage>, old: &[Vec<u8>], what: &str) {
        let report = qcow2::check(&**stored, &CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        let wrong = report.corruptions + report.check_errors;
        assert_eq!(wrong, 0, "{what}: {:?}", report.findings);
        assert!(self.state(stored) == old, "{what}: reads differently");
    }
}

fn shape(cluster_bits: u32, refcount_order: u32, v2: bool) -> Shape {
    Shape {
        cluster_bits,
        refcount_order,
        v2,
        zstd: false,
        extended_l2: false,
        lazy: false,
    }
}

#[test]
fn on_the_way_to_version_2() {
    for (over_backing, order, ops) in [
        (false, 4, &IoOp::CHANGES[..]),
        (true, 5, &IoOp::CHANGES),
        (true, 4, &IoOp::ALL),
    ] {
        let case = Case {
            shape: shape(11, order, false),
            over_backing,
            amendment: Amendment {
                version: Some(Version::V2),
                refcount_order: Some(4),
                ..Amendment::default()
            },
        };
        case.every_call_fails(ops);
    }
}

#[test]
fn on_the_way_to_version_3() {
    let case = Case {
        shape: shape(9, 4, true),
        over_backing: true,
        amendment: Amendment {
            version: Some(Version::V3),
            refcount_order: Some(3),
            ..Amendment::default()
        },
    };
    case.every_call_fails(&IoOp::CHANGES);
}

#[test]
fn on_the_way_to_other_refcounts() {
    for (order, to) in [(4, 6), (0, 2), (6, 3)] {
        let case = Case {
            shape: shape(9, order, false),
            over_backing: false,
            amendment: Amendment {
                refcount_order: Some(to),
                ..Amendment::default()
            },
        };
        case.every_call_fails(&IoOp::ALL);
    }
}
