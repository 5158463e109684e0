//! What lies below a format: bytes at offsets, made durable on request.

use std::fmt::Debug;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::{Error, Result, ZeroMode};

/// Which file it is, whatever its name: device and inode on Unix. Two storages with one id are the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The device that holds it.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
}

/// What requests a storage serves without copying: offsets and lengths that are multiples of `offset`, from
/// memory aligned to `memory`. Others work too and cost a copy. Both are powers of two; 1 means any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Multiple in bytes that offset and length should have.
    pub offset: u32,
    /// Multiple in bytes that the buffer's address should have.
    pub memory: u32,
}

impl Alignment {
    /// Anything goes.
    pub const NONE: Self = Self { offset: 1, memory: 1 };
}

/// A run of a storage: data, or a hole that takes no room and reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostExtent {
    /// Length in bytes from the offset asked; never 0 inside the storage.
    pub len: u64,
    /// Whether it may hold other bytes than zeros.
    pub data: bool,
}

/// How a host may copy between two of its files by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostCopy {
    /// Only by sharing: both files hold the same blocks until one is written to. No byte moves, no room is taken.
    Reflink,
    /// By sharing or else by copying, whichever it can.
    Any,
}

/// Bytes at offsets: what a disk-image format is stored in.
///
/// Reads past the end give zeros and writes past it grow the storage, as sparse files do: a format decides what
/// lies beyond the end of a file, and asks [`len`](Self::len) where that matters. A write is visible to every
/// later read at once, and durable once a [`sync_data`](Self::sync_data) that began after it has returned. Until
/// then a power cut may keep, lose or tear it (at 512 bytes), in any order with others.
pub trait Storage: Send + Sync + Debug {
    /// Fills `buf` from `offset`. Bytes past the end of the storage are zero.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) with the storage's path and `offset`; `buf` is then undefined.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`, growing the storage where it must.
    ///
    /// # Errors
    /// `Io` or `NoSpace`; the range written to is then undefined.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// [`read_exact_at`](Self::read_exact_at) into several buffers, one after the other.
    ///
    /// # Errors
    /// As there.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        for buf in bufs {
            self.read_exact_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// [`write_all_at`](Self::write_all_at) from several buffers, one after the other.
    ///
    /// # Errors
    /// As there.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> Result<()> {
        for buf in bufs {
            self.write_all_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// [`read_exact_at`](Self::read_exact_at) for several runs, each an offset and a buffer: all at once where the host
    /// can, one after the other where not.
    ///
    /// # Errors
    /// As there.
    fn read_batch(&self, runs: &mut [(u64, &mut [u8])]) -> Result<()> {
        for (offset, buf) in runs {
            self.read_exact_at(buf, *offset)?;
        }
        Ok(())
    }

    /// Makes `len` bytes at `offset` read as zeros, growing the storage where it must. [`ZeroMode::Unmap`] gives
    /// the room back where the host can, [`ZeroMode::Allocate`] keeps it.
    ///
    /// # Errors
    /// `Io` or `NoSpace`; the range is then undefined.
    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()>;

    /// Says that `len` bytes at `offset` are not needed any more. A hint: the bytes read as zeros or as before
    /// afterwards. Never grows the storage.
    ///
    /// # Errors
    /// `Io`; not for a host that cannot discard, which ignores it.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Reserves room for `len` bytes at `offset` without changing what they read as, growing the storage where
    /// it must, so that writing there cannot fail for lack of it.
    ///
    /// # Errors
    /// `Unsupported` where the host has no such call, `NoSpace`, `Io`.
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(Error::unsupported("this storage cannot reserve space").with_path_of(self.path()))
    }

    /// Has the host put `len` bytes of `source` from `source_offset` on to `offset`, growing the storage where it
    /// must. Returns how many bytes, from the start, were put there: fewer than `len`, and 0, where the host cannot
    /// do more. Copying the others is left to the caller; what they read as until then is undefined.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        let _ = (offset, source, source_offset, len, how);
        Ok(0)
    }

    /// Whether the host may [copy](Self::copy_from) anything of `source`; `false` where it is known to refuse, so that
    /// nothing has to be made ready for it.
    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        let _ = (source, how);
        false
    }

    /// The run that starts at `offset`, `len` bytes at most. Past the end: a hole of `len` bytes.
    ///
    /// # Errors
    /// `Io`.
    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent>;

    /// Makes every write that returned before this call durable, with the length that reaching it needs.
    ///
    /// # Errors
    /// `Io` or `NoSpace`: which writes are durable is then unknown, and will not be told by a second call.
    fn sync_data(&self) -> Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// `Io`.
    fn len(&self) -> Result<u64>;

    /// Cuts or grows (with zeros, without room) to `len` bytes.
    ///
    /// # Errors
    /// `Io`, `NoSpace`, or `Unsupported` for what has a fixed length, such as a block device.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Whether the storage is empty.
    ///
    /// # Errors
    /// `Io`.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The requests that it serves without copying.
    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    /// The file's name, for messages.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Which file it is, to notice one that names itself.
    fn file_id(&self) -> Option<FileId> {
        None
    }

    /// The file of the host that has every byte of the storage at the same offset, for the host to
    /// [copy from](Self::copy_from). Not for one that must see or may change what is read.
    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Bytes that the storage takes on its host (`st_blocks`), where that is known.
    ///
    /// # Errors
    /// `Io`.
    fn allocated(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
