//! An export as a storage.
//!
//! # How it works
//!
//! Each connection carries one request at a time. A server that says that several connections see one another's
//! writes (`CAN_MULTI_CONN`) is reached by as many as there are threads with something to ask, up to
//! [`MAX_CONNECTIONS`]; each is opened when it is first wanted. With any other, threads take turns.
//!
//! A connection that breaks takes with it what the server had not flushed, and nobody knows how much that is: from
//! then on every call fails with that first error. A request that the server refuses is just an error.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::available_parallelism;

use block::{Access, Alignment, Error, ErrorKind, HostExtent, Result, Storage, ZeroMode};

use crate::Address;
use crate::connection::{Connection, Failure, Payload};
use crate::handshake::{self, ExportInfo};
use crate::protocol::{Command, NO_HOLE, Request};

/// As many connections as are opened.
const MAX_CONNECTIONS: usize = 4;

/// The longest range of a request that moves no data. Lengths are 32 bits wide; this much stays a multiple of all blocks.
const MAX_RANGE: u32 = 1 << 30;

/// Bytes of zeros that are sent at once to a server that cannot write zeros by itself.
const ZEROS: usize = 1 << 20;

/// An export of an NBD server: a storage of fixed length.
pub struct Export {
    address: Address,
    info: ExportInfo,
    read_only: bool,
    has_status: bool,
    pool: Mutex<Pool>,
    returned: Condvar,
    /// Held alone by writes of parts of blocks, which read first, and together by others.
    blocks: RwLock<()>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    /// Connections that are idle or in use.
    open: usize,
    /// As many as there may be.
    most: usize,
    /// Why a connection broke.
    broken: Option<Error>,
}

impl Export {
    /// Connects to an export.
    ///
    /// # Errors
    /// `Io` with the server's words; `Unsupported` for a server that insists on TLS or is too old; `ReadOnly` for a
    /// read-only export that is to be written to.
    pub fn open(address: &Address, access: Access) -> Result<Self> {
        let told = |error: Error| error.with_path(address.path());
        let (connection, info) = handshake::open(address).map_err(told)?;
        if access.write && info.flags.read_only() {
            return Err(told(Error::new(
                ErrorKind::ReadOnly,
                "the server exports it for reading only",
            )));
        }
        let most = if info.flags.several_connections() {
            MAX_CONNECTIONS
        } else {
            1
        };
        Ok(Self {
            address: address.clone(),
            info,
            read_only: !access.write,
            has_status: connection.has_status(),
            pool: Mutex::new(Pool {
                idle: vec![connection],
                open: 1,
                most,
                broken: None,
            }),
            returned: Condvar::new(),
            blocks: RwLock::new(()),
        })
    }

    /// Connects as often as is of use to a thread on each processor, for whoever gives up connecting afterwards. Where
    /// the server takes fewer connections, those do.
    pub fn connect_ahead(&self) {
        let threads = available_parallelism().map_or(1, NonZeroUsize::get);
        let mut pool = self.pool();
        while pool.open < pool.most.min(threads) {
            let Ok(connection) = self.another() else { break };
            pool.idle.push(connection);
            pool.open += 1;
        }
        pool.most = pool.open;
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that nobody uses.
    fn connection(&self) -> Result<Connection> {
        let mut pool = self.pool();
        loop {
            if let Some(broken) = &pool.broken {
                return Err(broken.clone());
            }
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            if pool.open < pool.most {
                pool.open += 1;
                drop(pool);
                return self.another().inspect_err(|_| {
                    self.pool().open -= 1;
                    self.returned.notify_one();
                });
            }
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One more connection to the same export.
    fn another(&self) -> Result<Connection> {
        let (connection, info) = handshake::open(&self.address)?;
        if info != self.info || connection.has_status() != self.has_status {
            return Err(Error::new(
                ErrorKind::Io,
                "the export has changed since it was opened",
            ));
        }
        Ok(connection)
    }

    fn request(&self, request: &Request, payload: Payload<'_>) -> Result<()> {
        let told = |error: Error| error.with_path(self.address.path());
        let mut connection = self.connection().map_err(told)?;
        let result = connection.request(request, payload);
        let mut pool = self.pool();
        let result = match result {
            Err(Failure::Broken(error)) => {
                let error = told(error);
                pool.open -= 1;
                pool.broken.get_or_insert_with(|| error.clone());
                self.returned.notify_all();
                return Err(error);
            }
            Err(Failure::Refused(error)) => Err(told(error)),
            Ok(()) => Ok(()),
        };
        pool.idle.push(connection);
        self.returned.notify_one();
        result
    }

    /// Does `one` for each part of the range that a request may have.
    fn in_parts(range: Range<u64>, most: u32, mut one: impl FnMut(u64, u32) -> Result<()>) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let len = (range.end - offset).min(u64::from(most)) as u32;
            one(offset, len)?;
            offset += u64::from(len);
        }
        Ok(())
    }

    /// The blocks that the range touches, as bytes. An export of odd length ends where it ends.
    fn widened(&self, offset: u64, len: u64) -> Range<u64> {
        let block = u64::from(self.info.min_block);
        let end = (offset + len).next_multiple_of(block).min(self.info.size);
        offset / block * block..end
    }

    /// The whole blocks in the range, as bytes; empty if there is none.
    fn narrowed(&self, offset: u64, len: u64) -> Range<u64> {
        let block = u64::from(self.info.min_block);
        let start = offset.next_multiple_of(block);
        let end = if offset + len == self.info.size {
            self.info.size
        } else {
            (offset + len) / block * block
        };
        start..end.max(start)
    }

    /// Reads whole blocks.
    fn read_blocks(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut rest = buf;
        let end = offset + rest.len() as u64;
        Self::in_parts(offset..end, self.info.max_block, |offset, len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len as usize);
            rest = after;
            let request = Request {
                command: Command::Read,
                flags: 0,
                offset,
                len,
            };
            self.request(&request, Payload::Read(part))
        })
    }

    fn write_blocks(&self, buf: &[u8], start: u64) -> Result<()> {
        let end = start + buf.len() as u64;
        Self::in_parts(start..end, self.info.max_block, |offset, len| {
            let part = &buf[(offset - start) as usize..][..len as usize];
            let request = Request {
                command: Command::Write,
                flags: 0,
                offset,
                len,
            };
            self.request(&request, Payload::Write(part))
        })
    }

    /// Writes a range that may end inside blocks, by reading those first.
    fn write_through_blocks(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _alone = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let range = self.widened(offset, buf.len() as u64);
        let mut whole = vec![0; (range.end - range.start) as usize];
        self.read_blocks(&mut whole, range.start)?;
        whole[(offset - range.start) as usize..][..buf.len()].copy_from_slice(buf);
        self.write_blocks(&whole, range.start)
    }

    /// Fails unless the range may be written to.
    fn check_write(&self, verb: &str, offset: u64, len: u64) -> Result<()> {
        let told = |error: Error| error.with_path(self.address.path());
        if self.read_only {
            return Err(told(Error::read_only(verb)));
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.info.size => Ok(()),
            _ => {
                let size = self.info.size;
                let message =
                    format!("{verb} of {len} bytes reaches past the end of the export ({size} bytes)");
                Err(told(Error::new(ErrorKind::NoSpace, message).with_offset(offset)))
            }
        }
    }

    /// Sends zeros.
    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        let zeros = vec![0; ZEROS.min((range.end - range.start) as usize)];
        Self::in_parts(range, ZEROS as u32, |offset, len| {
            self.write_all_at(&zeros[..len as usize], offset)
        })
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("address", &self.address)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        pool.idle.drain(..).for_each(Connection::close);
    }
}

impl Storage for Export {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let there = self.info.size.saturating_sub(offset).min(buf.len() as u64);
        let (buf, past) = buf.split_at_mut(there as usize);
        past.fill(0);
        if buf.is_empty() {
            return Ok(());
        }
        let range = self.widened(offset, there);
        if range == (offset..offset + there) {
            return self.read_blocks(buf, offset);
        }
        let mut whole = vec![0; (range.end - range.start) as usize];
        self.read_blocks(&mut whole, range.start)?;
        buf.copy_from_slice(&whole[(offset - range.start) as usize..][..buf.len()]);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        self.check_write("write", offset, len)?;
        if self.widened(offset, len) != (offset..offset + len) {
            return self.write_through_blocks(buf, offset);
        }
        let _together = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        self.write_blocks(buf, offset)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_write("write zeros", offset, len)?;
        let end = offset + len;
        let whole = self.narrowed(offset, len);
        if !self.info.flags.write_zeroes() || whole.is_empty() {
            return self.write_zeros(offset..end);
        }
        self.write_zeros(offset..whole.start)?;
        let flags = match mode {
            ZeroMode::Unmap => 0,
            ZeroMode::Allocate => NO_HOLE,
        };
        let after = whole.end;
        {
            let _together = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
            Self::in_parts(whole, MAX_RANGE, |offset, len| {
                let request = Request {
                    command: Command::WriteZeroes,
                    flags,
                    offset,
                    len,
                };
                self.request(&request, Payload::None)
            })?;
        }
        self.write_zeros(after..end)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let len = len.min(self.info.size.saturating_sub(offset));
        self.check_write("discard", offset, len)?;
        if !self.info.flags.trim() {
            return Ok(());
        }
        Self::in_parts(self.narrowed(offset, len), MAX_RANGE, |offset, len| {
            let request = Request {
                command: Command::Trim,
                flags: 0,
                offset,
                len,
            };
            self.request(&request, Payload::None)
        })
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        if offset >= self.info.size {
            return Ok(HostExtent { len, data: false });
        }
        let len = len.min(self.info.size - offset);
        if !self.has_status || len == 0 {
            return Ok(HostExtent { len, data: true });
        }
        let asked = self.widened(offset, len.min(u64::from(MAX_RANGE)));
        let request = Request {
            command: Command::BlockStatus,
            flags: 0,
            offset: asked.start,
            len: (asked.end - asked.start).min(u64::from(MAX_RANGE)) as u32,
        };
        let mut runs = Vec::new();
        self.request(&request, Payload::Status(&mut runs))?;
        let zero = runs[0].zero;
        let alike = runs.iter().take_while(|run| run.zero == zero);
        let end = asked.start + alike.map(|run| u64::from(run.len)).sum::<u64>();
        if end <= offset {
            // A run that ends inside the first block.
            return Ok(HostExtent {
                len: len.min(asked.end - offset),
                data: true,
            });
        }
        Ok(HostExtent {
            len: len.min(end - offset),
            data: !zero,
        })
    }

    fn sync_data(&self) -> Result<()> {
        if self.read_only || !self.info.flags.flush() {
            return Ok(());
        }
        let request = Request {
            command: Command::Flush,
            flags: 0,
            offset: 0,
            len: 0,
        };
        self.request(&request, Payload::None)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.info.size)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let size = self.info.size;
        if len == size {
            return Ok(());
        }
        let message = format!("an export has a fixed length ({size} bytes), it cannot have {len}");
        Err(Error::unsupported(message).with_path(self.address.path()))
    }

    fn alignment(&self) -> Alignment {
        Alignment {
            offset: self.info.min_block,
            memory: 1,
        }
    }

    fn path(&self) -> Option<&Path> {
        Some(self.address.path())
    }
}
