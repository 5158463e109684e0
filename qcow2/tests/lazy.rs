//! Lazy refcounts: what is postponed, what that saves, and when refcounts are right.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::test_utils::{Change, Recorder, RecordingStorage};
use block::{BlockDevice, MemStorage, Resize, SnapshotSelector, Storage, ZeroMode};
use qcow2::{Amendment, CompatibleFeatures, Header, Image, IncompatibleFeatures, Version};

const CLUSTER: u64 = 64 << 10;
const DISK: u64 = 64 << 20;

/// An image with a log of what is done to its file.
struct Logged {
    recorder: Recorder,
    storage: Arc<RecordingStorage>,
    image: Image,
}

impl Logged {
    fn new(options: &str) -> Self {
        let recorder = Recorder::new();
        let storage = recorder.storage(common::create(options, DISK, None));
        let image = common::open(storage.clone(), None);
        Self {
            recorder,
            storage,
            image,
        }
    }

    /// How many syncs and writes `work` costs.
    fn cost(&self, work: impl FnOnce(&Image)) -> (usize, usize) {
        let before = self.recorder.position();
        work(&self.image);
        let entries = self.recorder.entries().split_off(before);
        let count = |kind: fn(&Change) -> bool| entries.iter().filter(|entry| kind(&entry.change)).count();
        (
            count(|change| matches!(change, Change::Sync)),
            count(|change| matches!(change, Change::Write { .. })),
        )
    }

    fn is_dirty(&self) -> bool {
        is_dirty(&self.storage.snapshot())
    }

    /// The file as it is now is whole and not dirty.
    fn assert_sound(&self, what: &str) {
        assert_sound(&self.storage.snapshot(), what);
    }
}

fn is_dirty(file: &MemStorage) -> bool {
    let header = Header::read(file).expect("the header is whole");
    header.incompatible.contains(IncompatibleFeatures::DIRTY)
}

fn assert_sound(file: &MemStorage, what: &str) {
    assert!(!is_dirty(file), "{what}: dirty");
    let (code, words) = common::qemu_check(&file.to_vec());
    assert!(code == 0 || code == 3, "{what}: {words}");
}

fn write(image: &Image, cluster: u64) {
    let bytes = vec![cluster as u8 + 1; CLUSTER as usize];
    image.write_at(&bytes, cluster * CLUSTER).expect("write");
}

#[test]
fn a_flush_has_no_refcounts_to_write_and_one_sync_less_where_only_they_had_to_be_first() {
    for (options, lazy) in [("lazy_refcounts=on", true), ("lazy_refcounts=off", false)] {
        let logged = Logged::new(options);
        for cluster in 0..8 {
            write(&logged.image, cluster);
        }
        logged.image.flush().expect("flush");
        assert_eq!(logged.is_dirty(), lazy);
        // Data before the entries that name it, always.
        let (syncs, writes) = logged.cost(|image| {
            write(image, 9);
            image.flush().expect("flush");
        });
        assert_eq!((syncs, writes), if lazy { (2, 2) } else { (2, 3) }, "{options}");
        // What is given up by this flush is counted as free by the next.
        for cluster in 0..3 {
            let (syncs, writes) = logged.cost(|image| {
                image
                    .zero_at(cluster * CLUSTER, CLUSTER, ZeroMode::Unmap)
                    .expect("zero");
                image.flush().expect("flush");
            });
            let expected = match (lazy, cluster) {
                (true, _) => (1, 1),
                (false, 0) => (2, 1),
                (false, _) => (2, 2),
            };
            assert_eq!((syncs, writes), expected, "{options} {cluster}");
        }
        // In place.
        let (syncs, writes) = logged.cost(|image| {
            write(image, 4);
            image.flush().expect("flush");
        });
        assert_eq!(syncs, 1, "{options}: {writes} writes");
        logged.image.close().expect("close");
        assert_sound(&logged.storage.snapshot(), options);
    }
}

#[test]
fn the_bit_is_set_before_anything_is_named_that_is_not_counted() {
    let logged = Logged::new("lazy_refcounts=on");
    logged.image.flush().expect("flush");
    assert!(!logged.is_dirty(), "nothing is postponed yet");
    write(&logged.image, 1);
    assert!(!logged.is_dirty(), "nothing is named yet");
    logged.image.flush().expect("flush");
    assert!(logged.is_dirty());
    let (_, words) = common::qemu_check(&logged.storage.snapshot().to_vec());
    assert!(words.contains("refcount=0 reference=1"), "{words}");
    // QEMU recovers it, and so do we.
    let repaired = common::qemu_repair(&logged.storage.snapshot().to_vec());
    assert!(
        common::qemu_read(&repaired.to_vec(), None)[CLUSTER as usize..][..CLUSTER as usize]
            == vec![2; CLUSTER as usize]
    );
    let crashed = Arc::new(logged.storage.snapshot());
    let again = common::open(crashed.clone(), None);
    assert!(!is_dirty(&crashed));
    write(&again, 2);
    let mut bytes = vec![0; CLUSTER as usize];
    again.read_at(&mut bytes, CLUSTER).expect("read");
    assert!(bytes.iter().all(|byte| *byte == 2));
    again.close().expect("close");
    assert_sound(&crashed, "recovered");
    logged.image.settle().expect("settle");
    logged.assert_sound("settled");
    // And from the start.
    write(&logged.image, 3);
    logged.image.flush().expect("flush");
    assert!(logged.is_dirty());
    drop(logged.image);
    assert_sound(&logged.storage.snapshot(), "dropped");
}

#[test]
fn what_needs_right_refcounts_finds_and_leaves_them() {
    type Op = (&'static str, fn(&Image));
    let ops: [Op; 7] = [
        ("snapshot", |image| {
            image
                .create_snapshot("s", std::time::SystemTime::UNIX_EPOCH, &mut |_| {
                    ControlFlow::Continue(())
                })
                .expect("snapshot");
        }),
        ("going back", |image| {
            let which = SnapshotSelector::name("s");
            image
                .apply_snapshot(&which, &mut |_| ControlFlow::Continue(()))
                .expect("going back");
        }),
        ("deletion", |image| {
            let which = SnapshotSelector::name("s");
            image
                .delete_snapshot(&which, &mut |_| ControlFlow::Continue(()))
                .expect("deletion");
        }),
        ("growing", |image| {
            image.resize(DISK * 20, Resize::default()).expect("resize");
        }),
        ("shrinking", |image| {
            let how = Resize {
                shrink: true,
                ..Resize::default()
            };
            image.resize(DISK, how).expect("resize");
        }),
        ("no backing", |image| {
            use block::Overlay;
            image.set_backing_reference(None).expect("the backing");
        }),
        ("closing", |image| {
            image.settle().expect("settle");
        }),
    ];
    let logged = Logged::new("lazy_refcounts=on");
    for (number, (what, op)) in (0..).zip(ops) {
        write(&logged.image, 2 * number);
        logged.image.flush().expect("flush");
        assert!(logged.is_dirty(), "{what}");
        write(&logged.image, 2 * number + 1);
        op(&logged.image);
        logged.assert_sound(what);
    }
}

#[test]
fn amending_leaves_a_clean_image_of_any_kind() {
    let amendments = [
        Amendment {
            lazy_refcounts: Some(false),
            ..Amendment::default()
        },
        Amendment {
            version: Some(Version::V2),
            ..Amendment::default()
        },
        Amendment {
            refcount_order: Some(6),
            ..Amendment::default()
        },
    ];
    for amendment in amendments {
        let logged = Logged::new("lazy_refcounts=on");
        write(&logged.image, 5);
        logged.image.flush().expect("flush");
        assert!(logged.is_dirty());
        write(&logged.image, 6);
        logged
            .image
            .amend(&amendment, &mut |_| ControlFlow::Continue(()))
            .expect("amend");
        logged.assert_sound(&format!("{amendment:?}"));
        drop(logged.image);
        let file = logged.storage.snapshot();
        assert_sound(&file, "closed");
        let lazy = Header::read(&file)
            .expect("sound")
            .compatible
            .contains(CompatibleFeatures::LAZY_REFCOUNTS);
        assert_eq!(lazy, amendment.refcount_order.is_some());
        let disk = common::qemu_read(&file.to_vec(), None);
        assert!(
            disk[5 * CLUSTER as usize..][..CLUSTER as usize]
                .iter()
                .all(|byte| *byte == 6)
        );
    }
}

/// A bit that was switched on is followed once the image is opened again.
#[test]
fn an_image_can_become_lazy() {
    let storage = Arc::new(common::create("compat=1.1", DISK, None));
    let image = common::open(storage.clone(), None);
    let amendment = Amendment {
        lazy_refcounts: Some(true),
        ..Amendment::default()
    };
    image
        .amend(&amendment, &mut |_| ControlFlow::Continue(()))
        .expect("amend");
    drop(image);
    let image = common::open(storage.clone(), None);
    write(&image, 1);
    image.flush().expect("flush");
    assert!(is_dirty(&storage));
    image.close().expect("close");
    assert_sound(&storage, "closed");
}

/// More refcount blocks than are kept in memory: clusters of 512 bytes, 64 of them counted by a block.
#[test]
fn blocks_that_wait_take_no_more_memory_than_others() {
    let size = 300 << 20;
    let storage = Arc::new(common::create(
        "cluster_size=512,refcount_bits=64,lazy_refcounts=on",
        size,
        None,
    ));
    let image = common::open(storage.clone(), None);
    let blocks = |storage: &MemStorage| {
        let header = Header::read(storage).expect("sound");
        let mut table = vec![0; header.refcount_table_clusters as usize * 512];
        storage
            .read_exact_at(&mut table, header.refcount_table_offset.0)
            .expect("memory");
        table.chunks(8).filter(|entry| **entry != [0; 8]).count()
    };
    let at_first = blocks(&storage);
    let bytes = vec![7; 1 << 20];
    for at in (0..size).step_by(1 << 20) {
        image.write_at(&bytes, at).expect("write");
        if at == 20 << 20 {
            image.flush().expect("flush");
            assert_eq!(blocks(&storage), at_first, "they need not be written yet");
        }
    }
    image.flush().expect("flush");
    assert!(
        is_dirty(&storage) && blocks(&storage) > 8192,
        "{}",
        blocks(&storage)
    );
    image.close().expect("close");
    assert_sound(&storage, "closed");
}
