//! Runs of a disk in one state.

/// What a run of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentState {
    /// Holds data that must be read.
    Data,
    /// Reads as zeros, by an explicit statement of some layer (a zero cluster, a hole in a raw file).
    Zero,
    /// Stated by no layer. Reads as zeros from a whole chain; in one layer, falls through to the backing.
    Hole,
    /// Holds data that must be read and decompressed.
    Compressed,
}

impl ExtentState {
    /// Whether the run reads as zeros without looking at it.
    pub fn reads_as_zero(self) -> bool {
        matches!(self, Self::Zero | Self::Hole)
    }
}

/// A run of a disk in one state, as found by [`BlockDevice::extent_at`](crate::BlockDevice::extent_at).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the run on the disk.
    pub offset: u64,
    /// Length in bytes; never 0 inside the disk.
    pub len: u64,
    /// The state all of the run is in.
    pub state: ExtentState,
    /// The layer that decides it: 0 is the device asked, 1 its backing, and so on.
    pub depth: u32,
    /// Where the run starts in that layer's file, where its bytes have a place there: data as it is, a raw hole, and
    /// room that is kept for what is zero, or stated by no layer, and need not read as such. `None` for what has no
    /// place of its own and for compressed data.
    pub host: Option<u64>,
}

impl Extent {
    /// One past the last byte of the run.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part of the run from `offset` on, `len` bytes at most. `offset` must lie in the run.
    #[must_use]
    pub fn clip(mut self, offset: u64, len: u64) -> Self {
        let skip = offset - self.offset;
        self.offset = offset;
        self.len = (self.len - skip).min(len);
        self.host = self.host.map(|host| host + skip);
        self
    }

    /// Whether `next` continues this run: adjacent, in the same state and layer, and adjacent in the file too
    /// where the run has a place there.
    pub fn continued_by(&self, next: &Self) -> bool {
        self.end() == next.offset
            && self.state == next.state
            && self.depth == next.depth
            && match (self.host, next.host) {
                (Some(here), Some(there)) => here + self.len == there,
                (None, None) => true,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Extent = Extent {
        offset: 100,
        len: 50,
        state: ExtentState::Data,
        depth: 0,
        host: Some(1000),
    };

    #[test]
    fn clip_moves_the_host_offset_along() {
        let part = RUN.clip(110, 10);
        assert_eq!((part.offset, part.len, part.host), (110, 10, Some(1010)));
        assert_eq!(RUN.clip(110, 1000).len, 40);
    }

    #[test]
    fn runs_join_only_when_adjacent_on_both_sides() {
        let next = |host| Extent {
            offset: 150,
            len: 1,
            host,
            ..RUN
        };
        assert!(RUN.continued_by(&next(Some(1050))));
        assert!(!RUN.continued_by(&next(Some(2000))));
        assert!(!RUN.continued_by(&next(None)));
    }
}
