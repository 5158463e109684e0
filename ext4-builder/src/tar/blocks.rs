//! The archive as a stream of blocks: read in order, never sought in, each byte counted.

use std::io::{BufRead, BufReader, ErrorKind, Read};

use block::{Error, Result};

use super::compression::read_error;
use super::fault::Fault;
use super::header::BLOCK;

/// Bytes read from the input at a time; more where the caller's buffer is larger.
const BUFFER: usize = 128 << 10;

/// Bytes by which a buffer grows whose length the archive claims, so that a false claim costs no memory.
const STEP: usize = 64 << 10;

pub(super) struct Blocks<R> {
    input: BufReader<R>,
    offset: u64,
    /// A block that was looked at before its time.
    peeked: Option<[u8; BLOCK]>,
}

impl<R: Read> Blocks<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(BUFFER, input),
            offset: 0,
            peeked: None,
        }
    }

    /// Where in the archive the next byte is.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next block, or none at the end of the input.
    pub(super) fn next(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let block = self.peek()?;
        if self.peeked.take().is_some() {
            self.offset += BLOCK as u64;
        }
        Ok(block)
    }

    /// As [`next`](Self::next), and it stays the next one.
    pub(super) fn peek(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.peeked.is_none() {
            let mut block = [0; BLOCK];
            match self.fill(&mut block)? {
                0 => return Ok(None),
                BLOCK => self.peeked = Some(block),
                len => return Err(Fault::Truncated("a block").at(self.offset + len as u64, None)),
            }
        }
        Ok(self.peeked)
    }

    /// Reads all that `buffer` holds, or fails with `truncated` where the input ends before. Nothing may be peeked.
    pub(super) fn read_exact(&mut self, buffer: &mut [u8], truncated: impl Fn(u64) -> Error) -> Result<()> {
        debug_assert!(self.peeked.is_none(), "data is read past a block");
        let len = self.fill(buffer)?;
        self.offset += len as u64;
        if len < buffer.len() {
            return Err(truncated(self.offset));
        }
        Ok(())
    }

    /// Reads `len` bytes, and leaves out those up to the next block.
    pub(super) fn read_vec(&mut self, len: u64, truncated: impl Fn(u64) -> Error) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let start = bytes.len();
            let step = (len - start as u64).min(STEP as u64);
            bytes.resize(start + step as usize, 0);
            self.read_exact(&mut bytes[start..], &truncated)?;
        }
        self.skip(len.next_multiple_of(BLOCK as u64) - len, truncated)?;
        Ok(bytes)
    }

    /// Leaves out `len` bytes, a block that was peeked among them.
    pub(super) fn skip(&mut self, mut len: u64, truncated: impl Fn(u64) -> Error) -> Result<()> {
        if len >= BLOCK as u64 && self.peeked.take().is_some() {
            self.offset += BLOCK as u64;
            len -= BLOCK as u64;
        }
        while len > 0 {
            let available = self.available()?.len() as u64;
            let step = available.min(len);
            self.input.consume(step as usize);
            self.offset += step;
            len -= step;
            if step == 0 {
                return Err(truncated(self.offset));
            }
        }
        Ok(())
    }

    /// Whether there is nothing more.
    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.peeked.is_none() && self.available()?.is_empty())
    }

    /// Reads all that is left, and says whether it is nothing but zeros.
    pub(super) fn drain_zeros(&mut self) -> Result<bool> {
        loop {
            let bytes = self.available()?;
            let len = bytes.len();
            if len == 0 {
                return Ok(true);
            }
            if let Some(at) = bytes.iter().position(|&byte| byte != 0) {
                self.offset += at as u64;
                return Ok(false);
            }
            self.input.consume(len);
            self.offset += len as u64;
        }
    }

    /// What the input has, nothing at its end.
    fn available(&mut self) -> Result<&[u8]> {
        while let Err(error) = self.input.fill_buf() {
            if error.kind() != ErrorKind::Interrupted {
                return Err(read_error(error));
            }
        }
        Ok(self.input.buffer())
    }

    /// Reads until `buffer` is full or the input ends; returns how much that is.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut len = 0;
        while len < buffer.len() {
            match self.input.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        Ok(len)
    }
}
