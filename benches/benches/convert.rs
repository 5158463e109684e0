//! The pipeline of a conversion, on two threads: from memory to memory, so that reading, looking for zeros, compressing and
//! writing are all that there is.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use benches::{noisy_text, open_for_writing};
use block::{Access, BlockDevice, MemStorage, Preallocation, Storage};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ops::{Control, ConvertOptions};
use qcow2::{CompressionType, CreateOptions, Image};

const SIZE: u64 = 32 << 20;

fn new_raw() -> raw::Image {
    let storage = MemStorage::new();
    raw::create(&storage, SIZE, Preallocation::Off).expect("a raw disk");
    raw::Image::open(Arc::new(storage), Access::WRITE).expect("the disk opens")
}

fn new_qcow2(compression: CompressionType) -> Image {
    let storage: Arc<dyn Storage> = Arc::new(MemStorage::new());
    let options = CreateOptions {
        size: SIZE,
        compression,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &options).expect("the image can be made");
    open_for_writing(storage)
}

fn copy(source: &dyn BlockDevice, target: &dyn BlockDevice, compress: bool) {
    let options = ConvertOptions {
        threads: NonZeroUsize::MIN.saturating_add(1),
        compress,
        ..ConvertOptions::new()
    };
    ops::convert(source, target, &options, &Control::unwatched()).expect("it can be converted");
    target.flush().expect("flush");
}

fn conversions(c: &mut Criterion) {
    let source = new_raw();
    source
        .write_at(&noisy_text(SIZE as usize), 0)
        .expect("room in memory");
    let mut group = c.benchmark_group("convert");
    group.throughput(Throughput::Bytes(SIZE)).sample_size(10);
    group.bench_function("raw to qcow2", |b| {
        let new = || new_qcow2(CompressionType::Zlib);
        b.iter_batched(
            new,
            |target| copy(&source, &target, false),
            BatchSize::PerIteration,
        );
    });
    for compression in [CompressionType::Zlib, CompressionType::Zstd] {
        group.bench_function(format!("raw to {compression:?}"), |b| {
            let new = || new_qcow2(compression);
            b.iter_batched(
                new,
                |target| copy(&source, &target, true),
                BatchSize::PerIteration,
            );
        });
        let compressed = new_qcow2(compression);
        copy(&source, &compressed, true);
        group.bench_function(format!("{compression:?} to raw"), |b| {
            b.iter_batched(
                new_raw,
                |target| copy(&compressed, &target, false),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, conversions);
criterion_main!(benches);
