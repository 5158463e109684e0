//! Cutting the source into chunks.

use std::ops::Range;

use block::{BlockDevice, Extent, Result};

use super::{Before, ConvertOptions};
use crate::buffer::Buffer;
use crate::extents::extent_at;
use crate::offload::Offloading;

/// The longest run that is dealt with at once: progress and cancellation come between two.
const LONGEST: u64 = 1 << 30;

/// The layer number of what the target holds already, where the source is what the target shows.
pub(crate) const IN_TARGET: u32 = u32::MAX;

/// What is to be done about a run of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Read it, and see.
    Data,
    /// Data that the host is asked to put there.
    Host,
    /// Make the target read as zeros.
    Zero,
    /// Nothing: the target reads the same already.
    Same,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) kind: Kind,
    /// Of the disk.
    pub(super) range: Range<u64>,
}

/// A part of the source: `len` bytes in runs without gaps. Either no longer than a full chunk, or free of data that is to
/// be read, and then of any length.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Counts from 0 without gaps.
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) runs: Vec<Run>,
    /// Holds the source from `offset` on, where it could be read only in order.
    pub(super) read: Option<Buffer>,
}

/// Hands out the chunks of a disk in order.
#[derive(Debug)]
pub(super) struct Walker<'a> {
    source: &'a dyn BlockDevice,
    options: &'a ConvertOptions,
    offloading: Option<&'a Offloading<'a>>,
    size: u64,
    /// Bytes in a full chunk; a multiple of `unit`.
    chunk: u64,
    /// Chunks, and data in them, start and end at multiples of this.
    unit: u64,
    offset: u64,
    number: u64,
    /// The run at `offset`, or what is left of it.
    current: Option<Run>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(
        source: &'a dyn BlockDevice,
        options: &'a ConvertOptions,
        offloading: Option<&'a Offloading<'a>>,
        chunk: u64,
        unit: u64,
    ) -> Self {
        Self {
            source,
            options,
            offloading,
            size: source.size(),
            chunk,
            unit,
            offset: 0,
            number: 0,
            current: None,
        }
    }

    /// `None` at the end of the disk.
    pub(super) fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        if self.offset == self.size {
            return Ok(None);
        }
        let start = self.offset;
        let first = self.run()?;
        let whole = if first.range.end == self.size {
            self.size
        } else {
            first.range.end - first.range.end % self.unit
        };
        let end = if first.kind != Kind::Data && whole >= start + self.chunk {
            whole
        } else {
            (start - start % self.chunk + self.chunk).min(self.size)
        };
        let mut runs = Vec::new();
        while self.offset < end {
            let run = self.run()?;
            let range = run.range.start..run.range.end.min(end);
            self.offset = range.end;
            let kind = run.kind;
            self.current = (run.range.end > end).then_some(Run {
                kind,
                range: end..run.range.end,
            });
            append(&mut runs, Run { kind, range });
        }
        if self.unit > 1 {
            runs = widen(runs, self.unit, end);
        }
        self.number += 1;
        Ok(Some(Chunk {
            number: self.number - 1,
            offset: start,
            len: end - start,
            runs,
            read: None,
        }))
    }

    /// The run at the current offset.
    fn run(&mut self) -> Result<Run> {
        if let Some(run) = &self.current {
            return Ok(run.clone());
        }
        // Zeros have to be told apart where the target begins to read as zeros by itself.
        let below = self
            .options
            .before
            .end()
            .checked_sub(self.offset)
            .filter(|len| *len > 0);
        let len = (self.size - self.offset)
            .min(LONGEST)
            .min(below.unwrap_or(u64::MAX));
        let extent = extent_at(self.source, self.offset, len)?;
        let run = Run {
            kind: self.kind(&extent, below.is_some()),
            range: extent.offset..extent.end(),
        };
        self.current = Some(run.clone());
        Ok(run)
    }

    /// What is to be done about a run; `covered` where the target may read as anything but zeros.
    fn kind(&self, extent: &Extent, covered: bool) -> Kind {
        match &self.options.before {
            _ if extent.depth == IN_TARGET => Kind::Same,
            Before::Layers { depth, .. } if extent.depth >= *depth => Kind::Same,
            _ if self.offloading.is_some_and(|host| host.may_take_over(extent)) => Kind::Host,
            _ if !extent.state.reads_as_zero() || self.options.sparse == 0 => Kind::Data,
            _ if covered => Kind::Zero,
            _ => Kind::Same,
        }
    }
}

/// Adds a run, joining it to the one before where that is of the same kind.
fn append(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.kind == run.kind => last.range.end = run.range.end,
        _ => runs.push(run),
    }
}

/// Widens data to whole units, at the cost of the runs around it. The runs start at a multiple of `unit`, and end
/// at `end`, which is one too or the end of the disk.
fn widen(runs: Vec<Run>, unit: u64, end: u64) -> Vec<Run> {
    let mut widened: Vec<Run> = Vec::with_capacity(runs.len());
    // The end of the last data.
    let mut taken = 0;
    for Run { kind, range } in runs {
        let mut start = range.start.max(taken);
        if kind == Kind::Data {
            start = (range.start - range.start % unit).max(taken);
            while let Some(last) = widened.pop_if(|last| last.range.end > start) {
                if last.range.start < start {
                    append(
                        &mut widened,
                        Run {
                            kind: last.kind,
                            range: last.range.start..start,
                        },
                    );
                }
            }
            taken = range.end.next_multiple_of(unit).min(end);
            append(
                &mut widened,
                Run {
                    kind,
                    range: start..taken,
                },
            );
        } else if start < range.end {
            append(
                &mut widened,
                Run {
                    kind,
                    range: start..range.end,
                },
            );
        }
    }
    widened
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Data, Same, Zero};

    fn runs(list: &[(Kind, Range<u64>)]) -> Vec<Run> {
        let run = |(kind, range): &(Kind, Range<u64>)| Run {
            kind: *kind,
            range: range.clone(),
        };
        list.iter().map(run).collect()
    }

    #[test]
    fn data_takes_whole_units() {
        let narrow = [
            (Zero, 64..70),
            (Same, 70..72),
            (Data, 72..75),
            (Zero, 75..77),
            (Data, 77..78),
            (Zero, 78..100),
        ];
        assert_eq!(
            widen(runs(&narrow), 8, 100),
            runs(&[(Zero, 64..70), (Same, 70..72), (Data, 72..80), (Zero, 80..100)])
        );
        assert_eq!(
            widen(runs(&narrow), 16, 100),
            runs(&[(Data, 64..80), (Zero, 80..100)])
        );
        assert_eq!(widen(runs(&narrow), 64, 100), runs(&[(Data, 64..100)]));
    }

    #[test]
    fn what_holds_no_data_stays() {
        let list = [(Zero, 0..5), (Same, 5..9)];
        assert_eq!(widen(runs(&list), 8, 9), runs(&list));
    }
}
