//! Changes ext2, ext3 and ext4 filesystems in place, on any [`BlockDevice`](block::BlockDevice): without mounting them,
//! and without root.
//!
//! An [`Editor`] gathers changes of metadata in memory and writes them in one transaction of the filesystem's own journal:
//! a power cut leaves all of a change or nothing of it. New contents go to free blocks. What is read is only what is
//! touched, so that a change of a few files takes a few milliseconds whatever the filesystem's size is.
//!
//! Filesystems that a kernel or mke2fs made can be changed, of today and from the times of ext2: with extents or block
//! maps, with checksums or without, with indexed, linear and inline directories. What cannot be kept right is refused by its
//! name: quotas, `bigalloc`, encryption, `casefold` and others; and so is what says of itself that it is damaged.
//!
//! Every structure has a module of its own, named as in the kernel's documentation of the format ("ext4 Data Structures
//! and Algorithms"); encoders are those of `ext4-builder`, and whatever is read is read by `ext4-reader`.
//!
//! ```
//! use std::sync::Arc;
//! use block::{Access, MemStorage};
//! use ext4_builder::{Size, Time};
//! use ext4_editor::{Attributes, Editor, Options};
//!
//! # fn main() -> block::Result<()> {
//! let storage = Arc::new(MemStorage::new());
//! ext4_builder::format(&*storage, ext4_builder::Options::new(Size::Given(16 << 20), [7; 16]))?;
//! let disk = Arc::new(raw::Image::open(storage, Access::WRITE)?);
//!
//! let mut editor = Editor::open(disk, Options::new(Time { secs: 1_700_000_000, nanos: 0 }))?;
//! editor.make_directories(b"/etc", &Attributes::default())?;
//! editor.put(b"/etc/hostname", b"guest\n", &Attributes::of(0o644))?;
//! editor.commit()?;
//! # Ok(())
//! # }
//! ```

mod attributes;
mod bitmap;
mod block_map;
mod blocks;
mod commit;
mod content;
mod directory;
mod editor;
mod features;
mod files;
mod group_descriptor;
mod grow;
mod htree;
mod inline_data;
mod inode;
mod inodes;
mod journal;
mod leftovers;
mod map;
mod options;
mod orphans;
mod slack;
mod staging;
mod superblock;
mod tree;
mod xattr;

use block::{Error, ErrorKind};

pub use editor::Editor;
pub use ext4_reader::LastLink;
pub use options::{Attributes, Contents, Durability, Options, Special};

/// An error about a filesystem that contradicts itself.
fn damaged(problem: String) -> Error {
    Error::new(ErrorKind::Corrupt, problem).with_hint("check and repair it with e2fsck -f, on a copy")
}
