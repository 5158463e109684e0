//! Writes ext4 filesystems onto any storage, without root and without mounting anything.
//!
//! A [`Builder`] takes a tree in one pass: entries as they come, with data that is written where it belongs at once,
//! and metadata last. The same calls with the same options make the same bytes, always: nothing is taken from the clock,
//! the host or a random number generator.
//!
//! [`source`] has the trees that are ready to be copied: directories of the host, tar archives and container images.
//!
//! Every on-disk structure has a module of its own, named as in the kernel's documentation of the format ("ext4 Data
//! Structures and Algorithms"), and the section there is named in its first line.
//!
//! ```
//! use block::{MemStorage, Storage};
//! use ext4_builder::{Builder, Metadata, Options, Size};
//!
//! let storage = MemStorage::new();
//! let mut builder = Builder::new(&storage, Options::new(Size::Shrink, [7; 16]))?;
//! let metadata = Metadata { permissions: 0o755, ..Metadata::default() };
//! let etc = builder.directory(builder.root(), b"etc", &metadata)?;
//! let (_, placement) = builder.file(etc, b"hostname", &metadata, 6, &[0..6])?;
//! placement.write(&storage, b"guest\n", 0)?;
//! let summary = builder.finish()?;
//! assert_eq!(storage.len()?, summary.size());
//! # Ok::<(), block::Error>(())
//! ```

mod acl;
mod allocator;
mod bitmap;
mod builder;
mod capability;
mod checksum;
mod directory;
mod disk;
mod extent;
mod features;
mod finish;
pub mod format;
mod geometry;
mod group_descriptor;
mod hash;
mod htree;
mod inline_data;
mod inode;
mod journal;
mod layout;
mod metadata;
pub mod oci;
mod options;
mod orphan_file;
mod placement;
mod resize_inode;
pub mod source;
mod superblock;
pub mod tar;
mod time;
mod tree;
mod xattr;
mod xattr_sets;

use block::{Result, Storage};

pub use builder::Builder;
pub use metadata::{Metadata, Node, Special, Summary};
pub use options::{Compat, Free, Inodes, Journal, Options, Size, TooSmall};
pub use placement::{PlacedRun, Placement};
pub use time::Time;

/// Makes an empty filesystem.
///
/// # Errors
/// As [`Builder::new`] and [`Builder::finish`].
pub fn format(storage: &dyn Storage, options: Options) -> Result<Summary> {
    Builder::new(storage, options)?.finish()
}
