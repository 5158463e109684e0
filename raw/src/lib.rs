//! Host storage, image locks and the raw disk-image format.
//!
//! [`File`] is a host file or block device as [`block::Storage`], opened with [`OpenOptions`] and
//! [locked](lock) so that QEMU and libvirt notice; [`Io`] says how its bytes are reached. [`HostOpener`] opens the files
//! of a chain. [`Image`] is the raw format: the file's bytes are the disk's. [`partition`] reads and writes the partition
//! tables of any disk.
//!
//! ```
//! use std::sync::Arc;
//! use block::{BlockDevice, Preallocation, ZeroMode};
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("disk.raw");
//! let file = raw::OpenOptions::new().write(true).create_new(true).open(&path)?;
//! raw::create(&file, 1 << 30, Preallocation::Off)?;
//!
//! let disk = raw::Image::open(Arc::new(file), block::Access::WRITE)?;
//! disk.write_at(b"boot", 0x1fe)?;
//! disk.zero_at(0, 512, ZeroMode::Unmap)?;
//! disk.flush()?;
//!
//! let mut head = [0xff; 4];
//! disk.read_at(&mut head, 0x1fe)?;
//! assert_eq!(&head, b"\0\0ot");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod direct;
mod file;
mod host;
mod image;
mod in_use;
pub mod lock;
mod mmap;
mod offload;
mod open;
mod opener;
mod partial;
pub mod partition;
#[cfg(test)]
mod testing;
#[cfg(feature = "io-uring")]
mod uring;
mod whole;
pub mod xattr;

pub use file::File;
pub use host::Io;
pub use image::{Image, Raw, SECTOR, create};
pub use in_use::refuse_mounted;
pub use open::OpenOptions;
pub use opener::HostOpener;
pub use partial::create_partial;
pub use whole::{read_text, read_whole};
