//! Where a file's data goes.

use std::ops::Range;

use block::{Result, Storage, is_zero};

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
    /// The storage reads as zeros there already.
    pub zeroed: bool,
}

impl Placement {
    /// The runs, in order of the file.
    pub fn runs(&self) -> &[PlacedRun] {
        &self.runs
    }

    /// The places of some of the file's bytes, in order: each where it is in the storage, and which of the file's it is.
    /// What is in a hole is left out.
    pub fn places(&self, bytes: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
        self.parts(bytes).map(|part| {
            let file = part.file_offset..part.file_offset + part.len;
            (part.storage_offset, file)
        })
    }

    /// The parts of the runs that these of the file's bytes are in.
    fn parts(&self, bytes: Range<u64>) -> impl Iterator<Item = PlacedRun> {
        let first = self
            .runs
            .partition_point(|run| run.file_offset + run.len <= bytes.start);
        self.runs[first..]
            .iter()
            .take_while(move |run| run.file_offset < bytes.end)
            .map(move |run| {
                let start = bytes.start.max(run.file_offset);
                let end = bytes.end.min(run.file_offset + run.len);
                PlacedRun {
                    file_offset: start,
                    storage_offset: run.storage_offset + (start - run.file_offset),
                    len: end - start,
                    zeroed: run.zeroed,
                }
            })
    }

    /// Writes bytes of the file, from `file_offset` on. What is in a hole is left out, and so are zeros where there are
    /// some already.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub fn write(&self, storage: &dyn Storage, bytes: &[u8], file_offset: u64) -> Result<()> {
        for part in self.parts(file_offset..file_offset + bytes.len() as u64) {
            let start = (part.file_offset - file_offset) as usize;
            let bytes = &bytes[start..start + part.len as usize];
            if part.zeroed {
                write_nonzero(storage, bytes, part.storage_offset)?;
            } else {
                storage.write_all_at(bytes, part.storage_offset)?;
            }
        }
        Ok(())
    }
}

/// Writes bytes without the pages of zeros among them.
fn write_nonzero(storage: &dyn Storage, bytes: &[u8], offset: u64) -> Result<()> {
    const PAGE: usize = 4096;
    let mut start = 0;
    let mut at = 0;
    for page in bytes.chunks(PAGE) {
        if is_zero(page) {
            if start < at {
                storage.write_all_at(&bytes[start..at], offset + start as u64)?;
            }
            start = at + page.len();
        }
        at += page.len();
    }
    if start < at {
        storage.write_all_at(&bytes[start..at], offset + start as u64)?;
    }
    Ok(())
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
            zeroed: false,
        };
        let placement = Placement {
            runs: vec![run(0, 100, 10), run(10, 300, 10), run(40, 200, 5)],
        };
        let places: Vec<_> = placement.places(8..43).collect();
        assert_eq!(places, [(108, 8..10), (300, 10..20), (200, 40..43)]);
        assert_eq!(placement.places(20..40).count(), 0);
    }

    #[test]
    fn zeros_are_written_only_where_there_are_none() {
        let bytes = [vec![0; 5000], vec![1; 5000], vec![0; 10_000], vec![2; 1]].concat();
        let written = |zeroed| {
            let storage = block::MemStorage::new();
            storage.write_all_at(&vec![9; 20_001], 4096).unwrap();
            let run = PlacedRun {
                file_offset: 0,
                storage_offset: 4096,
                len: 20_001,
                zeroed,
            };
            let placement = Placement { runs: vec![run] };
            placement.write(&storage, &bytes, 0).unwrap();
            storage.to_vec()[4096..].to_vec()
        };
        assert!(written(false) == bytes);
        let expected: Vec<u8> = (0..20_001)
            .map(|at| match bytes[at] {
                0 if at < 4096 || (12_288..16_384).contains(&at) => 9,
                byte => byte,
            })
            .collect();
        assert!(written(true) == expected);
    }
}
