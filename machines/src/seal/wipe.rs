//! What deleted files and swap have left on a disk, made zeros.

use std::ops::Range;
use std::sync::Arc;

use block::{BlockDevice, Result, ZeroMode};
use ops::Control;
use raw::partition::PartitionTable;

use super::parts::{end_of, gaps, parts, room_behind};
use super::plan::Search;
use super::swap::Swap;
use crate::Root;
use crate::personalise::Guest;

/// Bytes looked at together, in which whatever is not zero is overwritten where it is.
const SMALL: u64 = 64 << 10;

/// Makes zeros of all that is on a disk and in no file of its ext4 and FAT filesystems, of which nobody makes use: what they have left,
/// what is swapped out, to their files too, and room that is no partition's.
///
/// # Errors
/// `Unsupported`, `Corrupt` for a filesystem of which that cannot be said; `NoSpace`, `Io`; `Interrupted`.
pub(super) fn wipe(disk: &Arc<dyn BlockDevice>, is_new: bool, control: &Control<'_>) -> Result<()> {
    let Ok(table) = PartitionTable::read(&**disk, None) else {
        let whole = Root {
            device: disk.clone(),
            partition: None,
        };
        wipe_filesystem(&whole, is_new, control)?;
        return disk.flush();
    };
    for part in parts(disk, &table)? {
        wipe_ranges(&*part.device, part.free()?, control)?;
        if let Some(filesystem) = part.filesystem() {
            wipe_filesystem(&filesystem, is_new, control).map_err(|error| part.about(error))?;
        }
    }
    wipe_ranges(&**disk, gaps(&**disk, &table), control)?;
    disk.flush()
}

fn wipe_filesystem(filesystem: &Root, is_new: bool, control: &Control<'_>) -> Result<()> {
    let mut guest = Guest::open(filesystem, is_new)?;
    // What its journal holds is done first.
    guest.editor.forget_names()?;
    let mut free = guest.editor.leftovers()?;
    free.extend(room_behind(
        &*filesystem.device,
        end_of(guest.editor.filesystem()),
    )?);
    wipe_ranges(&*filesystem.device, free, control)?;
    for file in Search::new(guest.editor.filesystem())?.swap_files()? {
        if let Swap::Used(_) = file.swap {
            wipe_ranges(&*filesystem.device, file.swapped, control)?;
        }
    }
    Ok(())
}

fn wipe_ranges(device: &dyn BlockDevice, ranges: Vec<Range<u64>>, control: &Control<'_>) -> Result<()> {
    let total = ranges.iter().map(|range| range.end - range.start).sum();
    let mut done = 0;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            control.check()?;
            let run = device.extent_at(at, range.end - at)?;
            if !run.state.reads_as_zero() {
                zero(device, at..at + run.len)?;
            }
            at += run.len;
            done += run.len;
            control.report(done, total);
        }
    }
    Ok(())
}

/// Makes zeros of a range that holds data, with no room for it where that is not needed.
fn zero(device: &dyn BlockDevice, range: Range<u64>) -> Result<()> {
    let len = range.end - range.start;
    if len <= SMALL {
        let mut bytes = vec![0; len as usize];
        device.read_at(&mut bytes, range.start)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
    }
    device.zero_at(range.start, len, ZeroMode::Unmap)
}
