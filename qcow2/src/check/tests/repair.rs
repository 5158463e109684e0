//! Repairs against the original: what QEMU repairs in a damaged image, we do, and what could be read stays as it was.

use std::fs;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use block::{
    Access, Backing, BlockDevice, Error, ErrorKind, HostExtent, MemStorage, Overlay, Result, Storage,
    ZeroMode,
};

use super::super::repair::{RepairChange, RepairKind, RepairOptions, RepairReport, recover, repair, restore};
use super::super::report::{Finding, TableKind};
use super::corpus;
use super::damage::{Damage, Dice, Places};
use super::{CheckReport, Figures, in_memory, our_check, qemu_check, run};
use crate::{Image, OpenOptions};

pub(super) fn our_repair(storage: &dyn Storage, options: &RepairOptions<'_>) -> Result<RepairReport> {
    repair(storage, options, &mut |progress| {
        assert!((0.0..=1.0).contains(&progress.fraction()), "{progress:?}");
        ControlFlow::Continue(())
    })
}

/// The disk by units of 512 bytes, as far as it can be read and does not lie in `tables`. `None` if the image can't be
/// opened.
pub(super) fn content(storage: &MemStorage, tables: &[Range<u64>]) -> Option<Vec<Option<Vec<u8>>>> {
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
                && (our_corruptions <= corruptions
                    || report.reaches_past_end
                    || spares_data(&report.after)
                    || report.spared_tables > 0)
                && (our_leaks <= leaks
                    || report.lost_tables > 0
                    || keeps_leaks(&report.after)
                    || keeps_leaks(&report.before)),
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

/// An image whose refcount table names nothing that can be a block.
fn without_refcounts() -> (MemStorage, Vec<u8>) {
    let sample = corpus::make("snapshots, small clusters");
    let mut bytes = sample.bytes.clone();
    let table = crate::Header::read(&in_memory(&bytes))
        .unwrap()
        .refcount_table_offset
        .0 as usize;
    bytes[table..table + 8].copy_from_slice(&[0xff; 8]);
    (in_memory(&bytes), bytes)
}

/// A storage of fixed length, as a block device is.
#[derive(Debug)]
struct Fixed(MemStorage);

impl Storage for Fixed {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if offset + buf.len() as u64 > self.len()? {
            return Err(Error::new(ErrorKind::NoSpace, "write past the end of the device"));
        }
        self.0.write_all_at(buf, offset)
    }
    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.0.zero(offset, len, mode)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(offset, len)
    }
    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.0.host_extent(offset, len)
    }
    fn sync_data(&self) -> Result<()> {
        self.0.sync_data()
    }
    fn len(&self) -> Result<u64> {
        self.0.len()
    }
    fn set_len(&self, _: u64) -> Result<()> {
        Err(Error::unsupported("a device has a fixed length"))
    }
}

#[test]
fn what_cannot_grow_is_repaired_within() {
    let (storage, bytes) = without_refcounts();
    let device = Fixed(storage);
    let report = our_repair(&device, &RepairOptions::default()).unwrap();
    assert!(report.after.is_clean(), "{report:?}");
    assert_eq!(device.len().unwrap(), bytes.len() as u64);
}

#[test]
fn a_repair_can_be_stopped_anywhere() {
    let (storage, bytes) = without_refcounts();
    let readable = content(&storage, &[]);
    let mut stopped = 0;
    loop {
        let disk = in_memory(&bytes);
        let mut calls = 0;
        let result = repair(&disk, &RepairOptions::default(), &mut |_| {
            calls += 1;
            if calls > stopped {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(content(&disk, &[]) == readable, "stopped after {stopped}");
        match result {
            Ok(report) => {
                assert!(report.after.is_clean());
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
        }
        assert!(
            our_repair(&disk, &RepairOptions::default())
                .unwrap()
                .after
                .is_clean()
        );
        stopped += 7;
    }
    assert!(stopped > 20, "{stopped}");
}

#[test]
fn a_backup_that_was_cut_off_holds_what_was_written() {
    let (storage, bytes) = without_refcounts();
    let backup = MemStorage::new();
    let options = RepairOptions {
        backup: Some(&backup),
        ..RepairOptions::default()
    };
    our_repair(&storage, &options).unwrap();
    let refused = our_repair(&storage, &options).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    // A step that had not begun to write.
    let len = backup.len().unwrap();
    backup
        .write_all_at(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], len)
        .unwrap();
    let damaged = MemStorage::from(backup.to_vec());
    damaged.write_all_at(&[7], 100).unwrap();
    let repaired = storage.to_vec();
    let report = restore(&storage, &damaged).unwrap();
    assert!(report.cut_off && report.bytes == 0 && storage.to_vec() == repaired);
    assert!(restore(&storage, &backup).unwrap().cut_off);
    assert!(storage.to_vec() == bytes);
    let error = restore(&storage, &MemStorage::from(vec![1; 100])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn an_image_that_cannot_be_made_whole_is_not_recovered() {
    let sample = corpus::make("lazy");
    let mut bytes = sample.bytes.clone();
    bytes[79] |= 1;
    let storage = in_memory(&bytes);
    assert!(recover(&storage).unwrap().has_changes());
    assert_eq!(storage.to_vec(), sample.bytes);
    let l1 = crate::Header::read(&storage).unwrap().l1_offset.0 as usize;
    bytes[l1 + 7] |= 1;
    let error = recover(&in_memory(&bytes)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// Header fields that QEMU takes, and makes what it can of: [offset, value] of 64 bits.
#[test]
fn tables_at_impossible_places_are_judged_and_repaired_as_by_qemu() {
    let sample = corpus::make("plain");
    let dir = sample.dir.path();
    for (at, value) in [
        (40, 0x1000_0000u64),
        (40, 0),
        (48, 0x1000_0000),
        (48, 0x3_0000),
        (48, 0),
        (48, 0x5_0000),
        (56, 0),
        (64, 0x3_0000),
    ] {
        let what = format!("{value:#x} at {at}");
        let mut bytes = sample.bytes.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        fs::write(dir.join("theirs"), &bytes).unwrap();
        let storage = in_memory(&bytes);
        let (theirs, ours) = (qemu_check(dir, "theirs", ""), our_check(&storage).unwrap());
        assert_eq!(theirs.code, Some(super::exit_code(&ours)), "{what}: {ours:?}");
        // After what QEMU calls an I/O error there is nothing to compare.
        if ours.check_errors == 0 {
            assert_eq!(theirs.figures, Some(Figures::from(&ours)), "{what}");
        }
        let report = our_repair(&storage, &RepairOptions::default()).unwrap();
        run(dir, "qemu-img", &["check", "-r", "all", "theirs"]);
        fs::write(dir.join("ours"), storage.to_vec()).unwrap();
        let (theirs, ours) = (qemu_check(dir, "theirs", ""), qemu_check(dir, "ours", ""));
        if at == 40 {
            // Nothing references anything: QEMU frees all of the disk, and we leave it to who may find the table.
            let lowered = |change: &RepairChange| matches!(change, RepairChange::Lowered { .. });
            assert!(
                report.after.leaks > 0 && !report.changes.iter().any(lowered),
                "{what}: {:?}",
                report.changes
            );
        } else {
            assert_eq!(
                (theirs.code, ours.code),
                (Some(0), Some(0)),
                "{what}: {:?}",
                report.changes
            );
        }
    }
}
