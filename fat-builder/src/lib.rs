//! Writes FAT32 filesystems onto any storage, without root and without mounting anything: what firmware boots from.
//!
//! A [`Builder`] takes a tree in one pass: directories before what is in them, and files with their data, which is written
//! where it belongs at once. The tables and directories come last, and the boot sector at the very end, so that what is not
//! whole is no filesystem. The same calls with the same options make the same bytes, always: nothing is taken from the
//! clock, the host or a random number generator.
//!
//! Of filesystems that others have made, FAT12 and FAT16 too, [`leftovers`] says what is in no file.
//!
//! The format is the one of Microsoft's "FAT: General Overview of On-Disk Format" 1.03, and of its long names. Every
//! structure has a module of its own, named as it is there.
//!
//! ```
//! use block::{MemStorage, Storage};
//! use fat_builder::{Builder, Options, Time};
//!
//! let storage = MemStorage::new();
//! let mut builder = Builder::new(&storage, Options::new(64 << 20, 0x1234_5678))?;
//! let time = Time { secs: 1_700_000_000 };
//! let loader = builder.directory(builder.root(), b"loader", time)?;
//! let text = b"timeout 3\n";
//! builder.file(loader, b"loader.conf", time, text.len() as u64, &mut &text[..])?;
//! let summary = builder.finish()?;
//! assert_eq!((summary.cluster_size, storage.len()?), (512, 64 << 20));
//! # Ok::<(), block::Error>(())
//! ```

mod alias;
mod boot_sector;
mod builder;
mod directory_entry;
mod disk;
mod finish;
mod fs_info;
mod label;
mod layout;
mod leftovers;
mod long_name;
mod options;
mod short_name;
mod spare;
mod table;
mod time;
mod volume;

pub use builder::{Builder, Node, Summary};
pub use leftovers::{Leftovers, leftovers};
pub use options::Options;
pub use time::Time;
