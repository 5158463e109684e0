//! The hot path: guest offset to host offset.
//!
//! Offsets come from a table, so that the figures are those of the look-up and not of a random number generator;
//! each figure is the time of one look-up, unpredictable branches and data-cache misses of the L2 cache included.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::hint::black_box;

use benches::{mapped_image, random_offsets};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qcow2::{GuestOffset, Image};

const GIB: u64 = 1 << 30;
const OFFSETS: usize = 4096;

/// Maps 4 KiB at each offset, one after the other.
fn sum_mapped(image: &Image, offsets: &[u64]) -> u64 {
    offsets
        .iter()
        .fold(0, |sum, offset| match image.map(GuestOffset(*offset), 4096) {
            Ok(qcow2::Mapped {
                place: qcow2::Place::Host(host),
                ..
            }) => sum ^ host.0,
            other => panic!("offset {offset} is not mapped: {other:?}"),
        })
}

/// Looks up each offset, one after the other.
fn sum(image: &Image, offsets: &[u64]) -> u64 {
    offsets
        .iter()
        .fold(0, |sum, offset| match image.lookup(GuestOffset(*offset)) {
            Ok(qcow2::L2Mapping::Standard { host, .. }) => sum ^ host.0,
            other => panic!("offset {offset} is not mapped: {other:?}"),
        })
}

fn hits(c: &mut Criterion) {
    let image = mapped_image(4 * GIB, 4 << 20);
    let random = random_offsets(4 * GIB, OFFSETS);
    let sequential: Vec<u64> = (0..OFFSETS as u64).map(|i| i * 4096).collect();
    sum(&image, &random);
    let mut group = c.benchmark_group("lookup, 4 GiB, in the cache");
    group.throughput(Throughput::Elements(OFFSETS as u64));
    group.bench_function("random", |b| b.iter(|| sum(&image, black_box(&random))));
    group.bench_function("random, map", |b| {
        b.iter(|| sum_mapped(&image, black_box(&random)));
    });
    group.bench_function("sequential", |b| b.iter(|| sum(&image, black_box(&sequential))));
    group.bench_function("random, two threads", |b| {
        b.iter(|| {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| sum(&image, black_box(&random)));
                sum(&image, black_box(&random)) ^ other.join().expect("no thread fails")
            })
        });
    });
    group.finish();
}

fn misses(c: &mut Criterion) {
    // A cache of one set for a map of 128 MiB: nearly every look-up reads a slice.
    let image = mapped_image(1024 * GIB, 1);
    let random = random_offsets(1024 * GIB, OFFSETS);
    let mut group = c.benchmark_group("lookup, 1 TiB, not in the cache");
    group.throughput(Throughput::Elements(OFFSETS as u64));
    group.sample_size(20);
    group.bench_function("random", |b| b.iter(|| sum(&image, black_box(&random))));
    group.finish();
}

criterion_group!(benches, hits, misses);
criterion_main!(benches);
