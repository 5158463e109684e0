//! Devices around devices, for moving data between the layers of one chain with [`convert`](crate::convert()).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{BlockDevice, CompressedWrite, DeviceInfo, Error, Extent, Result, ZeroMode};

/// What was written while data moved between layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of the disk written as data, before compression.
    pub data: u64,
    /// Bytes of the disk stated to be zeros.
    pub zeros: u64,
}

/// A device to read from, with other layer numbers.
pub(crate) struct Relabelled<'a> {
    device: &'a dyn BlockDevice,
    depth: &'a (dyn Fn(&Extent) -> u32 + Send + Sync),
}

impl<'a> Relabelled<'a> {
    pub(crate) fn new(
        device: &'a dyn BlockDevice,
        depth: &'a (dyn Fn(&Extent) -> u32 + Send + Sync),
    ) -> Self {
        Self { device, depth }
    }
}

impl fmt::Debug for Relabelled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Relabelled").field(&self.device).finish()
    }
}

impl BlockDevice for Relabelled<'_> {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.device.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Err(Error::read_only("write zeros"))
    }

    fn discard_at(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let extent = self.device.extent_at(offset, len)?;
        Ok(Extent {
            depth: (self.depth)(&extent),
            ..extent
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// A device to write to, that counts, and has its own way of making zeros.
pub(crate) struct Metered<'a> {
    device: &'a dyn BlockDevice,
    /// Makes so many bytes at an offset read as zeros, and gives the number of those that did not before.
    zero: &'a (dyn Fn(u64, u64) -> Result<u64> + Send + Sync),
    data: AtomicU64,
    zeros: AtomicU64,
}

impl<'a> Metered<'a> {
    pub(crate) fn new(
        device: &'a dyn BlockDevice,
        zero: &'a (dyn Fn(u64, u64) -> Result<u64> + Send + Sync),
    ) -> Self {
        Self {
            device,
            zero,
            data: AtomicU64::new(0),
            zeros: AtomicU64::new(0),
        }
    }

    pub(crate) fn moved(&self) -> Moved {
        Moved {
            data: self.data.load(Ordering::Relaxed),
            zeros: self.zeros.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Metered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metered").field(&self.device).finish()
    }
}

impl BlockDevice for Metered<'_> {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.device.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.device.write_at(buf, offset)?;
        self.data.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64, _: ZeroMode) -> Result<()> {
        let zeros = (self.zero)(offset, len)?;
        self.zeros.fetch_add(zeros, Ordering::Relaxed);
        Ok(())
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.device.discard_at(offset, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.device.extent_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    fn compressed(&self) -> Option<&dyn CompressedWrite> {
        self.device.compressed().map(|_| self as _)
    }
}

impl CompressedWrite for Metered<'_> {
    fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        self.inner()?.compress(cluster)
    }

    fn write_compressed_at(&self, compressed: &[u8], offset: u64) -> Result<()> {
        self.inner()?.write_compressed_at(compressed, offset)?;
        let cluster = self.info().cluster_size.unwrap_or_default();
        let len = cluster.min(self.size().saturating_sub(offset));
        self.data.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}

impl<'a> Metered<'a> {
    fn inner(&self) -> Result<&'a dyn CompressedWrite> {
        let format = self.device.info().format;
        let unsupported = || Error::unsupported(format!("a {format} image cannot be compressed"));
        self.device.compressed().ok_or_else(unsupported)
    }
}
