//! Reading files in pieces.

use ext4_reader::{Filesystem, Inode};
use ops::Cancel;

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

/// A piece of a file.
pub(super) enum Piece<'a> {
    /// So many zeros.
    Hole(u64),
    /// Where in the file they are, and the bytes.
    Data(u64, &'a [u8]),
}

/// Gives all of a regular file to `take`, in order.
///
/// # Errors
/// As [`Filesystem::content`], and what `take` fails with.
pub(super) fn pieces<E: From<block::Error>>(
    filesystem: &Filesystem,
    inode: &Inode,
    cancel: &Cancel,
    mut take: impl FnMut(Piece<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = Vec::new();
    let mut at = 0;
    for run in filesystem.content(inode)? {
        let run = run?;
        if run.offset > at {
            take(Piece::Hole(run.offset - at))?;
        }
        let mut skip = 0;
        while skip < run.len {
            cancel.check()?;
            let len = (run.len - skip).min(PIECE);
            buffer.resize(len as usize, 0);
            filesystem.read_run(&run, skip, &mut buffer)?;
            take(Piece::Data(run.offset + skip, &buffer))?;
            skip += len;
        }
        at = run.offset + run.len;
    }
    if inode.size() > at {
        take(Piece::Hole(inode.size() - at))?;
    }
    Ok(())
}
