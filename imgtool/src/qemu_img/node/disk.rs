//! A disk as what a node is stored in: for a node that fails on command above a format.

use std::sync::Arc;

use block::{BlockDevice, Error, HostExtent, Resize, Result, Storage, ZeroMode};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Disk(pub(super) Arc<dyn BlockDevice>);

impl Disk {
    /// The part of a range that is on the disk.
    fn within(&self, offset: u64, len: u64) -> u64 {
        self.0.size().saturating_sub(offset).min(len)
    }
}

impl Storage for Disk {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = self.within(offset, buf.len() as u64) as usize;
        buf[len..].fill(0);
        self.0.read_at(&mut buf[..len], offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(buf, offset)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.0.zero_at(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard_at(offset, len)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let there = self.within(offset, len);
        if there == 0 {
            return Ok(HostExtent { len, data: false });
        }
        let extent = self.0.extent_at(offset, there)?;
        Ok(HostExtent {
            len: extent.len,
            data: !extent.state.reads_as_zero(),
        })
    }

    fn sync_data(&self) -> Result<()> {
        self.0.flush()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.0.size())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if len < self.0.size() {
            return Err(Error::unsupported("a disk in an image is not cut here"));
        }
        self.0.resize(len, Resize::default())
    }
}
