//! Map-then-I/O: what a VMM that does its own I/O pays for asking where, beside leaving it to the image, and beside a raw
//! file that need not be asked.
//!
//! The files lie in memory, so that a system call and the copy is all that the host does for a request.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use benches::random_offsets;
use block::{Access, BlockDevice, Preallocation};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qcow2::{CreateOptions, GuestOffset, Image, OpenOptions, Place};

const DISK: u64 = 256 << 20;
const REQUEST: usize = 4096;
const OFFSETS: usize = 4096;

/// Somewhere in memory, where nothing is written back to a disk meanwhile.
const MEMORY: &str = "/dev/shm";

/// A raw disk.
fn plain(path: &Path) -> File {
    let options = File::options().read(true).write(true).create_new(true).open(path);
    let file = options.expect("the file can be made");
    file.write_all_at(&vec![5; DISK as usize], 0)
        .expect("the file can be filled");
    file
}

/// An image with data everywhere, and its file once more, for whoever does I/O by itself.
fn image(path: &Path) -> (Image, File) {
    let options = raw::OpenOptions::new().write(true).create_new(true);
    let storage = Arc::new(options.open(path).expect("the file can be made"));
    let create = CreateOptions {
        size: DISK,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &create).expect("the image can be made");
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    let image = Image::open(storage, options).expect("the image opens");
    let chunk: Vec<u8> = (0..1 << 20).map(|i| (i / 5) as u8).collect();
    for offset in (0..DISK).step_by(chunk.len()) {
        image.write_at(&chunk, offset).expect("the image can be filled");
    }
    image.flush().expect("the image can be flushed");
    let file = File::options().read(true).write(true).open(path);
    (image, file.expect("the file opens"))
}

fn requests(c: &mut Criterion) {
    let directory = tempfile::tempdir_in(MEMORY).or_else(|_| tempfile::tempdir());
    let directory = directory.expect("there is a directory for the files");
    let plain = plain(&directory.path().join("disk.raw"));
    let (image, file) = image(&directory.path().join("disk.qcow2"));
    let offsets = random_offsets(DISK, OFFSETS);
    let mut turns = offsets.iter().copied().cycle();
    let mut next = move || turns.next().unwrap_or_default();
    let mut buf = vec![0; REQUEST];
    let mut group = c.benchmark_group("map, 4 KiB at random in memory");
    group.throughput(Throughput::Elements(1));
    group.bench_function("read: pread of a raw file", |b| {
        b.iter(|| plain.read_exact_at(black_box(&mut buf), next()).expect("pread"));
    });
    group.bench_function("read: map and pread", |b| {
        b.iter(|| {
            let mapped = image.map(GuestOffset(next()), REQUEST as u64).expect("a map");
            let Place::Host(host) = mapped.place else {
                panic!("no data: {mapped:?}")
            };
            file.read_exact_at(black_box(&mut buf), host.0).expect("pread");
        });
    });
    group.bench_function("read: by the image", |b| {
        b.iter(|| image.read_at(black_box(&mut buf), next()).expect("a read"));
    });
    group.bench_function("write: pwrite to a raw file", |b| {
        b.iter(|| plain.write_all_at(black_box(&buf), next()).expect("pwrite"));
    });
    group.bench_function("write: plan, pwrite and commit", |b| {
        b.iter(|| {
            let plan = image
                .plan_write(GuestOffset(next()), REQUEST as u64)
                .expect("a plan");
            for run in plan.runs() {
                file.write_all_at(black_box(&buf), run.host.0).expect("pwrite");
            }
            plan.commit().expect("a commit");
        });
    });
    group.bench_function("write: by the image", |b| {
        b.iter(|| image.write_at(black_box(&buf), next()).expect("a write"));
    });
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
