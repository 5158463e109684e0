//! Leaving a copy to the host.
//!
//! Data that a layer holds as it is has an offset in the layer's file, and a target that [can](block::OffloadedWrite) has
//! room for it in a file too. So the host can be asked to have that file share the data, or to copy it, and none of it comes
//! this way. It may refuse: then the run is read and written as ever, and a file of which it refuses run after run is
//! not asked for again.
//!
//! What the host takes over nobody looks at, so zeros in it stay data. Where files share blocks that takes no room;
//! a copy by the host may take more than one of ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::chain::{Chain, Layer};
use block::{BlockDevice, Extent, ExtentState, HostCopy, OffloadedWrite, Result, Storage};

/// Runs of a file that the host may refuse one after the other. Some do not lie on blocks of the file system.
const PATIENCE: u32 = 8;

/// Who may ask the host to copy from the files of a chain.
#[derive(Clone, Debug)]
pub struct Offload {
    /// For each layer, the file with its data.
    files: Vec<Arc<dyn Storage>>,
    how: HostCopy,
}

impl Offload {
    /// For copies of `source`, a whole chain.
    pub fn new(source: &Chain, how: HostCopy) -> Self {
        let file_of = |layer: &Layer| layer.data_file.as_ref().unwrap_or(&layer.storage).clone();
        Self {
            files: source.layers().iter().map(file_of).collect(),
            how,
        }
    }

    /// For copies of what lies in one file.
    #[cfg(test)]
    pub(crate) fn of(file: Arc<dyn Storage>) -> Self {
        Self {
            files: vec![file],
            how: HostCopy::Reflink,
        }
    }

    /// For a copy to `target`, if it is one for which the host can be asked.
    pub(crate) fn onto<'a>(&'a self, target: &'a dyn BlockDevice) -> Option<Offloading<'a>> {
        let target = target.offloaded()?;
        let may = |file: &Arc<dyn Storage>| target.may_copy_from(&**file, self.how);
        let may: Vec<bool> = self.files.iter().map(may).collect();
        let refused = |may: &bool| AtomicU32::new(if *may { 0 } else { PATIENCE });
        may.contains(&true).then(|| Offloading {
            offload: self,
            target,
            refused: may.iter().map(refused).collect(),
        })
    }
}

/// A copy of which some may be left to the host.
#[derive(Debug)]
pub(crate) struct Offloading<'a> {
    offload: &'a Offload,
    target: &'a dyn OffloadedWrite,
    /// For each layer, how many runs of its file were refused since the last that was not.
    refused: Vec<AtomicU32>,
}

impl Offloading<'_> {
    /// Whether the host is to be asked for the run `extent` of the source.
    pub(crate) fn may_take_over(&self, extent: &Extent) -> bool {
        let refused = self.refused.get(extent.depth as usize);
        extent.state == ExtentState::Data
            && extent.host.is_some()
            && refused.is_some_and(|refused| refused.load(Ordering::Relaxed) < PATIENCE)
    }

    /// Has the host put the run `extent` of the source into the target. Returns how many bytes, from its start, are
    /// there.
    ///
    /// # Errors
    /// As the target.
    pub(crate) fn take_over(&self, extent: &Extent) -> Result<u64> {
        let Some(host) = extent.host.filter(|_| self.may_take_over(extent)) else {
            return Ok(0);
        };
        let layer = extent.depth as usize;
        let (file, how) = (&*self.offload.files[layer], self.offload.how);
        let copied = self
            .target
            .copy_from(extent.offset, file, host, extent.len, how)?;
        let refused = &self.refused[layer];
        if copied == 0 {
            refused.fetch_add(1, Ordering::Relaxed);
        } else {
            refused.store(0, Ordering::Relaxed);
        }
        Ok(copied.min(extent.len))
    }
}
