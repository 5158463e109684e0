//! Power cuts during amendments: wherever it is cut, the disk and every snapshot read as before, nothing but leaks is wrong,
//! writing goes on, and another run finishes the job.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::test_utils::{Recorder, seeds};
use block::{
    Access, Backing, BackingReference, BlockDevice, ErrorKind, MemStorage, SnapshotSelector, Storage,
};
use common::Bytes;
use qcow2::{
    Amendment, CheckOptions, CompressionType, CreateOptions, Finding, Header, Image, NewBacking, OpenOptions,
    Version,
};

const SIZE: u64 = 80 << 10;

/// An image, the file that its data is in if that is another one, and what lies below it.
struct Lab {
    image: Arc<MemStorage>,
    data: Option<Arc<MemStorage>>,
    backing: Option<Arc<dyn BlockDevice>>,
}

/// What an image holds: its disk, and its snapshots by name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

impl Lab {
    /// An image in QEMU's hand that has zero clusters of every kind: with a host cluster of their own, with one that a
    /// snapshot holds data in, with none; in tables that are shared and in tables that are not.
    fn by_qemu(options: &str, backed: bool, snapshots: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("image");
        let image = common::text(&path);
        let size = SIZE.to_string();
        let below = Bytes::pattern(50 << 10, 7);
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
        if backed {
            std::fs::write(dir.path().join("base.raw"), &below.0).expect("room for a file");
            args.extend(["-b", "base.raw", "-F", "raw"]);
        }
        args.extend([image, &size]);
        common::run_ok("qemu-img", &args);
        let io = |commands: &[&str]| {
            let mut args = vec!["-f", "qcow2", "-d", "unmap"];
            args.extend(commands.iter().flat_map(|command| ["-c", command]));
            args.push(image);
            common::run_ok("qemu-io", &args);
        };
        let snapshot = |name: &str| {
            if snapshots {
                common::run_ok("qemu-img", &["snapshot", "-c", name, image]);
            }
        };
        io(&["write -P 1 0 24k", "write -P 2 30k 20k", "write -P 3 60k 9k"]);
        if !options.contains("compat=0.10") {
            io(&["write -z 2k 4k", "write -z -u 32k 4k", "write -z -u 52k 2k"]);
        }
        snapshot("a");
        if !options.contains("compat=0.10") {
            io(&["write -z 8k 6k", "write -P 4 12k 2k", "write -z 34k 8k"]);
        }
        snapshot("b");
        io(&["write -P 5 44k 2k"]);
        Self {
            image: Arc::new(common::load(&path)),
            data: None,
            backing: backed.then(|| Arc::new(below) as Arc<dyn BlockDevice>),
        }
    }

    /// Another image with the same bytes.
    fn copy(&self) -> Self {
        Self {
            image: Arc::new((*self.image).clone()),
            data: self.data.as_ref().map(|data| Arc::new((**data).clone())),
            backing: self.backing.clone(),
        }
    }

    /// How to open the image. One that names no backing file (any more) is opened over none.
    fn options(&self, write: bool) -> OpenOptions {
        let named = self.header().backing().is_some();
        let device = self.backing.as_ref().filter(|_| named);
        OpenOptions {
            access: Access {
                write,
                ..Access::READ
            },
            backing: device.map_or(Backing::None, |device| Backing::Device(Arc::clone(device))),
            data_file: self.data.clone().map(|data| data as Arc<dyn Storage>),
            ..OpenOptions::default()
        }
    }

    /// Everything that the image holds.
    fn state(&self) -> block::Result<State> {
        let image = Image::open(self.image.clone(), self.options(false))?;
        let mut snapshots = Vec::new();
        for snapshot in image.snapshots()? {
            let which = SnapshotSelector::id(&*snapshot.id);
            let device = Image::open_snapshot(self.image.clone(), &which, self.options(false))?;
            snapshots.push((snapshot.name, read_all(&device)?));
        }
        Ok(State {
            disk: read_all(&image)?,
            snapshots,
        })
    }

    fn header(&self) -> Header {
        Header::read(&*self.image).expect("a header")
    }

    /// Amends the image in place.
    fn amend(&self, amendment: &Amendment) -> block::Result<bool> {
        let image = Image::open(self.image.clone(), self.options(true))?;
        image.amend(amendment, &mut |_| ControlFlow::Continue(()))
    }
}

fn read_all(device: &dyn BlockDevice) -> block::Result<Vec<u8>> {
    let mut bytes = vec![0; device.size() as usize];
    device.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Leaks are all that may be wrong; how many.
fn judge(image: &MemStorage, what: &str, with_qemu: bool) -> u64 {
    let report = qcow2::check(
        image,
        &CheckOptions::default(),
        &mut |_| ControlFlow::Continue(()),
    );
    let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
    let leaks = |finding: &Finding| matches!(finding, Finding::Leak { .. });
    assert!(
        report.corruptions + report.check_errors == 0 && report.findings.iter().all(leaks),
        "{what}: {:?}",
        report.findings
    );
    if with_qemu {
        let (code, words) = common::qemu_check(&image.to_vec());
        assert!(code == 0 || code == 3, "{what}: {words}");
    }
    report.leaks
}

/// Amends, cuts the power everywhere, and amends again. `grown`: the disk may have become longer, with zeros.
fn torture(lab: &Lab, amendment: &Amendment, what: &str, seen: impl Fn(&Header) -> bool) {
    let old = lab.state().expect("the image opens");
    let size = amendment.size.unwrap_or(0).max(old.disk.len() as u64);
    let mut grown = old.clone();
    grown.disk.resize(size as usize, 0);
    let before = judge(&lab.image, what, true);
    assert!(!seen(&lab.header()), "{what}: nothing to do");

    let recorder = Recorder::new();
    let copy = |storage: &Arc<MemStorage>| recorder.storage((**storage).clone());
    let (image, data) = (copy(&lab.image), lab.data.as_ref().map(copy));
    let mut options = lab.options(true);
    options.data_file = data.clone().map(|data| data as Arc<dyn Storage>);
    let open = Image::open(image.clone(), options).expect("open");
    assert!(
        open.amend(amendment, &mut |_| ControlFlow::Continue(()))
            .unwrap_or_else(|error| panic!("{what}: {error} {:?}", error.hint()))
    );
    let done = recorder.position();
    drop(open);
    let after = |image: MemStorage, data: Option<MemStorage>| Lab {
        image: Arc::new(image),
        data: data.map(Arc::new),
        backing: lab.backing.clone(),
    };
    let amended = after(image.snapshot(), data.map(|data| data.snapshot()));
    assert!(seen(&amended.header()), "{what}: {:?}", amended.header());
    assert!(
        amended.state().expect("open") == grown,
        "{what}: reads differently"
    );
    assert!(judge(&amended.image, what, true) <= before, "{what}: leaks");

    let states = recorder.crash_states();
    for point in states.points() {
        for cut in seeds(6) {
            let what = format!("{what}, point {point} of {done}, cut {cut}");
            let mut disks = states.at(point, cut).into_iter();
            let found = after(disks.next().expect("the image"), disks.next());
            let state = found.state().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(state == old || state == grown, "{what}: reads differently");
            assert!(seen(&found.header()) || point < done, "{what}: not done");
            judge(&found.image, &what, cut == 0 && point % 8 == 0);
            goes_on(&found.copy(), &state, &what);
            found
                .amend(amendment)
                .unwrap_or_else(|error| panic!("{what}, again: {error}"));
            assert!(seen(&found.header()), "{what}: not done by a second run");
            assert!(found.state().expect("open") == grown, "{what}: a second run");
            judge(&found.image, &what, false);
        }
    }
}

/// Writing all over the disk changes the disk, and no snapshot.
fn goes_on(lab: &Lab, found: &State, what: &str) {
    let image = lab.image.clone();
    let open = Image::open(image, lab.options(true)).unwrap_or_else(|error| panic!("{what}: {error}"));
    for at in (0..open.size().saturating_sub(3000)).step_by(3500) {
        open.write_at(&[0xee; 3000], at)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let expected = read_all(&open).expect("read");
    open.close().unwrap_or_else(|error| panic!("{what}: {error}"));
    let state = lab.state().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(state.disk == expected, "{what}: a write was lost");
    assert!(
        state.snapshots == found.snapshots,
        "{what}: a write has changed a snapshot"
    );
    judge(&lab.image, what, false);
}

fn version(version: Version) -> Amendment {
    Amendment {
        version: Some(version),
        ..Amendment::default()
    }
}

fn is_version_2(header: &Header) -> bool {
    header.version == Version::V2
}

#[test]
fn down_to_version_2() {
    for options in ["cluster_size=512", "cluster_size=1024", "cluster_size=2048"] {
        for backed in [false, true] {
            for snapshots in [false, true] {
                let lab = Lab::by_qemu(options, backed, snapshots);
                let what = format!("{options} {backed} {snapshots}");
                torture(&lab, &version(Version::V2), &what, is_version_2);
            }
        }
    }
}

#[test]
fn down_to_version_2_and_to_refcounts_of_16_bits() {
    let lab = Lab::by_qemu("cluster_size=512,refcount_bits=64", true, true);
    let amendment = Amendment {
        refcount_order: Some(4),
        lazy_refcounts: Some(false),
        ..version(Version::V2)
    };
    torture(&lab, &amendment, "64 bits", is_version_2);
}

#[test]
fn up_to_version_3() {
    for (bits, backed, snapshots) in [(9, false, true), (12, true, false), (16, true, true)] {
        let options = format!("compat=0.10,cluster_size={}", 1 << bits);
        let lab = Lab::by_qemu(&options, backed, snapshots);
        let amendment = Amendment {
            lazy_refcounts: Some(true),
            refcount_order: Some(3),
            size: Some(100 << 10),
            ..version(Version::V3)
        };
        torture(&lab, &amendment, &options, |header| {
            header.version == Version::V3 && header.geometry.refcount_order == 3 && header.size == 100 << 10
        });
        torture(&lab, &version(Version::V3), &options, |header| {
            header.version == Version::V3 && header.geometry.refcount_order == 4
        });
    }
}

/// A snapshot of version 2 need not say how long its disk is; one of version 3 must.
#[test]
fn up_to_version_3_with_a_snapshot_that_says_little() {
    let lab = Lab::by_qemu("compat=0.10,cluster_size=512", false, true);
    let start = lab.header().snapshots_offset.0;
    let mut table = vec![0; 512];
    lab.image.read_exact_at(&mut table, start).expect("memory");
    let mut short = Vec::new();
    let mut at = 0;
    for _ in 0..2 {
        let word = |at: usize, len: usize| {
            table[at..at + len]
                .iter()
                .fold(0, |word, byte| word << 8 | usize::from(*byte))
        };
        let (extra, names) = (word(at + 36, 4), word(at + 12, 2) + word(at + 14, 2));
        short.extend_from_slice(&table[at..at + 36]);
        short.extend_from_slice(&[0; 4]);
        short.extend_from_slice(&table[at + 40 + extra..][..names]);
        short.resize(short.len().next_multiple_of(8), 0);
        at = (at + 40 + extra + names).next_multiple_of(8);
    }
    short.resize(512, 0);
    lab.image.write_all_at(&short, start).expect("memory");
    torture(&lab, &version(Version::V3), "short entries", |header| {
        header.version == Version::V3
    });
}

#[test]
fn refcounts_of_every_width() {
    for (options, order, snapshots) in [
        ("cluster_size=512", 6, true),
        ("cluster_size=512", 2, true),
        ("cluster_size=512,refcount_bits=1", 5, false),
        ("cluster_size=1024", 0, false),
        ("cluster_size=65536", 1, false),
        ("cluster_size=16384,extended_l2=on,refcount_bits=64", 3, true),
    ] {
        let lab = Lab::by_qemu(options, false, snapshots);
        let amendment = Amendment {
            refcount_order: Some(order),
            ..Amendment::default()
        };
        torture(&lab, &amendment, options, |header| {
            header.geometry.refcount_order == order
        });
    }
}

#[test]
fn features_and_names() {
    let lab = Lab::by_qemu("cluster_size=4096", true, true);
    let reference = BackingReference {
        name: "./".repeat(350) + "base.raw",
        format: Some("raw".into()),
    };
    let amendment = Amendment {
        lazy_refcounts: Some(true),
        compression: Some(CompressionType::Zstd),
        backing: Some(NewBacking::File(reference)),
        ..Amendment::default()
    };
    torture(&lab, &amendment, "names", |header| {
        header.compression == CompressionType::Zstd && header.backing_name.as_ref().unwrap().len() == 708
    });
    let lab = Lab::by_qemu("cluster_size=512,lazy_refcounts=on", false, true);
    let amendment = Amendment {
        lazy_refcounts: Some(false),
        ..Amendment::default()
    };
    torture(&lab, &amendment, "lazy", |header| header.compatible.is_empty());
}

#[test]
fn giving_up_a_raw_data_file() {
    let options = CreateOptions {
        size: 200 << 10,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    let (image, data) = common::create_with_data_file(&options, true);
    // Nobody has told the tables of what is in the file.
    let l1 = Header::read(&image).expect("a header").l1_offset.0;
    let mut entry = [0; 8];
    image.read_exact_at(&mut entry, l1).expect("memory");
    let table = u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00;
    image.write_all_at(&[0; 80], table + 16).expect("memory");
    data.write_all_at(&Bytes::pattern(180 << 10, 3).0, 5000)
        .expect("memory");
    let lab = Lab {
        image: Arc::new(image),
        data: Some(Arc::new(data)),
        backing: None,
    };
    let amendment = Amendment {
        data_file_raw: Some(false),
        data_file: Some("./data.raw".into()),
        ..Amendment::default()
    };
    torture(&lab, &amendment, "raw", |header| {
        let file = header.data_file().expect("a data file");
        !file.raw && file.name.as_deref() == Some("./data.raw")
    });
}

/// Whoever watches can end it wherever he is asked; another run goes on.
#[test]
fn interrupted_everywhere() {
    for backed in [false, true] {
        let lab = Lab::by_qemu("cluster_size=512,refcount_bits=32", backed, true);
        let old = lab.state().expect("open");
        let amendment = Amendment {
            refcount_order: Some(4),
            ..version(Version::V2)
        };
        let (mut stops, mut last) = (0, 0.0);
        loop {
            let mut calls = 0;
            let left = lab.copy();
            let image = Image::open(left.image.clone(), left.options(true)).expect("open");
            let result = image.amend(&amendment, &mut |progress| {
                assert!((0.0..=1.0).contains(&progress.fraction()));
                calls += 1;
                last = progress.fraction();
                if calls > stops {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            drop(image);
            assert!(left.state().expect("open") == old, "stopped at {stops}");
            assert_eq!(judge(&left.image, "stopped", stops % 8 == 0), 0);
            let finished = match result {
                Ok(changed) => changed,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Interrupted);
                    false
                }
            };
            assert!(left.amend(&amendment).expect("another run") != finished);
            assert_eq!(left.header().version, Version::V2);
            assert!(left.state().expect("open") == old);
            if finished {
                break;
            }
            stops += 1;
        }
        assert!(stops > 20 && last >= 1.0, "{stops} {last}");
    }
}
