//! Walking a disk run by run.

use std::ops::Range;

use block::{BlockDevice, Error, Extent, Result};

/// The runs of a part of a disk, in order, without gaps, each as long as it is: neighbours that continue each other
/// in state, layer and file are one.
///
/// After an error the walk is over.
#[derive(Debug)]
pub struct Extents<'a> {
    device: &'a dyn BlockDevice,
    offset: u64,
    end: u64,
    pending: Option<Extent>,
}

impl<'a> Extents<'a> {
    /// Walks the whole disk.
    pub fn new(device: &'a dyn BlockDevice) -> Self {
        Self::of(device, 0..device.size())
    }

    /// Walks the part of the disk in `range`.
    pub fn of(device: &'a dyn BlockDevice, range: Range<u64>) -> Self {
        let end = range.end.min(device.size());
        Self {
            device,
            offset: range.start.min(end),
            end,
            pending: None,
        }
    }

    fn step(&mut self) -> Result<Option<Extent>> {
        if self.offset == self.end {
            return Ok(None);
        }
        let extent = extent_at(self.device, self.offset, self.end - self.offset)?;
        self.offset = extent.end();
        Ok(Some(extent))
    }

    fn advance(&mut self) -> Result<Option<Extent>> {
        let mut run = match self.pending.take() {
            Some(run) => run,
            None => match self.step()? {
                Some(run) => run,
                None => return Ok(None),
            },
        };
        while let Some(next) = self.step()? {
            if run.continued_by(&next) {
                run.len += next.len;
            } else {
                self.pending = Some(next);
                break;
            }
        }
        Ok(Some(run))
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.advance();
        if item.is_err() {
            self.offset = self.end;
            self.pending = None;
        }
        item.transpose()
    }
}

/// [`BlockDevice::extent_at`], held to its contract: a walk must move on and never leave the range.
pub(crate) fn extent_at(device: &dyn BlockDevice, offset: u64, len: u64) -> Result<Extent> {
    let extent = device.extent_at(offset, len)?;
    if extent.offset != offset || extent.len == 0 || extent.len > len {
        let format = device.info().format;
        return Err(Error::unsupported(format!(
            "the {format} driver answers a query for {len} bytes with {} bytes at {:#x}",
            extent.len, extent.offset
        ))
        .with_offset(offset));
    }
    Ok(extent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PAGE, Toy};
    use block::ExtentState::{Data, Hole, Zero};
    use block::ZeroMode;

    #[test]
    fn neighbours_join_and_nothing_is_left_out() {
        let toy = Toy::new(10 * PAGE + 100);
        toy.write_at(&[1; 2 * PAGE as usize], PAGE).unwrap();
        toy.zero_at(5 * PAGE, 3 * PAGE, ZeroMode::Unmap).unwrap();
        let runs: Vec<_> = Extents::new(&toy)
            .map(|run| run.map(|run| (run.offset / PAGE, run.len, run.state)))
            .collect::<Result<_>>()
            .unwrap();
        assert_eq!(
            runs,
            [
                (0, PAGE, Hole),
                (1, 2 * PAGE, Data),
                (3, 2 * PAGE, Hole),
                (5, 3 * PAGE, Zero),
                (8, 2 * PAGE + 100, Hole),
            ]
        );
    }

    #[test]
    fn a_part_ends_where_it_should() {
        let toy = Toy::new(4 * PAGE);
        let runs: Vec<_> = Extents::of(&toy, 100..PAGE + 1).collect::<Result<_>>().unwrap();
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].offset, runs[0].len), (100, PAGE + 1 - 100));
        assert_eq!(Extents::of(&toy, 9 * PAGE..10 * PAGE).count(), 0);
        assert_eq!(Extents::new(&Toy::new(0)).count(), 0);
    }

    #[test]
    fn an_error_ends_the_walk() {
        let toy = Toy::new(4 * PAGE).failing_extents_from(2 * PAGE);
        let mut walk = Extents::new(&toy);
        assert!(walk.next().unwrap().is_err());
        assert!(walk.next().is_none());
    }
}
