//! Any bytes as a tar archive that a filesystem is made of: an error, or a filesystem that can be read as a whole, and is
//! the same with another thread.
//!
//! The first bytes say how it is made. Checksums of blocks with a header's magic are made right, and the end is marked, or
//! few inputs would get past the first entry.
#![no_main]

use std::io::Cursor;
use std::num::NonZeroUsize;

use block::{MemStorage, Result};
use ext4_builder::source::{Control, Filter, Pattern, copy_archive};
use ext4_builder::{Builder, tar};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[how, filter], bytes)) = input.split_first_chunk() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    for block in bytes.as_chunks_mut::<512>().0 {
        seal(block);
    }
    if how & 0x80 == 0 {
        bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    }
    let Ok(made) = make(&bytes, how, filter, 1) else {
        return;
    };
    let again = make(&bytes, how, filter, 2).expect("it was made before");
    assert!(made.to_vec() == again.to_vec(), "two runs differ");
    let filesystem = fuzz::open(made).expect("what was made can be opened");
    fuzz::tree(&filesystem).expect("what was made can be read");
});

fn make(bytes: &[u8], how: u8, changes: u8, threads: usize) -> Result<MemStorage> {
    let mut filter = Filter::default();
    if changes & 1 != 0 {
        filter.exclude.push(Pattern::new(b"/file")?);
    }
    if changes & 2 != 0 {
        filter.uids.add(0, 1000, 500)?;
        filter.gids.add(1, 0, 5)?;
    }
    if changes & 4 != 0 {
        filter.owner = Some(5);
    }
    let control = Control {
        threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        ..Control::unwatched()
    };
    let archive = tar::Options {
        absolute_names: how & 16 != 0,
        end_mark_optional: how & 32 != 0,
        ..tar::Options::default()
    };
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, fuzz::options(how))?;
    copy_archive(
        &mut builder,
        Cursor::new(bytes.to_vec()),
        archive,
        &filter,
        &control,
    )?;
    builder.finish()?;
    Ok(storage)
}

/// Sets the checksum of a block that looks like a header.
fn seal(block: &mut [u8; 512]) {
    if block[257..262] != *b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
