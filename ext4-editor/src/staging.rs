//! The disk as it will be: blocks of metadata that were changed are in memory, over the disk as it is. Whoever reads
//! through it sees all changes, and the disk has none of them before they are written in one transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{BlockDevice, DeviceInfo, Error, Extent, Result, ZeroMode};

/// Bytes of metadata that are kept at most.
const LIMIT: usize = 256 << 20;

/// Blocks by their number.
pub(crate) type Blocks = BTreeMap<u64, Arc<[u8]>>;

#[derive(Debug, Default)]
struct State {
    blocks: Blocks,
    /// What the blocks that were changed since then were, while an operation may still fail.
    undo: Option<BTreeMap<u64, Option<Arc<[u8]>>>>,
}

/// Changed blocks over a device.
#[derive(Debug)]
pub(crate) struct Staging {
    device: Arc<dyn BlockDevice>,
    block_bits: u32,
    state: Mutex<State>,
}

impl Staging {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, block_bits: u32) -> Self {
        Self {
            device,
            block_bits,
            state: Mutex::default(),
        }
    }

    pub(crate) fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A whole block.
    ///
    /// # Errors
    /// `OutOfBounds`, `Corrupt`, `Io`.
    pub(crate) fn block(&self, block: u64) -> Result<Vec<u8>> {
        if let Some(bytes) = self.state().blocks.get(&block) {
            return Ok(bytes.to_vec());
        }
        let mut bytes = vec![0; 1 << self.block_bits];
        self.device.read_at(&mut bytes, block << self.block_bits)?;
        Ok(bytes)
    }

    /// Has a block be these bytes.
    ///
    /// # Errors
    /// `InvalidInput` where there are too many.
    pub(crate) fn put(&self, block: u64, bytes: Vec<u8>) -> Result<()> {
        let mut state = self.state();
        if (state.blocks.len() + 1) << self.block_bits > LIMIT {
            let message = format!("more than {} MiB of metadata change at once", LIMIT >> 20);
            return Err(Error::invalid(message).with_hint("commit what was done so far, and go on then"));
        }
        let before = state.blocks.insert(block, bytes.into());
        if let Some(undo) = &mut state.undo {
            undo.entry(block).or_insert(before);
        }
        Ok(())
    }

    /// From here on changes can be undone.
    pub(crate) fn begin(&self) {
        self.state().undo = Some(BTreeMap::new());
    }

    /// Undoes what was changed since [`begin`](Self::begin), or keeps it.
    pub(crate) fn end(&self, keep: bool) {
        let mut state = self.state();
        let undo = state.undo.take().unwrap_or_default();
        if keep {
            return;
        }
        for (block, before) in undo {
            match before {
                Some(bytes) => state.blocks.insert(block, bytes),
                None => state.blocks.remove(&block),
            };
        }
    }

    /// All changed blocks.
    pub(crate) fn blocks(&self) -> Blocks {
        self.state().blocks.clone()
    }

    /// Forgets all changes: they are on the disk.
    pub(crate) fn clear(&self) {
        self.state().blocks.clear();
    }
}

impl BlockDevice for Staging {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bits = self.block_bits;
        let end = offset.saturating_add(buf.len() as u64);
        let blocks = offset >> bits..end.div_ceil(1 << bits);
        let state = self.state();
        let mut changed = state.blocks.range(blocks.clone()).peekable();
        // Most reads are of a part of one block.
        if changed.peek().is_none() || blocks.end - blocks.start > 1 {
            self.device.read_at(buf, offset)?;
        }
        for (&block, bytes) in changed {
            let (from, to) = ((block << bits).max(offset), ((block + 1) << bits).min(end));
            let part = &bytes[(from - (block << bits)) as usize..(to - (block << bits)) as usize];
            buf[(from - offset) as usize..][..part.len()].copy_from_slice(part);
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Err(Error::read_only("zero"))
    }

    fn discard_at(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.device.extent_at(offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use block::{Access, MemStorage};

    use super::*;

    #[test]
    fn what_changes_at_once_is_256_mib_at_most() {
        let device = raw::Image::open(Arc::new(MemStorage::new()), Access::READ).unwrap();
        // Two blocks of 128 MiB, of which nothing has to be there.
        let staging = Staging::new(Arc::new(device), 27);
        (0..2).for_each(|block| staging.put(block, Vec::new()).unwrap());
        let error = staging.put(2, Vec::new()).unwrap_err();
        assert!(
            error.to_string().contains("more than 256 MiB of metadata"),
            "{error}"
        );
        assert_eq!(staging.blocks().len(), 2);
        staging.clear();
        staging.put(2, Vec::new()).unwrap();
    }
}
