//! The snapshot table in both directions, and what is refused.

use std::path::Path;
use std::process::Command;

use block::{ErrorKind, MemStorage, Result, Storage};
use proptest::prelude::*;

use super::*;
use crate::header::Header;

fn qemu_img(directory: &Path, args: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(args)
        .current_dir(directory)
        .output()
        .expect("qemu-img must be installed");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An image of 1 MiB with snapshots `first` and `zweiter Stand ü`.
fn image(compat: &str) -> MemStorage {
    let directory = tempfile::tempdir().unwrap();
    let options = format!("compat={compat}");
    qemu_img(
        directory.path(),
        &["create", "-q", "-f", "qcow2", "-o", &options, "image", "1M"],
    );
    for name in ["first", "zweiter Stand ü"] {
        qemu_img(directory.path(), &["snapshot", "-c", name, "image"]);
    }
    MemStorage::from(std::fs::read(directory.path().join("image")).unwrap())
}

fn read(storage: &MemStorage) -> Result<SnapshotTable> {
    SnapshotTable::read(storage, &Header::read(storage).unwrap())
}

#[test]
fn reads_what_qemu_img_wrote() {
    for compat in ["0.10", "1.1"] {
        let table = read(&image(compat)).unwrap();
        let names: Vec<_> = table.snapshots.iter().map(|s| (&*s.id, &*s.name)).collect();
        assert_eq!(names, [("1", "first"), ("2", "zweiter Stand ü")]);
        for snapshot in &table.snapshots {
            assert_eq!((snapshot.size, snapshot.l1_entries), (1 << 20, 1));
            assert_eq!((snapshot.vm_state_size, snapshot.icount), (0, Some(0)));
            assert!(snapshot.date_seconds > 1_500_000_000);
        }
        assert!(table.len > 2 * MIN_SNAPSHOT_LEN && table.len.is_multiple_of(8));
    }
}

#[test]
fn an_image_without_snapshots_has_an_empty_table() {
    let storage = MemStorage::new();
    crate::create(&storage, &crate::CreateOptions::default()).unwrap();
    assert_eq!(read(&storage).unwrap(), SnapshotTable::default());
}

#[test]
fn refuses_each_contradiction_by_name() {
    let storage = image("1.1");
    let start = Header::read(&storage).unwrap().snapshots_offset.0;
    let hazards: [(u64, &[u8], &str); 6] = [
        (0, &[0; 8], "L1 offset 0"),
        (7, &[1], "multiple of the cluster size"),
        (0, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], "past the end"),
        (8, &[0, 0, 0, 0], "needs more L1 entries"),
        (8, &[0xff; 4], "32 MiB"),
        (36, &1025u32.to_be_bytes(), "1024 bytes"),
    ];
    for (at, bytes, words) in hazards {
        let storage = storage.clone();
        storage.write_all_at(bytes, start + at).unwrap();
        let error = read(&storage).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(words), "{error}");
    }
    // Names that reach past the end of the file.
    storage.write_all_at(&[0xff; 4], start + 12).unwrap();
    assert!(read(&storage).unwrap_err().to_string().contains("past the end"));
}

proptest! {
    #[test]
    fn a_damaged_table_is_never_more_than_an_error(
        changes in prop::collection::vec((0u64..200, any::<u8>()), 1..8),
    ) {
        let storage = base();
        let start = Header::read(&storage).unwrap().snapshots_offset.0;
        for (at, byte) in changes {
            storage.write_all_at(&[byte], start + at).unwrap();
        }
        let _ = read(&storage);
    }
}

/// [`image`], made once.
fn base() -> MemStorage {
    static IMAGE: std::sync::OnceLock<MemStorage> = std::sync::OnceLock::new();
    IMAGE.get_or_init(|| image("1.1")).clone()
}

proptest! {
    /// What is written reads back, and a table that was read is written as it was but for what version 3 asks for.
    #[test]
    fn a_table_survives_a_round_trip(
        names in prop::collection::vec(("[0-9]{0,5}", ".{0,40}", 0u64..1 << 40, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let storage = base();
        let mut header = Header::read(&storage).unwrap();
        let model = read(&storage).unwrap().snapshots.remove(0);
        let snapshots: Vec<Snapshot> = names
            .into_iter()
            .map(|(id, name, vm_state_size, rest)| {
                let mut extra_data = vm_state_size.to_be_bytes().to_vec();
                extra_data.extend(model.size.to_be_bytes());
                extra_data.extend((3u64 << 20).to_be_bytes());
                extra_data.extend(rest);
                Snapshot { id, name, vm_state_size, extra_data, icount: Some(3 << 20), ..model.clone() }
            })
            .collect();
        let bytes = SnapshotTable::encode(&snapshots).unwrap();
        let start = storage.len().unwrap().next_multiple_of(1 << 16);
        storage.write_all_at(&bytes, start).unwrap();
        header.snapshots_offset = HostOffset(start);
        header.snapshot_count = snapshots.len() as u32;
        let table = SnapshotTable::read(&storage, &header).unwrap();
        prop_assert_eq!(table.len, bytes.len() as u64);
        prop_assert_eq!(table.snapshots, snapshots);
    }
}

#[test]
fn an_entry_without_extra_data_gets_what_version_3_asks_for() {
    let storage = image("0.10");
    let header = Header::read(&storage).unwrap();
    let mut old = read(&storage).unwrap().snapshots;
    old[0].extra_data.clear();
    old[0].vm_state_size = 77;
    let bytes = SnapshotTable::encode(&old).unwrap();
    storage.write_all_at(&bytes, header.snapshots_offset.0).unwrap();
    let new = read(&storage).unwrap().snapshots.remove(0);
    assert_eq!(new.extra_data.len(), REQUIRED_EXTRA);
    assert_eq!((new.vm_state_size, new.size), (77, 1 << 20));
}
