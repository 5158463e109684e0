//! A disk that notes where it first could not be read, or written to: an error tells what the host has said of some file, and QEMU which of
//! two disks it was, and where on that.

use std::sync::{Mutex, PoisonError};

use block::{BlockDevice, Filter, Result, ZeroMode};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Noted<'a> {
    device: &'a dyn BlockDevice,
    first: Mutex<Option<u64>>,
}

impl<'a> Noted<'a> {
    pub(super) fn new(device: &'a dyn BlockDevice) -> Self {
        Self {
            device,
            first: Mutex::new(None),
        }
    }

    /// Where the first request was that has failed.
    pub(super) fn failed_at(&self) -> Option<u64> {
        *self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, offset: u64, result: Result<T>) -> Result<T> {
        result.inspect_err(|_| {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(offset);
        })
    }
}

impl Filter for Noted<'_> {
    fn below(&self) -> &dyn BlockDevice {
        self.device
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.note(offset, self.device.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.note(offset, self.device.write_at(buf, offset))
    }

    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.note(offset, self.device.zero_at(offset, len, mode))
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.note(offset, self.device.discard_at(offset, len))
    }
}
