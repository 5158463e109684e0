//! Commit: what overlays hold moves down into a base.
//!
//! # Order
//!
//! 1. A base that is smaller than the overlay grows. What is added reads as zeros, as it did before.
//! 2. What the layers above hold is written to the base. They hold it still, so nobody who reads through them notices.
//! 3. The base is flushed.
//! 4. Only then is the overlay emptied, where that is asked for.
//!
//! So the disk reads the same at every instant, a stop or a power cut in the middle included, and a second run does
//! what the first has not.

use std::num::{NonZeroU64, NonZeroUsize};

use block::chain::Chain;
use block::{BlockDevice, Error, Extent, ExtentState, Overlay, Resize, Result, ZeroMode};

use crate::moving::{Metered, Moved, Relabelled};
use crate::{Before, Control, ConvertOptions, SparseChain, convert};

/// The piece of an overlay that is emptied between two looks at whether to stop, in bytes.
const PIECE: u64 = 1 << 30;

/// How to [`commit`].
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// Threads that read.
    pub threads: NonZeroUsize,
    /// Bytes of data a second that are written at most.
    pub rate: Option<NonZeroU64>,
    /// Empty the overlay when all it holds is in the base and durable. It must be next to the base, and writable.
    pub empty: bool,
}

impl Default for CommitOptions {
    /// One thread per processor, no limit, and the overlay stays as it is.
    fn default() -> Self {
        Self {
            threads: ConvertOptions::new().threads,
            rate: None,
            empty: false,
        }
    }
}

/// Writes what the layers of `above` hold into `base`, the image that the last of them is based on, and makes it durable.
///
/// `above` ends there: see [`Below::Layers`](block::chain::Below::Layers). Other images based on `base`, or on a layer
/// between it and the first one, read something else afterwards.
///
/// # Errors
/// `InvalidInput` for an overlay that is to be emptied and is not next to the base; `Interrupted` on request; as the
/// devices. `above` then reads as before, and another run finishes the job.
pub fn commit(
    above: &Chain,
    base: &dyn BlockDevice,
    options: &CommitOptions,
    control: &Control<'_>,
) -> Result<Moved> {
    let layers = above.layers().len() as u32;
    if options.empty && layers > 1 {
        return Err(Error::invalid(
            "only an image right above the base can be emptied when it has been committed",
        ));
    }
    let before = Before::Layers {
        depth: layers,
        size: base.size(),
    };
    if base.size() < above.size() {
        base.resize(above.size(), Resize::default())?;
    }
    // What the last layer leaves open is the base's; what ends before a layer further up does is zero.
    let depth = |extent: &Extent| match extent.state {
        ExtentState::Hole if extent.depth + 1 == layers => layers,
        _ => extent.depth,
    };
    let zero = |offset, len| base.zero_at(offset, len, ZeroMode::Unmap).map(|()| len);
    let target = Metered::new(base, &zero);
    let copy = ConvertOptions {
        threads: options.threads,
        rate: options.rate,
        before,
        ..ConvertOptions::new()
    };
    // Under data of the layers may be nothing but a hole of the file: it is known to be zeros, unread.
    let source = SparseChain::device(above)?;
    convert(&Relabelled::new(&*source, &depth), &target, &copy, control)?;
    base.settle()?;
    if options.empty {
        empty(&**above.active(), control)?;
    }
    Ok(target.moved())
}

/// Empties an overlay, so that it reads as what it is based on, and makes that durable.
///
/// # Errors
/// `Interrupted` on request; as the overlay. It may then be empty in part.
pub fn empty(overlay: &dyn Overlay, control: &Control<'_>) -> Result<()> {
    let size = overlay.size();
    let mut offset = 0;
    while offset < size {
        control.check()?;
        let len = PIECE.min(size - offset);
        overlay.unmap_to_backing(offset, len)?;
        offset += len;
    }
    overlay.settle()
}
