//! Reads of 4 KiB from real files in the page cache: a plain read of the host file, an image of its own, and data in
//! the base of chains of growing depth.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use benches::random_offsets;
use block::chain::Chain;
use block::gate::Permissive;
use block::{Access, BackingReference, BlockDevice, Format, Storage};
use criterion::{Criterion, criterion_group, criterion_main};
use qcow2::{CreateOptions, Image, OpenOptions, Qcow2};
use raw::HostOpener;

const SIZE: u64 = 256 << 20;

/// Makes layer 0, full of data, and `depth` empty overlays over it; the name of the last.
fn make_chain(dir: &Path, depth: usize) -> std::path::PathBuf {
    for layer in 0..=depth {
        let path = dir.join(format!("{layer}.qcow2"));
        let storage: Arc<dyn Storage> = Arc::new(
            raw::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
                .expect("a new file"),
        );
        let backing = layer.checked_sub(1).map(|below| BackingReference {
            name: format!("{below}.qcow2"),
            format: Some(Qcow2.name().to_owned()),
        });
        let base = backing.is_none();
        qcow2::create(
            &*storage,
            &CreateOptions {
                size: SIZE,
                backing,
                ..CreateOptions::default()
            },
        )
        .expect("the image can be made");
        if base {
            let image = Image::open(
                storage,
                OpenOptions {
                    access: Access::WRITE,
                    ..OpenOptions::default()
                },
            )
            .expect("the image opens");
            let data = vec![7; 1 << 20];
            for offset in (0..SIZE).step_by(data.len()) {
                image.write_at(&data, offset).expect("room for the base");
            }
            image.close().expect("the image closes");
        }
    }
    dir.join(format!("{depth}.qcow2"))
}

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
    let path = make_chain(dir.path(), 0);
    let file = raw::File::open(&path).expect("the file opens");
    group.bench_function("host file", |b| {
        b.iter(|| file.read_exact_at(black_box(&mut buf), next()).expect("read"));
    });
    drop(file);
    for depth in [0, 1, 4, 16, 64] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = make_chain(dir.path(), depth);
        let gate = Permissive::default();
        let chain = Chain::open(
            &HostOpener::new(),
            &[&Qcow2],
            &gate,
            &path,
            Some("qcow2"),
            Access::READ,
        )
        .expect("the chain opens");
        let device = chain.device();
        group.bench_function(format!("chain, {depth} above the data"), |b| {
            b.iter(|| device.read_at(black_box(&mut buf), next()).expect("read"));
        });
    }
    group.finish();
}

criterion_group!(benches, reads);
criterion_main!(benches);
