//! Writes of 4 KiB: to clusters that are there, to new ones, and to clusters that are copied from below first. Real files in the
//! page cache; nothing is synced, so that a figure is the time of the library and of the host's copy.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::{make_chain, open_chain, open_for_writing, random_offsets};
use block::{Access, BackingReference, BlockDevice, MemStorage};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use qcow2::CreateOptions;

const SIZE: u64 = 256 << 20;
const CLUSTER: u64 = 64 << 10;
const WRITE: [u8; 4096] = [9; 4096];

/// In place, the active layer having every cluster already.
fn in_place(c: &mut Criterion) {
    let offsets = random_offsets(SIZE, 4096);
    let mut group = c.benchmark_group("write of 4 KiB in place");
    for depth in [1, 4, 16, 64] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = make_chain(directory.path(), SIZE, depth - 1);
        let device = open_chain(&path, Access::WRITE);
        for offset in (0..SIZE).step_by(CLUSTER as usize) {
            device.write_at(&WRITE, offset).expect("room for the disk");
        }
        device.flush().expect("flush");
        let mut turns = offsets.iter().cycle();
        group.bench_function(format!("chain of {depth}"), |b| {
            b.iter(|| {
                device
                    .write_at(&WRITE, *turns.next().expect("there are offsets"))
                    .expect("write");
            });
        });
    }
    group.finish();
}

/// Time of `count` writes, each to a cluster that a new overlay in `directory` does not have.
fn copies(directory: &Path, base: &Path, extended_l2: bool, count: u64) -> Duration {
    let mut time = Duration::ZERO;
    let mut left = count;
    let path = directory.join("overlay");
    while left > 0 {
        let options = CreateOptions {
            size: SIZE,
            extended_l2,
            backing: Some(BackingReference {
                name: base.to_str().expect("a plain name").to_owned(),
                format: Some("qcow2".to_owned()),
            }),
            ..CreateOptions::default()
        };
        let file = raw::OpenOptions::new().write(true).create_new(true).open(&path);
        qcow2::create(&file.expect("a new file"), &options).expect("the overlay can be made");
        let writes = left.min(SIZE / CLUSTER);
        let overlay = open_chain(&path, Access::WRITE);
        let start = Instant::now();
        for number in 0..writes {
            overlay.write_at(&WRITE, number * CLUSTER + 8192).expect("write");
        }
        time += start.elapsed();
        left -= writes;
        drop(overlay);
        std::fs::remove_file(&path).expect("the overlay is there");
    }
    time
}

fn copy_on_write(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let base = make_chain(directory.path(), SIZE, 0);
    let mut group = c.benchmark_group("copy-on-write of 4 KiB");
    group.sample_size(10);
    for (extended_l2, name) in [(false, "clusters of 64 KiB"), (true, "subclusters of 2 KiB")] {
        group.bench_function(name, |b| {
            b.iter_custom(|count| copies(directory.path(), &base, extended_l2, count));
        });
    }
    group.finish();
}

/// Clusters for all of a disk of 64 MiB, in memory: what allocating costs beside moving data.
fn allocation(c: &mut Criterion) {
    const DISK: u64 = 64 << 20;
    let new = || {
        let storage = Arc::new(MemStorage::new());
        let options = CreateOptions {
            size: DISK,
            ..CreateOptions::default()
        };
        qcow2::create(&*storage, &options).expect("the image can be made");
        open_for_writing(storage)
    };
    let mut group = c.benchmark_group("allocation");
    group.sample_size(20);
    group.bench_function("1024 clusters, one by one", |b| {
        b.iter_batched(
            new,
            |image| {
                for offset in (0..DISK).step_by(CLUSTER as usize) {
                    image.write_at(&WRITE[..512], offset).expect("write");
                }
                image
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, in_place, copy_on_write, allocation);
criterion_main!(benches);
