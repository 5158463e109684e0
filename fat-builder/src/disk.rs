//! The storage that is written to.

use block::{Result, Storage, ZeroMode};

/// Bytes at the start of a storage in which most formats have what they are known by.
const SUPERBLOCKS: u64 = 68 << 10;

/// Where a filesystem is written to.
#[derive(Debug)]
pub(crate) struct Disk<'s> {
    storage: &'s dyn Storage,
    /// Whether all that was never written reads as zeros.
    zeroed: bool,
}

impl<'s> Disk<'s> {
    /// Makes the storage at least `size` bytes long, and removes what would be taken for a filesystem, so that a half-made
    /// one is not taken for that: all of the reserved sectors, which end at `reserved`, and whatever else formats have there.
    ///
    /// # Errors
    /// `Io`, `NoSpace`, and `Unsupported` for a storage that is too short and cannot grow.
    pub(crate) fn new(storage: &'s dyn Storage, size: u64, reserved: u64) -> Result<Self> {
        let len = storage.len()?;
        let zeroed = len == 0 || {
            let start = storage.host_extent(0, len.min(size))?;
            !start.data && start.len >= len.min(size)
        };
        if len < size {
            storage.set_len(size)?;
        }
        if !zeroed {
            // A FAT filesystem's boot sector first: nothing else may go while it is there.
            storage.zero(0, 512, ZeroMode::Unmap)?;
            storage.sync_data()?;
            storage.zero(0, SUPERBLOCKS.max(reserved), ZeroMode::Unmap)?;
        }
        Ok(Self { storage, zeroed })
    }

    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.storage.write_all_at(bytes, offset)
    }

    /// Makes bytes that were never written read as zeros.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn zero_new(&self, offset: u64, len: u64) -> Result<()> {
        if self.zeroed || len == 0 {
            return Ok(());
        }
        self.storage.zero(offset, len, ZeroMode::Unmap)
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn sync(&self) -> Result<()> {
        self.storage.sync_data()
    }
}
