//! What the benchmarks share: images of the sizes that matter, and offsets that defeat prefetching.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::chain::Chain;
use block::gate::Permissive;
use block::{Access, Backing, BackingReference, BlockDevice, Format, MemStorage, Preallocation, Storage};
use qcow2::{CreateOptions, Image, OpenOptions, Qcow2};
use raw::HostOpener;

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
    make_mapped_in(&*storage, size);
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

/// Opens the image in `storage` for writing.
///
/// # Panics
/// If it can't be opened.
pub fn open_for_writing(storage: Arc<dyn Storage>) -> Image {
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    Image::open(storage, options).expect("the image opens")
}

/// Opens the image at `path` with all that it is over.
///
/// # Panics
/// If one can't be opened.
pub fn open_chain(path: &Path, access: Access) -> Arc<dyn BlockDevice> {
    let gate = Permissive::default();
    let chain = Chain::open(
        &HostOpener::new(),
        &[&Qcow2],
        &gate,
        path,
        Some(Qcow2.name()),
        access,
    );
    chain.expect("the chain opens").device()
}

/// `len` bytes, text that is worth compressing with noise between its words.
pub fn noisy_text(len: usize) -> Vec<u8> {
    let words = b"the quick brown ".iter().copied();
    let noise = random_offsets(u64::MAX, len.div_ceil(24)).into_iter();
    // Offsets end in zeros.
    let mixed = noise.map(|offset| offset.wrapping_mul(0x9e37_79b9_7f4a_7c15).swap_bytes());
    let bytes = mixed.flat_map(|noise| words.clone().chain(noise.to_le_bytes()));
    bytes.take(len).collect()
}

/// The same disk as that of [`mapped_image`] in a file.
///
/// # Panics
/// If the image can't be made.
pub fn make_mapped(path: &Path, size: u64) {
    make_mapped_in(&*new_file(path), size);
}

/// The same in any storage.
///
/// # Panics
/// If the image can't be made.
pub fn make_mapped_in(storage: &dyn Storage, size: u64) {
    qcow2::create(storage, &all_mapped(size)).expect("the image can be made");
}

/// Makes an image full of data in `directory` and `depth` empty overlays over it, and gives the name of the last. Those that are
/// there already are kept. Overlays name what they are over in full: not every library looks where the overlay is.
///
/// # Panics
/// If an image can't be made.
pub fn make_chain(directory: &Path, size: u64, depth: usize) -> PathBuf {
    let path = |layer| directory.join(format!("{layer}.qcow2"));
    for layer in 0..=depth {
        let new = path(layer);
        if new.exists() {
            continue;
        }
        let storage = new_file(&new);
        let backing = layer.checked_sub(1).map(|below| BackingReference {
            name: path(below)
                .to_str()
                .expect("a directory with a plain name")
                .to_owned(),
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
    path(depth)
}

/// Writes all of a disk.
fn fill(storage: Arc<dyn Storage>, size: u64) {
    let image = open_for_writing(storage);
    let data = vec![7; 1 << 20];
    for offset in (0..size).step_by(data.len()) {
        image.write_at(&data, offset).expect("room for the base");
    }
    image.close().expect("the image closes");
}
