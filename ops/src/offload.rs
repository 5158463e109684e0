//! Leaving a copy to the host.
//!
//! Data that a layer holds as it is has an offset in the layer's file, and a raw target has one for every byte. So the
//! host can be asked to have the target's file share that data, or to copy it, and none of it comes this way. It may
//! refuse, run by run: then the run is read and written as ever.
//!
//! What the host takes over nobody looks at, so zeros in it stay data. Where files share blocks that takes no room;
//! a copy by the host may take more than one of ours.

use std::sync::Arc;

use block::chain::Chain;
use block::{Extent, ExtentState, HostCopy, Result, Storage};

/// Who asks the host to copy from the files of a chain to a raw image, once there [is one](Self::onto).
#[derive(Clone, Debug)]
pub struct Offload {
    /// For each layer, the file with its data.
    files: Vec<Arc<dyn Storage>>,
    target: Option<Arc<dyn Storage>>,
    how: HostCopy,
}

impl Offload {
    /// For copies of `source`, a whole chain.
    pub fn new(source: &Chain, how: HostCopy) -> Self {
        let file_of =
            |layer: &block::chain::Layer| layer.data_file.as_ref().unwrap_or(&layer.storage).clone();
        Self {
            files: source.layers().iter().map(file_of).collect(),
            target: None,
            how,
        }
    }

    /// For copies to `target`, which has byte n of the disk at offset n, as a raw image has.
    #[must_use]
    pub fn onto(mut self, target: Arc<dyn Storage>) -> Self {
        self.target = Some(target);
        self
    }

    /// Has the host put the run `extent` of the source into the target. Returns how many bytes, from its start, are
    /// there.
    ///
    /// # Errors
    /// As the target.
    pub(crate) fn take_over(&self, extent: &Extent) -> Result<u64> {
        let file = self.files.get(extent.depth as usize);
        let (ExtentState::Data, Some(host), Some(file), Some(target)) =
            (extent.state, extent.host, file, &self.target)
        else {
            return Ok(0);
        };
        let taken = target.copy_from(extent.offset, &**file, host, extent.len, self.how)?;
        Ok(taken.min(extent.len))
    }
}
