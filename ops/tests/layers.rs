//! Commit, rebase and stream on random chains: the disk stays what it is at every instant, wherever the power goes, and
//! a second run finishes what a first one has begun.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::chain::{Below, Chain, ChainOptions};
use block::gate::{Permissive, Permit};
use block::test_utils::{Recorder, Rng};
use block::{
    Access, BackingReference, BlockDevice, Error, ExtentState, FileOpener, Format, MemStorage, Preallocation,
    Result, Storage, ZeroMode,
};
use ops::{CommitOptions, Control, NewBacking, RebaseOptions, commit, rebase, stream};
use qcow2::{CreateOptions, Version};

const FORMATS: &[&dyn Format] = &[&qcow2::Qcow2, &raw::Raw];
const NAMES: [&str; 5] = ["top", "mid", "low", "base", "other"];

/// The files of a chain `top` over `mid` over `low` over `base`, which is over `other`.
#[derive(Clone, Debug)]
struct Files(HashMap<PathBuf, Arc<dyn Storage>>);

impl Files {
    fn new<S: Storage + 'static>(storages: impl IntoIterator<Item = Arc<S>>) -> Self {
        let named = NAMES.iter().map(PathBuf::from).zip(storages);
        Self(named.map(|(name, storage)| (name, storage as _)).collect())
    }

    fn open(&self, name: &str, write: bool, below: Below<'_>) -> Chain {
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
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// What a guest reads from an image.
    fn contents(&self, name: &str) -> Vec<u8> {
        let chain = self.open(name, false, Below::AsStored);
        let mut bytes = vec![0; chain.size() as usize];
        chain.read_at(&mut bytes, 0).unwrap();
        bytes
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
        found.ok_or_else(|| Error::io("open", std::io::ErrorKind::NotFound.into()).with_path(path))
    }

    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>> {
        FileOpener::open(self, Path::new(permit.path.file_name().unwrap()), access)
    }
}

fn format_of(name: &str) -> &'static str {
    if name == "other" { "raw" } else { "qcow2" }
}

fn reference(name: &str) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some(format_of(name).into()),
    }
}

/// Data, zeros, discards and holes in an open image, in units of sectors.
fn fill(device: &dyn BlockDevice, rng: &mut Rng) {
    let sectors = device.size() / 512;
    for _ in 0..rng.below(9) {
        let start = rng.below(sectors);
        let len = (1 + rng.below(24)).min(sectors - start) * 512;
        let at = start * 512;
        let byte = 1 + rng.below(255) as u8;
        match rng.below(6) {
            0 => device.zero_at(at, len, ZeroMode::Unmap),
            1 => device.discard_at(at, len),
            2 => device.write_at(&vec![0; len as usize], at),
            _ => device.write_at(&vec![byte; len as usize], at),
        }
        .unwrap();
    }
}

/// Makes the five images, each with a size and clusters of its own.
fn make(rng: &mut Rng) -> Vec<MemStorage> {
    let storages = NAMES.map(|name| Arc::new(MemStorage::new().with_path(name)));
    let files = Files::new(storages.clone());
    for (number, name) in NAMES.iter().enumerate().rev() {
        let size = (16 + rng.below(48)) * 512;
        if format_of(name) == "raw" {
            raw::create(&*storages[number], size, Preallocation::Off).unwrap();
        } else {
            let options = CreateOptions {
                size,
                version: [Version::V2, Version::V3, Version::V3][rng.below(3) as usize],
                cluster_bits: 9 + rng.below(4) as u32,
                backing: (*name != "base" || rng.coin()).then(|| reference(NAMES[number + 1])),
                ..CreateOptions::default()
            };
            qcow2::create(&*storages[number], &options).unwrap();
        }
        let chain = files.open(name, true, Below::AsStored);
        fill(&*chain, rng);
        chain.flush().unwrap();
    }
    NAMES
        .iter()
        .map(|name| MemStorage::from(files.bytes(name)).with_path(*name))
        .collect()
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
            compress,
            ..RebaseOptions::default()
        };
        let rebase_onto = |name: &str, layer| {
            let new = NewBacking {
                reference: reference(name),
                device: files.open(name, false, Below::AsStored).device(),
                layer,
            };
            let chain = files.open("top", true, Below::AsStored);
            rebase(&**chain.active(), Some(new), &options, &control)
        };
        let stream_onto = |base| {
            stream(
                &files.open("top", true, Below::AsStored),
                base,
                &options,
                &control,
            )
        };
        match self {
            Self::Commit(layer) => {
                let base = files.open(NAMES[layer], true, Below::AsStored);
                let above = files.open("top", layer == 1, Below::Layers(layer - 1));
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
        let top = files.open("top", false, Below::Nothing);
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
        match self {
            Self::Commit(1) => name == "top" || name == "mid",
            Self::Commit(layer) => name == NAMES[layer],
            _ => name == "top",
        }
    }
}

/// `top` reads as before, and nothing was written to that the job has no business with.
fn verify(files: &Files, before: &[(&str, Vec<u8>)], expected: &[u8], job: Job, what: &str) {
    let seen = files.contents("top");
    if let Some(at) = seen.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: top reads {} at {at:#x}, not {}", seen[at], expected[at]);
    }
    assert_eq!(seen.len(), expected.len(), "{what}");
    for (name, bytes) in before {
        let touched = files.bytes(name) != *bytes;
        assert!(!touched || job.writes_to(name), "{what}: {name} was written to");
    }
}

fn left_by(states: Vec<MemStorage>) -> Files {
    let named = states.into_iter().zip(NAMES);
    Files::new(named.map(|(storage, name)| Arc::new(storage.with_path(name))))
}

/// One job on a random chain, and the power gone at every point of it.
fn torture(seed: u64) {
    let mut rng = Rng::new(seed);
    let jobs = Job::all();
    let job = jobs[rng.below(jobs.len() as u64) as usize];
    let compress = rng.below(4) == 0;
    let recorder = Recorder::new();
    let made: Vec<_> = make(&mut rng)
        .into_iter()
        .map(|storage| recorder.storage(storage))
        .collect();
    let files = Files::new(made);
    let before = NAMES.map(|name| (name, files.bytes(name)));
    let expected = files.contents("top");
    let what = format!("seed {seed}: {job:?}");
    job.run(&files, compress)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let done = recorder.position();
    verify(&files, &before, &expected, job, &what);
    job.verify_done(&files, &expected, &what);
    files.check(&what);
    files.ask_qemu(&expected, &what);

    let states = recorder.crash_states();
    for point in states.points() {
        for cut in 0..5 {
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
    let top = left.open("top", false, Below::Nothing).backing_reference();
    let done = !matches!(job, Job::Commit(_)) && top.map(|top| top.name).as_deref() != Some("mid");
    if !done {
        let again = job.run(left, compress);
        again.unwrap_or_else(|error| panic!("{what}, second run: {error}"));
    }
    assert!(left.contents("top") == expected, "{what}, second run");
    job.verify_done(left, expected, what);
    left.check(what);
}

/// Layers that are shorter than those above or below them, mostly.
#[test]
fn the_disk_stays_what_it_is() {
    for seed in 1000..1600 {
        let mut rng = Rng::new(seed);
        let jobs = Job::all();
        let job = jobs[rng.below(jobs.len() as u64) as usize];
        let files = Files::new(make(&mut rng).into_iter().map(Arc::new));
        let before = NAMES.map(|name| (name, files.bytes(name)));
        let expected = files.contents("top");
        let what = format!("seed {seed}: {job:?}");
        job.run(&files, rng.below(4) == 0)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        verify(&files, &before, &expected, job, &what);
        job.verify_done(&files, &expected, &what);
        files.check(&what);
    }
}

#[test]
fn a_power_cut_anywhere_loses_nothing() {
    for seed in 0..45 {
        torture(seed);
    }
}
