//! Snapshots against vectors of bytes: taken, gone back to, deleted and renamed between random requests, on all kinds
//! of images, and read, checked and handled by QEMU as well.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use block::test_utils::Rng;
use block::{
    Access, Backing, BlockDevice, ErrorKind, MemStorage, Resize, Result, SnapshotSelector, Storage, ZeroMode,
};
use common::{Bytes, run_ok, text};
use qcow2::{CreateOptions, Image, OpenOptions, Snapshot, SnapshotPart, SnapshotProgress};

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn take(image: &Image, name: &str) -> Result<Snapshot> {
    let date = UNIX_EPOCH + Duration::new(1_800_000_000, 5);
    image.create_snapshot(name, date, &mut go_on)
}

fn named(name: &str) -> SnapshotSelector {
    SnapshotSelector::name(name)
}

fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut disk = vec![0xaa; device.size() as usize];
    device.read_at(&mut disk, 0).expect("read");
    disk
}

/// What a kind of image is like.
#[derive(Clone, Copy, Debug)]
struct Kind {
    options: &'static str,
    /// Bytes of a cluster.
    cluster: u64,
    /// Bytes of the disk at first.
    size: u64,
    backing: Option<u64>,
}

const KINDS: [Kind; 9] = [
    kind("cluster_size=512", 512, 300 << 10, None),
    kind(
        "cluster_size=512,refcount_bits=64",
        512,
        100 << 10,
        Some(70 << 10),
    ),
    kind("cluster_size=4096,refcount_bits=8", 4096, 3 << 20, Some(4 << 20)),
    kind("cluster_size=65536", 65536, 5 << 20, None),
    kind("cluster_size=2048,compat=0.10", 2048, 1 << 20, Some(600 << 10)),
    kind("cluster_size=1024,compat=0.10", 1024, 1 << 20, None),
    kind(
        "cluster_size=4096,compression_type=zstd,refcount_bits=32",
        4096,
        2 << 20,
        None,
    ),
    kind("cluster_size=16384,extended_l2=on", 16384, 5 << 20, None),
    kind(
        "cluster_size=16384,extended_l2=on,refcount_bits=8",
        16384,
        20 << 20,
        Some(3 << 20),
    ),
];

const fn kind(options: &'static str, cluster: u64, size: u64, backing: Option<u64>) -> Kind {
    Kind {
        options,
        cluster,
        size,
        backing,
    }
}

struct Run {
    kind: Kind,
    rng: Rng,
    storage: Arc<MemStorage>,
    backing: Option<Arc<dyn BlockDevice>>,
    backing_bytes: Option<Vec<u8>>,
    image: Option<Image>,
    disk: Vec<u8>,
    taken: Vec<(String, Vec<u8>)>,
    names: u32,
}

impl Run {
    fn new(kind: Kind, seed: u64) -> Self {
        let storage = Arc::new(common::create(kind.options, kind.size, kind.backing));
        let backing_bytes = kind.backing.map(|len| Bytes::pattern(len, seed).0);
        let backing = backing_bytes
            .clone()
            .map(|bytes| Arc::new(Bytes(bytes)) as Arc<dyn BlockDevice>);
        let mut disk = backing_bytes.clone().unwrap_or_default();
        disk.resize(kind.size as usize, 0);
        Self {
            image: Some(common::open(storage.clone(), backing.as_ref())),
            kind,
            rng: Rng::new(seed),
            storage,
            backing,
            backing_bytes,
            disk,
            taken: Vec::new(),
            names: 0,
        }
    }

    fn image(&self) -> &Image {
        self.image.as_ref().expect("open")
    }

    fn reopen(&mut self) {
        self.image.take().expect("open").close().expect("close");
        self.image = Some(common::open(self.storage.clone(), self.backing.as_ref()));
    }

    fn step(&mut self) {
        match self.rng.below(24) {
            0..=9 => self.write(),
            10 | 11 => self.write_compressed(),
            12 | 13 => self.zero(),
            14 => self.discard(),
            15 => self.resize(),
            16..=18 => self.take(),
            19 | 20 => self.apply(),
            21 => self.delete(),
            22 => self.rename(),
            _ => self.reopen(),
        }
    }

    fn range(&mut self) -> std::ops::Range<usize> {
        let start = self.rng.below(self.disk.len() as u64);
        let longest = if self.rng.below(8) == 0 {
            self.disk.len() as u64 / 2
        } else {
            4 * self.kind.cluster
        };
        let end = (start + 1 + self.rng.below(longest)).min(self.disk.len() as u64);
        start as usize..end as usize
    }

    fn write(&mut self) {
        let range = self.range();
        let byte = self.rng.below(255) as u8 + 1;
        let data: Vec<u8> = range.clone().map(|i| byte.wrapping_add((i / 3) as u8)).collect();
        self.image().write_at(&data, range.start as u64).expect("write");
        self.disk[range].copy_from_slice(&data);
    }

    fn write_compressed(&mut self) {
        let cluster = self.kind.cluster as usize;
        let start = self.range().start / cluster * cluster;
        let byte = self.rng.below(255) as u8 + 1;
        let end = self.disk.len().min(start + cluster);
        let mut data: Vec<u8> = (0..cluster).map(|i| byte.wrapping_add((i / 300) as u8)).collect();
        data[end - start..].fill(0);
        let writer = self.image().compressed().expect("qcow2 compresses");
        if let Some(compressed) = writer.compress(&data).expect("compress") {
            writer
                .write_compressed_at(&compressed, start as u64)
                .expect("write");
            self.disk[start..end].copy_from_slice(&data[..end - start]);
        }
    }

    fn zero(&mut self) {
        let range = self.range();
        let mode = if self.rng.coin() {
            ZeroMode::Unmap
        } else {
            ZeroMode::Allocate
        };
        self.image()
            .zero_at(range.start as u64, range.len() as u64, mode)
            .expect("zero");
        self.disk[range].fill(0);
    }

    fn discard(&mut self) {
        if self.kind.options.contains("0.10") {
            return;
        }
        let (mut range, cluster) = (self.range(), self.kind.cluster as usize);
        if self.kind.options.contains("extended_l2") {
            // Whole clusters alone: of a compressed one, a part stays.
            range = range.start / cluster * cluster..range.end.next_multiple_of(cluster).min(self.disk.len());
        }
        self.image()
            .discard_at(range.start as u64, range.len() as u64)
            .expect("discard");
        let start = range.start.next_multiple_of(cluster);
        let end = if range.end == self.disk.len() {
            range.end
        } else {
            range.end / cluster * cluster
        };
        if start < end {
            self.disk[start..end].fill(0);
        }
    }

    fn resize(&mut self) {
        if self.kind.options.contains("0.10") && !self.taken.is_empty() {
            return;
        }
        let size = 512 * (1 + self.rng.below(self.kind.size * 3 / 2 / 512));
        let how = Resize {
            shrink: true,
            ..Resize::default()
        };
        self.image().resize(size, how).expect("resize");
        self.disk.resize(size as usize, 0);
    }

    fn take(&mut self) {
        if self.taken.len() == 6 {
            return;
        }
        self.names += 1;
        let name = format!("s{}", self.names);
        let snapshot = take(self.image(), &name).expect("take");
        assert_eq!(snapshot.size, self.disk.len() as u64);
        assert!(read_all(self.image()) == self.disk, "the disk differs");
        self.taken.push((name, self.disk.clone()));
        self.judge();
    }

    fn any_taken(&mut self) -> Option<usize> {
        (!self.taken.is_empty()).then(|| self.rng.below(self.taken.len() as u64) as usize)
    }

    fn apply(&mut self) {
        let Some(index) = self.any_taken() else { return };
        let (name, disk) = self.taken[index].clone();
        self.image()
            .apply_snapshot(&named(&name), &mut go_on)
            .expect("apply");
        self.disk = disk;
        assert!(
            read_all(self.image()) == self.disk,
            "{name} is not what was gone back to"
        );
        self.judge();
    }

    fn delete(&mut self) {
        let Some(index) = self.any_taken() else { return };
        let (name, _) = self.taken.remove(index);
        self.image()
            .delete_snapshot(&named(&name), &mut go_on)
            .expect("delete");
        assert!(
            read_all(self.image()) == self.disk,
            "the disk differs without {name}"
        );
        self.judge();
    }

    fn rename(&mut self) {
        let Some(index) = self.any_taken() else { return };
        self.names += 1;
        let to = format!("another name {}", self.names);
        let from = std::mem::replace(&mut self.taken[index].0, to.clone());
        self.image().rename_snapshot(&named(&from), &to).expect("rename");
    }

    /// Every snapshot is what it was, and our check finds nothing.
    fn judge(&self) {
        let names: Vec<String> = self
            .image()
            .snapshots()
            .expect("list")
            .into_iter()
            .map(|snapshot| snapshot.name)
            .collect();
        let expected: Vec<&String> = self.taken.iter().map(|(name, _)| name).collect();
        assert_eq!(names.iter().collect::<Vec<_>>(), expected);
        for (name, disk) in &self.taken {
            let backing = self
                .backing
                .as_ref()
                .map_or(Backing::None, |device| Backing::Device(Arc::clone(device)));
            let options = OpenOptions {
                backing,
                ..OpenOptions::default()
            };
            let snapshot = Image::open_snapshot(self.storage.clone(), &named(name), options).expect("open");
            assert!(read_all(&snapshot) == *disk, "snapshot {name} has changed");
        }
        let report = qcow2::check(&*self.storage, &qcow2::CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        })
        .expect("check");
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{report:?}");
    }

    /// QEMU reads the same, of the disk and of every snapshot, and finds nothing wrong.
    fn finish(mut self) {
        self.reopen();
        assert!(read_all(self.image()) == self.disk, "the disk differs");
        self.judge();
        self.image.take().expect("open").close().expect("close");
        let file = self.storage.to_vec();
        let (code, words) = common::qemu_check(&file);
        assert_eq!(code, 0, "{words}");
        let seen = common::qemu_read(&file, self.backing_bytes.as_deref());
        assert!(seen == self.disk, "QEMU reads something else");
        for (name, disk) in &self.taken {
            let seen = qemu_read_snapshot(&file, self.backing_bytes.as_deref(), name);
            // It takes every snapshot to be as long as the image is now.
            let common = seen.len().min(disk.len());
            assert_eq!(seen.len(), self.disk.len());
            assert!(
                seen[..common] == disk[..common],
                "QEMU reads something else of {name}"
            );
        }
    }
}

/// A file with its backing file in a directory of its own.
fn unpack(file: &[u8], backing: Option<&[u8]>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("image.qcow2"), file).expect("room for the image");
    std::fs::write(dir.path().join("base.raw"), backing.unwrap_or_default()).expect("room");
    dir
}

fn qemu_read_snapshot(file: &[u8], backing: Option<&[u8]>, name: &str) -> Vec<u8> {
    let dir = unpack(file, backing);
    let (path, raw) = (dir.path().join("image.qcow2"), dir.path().join("out.raw"));
    let which = format!("snapshot.name={name}");
    run_ok(
        "qemu-img",
        &[
            "convert",
            "-f",
            "qcow2",
            "-l",
            &which,
            "-O",
            "raw",
            text(&path),
            text(&raw),
        ],
    );
    std::fs::read(raw).expect("the output")
}

#[test]
fn any_sequence_of_requests_and_snapshots_leaves_what_vectors_would_hold() {
    for (number, kind) in (0..).zip(KINDS) {
        for seed in 0..4 {
            let seed = number * 100 + seed;
            println!("{kind:?} seed {seed}");
            let mut run = Run::new(kind, seed);
            for _ in 0..60 {
                run.step();
            }
            run.finish();
        }
    }
}

/// An image with three snapshots of QEMU's.
fn qemu_made(options: &str, dir: &Path) -> std::path::PathBuf {
    let path = dir.join("image.qcow2");
    run_ok(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, text(&path), "4M"],
    );
    for (number, name) in ["first", "zweiter Stand ü", "third"].into_iter().enumerate() {
        let write = format!("write -P {} {}k 700k", number + 1, number * 300);
        let zero = format!("write -z {}k 64k", number * 500);
        run_ok(
            "qemu-io",
            &["-f", "qcow2", "-c", &write, "-c", &zero, text(&path)],
        );
        run_ok("qemu-img", &["snapshot", "-c", name, text(&path)]);
    }
    run_ok("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 2M", text(&path)]);
    path
}

const OPTIONS: [&str; 5] = [
    "cluster_size=65536",
    "cluster_size=512,refcount_bits=8",
    "compat=0.10,cluster_size=4096",
    "cluster_size=4096,lazy_refcounts=on",
    "cluster_size=2M",
];

#[test]
fn what_qemu_took_is_handled_here() {
    for options in OPTIONS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = qemu_made(options, dir.path());
        let file = std::fs::read(&path).expect("read");
        let then: Vec<Vec<u8>> = ["first", "zweiter Stand ü", "third"]
            .iter()
            .map(|name| qemu_read_snapshot(&file, None, name))
            .collect();
        let storage = Arc::new(MemStorage::from(file));
        let image = common::open(storage.clone(), None);
        let ids: Vec<String> = image.snapshots().unwrap().into_iter().map(|s| s.id).collect();
        assert_eq!(ids, ["1", "2", "3"], "{options}");

        image
            .apply_snapshot(&SnapshotSelector::id("2"), &mut go_on)
            .expect("apply");
        assert!(read_all(&image) == then[1], "{options}");
        image.write_at(&vec![7; 100_000], 1_234_567).expect("write");
        image
            .delete_snapshot(&named("first"), &mut go_on)
            .expect("delete");
        assert_eq!(take(&image, "ours").expect("take").id, "4");
        image.write_at(&vec![8; 100_000], 1_200_000).expect("write");
        let disk = read_all(&image);
        image.close().expect("close");

        let file = storage.to_vec();
        let (code, words) = common::qemu_check(&file);
        assert_eq!(code, 0, "{options}: {words}");
        assert!(common::qemu_read(&file, None) == disk, "{options}");
        for (name, then) in ["zweiter Stand ü", "third"].iter().zip(&then[1..]) {
            assert!(
                qemu_read_snapshot(&file, None, name) == *then,
                "{options}: {name}"
            );
        }
    }
}

#[test]
fn what_was_taken_here_is_handled_by_qemu() {
    for options in OPTIONS {
        let storage = Arc::new(common::create(options, 4 << 20, None));
        let image = common::open(storage.clone(), None);
        let mut then = Vec::new();
        for (number, name) in ["first", "zweiter Stand ü", "third"].into_iter().enumerate() {
            image
                .write_at(&vec![number as u8 + 1; 700_000], number as u64 * 300_000)
                .expect("write");
            take(&image, name).expect("take");
            then.push(read_all(&image));
        }
        image.write_at(&vec![9; 2 << 20], 1 << 20).expect("write");
        image.close().expect("close");

        let dir = unpack(&storage.to_vec(), None);
        let path = dir.path().join("image.qcow2");
        let list = run_ok("qemu-img", &["snapshot", "-l", text(&path)]);
        for words in ["first", "zweiter Stand ü", "third", "2027-01-15"] {
            assert!(list.contains(words), "{options}: {list}");
        }
        run_ok("qemu-img", &["snapshot", "-a", "zweiter Stand ü", text(&path)]);
        run_ok("qemu-img", &["snapshot", "-d", "first", text(&path)]);
        run_ok("qemu-img", &["snapshot", "-c", "theirs", text(&path)]);
        let file = std::fs::read(&path).expect("read");
        let (code, words) = common::qemu_check(&file);
        assert_eq!(code, 0, "{options}: {words}");
        let image = common::open(Arc::new(MemStorage::from(file)), None);
        assert!(read_all(&image) == then[1], "{options}");
        let ids: Vec<String> = image.snapshots().unwrap().into_iter().map(|s| s.id).collect();
        assert_eq!(ids, ["2", "3", "4"], "{options}");
    }
}

fn small(refcount_order: u32) -> (Arc<MemStorage>, Image) {
    let storage = Arc::new(MemStorage::new());
    let options = CreateOptions {
        size: 1 << 20,
        cluster_bits: 12,
        refcount_order,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &options).expect("create");
    let image = common::open(storage.clone(), None);
    (storage, image)
}

#[test]
fn refcounts_that_are_too_narrow_are_refused_before_anything_changes() {
    for (order, most) in [(0, 0), (1, 2), (2, 14)] {
        let (storage, image) = small(order);
        image.write_at(&vec![1; 50_000], 10_000).expect("write");
        for number in 0..most {
            take(&image, &format!("s{number}")).expect("take");
        }
        image.flush().expect("flush");
        let before = storage.to_vec();
        let error = take(&image, "one more").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.hint().unwrap().contains("amend -o refcount_bits=16"),
            "{error}"
        );
        assert!(storage.to_vec() == before, "order {order}");
        if most > 0 {
            let error = image.apply_snapshot(&named("s0"), &mut go_on).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(storage.to_vec() == before, "order {order}");
        }
        image.write_at(&vec![2; 50_000], 10_000).expect("it goes on");
        image.close().expect("close");
        let (code, words) = common::qemu_check(&storage.to_vec());
        assert_eq!(code, 0, "{words}");
    }
}

#[test]
fn bad_requests_change_nothing() {
    let (storage, image) = small(4);
    image.write_at(&vec![1; 50_000], 10_000).expect("write");
    take(&image, "a").expect("take");
    take(&image, "1").expect("take");
    let before = storage.to_vec();
    let long = "x".repeat(256);
    for name in ["", "a", &long, "a\0b"] {
        assert_eq!(take(&image, name).unwrap_err().kind(), ErrorKind::InvalidInput);
        let error = image.rename_snapshot(&named("1"), name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    for which in ["1", "b", "snapshot.id=4", "snapshot.id=1,snapshot.name=1"] {
        let which = SnapshotSelector::parse(which).unwrap();
        for error in [
            image.apply_snapshot(&which, &mut go_on).unwrap_err(),
            image.delete_snapshot(&which, &mut go_on).unwrap_err(),
            image.rename_snapshot(&which, "c").unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
    }
    let stop = &mut |_| ControlFlow::Break(());
    assert_eq!(
        image.create_snapshot("c", UNIX_EPOCH, stop).unwrap_err().kind(),
        ErrorKind::Interrupted
    );
    assert_eq!(
        image.delete_snapshot(&named("a"), stop).unwrap_err().kind(),
        ErrorKind::Interrupted
    );
    let too_early = UNIX_EPOCH - Duration::from_secs(1);
    assert!(image.create_snapshot("c", too_early, &mut go_on).is_err());
    assert!(storage.to_vec() == before);
    let reader = Image::open(storage, OpenOptions::default()).expect("open");
    assert_eq!(take(&reader, "c").unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_snapshot_is_read_only() {
    let (storage, image) = small(4);
    take(&image, "a").expect("take");
    image.close().expect("close");
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    let error = Image::open_snapshot(storage.clone(), &named("a"), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    let snapshot = Image::open_snapshot(storage, &named("a"), OpenOptions::default()).expect("open");
    assert_eq!(
        snapshot.write_at(&[1], 0).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
}

/// An entry that names the refcount table as data: nothing is counted or freed on its word.
#[test]
fn a_tree_that_reaches_metadata_is_refused() {
    let (storage, image) = small(4);
    image.write_at(&vec![1; 50_000], 10_000).expect("write");
    take(&image, "a").expect("take");
    // Away from the snapshot's L2 table, which only it has from now on.
    image.write_at(&vec![2; 50_000], 10_000).expect("write");
    let snapshot = image.snapshots().unwrap().remove(0);
    image.close().expect("close");
    let mut entry = [0; 8];
    storage.read_exact_at(&mut entry, snapshot.l1_offset.0).unwrap();
    let table = u64::from_be_bytes(entry) & !(1 << 63);
    for host in [4096u64, 8192] {
        storage.write_all_at(&host.to_be_bytes(), table + 5 * 8).unwrap();
        let before = storage.to_vec();
        let image = common::open(storage.clone(), None);
        for error in [
            image.apply_snapshot(&named("a"), &mut go_on).unwrap_err(),
            image.delete_snapshot(&named("a"), &mut go_on).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        drop(image);
        assert!(storage.to_vec() == before);
    }
}

/// What QEMU says of an image's bitmaps: name, flags and granularity.
fn qemu_bitmaps(file: &[u8]) -> String {
    let dir = unpack(file, None);
    let info = run_ok(
        "qemu-img",
        &["info", "--output=json", text(&dir.path().join("image.qcow2"))],
    );
    info[info.find("\"bitmaps\"").expect("bitmaps")..].to_owned()
}

/// Who goes back changes the whole disk, so that an incremental backup has to copy all of it.
#[test]
fn going_back_makes_everything_dirty_in_bitmaps_that_are_enabled() {
    let (storage, image) = small(4);
    image
        .edit_bitmaps(|edit| {
            edit.add("on", Some(4096), true)?;
            edit.add("off", Some(4096), false)
        })
        .expect("add");
    image.write_at(&[1; 4096], 8192).expect("write");
    take(&image, "a").expect("take");
    let how = Resize {
        shrink: true,
        ..Resize::default()
    };
    image.resize(700 << 10, how).expect("resize");
    image.write_at(&[2; 4096], 0).expect("write");
    let dirty = |image: &Image, name| image.dirty_bits(name).expect("bits").ranges().collect::<Vec<_>>();
    assert_eq!(dirty(&image, "on"), [0..4096, 8192..12288]);
    image.apply_snapshot(&named("a"), &mut go_on).expect("apply");
    for _ in 0..2 {
        assert_eq!(dirty(&image, "on"), std::slice::from_ref(&(0..1 << 20)));
        assert_eq!(dirty(&image, "off"), []);
        // ... and go on recording.
        image.write_at(&[3; 10], 50).expect("write");
    }
    take(&image, "b").expect("take");
    image.close().expect("close");
    let file = storage.to_vec();
    let (code, words) = common::qemu_check(&file);
    assert_eq!(code, 0, "{words}");
    assert!(!qemu_bitmaps(&file).contains("in-use"), "{}", qemu_bitmaps(&file));
    let image = common::open(storage, None);
    assert_eq!(dirty(&image, "on"), std::slice::from_ref(&(0..1 << 20)));
}

/// A snapshot with VM state, which is as if the disk had been twice as long and its end were not the guest's.
#[test]
fn vm_state_stays_with_its_snapshot() {
    let storage = Arc::new(MemStorage::new());
    let options = CreateOptions {
        size: 512 << 10,
        cluster_bits: 9,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &options).expect("create");
    let image = common::open(storage.clone(), None);
    let state = vec![0x55; 256 << 10];
    image.write_at(&vec![1; 256 << 10], 0).expect("write");
    image.write_at(&state, 256 << 10).expect("write");
    take(&image, "with").expect("take");
    image
        .resize(
            256 << 10,
            Resize {
                shrink: true,
                ..Resize::default()
            },
        )
        .expect("resize");
    image.close().expect("close");
    // The entry's extra data: bytes of VM state, then of the disk.
    let start = qcow2::Header::read(&*storage).unwrap().snapshots_offset.0;
    for (at, value) in [(40, 256u64 << 10), (48, 256 << 10)] {
        storage.write_all_at(&value.to_be_bytes(), start + at).unwrap();
    }

    let image = common::open(storage.clone(), None);
    image.write_at(&vec![2; 100 << 10], 0).expect("write");
    take(&image, "without").expect("take");
    image.apply_snapshot(&named("with"), &mut go_on).expect("apply");
    assert!(read_all(&image) == vec![1; 256 << 10]);
    assert_eq!(image.header().l1_entries, 8);
    image.write_at(&vec![3; 100 << 10], 1000).expect("write");
    image
        .delete_snapshot(&named("without"), &mut go_on)
        .expect("delete");
    image.rename_snapshot(&named("with"), "state").expect("rename");
    image.close().expect("close");

    let file = storage.to_vec();
    let (code, words) = common::qemu_check(&file);
    assert_eq!(code, 0, "{words}");
    let image = common::open(storage.clone(), None);
    let snapshot = image.snapshots().unwrap().remove(0);
    assert_eq!(
        (snapshot.vm_state_size, snapshot.size, snapshot.l1_entries),
        (256 << 10, 256 << 10, 16)
    );
    // The clusters behind the disk: seen as a disk that reaches over them.
    image.close().expect("close");
    storage
        .write_all_at(
            &(512u64 << 10).to_be_bytes(),
            qcow2::Header::read(&*storage).unwrap().snapshots_offset.0 + 48,
        )
        .unwrap();
    let whole = Image::open_snapshot(storage, &named("state"), OpenOptions::default()).expect("open");
    assert!(read_all(&whole)[256 << 10..] == state);
}

#[test]
fn version_2_keeps_its_size() {
    let storage = Arc::new(common::create("compat=0.10,cluster_size=4096", 1 << 20, None));
    let image = common::open(storage.clone(), None);
    take(&image, "a").expect("take");
    let error = image.resize(2 << 20, Resize::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    image.close().expect("close");
    // As if it had been of another size.
    let start = qcow2::Header::read(&*storage).unwrap().snapshots_offset.0;
    storage
        .write_all_at(&(512u64 << 10).to_be_bytes(), start + 48)
        .unwrap();
    let image = common::open(storage.clone(), None);
    let error = image.apply_snapshot(&named("a"), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("compat=0.10"), "{error}");
    let snapshot = Image::open_snapshot(storage, &named("a"), OpenOptions::default()).expect("open");
    assert_eq!(snapshot.size(), 512 << 10);
}

/// What lies behind the disk and is no VM state by the snapshot table: taken and gone back to where that is asked for.
#[test]
fn everything_may_be_taken_with_what_lies_behind_the_disk() {
    let storage = Arc::new(MemStorage::new());
    let options = CreateOptions {
        size: 512 << 10,
        cluster_bits: 9,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &options).expect("create");
    let image = common::open(storage.clone(), None);
    image.write_at(&vec![1; 512 << 10], 0).expect("write");
    image.close().expect("close");
    let resize = |size: u64| storage.write_all_at(&size.to_be_bytes(), 24).expect("poke");
    resize(256 << 10);

    let image = common::open(storage.clone(), None);
    let taken = image
        .create_snapshot_of(SnapshotPart::Everything, "all", SystemTime::now(), &mut go_on)
        .expect("take");
    assert_eq!(taken.l1_entries, 16);
    image.write_at(&vec![2; 256 << 10], 0).expect("write");
    image.apply_snapshot(&named("all"), &mut go_on).expect("apply");
    assert_eq!(image.header().l1_entries, 8);
    image
        .apply_snapshot_of(SnapshotPart::Everything, &named("all"), &mut go_on)
        .expect("apply");
    assert_eq!(image.header().l1_entries, 16);
    image.close().expect("close");
    let (code, words) = common::qemu_check(&storage.to_vec());
    assert_eq!(code, 0, "{words}");
    resize(512 << 10);
    assert!(read_all(&common::open(storage.clone(), None)) == vec![1; 512 << 10]);
}
