//! What deleted files have left on a disk, made zeros.

use std::ops::Range;
use std::sync::Arc;

use block::{BlockDevice, Error, Result, ZeroMode};
use ext4_editor::Editor;
use ext4_reader::Filesystem;
use ops::Control;
use raw::partition::{PartitionTable, Selector};

use crate::Root;
use crate::personalise::Guest;

/// Bytes looked at together, in which whatever is not zero is overwritten where it is.
const SMALL: u64 = 64 << 10;

/// Makes zeros of all that is on a disk and in no file of its ext4 filesystems, of which nobody makes use.
///
/// # Errors
/// `Unsupported`, `Corrupt` for a filesystem of which that cannot be said; `NoSpace`, `Io`; `Interrupted`.
pub(super) fn wipe(disk: &Arc<dyn BlockDevice>, is_new: bool, control: &Control<'_>) -> Result<()> {
    for filesystem in filesystems(disk)? {
        let about = |error: Error| match filesystem.partition {
            Some(number) if error.hint().is_none() => {
                error.with_hint(format!("it is about partition {number}"))
            }
            _ => error,
        };
        let mut guest = Guest::open(&filesystem, is_new).map_err(about)?;
        // What its journal holds is done first.
        guest.editor.forget_names().map_err(about)?;
        wipe_in(&*filesystem.device, &guest.editor, control).map_err(about)?;
    }
    disk.flush()
}

/// All ext4 filesystems on a disk.
fn filesystems(disk: &Arc<dyn BlockDevice>) -> Result<Vec<Root>> {
    let mut found = Vec::new();
    let mut add = |device: Arc<dyn BlockDevice>, partition| -> Result<()> {
        if Filesystem::is_on(&*device)? {
            found.push(Root { device, partition });
        }
        Ok(())
    };
    match PartitionTable::read(&**disk, None) {
        Ok(table) => {
            for partition in table.partitions() {
                let selector: Selector = partition.number.to_string().parse()?;
                let window = table.open(disk.clone(), &selector)?;
                add(Arc::new(window), Some(partition.number))?;
            }
        }
        Err(_) => add(disk.clone(), None)?,
    }
    Ok(found)
}

fn wipe_in(device: &dyn BlockDevice, editor: &Editor, control: &Control<'_>) -> Result<()> {
    let ranges = editor.leftovers()?;
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
