//! The file that is looked at: reads that never reach past its end.

use std::sync::Arc;

use bitvec::vec::BitVec;
use block::{Result, Storage};

/// Bytes that are looked through at once.
const PIECE: u64 = 1 << 20;

/// A file, and its length when it was opened.
#[derive(Debug)]
pub(crate) struct File {
    storage: Arc<dyn Storage>,
    len: u64,
}

impl File {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Result<Self> {
        let len = storage.len()?;
        Ok(Self { storage, len })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The `N` bytes at `offset`, if the file has them.
    pub(crate) fn bytes<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        if offset.checked_add(N as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        self.storage.read_exact_at(&mut bytes, offset)?;
        Ok(Some(bytes))
    }

    /// As many of the `len` bytes at `offset` as the file has.
    pub(crate) fn some(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let len = self.len.saturating_sub(offset).min(len as u64);
        let mut bytes = vec![0; len as usize];
        self.storage.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Hands the bytes of `start..end` to `each` in pieces of whole multiples of 512, until it says `false`.
    pub(crate) fn pieces(
        &self,
        start: u64,
        end: u64,
        mut each: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<()> {
        let end = end.min(self.len);
        let mut buffer = Vec::new();
        let mut at = start;
        while at < end {
            let run = self.storage.host_extent(at, end - at)?;
            let len = run.len.clamp(1, end - at);
            if run.data {
                let len = len.min(PIECE);
                buffer.resize(len as usize, 0);
                self.storage.read_exact_at(&mut buffer, at)?;
                if !each(at, &buffer) {
                    return Ok(());
                }
                at += len;
            } else {
                at += len;
            }
        }
        Ok(())
    }

    /// The first byte from `start` on that is not zero.
    pub(crate) fn data_from(&self, start: u64) -> Result<Option<u64>> {
        let mut found = None;
        self.pieces(start, self.len, |at, piece| {
            found = piece
                .iter()
                .position(|byte| *byte != 0)
                .map(|place| at + place as u64);
            found.is_none()
        })?;
        Ok(found)
    }
}

/// Places in a file that may be taken once: a bit for each unit of it.
#[derive(Debug)]
pub(crate) struct Places {
    taken: BitVec,
    unit: u64,
}

impl Places {
    /// None is taken. `unit` is what places are multiples of.
    pub(crate) fn new(file: &File, unit: u64) -> Self {
        Self {
            taken: BitVec::repeat(false, (file.len() / unit) as usize + 1),
            unit,
        }
    }

    /// Takes the place at `offset`. `false` if it is not in the file, between two places, or taken.
    pub(crate) fn take(&mut self, offset: u64) -> bool {
        let place = (offset / self.unit) as usize;
        let free = self.taken.get(place).is_some_and(|taken| !*taken);
        if free {
            self.taken.set(place, true);
        }
        free && offset.is_multiple_of(self.unit)
    }
}
