//! Power that fails and I/O that errors while a filesystem is made over an older one.

use std::io::ErrorKind;
use std::sync::Arc;

use block::test_utils::{Fault, FaultStorage, IoOp, Recorder, seeds};
use block::{MemStorage, Storage};
use fat_builder::{Builder, Options, Time};

const SIZE: u64 = 34 << 20;

/// Makes a filesystem with a tree.
fn build(storage: &dyn Storage, volume_id: u32) -> block::Result<()> {
    let mut builder = Builder::new(storage, Options::new(SIZE, volume_id))?;
    let time = Time::default();
    let directory = builder.directory(builder.root(), b"a directory", time)?;
    for name in 0..20_u8 {
        let content = [name; 2000];
        builder.file(directory, &[b'a', name + b'a'], time, 2000, &mut &content[..])?;
    }
    builder.finish().map(|_| ())
}

fn made(volume_id: u32) -> MemStorage {
    let storage = MemStorage::new();
    build(&storage, volume_id).expect("build");
    storage
}

/// Whether anybody would take this for a FAT filesystem, from its boot sector.
fn has_boot_sector(disk: &[u8]) -> bool {
    disk[510..512] == [0x55, 0xAA] && &disk[82..87] == b"FAT32"
}

#[test]
fn a_power_cut_leaves_the_old_filesystem_or_none_or_the_new() {
    let before = made(1);
    let old = before.to_vec();
    let recorder = Recorder::new();
    build(&*recorder.storage(before), 2).expect("build");
    let states = recorder.crash_states();
    let new = states.at(*states.points().end(), 0).remove(0).to_vec();
    assert!(has_boot_sector(&new), "durable on return");
    let mut seen = [0; 3];
    for point in states.points() {
        for seed in seeds(8) {
            let disk = states.at(point, seed).remove(0);
            let mut start = [0; 512];
            disk.read_exact_at(&mut start, 0).expect("read");
            if !has_boot_sector(&start) {
                seen[1] += 1;
                continue;
            }
            let disk = disk.to_vec();
            if disk == old {
                seen[0] += 1;
            } else {
                assert!(
                    disk == new,
                    "point {point}, seed {seed}: a boot sector over something unfinished"
                );
                seen[2] += 1;
            }
        }
    }
    assert!(seen.iter().all(|&states| states > 0), "{seen:?}");
}

#[test]
fn an_io_error_is_passed_on_and_leaves_no_filesystem() {
    let before = made(1);
    for is_new in [false, true] {
        let disk = || Arc::new(if is_new { MemStorage::new() } else { before.clone() });
        let clean = FaultStorage::new(disk());
        build(&clean, 2).expect("build");
        let all = clean.calls(&IoOp::ALL);
        assert!(all > 30, "{all}");
        for nth in 1..=all {
            let disk = disk();
            let storage = FaultStorage::new(disk.clone());
            storage.inject(Fault::nth(nth, ErrorKind::StorageFull));
            let error = build(&storage, 2).expect_err("the fault is passed on");
            assert_eq!(error.kind(), block::ErrorKind::NoSpace, "call {nth}");
            let mut start = [0; 512];
            disk.read_exact_at(&mut start, 0).expect("read");
            let mut old = [0; 512];
            before.read_exact_at(&mut old, 0).expect("read");
            // The very last call is the sync of the boot sector: then nobody can say.
            assert!(
                nth == all || start == old || !has_boot_sector(&start),
                "call {nth}"
            );
        }
    }
}
