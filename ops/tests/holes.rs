//! Layers that map all of a large disk over a file that is a hole nearly everywhere: what is known to be zeros is not read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::chain::{Below, Chain, ChainOptions};
use block::gate::{Permissive, Permit};
use block::test_utils::{FaultStorage, IoOp};
use block::{
    Access, BackingReference, BlockDevice, Error, FileOpener, Format, MemStorage, Preallocation, Result,
    Storage,
};
use ops::{CommitOptions, Control, NewBacking, RebaseOptions, commit, rebase, stream};

const FORMATS: &[&dyn Format] = &[&qcow2::Qcow2, &raw::Raw];
const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

/// Files that count how often they are read. At a MiB a call, reading all of a disk would take a million.
#[derive(Debug, Default)]
struct Files(HashMap<PathBuf, Arc<FaultStorage>>);

impl Files {
    /// Adds a file that `make` writes.
    fn with(mut self, name: &str, make: impl FnOnce(&MemStorage)) -> Self {
        let storage = MemStorage::new().with_path(name);
        make(&storage);
        self.0
            .insert(name.into(), Arc::new(FaultStorage::new(Arc::new(storage))));
        self
    }

    /// Adds a qcow2 image of 1 TiB that maps every cluster, and holds `data`.
    fn with_mapped(self, name: &str, data: &[(u64, u8)]) -> Self {
        let options = qcow2::CreateOptions {
            size: TIB,
            cluster_bits: 21,
            preallocation: Preallocation::Metadata,
            ..qcow2::CreateOptions::default()
        };
        let files = self.with(name, |storage| qcow2::create(storage, &options).unwrap());
        let image = files.open(name, true, Below::Nothing);
        for (offset, byte) in data {
            image.write_at(&vec![*byte; MIB as usize], *offset).unwrap();
        }
        image.settle().unwrap();
        files
    }

    fn open(&self, name: &str, write: bool, below: Below<'_>) -> Chain {
        let options = ChainOptions {
            access: Access {
                write,
                ..Access::READ
            },
            below,
            ..ChainOptions::default()
        };
        Chain::open_with(self, FORMATS, &Permissive::default(), Path::new(name), &options).unwrap()
    }

    /// Names another backing file, whatever it holds.
    fn base(self, name: &str, on: BackingReference) -> Self {
        let image = self.open(name, true, Below::Nothing);
        image.set_backing_reference(Some(on)).unwrap();
        drop(image);
        self
    }

    fn reads(&self) -> u64 {
        self.0.values().map(|file| file.calls(&[IoOp::Read])).sum()
    }
}

impl FileOpener for Files {
    fn open(&self, path: &Path, _: Access) -> Result<Arc<dyn Storage>> {
        let found = self.0.get(path).map(|file| file.clone() as Arc<dyn Storage>);
        found.ok_or_else(|| Error::io("open", std::io::ErrorKind::NotFound.into()).with_path(path))
    }

    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>> {
        FileOpener::open(self, Path::new(permit.path.file_name().unwrap()), access)
    }
}

fn reference(name: &str, format: &str) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some(format.into()),
    }
}

/// A raw disk of 1 TiB with `data`, each piece a MiB long.
fn raw_disk(storage: &MemStorage, data: &[(u64, u8)]) {
    raw::create(storage, TIB, Preallocation::Off).unwrap();
    for (offset, byte) in data {
        storage.write_all_at(&vec![*byte; MIB as usize], *offset).unwrap();
    }
}

/// The byte at each of `offsets`, in each of which a piece of a MiB is all the same.
fn bytes_at(device: &dyn BlockDevice, offsets: &[u64]) -> Vec<u8> {
    let byte_at = |offset: &u64| {
        let mut piece = vec![0; MIB as usize];
        device.read_at(&mut piece, *offset).unwrap();
        assert!(piece.iter().all(|byte| *byte == piece[0]), "{offset}");
        piece[0]
    };
    offsets.iter().map(byte_at).collect()
}

/// Hidden below the overlay, overwritten by it, only in it.
const PLACES: [u64; 3] = [5 * MIB, TIB / 3 / MIB * MIB, TIB - MIB];

#[test]
fn a_commit_makes_holes_of_what_is_a_hole_in_the_overlay() {
    let below = [(PLACES[0], 1), (PLACES[1], 2)];
    let files = Files::default()
        .with("base", |storage| raw_disk(storage, &below))
        .with_mapped("top", &[(PLACES[1], 3), (PLACES[2], 4)])
        .base("top", reference("base", "raw"));
    let base = files.open("base", true, Below::AsStored);
    let above = files.open("top", true, Below::Layers(0));
    let options = CommitOptions {
        empty: true,
        ..CommitOptions::default()
    };
    let before = files.reads();
    let moved = commit(&above, &**base.active(), &options, &Control::unwatched()).unwrap();
    let reads = files.reads() - before;
    assert!(reads < 5000, "{reads} reads");
    assert_eq!((moved.data, moved.zeros), (2 * MIB, TIB - 2 * MIB));
    assert_eq!(bytes_at(&*base, &PLACES), [0, 3, 4]);
    drop((base, above));
    assert_eq!(
        bytes_at(&*files.open("top", false, Below::AsStored), &PLACES),
        [0, 3, 4]
    );
    let taken = files.0[Path::new("base")].allocated().unwrap();
    assert_eq!(taken, Some(2 * MIB));
}

#[test]
fn a_rebase_and_a_stream_read_no_holes_of_the_old_backing() {
    let files = || {
        Files::default()
            .with_mapped("mid", &[(PLACES[0], 5)])
            .with("other", |storage| raw_disk(storage, &[(PLACES[1], 6)]))
            .with("top", |storage| {
                let options = qcow2::CreateOptions {
                    size: TIB,
                    backing: Some(reference("mid", "qcow2")),
                    ..qcow2::CreateOptions::default()
                };
                qcow2::create(storage, &options).unwrap();
            })
    };
    let (options, control) = (RebaseOptions::default(), Control::unwatched());

    let streamed = files();
    let before = streamed.reads();
    let chain = streamed.open("top", true, Below::AsStored);
    let moved = stream(&chain, None, &options, &control).unwrap();
    drop(chain);
    let reads = streamed.reads() - before;
    assert!(reads < 5000, "{reads} reads");
    assert_eq!(moved.data, MIB);

    let rebased = files();
    let before = rebased.reads();
    let chain = rebased.open("top", true, Below::AsStored);
    let new = NewBacking {
        reference: reference("other", "raw"),
        device: rebased.open("other", false, Below::AsStored).device(),
        layer: None,
    };
    let moved = rebase(&chain, Some(new), &options, &control).unwrap();
    drop(chain);
    let reads = rebased.reads() - before;
    assert!(reads < 5000, "{reads} reads");
    // Where the new one holds something, zeros have to be stated.
    assert_eq!((moved.data, moved.zeros), (MIB, MIB));

    for files in [streamed, rebased] {
        let top = files.open("top", false, Below::AsStored);
        assert_eq!(bytes_at(&*top, &PLACES), [5, 0, 0]);
    }
}
