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
//!
//! # Example
//!
//! The smallest format there is, bytes as they are, and a partition of such a disk:
//!
//! ```
//! use std::sync::Arc;
//! use block::view::Window;
//! use block::{
//!     BlockDevice, DeviceInfo, Error, Extent, ExtentState, MemStorage, Result, Storage, ZeroMode,
//! };
//!
//! #[derive(Debug)]
//! struct Flat {
//!     storage: Arc<dyn Storage>,
//!     size: u64,
//! }
//!
//! impl Flat {
//!     fn check(&self, op: &str, offset: u64, len: u64) -> Result<()> {
//!         match offset.checked_add(len) {
//!             Some(end) if end <= self.size => Ok(()),
//!             _ => Err(Error::out_of_bounds(op, offset, len, self.size)),
//!         }
//!     }
//! }
//!
//! impl BlockDevice for Flat {
//!     fn info(&self) -> DeviceInfo {
//!         DeviceInfo::new("flat")
//!     }
//!     fn size(&self) -> u64 {
//!         self.size
//!     }
//!     fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
//!         self.check("read", offset, buf.len() as u64)?;
//!         self.storage.read_exact_at(buf, offset)
//!     }
//!     fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
//!         self.check("write", offset, buf.len() as u64)?;
//!         self.storage.write_all_at(buf, offset)
//!     }
//!     fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
//!         self.check("write of zeros", offset, len)?;
//!         self.storage.zero(offset, len, mode)
//!     }
//!     fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
//!         self.zero_at(offset, len, ZeroMode::Unmap)
//!     }
//!     fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
//!         let rest = self.size.saturating_sub(offset).min(len);
//!         if rest == 0 {
//!             return Err(Error::out_of_bounds("extent", offset, len, self.size));
//!         }
//!         let run = self.storage.host_extent(offset, rest)?;
//!         let state = if run.data { ExtentState::Data } else { ExtentState::Zero };
//!         Ok(Extent { offset, len: run.len, state, depth: 0, host: Some(offset) })
//!     }
//!     fn flush(&self) -> Result<()> {
//!         self.storage.sync_data()
//!     }
//! }
//!
//! let disk = Arc::new(Flat { storage: Arc::new(MemStorage::new()), size: 1 << 30 });
//! let partition = Window::new(disk.clone(), 1 << 20, 64 << 20)?;
//! partition.write_at(b"boot", 0)?;
//! partition.flush()?;
//!
//! let before = disk.extent_at(0, 1 << 30)?;
//! assert_eq!((before.len, before.state), (1 << 20, ExtentState::Zero));
//! # Ok::<(), block::Error>(())
//! ```

pub mod chain;
#[cfg(feature = "positioned-io")]
pub mod compat;
mod device;
mod device_storage;
mod error;
mod extent;
mod filter;
mod foreign;
mod format;
pub mod gate;
mod keys;
mod mem;
mod scratch;
pub mod size;
pub mod slice_cache;
mod storage;
#[doc(hidden)]
pub mod sync;
#[cfg(any(test, feature = "test-utils"))]
pub mod test_utils;
pub mod view;
mod zero;

pub use device::{
    BackingReference, BlockDevice, CompressedWrite, DataFileReference, DeviceInfo, OffloadedWrite, Overlay,
    Preallocation, Resize, ZeroMode,
};
pub use device_storage::DeviceStorage;
pub use error::{Error, ErrorKind, Result, escape};
pub use extent::{Extent, ExtentState};
pub use filter::Filter;
pub use foreign::{foreign_format, foreign_formats};
pub use format::{Access, Backing, FileOpener, Format, References, SnapshotSelector};
pub use keys::{KeyRing, Keys, Passphrase};
pub use mem::MemStorage;
pub use scratch::Scratch;
pub use storage::{Alignment, FileId, HostCopy, HostExtent, Storage};
pub use zero::is_zero;
