//! Counting what a copy of a disk would take.

use block::{BlockDevice, Result};

use crate::Control;
use crate::extents::extent_at;

/// How many units of `unit` bytes of the disk hold data, in whole or in part, as far as its extents tell without
/// reading: what an image of that cluster size would have to allocate.
///
/// # Errors
/// As [`BlockDevice::extent_at`]; `Interrupted`.
pub fn data_units(device: &dyn BlockDevice, unit: u64, control: &Control<'_>) -> Result<u64> {
    let size = device.size();
    let (mut offset, mut units) = (0, 0);
    // First unit that is not counted yet.
    let mut uncounted = 0;
    while offset < size {
        control.check()?;
        let extent = extent_at(device, offset, size - offset)?;
        offset = extent.end();
        if !extent.state.reads_as_zero() {
            let first = (extent.offset / unit).max(uncounted);
            let end = extent.end().div_ceil(unit);
            units += end.saturating_sub(first);
            uncounted = uncounted.max(end);
        }
        control.report(offset, size);
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PAGE, Toy};

    #[test]
    fn a_unit_counts_once() {
        let toy = Toy::new(64 * PAGE + 512);
        let count = |unit| data_units(&toy, unit, &Control::unwatched()).unwrap();
        assert_eq!(count(16 * PAGE), 0);
        toy.write_at(&[1], 0).unwrap();
        toy.write_at(&[1], 3 * PAGE).unwrap();
        toy.write_at(&[1; 100], 16 * PAGE - 50).unwrap();
        toy.write_at(&[1], 64 * PAGE + 511).unwrap();
        assert_eq!(count(16 * PAGE), 3);
        assert_eq!(count(PAGE), 5);
        assert_eq!(count(512), 8 + 8 + 16 + 1);
    }
}
