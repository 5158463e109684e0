//! Directories of any size ("Hash Tree Directories"). What fits one block is linear; else the first block is the
//! root of an index, which leads by the hash of a name to the block that holds it, over up to two levels of nodes.
//!
//! Entries are sorted by hash and packed into leaves in that order; those of one hash may span leaves, which the
//! lowest bit of the later leaf's hash in the index says. To a reader who does not know of indexes, the root and the
//! nodes look like blocks with unused space, and the leaves are ordinary directory blocks.
//!
//! Leaves and nodes are packed full. The kernel splits the leaf that it adds to, and adds a level where the root is
//! full, as with directories of its own; a directory that only gets read is as small as it can be.
//!
//! Blocks come in order: the root, the nodes from the top down, and the leaves. So one run of blocks can be
//! allocated beforehand, and no more than one block is in memory; sorting takes 8 bytes for an entry.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::directory::{Entry, fill, put_entry, room};
use crate::hash::NameHash;

/// Bytes of `.` and of `..`.
const DOT_SIZE: usize = 12;
/// Where the root's entries start: after `.`, `..` and 8 bytes on the index.
const ROOT_HEADER: usize = 2 * DOT_SIZE + 8;
/// Where a node's entries start: after an unused entry.
const NODE_HEADER: usize = 8;
/// An entry of the index: hash and block. In place of the first one's hash there are limit and count.
const INDEX_ENTRY: usize = 8;
/// Levels of nodes that every kernel knows, and that `large_dir` allows.
const PLAIN_LEVELS: usize = 1;
const MAX_LEVELS: usize = 2;

/// What a directory's blocks depend on besides its entries.
#[derive(Clone, Copy, Debug)]
pub struct Directory {
    /// Its inode.
    pub number: u32,
    /// The directory that `..` leads to.
    pub parent: u32,
    /// The seed for checksums of this inode's blocks, where the filesystem has any.
    pub inode: Option<Checksum>,
    /// Bytes in a block.
    pub block_size: usize,
    /// What names are sorted by.
    pub hash: NameHash,
}

/// Which entries go where in a directory.
#[derive(Debug)]
pub struct Plan {
    directory: Directory,
    /// The entries' numbers, as they are given or sorted by hash, which is above them.
    order: Vec<u64>,
    /// The place in the order where each leaf starts; empty for a linear directory.
    leaves: Vec<u32>,
    /// Blocks in each level of nodes, from the top down.
    levels: Vec<u32>,
}

impl Plan {
    /// Plans a directory of `count` entries besides `.` and `..`, given by `entry` as often as it is asked. `None`
    /// where there are too many for three levels of index.
    pub fn new<'a>(directory: Directory, count: u32, entry: impl Fn(u32) -> Entry<'a>) -> Option<Self> {
        let room = room(directory.block_size, directory.inode.is_some());
        let mut plan = Self {
            directory,
            order: Vec::new(),
            leaves: Vec::new(),
            levels: Vec::new(),
        };
        let mut size = 2 * DOT_SIZE;
        let fits_one_block = (0..count).all(|index| {
            size += entry(index).size();
            size <= room
        });
        if fits_one_block {
            plan.order.extend((0..count).map(u64::from));
            return Some(plan);
        }

        plan.order.reserve_exact(count as usize);
        plan.order.extend((0..count).map(|index| {
            let hash = directory.hash.of(entry(index).name);
            u64::from(hash) << 32 | u64::from(index)
        }));
        plan.order.sort_unstable();
        let mut left = 0;
        for (place, &key) in plan.order.iter().enumerate() {
            let size = entry(key as u32).size();
            if size > left {
                plan.leaves.push(place as u32);
                left = room;
            }
            left -= size;
        }

        plan.levels = directory.levels(plan.leaves.len())?;
        Some(plan)
    }

    /// Blocks of the directory.
    pub fn blocks(&self) -> u32 {
        1 + self.levels.iter().sum::<u32>() + self.leaves.len() as u32
    }

    /// Whether the inode needs [`FLAG_INDEX`](crate::inode::FLAG_INDEX).
    pub fn is_indexed(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// Whether the filesystem needs `large_dir`.
    pub fn needs_large_dir(&self) -> bool {
        self.levels.len() > PLAIN_LEVELS
    }

    /// Gives `write` every block in order. `entry` is that of [`new`](Self::new).
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write<'a>(
        &self,
        entry: impl Fn(u32) -> Entry<'a>,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut block = vec![0; self.directory.block_size];
        let entries = |from: usize, to: usize| self.order[from..to].iter().map(|&key| entry(key as u32));
        if !self.is_indexed() {
            let dots = self.directory.dots();
            let all = dots.into_iter().chain(entries(0, self.order.len()));
            fill(&mut block, all, self.directory.inode);
            return write(&block);
        }
        self.put_root(&mut block);
        write(&block)?;
        let mut first = 1;
        for (level, &nodes) in self.levels.iter().enumerate() {
            for node in 0..nodes {
                self.put_node(&mut block, level, node, first + nodes);
                write(&block)?;
            }
            first += nodes;
        }
        for (leaf, &from) in self.leaves.iter().enumerate() {
            let to = self
                .leaves
                .get(leaf + 1)
                .map_or(self.order.len(), |&to| to as usize);
            fill(&mut block, entries(from as usize, to), self.directory.inode);
            write(&block)?;
        }
        Ok(())
    }

    fn put_root(&self, block: &mut [u8]) {
        let Directory { number, parent, .. } = self.directory;
        block.fill(0);
        let [dot, dot_dot] = self.directory.dots();
        let rest = block.len() - DOT_SIZE;
        put_entry(block, DOT_SIZE, number, dot.file_type as u8, dot.name);
        put_entry(
            &mut block[DOT_SIZE..],
            rest,
            parent,
            dot_dot.file_type as u8,
            dot_dot.name,
        );
        let info = &mut block[2 * DOT_SIZE..ROOT_HEADER];
        info[4] = self.directory.hash.version as u8;
        info[5] = info.len() as u8;
        info[6] = self.levels.len() as u8;
        let count = self
            .levels
            .first()
            .map_or(self.leaves.len(), |&nodes| nodes as usize);
        let limit = self.directory.root_limit();
        self.put_index(block, ROOT_HEADER, limit, 0, 1, 0..count);
    }

    /// Node `node` of a level, where the level below starts at block `first`.
    fn put_node(&self, block: &mut [u8], level: usize, node: u32, first: u32) {
        block.fill(0);
        let len = block.len();
        put_entry(block, len, 0, 0, b"");
        let limit = self.directory.node_limit();
        let below = self
            .levels
            .get(level + 1)
            .map_or(self.leaves.len(), |&nodes| nodes as usize);
        let start = node as usize * limit;
        let children = start..below.min(start + limit);
        self.put_index(block, NODE_HEADER, limit, level + 1, first, children);
    }

    /// Entries for those of a level that are given, where the level starts at block `first`.
    fn put_index(
        &self,
        block: &mut [u8],
        header: usize,
        limit: usize,
        level: usize,
        first: u32,
        children: std::ops::Range<usize>,
    ) {
        let count = children.len();
        // How many leaves are below one block of the level.
        let leaves = self
            .directory
            .node_limit()
            .pow((self.levels.len() - level) as u32);
        let entries = block[header..].chunks_exact_mut(INDEX_ENTRY);
        for (entry, child) in entries.zip(children) {
            LittleEndian::write_u32(entry, self.leaf_hash(child * leaves));
            LittleEndian::write_u32(&mut entry[4..], first + child as u32);
        }
        LittleEndian::write_u16(&mut block[header..], limit as u16);
        LittleEndian::write_u16(&mut block[header + 2..], count as u16);
        if let Some(inode) = self.directory.inode {
            // What is in use, and the tail with its own sum counted as zero.
            let checksum = inode.with(&block[..header + count * INDEX_ENTRY]).with(&[0; 8]);
            LittleEndian::write_u32(&mut block[header + limit * INDEX_ENTRY + 4..], checksum.value());
        }
    }

    /// A leaf's hash as the index has it: its first entry's, with the lowest bit set if the leaf before ends with
    /// the same.
    fn leaf_hash(&self, leaf: usize) -> u32 {
        let place = self.leaves[leaf] as usize;
        let hash = |place: usize| (self.order[place] >> 32) as u32;
        let continues = place > 0 && hash(place - 1) == hash(place);
        hash(place) | u32::from(continues)
    }
}

impl Directory {
    fn dots(&self) -> [Entry<'static>; 2] {
        [
            Entry::directory(self.number, b"."),
            Entry::directory(self.parent, b".."),
        ]
    }

    /// Blocks in each level of nodes over so many leaves, from the top down; `None` if there are too many levels.
    fn levels(&self, leaves: usize) -> Option<Vec<u32>> {
        let mut levels = Vec::new();
        let mut below = leaves;
        while below > self.root_limit() {
            below = below.div_ceil(self.node_limit());
            levels.insert(0, below as u32);
        }
        (levels.len() <= MAX_LEVELS).then_some(levels)
    }

    /// Entries that fit the root of an index.
    pub fn root_limit(&self) -> usize {
        self.limit(ROOT_HEADER)
    }

    /// Entries that fit a node of an index.
    pub fn node_limit(&self) -> usize {
        self.limit(NODE_HEADER)
    }

    /// Entries that fit a block after a header; a checksum takes the place of one.
    fn limit(&self, header: usize) -> usize {
        (self.block_size - header) / INDEX_ENTRY - usize::from(self.inode.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(block_size: usize, inode: Option<Checksum>) -> Directory {
        Directory {
            number: 12,
            parent: 2,
            inode,
            block_size,
            hash: NameHash::half_md4([9; 16]),
        }
    }

    #[test]
    fn one_block_is_linear_up_to_its_last_byte() {
        let names: Vec<String> = (0..84).map(|index| format!("{index:04}")).collect();
        let entry = |index: u32| Entry::directory(20, names[index as usize].as_bytes());
        // 2 + 83 entries of 12 bytes leave 4 of 1024.
        let plan = Plan::new(directory(1024, None), 83, entry).unwrap();
        assert_eq!((plan.is_indexed(), plan.blocks()), (false, 1));
        let plan = Plan::new(directory(1024, None), 84, entry).unwrap();
        // An index over one leaf, which has no dots.
        assert_eq!((plan.is_indexed(), plan.blocks()), (true, 2));
    }

    #[test]
    fn limits_are_those_of_the_documentation() {
        let checksum = Some(Checksum::START);
        let limits = |block_size, inode| {
            let directory = directory(block_size, inode);
            (directory.root_limit(), directory.node_limit())
        };
        assert_eq!(limits(4096, checksum), (507, 510));
        assert_eq!(limits(4096, None), (508, 511));
        assert_eq!(limits(1024, checksum), (123, 126));
    }

    #[test]
    fn more_than_three_levels_hold_is_refused() {
        let directory = directory(1024, Some(Checksum::START));
        let most = 123 * 126 * 126;
        assert_eq!(directory.levels(most), Some(vec![123, 123 * 126]));
        assert_eq!(directory.levels(most + 1), None);
    }
}
