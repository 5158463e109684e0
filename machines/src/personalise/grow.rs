//! Making the root filesystem of a clone as large as its disk, where that is larger than the template's.

use std::sync::Arc;

use block::{BlockDevice, Error, Result};
use raw::partition::{self, PartitionTable};

use super::Guest;
use crate::Root;

/// Grows the root filesystem to the end of a disk, and its partition where it lies on the last one of a GPT. `is_new` is as for
/// [`personalise`](super::personalise()).
///
/// # Errors
/// `InvalidInput` for a size that the filesystem cannot have, and where the root is not what lies last on the disk; `Unsupported`,
/// `Corrupt`, `Io`.
pub fn grow(disk: &Arc<dyn BlockDevice>, is_new: bool) -> Result<()> {
    let Some(mut root) = Root::find(disk)? else {
        return Ok(());
    };
    if let Some(number) = root.partition {
        let table = PartitionTable::read(&**disk, None)?;
        let last = table.partitions().iter().max_by_key(|partition| partition.first);
        if last.is_none_or(|last| last.number != number) {
            let error =
                Error::invalid("the root filesystem cannot grow: there is another partition behind it");
            return Err(error.with_hint("leave out --size, or grow the disk afterwards: imgtool resize"));
        }
        partition::grow(&**disk, None, true)?;
        root = Root::find(disk)?.ok_or_else(|| Error::invalid("the root partition is gone"))?;
    }
    let mut guest = Guest::open(&root, is_new)?;
    let (size, most) = (root.device.size(), guest.editor.largest_size());
    if size > most {
        let message = format!("the root filesystem can grow to {most} bytes at most, and not to {size}");
        return Err(Error::invalid(message).with_hint("choose a smaller size"));
    }
    guest.editor.grow(size)?;
    guest.editor.commit()
}
