//! What the benchmarks share: images of the sizes that matter, and offsets that defeat prefetching.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Access, Backing, BackingReference, BlockDevice, Format, MemStorage, Preallocation, Storage};
use qcow2::{CreateOptions, Image, OpenOptions, Qcow2};

/// How a disk of `size` bytes in clusters of 64 KiB is made with every one of them mapped.
fn all_mapped(size: u64) -> CreateOptions {
    CreateOptions {
        size,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    }
}

/// A disk of `size` bytes in clusters of 64 KiB, every one of them mapped, its tables in memory.
///
/// # Panics
/// If the image can't be made.
pub fn mapped_image(size: u64, l2_cache: usize) -> Image {
    let storage: Arc<dyn Storage> = Arc::new(MemStorage::new());
    qcow2::create(&*storage, &all_mapped(size)).expect("the image can be made");
    let options = OpenOptions {
        access: Access::READ,
        backing: Backing::None,
        l2_cache,
        ..OpenOptions::default()
    };
    Image::open(storage, options).expect("the image opens")
}

/// `count` offsets below `size`, multiples of 4 KiB, spread at random and always the same.
pub fn random_offsets(size: u64, count: usize) -> Vec<u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (size / 4096) * 4096
    };
    (0..count).map(next).collect()
}

/// A file for a new image.
fn new_file(path: &Path) -> Arc<dyn Storage> {
    let file = raw::OpenOptions::new().write(true).create_new(true).open(path);
    Arc::new(file.expect("a new file"))
}

/// The same disk as that of [`mapped_image`] in a file.
///
/// # Panics
/// If the image can't be made.
pub fn make_mapped(path: &Path, size: u64) {
    qcow2::create(&*new_file(path), &all_mapped(size)).expect("the image can be made");
}

/// Makes an image full of data in `directory` and `depth` empty overlays over it, and gives the name of the last. Those that are
/// there already are kept.
///
/// # Panics
/// If an image can't be made.
pub fn make_chain(directory: &Path, size: u64, depth: usize) -> PathBuf {
    let name = |layer| format!("{layer}.qcow2");
    for layer in 0..=depth {
        let path = directory.join(name(layer));
        if path.exists() {
            continue;
        }
        let storage = new_file(&path);
        let backing = layer.checked_sub(1).map(|below| BackingReference {
            name: name(below),
            format: Some(Qcow2.name().to_owned()),
        });
        let is_base = backing.is_none();
        let options = CreateOptions {
            size,
            backing,
            ..CreateOptions::default()
        };
        qcow2::create(&*storage, &options).expect("the image can be made");
        if is_base {
            fill(storage, size);
        }
    }
    directory.join(name(depth))
}

/// Writes all of a disk.
fn fill(storage: Arc<dyn Storage>, size: u64) {
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    let image = Image::open(storage, options).expect("the image opens");
    let data = vec![7; 1 << 20];
    for offset in (0..size).step_by(data.len()) {
        image.write_at(&data, offset).expect("room for the base");
    }
    image.close().expect("the image closes");
}
