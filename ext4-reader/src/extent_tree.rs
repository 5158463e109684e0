//! Extent trees ("Extent Tree"): which runs of a file are where.
//!
//! A tree is walked from left to right with one block per level in memory. In a sound one, file offsets only ever
//! grow, and that is checked: so no block of a tree is met twice, and a walk ends.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::Filesystem;
use crate::content::BlockRun;
use crate::corruption::{Corruption, verify};
use crate::inode::Inode;

const MAGIC: u16 = 0xF30A;
const MAX_DEPTH: u16 = 5;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// A length above it is that of a run which is allocated and reads as zeros, plus this.
const MAX_INITIALIZED: u16 = 32768;

/// One block of the tree, or its root in the inode.
#[derive(Debug)]
struct Node {
    bytes: Vec<u8>,
    depth: u16,
    entries: usize,
    /// The next one to look at.
    next: usize,
}

/// The runs of a file, in order.
#[derive(Debug)]
pub(crate) struct ExtentTree<'a> {
    filesystem: &'a Filesystem,
    inode: &'a Inode,
    path: Vec<Node>,
    /// The first block of the file that no run was given for yet.
    reached: u64,
    /// Blocks of the tree that may still be read: none is met twice.
    blocks_left: u64,
    /// Blocks of the tree so far.
    pub(crate) nodes: Vec<u64>,
}

impl<'a> ExtentTree<'a> {
    pub(crate) fn new(filesystem: &'a Filesystem, inode: &'a Inode) -> Result<Self> {
        let mut tree = Self {
            filesystem,
            inode,
            path: Vec::new(),
            reached: 0,
            blocks_left: filesystem.superblock().blocks,
            nodes: Vec::new(),
        };
        let root = tree.node(inode.i_block().to_vec(), None, &|| "root".to_owned())?;
        tree.path.push(root);
        Ok(tree)
    }

    fn wrong(&self, place: impl Into<String>, problem: &'static str, value: u64) -> block::Error {
        let number = self.inode.number;
        let place = place.into();
        Corruption::ExtentTree {
            number,
            place,
            problem,
            value,
        }
        .into()
    }

    /// Parses a node of the depth that its parent asks for.
    fn node(&self, bytes: Vec<u8>, depth: Option<u16>, place: &dyn Fn() -> String) -> Result<Node> {
        let [magic, entries, max, found] =
            [0, 2, 4, 6].map(|offset| LittleEndian::read_u16(&bytes[offset..]));
        let wrong = |problem, value: u16| Err(self.wrong(place(), problem, value.into()));
        if magic != MAGIC {
            return wrong("its magic number is wrong", magic);
        }
        if found > MAX_DEPTH || depth.is_some_and(|depth| depth != found) {
            return wrong("its depth is wrong", found);
        }
        if HEADER + usize::from(max) * ENTRY > bytes.len() || entries > max {
            return wrong("it has more entries than fit", entries);
        }
        if entries == 0 && found > 0 {
            return wrong("it is empty", 0);
        }
        Ok(Node {
            bytes,
            depth: found,
            entries: entries.into(),
            next: 0,
        })
    }

    /// Reads the node at `block` of the disk.
    fn child(&mut self, block: u64, depth: u16) -> Result<Node> {
        let place = || format!("block {block}");
        let superblock = self.filesystem.superblock();
        if block <= superblock.first_data_block.into() || block >= superblock.blocks {
            return Err(self.wrong("an index", "it names a block outside of the filesystem", block));
        }
        let Some(left) = self.blocks_left.checked_sub(1) else {
            return Err(self.wrong(place(), "the tree has more blocks than the filesystem", block));
        };
        self.blocks_left = left;
        self.nodes.push(block);
        let bytes = self.filesystem.metadata_block(block)?;
        let tail = HEADER + usize::from(LittleEndian::read_u16(&bytes[4..])) * ENTRY;
        if superblock.has_checksums() && tail + 4 <= bytes.len() {
            let stored = LittleEndian::read_u32(&bytes[tail..]);
            let what = || format!("block {block} of the extent tree of inode {}", self.inode.number);
            verify(stored, self.inode.seed.with(&bytes[..tail]).0, what)?;
        }
        self.node(bytes, Some(depth), &place)
    }

    fn advance(&mut self) -> Result<Option<BlockRun>> {
        while let Some(node) = self.path.last_mut() {
            if node.next == node.entries {
                self.path.pop();
                continue;
            }
            let offset = HEADER + node.next * ENTRY;
            node.next += 1;
            let entry = &node.bytes[offset..offset + ENTRY];
            let logical = u64::from(LittleEndian::read_u32(entry));
            if node.depth == 0 {
                let run = leaf_entry(entry, logical);
                return self.check(run).map(Some);
            }
            let block = u64::from(LittleEndian::read_u32(&entry[4..]))
                | u64::from(LittleEndian::read_u16(&entry[8..])) << 32;
            let depth = node.depth - 1;
            if logical < self.reached {
                return Err(self.wrong(
                    format!("index of file block {logical}"),
                    "it is out of order",
                    self.reached,
                ));
            }
            let child = self.child(block, depth)?;
            self.path.push(child);
        }
        Ok(None)
    }

    fn check(&mut self, run: BlockRun) -> Result<BlockRun> {
        let place = || format!("extent of file block {}", run.logical);
        let superblock = self.filesystem.superblock();
        if run.len == 0 || run.logical < self.reached {
            return Err(self.wrong(place(), "it is empty or out of order", run.len));
        }
        let end = run.block + run.len;
        if run.block <= superblock.first_data_block.into() || end > superblock.blocks {
            return Err(self.wrong(place(), "it lies outside of the filesystem", run.block));
        }
        self.reached = run.logical + run.len;
        Ok(run)
    }
}

fn leaf_entry(entry: &[u8], logical: u64) -> BlockRun {
    let len = LittleEndian::read_u16(&entry[4..]);
    let written = len <= MAX_INITIALIZED;
    BlockRun {
        logical,
        len: if written { len } else { len - MAX_INITIALIZED }.into(),
        block: u64::from(LittleEndian::read_u16(&entry[6..])) << 32
            | u64::from(LittleEndian::read_u32(&entry[8..])),
        written,
    }
}

impl Iterator for ExtentTree<'_> {
    type Item = Result<BlockRun>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.path.clear();
        }
        next.transpose()
    }
}
