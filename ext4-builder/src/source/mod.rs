//! Trees that filesystems are made of: directories of the host, tar archives and container images. [`Source::open`] opens
//! any of them by its name.
//!
//! A source is gone through once, in an order that depends on nothing but the names in it, while threads of their own
//! copy the data. What is on the way is bounded: neither the size of a tree nor that of a file matters.
//! All of a source is taken or none: what cannot be read, what changes while it is read and what ext4 cannot hold are
//! errors that name it. Only extended attributes that no ext4 has are [left out](LeftOut).

mod archive;
mod copying;
mod descent;
mod directory;
mod filesystem;
mod filter;
mod host_file;
mod image;
mod labels;
mod left_out;
mod made_up;
pub mod manifest;
mod named;
mod paths;
mod pattern;
pub mod single;
mod stat;
mod xattrs;

use std::num::NonZeroUsize;

use block::Result;

pub use archive::copy_archive;
pub use directory::{Directory, copy_directory};
pub use filesystem::OpenImage;
pub use filter::{Filter, IdMap};
pub use image::copy_image;
pub use labels::FileContexts;
pub use left_out::LeftOut;
pub use manifest::Manifest;
pub use named::{Copying, Source};
pub use pattern::Pattern;

/// Directories of the host, for whoever copies them elsewhere.
pub mod host {
    pub use super::descent::{Descent, Entry, Opened, data, open_root};
    pub use super::made_up::Plain;
    pub use super::stat::Stat;
    pub use super::xattrs::{XattrReader, Xattrs};
}

/// How the copying of a tree is watched and stopped, and by how many threads it is done.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Threads that copy data, besides the one that goes through the tree.
    pub threads: NonZeroUsize,
    /// Called often, from any thread, with a number of bytes that were read since the last time, which may be 0. An error
    /// stops everything and is passed on.
    pub report: &'a (dyn Fn(u64) -> Result<()> + Sync),
}

impl Control<'_> {
    /// Runs to the end in silence, with as many threads as there are processors.
    pub fn unwatched() -> Self {
        Self {
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            report: &|_| Ok(()),
        }
    }
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}
