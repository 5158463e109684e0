//! Power that fails and I/O that errors while a filesystem is made over an older one.

use std::io::ErrorKind;
use std::sync::Arc;

use block::test_utils::{Fault, FaultStorage, IoOp, Recorder, seeds};
use block::{MemStorage, Storage};
use ext4_builder::{Builder, Metadata, Options, Size};

const MIB: u64 = 1 << 20;

fn made(options: &Options) -> MemStorage {
    let storage = MemStorage::new();
    ext4_builder::format(&storage, options.clone()).expect("format");
    storage
}

/// Whether a kernel would take what starts at byte 1024 for a superblock: magic number and checksum are right.
fn has_superblock(disk: &[u8]) -> bool {
    let (covered, checksum) = disk[1024..2048].split_at(0x3FC);
    covered[0x38..0x3A] == [0x53, 0xEF] && (!crc32c::crc32c(covered)).to_le_bytes() == checksum
}

#[test]
fn a_power_cut_leaves_the_old_filesystem_or_none_or_the_new() {
    let before = made(&Options::new(Size::Given(2 * MIB), [1; 16]));
    let after = Options::new(Size::Given(2 * MIB), [2; 16]);
    let (old, new) = (before.to_vec(), made(&after).to_vec());
    let recorder = Recorder::new();
    ext4_builder::format(&*recorder.storage(before), after.clone()).expect("format");

    let states = recorder.crash_states();
    let mut seen = [0; 3];
    for point in states.points() {
        for seed in seeds(32) {
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

/// Makes a filesystem with a tree.
fn build(storage: &dyn Storage, options: &Options) -> block::Result<()> {
    let mut builder = Builder::new(storage, options.clone())?;
    let metadata = Metadata::default();
    let directory = builder.directory(builder.root(), b"directory", &metadata)?;
    let data = 10..5000;
    for name in 0..100_u8 {
        let (_, placement) = builder.file(
            directory,
            &[b'a', name + 128],
            &metadata,
            5000,
            std::slice::from_ref(&data),
        )?;
        placement.write(storage, &[1; 4990], 10)?;
    }
    builder.remove(directory, b"a\x80");
    let (in_block, in_inode) = ([2; 1000], vec![3; 10_000]);
    let xattrs = [(&b"user.block"[..], &in_block[..]), (b"user.inode", &in_inode)];
    builder.set_xattrs(directory, xattrs)?;
    builder.symlink(directory, b"link", &metadata, &[b'x'; 100])?;
    builder.finish().map(|_| ())
}

#[test]
fn an_io_error_is_passed_on_and_leaves_no_filesystem() {
    let before = made(&Options::new(Size::Given(2 * MIB), [1; 16])).to_vec();
    for size in [Size::Given(2 * MIB), Size::Shrink] {
        for old in [&before[..], &[]] {
            let options = Options::new(size, [2; 16]);
            let disk = || {
                let disk = MemStorage::new();
                disk.write_all_at(old, 0).expect("write");
                Arc::new(disk)
            };
            let clean = FaultStorage::new(disk());
            build(&clean, &options).expect("build");
            let all = clean.calls(&IoOp::ALL);
            assert!(all > 100, "{all}");

            for nth in 1..=all {
                let disk = disk();
                let storage = FaultStorage::new(disk.clone());
                storage.inject(Fault::nth(nth, ErrorKind::StorageFull));
                let error = build(&storage, &options).expect_err("the fault is passed on");
                assert_eq!(error.kind(), block::ErrorKind::NoSpace, "call {nth}");
                let mut disk = disk.to_vec();
                disk.resize(disk.len().max(2048), 0);
                // The very last call is the sync of the superblock: then nobody can say.
                let is_old = disk == old;
                assert!(nth == all || is_old || !has_superblock(&disk), "call {nth}");
            }
        }
    }
}
