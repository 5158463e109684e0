//! An image in which zeros are stated, even where it would read as zeros without: in what exists already (`convert -n`) QEMU writes
//! them down, and a file that comes to lie below later does not show.

use std::sync::Arc;

use block::{BlockDevice, CompressedWrite, DeviceInfo, Extent, OffloadedWrite, Overlay, Result, ZeroMode};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Stated(pub(super) Arc<dyn Overlay>);

impl BlockDevice for Stated {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(buf, offset)
    }

    fn zero_at(&self, offset: u64, len: u64, _: ZeroMode) -> Result<()> {
        self.0.state_zero(offset, len)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard_at(offset, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.0.extent_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn compressed(&self) -> Option<&dyn CompressedWrite> {
        self.0.compressed()
    }

    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        self.0.offloaded()
    }
}
