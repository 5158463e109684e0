//! Hosts that fail while a table is written: every call fails, one by one, once or from then on. An error then, and
//! partitions are where they were before or where they are to be.

use std::io::ErrorKind as HostError;

use block::Resize;
use block::test_utils::{Fault, FaultStorage, IoOp};

use super::power_cut::{guest_disk, places};
use super::*;

/// Runs `act` on a disk as `prepare` leaves it, and lets each of its calls fail.
fn every_call_fails(
    what: &str,
    prepare: impl Fn(&dyn BlockDevice),
    act: impl Fn(&dyn BlockDevice) -> Result<()>,
) {
    let (before, device) = empty(8 * MIB);
    prepare(&*device);
    let old = places(&*device).ok();
    let trial = Arc::new(FaultStorage::new(Arc::new(MemStorage::clone(&before))));
    let device = disk(trial.clone());
    act(&*device).unwrap();
    let calls = trial.calls(&IoOp::ALL);
    let new = places(&*device).unwrap();
    assert!(calls > 5, "{what}: {calls} calls");
    for call in 1..=calls {
        for (error, lasts) in [
            (HostError::Other, false),
            (HostError::Other, true),
            (HostError::StorageFull, true),
        ] {
            let what = format!("{what}, call {call} of {calls}, {error}, lasting: {lasts}");
            let stored = Arc::new(MemStorage::clone(&before));
            let faults = Arc::new(FaultStorage::new(stored.clone()));
            let fault = if lasts { Fault::from_nth } else { Fault::nth };
            faults.inject(fault(call, error));
            let opened = Image::open(faults.clone(), Access::WRITE);
            let result = opened.and_then(|device| act(&device));
            assert!(faults.failed() > 0, "{what}: nothing failed");
            let device = disk(stored);
            let found = places(&*device).ok();
            assert!(
                result.is_err() && found == old || found.as_ref() == Some(&new),
                "{what}: {result:?}, and {found:?}"
            );
            if old.is_some() {
                let mut bytes = [0; 512];
                device.read_at(&mut bytes, 2 * MIB).unwrap();
                assert_eq!(bytes, [1; 512], "{what}: data has changed");
            }
            if result.is_ok() {
                assert!(findings(&*device).is_empty(), "{what}: success, and not whole");
                continue;
            }
            // Another run finishes the job, from whatever there is now.
            if let Err(error) = act(&*device) {
                assert!(found.as_ref() == Some(&new), "{what}, again: {error}");
                repair(&*device, None, Some(gpt(&*device).read_from())).unwrap();
            }
            assert_eq!(places(&*device).unwrap(), new, "{what}, again");
            assert!(findings(&*device).is_empty(), "{what}, again");
        }
    }
}

#[test]
fn of_a_new_table() {
    // What a first run has left stands in the way of a second one that must not overwrite anything.
    let layout = Layout::new([2; 16])
        .overwrite(true)
        .with(NewPartition::new(PartitionKind::LINUX).start(2 * MIB));
    let act = |disk: &dyn BlockDevice| create(disk, &layout).map(drop);
    every_call_fails("create", |_| (), act);
    every_call_fails("create over another", guest_disk, act);
}

#[test]
fn of_a_repair() {
    for damaged in [520, 1030, 8 * MIB - 500, 8 * MIB - 1024, 510, 454] {
        let prepare = |disk: &dyn BlockDevice| {
            guest_disk(disk);
            damage(disk, damaged);
        };
        every_call_fails(&format!("repair of {damaged}"), prepare, |disk| {
            let PartitionTable::Gpt(table) = PartitionTable::read(disk, None)? else {
                panic!("no GPT");
            };
            repair(disk, None, Some(table.read_from())).map(drop)
        });
    }
}

#[test]
fn of_growing() {
    for more in [512, 20 << 10, 4 * MIB] {
        let prepare = |disk: &dyn BlockDevice| {
            guest_disk(disk);
            disk.resize(8 * MIB + more, Resize::default()).unwrap();
        };
        every_call_fails(&format!("growth by {more}"), prepare, |disk| {
            grow(disk, None, true).map(drop)
        });
    }
}
