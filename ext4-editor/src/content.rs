//! Contents of files: always in new blocks, written before the inode says that they are its own.

use std::io::{self, Read};
use std::ops::Range;
use std::slice;

use block::{Error, Result};
use ext4_builder::format::{FLAG_EXTENTS, FLAG_INLINE_DATA, FileType};
use ext4_reader::format::Blocks;

use crate::inode::Inode;
use crate::options::Contents;
use crate::superblock::Superblock;
use crate::{Editor, block_map, map};

/// Symbolic links shorter than this are in the inode.
const FAST_SYMLINK: u64 = 60;
/// Bytes of a file from which on the filesystem says that it has such.
const LARGE: u64 = 1 << 31;
/// Bytes that are read and written at a time.
const PIECE: u64 = 1 << 20;

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

    /// Gives a file without content these bytes.
    ///
    /// # Errors
    /// `NoSpace`; `Io`; `Corrupt`.
    pub(crate) fn write_bytes(&mut self, inode: &mut Inode, mut bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let whole = 0..len;
        let contents = Contents {
            len,
            data: slice::from_ref(&whole),
            read: &mut |buffer, _| bytes.read_exact(buffer),
        };
        self.write_content(inode, contents)
    }

    /// Gives a file without content a new one. What is a hole takes no blocks.
    ///
    /// # Errors
    /// `NoSpace`; `InvalidInput` if there is less of it than it says; `Io`, of both sides; `Corrupt`.
    pub(crate) fn write_content(&mut self, inode: &mut Inode, mut contents: Contents<'_>) -> Result<()> {
        let parts = parts(contents.data, contents.len, self.layout().block_size())?;
        self.check_length(inode, contents.len, &parts)?;
        let count = parts.iter().map(|part| part.end - part.start).sum();
        let group = self.group_of_inode(inode.number);
        let mut taken = self.take_blocks(count, group)?.into_iter();
        let mut runs = Vec::new();
        let mut free = 0..0;
        for mut part in parts {
            while !part.is_empty() {
                if free.is_empty() {
                    let next = taken.next();
                    free =
                        next.ok_or_else(|| Error::invalid("fewer blocks were taken than were asked for"))?;
                }
                let run = Blocks {
                    logical: part.start,
                    physical: free.start,
                    len: (part.end - part.start).min(free.end - free.start),
                    unwritten: false,
                };
                self.write_run(&run, &mut contents)?;
                part.start += run.len;
                free.start += run.len;
                runs.push(run);
            }
        }
        if contents.len >= LARGE && !self.superblock.has_large_files() {
            self.change_superblock(Superblock::set_has_large_files)?;
        }
        inode.set_size(contents.len);
        self.store_map(inode, &runs, Vec::new())
    }

    /// Fails for a file that is longer than its map can say, be it by a hole at its end.
    fn check_length(&self, inode: &Inode, len: u64, parts: &[Range<u64>]) -> Result<()> {
        let blocks = len.div_ceil(self.layout().block_size());
        let ends_with_hole = parts.last().map_or(0, |last| last.end) < blocks;
        if blocks > map::MAX_BLOCKS {
            return Err(Error::invalid("the file has more blocks than a file can have"));
        }
        if ends_with_hole && !inode.has(FLAG_EXTENTS) && blocks > block_map::max_blocks(self.block_size()) {
            return Err(Error::invalid(
                "the file is too large for a filesystem without extents",
            ));
        }
        Ok(())
    }

    /// Writes the blocks of a run, which are zeros behind the end of the contents.
    fn write_run(&mut self, run: &Blocks, contents: &mut Contents<'_>) -> Result<()> {
        let size = self.layout().block_size();
        let (start, room) = (run.logical * size, run.len * size);
        self.note_room(run.physical * size, room);
        let mut buffer = vec![0; room.min(PIECE) as usize];
        let mut done = 0;
        while done < room {
            let piece = &mut buffer[..(room - done).min(PIECE) as usize];
            let left = contents.len.saturating_sub(start + done);
            let (bytes, padding) = piece.split_at_mut(left.min(piece.len() as u64) as usize);
            (contents.read)(bytes, start + done).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::invalid("the new contents end before the length that was given")
                }
                _ => Error::io("read of the new contents", error),
            })?;
            padding.fill(0);
            self.device.write_at(piece, run.physical * size + done)?;
            done += piece.len() as u64;
        }
        Ok(())
    }
}

/// The blocks, counted in the file, in which there is data.
fn parts(data: &[Range<u64>], len: u64, size: u64) -> Result<Vec<Range<u64>>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut before = 0;
    for range in data.iter().filter(|range| !range.is_empty()) {
        if range.start < before || range.end > len {
            return Err(Error::invalid(
                "the parts of new contents are not in order, or go beyond their end",
            ));
        }
        before = range.end;
        let (start, end) = (range.start / size, range.end.div_ceil(size));
        match parts.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => parts.push(start..end),
        }
    }
    Ok(parts)
}
