//! What is in a file: runs of bytes, in the inode, on the disk, or nowhere (holes).

use block::Result;

use crate::Filesystem;
use crate::block_map::BlockMap;
use crate::extent_tree::ExtentTree;
use crate::inode::{FileKind, Flags, Inode};
use crate::xattr;

/// Symbolic links shorter than this are in the inode.
const FAST_SYMLINK: u64 = 60;

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRun {
    /// Its first block in the file.
    pub(crate) logical: u64,
    pub(crate) len: u64,
    /// Its first block on the disk.
    pub(crate) block: u64,
    /// Otherwise it reads as zeros.
    pub(crate) written: bool,
}

/// A run of a file's bytes that holds something. What lies between two runs, and after the last, reads as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its first byte in the file.
    pub offset: u64,
    /// Bytes in it, never 0.
    pub len: u64,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Inline(Vec<u8>),
    Block(u64),
}

impl Run {
    /// The byte of the disk at which the run starts. `None` for content that is kept with the inode.
    pub fn disk_offset(&self, filesystem: &Filesystem) -> Option<u64> {
        match self.place {
            Place::Inline(_) => None,
            Place::Block(block) => Some(block << filesystem.superblock().block_bits),
        }
    }
}

/// The runs of a file that hold something, in order. Ends after the first error.
#[derive(Debug)]
pub struct Content<'a> {
    runs: Runs<'a>,
    block_bits: u32,
    size: u64,
    /// Blocks that may still be given: a file cannot have more than there are.
    blocks_left: u64,
    inode: &'a Inode,
}

#[derive(Debug)]
enum Runs<'a> {
    Inline(Option<Vec<u8>>),
    Extents(ExtentTree<'a>),
    Map(BlockMap<'a>),
}

impl Filesystem {
    /// The content of a regular file, as it is stored. Directories have one too, but
    /// [`read_dir`](Self::read_dir) is there to read it.
    ///
    /// # Errors
    /// `InvalidInput` for what has no content; `Unsupported` for encrypted files; `Corrupt`, `Io`.
    pub fn content<'a>(&'a self, inode: &'a Inode) -> Result<Content<'a>> {
        if !matches!(
            inode.kind,
            FileKind::Regular | FileKind::Directory | FileKind::Symlink
        ) {
            return Err(block::Error::invalid(
                "this is neither a file nor a directory: it has no content",
            ));
        }
        if inode.is_encrypted() && inode.kind != FileKind::Directory {
            return Err(block::Error::unsupported(
                "it is encrypted, and the key is not in the filesystem",
            ));
        }
        self.stored(inode)
    }

    pub(crate) fn stored<'a>(&'a self, inode: &'a Inode) -> Result<Content<'a>> {
        let fast = inode.kind == FileKind::Symlink && inode.size() < FAST_SYMLINK;
        let runs = if inode.flags.contains(Flags::INLINE_DATA) {
            let mut bytes = inode.i_block().to_vec();
            bytes.extend(xattr::inline_data(inode)?);
            if inode.kind != FileKind::Directory {
                // What is cut off is no content; what is missing is a hole.
                bytes.truncate(usize::try_from(inode.size()).unwrap_or(usize::MAX));
            }
            Runs::Inline(Some(bytes))
        } else if fast {
            Runs::Inline(Some(inode.i_block()[..inode.size() as usize].to_vec()))
        } else if inode.flags.contains(Flags::EXTENTS) {
            Runs::Extents(ExtentTree::new(self, inode)?)
        } else {
            Runs::Map(BlockMap::new(self, inode))
        };
        Ok(Content {
            runs,
            block_bits: self.superblock().block_bits,
            size: inode.size(),
            blocks_left: self.superblock().blocks,
            inode,
        })
    }

    /// Fills `buf` with the bytes of a run from `skip` on, which the run must have.
    ///
    /// # Errors
    /// `OutOfBounds` past the run's end; `Corrupt`, `Io`.
    pub fn read_run(&self, run: &Run, skip: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if skip.checked_add(len).is_none_or(|end| end > run.len) {
            return Err(block::Error::out_of_bounds(
                "read of a file's run",
                skip,
                len,
                run.len,
            ));
        }
        match &run.place {
            Place::Inline(bytes) => buf.copy_from_slice(&bytes[skip as usize..][..buf.len()]),
            Place::Block(block) => self.read_blocks(buf, *block, skip)?,
        }
        Ok(())
    }

    /// All of a short content, with its holes filled.
    ///
    /// # Errors
    /// `Corrupt` if it has more than `limit` bytes; as [`content`](Self::content).
    pub(crate) fn read_all(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>> {
        if inode.size() > limit {
            return Err(inode.wrong("it is longer than its kind can be", inode.size()));
        }
        let mut bytes = vec![0; inode.size() as usize];
        for run in self.stored(inode)? {
            let run = run?;
            self.read_run(&run, 0, &mut bytes[run.offset as usize..][..run.len as usize])?;
        }
        Ok(bytes)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// `InvalidInput` for what is none; as [`content`](Self::content).
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind != FileKind::Symlink {
            return Err(block::Error::invalid("this is no symbolic link"));
        }
        if inode.is_encrypted() {
            return Err(block::Error::unsupported(
                "it is encrypted, and the key is not in the filesystem",
            ));
        }
        let target = self.read_all(inode, self.superblock().block_size())?;
        if target.is_empty() || target.contains(&0) {
            return Err(inode.wrong("its target is empty or has a NUL", target.len() as u64));
        }
        Ok(target)
    }
}

impl Content<'_> {
    fn advance(&mut self) -> Result<Option<Run>> {
        loop {
            let run = match &mut self.runs {
                Runs::Inline(bytes) => {
                    let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                    return Ok(bytes.map(|bytes| Run {
                        offset: 0,
                        len: bytes.len() as u64,
                        place: Place::Inline(bytes),
                    }));
                }
                Runs::Extents(tree) => tree.next().transpose()?,
                Runs::Map(map) => map.next().transpose()?,
            };
            let Some(run) = run else { return Ok(None) };
            let left = self.blocks_left.checked_sub(run.len);
            self.blocks_left = left.ok_or_else(|| {
                self.inode
                    .wrong("it has more blocks than the filesystem", run.logical)
            })?;
            // Room is kept past a file's end for it to grow.
            let offset = run.logical << self.block_bits;
            let len = (run.len << self.block_bits).min(self.size.saturating_sub(offset));
            if run.written && len > 0 {
                return Ok(Some(Run {
                    offset,
                    len,
                    place: Place::Block(run.block),
                }));
            }
        }
    }
}

impl Iterator for Content<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.runs = Runs::Inline(None);
        }
        next.transpose()
    }
}
