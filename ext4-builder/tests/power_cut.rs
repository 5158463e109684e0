//! Power that fails and I/O that errors while a filesystem is made over an older one.

use std::io::ErrorKind;
use std::sync::Arc;

use block::test_utils::{Fault, FaultStorage, Recorder};
use block::{MemStorage, Storage};
use ext4_builder::Parameters;

const MIB: u64 = 1 << 20;

fn made(parameters: &Parameters) -> MemStorage {
    let storage = MemStorage::new();
    ext4_builder::format(&storage, parameters).expect("format");
    storage
}

/// Whether a kernel would take what starts at byte 1024 for a superblock: magic number and checksum are right.
fn has_superblock(disk: &[u8]) -> bool {
    let (covered, checksum) = disk[1024..2048].split_at(0x3FC);
    covered[0x38..0x3A] == [0x53, 0xEF] && (!crc32c::crc32c(covered)).to_le_bytes() == checksum
}

#[test]
fn a_power_cut_leaves_the_old_filesystem_or_none_or_the_new() {
    let before = made(&Parameters::new(2 * MIB, [1; 16]));
    let after = Parameters::new(2 * MIB, [2; 16]);
    let (old, new) = (before.to_vec(), made(&after).to_vec());
    let recorder = Recorder::new();
    ext4_builder::format(&*recorder.storage(before), &after).expect("format");

    let states = recorder.crash_states();
    let mut seen = [0; 3];
    for point in states.points() {
        for seed in 0..32 {
            let disk = states.at(point, seed).remove(0).to_vec();
            if !has_superblock(&disk) {
                seen[1] += 1;
            } else if disk == old {
                seen[0] += 1;
            } else {
                assert!(
                    disk == new,
                    "point {point}, seed {seed}: a superblock over something unfinished"
                );
                seen[2] += 1;
            }
        }
    }
    assert!(seen.iter().all(|&states| states > 0), "{seen:?}");
    assert!(
        states.at(*states.points().end(), 0).remove(0).to_vec() == new,
        "durable on return"
    );
}

#[test]
fn an_io_error_is_passed_on_and_leaves_no_filesystem() {
    let parameters = Parameters::new(2 * MIB, [2; 16]);
    let clean = FaultStorage::new(Arc::new(MemStorage::new()));
    ext4_builder::format(&clean, &parameters).expect("format");
    let all = clean.calls(&block::test_utils::IoOp::ALL);
    assert!(all > 10, "{all}");

    for nth in 1..=all {
        let disk = Arc::new(MemStorage::new());
        let storage = FaultStorage::new(disk.clone());
        storage.inject(Fault::nth(nth, ErrorKind::StorageFull));
        let error = ext4_builder::format(&storage, &parameters).expect_err("the fault is passed on");
        assert_eq!(error.kind(), block::ErrorKind::NoSpace, "call {nth}");
        // The very last call is the sync of the superblock: then nobody can say.
        let disk = if disk.len().expect("len") < 2048 {
            vec![0; 2048]
        } else {
            disk.to_vec()
        };
        assert!(nth == all || !has_superblock(&disk), "call {nth}");
    }
}
