//! Any bytes as an image, repaired: it ends without a panic, and in time; what could be read reads the same; what is said
//! of a repair is so; and its backup takes it back.
#![no_main]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Access, Backing, BlockDevice, Extent, ExtentState, MemStorage, Overlay, Storage};
use libfuzzer_sys::fuzz_target;
use qcow2::{
    CheckOptions, CheckReport, Finding, Header, Image, OpenOptions, RepairChange, RepairOptions,
    RepairReport, SnapshotTable,
};

/// Bytes of the disk that are looked at, from its start: one of exabytes takes more time than anybody has.
const LOOK: u64 = 1 << 20;

/// What has a state of its own on a disk.
const UNIT: u64 = 512;

fuzz_target!(|bytes: &[u8]| {
    let storage = MemStorage::from(bytes.to_vec());
    let Some(before) = check(&storage) else { return };
    let readable = content(&storage, true);

    let dry = RepairOptions {
        dry_run: true,
        ..RepairOptions::default()
    };
    let would = repair(&storage, &dry);
    assert!(storage.to_vec() == bytes, "a dry run has written");

    let backup = MemStorage::new();
    let options = RepairOptions {
        backup: Some(&backup),
        ..RepairOptions::default()
    };
    let Some(report) = repair(&storage, &options) else {
        assert!(would.is_none(), "a dry run knows better: {would:#?}");
        reads_the_same(&readable, &storage);
        return;
    };
    // What a first new structure has written is data by sectors in a dry run, and by the host's blocks otherwise: a second may
    // keep more.
    let rebuilt = |change: &&RepairChange| matches!(change, RepairChange::Rebuilt { .. });
    let twice = report.changes.iter().filter(rebuilt).count() > 1;
    assert!(
        twice || would.as_ref() == Some(&report),
        "a dry run says something else"
    );
    assert!(report.before == before);
    assert!(Some(&report.after) == check(&storage).as_ref(), "{report:#?}");
    let all = before.findings.len() < CheckOptions::default().max_findings;
    // A snapshot table that lies over the header says something else whenever that does.
    let apart = all && !before.findings.iter().any(is_about_snapshots);
    let better = errors(&report.after) <= errors(&before);
    assert!(!apart || better || report.spared_tables > 0, "{report:#?}");
    if all && before.findings.iter().all(can_be_set_right) {
        // Where the end of a table is missing, it is not known that all references were counted, and a file that was cut stays
        // as short as it is.
        let spares = report.l1_is_cut || report.reaches_past_end || report.spared_tables > 0;
        assert!(errors(&report.after) == 0 || spares, "{report:#?}");
        let suspects = spares || report.lost_tables > 0;
        assert!(report.after.is_clean() || suspects, "{report:#?}");
        let again = repair(&storage, &RepairOptions::default()).expect("a sound image");
        assert!(!again.has_changes(), "first {report:#?}\nagain {again:#?}");
    }
    reads_the_same(&readable, &storage);

    if qcow2::restore(&storage, &backup).is_ok() {
        assert!(storage.to_vec() == bytes, "something else was restored");
    } else {
        assert!(!report.has_changes(), "cannot be restored: {report:#?}");
    }
});

fn errors(report: &CheckReport) -> u64 {
    report.corruptions.saturating_add(report.check_errors)
}

fn check(storage: &dyn Storage) -> Option<CheckReport> {
    qcow2::check(storage, &CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })
    .ok()
}

fn repair(storage: &dyn Storage, options: &RepairOptions<'_>) -> Option<RepairReport> {
    qcow2::repair(storage, options, &mut |_| ControlFlow::Continue(())).ok()
}

/// Whether nothing is left of it, if there is nothing worse.
fn can_be_set_right(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::Leak { .. }
            | Finding::RefcountTooLow { .. }
            | Finding::CopiedL2Table { .. }
            | Finding::CopiedData { .. }
            | Finding::CopiedCompressed { .. }
            | Finding::UnalignedPreallocated { .. }
    )
}

fn is_about_snapshots(finding: &Finding) -> bool {
    matches!(
        finding,
        Finding::SnapshotTable { .. }
            | Finding::OverhangingSnapshots { .. }
            | Finding::SnapshotTableUnreadable { .. }
    )
}

/// The clusters with tables that a repair may write to, as far as the file has any.
fn tables(storage: &MemStorage, header: &Header) -> BTreeSet<u64> {
    let size = header.geometry.cluster_size();
    let end = storage.len().expect("memory");
    let clusters = |start: u64, len: u64| start / size..start.saturating_add(len).min(end).div_ceil(size);
    // Offsets in the entries of a table.
    let named = |start: u64, entries: u64| {
        let end = start.saturating_add(entries.saturating_mul(8)).min(end);
        let entry = |at| {
            let mut bytes = [0; 8];
            storage.read_exact_at(&mut bytes, at).expect("memory");
            u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00
        };
        (start..end).step_by(8).map(entry)
    };
    let table = (
        header.refcount_table_offset.0,
        u64::from(header.refcount_table_clusters) * size,
    );
    let snapshots = SnapshotTable::read(storage, header).unwrap_or_default();
    let l1_tables = snapshots.snapshots.iter();
    let l1_tables = l1_tables.map(|snapshot| (snapshot.l1_offset.0, u64::from(snapshot.l1_entries)));
    let l1_tables = l1_tables.chain([(header.l1_offset.0, u64::from(header.l1_entries))]);
    let mut found = BTreeSet::from([0]);
    found.extend(clusters(table.0, table.1));
    found.extend(named(table.0, table.1 / 8).map(|block| block / size));
    for (l1, entries) in l1_tables {
        found.extend(clusters(l1, entries * 8));
        // One that starts inside a cluster ends in the next.
        found.extend(named(l1, entries).flat_map(|l2| clusters(l2, size)));
    }
    found
}

/// The disk by units, as far as it can be read and, if that is asked for, does not lie in a table too; nothing if no reader
/// opens the image.
fn content(storage: &MemStorage, beside_tables: bool) -> Option<Vec<Option<Vec<u8>>>> {
    let options = OpenOptions {
        access: Access::READ,
        backing: Backing::Detached,
        ..OpenOptions::default()
    };
    let image = Image::open(Arc::new(storage.clone()), options).ok()?;
    let size = image.size();
    let tables = if beside_tables {
        tables(storage, &image.header())
    } else {
        BTreeSet::new()
    };
    let apart = |extent: &Extent| match extent.host {
        Some(host) => !tables.contains(&(host / image.geometry().cluster_size())),
        None => !beside_tables || extent.state != ExtentState::Compressed,
    };
    let units = (0..size.min(LOOK)).step_by(UNIT as usize).map(|at| {
        // What falls through to a backing file is not this image's.
        image.own_extent_at(at, 1).ok().filter(apart)?;
        let mut unit = vec![0; UNIT.min(size - at) as usize];
        image.read_at(&mut unit, at).ok().map(|()| unit)
    });
    Some(units.collect())
}

fn reads_the_same(readable: &Option<Vec<Option<Vec<u8>>>>, storage: &MemStorage) {
    let Some(then) = readable else { return };
    let now = content(storage, false).expect("it could be opened before");
    for (unit, (then, now)) in then.iter().zip(&now).enumerate() {
        assert!(then.is_none() || then == now, "unit {unit} reads something else");
    }
}
