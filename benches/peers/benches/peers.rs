//! Look-ups, reads through chains, copy-on-write and compressed data with this library and with others, in one run: only ratios
//! between them mean anything.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use benches::{make_chain, make_mapped, noisy_text, random_offsets};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use peers::{Imago, Ours, Peer, Qcow2Rs};

const GIB: u64 = 1 << 30;
const CHAIN_SIZE: u64 = 256 << 20;
const CLUSTER: u64 = 64 << 10;
const OFFSETS: usize = 4096;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn look_up<P: Peer>(group: &mut Group<'_>, path: &Path, offsets: &[u64]) {
    let peer = P::open(path, false);
    let all = || {
        offsets
            .iter()
            .fold(0, |sum, offset| sum ^ peer.map(*black_box(offset)))
    };
    all();
    group.bench_function(P::NAME, |b| b.iter(all));
}

/// Each figure is the time of 4096 look-ups.
fn lookups(c: &mut Criterion) {
    for (size, name) in [(4 * GIB, "4 GiB"), (1024 * GIB, "1 TiB")] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("mapped.qcow2");
        make_mapped(&path, size);
        let offsets = random_offsets(size, OFFSETS);
        let mut group = c.benchmark_group(format!("look-up in {name}, all of it mapped"));
        group
            .throughput(Throughput::Elements(OFFSETS as u64))
            .sample_size(20);
        look_up::<Ours>(&mut group, &path, &offsets);
        look_up::<Imago>(&mut group, &path, &offsets);
        look_up::<Qcow2Rs>(&mut group, &path, &offsets);
        if size > 4 * GIB {
            let file = raw::File::open(&path).expect("the file opens");
            let mut buf = vec![0; 4096];
            group.bench_function("pread of 4 KiB", |b| {
                b.iter(|| {
                    for offset in &offsets {
                        // As scattered over the tables as the look-ups are.
                        block::Storage::read_exact_at(&file, &mut buf, offset / CLUSTER / 512 * 4096)
                            .expect("read");
                    }
                });
            });
        }
        group.finish();
    }
}

fn read<P: Peer>(group: &mut Group<'_>, path: &Path, len: usize, offsets: &[u64]) {
    let peer = P::open(path, false);
    let mut buf = vec![0; len];
    let mut turns = offsets.iter().cycle();
    let mut next = || *turns.next().expect("there are offsets");
    group.bench_function(P::NAME, |b| b.iter(|| peer.read(black_box(&mut buf), next())));
}

fn read_all(group: &mut Group<'_>, path: &Path, len: usize, offsets: &[u64]) {
    read::<Ours>(group, path, len, offsets);
    read::<Imago>(group, path, len, offsets);
    read::<Qcow2Rs>(group, path, len, offsets);
}

fn chains(c: &mut Criterion) {
    let offsets = random_offsets(CHAIN_SIZE, OFFSETS);
    let directory = tempfile::tempdir().expect("a temporary directory");
    for depth in [1, 4, 16, 64] {
        let path = make_chain(directory.path(), CHAIN_SIZE, depth - 1);
        let mut group = c.benchmark_group(format!("read of 4 KiB, chain of {depth}"));
        read_all(&mut group, &path, 4096, &offsets);
        group.finish();
    }
}

fn sequential(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = make_chain(directory.path(), CHAIN_SIZE, 0);
    let offsets: Vec<u64> = (0..CHAIN_SIZE).step_by(1 << 20).collect();
    let mut group = c.benchmark_group("sequential read of 1 MiB");
    read_all(&mut group, &path, 1 << 20, &offsets);
    group.finish();
}

fn compressed(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (plain, path) = (
        directory.path().join("plain"),
        directory.path().join("compressed"),
    );
    let bytes = noisy_text(CHAIN_SIZE as usize);
    std::fs::write(&plain, &bytes).expect("room for a file");
    let convert = Command::new("qemu-img")
        .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
        .args([&plain, &path])
        .status();
    assert!(
        convert.is_ok_and(|status| status.success()),
        "qemu-img makes a compressed image"
    );
    let offsets: Vec<u64> = random_offsets(bytes.len() as u64, OFFSETS);
    let mut group = c.benchmark_group("read of 4 KiB, compressed");
    group.sample_size(20);
    read_all(&mut group, &path, 4096, &offsets);
    group.finish();
}

/// Time of `count` writes, each to a cluster that a new overlay does not have.
fn copies<P: Peer>(directory: &Path, count: u64) -> Duration {
    let (bytes, per_overlay) = (vec![9; 4096], CHAIN_SIZE / CLUSTER);
    let mut time = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let writes = left.min(per_overlay);
        let path = make_chain(directory, CHAIN_SIZE, 1);
        let peer = P::open(&path, true);
        let start = Instant::now();
        for number in 0..writes {
            peer.write(&bytes, number * CLUSTER + 8192);
        }
        time += start.elapsed();
        left -= writes;
        drop(peer);
        std::fs::remove_file(&path).expect("the overlay is there");
    }
    time
}

fn copy_on_write(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut group = c.benchmark_group("copy-on-write of 4 KiB");
    group.sample_size(10);
    group.bench_function(Ours::NAME, |b| {
        b.iter_custom(|count| copies::<Ours>(directory.path(), count))
    });
    group.bench_function(Imago::NAME, |b| {
        b.iter_custom(|count| copies::<Imago>(directory.path(), count))
    });
    group.bench_function(Qcow2Rs::NAME, |b| {
        b.iter_custom(|count| copies::<Qcow2Rs>(directory.path(), count))
    });
    group.finish();
}

criterion_group!(benches, lookups, chains, sequential, compressed, copy_on_write);
criterion_main!(benches);
