//! Devices around a device that do one thing, and pass on everything else.

use std::fmt::Debug;

use crate::{BlockDevice, CompressedWrite, DeviceInfo, Extent, OffloadedWrite, Resize, Result, ZeroMode};

/// A [`BlockDevice`] over another. What it does not say otherwise it passes on; requests with several buffers come to it
/// one buffer at a time, so that there is one place for what it does to reads, and one for writes.
///
/// ```
/// use block::{BlockDevice, Filter, Result};
///
/// /// A disk that never waits for its writes to be durable.
/// #[derive(Debug)]
/// struct Hasty<'a>(&'a dyn BlockDevice);
///
/// impl Filter for Hasty<'_> {
///     fn below(&self) -> &dyn BlockDevice {
///         self.0
///     }
///     fn flush(&self) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// fn fill(device: &dyn BlockDevice) -> Result<()> {
///     let hasty: &dyn BlockDevice = &Hasty(device);
///     hasty.write_at(&[1; 512], 0)?;
///     hasty.flush()
/// }
/// ```
///
/// The methods are those of [`BlockDevice`], where what they do and how they fail is said.
#[allow(clippy::missing_errors_doc, reason = "they are those of BlockDevice")]
pub trait Filter: Send + Sync + Debug {
    /// The device that requests go on to.
    fn below(&self) -> &dyn BlockDevice;

    /// See [`BlockDevice::info`].
    fn info(&self) -> DeviceInfo {
        self.below().info()
    }

    /// See [`BlockDevice::size`].
    fn size(&self) -> u64 {
        self.below().size()
    }

    /// See [`BlockDevice::read_at`].
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below().read_at(buf, offset)
    }

    /// See [`BlockDevice::write_at`].
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.below().write_at(buf, offset)
    }

    /// See [`BlockDevice::zero_at`].
    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.below().zero_at(offset, len, mode)
    }

    /// See [`BlockDevice::discard_at`].
    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.below().discard_at(offset, len)
    }

    /// See [`BlockDevice::extent_at`].
    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.below().extent_at(offset, len)
    }

    /// See [`BlockDevice::flush`].
    fn flush(&self) -> Result<()> {
        self.below().flush()
    }

    /// See [`BlockDevice::settle`].
    fn settle(&self) -> Result<()> {
        self.below().settle()
    }

    /// See [`BlockDevice::resize`].
    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        self.below().resize(size, how)
    }

    /// See [`BlockDevice::compressed`].
    fn compressed(&self) -> Option<&dyn CompressedWrite> {
        self.below().compressed()
    }

    /// See [`BlockDevice::offloaded`].
    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        self.below().offloaded()
    }
}

impl<F: Filter> BlockDevice for F {
    fn info(&self) -> DeviceInfo {
        Filter::info(self)
    }

    fn size(&self) -> u64 {
        Filter::size(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Filter::read_at(self, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        Filter::write_at(self, buf, offset)
    }

    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        Filter::zero_at(self, offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        Filter::discard_at(self, offset, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        Filter::extent_at(self, offset, len)
    }

    fn flush(&self) -> Result<()> {
        Filter::flush(self)
    }

    fn settle(&self) -> Result<()> {
        Filter::settle(self)
    }

    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        Filter::resize(self, size, how)
    }

    fn compressed(&self) -> Option<&dyn CompressedWrite> {
        Filter::compressed(self)
    }

    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        Filter::offloaded(self)
    }
}
