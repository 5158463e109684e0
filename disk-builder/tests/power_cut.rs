//! Power that fails and I/O that errors while a disk is made over an older one: nobody finds half a disk.

use std::io::ErrorKind;
use std::sync::Arc;

use block::test_utils::{Fault, FaultStorage, IoOp, Recorder, seeds};
use block::{Access, BlockDevice, MemStorage, Result, Storage};
use disk_builder::{BootLoader, Options, build};
use ext4_builder::{Builder, Journal, Metadata, Options as Root, Size};
use raw::partition::PartitionTable;

const MIB: usize = 1 << 20;
const SIZE: usize = 40 * MIB;

/// What firmware takes for a program for x86-64, with something in it.
fn program(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3C..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
    bytes[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
    bytes
}

fn fill(root: &mut Builder<'_>) -> Result<()> {
    let metadata = Metadata::default();
    let boot = root.directory(root.root(), b"boot", &metadata)?;
    for (name, len) in [(&b"vmlinuz-1"[..], 20_000), (b"initrd.img-1", 30_000)] {
        let (_, placement) = root.file(boot, name, &metadata, len, std::slice::from_ref(&(0..len)))?;
        placement.write(root.storage(), &program(len as usize), 0)?;
    }
    Ok(())
}

/// Makes a disk that is known by `id`.
fn make(storage: Arc<dyn Storage>, id: u8, size: Size) -> Result<()> {
    let disk: Arc<dyn BlockDevice> = Arc::new(raw::Image::open(storage, Access::WRITE)?);
    let mut options = Options::new(Root {
        journal: Journal::None,
        ..Root::new(size, [id; 16])
    });
    options.esp_size = 34 << 20;
    options.loader = BootLoader::program("a test", program(9000));
    let made = build(&disk, &options, fill, &|_| Ok(()))?;
    assert_eq!(made.size, disk.size());
    Ok(())
}

fn made(id: u8) -> MemStorage {
    let storage = Arc::new(MemStorage::new());
    make(storage.clone(), id, Size::Given(SIZE as u64)).expect("make");
    MemStorage::clone(&storage)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// With a table, of which one copy may be damaged, and all that was in the partitions.
    Old,
    NoTable,
    New,
}

/// What there is for who reads the partition table.
fn state(storage: &MemStorage, old: &[u8], new: &[u8]) -> State {
    let disk = raw::Image::open(Arc::new(storage.clone()), Access::READ).expect("open");
    if PartitionTable::read(&disk, None).is_err() {
        return State::NoTable;
    }
    let partitions = |disk: &[u8]| disk[MIB..SIZE - MIB].to_vec();
    let found = partitions(&storage.to_vec());
    if found == partitions(old) {
        State::Old
    } else {
        assert!(
            found == partitions(new),
            "a partition table over something unfinished"
        );
        State::New
    }
}

#[test]
fn a_power_cut_leaves_the_old_disk_or_none_or_the_new() {
    let (before, new) = (made(1), made(2).to_vec());
    let old = before.to_vec();
    let recorder = Recorder::new();
    let storage = recorder.storage(before);
    make(storage, 2, Size::Given(SIZE as u64)).expect("make");
    let states = recorder.crash_states();
    let mut seen = Vec::new();
    for point in states.points() {
        for seed in seeds(6) {
            let state = state(&states.at(point, seed).remove(0), &old, &new);
            assert_ne!((point, state), (0, State::New));
            if !seen.contains(&state) {
                seen.push(state);
            }
        }
    }
    assert_eq!(seen, [State::Old, State::NoTable, State::New]);
    let last = states.at(*states.points().end(), 0).remove(0).to_vec();
    assert!(last == new, "durable on return");
}

#[test]
fn an_io_error_is_passed_on_and_leaves_no_half_of_a_disk() {
    let (before, new) = (made(1), made(2).to_vec());
    let old = before.to_vec();
    for (before, size) in [
        (before, Size::Given(SIZE as u64)),
        (MemStorage::new(), Size::Given(SIZE as u64)),
        (MemStorage::new(), Size::Shrink),
    ] {
        let disk = || Arc::new(before.clone());
        let clean = Arc::new(FaultStorage::new(disk()));
        make(clean.clone(), 2, size).expect("make");
        let all = clean.calls(&IoOp::ALL);
        assert!(all > 40, "{all}");
        for nth in 1..=all {
            for fault in [
                Fault::nth(nth, ErrorKind::StorageFull),
                Fault::from_nth(nth, ErrorKind::StorageFull),
            ] {
                let disk = disk();
                let storage = Arc::new(FaultStorage::new(disk.clone()));
                storage.inject(fault);
                let error = make(storage, 2, size).expect_err("the fault is passed on");
                assert_eq!(error.kind(), block::ErrorKind::NoSpace, "call {nth}");
                if matches!(size, Size::Given(_)) {
                    state(&disk, &old, &new);
                }
            }
        }
    }
}
