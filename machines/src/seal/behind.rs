//! Room behind a filesystem on its partition: nobody's, unless something says there that it is its own.
//!
//! A filesystem that was made smaller, or put onto a partition that was larger, leaves what was there before. But software for
//! RAID, replication and integrity keeps its own records at the end of a device, or behind the filesystem, whose start looks
//! as if there was no such thing.

use std::ops::Range;

use block::{BlockDevice, Result};

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Free(Range<u64>),
    /// By what it is used.
    Used(&'static str),
}

/// What is on a device from `end` on.
///
/// # Errors
/// `Io`.
pub(super) fn behind(device: &dyn BlockDevice, end: u64) -> Result<Behind> {
    let size = device.size();
    let aligned = |to: u64, back: u64| (size / to * to).checked_sub(back);
    // mdadm's versions 0.90 and 1.0, DRBD's internal records, and dm-verity's hashes.
    let records: [(Option<u64>, &[u8], &'static str); 4] = [
        (aligned(64 << 10, 64 << 10), b"\xfc\x4e\x2b\xa9", "raid"),
        (aligned(4 << 10, 8 << 10), b"\xfc\x4e\x2b\xa9", "raid"),
        (size.checked_sub((4 << 10) - 60), b"\x83\x74\x02", "drbd"),
        (Some(end.next_multiple_of(4 << 10)), b"verity\0\0", "verity"),
    ];
    for (at, magic, name) in records {
        let Some(at) = at.filter(|at| *at >= end && at + magic.len() as u64 <= size) else {
            continue;
        };
        let mut there = vec![0; magic.len()];
        device.read_at(&mut there, at)?;
        if there == magic {
            return Ok(Behind::Used(name));
        }
    }
    Ok(Behind::Free(end.min(size)..size))
}
