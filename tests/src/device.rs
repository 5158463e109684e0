//! Whether a disk reads as it must.

use block::test_utils::Rng;
use block::{BlockDevice, Storage};
use ops::Extents;

/// Disks up to this many bytes are read whole.
const READ_WHOLE: u64 = 24 << 20;

/// Most bytes of one read.
const MOST: u64 = 300 << 10;

/// Fails unless `device` reads as `expected`, with requests of random lengths. Of a large disk, everything is read
/// that either says is not zero, and some of the rest.
pub fn assert_reads_as(device: &dyn BlockDevice, expected: &dyn Storage, rng: &mut Rng) {
    let size = device.size();
    assert_eq!(size, expected.len().expect("a length"), "the disk's size");
    if size <= READ_WHOLE {
        return assert_range(device, expected, 0, size, rng);
    }
    for extent in Extents::new(device) {
        let extent = extent.expect("an extent");
        if !extent.state.reads_as_zero() {
            assert_range(device, expected, extent.offset, extent.end(), rng);
        }
    }
    let mut at = 0;
    while at < size {
        let run = expected.host_extent(at, size - at).expect("an extent");
        if run.data {
            assert_range(device, expected, at, at + run.len, rng);
        }
        at += run.len;
    }
    for _ in 0..20 {
        let start = rng.below(size);
        assert_range(device, expected, start, size.min(start + MOST), rng);
    }
}

fn assert_range(device: &dyn BlockDevice, expected: &dyn Storage, start: u64, end: u64, rng: &mut Rng) {
    let mut at = start;
    while at < end {
        let most = if rng.below(4) == 0 { 1000 } else { MOST };
        let len = (1 + rng.below(most)).min(end - at) as usize;
        let (mut seen, mut right) = (vec![0xaa; len], vec![0x55; len]);
        device.read_at(&mut seen, at).expect("a read");
        expected.read_exact_at(&mut right, at).expect("a read");
        same_bytes(&seen, &right, at, "the disk");
        at += len as u64;
    }
}

/// Fails, naming the first byte, unless two storages hold the same.
pub fn assert_same_bytes(seen: &dyn Storage, expected: &dyn Storage, what: &str) {
    let size = expected.len().expect("a length");
    assert_eq!(seen.len().expect("a length"), size, "the length of {what}");
    let mut at = 0;
    while at < size {
        let len = MOST.min(size - at);
        let run = |storage: &dyn Storage| storage.host_extent(at, size - at).expect("an extent");
        let (a, b) = (run(seen), run(expected));
        if !a.data && !b.data {
            at += a.len.min(b.len);
            continue;
        }
        let (mut left, mut right) = (vec![0; len as usize], vec![0; len as usize]);
        seen.read_exact_at(&mut left, at).expect("a read");
        expected.read_exact_at(&mut right, at).expect("a read");
        same_bytes(&left, &right, at, what);
        at += len;
    }
}

fn same_bytes(seen: &[u8], expected: &[u8], offset: u64, what: &str) {
    if seen != expected {
        let differs = seen
            .iter()
            .zip(expected)
            .position(|(a, b)| a != b)
            .unwrap_or_default();
        panic!(
            "{what} differs at {:#x}: {:#04x} and not {:#04x}",
            offset + differs as u64,
            seen[differs],
            expected[differs]
        );
    }
}
