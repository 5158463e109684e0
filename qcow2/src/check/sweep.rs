//! Tables that overlap: how many of them cover each part of the file.
//!
//! Nothing keeps a damaged image from naming one L1 table in 65,536 snapshots, or 65,536 that overlap. Walking each
//! would take for ever; instead every byte is visited once, and counts as often as it is covered.

use std::ops::Range;

/// A part of the file, and how many regions cover it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) range: Range<u64>,
    pub(super) times: u64,
}

/// Splits regions into segments that do not overlap, in ascending order. Two for each region at most.
pub(super) fn sweep(regions: &[Range<u64>]) -> Vec<Segment> {
    let mut bounds: Vec<(u64, bool)> = regions
        .iter()
        .filter(|region| !region.is_empty())
        .flat_map(|region| [(region.start, true), (region.end, false)])
        .collect();
    bounds.sort_unstable();
    let mut segments: Vec<Segment> = Vec::new();
    let (mut times, mut last) = (0u64, 0);
    for (at, begins) in bounds {
        if times > 0 && at > last {
            segments.push(Segment {
                range: last..at,
                times,
            });
        }
        last = at;
        if begins {
            times += 1;
        } else {
            times -= 1;
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn covers_as_often_as_the_regions_do(ends in prop::collection::vec((0u64..50, 0u64..50), 0..12)) {
            let regions: Vec<_> = ends.iter().map(|&(a, b)| a.min(b)..a.max(b)).collect();
            let segments = sweep(&regions);
            for at in 0..50 {
                let expected = regions.iter().filter(|region| region.contains(&at)).count() as u64;
                let found: Vec<_> = segments.iter().filter(|s| s.range.contains(&at)).collect();
                prop_assert!(found.len() <= 1);
                prop_assert_eq!(found.first().map_or(0, |s| s.times), expected);
            }
        }
    }
}
