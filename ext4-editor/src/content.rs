//! Contents of files: always in new blocks, written before the inode says that they are its own.

use std::io::Read;

use block::{Error, Result};
use ext4_builder::format::{FLAG_EXTENTS, FLAG_INLINE_DATA, FileType};
use ext4_reader::format::Blocks;

use crate::inode::Inode;
use crate::{Editor, map};

/// Symbolic links shorter than this are in the inode.
const FAST_SYMLINK: u64 = 60;
/// Bytes that are read and written at a time.
const PIECE: usize = 1 << 20;

impl Editor {
    /// Whether a file has blocks for its content.
    pub(crate) fn has_blocks(inode: &Inode) -> bool {
        let is_stored = match inode.file_type() {
            FileType::Regular | FileType::Directory => true,
            FileType::Symlink => inode.size() >= FAST_SYMLINK,
            _ => false,
        };
        is_stored && !inode.is_inline()
    }

    /// Takes a file's content away.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn drop_content(&mut self, inode: &mut Inode) -> Result<()> {
        if inode.is_inline() {
            let xattrs = self.xattrs(inode.number)?;
            self.store_xattrs(inode, xattrs, None)?;
            inode.set_flag(FLAG_INLINE_DATA, false);
        } else if Self::has_blocks(inode) {
            let allocation = self.filesystem.allocation(&self.reader_inode(inode.number)?)?;
            self.free_allocation(&allocation)?;
        }
        self.empty(inode)
    }

    /// Makes an inode one of a file without content that will have some.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub(crate) fn empty(&mut self, inode: &mut Inode) -> Result<()> {
        let has_extents = self.superblock.has_extents();
        inode.set_flag(FLAG_EXTENTS, has_extents);
        inode.set_map(&map::empty(has_extents));
        inode.set_size(0);
        self.set_room(inode, 0)
    }

    /// Gives a file without content `len` bytes that `from` has.
    ///
    /// # Errors
    /// `NoSpace`; `InvalidInput` if it has fewer; `Io`, of both sides; `Corrupt`.
    pub(crate) fn write_content(&mut self, inode: &mut Inode, len: u64, from: &mut dyn Read) -> Result<()> {
        let size = self.layout().block_size();
        let group = self.group_of_inode(inode.number);
        let taken = self.take_blocks(len.div_ceil(size), group)?;
        let mut left = len;
        let mut logical = 0;
        let mut runs = Vec::with_capacity(taken.len());
        for run in taken {
            let room = (run.end - run.start) * size;
            self.write_run(run.start * size, room, left.min(room), from)?;
            left -= left.min(room);
            runs.push(Blocks {
                logical,
                physical: run.start,
                len: run.end - run.start,
                unwritten: false,
            });
            logical += run.end - run.start;
        }
        inode.set_size(len);
        self.store_map(inode, &runs, Vec::new())
    }

    /// Writes `len` bytes at `offset` of the disk, and zeros behind them up to `room`.
    fn write_run(&self, offset: u64, room: u64, len: u64, from: &mut dyn Read) -> Result<()> {
        let mut buffer = vec![0; (room as usize).min(PIECE)];
        let mut done = 0;
        while done < room {
            let piece = &mut buffer[..(room - done).min(PIECE as u64) as usize];
            let wanted = len.saturating_sub(done).min(piece.len() as u64) as usize;
            let (bytes, padding) = piece.split_at_mut(wanted);
            from.read_exact(bytes).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    Error::invalid("the new contents end before the length that was given")
                }
                _ => Error::io("read of the new contents", error),
            })?;
            padding.fill(0);
            self.device.write_at(piece, offset + done)?;
            done += piece.len() as u64;
        }
        Ok(())
    }
}
