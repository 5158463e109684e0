//! The contract between disk-image formats and everything around them.
//!
//! Two object-safe traits carry the toolkit. [`Storage`] is what lies *below* a format: a host file, a
//! mapping, a buffer in memory. [`BlockDevice`] is what lies *above* it: the disk that a guest sees. A format
//! turns one into the other, a view ([`view`]) wraps a device and is one, and [`Overlay`] is a device that
//! reads through to a backing device where it holds nothing itself.
//!
//! Every method takes `&self` and every implementation is `Send + Sync`: a VMM's queue threads share one
//! `Arc` and never wait for each other to read. Nothing in here is asynchronous; see the design notes for why.
//!
//! A trait has one address space, so its offsets are plain `u64` bytes. Formats, which juggle several, give
//! each its own type.

pub mod chain;
mod device;
mod error;
mod extent;
mod format;
pub mod gate;
mod mem;
pub mod slice_cache;
mod storage;
#[cfg(any(test, feature = "test-utils"))]
pub mod test_utils;

pub use device::{
    BackingReference, BlockDevice, CompressedWrite, DataFileReference, DeviceInfo, Overlay, Preallocation,
    Resize, ZeroMode,
};
pub use error::{Error, ErrorKind, Result, escape};
pub use extent::{Extent, ExtentState};
pub use format::{Access, Backing, FileOpener, Format, References};
pub use mem::MemStorage;
pub use storage::{Alignment, FileId, HostExtent, Storage};
