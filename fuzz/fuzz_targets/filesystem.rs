//! Any image of a filesystem: reading all of it ends, without a panic, and errors are those of what is damaged.
//!
//! Most of an image is zeros or contents. So it is changed within its blocks that hold anything, one at a time, and has as
//! many zeros behind it as it takes.
#![no_main]

use block::{ErrorKind, MemStorage, Result, Storage};
use ext4_reader::{FileKind, Filesystem, InodeNumber, Visits};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

/// Bytes of the disk.
const DISK: u64 = 3 << 20;

/// Bytes that all files together may be read of one image.
const MOST: u64 = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let storage = MemStorage::from(bytes.to_vec());
    storage.set_len(DISK.max(bytes.len() as u64)).expect("memory");
    match fuzz::open(storage) {
        Ok(filesystem) => read_everything(&filesystem),
        Err(error) => assert!(is_expected(error.kind()), "{error:?}"),
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    fuzz::change_a_block(data, size, max_size, seed)
});

fn is_expected(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::InvalidInput
    )
}

/// Goes through all there is below the root, as far as it can be read.
fn read_everything(filesystem: &Filesystem) {
    let mut visits = Visits::new(filesystem.superblock());
    let mut ahead = vec![InodeNumber::ROOT];
    let mut left = MOST;
    while let Some(number) = ahead.pop() {
        match read(filesystem, number, &mut visits, &mut left) {
            Ok(more) => ahead.extend(more),
            Err(error) => assert!(is_expected(error.kind()), "{error:?}"),
        }
    }
}

/// Reads one thing. Returns what is in it.
fn read(
    filesystem: &Filesystem,
    number: InodeNumber,
    visits: &mut Visits,
    left: &mut u64,
) -> Result<Vec<InodeNumber>> {
    let inode = filesystem.inode(number)?;
    // What is wrong with its attributes says nothing of the rest.
    if let Err(error) = filesystem.xattrs(&inode) {
        assert!(is_expected(error.kind()), "{error:?}");
    }
    match inode.kind() {
        FileKind::Directory => {
            visits.enter(&inode)?;
            let entries = filesystem.read_dir(&inode)?;
            for entry in entries.iter().take(3) {
                if let Err(error) = filesystem.lookup(&inode, &entry.name) {
                    assert!(is_expected(error.kind()), "{error:?}");
                }
            }
            return Ok(entries.into_iter().map(|entry| entry.inode).collect());
        }
        FileKind::Symlink => drop(filesystem.read_link(&inode)?),
        FileKind::Regular => {
            let mut end = 0;
            for run in filesystem.content(&inode)? {
                let run = run?;
                assert!(run.offset >= end && run.len > 0, "runs are in order");
                end = run.offset + run.len;
                assert!(end <= inode.size(), "runs are within the file");
                visits.read(run.len)?;
                let len = run.len.min(*left).min(1 << 20);
                *left -= len;
                filesystem.read_run(&run, 0, &mut vec![0; len as usize])?;
            }
        }
        _ => {}
    }
    Ok(Vec::new())
}
