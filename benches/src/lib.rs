//! What the benchmarks share: images of the sizes that matter, and offsets that defeat prefetching.

use std::sync::Arc;

use block::{Access, Backing, MemStorage, Preallocation, Storage};
use qcow2::{CreateOptions, Image, OpenOptions};

/// A disk of `size` bytes in clusters of 64 KiB, every one of them mapped, its tables in memory.
///
/// # Panics
/// If the image can't be made.
pub fn mapped_image(size: u64, l2_cache: usize) -> Image {
    let storage: Arc<dyn Storage> = Arc::new(MemStorage::new());
    let options = CreateOptions {
        size,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &options).expect("the image can be made");
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
