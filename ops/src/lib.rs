//! Work on whole disk images, whatever their format.
//!
//! [`convert`](convert()) copies one onto another, [`receive`] does so from a pipe, [`compare`](compare()) finds where two differ, [`data_units`] counts
//! what a copy would take, and [`commit`], [`rebase`] and [`stream`] move data between the layers of a chain. [`Extents`] walks a disk run by run, [`SparseChain`] adds what the host knows to what an
//! image says of itself, [`Salvaged`] reads what can be read of a damaged disk, and [`Concat`] joins several disks into one;
//! [`Offload`] has the host copy where it can. [`bench`](bench()) times requests.
//!
//! Everything here asks a [`BlockDevice`](block::BlockDevice) what is where, moves no more than that, uses as many
//! threads as it is given and memory that does not grow with the image. A job is watched and stopped through its
//! [`Control`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use block::{Access, BlockDevice, MemStorage, Preallocation};
//! use ops::{CompareOptions, Comparison, Control, ConvertOptions, Extents, compare, convert};
//!
//! let new_disk = || {
//!     let storage = MemStorage::new();
//!     raw::create(&storage, 64 << 20, Preallocation::Off)?;
//!     raw::Image::open(Arc::new(storage), Access::WRITE)
//! };
//! let (source, target) = (new_disk()?, new_disk()?);
//! source.write_at(b"data, somewhere", 10 << 20)?;
//!
//! // The target is new and reads as zeros: what is zero in the source is left out.
//! convert(&source, &target, &ConvertOptions::new(), &Control::unwatched())?;
//! target.flush()?;
//!
//! let found = compare(&source, &target, &CompareOptions::new(), &Control::unwatched())?;
//! assert_eq!(found, Comparison::Identical);
//! let mut data = 0;
//! for extent in Extents::new(&target) {
//!     let extent = extent?;
//!     if !extent.state.reads_as_zero() {
//!         data += extent.len;
//!     }
//! }
//! assert!(data < 1 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bench;
mod buffer;
mod commit;
mod compare;
mod concat;
mod convert;
mod extents;
mod host_holes;
mod measure;
mod moving;
mod offload;
mod progress;
mod rebase;
mod salvage;
#[cfg(test)]
mod testing;
mod throttle;

pub use bench::{BenchOptions, MAX_PARALLEL, bench};
pub use block::is_zero;
pub use commit::{CommitOptions, commit, empty};
pub use compare::{CompareError, CompareOptions, Comparison, compare};
pub use concat::Concat;
pub use convert::{Before, ConvertOptions, DIRECT_CHUNK, Length, Sequential, convert, receive};
pub use extents::Extents;
pub use host_holes::{HostHoles, SparseChain};
pub use measure::data_units;
pub use moving::Moved;
pub use offload::Offload;
pub use progress::{Cancel, Control, Progress};
pub use rebase::{NewBacking, RebaseOptions, rebase, stream};
pub use salvage::{Lost, Salvaged};
