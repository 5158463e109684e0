//! Work on all tables of an image: snapshots, and a check. The image is of 64 GiB with every one of its million clusters mapped,
//! in memory, so that a figure is the time of the library.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use benches::{make_mapped_in, open_for_writing};
use block::{MemStorage, SnapshotSelector};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qcow2::{CheckOptions, SnapshotProgress};

const SIZE: u64 = 64 << 30;
const CLUSTERS: u64 = SIZE >> 16;

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn snapshots(c: &mut Criterion) {
    let storage = Arc::new(MemStorage::new());
    make_mapped_in(&*storage, SIZE);
    let image = open_for_writing(storage);
    // Both have to be done for either: what is taken is deleted again.
    let time = |count: u64, of_delete: bool| {
        let mut time = Duration::ZERO;
        for _ in 0..count {
            let start = Instant::now();
            image
                .create_snapshot("s", UNIX_EPOCH, &mut go_on)
                .expect("create");
            let between = Instant::now();
            image
                .delete_snapshot(&SnapshotSelector::name("s"), &mut go_on)
                .expect("delete");
            time += if of_delete {
                between.elapsed()
            } else {
                between - start
            };
        }
        time
    };
    let mut group = c.benchmark_group("snapshot, 64 GiB mapped");
    group.throughput(Throughput::Elements(CLUSTERS)).sample_size(10);
    group.bench_function("create", |b| b.iter_custom(|count| time(count, false)));
    group.bench_function("delete", |b| b.iter_custom(|count| time(count, true)));
    group.finish();
}

fn check(c: &mut Criterion) {
    let storage = MemStorage::new();
    make_mapped_in(&storage, SIZE);
    let mut group = c.benchmark_group("check, 64 GiB mapped");
    group.throughput(Throughput::Elements(CLUSTERS)).sample_size(20);
    group.bench_function("sound", |b| {
        b.iter(|| {
            let report = qcow2::check(&storage, &CheckOptions::default(), &mut |_| {
                ControlFlow::Continue(())
            });
            assert!(report.expect("it can be checked").is_clean());
        });
    });
    group.finish();
}

criterion_group!(benches, snapshots, check);
criterion_main!(benches);
