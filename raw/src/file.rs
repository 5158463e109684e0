//! A host file or block device as storage.
//!
//! Growing is the one thing that two threads could undo for each other: `ftruncate` to a length read a moment ago
//! cuts off what another thread has written since. So only [`set_len`](Storage::set_len) truncates; zeroing past
//! the end grows the file by allocating its last byte, which the kernel does under the inode's lock and which
//! never shortens.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use block::{Alignment, Error, FileId, HostCopy, HostExtent, Result, Storage, ZeroMode};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::{Errno, retry_on_intr};

use crate::direct::{AlignedBuf, Direct};
use crate::host::Host;

/// Buffers in one vectored call; the kernel takes no more.
const MAX_BUFFERS: usize = 1024;

/// Bytes of zeros written at once where the host cannot zero by itself.
const ZERO_CHUNK: u64 = 1 << 20;

/// How often a direct read that stopped inside a sector is tried again while the file grows.
const MAX_READS_AGAIN: u32 = 1000;

/// What the storage is on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    BlockDevice,
}

/// A host file or block device, opened by [`OpenOptions`](crate::OpenOptions).
///
/// Requests of any alignment work, with direct I/O too. The image locks that were taken at opening are held until
/// the value is dropped.
#[derive(Debug)]
pub struct File {
    pub(crate) host: Host,
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) writable: bool,
    pub(crate) id: FileId,
    /// What offsets and lengths of a block device's zeroing and discarding are multiples of, in bytes; 1 for a
    /// regular file.
    pub(crate) sector: u64,
    pub(crate) direct: Option<Direct>,
    /// The first failure to sync. The kernel reports it once and forgets: a later success would be a lie.
    pub(crate) sync_failure: OnceLock<Error>,
}

/// For requests of the embedder's own: `copy_file_range`, reflinks, `io_uring`.
impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}

/// The locks go with the value, even where a copy of the descriptor stays.
impl Drop for File {
    fn drop(&mut self) {
        crate::lock::release(self.host.as_fd());
    }
}

impl File {
    /// Opens an existing file or block device for reading, locked against writers.
    ///
    /// # Errors
    /// As [`OpenOptions::open`](crate::OpenOptions::open).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        crate::OpenOptions::new().open(path)
    }

    /// Whether it is a block device, whose length is fixed.
    pub fn is_block_device(&self) -> bool {
        self.kind == Kind::BlockDevice
    }

    /// Bytes in a sector of a block device, the unit of its partition tables and the least that can be written to it;
    /// `None` for a file.
    pub fn sector_size(&self) -> Option<u64> {
        self.is_block_device().then_some(self.sector)
    }

    /// Length in bytes between two writes: a direct one may make it longer than it will be.
    fn steady_len(&self) -> io::Result<u64> {
        let _steady = self.direct.as_ref().map(Direct::among_writers);
        self.host_len()
    }

    /// Length in bytes, whatever another thread is in the middle of.
    pub(crate) fn host_len(&self) -> io::Result<u64> {
        host_len(self.host.file(), self.kind)
    }

    /// Reads until `buf` is full or the file ends, and zeroes the rest of `buf`.
    pub(crate) fn read_filled(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let sector = self
            .direct
            .as_ref()
            .map_or(1, |direct| direct.alignment().offset as usize);
        let (mut done, mut again) = (0, 0);
        while done < buf.len() {
            let at = offset + done as u64;
            let n = match self.host.read_at(&mut buf[done..], at) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            done += n;
            // Direct I/O stops inside a sector only where the file ends, and cannot go on from there. If it does
            // not end there any more, another thread has made it longer: read that sector again.
            if n % sector != 0 && done < buf.len() {
                if self.host_len()? <= at + n as u64 {
                    break;
                }
                if again == MAX_READS_AGAIN {
                    return Err(io::Error::other("the host keeps cutting direct reads short"));
                }
                again += 1;
                done -= n % sector;
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    /// An error of an I/O on this file.
    pub(crate) fn fail(&self, op: &'static str, offset: u64, source: impl Into<io::Error>) -> Error {
        Error::io(op, source.into())
            .with_path(&self.path)
            .with_offset(offset)
    }

    /// Refuses what no file offset can name, before any arithmetic on it. Returns the end of the range.
    pub(crate) fn check_range(&self, op: &'static str, offset: u64, len: u64) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if i64::try_from(end).is_ok() => Ok(end),
            _ => Err(self.fail(op, offset, Errno::FBIG)),
        }
    }

    pub(crate) fn check_writable(&self, op: &str) -> Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(Error::read_only(op).with_path(&self.path))
        }
    }

    /// Whether buffers at `offset` can go to the kernel in one call.
    fn vectored_as_is<'a>(&self, bufs: impl IntoIterator<Item = &'a [u8]>, offset: u64) -> bool {
        let Some(direct) = &self.direct else { return true };
        direct.aligned(offset) && bufs.into_iter().all(|buf| direct.fits(buf, 0))
    }

    /// `fallocate`; false where this host, file system or device cannot do it.
    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool, Errno> {
        let _writing = self.direct.as_ref().map(Direct::among_writers);
        match retry_on_intr(|| fallocate(&self.host, flags, offset, len)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::NODEV | Errno::INVAL) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Zeroes a range that lies on sector boundaries; false where the host cannot.
    fn zero_by_host(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<bool, io::Error> {
        const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
        let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        Ok(match (self.kind, mode) {
            (Kind::Regular, ZeroMode::Allocate) => self.fallocate(FallocateFlags::ZERO_RANGE, offset, len)?,
            (Kind::Regular, ZeroMode::Unmap) => {
                let end = offset + len;
                let reaches =
                    end <= self.steady_len()? || self.fallocate(FallocateFlags::empty(), end - 1, 1)?;
                reaches && self.fallocate(PUNCH, offset, len)?
            }
            (Kind::BlockDevice, ZeroMode::Allocate) => self.fallocate(keep, offset, len)?,
            (Kind::BlockDevice, ZeroMode::Unmap) => {
                self.fallocate(PUNCH, offset, len)? || self.fallocate(keep, offset, len)?
            }
        })
    }

    fn write_zeros(&self, mut offset: u64, end: u64) -> Result<()> {
        if offset == end {
            return Ok(());
        }
        let memory = self.alignment().memory;
        let zeros = AlignedBuf::zeroed((end - offset).min(ZERO_CHUNK) as usize, memory);
        while offset < end {
            let len = (end - offset).min(zeros.len() as u64);
            self.write_all_at(&zeros[..len as usize], offset)?;
            offset += len;
        }
        Ok(())
    }

    /// The part of a range that lies on sector boundaries: `(start, end)`, empty with both at `offset` if none does.
    fn whole_sectors(&self, offset: u64, end: u64) -> (u64, u64) {
        let start = offset.next_multiple_of(self.sector);
        let stop = end - end % self.sector;
        if start < stop {
            (start, stop)
        } else {
            (offset, offset)
        }
    }
}

impl Storage for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_range("read", offset, buf.len() as u64)?;
        let result = match &self.direct {
            Some(direct) if !direct.fits(buf, offset) => self.read_bounced(direct, buf, offset),
            _ => self.read_filled(buf, offset),
        };
        result.map_err(|error| self.fail("read", offset, error))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_writable("write")?;
        self.check_range("write", offset, buf.len() as u64)?;
        let result = match &self.direct {
            Some(direct) if !direct.fits(buf, offset) => self.write_bounced(direct, buf, offset),
            direct => {
                let _writing = direct.as_ref().map(Direct::among_writers);
                self.host.write_all_at(buf, offset)
            }
        };
        result.map_err(|error| self.fail("write", offset, error))
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        self.check_range("read", offset, total(bufs.iter().map(|buf| buf.len())))?;
        let mut next = 0;
        while next < bufs.len() {
            let batch = next..bufs.len().min(next + MAX_BUFFERS);
            let mut read = 0;
            if self.vectored_as_is(bufs[batch.clone()].iter().map(|buf| &**buf), offset) {
                read = self
                    .host
                    .read_vectored_at(&mut bufs[batch.clone()], offset)
                    .map_err(|error| self.fail("read", offset, error))?;
            }
            // The buffer that a short read stopped in is read by itself, so that every turn gets on by one at least.
            for buf in &mut bufs[batch] {
                if read < buf.len() {
                    self.read_exact_at(buf, offset)?;
                    read = 0;
                } else {
                    read -= buf.len();
                }
                offset += buf.len() as u64;
                next += 1;
                if read == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> Result<()> {
        self.check_writable("write")?;
        self.check_range("write", offset, total(bufs.iter().map(|buf| buf.len())))?;
        let mut next = 0;
        while next < bufs.len() {
            let batch = &bufs[next..bufs.len().min(next + MAX_BUFFERS)];
            let mut written = 0;
            if self.vectored_as_is(batch.iter().map(|buf| &**buf), offset) {
                let _writing = self.direct.as_ref().map(Direct::among_writers);
                written = self
                    .host
                    .write_vectored_at(batch, offset)
                    .map_err(|error| self.fail("write", offset, error))?;
            }
            for buf in batch {
                if written < buf.len() {
                    self.write_all_at(buf, offset)?;
                    written = 0;
                } else {
                    written -= buf.len();
                }
                offset += buf.len() as u64;
                next += 1;
                if written == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// In one call where the way of I/O has one for many runs. Direct runs that are not aligned go one by one.
    fn read_batch(&self, runs: &mut [(u64, &mut [u8])]) -> Result<()> {
        for (offset, buf) in &*runs {
            self.check_range("read", *offset, buf.len() as u64)?;
        }
        let as_is = |(offset, buf): &(u64, &mut [u8])| match &self.direct {
            Some(direct) => direct.fits(buf, *offset),
            None => true,
        };
        let done = if runs.iter().all(as_is) {
            self.host.read_batch(runs)
        } else {
            vec![0; runs.len()]
        };
        for ((offset, buf), done) in runs.iter_mut().zip(done) {
            if done < buf.len() {
                self.read_exact_at(&mut buf[done..], *offset + done as u64)?;
            }
        }
        Ok(())
    }

    /// By the host where it can (`FALLOC_FL_PUNCH_HOLE`, `FALLOC_FL_ZERO_RANGE`), else by writing zeros.
    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_writable("write zeros")?;
        let end = self.check_range("write zeros", offset, len)?;
        if self.is_block_device() && end > self.len()? {
            return Err(self.fail("write zeros", offset, Errno::NOSPC));
        }
        let (start, stop) = self.whole_sectors(offset, end);
        let zeroed = start == stop
            || self
                .zero_by_host(start, stop - start, mode)
                .map_err(|error| self.fail("write zeros", start, error))?;
        if zeroed {
            self.write_zeros(offset, start)?;
            self.write_zeros(stop, end)
        } else {
            self.write_zeros(offset, end)
        }
    }

    /// What the host takes back reads as zeros; what it cannot take stays as it is.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable("discard")?;
        let end = self.check_range("discard", offset, len)?.min(self.len()?);
        let (start, stop) = self.whole_sectors(offset, end.max(offset));
        if start < stop {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.fallocate(punch, start, stop - start)
                .map_err(|errno| self.fail("discard", start, errno))?;
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable("reserve space")?;
        self.check_range("reserve space", offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match self.fallocate(FallocateFlags::empty(), offset, len) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::unsupported("the host cannot reserve space in this file")
                .with_path(&self.path)
                .with_hint("write zeros instead (preallocation full), or do without")),
            Err(errno) => Err(self.fail("reserve space", offset, errno)),
        }
    }

    /// By `FICLONERANGE` and `copy_file_range`.
    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        self.take_over(offset, source, source_offset, len, how)
    }

    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        self.may_take_over(source, how)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let hole = |len| HostExtent { len, data: false };
        let data = |len| HostExtent { len, data: true };
        match seek(&self.host, SeekFrom::Data(offset)) {
            Ok(next) if next > offset => Ok(hole(len.min(next - offset))),
            Ok(_) => match seek(&self.host, SeekFrom::Hole(offset)) {
                Ok(next) if next > offset => Ok(data(len.min(next - offset))),
                // The file has changed in between: to call it data is always right.
                Ok(_) | Err(Errno::NXIO) => Ok(data(len)),
                Err(errno) => Err(self.fail("look for a hole", offset, errno)),
            },
            Err(Errno::NXIO) => Ok(hole(len)),
            Err(Errno::INVAL) => {
                let left = self.len()?.saturating_sub(offset);
                Ok(if left == 0 { hole(len) } else { data(len.min(left)) })
            }
            Err(errno) => Err(self.fail("look for data", offset, errno)),
        }
    }

    /// Once it has failed, every later call fails with the first error: the host may have dropped what it could not
    /// write, and would report success from then on.
    fn sync_data(&self) -> Result<()> {
        if let Some(failure) = self.sync_failure.get() {
            return Err(failure.clone());
        }
        retry_on_intr(|| rustix::fs::fdatasync(&self.host)).map_err(|errno| {
            let failure = Error::io("sync", errno.into()).with_path(&self.path);
            self.sync_failure.get_or_init(|| failure).clone()
        })
    }

    fn len(&self) -> Result<u64> {
        self.steady_len()
            .map_err(|error| Error::io("find the length", error).with_path(&self.path))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.check_writable("resize")?;
        if self.is_block_device() {
            return Err(Error::unsupported("a block device has a fixed length").with_path(&self.path));
        }
        let _alone = self.direct.as_ref().map(Direct::alone);
        self.host
            .file()
            .set_len(len)
            .map_err(|error| Error::io(format!("resize to {len} bytes"), error).with_path(&self.path))
    }

    fn alignment(&self) -> Alignment {
        self.direct.as_ref().map_or(Alignment::NONE, Direct::alignment)
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn file_id(&self) -> Option<FileId> {
        Some(self.id)
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }

    /// `None` for a block device.
    fn allocated(&self) -> Result<Option<u64>> {
        if self.is_block_device() {
            return Ok(None);
        }
        let metadata = self
            .host
            .file()
            .metadata()
            .map_err(|error| Error::io("find the space used", error).with_path(&self.path))?;
        // st_blocks counts 512 bytes, whatever the file system's own unit is.
        Ok(Some(metadata.blocks().saturating_mul(512)))
    }
}

/// Length in bytes of an open file.
pub(crate) fn host_len(file: &fs::File, kind: Kind) -> io::Result<u64> {
    match kind {
        Kind::Regular => Ok(file.metadata()?.len()),
        Kind::BlockDevice => Ok(seek(file, SeekFrom::End(0))?),
    }
}

fn total(lens: impl Iterator<Item = usize>) -> u64 {
    lens.fold(0, |sum, len| sum.saturating_add(len as u64))
}

#[cfg(test)]
mod tests;
