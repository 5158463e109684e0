//! Direct I/O: past the page cache, in whole sectors from aligned memory.
//!
//! A request that is not aligned goes through a bounce buffer. Writing part of a sector means reading it, changing
//! it and writing it back, and meanwhile nobody else may write to the rest of that sector, or their bytes would be
//! put back as they were. A lock keeps such a writer alone; aligned writers share it and do not wait for each
//! other. Which sectors are concerned is not looked at: who asks for direct I/O sends aligned requests.
//!
//! Writing the whole of a file's last sector makes the file longer than asked for a moment; it is cut back under
//! the same lock, which [`len`](block::Storage::len) takes as well.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use block::Alignment;

use crate::File;

/// Bytes of a bounce buffer at most; longer requests go in parts.
const MAX_BOUNCE: u64 = 1 << 20;

/// What direct I/O asks of requests, and the lock that unaligned ones take.
#[derive(Debug)]
pub(crate) struct Direct {
    alignment: Alignment,
    writers: RwLock<()>,
}

impl Direct {
    /// Both alignments must be powers of two.
    pub(crate) fn new(alignment: Alignment) -> Self {
        debug_assert!(alignment.offset.is_power_of_two() && alignment.memory.is_power_of_two());
        Self {
            alignment,
            writers: RwLock::new(()),
        }
    }

    pub(crate) fn alignment(&self) -> Alignment {
        self.alignment
    }

    fn sector(&self) -> u64 {
        self.alignment.offset.into()
    }

    /// Whether an offset or a length lies on a sector boundary.
    pub(crate) fn aligned(&self, value: u64) -> bool {
        value.is_multiple_of(self.sector())
    }

    /// Whether the kernel takes the request as it is.
    pub(crate) fn fits(&self, buf: &[u8], offset: u64) -> bool {
        let address = buf.as_ptr().addr() as u64;
        self.aligned(offset)
            && self.aligned(buf.len() as u64)
            && address.is_multiple_of(self.alignment.memory.into())
    }

    /// Held while writing whole sectors.
    pub(crate) fn among_writers(&self) -> RwLockReadGuard<'_, ()> {
        self.writers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while writing parts of sectors, or cutting the file.
    pub(crate) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.writers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for all the sectors that `len` bytes at any offset touch, or for as many as go at once.
    fn bounce(&self, len: usize) -> AlignedBuf {
        let most = MAX_BOUNCE.next_multiple_of(self.sector());
        let all = (len as u64).next_multiple_of(self.sector()) + self.sector();
        AlignedBuf::zeroed(all.min(most) as usize, self.alignment.memory)
    }
}

impl File {
    /// Reads through a bounce buffer. The end of the range must be a file offset.
    pub(crate) fn read_bounced(
        &self,
        direct: &Direct,
        mut buf: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        let mut bounce = direct.bounce(buf.len());
        while !buf.is_empty() {
            let skip = (offset % direct.sector()) as usize;
            let take = buf.len().min(bounce.len() - skip);
            let sectors = (skip + take).next_multiple_of(direct.sector() as usize);
            self.read_filled(&mut bounce[..sectors], offset - skip as u64)?;
            let (now, later) = buf.split_at_mut(take);
            now.copy_from_slice(&bounce[skip..skip + take]);
            buf = later;
            offset += take as u64;
        }
        Ok(())
    }

    /// Writes through a bounce buffer, reading the sectors that are written in part. The end of the range must be
    /// a file offset.
    pub(crate) fn write_bounced(&self, direct: &Direct, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let _alone = direct.alone();
        let end = offset + buf.len() as u64;
        let len = self.host_len()?.max(end);
        let result = self.write_sectors(direct, buf, offset);
        if !self.is_block_device() && end.next_multiple_of(direct.sector()) > len && self.host_len()? > len {
            self.host.file().set_len(len)?;
        }
        result
    }

    fn write_sectors(&self, direct: &Direct, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        let sector = direct.sector() as usize;
        let mut bounce = direct.bounce(buf.len());
        while !buf.is_empty() {
            let skip = (offset % direct.sector()) as usize;
            let take = buf.len().min(bounce.len() - skip);
            let sectors = &mut bounce[..(skip + take).next_multiple_of(sector)];
            let start = offset - skip as u64;
            let last = sectors.len() - sector;
            if skip > 0 {
                self.read_filled(&mut sectors[..sector], start)?;
            }
            if skip + take < sectors.len() && (skip == 0 || last > 0) {
                self.read_filled(&mut sectors[last..], start + last as u64)?;
            }
            sectors[skip..skip + take].copy_from_slice(&buf[..take]);
            self.host.write_all_at(sectors, start)?;
            buf = &buf[take..];
            offset += take as u64;
        }
        Ok(())
    }
}

/// Bytes that start at an aligned address.
pub(crate) struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zeros at a multiple of `alignment`, a power of two.
    pub(crate) fn zeroed(len: usize, alignment: u32) -> Self {
        let alignment = alignment as usize;
        let bytes = vec![0; len + alignment];
        let start = bytes.as_ptr().addr().next_multiple_of(alignment) - bytes.as_ptr().addr();
        Self { bytes, start, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}
