//! `null-co`: a disk that holds nothing, for tests. Reads give zeros, whatever was written.

use std::io::IoSlice;

use block::{Error, HostExtent, Result, Storage, ZeroMode};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Null {
    pub(super) len: u64,
    /// It says that it reads as zeros.
    pub(super) zeros: bool,
}

impl Storage for Null {
    fn read_exact_at(&self, buf: &mut [u8], _: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }

    fn write_vectored_at(&self, _: &[IoSlice<'_>], _: u64) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn host_extent(&self, _: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent {
            len,
            data: !self.zeros,
        })
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, _: u64) -> Result<()> {
        Err(Error::unsupported("this disk has a fixed length"))
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(Some(0))
    }
}
