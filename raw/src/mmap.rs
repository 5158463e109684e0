//! A file mapped into memory, to be read from.
//!
//! A read is a copy and no system call, which makes small reads of what is in the page cache cheap. The price is that
//! there is nobody to return an error to: a page that cannot be had, because the file was cut or the disk failed,
//! kills the process. So nothing is ever mapped unless the caller asked for it.
//!
//! The map has the length that the file had at first. What a file has grown by since is read by system calls.

use std::fs;
use std::io::IoSliceMut;

use block::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;

/// The bytes of a file as memory.
#[derive(Debug)]
pub(crate) struct Map {
    /// `None` for an empty file, since there are no empty maps.
    memory: Option<MmapRaw>,
}

impl Map {
    /// Maps the first `len` bytes of `file`, all that it has.
    pub(crate) fn new(file: &fs::File, len: u64) -> Result<Self> {
        if len == 0 {
            return Ok(Self { memory: None });
        }
        let bytes = usize::try_from(len).map_err(|_| too_long(len))?;
        let map = MmapOptions::new().len(bytes).map_raw_read_only(file);
        let memory = map.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NODEV) => Error::unsupported("this file cannot be mapped into memory")
                .with_hint("read it by system calls (--io sync)"),
            Some(Errno::NOMEM) => too_long(len),
            _ => Error::io("map into memory", error),
        })?;
        Ok(Self { memory: Some(memory) })
    }

    fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, MmapRaw::len)
    }

    /// Whether the byte at `offset` is in the map.
    pub(crate) fn holds(&self, offset: u64) -> bool {
        offset < self.len() as u64
    }

    /// Fills the start of `buf` from `offset`, up to the end of the map. Returns how many bytes that is.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let Some(memory) = &self.memory else { return 0 };
        let start = usize::try_from(offset).map_or(memory.len(), |start| start.min(memory.len()));
        let len = buf.len().min(memory.len() - start);
        // SAFETY: `start + len` is at most the length of the map, which lives as long as `self`; `buf` is `len` bytes or
        // more, and being borrowed mutably it is no part of the map, to which nobody has a reference. The bytes are
        // copied from a raw pointer and any value of them will do, so it does not matter if somebody changes the file
        // meanwhile. That nobody cuts it is what the caller answers for who chose this way, and would end in a signal.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::copy_nonoverlapping(memory.as_ptr().add(start), buf.as_mut_ptr(), len);
        }
        len
    }

    /// [`read`](Self::read) into several buffers, one after the other.
    pub(crate) fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> usize {
        let mut done = 0;
        for buf in bufs {
            let n = self.read(buf, offset.saturating_add(done as u64));
            done += n;
            if n < buf.len() {
                break;
            }
        }
        done
    }
}

fn too_long(len: u64) -> Error {
    Error::unsupported(format!(
        "a file of {len} bytes does not fit into this process's address space"
    ))
    .with_hint("read it by system calls (--io sync)")
}
