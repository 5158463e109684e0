//! Where a file's contents are: an extent tree, or a block map in filesystems without extents.
//!
//! A map is made anew, whole, whenever it changes. Files that are changed here have few runs, and a tree that is made anew
//! is as small as it can be. Blocks of the old map are used for the new one.

use block::{Error, Result};
use ext4_builder::format::{Extent, FLAG_EXTENTS, MAP_SIZE, tree, tree_blocks};
use ext4_reader::format::{Allocation, Blocks};

use crate::inode::Inode;
use crate::{Editor, block_map};

/// Blocks that a file can have at most.
pub(crate) const MAX_BLOCKS: u64 = u32::MAX as u64;

impl Editor {
    /// Has a file's map say that its contents are in these runs. `old` are blocks of its map so far.
    ///
    /// # Errors
    /// `NoSpace`, `InvalidInput`, `Corrupt`, `Io`.
    pub(crate) fn store_map(&mut self, inode: &mut Inode, runs: &[Blocks], mut old: Vec<u64>) -> Result<()> {
        let end = runs.last().map_or(0, |run| run.logical + run.len);
        if end > MAX_BLOCKS {
            return Err(Error::invalid("the file has more blocks than a file can have"));
        }
        let content: u64 = runs.iter().map(|run| run.len).sum();
        let runs = joined(runs);
        let nodes = if inode.has(FLAG_EXTENTS) {
            let extents: Vec<Extent> = runs.into_iter().flat_map(Extent::pieces).collect();
            let nodes = self.nodes(inode, &mut old, tree_blocks(extents.len(), self.block_size()))?;
            let seed = inode.seed(self.seed());
            let mut next = nodes.iter();
            let map = tree(&extents, self.block_size(), seed, |bytes| {
                self.put_node(next.next(), bytes)
            })?;
            inode.set_map(&map);
            nodes
        } else {
            let count = block_map::nodes(&runs, self.block_size());
            let nodes = self.nodes(inode, &mut old, count)?;
            let mut next = nodes.iter();
            let map = block_map::encode(&runs, self.block_size(), |bytes| {
                self.put_node(next.next(), bytes)
            })?;
            inode.set_map(&map);
            nodes
        };
        for block in old {
            self.free_blocks(block..block + 1)?;
        }
        self.set_room(inode, content + nodes.len() as u64)
    }

    /// So many blocks for a map.
    fn nodes(&mut self, inode: &Inode, old: &mut Vec<u64>, count: u64) -> Result<Vec<u64>> {
        let mut nodes: Vec<u64> = old.drain(..old.len().min(count as usize)).collect();
        let missing = count - nodes.len() as u64;
        if missing > 0 {
            let group = self.group_of_inode(inode.number);
            nodes.extend(self.take_blocks(missing, group)?.into_iter().flatten());
        }
        Ok(nodes)
    }

    fn put_node(&self, block: Option<&u64>, bytes: &[u8]) -> Result<u64> {
        let Some(&block) = block else {
            return Err(Error::invalid("a map has more blocks than were counted"));
        };
        self.staging.put(block, bytes.to_vec())?;
        Ok(block)
    }

    /// Gives back all blocks of a file but that of its extended attributes.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn free_allocation(&mut self, allocation: &Allocation) -> Result<()> {
        for run in &allocation.content {
            self.free_blocks(run.physical..run.physical + run.len)?;
        }
        for &block in &allocation.map {
            self.free_blocks(block..block + 1)?;
        }
        Ok(())
    }
}

/// Runs with those made one that follow each other in the file and on the disk.
fn joined(runs: &[Blocks]) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for run in runs {
        if let Some(last) = joined.last_mut()
            && u64::from(last.logical) + u64::from(last.len) == run.logical
            && last.physical + u64::from(last.len) == run.physical
            && last.unwritten == run.unwritten
        {
            last.len += run.len as u32;
            continue;
        }
        joined.push(Extent {
            logical: run.logical as u32,
            physical: run.physical,
            len: run.len as u32,
            unwritten: run.unwritten,
        });
    }
    joined
}

/// The map of a file without contents.
pub(crate) fn empty(has_extents: bool) -> [u8; MAP_SIZE] {
    let no_node = |_: &[u8]| Err(Error::invalid("an empty tree has no blocks"));
    if has_extents {
        tree(&[], 1024, None, no_node).unwrap_or([0; MAP_SIZE])
    } else {
        [0; MAP_SIZE]
    }
}
