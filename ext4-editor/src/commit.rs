//! How a change gets to the disk: through the [journal](crate::journal), or without it.

use std::collections::HashMap;

use block::{Error, ErrorKind, Result};

use crate::Editor;
use crate::editor::put_superblock;
use crate::journal::Log;
use crate::options::Durability;
use crate::staging::Blocks;
use crate::superblock::{COMPATIBLE, OFFSET, SECTOR, SIZE, Superblock};

/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;

impl Editor {
    /// Makes all changes durable. It can be gone on with, in another change.
    ///
    /// # Errors
    /// `InvalidInput` for a change that is larger than the journal: nothing was written then, and the editor is to be
    /// dropped. `Io`, `NoSpace`: the filesystem has all of the change or nothing of it, as its journal says, and is not
    /// to be changed through this editor any more.
    pub fn commit(&mut self) -> Result<()> {
        if self.failed {
            return self.atomically(|_| Ok(()));
        }
        if self.staging.blocks().is_empty() {
            return Ok(());
        }
        let log = self.log()?;
        let seconds = self.options.time.secs;
        self.superblock.set_written(seconds);
        put_superblock(&self.staging, &self.superblock)?;
        let blocks = self.staging.blocks();
        let done = match (&log, self.options.durability) {
            (_, Durability::Expendable) => self.write_at_once(log.as_ref(), &blocks),
            (Some(log), _) if !log.fits(blocks.len()) => {
                let message = format!("a change of {} blocks is larger than the journal", blocks.len());
                let hint = "make it in several steps, or on a copy that may be lost (expendable)";
                return Err(Error::invalid(message).with_hint(hint));
            }
            (Some(log), _) => self.write_through(log, &blocks),
            (None, _) => self.write_marked(&blocks),
        };
        let done = done.and_then(|()| self.write_copies());
        self.failed = done.is_err();
        done?;
        self.copies.clear();
        self.staging.clear();
        self.freed = HashMap::new();
        self.taken.clear();
        self.clusters.clear();
        self.replayed.clear();
        self.has_settled = false;
        Ok(())
    }

    fn log(&self) -> Result<Option<Log>> {
        let log = Log::of(self)?;
        if log.is_none() && self.superblock.has(COMPATIBLE, 0x4) {
            let message = "the journal is on another device";
            return Err(Error::unsupported(message).with_hint("remove it with tune2fs -O ^has_journal"));
        }
        Ok(log)
    }

    fn write_at_once(&self, log: Option<&Log>, blocks: &Blocks) -> Result<()> {
        self.write_blocks(blocks, None)?;
        if let Some(log) = log.filter(|_| !self.replayed.is_empty()) {
            let (place, bytes) = log.emptied(true)?;
            self.write_block(place, &bytes)?;
        }
        self.device.flush()
    }

    /// Without a journal: what is found after a power cut says that it has to be checked.
    fn write_marked(&self, blocks: &Blocks) -> Result<()> {
        let mut marked = self.superblock.clone();
        marked.set_clean(false);
        self.write_superblock(&marked)?;
        self.device.flush()?;
        self.write_blocks(blocks, Some(&marked))?;
        self.device.flush()?;
        self.write_superblock(&self.superblock)?;
        self.device.flush()
    }

    fn write_through(&self, log: &Log, blocks: &Blocks) -> Result<()> {
        self.write_replayed(log)?;
        let mut marked = self.superblock.clone();
        marked.set_needs_recovery(true);
        let time = (self.options.time.secs, self.options.time.nanos);
        let mut transaction = log.transaction(blocks, time)?;
        let commit = transaction.pop();
        let transaction = transaction
            .into_iter()
            .map(|(place, bytes)| (place, bytes.into()));
        self.write_blocks(&transaction.collect(), None)?;
        // The superblock as it is, but for the mark: its counts are in the transaction.
        let mut before = Superblock::new(&self.superblock_on_disk()?);
        before.set_needs_recovery(true);
        self.write_superblock(&before)?;
        let (place, bytes) = log.started()?;
        self.write_block(place, &bytes)?;
        self.device.flush()?;
        if let Some((place, bytes)) = commit {
            self.write_block(place, &bytes)?;
        }
        self.device.flush()?;

        if self.copies.is_empty() {
            self.write_blocks(blocks, Some(&marked))?;
        } else {
            // It has grown, and a kernel looks at all descriptors before it looks at the journal.
            self.write_blocks(blocks, Some(&before))?;
            self.device.flush()?;
            self.write_superblock(&marked)?;
        }
        self.device.flush()?;
        let (place, bytes) = log.emptied(true)?;
        self.write_block(place, &bytes)?;
        self.write_superblock(&self.superblock)?;
        self.device.flush()
    }

    /// Copies, of use only when all else is lost, need no journal. They come last, so that those of before are there till then.
    fn write_copies(&self) -> Result<()> {
        if self.copies.is_empty() {
            return Ok(());
        }
        for (block, bytes) in &self.copies {
            self.write_block(*block, bytes)?;
        }
        self.device.flush()
    }

    /// Does what the journal held when the filesystem was opened, so that the log can be used.
    fn write_replayed(&self, log: &Log) -> Result<()> {
        if self.replayed.is_empty() {
            return Ok(());
        }
        let size = self.layout().block_size();
        for (&block, bytes) in &self.replayed {
            if block == OFFSET / size {
                let at = (OFFSET % size) as usize;
                let mut superblock = [0; SIZE];
                superblock.copy_from_slice(&bytes[at..at + SIZE]);
                self.write_superblock(&Superblock::new(&superblock))?;
            } else {
                self.write_block(block, bytes)?;
            }
        }
        self.device.flush()?;
        let (place, bytes) = log.emptied(false)?;
        self.write_block(place, &bytes)?;
        self.device.flush()
    }

    fn superblock_on_disk(&self) -> Result<[u8; SIZE]> {
        let mut bytes = [0; SIZE];
        self.device.read_at(&mut bytes, OFFSET)?;
        Ok(bytes)
    }

    fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        let (first, second) = superblock.sectors(&self.superblock_on_disk()?);
        self.device.write_at(&first, OFFSET)?;
        if let Some(second) = second {
            self.device.flush()?;
            self.device.write_at(&second, OFFSET + SECTOR as u64)?;
        }
        Ok(())
    }

    fn write_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        let offset = block.checked_mul(self.layout().block_size());
        let offset = offset.ok_or_else(|| Error::new(ErrorKind::OutOfBounds, "no disk has such a block"))?;
        self.device.write_at(bytes, offset)
    }

    /// Writes blocks where they belong, neighbours together; the superblock, alone in its part of a block, as given.
    fn write_blocks(&self, blocks: &Blocks, superblock: Option<&Superblock>) -> Result<()> {
        let size = self.layout().block_size();
        let mut start = 0;
        let mut gathered: Vec<u8> = Vec::new();
        for (&block, bytes) in blocks {
            if let Some(superblock) = superblock.filter(|_| block == OFFSET / size) {
                self.write_superblock(superblock)?;
                continue;
            }
            let end = start + gathered.len() as u64 / size;
            if block != end || gathered.len() >= PIECE {
                if !gathered.is_empty() {
                    self.write_block(start, &gathered)?;
                }
                start = block;
                gathered.clear();
            }
            gathered.extend_from_slice(bytes);
        }
        if gathered.is_empty() {
            return Ok(());
        }
        self.write_block(start, &gathered)
    }
}
