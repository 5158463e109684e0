//! Where a file's data goes.

use std::ops::Range;

use block::{Result, Storage};

/// Where the bytes of a file that hold data belong in the storage. It is a plain value: any thread may write there.
///
/// Bytes of whole blocks that the file's data does not cover read as zeros already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    pub(crate) runs: Vec<PlacedRun>,
}

/// A run of a file's bytes that lie side by side in the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedRun {
    /// Where it starts in the file: at a block's start.
    pub file_offset: u64,
    /// Where it starts in the storage.
    pub storage_offset: u64,
    /// Bytes, up to the end of a block or of the file.
    pub len: u64,
}

impl Placement {
    /// The runs, in order of the file.
    pub fn runs(&self) -> &[PlacedRun] {
        &self.runs
    }

    /// The places of some of the file's bytes, in order: each where it is in the storage, and which of the file's it is.
    /// What is in a hole is left out.
    pub fn places(&self, bytes: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
        let first = self
            .runs
            .partition_point(|run| run.file_offset + run.len <= bytes.start);
        self.runs[first..]
            .iter()
            .take_while(move |run| run.file_offset < bytes.end)
            .map(move |run| {
                let start = bytes.start.max(run.file_offset);
                let end = bytes.end.min(run.file_offset + run.len);
                (run.storage_offset + (start - run.file_offset), start..end)
            })
    }

    /// Writes bytes of the file, from `file_offset` on. What is in a hole is left out.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub fn write(&self, storage: &dyn Storage, bytes: &[u8], file_offset: u64) -> Result<()> {
        for (offset, range) in self.places(file_offset..file_offset + bytes.len() as u64) {
            let these = (range.start - file_offset) as usize..(range.end - file_offset) as usize;
            storage.write_all_at(&bytes[these], offset)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_where_their_run_is_and_those_of_holes_nowhere() {
        let run = |file_offset, storage_offset, len| PlacedRun {
            file_offset,
            storage_offset,
            len,
        };
        let placement = Placement {
            runs: vec![run(0, 100, 10), run(10, 300, 10), run(40, 200, 5)],
        };
        let places: Vec<_> = placement.places(8..43).collect();
        assert_eq!(places, [(108, 8..10), (300, 10..20), (200, 40..43)]);
        assert_eq!(placement.places(20..40).count(), 0);
    }
}
