//! Work on whole disk images, whatever their format.
//!
//! [`convert`](convert()) copies one onto another, [`compare`](compare()) finds where two differ, [`data_units`] counts
//! what a copy would take. [`Extents`] walks a disk run by run, [`SparseChain`] adds what the host knows to what an
//! image says of itself, and [`Concat`] joins several disks into one.
//!
//! Everything here asks a [`BlockDevice`](block::BlockDevice) what is where, moves no more than that, uses as many
//! threads as it is given and memory that does not grow with the image. A job is watched and stopped through its
//! [`Control`].
//!
//! ```
//! # use std::sync::Arc;
//! # use block::{BlockDevice, DeviceInfo, Extent, Error, Result, ZeroMode};
//! # use ops::{Control, ConvertOptions, convert};
//! fn copy(source: &dyn BlockDevice, target: &dyn BlockDevice) -> Result<()> {
//!     // A new target reads as zeros: what is zero in the source is skipped.
//!     let options = ConvertOptions::new();
//!     convert(source, target, &options, &Control::unwatched())?;
//!     target.flush()
//! }
//! ```

mod buffer;
mod compare;
mod concat;
mod convert;
mod extents;
mod host_holes;
mod measure;
mod progress;
#[cfg(test)]
mod testing;
mod zero;

pub use compare::{CompareError, CompareOptions, Comparison, compare};
pub use concat::Concat;
pub use convert::{Before, ConvertOptions, convert};
pub use extents::Extents;
pub use host_holes::{HostHoles, SparseChain};
pub use measure::data_units;
pub use progress::{Cancel, Control, Progress};
pub use zero::is_zero;
