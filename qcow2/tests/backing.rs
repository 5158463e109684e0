//! Another backing file: its name changes whole or not at all, and what an image says of itself holds over it.

mod common;

use std::sync::Arc;

use block::test_utils::{Recorder, Rng, seeds};
use block::{
    Access, Backing, BackingReference, BlockDevice, ErrorKind, ExtentState, MemStorage, Overlay, Storage,
    ZeroMode,
};
use common::{Bytes, text};
use qcow2::{Header, Image, OpenOptions};

fn reference(name: &str) -> BackingReference {
    BackingReference {
        name: name.to_owned(),
        format: Some("raw".into()),
    }
}

fn alone(storage: Arc<dyn Storage>) -> Image {
    let options = OpenOptions {
        access: Access::WRITE,
        backing: Backing::Detached,
        ..OpenOptions::default()
    };
    Image::open(storage, options).unwrap()
}

fn random_name(rng: &mut Rng) -> String {
    let longest = [12, 60, 300, 1023][rng.below(4) as usize];
    let len = 1 + rng.below(longest);
    (0..len).map(|_| char::from(b'a' + rng.below(26) as u8)).collect()
}

/// What `qemu-img info` says the backing file and its format are.
fn qemu_backing(image: &MemStorage) -> Option<BackingReference> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image.to_vec()).unwrap();
    let info = common::run_ok("qemu-img", &["info", "-f", "qcow2", text(&path)]);
    let field = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.split(" (").next().unwrap_or_default().to_owned())
    };
    Some(BackingReference {
        name: field("backing file: ")?,
        format: field("backing file format: "),
    })
}

#[test]
fn a_power_cut_leaves_the_old_name_or_the_new_one() {
    for seed in seeds(24) {
        let mut rng = Rng::new(seed);
        let options = [
            "compat=0.10",
            "compat=1.1",
            "cluster_size=512",
            "cluster_size=1k",
            "cluster_size=4k",
            "cluster_size=2M",
            "compat=0.10,cluster_size=8k",
        ][rng.below(7) as usize];
        let recorder = Recorder::new();
        let storage = recorder.storage(common::create(options, 1 << 20, None));
        let image = alone(storage.clone());
        let mut now = None;
        let mut names = vec![(0, now.clone())];
        for _ in 0..5 {
            let next = (rng.below(6) > 0).then(|| reference(&random_name(&mut rng)));
            match image.set_backing_reference(next.clone()) {
                Ok(()) => {
                    names.push((recorder.position(), next.clone()));
                    now = next;
                }
                Err(error) => {
                    assert!(
                        options.contains("512") || options.contains("1k"),
                        "{options}: {error}"
                    );
                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                }
            }
            assert_eq!(image.backing_reference(), now);
        }
        image.close().unwrap();
        let states = recorder.crash_states();
        for point in states.points() {
            let done = names
                .iter()
                .rposition(|(position, _)| *position <= point)
                .unwrap();
            let allowed = &names[done..names.len().min(done + 2)];
            for cut in seeds(6) {
                let what = format!("{options} seed {seed} point {point} cut {cut}");
                let disk = states.at(point, cut).remove(0);
                let found = Header::read(&disk)
                    .unwrap_or_else(|error| panic!("{what}: {error}"))
                    .backing();
                assert!(
                    allowed.iter().any(|(_, name)| *name == found),
                    "{what}: {found:?}"
                );
                if cut == 5 && point % 4 == 0 {
                    assert_eq!(qemu_backing(&disk), found, "{what}");
                }
            }
        }
        assert_eq!(qemu_backing(&storage.snapshot()), now, "{options} seed {seed}");
        let (code, words) = qemu_check_alone(&storage.snapshot());
        assert_eq!(code, 0, "{words}");
    }
}

/// `qemu-img check` without its backing file, which it would open.
fn qemu_check_alone(image: &MemStorage) -> (i32, String) {
    let copy = Arc::new(MemStorage::from(image.to_vec()));
    alone(copy.clone()).set_backing_reference(None).unwrap();
    common::qemu_check(&copy.to_vec())
}

#[test]
fn names_that_cannot_be_stored_change_nothing() {
    let storage = Arc::new(common::create("compat=1.1", 1 << 20, Some(1 << 20)));
    let before = storage.to_vec();
    let image = alone(storage.clone());
    for name in ["", &"x".repeat(1024), "a\0b"] {
        let error = image.set_backing_reference(Some(reference(name))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    image.write_at(&[1], 0).unwrap();
    image.close().unwrap();
    assert_eq!(storage.to_vec()[..512], before[..512]);
}

#[test]
fn what_is_unmapped_falls_through_and_what_is_stated_zero_does_not() {
    for options in ["compat=0.10", "compat=1.1", "compat=1.1,cluster_size=512"] {
        let short = Arc::new(Bytes::pattern(100 << 10, 1));
        let below: Arc<dyn BlockDevice> = short.clone();
        let storage = Arc::new(common::create(options, 400 << 10, Some(100 << 10)));
        let image = common::open(storage.clone(), Some(&below));
        let cluster = image.geometry().cluster_size();
        image.write_at(&vec![7; 400 << 10], 0).unwrap();
        image.unmap_to_backing(0, 400 << 10).unwrap();
        assert_eq!(image.own_extent_at(0, u64::MAX).unwrap().state, ExtentState::Hole);
        // Past the end of what lies below, zero_at states nothing; a longer file shows through later.
        image.zero_at(200 << 10, 1000, ZeroMode::Unmap).unwrap();
        image.state_zero(140_000, 50_000).unwrap();
        image.write_at(&[9; 600], 3 * cluster - 300).unwrap();
        image.unmap_to_backing(2 * cluster + 1, cluster).unwrap();
        image.close().unwrap();

        let long = Bytes::pattern(400 << 10, 2);
        let mut expected = long.0.clone();
        // Nothing lay below the parts of clusters around what was stated.
        let zeros = 140_000 / cluster * cluster..190_000u64.next_multiple_of(cluster);
        expected[zeros.start as usize..zeros.end as usize].fill(0);
        // A cluster holds what was below when it was written to.
        let (start, len) = (2 * cluster as usize, 2 * cluster as usize);
        let mut written = short.0[start.min(100 << 10)..(start + len).min(100 << 10)].to_vec();
        written.resize(len, 0);
        written[cluster as usize - 300..][..600].fill(9);
        expected[start..start + len].copy_from_slice(&written);
        assert!(
            common::qemu_read(&storage.to_vec(), Some(&long.0)) == expected,
            "{options}"
        );
        assert_eq!(common::qemu_check(&storage.to_vec()).0, 0, "{options}");
    }
}
