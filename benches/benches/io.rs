//! The ways of I/O: reads of 4 KiB at random, one by one and many in a batch, from the page cache and past it.
//!
//! Every figure is the time of as many reads as a batch has.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::path::Path;

use benches::random_offsets;
use block::Storage;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use raw::{Io, OpenOptions};

const FILE: u64 = 256 << 20;
const READ: usize = 4096;
const BATCH: usize = 32;

/// Buffers at addresses that direct I/O can use.
struct Buffers {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffers {
    fn new() -> Self {
        let bytes = vec![0; (BATCH + 1) * READ];
        let start = bytes.as_ptr().addr().next_multiple_of(READ) - bytes.as_ptr().addr();
        Self { bytes, start }
    }

    fn iter(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes[self.start..].chunks_exact_mut(READ).take(BATCH)
    }
}

fn random(c: &mut Criterion, path: &Path, direct: bool) {
    let offsets = random_offsets(FILE, BATCH * 512);
    let cache = if direct { "past the cache" } else { "in the cache" };
    let mut group = c.benchmark_group(format!("32 random reads of 4 KiB, {cache}"));
    group
        .throughput(Throughput::Elements(BATCH as u64))
        .sample_size(20);
    for io in [Io::Sync, Io::Uring, Io::Mmap] {
        if direct && io == Io::Mmap {
            continue;
        }
        let options = OpenOptions::new().io(io).direct(direct);
        let storage = options.open(path).expect("the file opens");
        let mut buffers = Buffers::new();
        let mut turns = offsets.chunks(BATCH).cycle();
        group.bench_function(format!("{io:?}, one by one"), |b| {
            b.iter(|| {
                for (offset, buf) in turns.next().into_iter().flatten().zip(buffers.iter()) {
                    storage.read_exact_at(buf, *offset).expect("the file can be read");
                }
            });
        });
        group.bench_function(format!("{io:?}, as a batch"), |b| {
            b.iter(|| {
                let offsets = turns.next().into_iter().flatten().copied();
                let mut runs: Vec<(u64, &mut [u8])> = offsets.zip(buffers.iter()).collect();
                storage.read_batch(&mut runs).expect("the file can be read");
            });
        });
    }
    group.finish();
}

fn reads(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("there is a directory for the file");
    let path = directory.path().join("disk.raw");
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let file = file.expect("the file can be made");
    let chunk: Vec<u8> = (0..1 << 20).map(|i| (i / 5) as u8).collect();
    for offset in (0..FILE).step_by(chunk.len()) {
        file.write_all_at(&chunk, offset).expect("the file can be filled");
    }
    file.sync_data().expect("the file can be synced");
    drop(file);
    random(c, &path, false);
    random(c, &path, true);
}

criterion_group!(benches, reads);
criterion_main!(benches);
