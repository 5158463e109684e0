//! Rebase and stream: another backing file under an overlay, and the disk stays what it is.
//!
//! # How it works
//!
//! Wherever the overlay holds nothing, what shows through from the old backing is compared with what would show through
//! from the new one. Clusters that differ are written to the overlay: as data, or as a statement that they are zeros.
//! Then the overlay names the new backing. Streaming is the case that the new backing is a layer of the old chain, or
//! nothing.
//!
//! # Order
//!
//! The header that names the new backing follows when everything written to the overlay is durable: a reference to
//! a file is changed last, and whole ([`Overlay::set_backing_reference`]). Until then the old backing is under
//! an overlay that holds the same as it shows. So the disk reads the same at every instant, and a second run does what the
//! first has not.

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::sync::Arc;

use block::chain::{Chain, ChainBase};
use block::{BackingReference, BlockDevice, Error, Extent, ExtentState, Overlay, Result};

use crate::convert::{IN_TARGET, split};
use crate::extents::extent_at;
use crate::moving::{Metered, Moved, Relabelled};
use crate::{Before, Control, ConvertOptions, SparseChain, convert, is_zero};

/// Bytes of the new backing that are looked at at once.
const LOOK: u64 = 256 << 10;

/// What an overlay is to be based on.
#[derive(Clone, Debug)]
pub struct NewBacking {
    /// How the overlay is to name it.
    pub reference: BackingReference,
    /// What it holds, with everything that it is based on.
    pub device: Arc<dyn BlockDevice>,
    /// The layer of the overlay's present chain that it is, if it is one: what that layer and those below hold need not
    /// be looked at.
    pub layer: Option<u32>,
}

/// How to [`rebase`] and [`stream`].
#[derive(Clone, Debug)]
pub struct RebaseOptions {
    /// Threads that read, compare and compress.
    pub threads: NonZeroUsize,
    /// Write compressed clusters.
    pub compress: bool,
    /// Bytes a second that are written at most.
    pub rate: Option<NonZeroU64>,
    /// Write the zeros of the old backing as data, instead of stating that they are some. Past its end they are stated.
    pub write_zeros: bool,
}

impl Default for RebaseOptions {
    /// One thread per processor, uncompressed, no limit, zeros stated.
    fn default() -> Self {
        Self {
            threads: ConvertOptions::new().threads,
            compress: false,
            rate: None,
            write_zeros: false,
        }
    }
}

/// Bases the active layer of `chain` on `new`, or on nothing. It reads the same afterwards; it is best closed then, since
/// this device goes on reading from the old backing.
///
/// # Errors
/// `Unsupported` for compression that the overlay has not; `Interrupted` on request; as the devices. The overlay then
/// reads as before, and another run finishes the job.
pub fn rebase(
    chain: &Chain,
    new: Option<NewBacking>,
    options: &RebaseOptions,
    control: &Control<'_>,
) -> Result<Moved> {
    let overlay = &**chain.active();
    let below = new.as_ref().map(|new| &*new.device);
    let same_from = new.as_ref().and_then(|new| new.layer).unwrap_or(u32::MAX);
    let depth = |extent: &Extent| match (extent.depth, extent.state) {
        // What the overlay leaves open and nothing lies below has depth 0 too.
        (0, ExtentState::Hole) => 0,
        (depth, _) if depth == 0 || depth >= same_from => IN_TARGET,
        (depth, _) => depth,
    };
    let old_end = overlay.backing().map_or(0, |backing| backing.size());
    let data_end = if options.write_zeros { old_end } else { 0 };
    let zero = |offset: u64, len: u64| match below {
        Some(below) => make_zeros(overlay, below, offset..offset + len, data_end, control),
        None => Ok(0),
    };
    let target = Metered::new(overlay, &zero);
    let copy = ConvertOptions {
        threads: options.threads,
        compress: options.compress,
        rate: options.rate,
        // What differs in a part of a cluster takes all of it.
        whole_clusters: true,
        sparse: 1,
        before: new
            .as_ref()
            .map_or(Before::Zeros, |new| Before::Device(Arc::clone(&new.device))),
        ..ConvertOptions::new()
    };
    // Under data of the old backing may be nothing but a hole of its file: it is known to be zeros, unread.
    let source = SparseChain::device(chain)?;
    convert(&Relabelled::new(&*source, &depth), &target, &copy, control)?;
    let moved = target.moved();
    overlay.set_backing_reference(new.map(|new| new.reference))?;
    overlay.settle()?;
    Ok(moved)
}

/// Makes the active layer of `chain` hold what the layers between it and layer number `base` hold, and bases it on that
/// one, named `reference`; on nothing without.
///
/// # Errors
/// `InvalidInput` for a layer that is not below the active one; as [`rebase`].
pub fn stream(
    chain: &Chain,
    base: Option<(u32, BackingReference)>,
    options: &RebaseOptions,
    control: &Control<'_>,
) -> Result<Moved> {
    let new = base.map(|(layer, reference)| {
        let below = chain.layers().get(layer as usize..).unwrap_or_default();
        if layer == 0 || below.is_empty() {
            return Err(Error::invalid(format!(
                "the chain has no layer {layer} below its active one"
            )));
        }
        let layers = below.iter().map(|layer| Arc::clone(&layer.device)).collect();
        Ok(NewBacking {
            reference,
            device: Arc::new(ChainBase::new(layers)),
            layer: Some(layer),
        })
    });
    rebase(chain, new.transpose()?, options, control)
}

/// Makes `range` of `overlay` read as zeros, as far as it would not over `below` anyway: by a statement, or before
/// `data_end` as data. Gives how much that was.
fn make_zeros(
    overlay: &dyn Overlay,
    below: &dyn BlockDevice,
    range: Range<u64>,
    data_end: u64,
    control: &Control<'_>,
) -> Result<u64> {
    let cluster = overlay.info().cluster_size.unwrap_or(1);
    let unit = LOOK.max(cluster);
    let end = range.end.min(below.size());
    let (mut at, mut stated) = (range.start, 0);
    while at < end {
        control.check()?;
        let extent = extent_at(below, at, end - at)?;
        // Whole clusters, so that none is stated in parts.
        let whole = if extent.end() == end {
            end
        } else {
            extent.end() / cluster * cluster
        };
        if extent.state.reads_as_zero() && whole > at {
            at = whole;
            continue;
        }
        let look = at..end
            .min(extent.end().next_multiple_of(cluster))
            .min((at / unit + 1) * unit);
        let mut bytes = vec![0; (look.end - look.start) as usize];
        below.read_at(&mut bytes, at)?;
        let zero = |part: &Range<u64>| is_zero(&bytes[(part.start - at) as usize..(part.end - at) as usize]);
        for (zero, part) in split(&look, cluster, zero) {
            if !zero {
                if part.start < data_end {
                    let zeros = vec![0; (part.end - part.start) as usize];
                    overlay.write_at(&zeros, part.start)?;
                } else {
                    overlay.state_zero(part.start, part.end - part.start)?;
                }
                stated += part.end - part.start;
            }
        }
        at = look.end;
    }
    Ok(stated)
}
