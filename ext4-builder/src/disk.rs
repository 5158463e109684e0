//! The storage in blocks.

use block::{Result, Storage, ZeroMode};

use crate::allocator::Run;
use crate::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE};

/// Bytes at the start of a storage in which most formats have what they are known by.
const SUPERBLOCKS: u64 = 64 << 10;

/// What a header of a GPT starts with (UEFI specification, "GPT Header").
const GPT: [u8; 8] = *b"EFI PART";

/// Where a filesystem is written to.
#[derive(Debug)]
pub(crate) struct Disk<'s> {
    storage: &'s dyn Storage,
    block_size: u64,
    /// Where it ends, if that is given. A tree that is too large is only counted from there on.
    end: Option<u64>,
    /// Whether all that was never written reads as zeros.
    zeroed: bool,
}

impl<'s> Disk<'s> {
    /// Looks at the storage, whose first `size` bytes are to be written, or all.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn new(storage: &'s dyn Storage, block_size: u64, size: Option<u64>) -> Result<Self> {
        let len = storage.len()?;
        let len = size.map_or(len, |size| size.min(len));
        let mut zeroed = true;
        let mut offset = 0;
        while zeroed && offset < len {
            let run = storage.host_extent(offset, len - offset)?;
            zeroed = !run.data;
            offset += run.len;
        }
        Ok(Self {
            storage,
            block_size,
            end: size,
            zeroed,
        })
    }

    pub(crate) fn storage(&self) -> &'s dyn Storage {
        self.storage
    }

    /// Removes what would be taken for a filesystem, so that a half-made one is not taken for that.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn erase(&self) -> Result<()> {
        if self.zeroed {
            return Ok(());
        }
        let len = SUPERBLOCKS.min(self.storage.len()?);
        // An ext4 filesystem's own first: none of the others may go while it is there.
        let own = (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64).min(len);
        self.storage.zero(0, own, ZeroMode::Unmap)?;
        self.storage.sync_data()?;
        self.storage.zero(0, len, ZeroMode::Unmap)?;
        self.erase_backup_table()
    }

    /// Removes the copy of a GPT in the last sector, by which a disk that was partitioned before would be taken for one that still is.
    fn erase_backup_table(&self) -> Result<()> {
        let len = self.storage.len()?;
        for sector in [512, 4096] {
            let Some(last) = len.checked_sub(sector) else {
                continue;
            };
            let mut signature = [0; GPT.len()];
            self.storage.read_exact_at(&mut signature, last)?;
            if signature == GPT {
                self.storage.zero(last, sector, ZeroMode::Unmap)?;
            }
        }
        Ok(())
    }

    /// Makes the storage at least this long.
    ///
    /// # Errors
    /// `Io`, `NoSpace`, `Unsupported`.
    pub(crate) fn grow(&self, size: u64) -> Result<()> {
        if self.storage.len()? < size {
            self.storage.set_len(size)?;
        }
        Ok(())
    }

    /// Where a block is in the storage.
    pub(crate) fn offset(&self, block: u64) -> u64 {
        block * self.block_size
    }

    /// Writes `bytes` from the start of a block. More than a block goes on in the next; of a short one, the rest
    /// is zeroed.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn write(&self, block: u64, bytes: &[u8]) -> Result<()> {
        let mut bytes = std::borrow::Cow::Borrowed(bytes);
        let whole = bytes.len().next_multiple_of(self.block_size as usize);
        if bytes.len() < whole {
            bytes.to_mut().resize(whole, 0);
        }
        self.write_at(self.offset(block), &bytes)
    }

    /// Writes bytes where they are on the disk.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.is_past_end(offset, bytes.len() as u64) {
            return Ok(());
        }
        self.storage.write_all_at(bytes, offset)
    }

    fn is_past_end(&self, offset: u64, len: u64) -> bool {
        self.end.is_some_and(|end| offset + len > end)
    }

    /// Makes blocks that were never written read as zeros.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn zero_new(&self, run: Run) -> Result<()> {
        if self.zeroed { Ok(()) } else { self.zero(run) }
    }

    /// Makes blocks read as zeros.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn zero(&self, run: Run) -> Result<()> {
        let len = (run.end - run.start) * self.block_size;
        if len == 0 || self.is_past_end(self.offset(run.start), len) {
            return Ok(());
        }
        self.storage.zero(self.offset(run.start), len, ZeroMode::Unmap)
    }

    /// Whether all that was never written reads as zeros.
    pub(crate) fn is_zeroed(&self) -> bool {
        self.zeroed
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn sync(&self) -> Result<()> {
        self.storage.sync_data()
    }
}

/// Writes blocks that come one after the other in large pieces.
#[derive(Debug)]
pub(crate) struct BlockWriter<'a, 's> {
    disk: &'a Disk<'s>,
    /// Where `bytes` begin.
    start: u64,
    bytes: Vec<u8>,
}

impl<'a, 's> BlockWriter<'a, 's> {
    /// Bytes that are gathered at most.
    const PIECE: usize = 1 << 20;

    pub(crate) fn new(disk: &'a Disk<'s>) -> Self {
        Self {
            disk,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// Writes whole blocks from `block` on, now or later.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn write(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        let end = self.start + self.bytes.len() as u64 / self.disk.block_size;
        if block != end || self.bytes.len() >= Self::PIECE {
            self.flush()?;
            self.start = block;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes one file's blocks over its runs.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn write_runs(&mut self, runs: &[Run], mut bytes: &[u8]) -> Result<()> {
        for run in runs {
            let len = ((run.end - run.start) * self.disk.block_size) as usize;
            let (these, others) = bytes.split_at(len.min(bytes.len()));
            self.write(run.start, these)?;
            bytes = others;
        }
        Ok(())
    }

    /// Writes all that came so far.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if !self.bytes.is_empty() {
            self.disk.write(self.start, &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}
