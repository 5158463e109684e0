//! Tables over guest data and other tables: a repair leaves alone what is not a table's own.

use std::fs;
use std::sync::Arc;

use block::{Access, BlockDevice, MemStorage, Storage};

use super::super::repair::{RepairChange, RepairKind, RepairOptions, RepairReport};
use super::corpus::{self, Sample};
use super::qemu_check;
use super::repair::{content, our_repair};
use crate::entry::OFFSET;
use crate::{Header, Image, OpenOptions};

const L1_SIZE_AT: u64 = 36;
const COPIED: u64 = 1 << 63;
/// Bytes that an L2 table maps, in clusters of 512 bytes.
const L2_COVERAGE: u64 = 32 << 10;

/// An image with clusters of 512 bytes, on whose disk there is something else for each of them.
fn image() -> (Sample, Arc<MemStorage>) {
    let sample = corpus::make("512-byte clusters");
    let storage = Arc::new(super::in_memory(&sample.bytes));
    let image = open(&storage);
    let bytes: Vec<u8> = (0..200 << 10).map(|i: u32| (i / 512) as u8 | 1).collect();
    image.write_at(&bytes, 2 << 20).unwrap();
    image.close().unwrap();
    (sample, storage)
}

fn open(storage: &Arc<MemStorage>) -> Image {
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    let storage = Arc::clone(storage);
    Image::open(storage, options).unwrap()
}

fn word(storage: &MemStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

fn put(storage: &MemStorage, at: u64, word: u64) {
    storage.write_all_at(&word.to_be_bytes(), at).unwrap();
}

/// Where the entries of the L1 table and of an L2 table are that map `guest`, and the guest's data.
fn places(storage: &MemStorage, guest: u64) -> (u64, u64, u64) {
    let l1 = Header::read_damaged(storage).unwrap().l1_offset.0 + guest / L2_COVERAGE * 8;
    let l2 = (word(storage, l1) & OFFSET) + guest % L2_COVERAGE / 512 * 8;
    (l1, l2, word(storage, l2) & OFFSET)
}

fn repair_all(storage: &MemStorage) -> RepairReport {
    our_repair(storage, &RepairOptions::default()).unwrap()
}

fn repair_leaks(storage: &MemStorage) -> RepairReport {
    let options = RepairOptions {
        what: RepairKind::Leaks,
        ..RepairOptions::default()
    };
    our_repair(storage, &options).unwrap()
}

fn qemu_finds_nothing(sample: &Sample, storage: &MemStorage) {
    fs::write(sample.dir.path().join("repaired"), storage.to_vec()).unwrap();
    let judgement = qemu_check(sample.dir.path(), "repaired", "");
    assert_eq!(judgement.code, Some(0), "{judgement:?}");
}

#[test]
fn an_l1_table_that_is_said_to_reach_over_guest_data_is_cut_and_no_data_is_changed() {
    let (sample, storage) = image();
    let header = Header::read(&*storage).unwrap();
    // What a guest may well hold: bytes that would be entries with wrong flags, and a qcow2 image.
    let image = open(&storage);
    let entries: Vec<u8> = (0..4096u64)
        .flat_map(|i| (COPIED | (i % 700) << 9).to_be_bytes())
        .collect();
    for at in [0, 1 << 20, 3 << 20] {
        image.write_at(&entries, at).unwrap();
        image.write_at(&sample.bytes[..20_000], at + (64 << 10)).unwrap();
    }
    image.close().unwrap();
    let before = content(&storage, &[]).unwrap();
    let end = storage.len().unwrap();
    for claimed in [
        end - header.l1_offset.0,
        end - header.l1_offset.0 + (1 << 20),
        2048,
    ] {
        let storage = super::in_memory(&storage.to_vec());
        let entries = (claimed / 8) as u32;
        assert!(entries > header.l1_entries);
        storage.write_all_at(&entries.to_be_bytes(), L1_SIZE_AT).unwrap();
        let report = repair_all(&storage);
        let cut = RepairChange::L1Cut {
            entries: header.l1_entries,
        };
        assert!(report.changes.contains(&cut), "{:?}", report.changes);
        assert!(report.after.is_clean(), "{report:?}");
        assert!(report.before.corruptions > 0 && report.lost_tables == 0);
        assert!(content(&storage, &[]).unwrap() == before, "{claimed}");
        qemu_finds_nothing(&sample, &storage);
    }
}

#[test]
fn leaks_are_repaired_without_cutting_an_l1_table_or_changing_data() {
    let (_, storage) = image();
    let before = storage.to_vec();
    storage.write_all_at(&2000u32.to_be_bytes(), L1_SIZE_AT).unwrap();
    let claimed = storage.to_vec();
    repair_leaks(&storage);
    let header = Header::read_damaged(&*storage).unwrap();
    assert_eq!(header.l1_entries, 2000);
    let refcounts = word(&storage, header.refcount_table_offset.0) as usize;
    let after = storage.to_vec();
    for (at, (then, now)) in claimed.iter().zip(&after).enumerate() {
        assert!(then == now || (refcounts..).contains(&at), "{at:#x}");
    }
    storage.write_all_at(&before[36..40], L1_SIZE_AT).unwrap();
    let restored = MemStorage::from(before);
    assert!(content(&storage, &[]) == content(&restored, &[]));
}

#[test]
fn guest_data_that_an_l1_entry_takes_for_an_l2_table_is_not_written_to() {
    let (_, storage) = image();
    let image = open(&storage);
    // All of it could be an L2 table, and most flags would be wrong.
    let entries: Vec<u8> = (1..65u64).flat_map(|i| (i << 9).to_be_bytes()).collect();
    image.write_at(&entries, 2 << 20).unwrap();
    image.close().unwrap();
    let (_, _, data) = places(&storage, 2 << 20);
    let (l1, ..) = places(&storage, 3 << 20);
    put(&storage, l1, COPIED | data);
    let report = repair_all(&storage);
    assert!(report.spared_tables > 0, "{:?}", report.changes);
    let mut now = vec![0; entries.len()];
    storage.read_exact_at(&mut now, data).unwrap();
    assert!(now == entries);
    assert_eq!(places(&storage, 2 << 20).2, data);
    assert!(!repair_all(&storage).has_changes());
}

#[test]
fn an_l1_table_that_an_l2_entry_takes_for_guest_data_keeps_its_entries() {
    let (_, storage) = image();
    let (l1, l2, _) = places(&storage, 2 << 20);
    let table = l1 / 512 * 512;
    put(&storage, l2 + 8, COPIED | table);
    put(&storage, l1, word(&storage, l1) & !COPIED);
    let before = content(&storage, &[]);
    let mut entries = vec![0; 512];
    storage.read_exact_at(&mut entries, table).unwrap();
    let report = repair_all(&storage);
    assert_eq!((report.spared_tables, report.lost_tables), (1, 1), "{report:?}");
    let mut now = vec![0; 512];
    storage.read_exact_at(&mut now, table).unwrap();
    assert!(now == entries && content(&storage, &[]) == before);
    assert_eq!(word(&storage, l2 + 8) & COPIED, 0);
}

#[test]
fn a_refcount_table_that_lies_over_guest_data_is_made_anew_elsewhere() {
    let (sample, storage) = image();
    let header = Header::read(&*storage).unwrap();
    let table = header.refcount_table_offset.0;
    let image = open(&storage);
    // The guest holds an image of the same shape, and its table counts this one as well as its own does.
    let mut copy = vec![0; 512 * header.refcount_table_clusters as usize];
    storage.read_exact_at(&mut copy, table).unwrap();
    image.write_at(&copy, 2 << 20).unwrap();
    image.close().unwrap();
    let (_, _, data) = places(&storage, 2 << 20);
    storage.read_exact_at(&mut copy, table).unwrap();
    storage.write_all_at(&copy, data).unwrap();
    let before = content(&storage, &[]);
    storage.write_all_at(&data.to_be_bytes(), 48).unwrap();
    let report = repair_all(&storage);
    let rebuilt = |change: &RepairChange| matches!(change, RepairChange::Rebuilt { .. });
    assert!(
        report.changes.iter().any(rebuilt) && report.after.is_clean(),
        "{report:?}"
    );
    qemu_finds_nothing(&sample, &storage);
    assert!(content(&storage, &[]) == before);
    let image = open(&storage);
    let mut now = vec![0; copy.len()];
    image.write_at(&vec![9; 1 << 20], 3 << 20).unwrap();
    image.flush().unwrap();
    image.read_at(&mut now, 2 << 20).unwrap();
    assert!(now == copy, "the guest's data is the refcount table");
}

/// QEMU frees the whole disk.
#[test]
fn an_l1_table_at_a_wrong_place_that_is_empty_frees_nothing() {
    let (sample, storage) = image();
    let header = Header::read(&*storage).unwrap();
    let hole = storage.len().unwrap().next_multiple_of(512);
    storage.set_len(hole + 4096).unwrap();
    let before = content(&storage, &[]);
    storage.write_all_at(&hole.to_be_bytes(), 40).unwrap();
    let report = repair_all(&storage);
    assert!(
        report.lost_tables > 0 && report.after.leaks > 500,
        "{:?}",
        report.changes
    );
    let right = header.l1_offset.0.to_be_bytes();
    storage.write_all_at(&right, 40).unwrap();
    assert!(repair_all(&storage).after.is_clean() && content(&storage, &[]) == before);
    qemu_finds_nothing(&sample, &storage);
}

/// QEMU frees all that was mapped there, in one go.
#[test]
fn what_a_lost_l1_entry_named_is_kept_until_leaks_are_to_be_repaired() {
    let (sample, whole) = image();
    let (l1, _, data) = places(&whole, 2 << 20);
    let refcounts = Header::read(&*whole).unwrap().refcount_table_offset.0;
    let beyond = whole.len().unwrap().next_multiple_of(512) + (1 << 20);
    for (entry, lost_refcounts) in [
        (COPIED | beyond, false),
        (COPIED | data, false),
        (COPIED, false),
        (COPIED | 0x1_0100, false),
        (COPIED | beyond, true),
    ] {
        let storage = super::in_memory(&whole.to_vec());
        put(&storage, l1, entry);
        if lost_refcounts {
            put(&storage, refcounts, 0x33);
        }
        let report = repair_all(&storage);
        let what = format!("{entry:#x}: {:?} {:?}", report.changes, report.after.findings);
        assert!(report.lost_tables > 0 && report.after.leaks >= 64, "{what}");
        assert!(!repair_all(&storage).has_changes(), "{what}");
        let leaks = report.after.leaks;
        // Whoever finds the table's place puts it back, and has lost nothing.
        let found = super::in_memory(&storage.to_vec());
        put(&found, l1, word(&whole, l1));
        assert!(content(&found, &[]) == content(&whole, &[]), "{what}");
        let report = repair_all(&found);
        assert!(report.after.is_clean(), "{what}: {report:?}");
        qemu_finds_nothing(&sample, &found);
        let report = repair_leaks(&storage);
        assert!(report.leaks_fixed == leaks && report.after.leaks == 0, "{what}");
    }
}
