//! Block maps ("Direct/Indirect Block Addressing"): where the files of ext2 and ext3 are.
//!
//! Twelve numbers of blocks, and one each of a block of such numbers, of a block of numbers of those, and once more. A
//! number of 0 is a hole, of as many blocks as could be below it.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::Filesystem;
use crate::content::BlockRun;
use crate::corruption::Corruption;
use crate::inode::Inode;

const DIRECT: usize = 12;

/// One block of numbers, or those in the inode.
#[derive(Debug)]
struct Level {
    numbers: Vec<u32>,
    next: usize,
    /// Levels of such blocks below; in the inode, for those from the twelfth on, one more each.
    below: u32,
}

/// The runs of a file, in order. Ends at the file's end.
#[derive(Debug)]
pub(crate) struct BlockMap<'a> {
    filesystem: &'a Filesystem,
    inode: &'a Inode,
    path: Vec<Level>,
    /// The block of the file that the next number is for.
    logical: u64,
    /// Blocks of the file.
    end: u64,
    /// Blocks of numbers that may still be read: none is met twice in a sound map.
    blocks_left: u64,
    /// Blocks of numbers so far.
    pub(crate) nodes: Vec<u64>,
}

impl<'a> BlockMap<'a> {
    pub(crate) fn new(filesystem: &'a Filesystem, inode: &'a Inode) -> Self {
        let root = Level {
            numbers: numbers(inode.i_block()),
            next: 0,
            below: 0,
        };
        Self {
            filesystem,
            inode,
            path: vec![root],
            logical: 0,
            end: inode.size().div_ceil(filesystem.superblock().block_size()),
            blocks_left: filesystem.superblock().blocks,
            nodes: Vec::new(),
        }
    }

    /// The next run of blocks that follow each other.
    fn advance(&mut self) -> Result<Option<BlockRun>> {
        let mut run: Option<BlockRun> = None;
        while self.logical < self.end {
            let root = self.path.len() == 1;
            let Some(level) = self.path.last_mut() else { break };
            let Some(&number) = level.numbers.get(level.next) else {
                self.path.pop();
                continue;
            };
            let below = if root {
                level.next.saturating_sub(DIRECT - 1) as u32
            } else {
                level.below
            };
            let block = u64::from(number);
            let follows =
                run.is_none_or(|run| run.block + run.len == block && run.logical + run.len == self.logical);
            if below == 0 && block != 0 && !follows {
                break;
            }
            level.next += 1;
            if block == 0 {
                let bits = self.filesystem.superblock().block_bits - 2;
                self.logical += 1 << (bits * below);
                continue;
            }
            self.check(block)?;
            if below == 0 {
                let logical = self.logical;
                run.get_or_insert(BlockRun {
                    logical,
                    len: 0,
                    block,
                    written: true,
                })
                .len += 1;
                self.logical += 1;
            } else {
                let left = self.blocks_left.checked_sub(1);
                self.blocks_left =
                    left.ok_or_else(|| self.inode.wrong("its block map goes in circles", block))?;
                self.nodes.push(block);
                let numbers = numbers(&self.filesystem.metadata_block(block)?);
                self.path.push(Level {
                    numbers,
                    next: 0,
                    below: below - 1,
                });
            }
        }
        Ok(run)
    }

    fn check(&self, block: u64) -> Result<()> {
        let superblock = self.filesystem.superblock();
        if block <= superblock.first_data_block.into() || block >= superblock.blocks {
            let number = self.inode.number;
            return Err(Corruption::BlockMap { number, block }.into());
        }
        Ok(())
    }
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(LittleEndian::read_u32).collect()
}

impl Iterator for BlockMap<'_> {
    type Item = Result<BlockRun>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.path.clear();
            self.end = 0;
        }
        next.transpose()
    }
}
