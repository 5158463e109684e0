use std::sync::Barrier;
use std::thread;

use block::ErrorKind;
use proptest::prelude::*;

use super::*;
use crate::testing::{Loop, Mount};
use crate::{Io, OpenOptions};

/// A way to read and write a file.
#[derive(Clone, Copy, Debug)]
struct Way {
    io: Io,
    direct: bool,
}

/// Through the page cache and past it, by every means.
const WAYS: [Way; 4] = [
    Way {
        io: Io::Sync,
        direct: false,
    },
    Way {
        io: Io::Sync,
        direct: true,
    },
    Way {
        io: Io::Uring,
        direct: false,
    },
    Way {
        io: Io::Uring,
        direct: true,
    },
];

impl Way {
    fn options(self) -> OpenOptions {
        OpenOptions::new().write(true).io(self.io).direct(self.direct)
    }
}

/// A new file, where the one of the last turn may still be.
fn create(directory: &Path, way: Way) -> File {
    let options = way.options().truncate(true);
    options.open(directory.join("disk")).unwrap()
}

/// All bytes of the file, which read the same when they are mapped into memory.
fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0xee; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mapped = OpenOptions::new()
        .io(Io::Mmap)
        .lock(false)
        .open(&file.path)
        .unwrap();
    let mut again = vec![0xdd; bytes.len() + 10];
    mapped.read_exact_at(&mut again, 0).unwrap();
    assert!(again[..bytes.len()] == bytes && again[bytes.len()..] == [0; 10]);
    bytes
}

#[derive(Clone, Debug)]
enum Operation {
    Read(u64, usize),
    Write(u64, usize, u8),
    WriteVectored(u64, Vec<usize>, u8),
    Zero(u64, u64, bool),
    Allocate(u64, u64),
    Resize(u64),
}

const MODEL: u64 = 40_000;

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    // Half of the offsets and lengths are whole sectors.
    let place = || prop_oneof![0..MODEL, (0..MODEL / 512).prop_map(|sector| sector * 512)];
    let span = || prop_oneof![0..MODEL / 4, (0..MODEL / 2048).prop_map(|sectors| sectors * 512)];
    let length = move || span().prop_map(|len| len as usize);
    let operation = prop_oneof![
        (place(), length()).prop_map(|(at, len)| Operation::Read(at, len)),
        (place(), length(), 1..=u8::MAX).prop_map(|(at, len, byte)| Operation::Write(at, len, byte)),
        (place(), prop::collection::vec(0_usize..2000, 0..6), 1..=u8::MAX)
            .prop_map(|(at, lens, byte)| Operation::WriteVectored(at, lens, byte)),
        (place(), span(), any::<bool>()).prop_map(|(at, len, unmap)| Operation::Zero(at, len, unmap)),
        (place(), span()).prop_map(|(at, len)| Operation::Allocate(at, len)),
        place().prop_map(Operation::Resize),
    ];
    prop::collection::vec(operation, 1..40)
}

fn fill(model: &mut Vec<u8>, offset: u64, len: u64, byte: u8) {
    let (start, end) = (offset as usize, (offset + len) as usize);
    if len > 0 {
        model.resize(model.len().max(end), 0);
        model[start..end].fill(byte);
    }
}

fn agrees_with_model(file: &File, operations: &[Operation]) {
    let mut model = content(file);
    for operation in operations {
        match operation {
            Operation::Read(at, len) => {
                let mut bytes = vec![0xee; *len];
                file.read_exact_at(&mut bytes, *at).unwrap();
                let expected = model
                    .iter()
                    .skip(*at as usize)
                    .chain(std::iter::repeat(&0))
                    .take(*len);
                assert!(bytes.iter().eq(expected), "{operation:?}");
            }
            Operation::Write(at, len, byte) => {
                file.write_all_at(&vec![*byte; *len], *at).unwrap();
                fill(&mut model, *at, *len as u64, *byte);
            }
            Operation::WriteVectored(at, lens, byte) => {
                let parts: Vec<Vec<u8>> = lens.iter().map(|&len| vec![*byte; len]).collect();
                let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                file.write_vectored_at(&slices, *at).unwrap();
                fill(&mut model, *at, lens.iter().sum::<usize>() as u64, *byte);
            }
            Operation::Zero(at, len, unmap) => {
                let mode = if *unmap {
                    ZeroMode::Unmap
                } else {
                    ZeroMode::Allocate
                };
                file.zero(*at, *len, mode).unwrap();
                fill(&mut model, *at, *len, 0);
            }
            Operation::Allocate(at, len) => {
                file.allocate(*at, *len).unwrap();
                if *len > 0 {
                    model.resize(model.len().max((at + len) as usize), 0);
                }
            }
            Operation::Resize(len) => {
                file.set_len(*len).unwrap();
                model.resize(*len as usize, 0);
            }
        }
        assert_eq!(file.len().unwrap(), model.len() as u64, "{operation:?}");
    }
    assert!(content(file) == model, "the file differs from the model");
    assert_no_data_in_holes(file, &model);
}

fn assert_no_data_in_holes(file: &File, model: &[u8]) {
    let mut at = 0;
    while at < model.len() {
        let run = file.host_extent(at as u64, (model.len() - at) as u64).unwrap();
        let end = at + run.len as usize;
        assert!(run.len > 0 && end <= model.len(), "{run:?} at {at}");
        assert!(
            run.data || model[at..end].iter().all(|&byte| byte == 0),
            "{run:?} at {at}"
        );
        at = end;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whichever_way_it_is_a_vector_of_bytes(operations in operations()) {
        let directory = tempfile::tempdir().unwrap();
        for way in WAYS {
            agrees_with_model(&create(directory.path(), way), &operations);
        }
    }
}

#[test]
fn file_systems_differ_in_what_they_can_zero_but_not_in_the_result() {
    let mounts = [Mount::tmpfs(16 << 20), Mount::ext4(16 << 20)];
    for directory in mounts.iter().map(Mount::path) {
        let file = create(directory, WAYS[0]);
        file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
        file.zero(4096, 65536, ZeroMode::Unmap).unwrap();
        let (before, whole) = (file.allocated().unwrap().unwrap(), 1 << 20);
        assert!(before <= whole - 65536, "{directory:?}: {before} bytes used");
        file.zero(4096, 65536, ZeroMode::Allocate).unwrap();
        let after = file.allocated().unwrap().unwrap();
        assert!(after >= before + 65536, "{directory:?}: {after} bytes used");
        let bytes = content(&file);
        assert!(bytes[4096..4096 + 65536].iter().all(|&byte| byte == 0));
        assert!(
            bytes[..4096]
                .iter()
                .chain(&bytes[4096 + 65536..])
                .all(|&byte| byte == 7)
        );
    }
}

#[test]
fn zeroing_past_the_end_grows_the_file_without_taking_room() {
    for mount in [Mount::tmpfs(16 << 20), Mount::ext4(16 << 20)] {
        let file = create(mount.path(), WAYS[0]);
        file.zero(1 << 20, 1 << 30, ZeroMode::Unmap).unwrap();
        assert_eq!(file.len().unwrap(), (1 << 20) + (1 << 30));
        assert_eq!(file.allocated().unwrap(), Some(0));
        assert_eq!(
            file.host_extent(5, 1 << 40).unwrap(),
            HostExtent {
                len: 1 << 40,
                data: false
            }
        );
    }
}

#[test]
fn holes_and_data_are_told_apart() {
    let mount = Mount::ext4(16 << 20);
    let file = create(mount.path(), WAYS[0]);
    file.write_all_at(&[1; 8192], 16384).unwrap();
    file.set_len(65536).unwrap();
    let runs = [
        (0, 16384, false),
        (16384, 8192, true),
        (20480, 4096, true),
        (24576, 1 << 30, false),
    ];
    for (offset, len, data) in runs {
        assert_eq!(
            file.host_extent(offset, 1 << 30).unwrap(),
            HostExtent { len, data },
            "{offset}"
        );
    }
    assert_eq!(
        file.host_extent(16384, 100).unwrap(),
        HostExtent { len: 100, data: true }
    );
    let far = file.host_extent(u64::MAX - 10, 10).unwrap();
    assert_eq!(far, HostExtent { len: 10, data: false });
}

#[test]
fn discard_gives_room_back_and_never_grows() {
    let mount = Mount::ext4(16 << 20);
    let file = create(mount.path(), WAYS[0]);
    file.write_all_at(&vec![1; 65536], 0).unwrap();
    file.sync_data().unwrap();
    file.discard(0, 1 << 40).unwrap();
    file.discard(1 << 50, 1).unwrap();
    assert_eq!((file.len().unwrap(), file.allocated().unwrap()), (65536, Some(0)));
    assert!(content(&file).iter().all(|&byte| byte == 0));
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let mount = Mount::tmpfs(1 << 20);
    for way in WAYS {
        let file = create(mount.path(), way);
        let results = [
            file.write_all_at(&vec![1; 2 << 20], 0),
            file.write_vectored_at(&[IoSlice::new(&vec![1; 2 << 20]), IoSlice::new(&[1])], 0),
            file.zero(0, 2 << 20, ZeroMode::Allocate),
            file.allocate(0, 2 << 20),
        ];
        for error in results.map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{way:?}: {error}");
            assert_eq!(error.path(), Some(&*mount.path().join("disk")));
            assert!(error.offset().is_some(), "{error}");
        }
    }
}

#[test]
fn more_buffers_than_the_kernel_takes_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for (way, len) in WAYS.into_iter().flat_map(|way| [(way, 3), (way, 512)]) {
        let file = create(directory.path(), way);
        let parts: Vec<AlignedBuf> = (0..2500_usize)
            .map(|i| {
                let mut part = AlignedBuf::zeroed(len, 512);
                part.fill(i as u8);
                part
            })
            .collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        file.write_vectored_at(&slices, 0).unwrap();
        assert_eq!(file.len().unwrap(), 2500 * len as u64);

        // One buffer more than the file has: the rest reads as zeros.
        let mut read: Vec<AlignedBuf> = (0..2501).map(|_| AlignedBuf::zeroed(len, 512)).collect();
        read[2500].fill(0xee);
        let mut bufs: Vec<IoSliceMut<'_>> = read.iter_mut().map(|part| IoSliceMut::new(part)).collect();
        file.read_vectored_at(&mut bufs, 0).unwrap();
        assert!(read.iter().zip(&parts).all(|(got, wrote)| **got == **wrote));
        assert!(read[2500].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn writers_of_one_sector_keep_each_others_bytes() {
    let directory = tempfile::tempdir().unwrap();
    for way in WAYS {
        let file = create(directory.path(), way);
        thread::scope(|scope| {
            for writer in 0..4_u8 {
                let file = &file;
                scope.spawn(move || {
                    for i in 0..100 {
                        let at = i * 400 + u64::from(writer) * 100;
                        file.write_all_at(&[writer + 1; 100], at).unwrap();
                        assert!(file.len().unwrap() <= 40_000);
                    }
                });
            }
        });
        let bytes = content(&file);
        assert_eq!(bytes.len(), 40_000);
        assert!(
            bytes
                .iter()
                .enumerate()
                .all(|(i, &byte)| usize::from(byte) == i / 100 % 4 + 1)
        );
    }
}

#[test]
fn reads_at_an_end_that_moves() {
    let directory = tempfile::tempdir().unwrap();
    for way in WAYS {
        let file = create(directory.path(), way);
        thread::scope(|scope| {
            scope.spawn(|| (0..500).for_each(|i| file.write_all_at(&[9; 100], i * 100).unwrap()));
            scope.spawn(|| {
                let mut bytes = vec![0; 60_000];
                let mut known = 0;
                while known < 50_000 {
                    known = file.len().unwrap() as usize;
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    assert!(
                        bytes[..known].iter().all(|&byte| byte == 9),
                        "what was there at {known}"
                    );
                    assert!(bytes[50_000..].iter().all(|&byte| byte == 0));
                }
            });
        });
    }
}

#[test]
fn growing_by_zeros_never_cuts_what_another_thread_wrote() {
    const ROUNDS: u64 = 2000;
    let directory = tempfile::tempdir().unwrap();
    for way in WAYS {
        let file = create(directory.path(), way);
        let round = Barrier::new(2);
        let each_round = |step: &dyn Fn(u64)| {
            for i in 0..ROUNDS {
                round.wait();
                step(i * 100);
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| each_round(&|at| file.zero(at, 50, ZeroMode::Unmap).unwrap()));
            scope.spawn(|| each_round(&|at| file.write_all_at(&[9; 50], at + 50).unwrap()));
        });
        let bytes = content(&file);
        assert_eq!(bytes.len() as u64, ROUNDS * 100);
        for (i, part) in bytes.chunks(50).enumerate() {
            let byte = [0, 9][i % 2];
            assert!(part.iter().all(|&found| found == byte), "at {}", i * 50);
        }
    }
}

#[test]
fn a_block_device_has_a_fixed_length_and_takes_any_alignment() {
    for (sector, way) in [512, 4096]
        .into_iter()
        .flat_map(|sector| WAYS.map(|way| (sector, way)))
    {
        let backing = tempfile::NamedTempFile::new().unwrap();
        backing.as_file().set_len(1 << 20).unwrap();
        let device = Loop::over(backing.path(), sector);
        let file = way.options().open(device.path()).unwrap();
        assert_eq!((file.len().unwrap(), file.allocated().unwrap()), (1 << 20, None));
        assert_eq!(file.set_len(1 << 19).unwrap_err().kind(), ErrorKind::Unsupported);
        let past = [
            file.write_all_at(&[1; 512], 1 << 20),
            file.zero(1 << 20, 1, ZeroMode::Unmap),
        ];
        assert!(
            past.into_iter()
                .all(|result| result.unwrap_err().kind() == ErrorKind::NoSpace)
        );

        let mut model = vec![5; 1 << 20];
        file.write_all_at(&model, 0).unwrap();
        for (offset, len, mode) in [
            (1000, 100_000, ZeroMode::Unmap),
            (300_001, 9999, ZeroMode::Allocate),
        ] {
            file.zero(offset, len, mode).unwrap();
            fill(&mut model, offset, len, 0);
        }
        file.write_all_at(&[6; 777], 555).unwrap();
        fill(&mut model, 555, 777, 6);
        assert!(content(&file) == model, "sectors of {sector}, {way:?}");
        assert_eq!(
            file.host_extent(0, 1 << 30).unwrap(),
            HostExtent {
                len: 1 << 20,
                data: true
            }
        );

        file.sync_data().unwrap();
        let before = backing.as_file().metadata().unwrap().blocks();
        file.discard(500_000, 300_000).unwrap();
        assert!(backing.as_file().metadata().unwrap().blocks() < before);
    }
}

#[test]
fn a_failed_sync_is_never_forgotten() {
    // A loop device whose file has no room: writes get as far as the page cache, and fail from there.
    let mount = Mount::tmpfs(1 << 20);
    let backing = mount.path().join("backing");
    fs::File::create(&backing).unwrap().set_len(8 << 20).unwrap();
    let device = Loop::over(&backing, 512);
    let file = OpenOptions::new().write(true).open(device.path()).unwrap();
    file.write_all_at(&vec![1; 4 << 20], 0).unwrap();
    let first = file.sync_data().unwrap_err();
    assert!(rustix::fs::fdatasync(&file).is_ok(), "the kernel reports it once");
    assert_eq!(file.sync_data().unwrap_err().to_string(), first.to_string());
}

#[test]
fn a_disk_that_fails_to_read_is_said_to() {
    // A loop device over a file that was cut behind its back.
    let backing = tempfile::NamedTempFile::new().unwrap();
    backing.as_file().set_len(4 << 20).unwrap();
    let device = Loop::over(backing.path(), 512);
    backing.as_file().set_len(1 << 20).unwrap();
    for way in WAYS {
        let file = way.options().open(device.path()).unwrap();
        let mut bufs = [AlignedBuf::zeroed(8192, 4096), AlignedBuf::zeroed(8192, 4096)];
        let [good, bad] = &mut bufs;
        for at in [2 << 20, (2 << 20) + 700] {
            let errors = [
                file.read_exact_at(bad, at),
                file.read_vectored_at(&mut [IoSliceMut::new(good), IoSliceMut::new(bad)], at),
                file.read_batch(&mut [(0, &mut *good), (at, &mut *bad)]),
            ];
            for error in errors.map(Result::unwrap_err) {
                assert_eq!(error.kind(), ErrorKind::Io, "{way:?}: {error}");
                assert_eq!(error.path(), Some(device.path()));
                assert!(error.offset().is_some_and(|offset| offset >= at), "{error}");
            }
        }
        file.read_batch(&mut [(0, &mut *good), (8192, &mut *bad)])
            .unwrap();
    }
}

#[test]
fn writing_to_what_is_open_for_reading_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(create(directory.path(), WAYS[0]));
    for io in [Io::Auto, Io::Sync, Io::Uring, Io::Mmap] {
        let options = OpenOptions::new().io(io);
        let file = options.open(directory.path().join("disk")).unwrap();
        let results = [
            file.write_all_at(&[1], 0),
            file.write_vectored_at(&[IoSlice::new(&[1])], 0),
            file.zero(0, 1, ZeroMode::Unmap),
            file.discard(0, 1),
            file.allocate(0, 1),
            file.set_len(1),
        ];
        assert!(
            results
                .into_iter()
                .all(|result| result.unwrap_err().kind() == ErrorKind::ReadOnly)
        );
    }
}

#[test]
fn what_a_mapped_file_has_grown_by_is_read_too() {
    let directory = tempfile::tempdir().unwrap();
    for before in [0, 5000] {
        let writer = create(directory.path(), WAYS[0]);
        writer.write_all_at(&vec![1; before], 0).unwrap();
        let options = OpenOptions::new().io(Io::Mmap).lock(false);
        let mapped = options.open(&writer.path).unwrap();
        writer.write_all_at(&vec![2; 10_000], before as u64).unwrap();

        assert_eq!(mapped.len().unwrap(), before as u64 + 10_000);
        let mut bytes = vec![0xee; before + 10_100];
        mapped.read_exact_at(&mut bytes, 0).unwrap();
        let mut parts = vec![[0xee; 100]; bytes.len() / 100];
        let mut slices: Vec<IoSliceMut<'_>> = parts.iter_mut().map(|part| IoSliceMut::new(part)).collect();
        mapped.read_vectored_at(&mut slices, 0).unwrap();
        assert_eq!(parts.concat(), bytes);
        for (i, &byte) in bytes.iter().enumerate() {
            let expected = if i < before { 1 } else { 2 };
            assert_eq!(byte, if i < before + 10_000 { expected } else { 0 }, "{i}");
        }
        assert!(mapped.read_exact_at(&mut [0; 2], u64::MAX).is_err());
        mapped.read_exact_at(&mut [0; 2], i64::MAX as u64 - 2).unwrap();
    }
}

#[test]
fn what_cannot_be_mapped_says_so() {
    let mount = Mount::tmpfs(1 << 20);
    let path = mount.path().join("huge");
    fs::File::create(&path)
        .unwrap()
        .set_len(i64::MAX as u64 - 4095)
        .unwrap();
    let error = OpenOptions::new().io(Io::Mmap).open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!((error.path(), error.hint().is_some()), (Some(&*path), true));
}

#[test]
fn offsets_that_no_file_has_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    for way in WAYS {
        let file = create(directory.path(), way);
        for offset in [u64::MAX, i64::MAX as u64] {
            file.read_exact_at(&mut [0; 8], offset).unwrap_err();
            file.write_all_at(&[0; 8], offset).unwrap_err();
            file.zero(offset, 8, ZeroMode::Allocate).unwrap_err();
            file.allocate(offset, 8).unwrap_err();
        }
        file.set_len(u64::MAX).unwrap_err();
        assert_eq!(file.len().unwrap(), 0);
    }
}
