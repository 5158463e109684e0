//! Block and inode bitmaps ("Block and Inode Bitmaps"): a set bit is in use, the lowest of a byte comes first.

use std::ops::Range;

pub(crate) fn is_set(bits: &[u8], bit: u32) -> bool {
    bits[bit as usize / 8] & 1 << (bit % 8) != 0
}

pub(crate) fn fill(bits: &mut [u8], range: Range<u32>, value: bool) {
    for bit in range {
        let mask = 1 << (bit % 8);
        let byte = &mut bits[bit as usize / 8];
        *byte = if value { *byte | mask } else { *byte & !mask };
    }
}

/// The first clear bit from `from` on, below `end`.
pub(crate) fn first_clear(bits: &[u8], from: u32, end: u32) -> Option<u32> {
    next(bits, from, end, 0xFF, |bits, bit| !is_set(bits, bit))
}

/// The runs of clear bits below `end`, in order.
pub(crate) fn clear_runs(bits: &[u8], end: u32) -> impl Iterator<Item = Range<u32>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = first_clear(bits, at, end)?;
        at = next(bits, start, end, 0, is_set).unwrap_or(end);
        Some(start..at)
    })
}

/// The first bit that `found` likes; bytes that are `skip` have none.
fn next(bits: &[u8], from: u32, end: u32, skip: u8, found: impl Fn(&[u8], u32) -> bool) -> Option<u32> {
    let mut bit = from;
    while bit < end {
        if bit.is_multiple_of(8) && bits[bit as usize / 8] == skip {
            bit += 8;
        } else if found(bits, bit) {
            return Some(bit);
        } else {
            bit += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_across_bytes_and_end_where_the_group_does() {
        let mut bits = vec![0; 8];
        fill(&mut bits, 0..3, true);
        fill(&mut bits, 9..10, true);
        fill(&mut bits, 16..40, true);
        let runs: Vec<_> = clear_runs(&bits, 50).collect();
        assert_eq!(runs, [3..9, 10..16, 40..50]);
        assert_eq!(first_clear(&bits, 16, 40), None);
        fill(&mut bits, 0..64, true);
        assert_eq!(clear_runs(&bits, 64).count(), 0);
    }
}
