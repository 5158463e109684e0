//! A file of the host that is copied, as a storage whose data others can share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use block::{Error, HostExtent, Result, Storage, ZeroMode};
use rustix::io::{Errno, pread};

/// An open file, which is only read.
#[derive(Debug)]
pub(super) struct HostFile<'f>(pub(super) &'f OwnedFd);

impl HostFile<'_> {
    /// Reads into `buffer`. Returns how many bytes, 0 only at the end.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        loop {
            match pread(self.0, &mut *buffer, offset) {
                Err(Errno::INTR) => {}
                read => return read.map_err(|errno| Error::io("read", errno.into()).with_offset(offset)),
            }
        }
    }
}

impl Storage for HostFile<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read(&mut buf[done..], offset + done as u64)? {
                0 => break,
                len => done += len,
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn zero(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Err(Error::read_only("write zeros"))
    }

    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn host_extent(&self, _: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent { len, data: true })
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(self.0).map_err(|errno| Error::io("look at the file", errno.into()))?;
        Ok(stat.st_size as u64)
    }

    fn set_len(&self, _: u64) -> Result<()> {
        Err(Error::read_only("resize"))
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}
