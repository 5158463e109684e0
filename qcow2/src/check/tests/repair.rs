//! Repairs against the original: what QEMU repairs in a damaged image, we do, and what could be read stays as it was.

use std::fs;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use block::{Access, Backing, BlockDevice, MemStorage, Overlay, Result, Storage};

use super::super::repair::{RepairKind, RepairOptions, RepairReport, repair, restore};
use super::super::report::{Finding, TableKind};
use super::corpus;
use super::damage::{Damage, Dice, Places};
use super::{CheckReport, Figures, in_memory, our_check, qemu_check, run};
use crate::{Image, OpenOptions};

fn our_repair(storage: &dyn Storage, options: &RepairOptions<'_>) -> Result<RepairReport> {
    repair(storage, options, &mut |progress| {
        assert!((0.0..=1.0).contains(&progress.fraction()), "{progress:?}");
        ControlFlow::Continue(())
    })
}

/// The disk by units of 512 bytes, as far as it can be read and does not lie in `tables`. `None` if the image can't be
/// opened.
fn content(storage: &MemStorage, tables: &[Range<u64>]) -> Option<Vec<Option<Vec<u8>>>> {
    let options = OpenOptions {
        access: Access::READ,
        backing: Backing::Detached,
        ..OpenOptions::default()
    };
    let image = Image::open(Arc::new(storage.clone()), options).ok()?;
    let units = (0..image.size().min(8 << 20)).step_by(512).map(|at| {
        let host = image.own_extent_at(at, 1).ok()?.host;
        if host.is_some_and(|host| tables.iter().any(|table| table.contains(&host))) {
            return None;
        }
        let mut unit = vec![0; 512.min(image.size() - at) as usize];
        image.read_at(&mut unit, at).ok().map(|()| unit)
    });
    Some(units.collect())
}

/// Whether we leave leaks on purpose: it is not known that everything was counted.
fn keeps_leaks(report: &CheckReport) -> bool {
    report.findings.iter().any(|finding| {
        matches!(
            finding,
            Finding::BitmapDirectory { .. }
                | Finding::SnapshotTable { .. }
                | Finding::SnapshotTableUnreadable { .. }
                | Finding::NotWalked { .. }
        )
    })
}

/// Whether something was taken for an L2 table that is none: QEMU writes into it, and we don't.
fn spares_data(report: &CheckReport) -> bool {
    let impossible = |finding: &&Finding| {
        let table = TableKind::L2;
        matches!(finding, Finding::ReservedBits { table: found, .. } if *found == table)
            || matches!(finding, Finding::Unaligned { table: found, .. } if *found == table)
            || matches!(finding, Finding::BeyondEnd { .. })
    };
    let no_cluster = |finding: &Finding| {
        matches!(
            finding,
            Finding::Unaligned {
                table: TableKind::L1,
                ..
            }
        )
    };
    report.findings.iter().filter(impossible).count() > 2 || report.findings.iter().any(no_cluster)
}

/// Repairs `rounds` damaged variants of a sample, as QEMU does on a copy.
fn judge(name: &str, rounds: u64) {
    let sample = corpus::make(name);
    let places = Places::of(&sample);
    let dir = sample.dir.path();
    let mut dice = Dice(name.bytes().fold(0x1234_5678_9abc_def1, |seed, byte| {
        seed.rotate_left(9) ^ u64::from(byte)
    }));
    for round in 0..rounds {
        let mut bytes = sample.bytes.clone();
        let damage = Damage::inflict(&mut bytes, &places, &mut dice);
        let what = format!("{name}, round {round}: {damage:x?}");
        let storage = in_memory(&bytes);
        let Ok(before) = our_check(&storage) else { continue };
        let readable = content(&storage, &places.tables());

        let dry = RepairOptions {
            dry_run: true,
            ..RepairOptions::default()
        };
        let would = our_repair(&storage, &dry).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(storage.to_vec() == bytes, "{what}: a dry run has written");

        let backup = MemStorage::new();
        let options = RepairOptions {
            backup: Some(&backup),
            ..RepairOptions::default()
        };
        let report = our_repair(&storage, &options).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            report == would,
            "{what}: the dry run says something else: {:?} {:?}",
            report.changes,
            would.changes
        );
        assert!(report.before == before, "{what}");
        assert!(report.after == our_check(&storage).unwrap(), "{what}");
        let again = our_repair(&storage, &RepairOptions::default()).unwrap();
        assert!(
            !again.has_changes(),
            "{what}: first {:?}\nagain {:?}\n{:?}",
            report.changes,
            again.changes,
            again.before
        );

        if let Some(readable) = readable {
            let now = content(&storage, &[]).unwrap_or_else(|| panic!("{what}: cannot be opened any more"));
            for (unit, (then, now)) in readable.iter().zip(&now).enumerate() {
                assert!(then.is_none() || then == now, "{what}: unit {unit} has changed");
            }
        }

        fs::write(dir.join("theirs"), &bytes).unwrap();
        fs::write(dir.join("ours"), storage.to_vec()).unwrap();
        let spec = format!("driver=qcow2,file.filename=theirs{}", sample.options);
        let object = ["--object", "secret,id=s,data=x"];
        run(
            dir,
            "qemu-img",
            &[&["check", "-r", "all"], &object[..], &["--image-opts", &spec]].concat(),
        );
        let theirs = qemu_check(dir, "theirs", sample.options);
        let ours = qemu_check(dir, "ours", sample.options);
        let bad = |figures: Option<Figures>| {
            figures.map_or((u64::MAX, u64::MAX, u64::MAX), |figures| {
                (figures.check_errors, figures.corruptions, figures.leaks)
            })
        };
        let ((errors, corruptions, leaks), (our_errors, our_corruptions, our_leaks)) =
            (bad(theirs.figures), bad(ours.figures));
        assert!(
            our_errors <= errors
                && (our_corruptions <= corruptions || spares_data(&report.after))
                && (our_leaks <= leaks || keeps_leaks(&report.after) || keeps_leaks(&report.before)),
            "{what}\nbefore {:?}\ndone {:?}\nafter {:?}\nours {:?}\ntheirs {:?}",
            report.before.findings.iter().take(9).collect::<Vec<_>>(),
            report.changes,
            report.after.findings.iter().take(9).collect::<Vec<_>>(),
            ours.figures,
            theirs.figures
        );

        restore(&storage, &backup).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(storage.to_vec() == bytes, "{what}: not restored");
    }
}

macro_rules! judge {
    ($($test:ident: $names:expr;)*) => {
        $(#[test]
        fn $test() {
            for name in $names {
                judge(name, 8);
            }
        })*
    };
}

judge! {
    plain: ["plain", "v2", "lazy", "overlay", "LUKS"];
    cluster_sizes: ["512-byte clusters", "4 KiB clusters", "2 MiB clusters", "preallocated"];
    narrow_refcounts: ["1-bit refcounts", "2-bit refcounts", "4-bit refcounts", "8-bit refcounts"];
    wide_refcounts: ["32-bit refcounts", "64-bit refcounts"];
    compressed: ["compressed", "compressed, small clusters", "compressed, large clusters", "zstd"];
    snapshots: ["snapshots", "snapshots, small clusters"];
    bitmaps: ["bitmaps"];
    extended_l2: ["extended L2", "extended L2, compressed"];
    data_files: ["data file", "raw data file"];
}

#[test]
fn leaks_alone_are_repaired_alone() {
    let sample = corpus::make("plain");
    let places = Places::of(&sample);
    let mut dice = Dice(99);
    for round in 0..40 {
        let mut bytes = sample.bytes.clone();
        let damage = Damage::inflict(&mut bytes, &places, &mut dice);
        let storage = in_memory(&bytes);
        let Ok(before) = our_check(&storage) else { continue };
        let options = RepairOptions {
            what: RepairKind::Leaks,
            ..RepairOptions::default()
        };
        let report = our_repair(&storage, &options).unwrap();
        let what = format!("round {round}: {damage:x?} {report:?}");
        assert!(report.after.corruptions <= before.corruptions, "{what}");
        assert!(report.after.check_errors <= before.check_errors, "{what}");
        if before.corruptions + before.check_errors == 0 {
            assert!(report.after.is_clean(), "{what}");
        }
    }
}
