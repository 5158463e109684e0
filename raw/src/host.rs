//! The file behind a storage, and the ways to get at its bytes.
//!
//! Everything that moves bytes goes through [`Host`], whichever [`Io`] was chosen; lengths, holes, zeroing and syncs
//! are system calls in any case, and are asked of the [file](Host::file).

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use block::Result;
use rustix::io::retry_on_intr;

use crate::mmap::Map;
#[cfg(feature = "io-uring")]
use crate::uring::Uring;

/// How the bytes of a file are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Io {
    /// As is fastest here: by system calls.
    #[default]
    Auto,
    /// By system calls, `pread` and `pwrite` and their like.
    Sync,
    /// By `io_uring`: many runs in one call, done by the device all at once. Needs a kernel that allows it, and the
    /// feature `io-uring` of this crate. The storage must not be used in both processes after a `fork`.
    Uring,
    /// From memory that the file is mapped into; only for reading. **The caller answers for the file**: the process
    /// is killed (`SIGBUS`) where it reads what has been cut off meanwhile, or what the disk fails to read. Image
    /// locks keep off those that heed them, so it is refused for files that are shared by force.
    Mmap,
}

impl Io {
    /// The same for a file that is written to, which is never mapped.
    #[must_use]
    pub fn for_writing(self) -> Self {
        match self {
            Self::Mmap => Self::Sync,
            io => io,
        }
    }
}

/// A way of I/O, ready for one file.
#[derive(Debug)]
enum Way {
    Sync,
    #[cfg(feature = "io-uring")]
    Uring(Uring),
    Mmap(Map),
}

/// A file of the host, open.
#[derive(Debug)]
pub(crate) struct Host {
    file: fs::File,
    way: Way,
}

impl Host {
    /// Makes ready to reach the bytes of `file`, now `len` of them, by `io`.
    ///
    /// # Errors
    /// `Unsupported` where the host has no such way to this file; `Io`.
    pub(crate) fn new(file: fs::File, io: Io, len: u64) -> Result<Self> {
        let way = match io {
            Io::Auto | Io::Sync => Way::Sync,
            #[cfg(feature = "io-uring")]
            Io::Uring => Way::Uring(Uring::new(&file)?),
            #[cfg(not(feature = "io-uring"))]
            Io::Uring => {
                return Err(
                    block::Error::unsupported("this program was built without io_uring")
                        .with_hint("reach the file's bytes by system calls (--io sync)"),
                );
            }
            Io::Mmap => Way::Mmap(Map::new(&file, len)?),
        };
        Ok(Self { file, way })
    }

    /// The file, for everything but reading and writing.
    pub(crate) fn file(&self) -> &fs::File {
        &self.file
    }

    /// Reads at `offset`, less than asked for where the file ends, or for no reason at all.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.way {
            #[cfg(feature = "io-uring")]
            Way::Uring(uring) => match uring.read(&self.file, buf, offset) {
                0 => self.file.read_at(buf, offset),
                done => Ok(done),
            },
            Way::Mmap(map) if map.holds(offset) => Ok(map.read(buf, offset)),
            Way::Sync | Way::Mmap(_) => self.file.read_at(buf, offset),
        }
    }

    /// Reads the starts of many buffers at once, each from an offset of its own, where there is a way to do so.
    /// Returns how many bytes of each; 0 says nothing.
    pub(crate) fn read_batch(&self, runs: &mut [(u64, &mut [u8])]) -> Vec<usize> {
        match &self.way {
            #[cfg(feature = "io-uring")]
            Way::Uring(uring) if runs.len() > 1 => uring.read_batch(&self.file, runs),
            _ => vec![0; runs.len()],
        }
    }

    /// Writes all of `buf` at `offset`.
    pub(crate) fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(feature = "io-uring")]
        if let Way::Uring(uring) = &self.way {
            let done = uring.write(&self.file, buf, offset);
            return self.file.write_all_at(&buf[done..], offset + done as u64);
        }
        self.file.write_all_at(buf, offset)
    }

    /// Reads into buffers one after the other, fewer bytes than there is room for as [`read_at`](Self::read_at).
    /// There are no more buffers than the kernel takes.
    pub(crate) fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        match &self.way {
            #[cfg(feature = "io-uring")]
            Way::Uring(uring) => Ok(uring.read_vectored(&self.file, bufs, offset)),
            Way::Mmap(map) => Ok(map.read_vectored(bufs, offset)),
            Way::Sync => Ok(retry_on_intr(|| {
                rustix::io::preadv(&self.file, &mut *bufs, offset)
            })?),
        }
    }

    /// Writes from buffers one after the other, maybe not all of them. There are no more buffers than the kernel
    /// takes.
    pub(crate) fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        #[cfg(feature = "io-uring")]
        if let Way::Uring(uring) = &self.way {
            return Ok(uring.write_vectored(&self.file, bufs, offset));
        }
        Ok(retry_on_intr(|| rustix::io::pwritev(&self.file, bufs, offset))?)
    }
}

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
