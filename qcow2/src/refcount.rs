//! Refcounts inside a refcount block ("Refcount block entry"): 1 to 64 bits wide, big-endian from a byte upwards,
//! and counted from the least significant bit of a byte below that.

use std::ops::Range;

/// The `index`-th refcount of `block`, whose refcounts are `1 << order` bits wide.
pub(crate) fn read(block: &[u8], order: u32, index: usize) -> u64 {
    let bytes = |len: usize| &block[index * len..][..len];
    match order {
        0..=2 => {
            let (byte, shift, mask) = sub_byte(order, index);
            u64::from(block[byte] >> shift & mask)
        }
        3 => u64::from(block[index]),
        4 => u64::from(u16::from_be_bytes(bytes(2).try_into().unwrap_or_default())),
        5 => u64::from(u32::from_be_bytes(bytes(4).try_into().unwrap_or_default())),
        _ => u64::from_be_bytes(bytes(8).try_into().unwrap_or_default()),
    }
}

/// Sets the `index`-th refcount of `block`. `value` must fit.
pub(crate) fn write(block: &mut [u8], order: u32, index: usize, value: u64) {
    if order < 3 {
        let (byte, shift, mask) = sub_byte(order, index);
        block[byte] = block[byte] & !(mask << shift) | (value as u8) << shift;
    } else {
        let len = 1 << (order - 3);
        block[index * len..][..len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }
}

/// The lowest and the highest of the refcounts `indexes`, of which there is one at least.
pub(crate) fn extremes(block: &[u8], order: u32, indexes: Range<usize>) -> (u64, u64) {
    let widen = |(low, high): (u64, u64), refcount: u64| (low.min(refcount), high.max(refcount));
    if order == 4 {
        // The usual width, for which the compiler finds wide instructions.
        let (low, high) = block[indexes.start * 2..indexes.end * 2]
            .chunks_exact(2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
            .fold((u16::MAX, 0), |(low, high), refcount| {
                (low.min(refcount), high.max(refcount))
            });
        return (low.into(), high.into());
    }
    indexes
        .map(|index| read(block, order, index))
        .fold((u64::MAX, 0), widen)
}

/// Changes the refcounts `indexes` by `by`, which leaves each in its range: ask [`extremes`] first.
pub(crate) fn add(block: &mut [u8], order: u32, indexes: Range<usize>, by: i64) {
    if order == 4 {
        for bytes in block[indexes.start * 2..indexes.end * 2].chunks_exact_mut(2) {
            let refcount = u16::from_be_bytes([bytes[0], bytes[1]]).wrapping_add(by as u16);
            bytes.copy_from_slice(&refcount.to_be_bytes());
        }
        return;
    }
    for index in indexes {
        let refcount = read(block, order, index).wrapping_add_signed(by);
        write(block, order, index, refcount);
    }
}

/// Which byte holds a refcount narrower than that, how far it is shifted there, and its mask.
fn sub_byte(order: u32, index: usize) -> (usize, u32, u8) {
    let bit = index << order;
    (bit / 8, (bit % 8) as u32, (1 << (1 << order)) - 1)
}

/// The first index from `from` on whose refcount is zero, or is not if `used`. `None` if there is none up to the
/// block's end.
pub(crate) fn find(block: &[u8], order: u32, from: usize, used: bool) -> Option<usize> {
    let count = (block.len() * 8) >> order;
    let per_word = 64usize >> order;
    let mut index = from;
    while index < count {
        if index.is_multiple_of(per_word) {
            // A word that can't hold what is looked for is passed over whole.
            let at = index / per_word * 8;
            if let Some(Ok(word)) = block
                .get(at..at + 8)
                .map(|bytes| bytes.try_into().map(u64::from_be_bytes))
            {
                let passes = if used {
                    word == 0
                } else {
                    !has_zero_field(word, order)
                };
                if passes {
                    index += per_word;
                    continue;
                }
            }
        }
        if (read(block, order, index) != 0) == used {
            return Some(index);
        }
        index += 1;
    }
    None
}

/// Whether any field of `1 << order` bits of `word` is zero. Never says no when there is one.
fn has_zero_field(word: u64, order: u32) -> bool {
    if order == 6 {
        return word == 0;
    }
    // One in the lowest bit of each field: the classic borrow trick ("Hacker's Delight", 6-1).
    let ones = u64::MAX / ((1 << (1u32 << order)) - 1);
    let tops = ones << ((1u32 << order) - 1);
    word.wrapping_sub(ones) & !word & tops != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_reads_what_it_wrote() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            let count = (512 * 8) >> order;
            let value = |i: usize| {
                (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & (u64::MAX >> (64 - (1u32 << order)))
            };
            for i in 0..count {
                write(&mut block, order, i, value(i));
            }
            for i in 0..count {
                assert_eq!(read(&block, order, i), value(i), "order {order} index {i}");
            }
        }
    }

    #[test]
    fn narrow_refcounts_count_from_the_least_significant_bit() {
        let mut block = [0; 8];
        write(&mut block, 0, 1, 1);
        write(&mut block, 1, 4, 3);
        assert_eq!(block[..2], [0b10, 0b11]);
    }

    #[test]
    fn a_range_is_changed_as_one_by_one() {
        for order in 0..=6 {
            let max = u64::MAX >> (64 - (1u32 << order));
            let mut block = vec![0; 512];
            let count = (512 * 8) >> order;
            for i in 0..count {
                write(&mut block, order, i, if i % 3 == 0 { max - 1 } else { 0 });
            }
            let before = block.clone();
            let range = 5..count - 3;
            assert_eq!(
                extremes(&block, order, range.clone()),
                (0, max - 1),
                "order {order}"
            );
            add(&mut block, order, range.clone(), 1);
            for i in 0..count {
                let expected = read(&before, order, i) + u64::from(range.contains(&i));
                assert_eq!(read(&block, order, i), expected, "order {order} index {i}");
            }
            add(&mut block, order, range, -1);
            assert_eq!(block, before, "order {order}");
        }
    }

    #[test]
    fn find_agrees_with_looking_at_each() {
        for order in 0..=6 {
            let count = (512 * 8) >> order;
            for seed in 1..50u64 {
                let mut block = vec![0; 512];
                for i in 0..count {
                    // Long runs of both kinds.
                    let used = ((i as u64 / (seed % 7 + 1)).wrapping_mul(seed) >> 2) % 5 != 0;
                    write(&mut block, order, i, u64::from(used));
                }
                for from in (0..count).step_by(3) {
                    for used in [false, true] {
                        let expected = (from..count).find(|i| (read(&block, order, *i) != 0) == used);
                        assert_eq!(
                            find(&block, order, from, used),
                            expected,
                            "order {order} from {from} {used}"
                        );
                    }
                }
            }
        }
    }
}
