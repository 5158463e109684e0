//! Files that were cut, repaired: what they lack must not become what never was.

use std::fs;

use block::{MemStorage, Storage};

use super::super::repair::{RepairChange, RepairOptions, RepairReport};
use super::super::report::Finding;
use super::repair::our_repair;
use super::{in_memory, must, our_check, qemu_check, run};
use crate::address::HostOffset;

const COPIED: u64 = 1 << 63;

/// Metadata of an image, by cluster: its header, a refcount table that is empty, and then what a test puts there.
struct Layout {
    cluster_bits: u32,
    refcount_order: u32,
    size: u64,
    l1_entries: u32,
    l1_cluster: u64,
    clusters: u64,
}

impl Layout {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.clusters << self.cluster_bits) as usize];
        let mut put32 = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        put32(0, 0x5146_49fb);
        put32(4, 3);
        put32(20, self.cluster_bits);
        put32(36, self.l1_entries);
        put32(56, 1);
        put32(96, self.refcount_order);
        put32(100, 104);
        put(&mut bytes, 24, self.size);
        put(&mut bytes, 40, self.l1_cluster << self.cluster_bits);
        put(&mut bytes, 48, 1 << self.cluster_bits);
        bytes
    }
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

fn errors(report: &super::CheckReport) -> u64 {
    report.corruptions + report.check_errors
}

fn is_rebuilt(report: &RepairReport) -> bool {
    let rebuilt = |change: &RepairChange| matches!(change, RepairChange::Rebuilt { .. });
    report.changes.iter().any(rebuilt)
}

/// Repairs an image, and another repair finds nothing more to do.
fn repaired(storage: &MemStorage) -> RepairReport {
    let report = our_repair(storage, &RepairOptions::default()).unwrap();
    let again = our_repair(storage, &RepairOptions::default()).unwrap();
    assert!(!again.has_changes(), "{report:?}\nagain {again:?}");
    report
}

/// What QEMU counts as errors: in what we repaired, and in what it repairs itself.
fn qemu_errors(bytes: &[u8], ours: &MemStorage) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("theirs"), bytes).unwrap();
    fs::write(dir.path().join("ours"), ours.to_vec()).unwrap();
    run(
        dir.path(),
        "qemu-img",
        &["check", "-f", "qcow2", "-r", "all", "theirs"],
    );
    let count = |image| {
        let figures = qemu_check(dir.path(), image, "").figures.unwrap();
        figures.corruptions + figures.check_errors
    };
    (count("ours"), count("theirs"))
}

#[test]
fn a_file_that_ends_before_its_l1_table_is_left_until_somebody_makes_it_longer_and_keeps_all_that_it_holds() {
    let layout = Layout {
        cluster_bits: 9,
        refcount_order: 4,
        size: 32 << 10,
        l1_entries: 1,
        l1_cluster: 4,
        clusters: 4,
    };
    let mut bytes = layout.bytes();
    // The guest's, or tables: nobody can tell.
    bytes[1024..].fill(7);
    for len in [2048, 1600] {
        bytes.truncate(len);
        let storage = in_memory(&bytes);
        let report = repaired(&storage);
        assert!(
            report.after == report.before && report.reaches_past_end,
            "{report:?}"
        );
        assert!(
            report.before.findings.contains(&Finding::Cut {
                start: HostOffset(2048),
                len: 8
            }),
            "{report:?}"
        );
        assert!(storage.to_vec() == bytes);

        storage.set_len(2560).unwrap();
        let report = repaired(&storage);
        assert!(
            errors(&report.before) > 0 && errors(&report.after) == 0,
            "{report:?}"
        );
        assert!(is_rebuilt(&report), "{report:?}");
        assert!(storage.to_vec()[1024..len] == bytes[1024..]);
        assert_eq!(qemu_errors(&bytes, &storage), (0, 0));
    }
}

#[test]
fn a_file_that_ends_inside_its_l1_table_does_not_become_longer_and_frees_nothing() {
    let cluster = 4096;
    let layout = Layout {
        cluster_bits: 12,
        refcount_order: 4,
        size: 1 << 30,
        l1_entries: 512,
        l1_cluster: 7,
        clusters: 8,
    };
    let mut full = layout.bytes();
    put(&mut full, 7 * cluster, COPIED | 2 << 12);
    put(&mut full, 2 * cluster, COPIED | 3 << 12);
    full[3 * cluster..7 * cluster].fill(7);
    let end = full.len() - 100;
    full.truncate(end);
    let storage = in_memory(&full);
    let report = repaired(&storage);
    assert!(!is_rebuilt(&report) && report.l1_is_cut, "{report:?}");
    assert!(errors(&report.after) < errors(&report.before), "{report:?}");
    put(&mut full, 7 * cluster, 2 << 12);
    put(&mut full, 2 * cluster, 3 << 12);
    assert!(storage.to_vec() == full, "something but flags was changed");

    // With room inside, the refcounts are made there.
    let mut roomy = full;
    roomy[4 * cluster..6 * cluster].fill(0);
    put(&mut roomy, 7 * cluster, COPIED | 2 << 12);
    put(&mut roomy, 2 * cluster, COPIED | 3 << 12);
    let storage = in_memory(&roomy);
    let report = repaired(&storage);
    assert!(is_rebuilt(&report) && report.l1_is_cut, "{report:?}");
    // That of the table.
    assert_eq!(errors(&report.after), 1, "{:?}", report.after.findings);
    // Cluster 6, which a missing entry may have named.
    assert_eq!(report.after.leaks, 1, "{:?}", report.after.findings);
    let now = storage.to_vec();
    assert_eq!(now.len(), end);
    assert!(now[2 * cluster..4 * cluster] == roomy[2 * cluster..4 * cluster]);
    assert!(now[6 * cluster..] == roomy[6 * cluster..]);
    assert_eq!(qemu_errors(&roomy, &storage), (0, 0));
}

#[test]
fn clusters_past_the_end_stay_counted_where_the_table_that_names_them_is_not_written_to() {
    let layout = Layout {
        cluster_bits: 9,
        refcount_order: 0,
        size: 32 << 10,
        l1_entries: 1,
        l1_cluster: 3,
        clusters: 12,
    };
    let mut bytes = layout.bytes();
    put(&mut bytes, 512, 2 << 9);
    // A refcount block that is not there.
    put(&mut bytes, 512 + 9 * 8, 1 << 25);
    bytes[1024..1026].copy_from_slice(&[0xff, 0x7f]);
    put(&mut bytes, 3 << 9, COPIED | 4 << 9);
    let l2 = 4 << 9;
    for (index, host) in (7..15u64).enumerate() {
        put(&mut bytes, l2 + index * 8, COPIED | host << 9);
    }
    // The table is the guest's data, too, and the one reference more is an overflow.
    put(&mut bytes, l2 + 11 * 8, 4 << 9 | 0x101);
    let storage = in_memory(&bytes);
    let report = repaired(&storage);
    assert!(is_rebuilt(&report) && report.spared_tables == 1, "{report:?}");
    assert!(report.after.corruptions < report.before.corruptions, "{report:?}");
    assert_eq!(report.after.leaks, 0);
    let copied = |finding: &&Finding| matches!(finding, Finding::CopiedData { .. });
    let (before, after) = (&report.before.findings, &report.after.findings);
    assert_eq!(
        after.iter().filter(copied).count(),
        before.iter().filter(copied).count()
    );
    assert!(storage.to_vec()[l2..l2 + 512] == bytes[l2..l2 + 512]);
    assert_eq!(storage.len().unwrap(), bytes.len() as u64);
    let (ours, theirs) = qemu_errors(&bytes, &storage);
    assert_eq!(ours, report.after.corruptions, "QEMU leaves {theirs}");
}

/// What `qemu-img` and `qemu-io` make with these command lines, which name the image as `image`.
fn made(lines: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for line in lines {
        let (program, rest) = line.split_once(' ').unwrap();
        let mut words: Vec<&str> = rest.splitn(3, ' ').collect();
        if program == "qemu-img" {
            words = rest.split(' ').collect();
        }
        must(dir.path(), program, &words);
    }
    fs::read(dir.path().join("image")).unwrap()
}

const MIB_AND_MORE: [&str; 2] = [
    "qemu-img create -q -f qcow2 image 10M",
    "qemu-io image -c write -P 5 1M 2M",
];

/// Checks that a repair leaves errors and that they are there at the next check too, and gives what it did.
fn stays_lost(bytes: &[u8]) -> (MemStorage, RepairReport) {
    for rebuild_uncounted in [false, true] {
        let storage = in_memory(bytes);
        let options = RepairOptions {
            rebuild_uncounted,
            ..RepairOptions::default()
        };
        let report = our_repair(&storage, &options).unwrap();
        assert!(
            report.reaches_past_end && report.after.corruptions > 0,
            "{report:?}"
        );
        assert_eq!(our_check(&storage).unwrap(), report.after);
        assert!(
            !our_repair(&storage, &options).unwrap().has_changes(),
            "{report:?}"
        );
        assert_eq!(storage.len().unwrap(), bytes.len() as u64, "{report:?}");
        if rebuild_uncounted {
            return (storage, report);
        }
    }
    unreachable!("both were tried")
}

#[test]
fn what_lies_past_the_end_of_a_file_that_lost_its_refcounts_too_stays_lost() {
    let mut bytes = made(&MIB_AND_MORE);
    bytes.truncate(1 << 20);
    bytes[2 << 16..3 << 16].fill(0);
    let (storage, report) = stays_lost(&bytes);
    // The 21 clusters that are not there.
    assert_eq!(report.after.corruptions, 21, "{:?}", report.after.findings);
    let past_end = |finding: &Finding| matches!(finding, Finding::BeyondEnd { .. });
    assert!(report.after.findings.iter().all(past_end), "{report:?}");
    // Their refcounts are 1 again, so that no writer takes their place.
    let refcounts = &storage.to_vec()[2 << 16..];
    assert!(
        refcounts[..74]
            .as_chunks::<2>()
            .0
            .iter()
            .all(|count| *count == [0, 1])
    );
    assert_eq!(refcounts[74..80], [0; 6]);
}

#[test]
fn refcounts_are_made_anew_in_front_of_the_first_cluster_that_is_lost() {
    let mut bytes = made(&MIB_AND_MORE);
    bytes.truncate(1 << 20);
    // The refcount table names nothing.
    bytes[1 << 16..2 << 16].fill(0);
    // As many clusters are free as a new table and a block take: two behind the end.
    let l2 = 4 << 16;
    put(&mut bytes, l2 + (16 + 11) * 8, 0);
    put(&mut bytes, l2 + (16 + 12) * 8, 0);
    let storage = in_memory(&bytes);
    let report = repaired(&storage);
    assert!(is_rebuilt(&report), "{report:?}");
    assert_eq!(report.after.corruptions, 19, "{:?}", report.after.findings);
    assert_eq!(our_check(&storage).unwrap(), report.after);
    assert_eq!(storage.len().unwrap(), 18 << 16);
    // With room for one, the image stays as it was.
    put(&mut bytes, l2 + (16 + 12) * 8, COPIED | 17 << 16);
    stays_lost(&bytes);
}

#[test]
fn data_of_a_table_that_was_cut_off_is_not_freed() {
    let create = "qemu-img create -q -f qcow2 -o cluster_size=4k image 16M";
    // The second L2 table lies behind the first data, and its own data behind it.
    let mut bytes = made(&[
        create,
        "qemu-io image -c write -P 5 0 64k",
        "qemu-io image -c write -P 6 2M 64k",
    ]);
    let l1 = crate::Header::read(&in_memory(&bytes)).unwrap().l1_offset.0 as usize;
    let l2 = u64::from_be_bytes(bytes[l1 + 8..l1 + 16].try_into().unwrap()) & !COPIED;
    // They change places with each other's last cluster, so that the table ends the file.
    let last = bytes.len() - 4096;
    let table = bytes[l2 as usize..][..4096].to_vec();
    bytes.copy_within(last.., l2 as usize);
    bytes[last..].copy_from_slice(&table);
    put(&mut bytes, l1 + 8, COPIED | last as u64);
    put(&mut bytes, last + 15 * 8, COPIED | l2);
    assert!(our_check(&in_memory(&bytes)).unwrap().is_clean());
    bytes.truncate(last);
    let (_, report) = stays_lost(&bytes);
    assert_eq!((report.after.leaks, report.lost_tables), (16, 1), "{report:?}");
    // So for the L1 table of a snapshot.
    let mut bytes = made(&[
        create,
        "qemu-io image -c write -P 5 0 64k",
        "qemu-img snapshot -c s image",
        "qemu-io image -c write -P 6 0 64k",
    ]);
    let header = crate::Header::read(&in_memory(&bytes)).unwrap();
    let snapshot = header.snapshots_offset.0 as usize;
    let l1 = u64::from_be_bytes(bytes[snapshot..snapshot + 8].try_into().unwrap()) as usize;
    let end = bytes.len();
    bytes.extend_from_within(l1..l1 + 64);
    put(&mut bytes, snapshot, end as u64);
    // A part of it, or all, with the table and data that its first entry named.
    for (len, leaks) in [(end + 40, 1), (end, 18)] {
        bytes.truncate(len);
        let (_, report) = stays_lost(&bytes);
        assert_eq!((report.after.leaks, report.lost_tables), (leaks, 1), "{report:?}");
    }
}

#[test]
fn compressed_data_that_was_cut_off_is_an_error() {
    let bytes = made(&[
        "qemu-img create -q -f qcow2 image 10M",
        "qemu-io image -c write -c -P 5 1M 64k",
    ]);
    assert!(our_check(&in_memory(&bytes)).unwrap().is_clean());
    // At the end of its cluster the file ends where the data begins.
    let data = 5 << 16;
    assert!(bytes.len() > data && bytes.len() <= data + 512);
    let (_, report) = stays_lost(&bytes[..data]);
    let cut = Finding::Cut {
        start: HostOffset(data as u64),
        len: 512,
    };
    assert_eq!(report.after.findings, [cut]);
}
