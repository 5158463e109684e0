//! Any bytes as an image: whatever can be done to it without trusting it ends without a panic, and in time.
#![no_main]

use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Access, Backing, BlockDevice, MemStorage, Overlay, Storage};
use libfuzzer_sys::fuzz_target;
use qcow2::{CheckOptions, Image, OpenOptions};

/// Extents to walk at most: a disk of exabytes may have more than anybody has time for.
const MAX_EXTENTS: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let storage = MemStorage::new();
    storage.write_all_at(bytes, 0).expect("memory");
    let _ = qcow2::check(&storage, &CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    });

    let copy = Arc::new(storage.clone());
    if let Some(image) = open(Arc::new(storage), Access::READ) {
        read(&image);
    }
    if let Some(image) = open(copy, Access::WRITE) {
        write(&image);
    }
});

fn open(storage: Arc<MemStorage>, access: Access) -> Option<Image> {
    let options = OpenOptions {
        access,
        backing: Backing::Detached,
        ..OpenOptions::default()
    };
    Image::open(storage, options).ok()
}

/// Walks the extents, and reads the start of each.
fn read(image: &Image) {
    let mut buf = vec![0; 4096];
    let mut offset = 0;
    for _ in 0..MAX_EXTENTS {
        if offset >= image.size() {
            break;
        }
        let rest = image.size() - offset;
        let len = rest.min(buf.len() as u64) as usize;
        let _ = image.read_at(&mut buf[..len], offset);
        let _ = image.own_extent_at(offset, rest);
        // Past a run that can't be told, the next cluster may be sound.
        offset += match image.extent_at(offset, rest) {
            Ok(extent) => {
                assert!(
                    extent.offset == offset && extent.len > 0 && extent.len <= rest,
                    "{extent:?}"
                );
                extent.len
            }
            Err(_) => image.geometry().cluster_size(),
        };
    }
}

/// Changes the disk at both ends and in the middle. What could be written and flushed reads back.
fn write(image: &Image) {
    let size = image.size();
    for offset in [0, size / 2, size.saturating_sub(700)] {
        let len = (size - offset).min(700) as usize;
        let data = vec![0xA5; len];
        if image.write_at(&data, offset).is_err() {
            continue;
        }
        let mut found = vec![0; len];
        if image.read_at(&mut found, offset).is_ok() {
            assert!(found == data, "written at {offset} and not read back");
        }
    }
    let _ = image.discard_at(size / 4, size / 8);
    let _ = image.flush();
}
