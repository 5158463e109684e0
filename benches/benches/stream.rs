//! From one end of a disk to the other: reads and writes of 1 MiB, and reads of 4 KiB and 1 MiB of compressed clusters. Real
//! files in the page cache.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use benches::{make_chain, noisy_text, open_chain, open_for_writing, random_offsets};
use block::{Access, BlockDevice, CompressedWrite, Storage};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qcow2::{CompressionType, CreateOptions};

const SIZE: u64 = 128 << 20;
const MIB: usize = 1 << 20;
const CLUSTER: usize = 64 << 10;

fn plain(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = make_chain(directory.path(), SIZE, 0);
    let mut buf = vec![0; MIB];
    let mut turns = (0..SIZE).step_by(MIB).cycle();
    let mut next = || turns.next().unwrap_or_default();
    let mut group = c.benchmark_group("sequential, 1 MiB");
    group.throughput(Throughput::Bytes(MIB as u64)).sample_size(20);
    let file = raw::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("the file opens");
    group.bench_function("read of the host file", |b| {
        b.iter(|| file.read_exact_at(black_box(&mut buf), next()).expect("read"));
    });
    drop(file);
    let device = open_chain(&path, Access::WRITE);
    group.bench_function("read", |b| {
        b.iter(|| device.read_at(black_box(&mut buf), next()).expect("read"));
    });
    group.bench_function("write", |b| {
        b.iter(|| device.write_at(black_box(&buf), next()).expect("write"));
    });
    group.finish();
}

/// An image at `path` of `bytes`, all of it compressed.
fn make_compressed(path: &Path, bytes: &[u8], compression: CompressionType) {
    let file = raw::OpenOptions::new().write(true).create_new(true).open(path);
    let storage: Arc<dyn Storage> = Arc::new(file.expect("a new file"));
    let options = CreateOptions {
        size: bytes.len() as u64,
        compression,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &options).expect("the image can be made");
    let image = open_for_writing(storage);
    let compressed: &dyn CompressedWrite = image.compressed().expect("it takes compressed clusters");
    for (offset, cluster) in (0..).step_by(CLUSTER).zip(bytes.chunks(CLUSTER)) {
        let small = compressed
            .compress(cluster)
            .expect("a cluster")
            .expect("worth compressing");
        compressed
            .write_compressed_at(&small, offset)
            .expect("room for it");
    }
    image.close().expect("the image closes");
}

fn compressed(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bytes = noisy_text(32 << 20);
    let mut group = c.benchmark_group("read of compressed clusters");
    group.sample_size(20);
    for compression in [CompressionType::Zlib, CompressionType::Zstd] {
        let path = directory.path().join(format!("{compression:?}"));
        make_compressed(&path, &bytes, compression);
        let device = open_chain(&path, Access::READ);
        let offsets = random_offsets(bytes.len() as u64, 512);
        let mut turns = offsets.iter().cycle();
        let mut buf = vec![0; MIB];
        group.throughput(Throughput::Bytes(4096));
        group.bench_function(format!("{compression:?}, 4 KiB at random"), |b| {
            b.iter(|| {
                let offset = *turns.next().expect("there are offsets");
                device.read_at(black_box(&mut buf[..4096]), offset).expect("read");
            });
        });
        let mut turns = (0..bytes.len() as u64).step_by(MIB).cycle();
        group.throughput(Throughput::Bytes(MIB as u64));
        group.bench_function(format!("{compression:?}, 1 MiB in turn"), |b| {
            b.iter(|| {
                device
                    .read_at(black_box(&mut buf), turns.next().unwrap_or_default())
                    .expect("read");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, plain, compressed);
criterion_main!(benches);
