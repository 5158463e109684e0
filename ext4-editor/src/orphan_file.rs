//! The orphan file ("Orphan file"): numbers of inodes that were to be deleted or truncated. A kernel says that there may be
//! some as long as it uses the filesystem, so that after a crash it is to be looked at.

use block::{Error, ErrorKind, Result};
use byteorder::{ByteOrder, LittleEndian};

use crate::features::ORPHANS;
use crate::superblock::READ_ONLY_COMPATIBLE;
use crate::{Editor, damaged};

const MAGIC: u32 = 0x0B10_CA04;
/// Magic and checksum at the end of each block.
const TAIL_SIZE: usize = 8;
/// The superblock's field for the file's inode.
const INODE: usize = 0x280;

impl Editor {
    /// Takes away the mark that there may be orphans, where there are none.
    ///
    /// # Errors
    /// `Corrupt`, where there are some too; `Io`.
    pub(crate) fn settle_orphan_file(&mut self) -> Result<()> {
        if !self.superblock.has(READ_ONLY_COMPATIBLE, ORPHANS) {
            return Ok(());
        }
        let inode = self.reader_inode(self.superblock.u32(INODE))?;
        for run in self.filesystem.allocation(&inode)?.content {
            for block in run.physical..run.physical + run.len {
                let bytes = self.staging.block(block)?;
                let (slots, tail) = bytes.split_at(bytes.len() - TAIL_SIZE);
                if LittleEndian::read_u32(tail) != MAGIC {
                    return Err(damaged(
                        "the orphan file has a block that is none of its own".to_owned(),
                    ));
                }
                if slots.iter().any(|byte| *byte != 0) {
                    return Err(refused());
                }
            }
        }
        self.change_superblock(|superblock| {
            let others = superblock.u32(READ_ONLY_COMPATIBLE) & !ORPHANS;
            superblock.set_u32(READ_ONLY_COMPATIBLE, others);
        })
    }
}

/// The error for a filesystem with files that are half deleted.
pub(crate) fn refused() -> Error {
    let message = "the filesystem has files that were deleted while they were open (orphans)";
    Error::new(ErrorKind::Corrupt, message)
        .with_hint("mount it once, or run e2fsck -f on a copy: both finish what was begun")
}
