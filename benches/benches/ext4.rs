//! What the ext4 builder does besides I/O: names into a tree, their hashes and indexes, places for data, and metadata of all
//! of it. The filesystem is in memory, and no file's data is written.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use block::MemStorage;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ext4_builder::{Builder, Free, Metadata, Node, Options, Size, Summary};

const FILES: u64 = 20_000;

/// A filesystem of what `fill` makes.
fn build(fill: impl FnOnce(&mut Builder<'_>, Node, &Metadata)) -> Summary {
    let storage = MemStorage::new();
    let options = Options::new(Size::Fit(Free::Bytes(0)), [7; 16]);
    let mut builder = Builder::new(&storage, options).expect("the options can be");
    let (root, metadata) = (builder.root(), Metadata::at(builder.time()));
    fill(&mut builder, root, &metadata);
    builder.finish().expect("it can be made")
}

fn ext4(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ext4");
    group.throughput(Throughput::Elements(FILES)).sample_size(20);
    let names: Vec<String> = (0..FILES).map(|number| format!("file-{number}.txt")).collect();

    // Hashes, the index, and names in its blocks.
    group.bench_function("names in one directory", |bencher| {
        bencher.iter(|| {
            build(|builder, root, metadata| {
                for name in &names {
                    builder
                        .file(root, name.as_bytes(), metadata, 0, &[])
                        .expect("it has room");
                }
            })
        });
    });

    // Blocks of files from one to 64, with a hole in every third.
    group.bench_function("files with data", |bencher| {
        bencher.iter(|| {
            build(|builder, root, metadata| {
                let mut directory = root;
                for (number, name) in (0..FILES).zip(&names) {
                    if number % 100 == 0 {
                        let name = format!("directory-{number}");
                        directory = builder
                            .directory(root, name.as_bytes(), metadata)
                            .expect("it has room");
                    }
                    let size = (number % 64 + 1) * 4096;
                    let end = if number % 3 == 0 { size / 2 } else { size };
                    let data = [0..end, end.midpoint(size)..size];
                    let data = if end < size { &data[..] } else { &data[..1] };
                    builder
                        .file(directory, name.as_bytes(), metadata, size, data)
                        .expect("it has room");
                }
            })
        });
    });
    group.finish();
}

criterion_group!(benches, ext4);
criterion_main!(benches);
