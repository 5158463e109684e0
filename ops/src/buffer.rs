//! Buffers that are used again.

use std::ops::{Deref, DerefMut};

use block::{Error, ErrorKind, Result};

/// The alignment that direct I/O on any host asks of memory.
const ALIGNMENT: usize = 4096;

/// A buffer at an address that direct I/O can use as it is. Its contents are whatever was there before.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Self {
        Self::within(vec![0; len + ALIGNMENT], len)
    }

    /// The same, of any length.
    ///
    /// # Errors
    /// `Io` where there is no memory for it.
    pub(crate) fn try_new(len: usize) -> Result<Self> {
        let all = len.saturating_add(ALIGNMENT);
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(all)
            .map_err(|_| Error::new(ErrorKind::Io, format!("there is no memory for {len} bytes")))?;
        bytes.resize(all, 0);
        Ok(Self::within(bytes, len))
    }

    fn within(bytes: Vec<u8>, len: usize) -> Self {
        let start = bytes.as_ptr().addr().next_multiple_of(ALIGNMENT) - bytes.as_ptr().addr();
        Self { bytes, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_as_long_as_asked() {
        for len in [1, 4096, 1 << 20] {
            let buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
        }
    }
}
