//! Reads of 4 KiB from real files in the page cache: a plain read of the host file, an image of its own, and data in
//! the base of chains of growing depth.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::hint::black_box;

use benches::{make_chain, open_chain, random_offsets};
use block::{Access, Storage};
use criterion::{Criterion, criterion_group, criterion_main};

const SIZE: u64 = 256 << 20;

fn reads(c: &mut Criterion) {
    let offsets = random_offsets(SIZE, 1024);
    let mut group = c.benchmark_group("read of 4 KiB");
    let mut next = {
        let mut position = 0;
        move || {
            position = (position + 1) % offsets.len();
            offsets[position]
        }
    };
    let mut buf = vec![0; 4096];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = make_chain(dir.path(), SIZE, 0);
    let file = raw::File::open(&path).expect("the file opens");
    group.bench_function("host file", |b| {
        b.iter(|| file.read_exact_at(black_box(&mut buf), next()).expect("read"));
    });
    drop(file);
    for depth in [0, 1, 4, 16, 64] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = make_chain(dir.path(), SIZE, depth);
        let device = open_chain(&path, Access::READ);
        group.bench_function(format!("chain, {depth} above the data"), |b| {
            b.iter(|| device.read_at(black_box(&mut buf), next()).expect("read"));
        });
    }
    group.finish();
}

criterion_group!(benches, reads);
criterion_main!(benches);
