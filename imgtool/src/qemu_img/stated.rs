//! An image in which zeros are stated, even where it would read as zeros without: in what exists already (`convert -n`) QEMU writes
//! them down, and a file that comes to lie below later does not show.

use std::sync::Arc;

use block::{BlockDevice, Filter, Overlay, Result, ZeroMode};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Stated(pub(super) Arc<dyn Overlay>);

impl Filter for Stated {
    fn below(&self) -> &dyn BlockDevice {
        &*self.0
    }

    fn zero_at(&self, offset: u64, len: u64, _: ZeroMode) -> Result<()> {
        self.0.state_zero(offset, len)
    }
}
