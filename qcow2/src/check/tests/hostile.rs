//! Images made to keep a check busy or hungry. Each would take hours or gigabytes if it were read as it says.

use std::ops::ControlFlow;

use block::{ErrorKind, MemStorage, Storage};

use super::super::report::{Finding, Severity};
use super::super::{CheckOptions, CheckReport, RepairOptions, check};
use super::our_check;
use super::repair::our_repair;

const SIZE_AT: u64 = 24;
const L1_SIZE_AT: u64 = 36;
const SNAPSHOTS_AT: u64 = 60;

/// An image with nothing in it: header, refcount table, a refcount block, an L1 table.
fn image(cluster_bits: u32, refcount_order: u32, l1_entries: u32) -> MemStorage {
    let storage = MemStorage::new();
    let write32 = |at, value: u32| storage.write_all_at(&value.to_be_bytes(), at).unwrap();
    storage.write_all_at(b"QFI\xfb", 0).unwrap();
    write32(4, 3);
    write32(20, cluster_bits);
    write32(L1_SIZE_AT, l1_entries);
    write64(&storage, 40, 3 << cluster_bits);
    write64(&storage, 48, 1 << cluster_bits);
    write32(56, 1);
    write32(96, refcount_order);
    write32(100, 104);
    write64(&storage, 1 << cluster_bits, 2 << cluster_bits);
    storage
        .set_len((3 << cluster_bits) + (u64::from(l1_entries) * 8).next_multiple_of(1 << cluster_bits))
        .unwrap();
    storage
}

fn write64(storage: &MemStorage, at: u64, value: u64) {
    storage.write_all_at(&value.to_be_bytes(), at).unwrap();
}

/// Appends a table whose entries `entry` gives, and returns where it is.
fn append(storage: &MemStorage, entries: u64, entry: impl Fn(u64) -> u64) -> u64 {
    let at = storage.len().unwrap().next_multiple_of(2 << 20);
    let bytes: Vec<u8> = (0..entries)
        .flat_map(|index| entry(index).to_be_bytes())
        .collect();
    storage.write_all_at(&bytes, at).unwrap();
    at
}

/// What is left after a repair, which must not have taken more room than a bounded one takes.
fn repaired(storage: &MemStorage) -> block::Result<CheckReport> {
    let before = storage.allocated().unwrap().unwrap();
    let report = our_repair(storage, &RepairOptions::default())?;
    let grown = storage.allocated().unwrap().unwrap().saturating_sub(before);
    assert!(grown <= before + (65 << 20), "{grown} bytes more than {before}");
    Ok(report.after)
}

#[test]
fn four_million_l1_entries_may_name_one_l2_table() {
    let storage = image(21, 4, 4 << 20);
    let data = append(&storage, 1, |_| 0);
    let table = append(&storage, 1 << 18, |_| 1 << 63 | data);
    storage.set_len(table + (2 << 20)).unwrap();
    let l1: Vec<u8> = table.to_be_bytes().repeat(4 << 20);
    storage.write_all_at(&l1, 3 << 21).unwrap();
    let report = our_check(&storage).unwrap();
    assert_eq!(report.allocated_clusters, 1 << 40);
    assert!(report.corruptions > 1 << 40, "{}", report.corruptions);
    assert_eq!(report.findings.len(), 1000);
    // A refcount of 16 bits cannot count that, and says the most that it can.
    let overflow = |finding: &Finding| matches!(finding, Finding::RefcountOverflow { .. });
    assert!(repaired(&storage).unwrap().findings.iter().all(overflow));
}

#[test]
fn all_snapshots_may_share_one_l1_table() {
    let storage = image(16, 6, 0);
    let data = append(&storage, 1, |_| 0);
    let table = append(&storage, 1 << 13, |_| data);
    let l1 = append(&storage, 1 << 22, |_| table);
    let snapshots = 65_536;
    let at = append(&storage, snapshots * 7, |word| match word % 7 {
        0 => l1,
        1 => (1 << 22) << 32,
        4 => 16,
        _ => 0,
    });
    storage
        .write_all_at(&(snapshots as u32).to_be_bytes(), SNAPSHOTS_AT)
        .unwrap();
    write64(&storage, SNAPSHOTS_AT + 4, at);
    let report = our_check(&storage).unwrap();
    let references = snapshots << 22 << 13;
    let expected = |finding: &Finding| match finding {
        Finding::RefcountTooLow {
            cluster,
            references: found,
            ..
        } => cluster.0 == data >> 16 && *found == references,
        _ => false,
    };
    assert!(
        report.findings.iter().any(expected),
        "{:?}",
        &report.findings[..5]
    );
    assert!(repaired(&storage).unwrap().is_clean());
}

#[test]
fn every_refcount_block_may_be_the_same() {
    // A million blocks of 16 million one-bit refcounts, all 1, for a file of 2^62 bytes.
    let storage = image(21, 0, 0);
    let block = append(&storage, 1 << 18, |_| u64::MAX);
    let table = append(&storage, 1 << 20, |_| block);
    write64(&storage, 48, table);
    storage.write_all_at(&4u32.to_be_bytes(), 56).unwrap();
    storage.set_len(1 << 62).unwrap();
    let report = our_check(&storage).unwrap();
    let clusters = 1 << 41;
    assert!(
        (clusters - 100..clusters).contains(&report.leaks),
        "{}",
        report.leaks
    );
    assert_eq!(report.image_end_offset, 1 << 62);
    assert!(repaired(&storage).unwrap().is_clean());
}

#[test]
fn a_file_of_two_to_the_sixty_costs_what_it_holds() {
    let storage = image(16, 4, 16);
    // An L2 table in a hole, one with entries far apart, and tables that the file says nothing about.
    let table = append(&storage, 1 << 13, |index| 1 << 63 | index << 40);
    write64(&storage, 3 << 16, 1 << 63 | table);
    for index in 1..16 {
        write64(&storage, (3 << 16) + index * 8, 1 << 63 | index << 50);
    }
    write64(&storage, SIZE_AT, 1 << 30);
    storage.set_len(1 << 60).unwrap();
    let report = our_check(&storage).unwrap();
    assert_eq!(report.allocated_clusters, (1 << 13) - 1);
    assert_eq!(report.image_end_offset, (15 << 50) + (1 << 16));
    // The clusters lie 1 TiB apart: refcounts for all of them would take more room than the file, and more table than
    // there can be.
    let before = storage.allocated().unwrap();
    let error = repaired(&storage).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NoSpace),
        "{error}"
    );
    assert_eq!(storage.allocated().unwrap(), before);
}

#[test]
fn references_scattered_over_everything_are_refused() {
    let storage = image(16, 4, 16);
    for entry in 0..16 {
        let table = append(&storage, 1 << 13, |index| (entry << 13 | index) << 38);
        write64(&storage, (3 << 16) + entry * 8, 1 << 63 | table);
    }
    storage.set_len(1 << 60).unwrap();
    assert_eq!(our_check(&storage).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(repaired(&storage).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn overlapping_l2_tables_are_looked_into_a_thousand_times() {
    let storage = image(21, 4, 4096);
    let table = append(&storage, 1 << 19, |_| 0);
    for index in 0..4096 {
        write64(&storage, (3 << 21) + index * 8, table + index * 512);
    }
    let report = our_check(&storage).unwrap();
    assert_eq!(report.worst(), Some(Severity::CheckError));
    assert_eq!(report.check_errors, 4095 - 1024);
    // What was not looked into may reference anything.
    assert_eq!(repaired(&storage).unwrap().check_errors, 4095 - 1024);
}

#[test]
fn a_check_can_be_stopped() {
    let storage = image(16, 4, 16);
    let error = check(
        &storage,
        &CheckOptions::default(),
        &mut |_| ControlFlow::Break(()),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[test]
fn findings_are_bounded_and_all_are_counted() {
    let storage = image(16, 4, 0);
    storage.write_all_at(&vec![1; 1 << 16], 2 << 16).unwrap();
    storage.set_len(1 << 31).unwrap();
    let options = CheckOptions { max_findings: 7 };
    let report = check(&storage, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((report.findings.len(), report.leaks), (7, 1 << 15));
    assert_eq!(
        report.findings[0].to_string(),
        "Leaked cluster 0 refcount=257 reference=1"
    );
}
