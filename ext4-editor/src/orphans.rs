//! Orphans: inodes that were to be deleted or cut when the filesystem was last in use, as of files that were removed while they were
//! open. A kernel finishes that when it mounts a filesystem, and here that is a part of the first change.
//!
//! They are in a list through all of them, from the superblock on, or in the orphan file ("Orphan file"), where a kernel says that
//! there may be some as long as it uses the filesystem. What has no name any more is deleted; of what has one, blocks behind its
//! end go. A block map is read as far as the file goes, and these may have more: such files are left to others.

use std::collections::HashSet;

use block::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{FLAG_EXTENTS, FileType, ORPHAN_TAIL_SIZE, orphan_block};
use ext4_reader::format::Blocks;

use crate::features::ORPHANS;
use crate::inode::Inode;
use crate::superblock::READ_ONLY_COMPATIBLE;
use crate::{Editor, bitmap, damaged};

/// The superblock's field for the orphan file's inode.
const INODE: usize = 0x280;

impl Editor {
    /// Finishes what was begun with all orphans.
    ///
    /// # Errors
    /// `Corrupt`, `NoSpace`, `Io`.
    pub(crate) fn settle_orphans(&mut self) -> Result<()> {
        self.settle_orphan_list()?;
        self.settle_orphan_file()
    }

    fn settle_orphan_list(&mut self) -> Result<()> {
        let mut next = self.superblock.last_orphan();
        if next == 0 {
            return Ok(());
        }
        let mut seen = HashSet::new();
        while next != 0 {
            if !seen.insert(next) {
                return Err(damaged("the list of orphans leads in a circle".to_owned()));
            }
            next = self.settle_orphan(next)?;
        }
        self.change_superblock(|superblock| superblock.set_last_orphan(0))
    }

    /// Empties the orphan file, and takes away the mark that there may be something in it.
    fn settle_orphan_file(&mut self) -> Result<()> {
        if !self.superblock.has(READ_ONLY_COMPATIBLE, ORPHANS) {
            return Ok(());
        }
        let number = self.superblock.u32(INODE);
        let seed = self.load(number)?.seed(self.seed());
        for run in self.filesystem.allocation(&self.reader_inode(number)?)?.content {
            for block in run.physical..run.physical + run.len {
                let bytes = self.staging.block(block)?;
                let empty = orphan_block(bytes.len(), block, &[], seed);
                let slots = &bytes[..bytes.len() - ORPHAN_TAIL_SIZE];
                if bytes != orphan_block(bytes.len(), block, slots, seed) {
                    let problem =
                        format!("block {block} of the orphan file is none, or has a wrong checksum");
                    return Err(damaged(problem));
                }
                for orphan in slots.chunks_exact(4).map(LittleEndian::read_u32) {
                    if orphan != 0 {
                        self.settle_orphan(orphan)?;
                    }
                }
                if bytes != empty {
                    self.staging.put(block, empty)?;
                }
            }
        }
        self.change_superblock(|superblock| {
            let others = superblock.u32(READ_ONLY_COMPATIBLE) & !ORPHANS;
            superblock.set_u32(READ_ONLY_COMPATIBLE, others);
        })
    }

    /// Finishes what was begun with one. Gives the next of the list.
    fn settle_orphan(&mut self, number: u32) -> Result<u32> {
        let layout = self.layout();
        if number < layout.first_inode() || number > layout.inodes() {
            return Err(damaged(format!("inode {number} cannot be an orphan")));
        }
        let bit = (number - 1) % layout.inodes_per_group();
        let group = self.group(self.group_of_inode(number))?;
        if !bitmap::is_set(&self.inode_bitmap(&group)?, bit) {
            let problem = format!("inode {number} is an orphan, and its bitmap says that it is free");
            return Err(damaged(problem));
        }
        let mut inode = self.load_deleted(number)?;
        if Self::has_blocks(&inode) && !inode.has(FLAG_EXTENTS) {
            return Err(refused());
        }
        let next = inode.take_next_orphan();
        let is_deleted = inode.links() == 0;
        if is_deleted {
            // Only what has a link is read, and this one is about to go.
            inode.set_links(1);
        }
        self.store(&mut inode)?;
        if is_deleted {
            self.delete(&inode)?;
        } else if inode.file_type() == FileType::Regular && Self::has_blocks(&inode) {
            self.cut(self.load(number)?)?;
        }
        Ok(next)
    }

    /// Gives back the blocks behind a file's end.
    fn cut(&mut self, mut inode: Inode) -> Result<()> {
        let size = self.layout().block_size();
        let end = inode.size().div_ceil(size);
        let allocation = self.filesystem.allocation(&self.reader_inode(inode.number)?)?;
        let mut kept = Vec::with_capacity(allocation.content.len());
        let mut has_more = false;
        for run in allocation.content {
            let len = end.saturating_sub(run.logical).min(run.len);
            has_more |= len < run.len;
            if len < run.len {
                self.free_blocks(run.physical + len..run.physical + run.len)?;
            }
            if len > 0 {
                kept.push(Blocks { len, ..run });
            }
        }
        let last = kept
            .last()
            .filter(|run| run.logical + run.len == end && !run.unwritten);
        if let (Some(last), tail @ 1..) = (last, inode.size() % size) {
            // What grows again reads as zeros there.
            self.change(last.physical + last.len - 1, |bytes| {
                bytes[tail as usize..].fill(0);
            })?;
        }
        if has_more {
            self.store_map(&mut inode, &kept, allocation.map)?;
            self.store(&mut inode)?;
        }
        Ok(())
    }
}

/// The error for orphans whose blocks are not all known.
fn refused() -> Error {
    Error::unsupported(
        "the filesystem has files without extents that were deleted while they were open (orphans)",
    )
    .with_hint("mount it once, or run e2fsck -f on a copy: both finish what was begun")
}
