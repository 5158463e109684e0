//! The table ("FAT Data Structure"): for each cluster, the one that follows it in its file. Two of them, the same.

use block::Result;

use crate::boot_sector::MEDIA;
use crate::disk::Disk;
use crate::layout::{ENTRY_SIZE, Layout, TABLES};

/// Marks the last cluster of a file. The upper four bits of an entry are not part of it.
const END: u32 = 0x0FFF_FFFF;

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// Writes both tables, cluster by cluster.
#[derive(Debug)]
pub(crate) struct TableWriter<'a, 's> {
    disk: &'a Disk<'s>,
    layout: Layout,
    /// Bytes that were written, of each table.
    written: u64,
    bytes: Vec<u8>,
}

impl<'a, 's> TableWriter<'a, 's> {
    pub(crate) fn new(disk: &'a Disk<'s>, layout: Layout) -> Self {
        let mut bytes = Vec::with_capacity(PIECE);
        // No clusters: the media, and bits that say that the volume was put away well.
        bytes.extend((0x0FFF_FF00 | u32::from(MEDIA)).to_le_bytes());
        bytes.extend(END.to_le_bytes());
        Self {
            disk,
            layout,
            written: 0,
            bytes,
        }
    }

    /// The cluster that comes next.
    fn next(&self) -> u32 {
        ((self.written + self.bytes.len() as u64) / ENTRY_SIZE) as u32
    }

    /// So many clusters from the next on, one after the other; then the file goes on elsewhere, or ends.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn run(&mut self, clusters: u32, then: Option<u32>) -> Result<()> {
        let end = self.next() + clusters;
        for following in self.next() + 1..=end {
            let entry = if following < end {
                following
            } else {
                then.unwrap_or(END)
            };
            self.bytes.extend(entry.to_le_bytes());
            if self.bytes.len() >= PIECE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for number in 0..TABLES {
            self.disk
                .write(self.layout.table(number) + self.written, &self.bytes)?;
        }
        self.written += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }

    /// All other clusters are free.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.flush()?;
        for number in 0..TABLES {
            let rest = self.layout.table_len() - self.written;
            self.disk
                .zero_new(self.layout.table(number) + self.written, rest)?;
        }
        Ok(())
    }
}
