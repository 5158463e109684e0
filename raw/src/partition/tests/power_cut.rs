//! Power cuts while a table is written: at every point there is a whole copy, and partitions are where they were before
//! or where they are to be.

use block::Resize;
use block::test_utils::{Recorder, seeds};

use super::*;

pub(super) type Places = Vec<(u32, u64, u64)>;

pub(super) fn places(device: &dyn BlockDevice) -> Result<Places> {
    let table = PartitionTable::read(device, None)?;
    Ok(table
        .partitions()
        .iter()
        .map(|p| (p.number, p.start(), p.len()))
        .collect())
}

/// Runs `act` on a disk as `prepare` leaves it, and cuts the power wherever it can go. Gives how often the partitions
/// were those from before, and those after.
fn cut(what: &str, prepare: impl Fn(&dyn BlockDevice), act: impl Fn(&dyn BlockDevice)) -> [usize; 2] {
    let (before, device) = empty(8 * MIB);
    prepare(&*device);
    let old = places(&*device).ok();
    let recorder = Recorder::new();
    let storage = recorder.storage(MemStorage::from(before.to_vec()));
    let device = disk(storage);
    act(&*device);
    let new = places(&*device).unwrap();
    let guest_data = [1; 512];
    let promised = recorder.position();
    let states = recorder.crash_states();
    let mut seen = [0; 2];
    for point in states.points() {
        for seed in seeds(48) {
            let state = Arc::new(states.at(point, seed).remove(0));
            let device = disk(state);
            match (places(&*device), &old) {
                (Ok(found), _) if found == new => seen[1] += 1,
                (Ok(found), Some(old)) if found == *old => seen[0] += 1,
                // There was no table, and there is none yet.
                (Err(_), None) => seen[0] += 1,
                (found, _) => panic!("{what}, point {point}, seed {seed}: {found:?}"),
            }
            assert!(
                point < promised || places(&*device).unwrap() == new,
                "{what}: durable on return"
            );
            if old.is_some() {
                let mut bytes = [0; 512];
                device.read_at(&mut bytes, 2 * MIB).unwrap();
                assert_eq!(bytes, guest_data, "{what}, point {point}, seed {seed}");
                // A second run, or a repair, makes it whole.
                if let Ok(found) = places(&*device) {
                    let from = Some(gpt(&*device).read_from());
                    repair(&*device, None, from)
                        .unwrap_or_else(|error| panic!("{what}, {point}, {seed}: {error}"));
                    assert_eq!(places(&*device).unwrap(), found);
                }
            }
        }
    }
    seen
}

pub(super) fn guest_disk(device: &dyn BlockDevice) {
    let layout = Layout::new([1; 16])
        .with(NewPartition::new(PartitionKind::LINUX).start(2 * MIB).size(MIB))
        .with(NewPartition::new(PartitionKind::LINUX));
    create(device, &layout).unwrap();
    device.write_at(&[1; 512], 2 * MIB).unwrap();
}

#[test]
fn of_a_new_table() {
    let layout = Layout::new([2; 16]).with(NewPartition::new(PartitionKind::LINUX));
    let seen = cut("create", |_| (), |disk| drop(create(disk, &layout).unwrap()));
    assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
}

#[test]
fn of_a_table_over_another() {
    let layout = Layout::new([2; 16])
        .overwrite(true)
        .with(NewPartition::new(PartitionKind::LINUX).start(2 * MIB));
    let seen = cut("create", guest_disk, |disk| drop(create(disk, &layout).unwrap()));
    assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
}

#[test]
fn of_a_repair() {
    for damaged in [520, 1030, 8 * MIB - 500, 8 * MIB - 1024, 510, 454] {
        let prepare = |disk: &dyn BlockDevice| {
            guest_disk(disk);
            damage(disk, damaged);
        };
        cut("repair", prepare, |disk| {
            repair(disk, None, Some(gpt(disk).read_from())).unwrap();
        });
    }
}

#[test]
fn of_growing() {
    for more in [512, 4096, 20 << 10, 4 * MIB] {
        let prepare = |disk: &dyn BlockDevice| {
            guest_disk(disk);
            disk.resize(8 * MIB + more, Resize::default()).unwrap();
        };
        let seen = cut("grow", prepare, |disk| drop(grow(disk, None, true).unwrap()));
        assert!(seen[1] > 0 && (seen[0] > 0 || more < MIB), "{seen:?}");
    }
}
