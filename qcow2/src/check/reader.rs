//! Reading tables off a file that may be mostly hole.
//!
//! A damaged file of a few blocks can claim gigabytes of tables in its holes. They are all zero, which means that
//! nothing is there, so holes are skipped and the time a check takes follows what the file holds.

use block::{Result, Storage};

/// Largest read in bytes.
const PIECE: u64 = 1 << 20;
/// Runs of data are widened to multiples of this, so that no entry is cut in two.
const GRAIN: u64 = 512;

/// Reads tables in pieces, skipping holes. Quick when tables are asked for in file order.
#[derive(Debug)]
pub(super) struct TableReader<'a> {
    storage: &'a dyn Storage,
    file_len: u64,
    /// The run of the file last met: start, end, and whether it is data.
    run: (u64, u64, bool),
    buffer: Vec<u8>,
}

impl<'a> TableReader<'a> {
    pub(super) fn new(storage: &'a dyn Storage, file_len: u64) -> Self {
        Self {
            storage,
            file_len,
            run: (0, 0, false),
            buffer: Vec::new(),
        }
    }

    /// Hands the data in `start..end` to `each`, in pieces with their offsets. What is left out is zero. `start`
    /// is a multiple of 512, and so is every piece's offset; lengths are multiples of 16 unless `end` cuts them.
    pub(super) fn read(
        &mut self,
        start: u64,
        end: u64,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let end = end.min(self.file_len.next_multiple_of(GRAIN));
        let mut at = start;
        while at < end {
            let (run_end, data) = self.run_at(at)?;
            let piece_end = run_end.min(end);
            if data {
                let len = PIECE.min(piece_end - at);
                let mut buffer = std::mem::take(&mut self.buffer);
                buffer.resize(len as usize, 0);
                self.storage.read_exact_at(&mut buffer, at)?;
                each(at, &buffer)?;
                self.buffer = buffer;
                at += len;
            } else {
                at = piece_end;
            }
        }
        Ok(())
    }

    /// The end of the run that `at` lies in, and whether it is data.
    fn run_at(&mut self, at: u64) -> Result<(u64, bool)> {
        let (start, end, data) = self.run;
        if (start..end).contains(&at) {
            return Ok((end, data));
        }
        let extent = self
            .storage
            .host_extent(at, self.file_len.saturating_sub(at).max(1))?;
        let end = at.saturating_add(extent.len.max(1));
        // The grain that a hole begins or ends in counts as data.
        self.run = if extent.data || end - end % GRAIN <= at {
            (at, end.next_multiple_of(GRAIN), true)
        } else {
            (at, end - end % GRAIN, false)
        };
        Ok((self.run.1, self.run.2))
    }
}

#[cfg(test)]
mod tests {
    use block::{MemStorage, Storage};

    use super::*;

    #[test]
    fn visits_all_data_and_no_holes() {
        let storage = MemStorage::new();
        storage.write_all_at(&[1; 100], 8192).unwrap();
        storage.write_all_at(&[2; 10], 1 << 50).unwrap();
        let mut reader = TableReader::new(&storage, storage.len().unwrap());
        let (mut bytes, mut sum) = (0, 0);
        reader
            .read(512, u64::MAX, |at, piece| {
                assert_eq!(at % 512, 0);
                bytes += piece.len();
                sum += piece.iter().map(|&byte| u64::from(byte)).sum::<u64>();
                Ok(())
            })
            .unwrap();
        assert_eq!(sum, 120);
        assert!(bytes < 32 << 10, "{bytes}");
    }
}
