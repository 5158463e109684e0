//! Holes in a file under data that a layer maps.
//!
//! An image whose tables were laid out in advance maps every cluster, and its file is one hole nonetheless. Its map
//! alone calls all of that data; asked, the host knows better, and terabytes need not be read to find zeros. The
//! question costs a system call for each run, so it is only asked of files that take clearly less room than they
//! are long.

use std::sync::Arc;

use block::chain::Chain;
use block::{BlockDevice, Extent, ExtentState, Filter, Result, Storage};

/// What the host knows about the files of a chain.
#[derive(Clone, Debug)]
pub struct HostHoles {
    /// For each layer, the file to ask about its data, if that is worth it.
    files: Vec<Option<Arc<dyn Storage>>>,
}

impl HostHoles {
    /// Looks which files of `chain` have holes worth asking for.
    ///
    /// # Errors
    /// `Io`.
    pub fn of(chain: &Chain) -> Result<Self> {
        let files = chain.layers().iter().map(|layer| {
            // A layer without clusters has told its holes already.
            let Some(cluster) = layer.device.info().cluster_size else {
                return Ok(None);
            };
            let file = layer.data_file.as_ref().unwrap_or(&layer.storage);
            let allocated = file.allocated()?.unwrap_or(u64::MAX);
            Ok(is_sparse(file.len()?, allocated, cluster).then(|| file.clone()))
        });
        Ok(Self {
            files: files.collect::<Result<_>>()?,
        })
    }

    /// The first part of `extent`, an extent of the chain, that is all of one kind on the host, and whether that is
    /// a hole under data, which reads as zeros.
    ///
    /// # Errors
    /// `Io`.
    pub fn look(&self, extent: Extent) -> Result<(Extent, bool)> {
        let file = self.files.get(extent.depth as usize).and_then(Option::as_ref);
        let (ExtentState::Data, Some(host), Some(file)) = (extent.state, extent.host, file) else {
            return Ok((extent, false));
        };
        let found = file.host_extent(host, extent.len)?;
        // Never nothing, whatever the host says.
        let part = extent.clip(extent.offset, found.len.max(1));
        Ok((part, !found.data && found.len > 0))
    }

    /// Whether there is anything to ask.
    pub fn is_empty(&self) -> bool {
        self.files.iter().all(Option::is_none)
    }
}

/// Whether a file of `len` bytes takes clearly less room: a tenth of its clusters less, and two at least. It is the
/// rule that QEMU follows, so that maps agree.
fn is_sparse(len: u64, allocated: u64, cluster: u64) -> bool {
    let (clusters, taken) = (len.div_ceil(cluster), allocated / cluster);
    clusters >= taken.saturating_add(taken / 9).max(taken.saturating_add(2))
}

/// A chain in whose extents a hole under data is [zeros](ExtentState::Zero).
#[derive(Debug)]
pub struct SparseChain {
    device: Arc<dyn BlockDevice>,
    holes: HostHoles,
}

impl SparseChain {
    /// The chain as a device, by way of this if there is anything to ask the host.
    ///
    /// # Errors
    /// `Io`.
    pub fn device(chain: &Chain) -> Result<Arc<dyn BlockDevice>> {
        let (device, holes) = (chain.device(), HostHoles::of(chain)?);
        Ok(if holes.is_empty() {
            device
        } else {
            Arc::new(Self { device, holes })
        })
    }
}

impl Filter for SparseChain {
    fn below(&self) -> &dyn BlockDevice {
        &*self.device
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let (mut extent, hole) = self.holes.look(self.device.extent_at(offset, len)?)?;
        if hole {
            extent.state = ExtentState::Zero;
        }
        Ok(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::is_sparse;

    #[test]
    fn a_tenth_or_two_clusters_have_to_be_missing() {
        const CLUSTER: u64 = 65536;
        let sparse = |clusters, taken| is_sparse(clusters * CLUSTER - 1, taken * CLUSTER + 100, CLUSTER);
        // As observed with qemu-img map.
        assert!(sparse(6, 4) && sparse(13, 11) && sparse(45, 41));
        assert!(!sparse(5, 4) && !sparse(13, 12) && !sparse(45, 42));
        assert!(!is_sparse(1 << 40, u64::MAX, CLUSTER));
    }
}
