//! Commit, rebase and stream on random chains: the disk stays what it is at every instant, wherever the power goes, and
//! a second run finishes what a first one has begun.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use block::chain::{Below, Chain, ChainOptions};
use block::gate::{Permissive, Permit};
use block::test_utils::{Fault, FaultStorage, IoOp, Recorder, Rng, seeds};
use block::{
    Access, Backing, BackingReference, BlockDevice, DataFileReference, Error, ExtentState, FileOpener,
    Format, MemStorage, Preallocation, Result, SnapshotSelector, Storage, ZeroMode,
};
use ops::{CommitOptions, Control, NewBacking, RebaseOptions, commit, rebase, stream};
use qcow2::{CreateOptions, Image, OpenOptions, Version};

const FORMATS: &[&dyn Format] = &[&qcow2::Qcow2, &raw::Raw];
/// The images, and data files that some of them have.
const NAMES: [&str; 9] = [
    "top",
    "mid",
    "low",
    "base",
    "other",
    "top.data",
    "mid.data",
    "low.data",
    "base.data",
];
const IMAGES: usize = 5;

/// The files of a chain `top` over `mid` over `low` over `base`, which is over `other`.
#[derive(Clone, Debug)]
struct Files(HashMap<PathBuf, Arc<dyn Storage>>);

impl Files {
    fn new<S: Storage + 'static>(storages: impl IntoIterator<Item = Arc<S>>) -> Self {
        let named = NAMES.iter().map(PathBuf::from).zip(storages);
        Self(named.map(|(name, storage)| (name, storage as _)).collect())
    }

    fn open(&self, name: &str, write: bool, below: Below<'_>) -> Chain {
        let opened = self.try_open(name, write, below);
        opened.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn try_open(&self, name: &str, write: bool, below: Below<'_>) -> Result<Chain> {
        let options = ChainOptions {
            format: Some(format_of(name)),
            access: Access {
                write,
                ..Access::READ
            },
            below,
            ..ChainOptions::default()
        };
        Chain::open_with(self, FORMATS, &Permissive::default(), Path::new(name), &options)
    }

    /// What a guest reads from an image.
    fn contents(&self, name: &str) -> Vec<u8> {
        let chain = self.open(name, false, Below::AsStored);
        let mut bytes = vec![0; chain.size() as usize];
        chain.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// An image by itself, over `backing`.
    fn image(&self, name: &str, access: Access, backing: Backing) -> Image {
        let data = format!("{name}.data");
        let storage = Arc::clone(&self.0[Path::new(name)]);
        let options = OpenOptions {
            access,
            backing,
            data_file: self
                .has_data_file(name)
                .then(|| Arc::clone(&self.0[Path::new(&data)])),
            ..OpenOptions::default()
        };
        Image::open(storage, options).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// What an image is based on, as it says itself.
    fn backing_device(&self, name: &str) -> Backing {
        let header = qcow2::Header::read(&*self.0[Path::new(name)]).unwrap();
        header.backing_name.map_or(Backing::None, |name| {
            Backing::Device(self.open(&name, false, Below::AsStored).device())
        })
    }

    fn has_data_file(&self, name: &str) -> bool {
        let header = qcow2::Header::read(&*self.0[Path::new(name)]).unwrap();
        header.data_file().is_some()
    }

    /// What is dirty in an image since the chain was made; `None` if nobody knows.
    fn changed(&self, name: &str) -> Option<Vec<Range<u64>>> {
        let image = self.image(name, Access::READ, Backing::Detached);
        let bitmaps = image.bitmaps().unwrap();
        let bitmap = bitmaps.iter().find(|bitmap| bitmap.name == SINCE)?;
        let known = || image.dirty_bits(SINCE).unwrap().ranges().collect();
        (!bitmap.in_use).then(known)
    }

    /// The snapshot of an image, if it has one. What has one has no backing file.
    fn snapshot(&self, name: &str) -> Option<Vec<u8>> {
        let storage = &self.0[Path::new(name)];
        let options = || OpenOptions {
            backing: Backing::Detached,
            ..OpenOptions::default()
        };
        if qcow2::Header::read(&**storage).unwrap().snapshot_count == 0 {
            return None;
        }
        let kept = SnapshotSelector::name("kept");
        let image = Image::open_snapshot(Arc::clone(storage), &kept, options()).unwrap();
        let mut bytes = vec![0; image.size() as usize];
        image.read_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let storage = &self.0[Path::new(name)];
        let mut bytes = vec![0; storage.len().unwrap() as usize];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// No image has anything worse than leaks.
    fn check(&self, what: &str) {
        for name in NAMES.iter().filter(|name| format_of(name) == "qcow2") {
            let storage = &*self.0[Path::new(name)];
            let report = qcow2::check(storage, &qcow2::CheckOptions::default(), &mut |_| {
                ControlFlow::Continue(())
            });
            let report = report.unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
            assert!(
                report.corruptions == 0 && report.check_errors == 0,
                "{what}: {name}: {report:?}"
            );
        }
    }

    /// QEMU reads `expected` from `top` and finds nothing worse than leaks.
    fn ask_qemu(&self, expected: &[u8], what: &str) {
        let dir = tempfile::tempdir().unwrap();
        for name in NAMES {
            std::fs::write(dir.path().join(name), self.bytes(name)).unwrap();
        }
        let run = |line: &str| {
            let mut command = Command::new("qemu-img");
            command.args(line.split(' ')).current_dir(dir.path());
            command.output().expect("qemu-img must be installed")
        };
        for name in NAMES.iter().filter(|name| format_of(name) == "qcow2") {
            let checked = run(&format!("check -q -f qcow2 {name}"));
            assert!(
                matches!(checked.status.code(), Some(0 | 3)),
                "{what}: {name}: {checked:?}"
            );
        }
        let converted = run("convert -f qcow2 -O raw top out");
        assert!(converted.status.success(), "{what}: {converted:?}");
        let seen = std::fs::read(dir.path().join("out")).unwrap();
        assert!(seen == expected, "{what}: QEMU reads something else");
    }
}

impl FileOpener for Files {
    fn open(&self, path: &Path, _: Access) -> Result<Arc<dyn Storage>> {
        let found = self.0.get(path).cloned();
        found.ok_or_else(|| Error::io("open", ErrorKind::NotFound.into()).with_path(path))
    }

    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>> {
        FileOpener::open(self, Path::new(permit.path.file_name().unwrap()), access)
    }
}

fn format_of(name: &str) -> &'static str {
    if ["top", "mid", "low", "base"].contains(&name) {
        "qcow2"
    } else {
        "raw"
    }
}

fn reference(name: &str) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some(format_of(name).into()),
    }
}

/// Data, zeros, discards and holes in an open image, in units of sectors; compressed clusters too, if `compress`.
fn fill(device: &dyn BlockDevice, compress: bool, rng: &mut Rng) {
    let sectors = device.size() / 512;
    for _ in 0..rng.below(9) {
        let start = rng.below(sectors);
        let len = (1 + rng.below(24)).min(sectors - start) * 512;
        let at = start * 512;
        let byte = 1 + rng.below(255) as u8;
        match (rng.below(6), device.compressed()) {
            (0, _) => device.zero_at(at, len, ZeroMode::Unmap),
            (1, _) => device.discard_at(at, len),
            (2, _) => device.write_at(&vec![0; len as usize], at),
            (3, Some(writer)) if compress => {
                let cluster = device.info().cluster_size.unwrap();
                let bytes = writer.compress(&vec![byte; cluster as usize]).unwrap().unwrap();
                writer.write_compressed_at(&bytes, at / cluster * cluster)
            }
            _ => device.write_at(&vec![byte; len as usize], at),
        }
        .unwrap();
    }
}

/// What the images of a chain are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Subclusters, data files, compressed clusters, bitmaps, and snapshots in what has no backing file.
    Mixed,
}

/// The bitmap that knows what has changed since the chain was made.
const SINCE: &str = "since";

fn random_options(kind: Kind, number: usize, rng: &mut Rng) -> CreateOptions {
    let name = NAMES[number];
    let backing = (name != "base" || rng.coin()).then(|| reference(NAMES[number + 1]));
    let plain = CreateOptions {
        size: (16 + rng.below(48)) * 512,
        version: [Version::V2, Version::V3, Version::V3][rng.below(3) as usize],
        cluster_bits: 9 + rng.below(4) as u32,
        backing,
        ..CreateOptions::default()
    };
    if kind == Kind::Plain {
        return plain;
    }
    let extended_l2 = rng.coin();
    let raw = plain.backing.is_none() && rng.coin();
    CreateOptions {
        version: Version::V3,
        extended_l2,
        cluster_bits: if extended_l2 { 14 } else { plain.cluster_bits },
        data_file: rng.coin().then(|| DataFileReference {
            name: Some(format!("{name}.data")),
            raw,
        }),
        ..plain
    }
}

/// Makes the five images, each with a size and clusters of its own.
fn make(kind: Kind, rng: &mut Rng) -> Vec<MemStorage> {
    let storages = NAMES.map(|name| Arc::new(MemStorage::new().with_path(name)));
    let files = Files::new(storages.clone());
    for (number, name) in NAMES[..IMAGES].iter().enumerate().rev() {
        if format_of(name) == "raw" {
            let size = (16 + rng.below(48)) * 512;
            raw::create(&*storages[number], size, Preallocation::Off).unwrap();
        } else {
            let options = random_options(kind, number, rng);
            if options.data_file.is_some() {
                storages[IMAGES + number].set_len(options.size).unwrap();
            }
            qcow2::create(&*storages[number], &options).unwrap();
        }
        let chain = files.open(name, true, Below::AsStored);
        fill(&*chain, kind == Kind::Mixed, rng);
        chain.flush().unwrap();
        drop(chain);
        if kind == Kind::Mixed && format_of(name) == "qcow2" {
            mix(&files, name, rng);
        }
    }
    NAMES
        .iter()
        .map(|name| MemStorage::from(files.bytes(name)).with_path(*name))
        .collect()
}

/// A snapshot and more of everything, where the image can have one by itself; and a bitmap.
fn mix(files: &Files, name: &str, rng: &mut Rng) {
    let device = files.backing_device(name);
    let image = files.image(name, Access::WRITE, device);
    let header = image.header();
    if header.backing_name.is_none() && header.data_file().is_none() {
        let go_on = &mut |_| ControlFlow::Continue(());
        image
            .create_snapshot("kept", SystemTime::UNIX_EPOCH, go_on)
            .unwrap();
        fill(&image, true, rng);
    }
    if rng.below(4) > 0 {
        image
            .edit_bitmaps(|bitmaps| bitmaps.add(SINCE, Some(512), true))
            .unwrap();
    }
    image.close().unwrap();
}

/// Something to do to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Into the layer of this number; `top` is emptied if that is the first below.
    Commit(usize),
    /// Onto the layer of this number.
    Rebase(usize),
    /// Onto `other`, as an image by itself.
    RebaseElsewhere,
    Flatten,
    Stream(usize),
}

impl Job {
    fn all() -> Vec<Self> {
        let mut jobs = vec![Self::RebaseElsewhere, Self::Flatten];
        for layer in 1..4 {
            jobs.extend([Self::Commit(layer), Self::Rebase(layer), Self::Stream(layer)]);
        }
        jobs
    }

    fn run(self, files: &Files, compress: bool) -> Result<()> {
        let control = Control::unwatched();
        let options = RebaseOptions {
            // Data files hold nothing compressed.
            compress: compress && !files.has_data_file("top"),
            ..RebaseOptions::default()
        };
        let rebase_onto = |name: &str, layer| {
            let new = NewBacking {
                reference: reference(name),
                device: files.try_open(name, false, Below::AsStored)?.device(),
                layer,
            };
            let chain = files.try_open("top", true, Below::AsStored)?;
            rebase(&chain, Some(new), &options, &control)
        };
        let stream_onto = |base| {
            stream(
                &files.try_open("top", true, Below::AsStored)?,
                base,
                &options,
                &control,
            )
        };
        match self {
            Self::Commit(layer) => {
                let base = files.try_open(NAMES[layer], true, Below::AsStored)?;
                let above = files.try_open("top", layer == 1, Below::Layers(layer - 1))?;
                let options = CommitOptions {
                    empty: layer == 1,
                    ..CommitOptions::default()
                };
                commit(&above, &**base.active(), &options, &control)
            }
            // Half of the time it does not know that it is a layer of the chain.
            Self::Rebase(layer) => rebase_onto(NAMES[layer], compress.then_some(layer as u32)),
            Self::RebaseElsewhere => rebase_onto("other", None),
            Self::Flatten => stream_onto(None),
            Self::Stream(layer) => stream_onto(Some((layer as u32, reference(NAMES[layer])))),
        }
        .map(drop)
    }

    /// What `top` is based on afterwards.
    fn backing_after(self) -> Option<&'static str> {
        match self {
            Self::Commit(_) => Some("mid"),
            Self::Rebase(layer) | Self::Stream(layer) => Some(NAMES[layer]),
            Self::RebaseElsewhere => Some("other"),
            Self::Flatten => None,
        }
    }

    fn verify_done(self, files: &Files, expected: &[u8], what: &str) {
        let top = files.open("top", false, Below::Layers(0));
        let backing = top.backing_reference().map(|reference| reference.name);
        assert_eq!(backing.as_deref(), self.backing_after(), "{what}");
        if let Self::Commit(layer) = self {
            let base = files.contents(NAMES[layer]);
            assert!(base.starts_with(expected), "{what}: the base");
            let run = top.own_extent_at(0, u64::MAX).unwrap();
            let empty = run.state == ExtentState::Hole && run.len == top.size();
            assert!(empty || layer > 1, "{what}: not emptied, {run:?}");
        }
    }

    /// The files that it writes to.
    fn writes_to(self, name: &str) -> bool {
        let image = name.strip_suffix(".data").unwrap_or(name);
        match self {
            Self::Commit(1) => image == "top" || image == "mid",
            Self::Commit(layer) => image == NAMES[layer],
            _ => image == "top",
        }
    }
}

/// What a chain was like before a job.
struct Before {
    files: Vec<(&'static str, Vec<u8>)>,
    /// What a guest reads from each qcow2 image.
    disks: Vec<(&'static str, Vec<u8>)>,
    snapshots: Vec<(&'static str, Option<Vec<u8>>)>,
}

impl Before {
    fn of(files: &Files) -> Self {
        let images = || NAMES.into_iter().filter(|name| format_of(name) == "qcow2");
        Self {
            files: NAMES.map(|name| (name, files.bytes(name))).to_vec(),
            disks: images().map(|name| (name, files.contents(name))).collect(),
            snapshots: images().map(|name| (name, files.snapshot(name))).collect(),
        }
    }
}

/// `top` reads as before, and so do snapshots; nothing was written to that the job has no business with; and what has changed is
/// dirty in bitmaps that claim to know.
fn verify(files: &Files, before: &Before, expected: &[u8], job: Job, what: &str) {
    let seen = files.contents("top");
    if let Some(at) = seen.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: top reads {} at {at:#x}, not {}", seen[at], expected[at]);
    }
    assert_eq!(seen.len(), expected.len(), "{what}");
    for (name, bytes) in &before.files {
        let touched = files.bytes(name) != *bytes;
        assert!(!touched || job.writes_to(name), "{what}: {name} was written to");
    }
    for (name, snapshot) in before.snapshots.iter().filter(|(name, _)| job.writes_to(name)) {
        assert!(
            files.snapshot(name) == *snapshot,
            "{what}: the snapshot of {name}"
        );
    }
    for (name, disk) in before.disks.iter().filter(|(name, _)| job.writes_to(name)) {
        let Some(dirty) = files.changed(name) else {
            continue;
        };
        let seen = files.contents(name);
        let changed = seen.iter().zip(disk).enumerate().filter(|(_, (a, b))| a != b);
        for (at, _) in changed {
            let known = dirty.iter().any(|range| range.contains(&(at as u64)));
            assert!(
                known,
                "{what}: {name} has changed at {at:#x}, and its bitmap does not know"
            );
        }
    }
}

fn left_by(states: Vec<MemStorage>) -> Files {
    let named = states.into_iter().zip(NAMES);
    Files::new(named.map(|(storage, name)| Arc::new(storage.with_path(name))))
}

/// One job on a random chain, and the power gone at every point of it.
fn torture(kind: Kind, seed: u64) {
    let mut rng = Rng::new(seed);
    let jobs = Job::all();
    let job = jobs[rng.below(jobs.len() as u64) as usize];
    let compress = rng.below(4) == 0;
    let recorder = Recorder::new();
    let made: Vec<_> = make(kind, &mut rng)
        .into_iter()
        .map(|storage| recorder.storage(storage))
        .collect();
    let files = Files::new(made);
    let before = Before::of(&files);
    let expected = files.contents("top");
    let what = format!("{kind:?} seed {seed}: {job:?}");
    job.run(&files, compress)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let done = recorder.position();
    verify(&files, &before, &expected, job, &what);
    job.verify_done(&files, &expected, &what);
    files.check(&what);
    files.ask_qemu(&expected, &what);

    let states = recorder.crash_states();
    for point in states.points() {
        for cut in seeds(5) {
            let what = format!("{what}, point {point} of {done}, cut {cut}");
            let left = left_by(states.at(point, cut));
            verify(&left, &before, &expected, job, &what);
            left.check(&what);
            if point == done {
                job.verify_done(&left, &expected, &what);
            }
            let number = point * 5 + cut as usize;
            if number.is_multiple_of(151) {
                left.ask_qemu(&expected, &what);
            }
            if number.is_multiple_of(11) {
                second_run(&left, &expected, job, compress, &what);
            }
        }
    }
}

/// The same job again on what a power cut has left.
fn second_run(left: &Files, expected: &[u8], job: Job, compress: bool, what: &str) {
    let top = left.open("top", false, Below::Layers(0)).backing_reference();
    let done = !matches!(job, Job::Commit(_)) && top.map(|top| top.name).as_deref() != Some("mid");
    if !done {
        let again = job.run(left, compress);
        again.unwrap_or_else(|error| panic!("{what}, second run: {error}"));
    }
    assert!(left.contents("top") == expected, "{what}, second run");
    job.verify_done(left, expected, what);
    left.check(what);
}

fn keeps_the_disk(kind: Kind, seed: u64) {
    let mut rng = Rng::new(seed);
    let jobs = Job::all();
    let job = jobs[rng.below(jobs.len() as u64) as usize];
    let files = Files::new(make(kind, &mut rng).into_iter().map(Arc::new));
    let before = Before::of(&files);
    let expected = files.contents("top");
    let what = format!("{kind:?} seed {seed}: {job:?}");
    job.run(&files, rng.below(4) == 0)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    verify(&files, &before, &expected, job, &what);
    job.verify_done(&files, &expected, &what);
    files.check(&what);
    if seed.is_multiple_of(16) {
        files.ask_qemu(&expected, &what);
    }
}

/// Layers that are shorter than those above or below them, mostly.
#[test]
fn the_disk_stays_what_it_is() {
    (1000..1600).for_each(|seed| keeps_the_disk(Kind::Plain, seed));
}

#[test]
fn the_disk_stays_what_it_is_whatever_the_layers_have() {
    (1000..1400).for_each(|seed| keeps_the_disk(Kind::Mixed, seed));
}

#[test]
fn a_power_cut_anywhere_loses_nothing() {
    seeds(45).for_each(|seed| torture(Kind::Plain, seed));
}

#[test]
fn a_power_cut_anywhere_loses_nothing_whatever_the_layers_have() {
    seeds(30).for_each(|seed| torture(Kind::Mixed, seed));
}

/// One job, and every call of it that a host can refuse, refused: it says so, and what it leaves is as after a power cut.
fn survives_faults(kind: Kind, seed: u64) {
    let mut rng = Rng::new(seed);
    let jobs = Job::all();
    let job = jobs[rng.below(jobs.len() as u64) as usize];
    let made = make(kind, &mut rng);
    let pristine = Files::new(made.iter().map(|storage| Arc::new(storage.clone())));
    let before = Before::of(&pristine);
    let expected = pristine.contents("top");
    let hosts = || {
        let host = |storage: &MemStorage| Arc::new(FaultStorage::new(Arc::new(storage.clone())));
        made.iter().map(host).collect::<Vec<_>>()
    };
    let counting = hosts();
    job.run(&Files::new(counting.clone()), false).unwrap();
    for (number, host) in counting.iter().enumerate() {
        // The last sync is that of the image that is dropped, all of it durable: nobody is told of it.
        let told = host.calls(&IoOp::ALL) - u64::from(host.calls(&[IoOp::Sync]) > 0);
        for call in 1..=told {
            let error = [ErrorKind::Other, ErrorKind::StorageFull][rng.below(2) as usize];
            let fault = if rng.coin() {
                Fault::nth(call, error)
            } else {
                Fault::from_nth(call, error)
            };
            let what = format!("{kind:?} seed {seed}: {job:?}, {fault:?} in {}", NAMES[number]);
            let hosts = hosts();
            hosts[number].inject(fault);
            let files = Files::new(hosts.clone());
            let result = job.run(&files, false);
            let failed = hosts[number].failed() > 0;
            hosts[number].heal();
            verify(&files, &before, &expected, job, &what);
            files.check(&what);
            match result {
                Ok(()) => {
                    assert!(!failed, "{what}: a wrong success");
                    job.verify_done(&files, &expected, &what);
                }
                Err(_) => second_run(&files, &expected, job, false, &what),
            }
        }
    }
}

#[test]
fn a_host_that_refuses_any_call_loses_nothing() {
    seeds(16).for_each(|seed| survives_faults(Kind::Plain, seed));
    seeds(24).for_each(|seed| survives_faults(Kind::Mixed, seed));
}
