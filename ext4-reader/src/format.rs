//! Where things are on the disk, for who changes a filesystem in place: what reading a tree has no need to say.

use block::Result;

use crate::block_map::BlockMap;
use crate::content::BlockRun;
use crate::corruption::Corruption;
use crate::extent_tree::ExtentTree;
use crate::group_descriptor;
use crate::inode::{Flags, Inode, InodeNumber};
use crate::journal::{self, ESCAPED, Features, Log};
use crate::superblock::Compatible;
use crate::{Filesystem, xattr};

/// A run of blocks that a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Its first block, counted in the file.
    pub logical: u64,
    /// Its first block, counted on the disk.
    pub physical: u64,
    /// Blocks in it.
    pub len: u64,
    /// It reads as zeros, whatever is there.
    pub unwritten: bool,
}

impl From<BlockRun> for Blocks {
    fn from(run: BlockRun) -> Self {
        Self {
            logical: run.logical,
            physical: run.block,
            len: run.len,
            unwritten: !run.written,
        }
    }
}

/// All blocks of a file but that of its extended attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// What its content has, in order.
    pub content: Vec<Blocks>,
    /// What the map of its content has: nodes of an extent tree, or indirect blocks.
    pub map: Vec<u64>,
}

/// The journal inside a filesystem, where its transactions can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Where its blocks are; block 0 of it has its superblock.
    pub blocks: Vec<Blocks>,
    /// The log's first block, and the one after its last.
    pub log: std::ops::Range<u64>,
    /// Its superblock as it is.
    pub superblock: Vec<u8>,
    /// The number that the next transaction has.
    pub sequence: u32,
    /// The form of its tags.
    pub tags: Tags,
    /// Whether numbers of blocks have 64 bits.
    pub is_64bit: bool,
    /// What checksums start from.
    pub seed: u32,
}

/// How a journal says which block a copy is of, and that both are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    /// Without checksums.
    Plain,
    /// With 16 bits of a checksum.
    Checksum2,
    /// With all of a checksum.
    Checksum3,
}

impl Journal {
    /// Where block `index` of the journal is on the disk. `None` for one that has no place there.
    pub fn place(&self, index: u64) -> Option<u64> {
        let run = self.blocks.partition_point(|run| run.logical + run.len <= index);
        let run = self.blocks.get(run).filter(|run| run.logical <= index)?;
        Some(run.physical + (index - run.logical))
    }
}

impl Filesystem {
    /// The block that holds a group's descriptor, and the byte at which it starts there.
    pub fn descriptor_place(&self, group: u32) -> (u64, usize) {
        group_descriptor::place(self.superblock(), group)
    }

    /// Fails unless a descriptor of `group` has the right checksum.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check_descriptor(&self, group: u32, descriptor: &[u8]) -> Result<()> {
        group_descriptor::check(self.superblock(), group, descriptor)
    }

    /// The first block of a group's part of the inode table.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn inode_table(&self, group: u32) -> Result<u64> {
        group_descriptor::inode_table(self, group)
    }

    /// Whether a copy of superblock and descriptors is at the start of a group.
    pub fn has_superblock(&self, group: u32) -> bool {
        group_descriptor::has_superblock(self.superblock(), group.into())
    }

    /// A whole block of metadata, as its journal would make it.
    ///
    /// # Errors
    /// `OutOfBounds`, `Corrupt`, `Io`.
    pub fn block(&self, block: u64) -> Result<Vec<u8>> {
        self.metadata_block(block)
    }

    /// The blocks of a file: of what has content outside of its inode.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn allocation(&self, inode: &Inode) -> Result<Allocation> {
        let mut allocation = Allocation::default();
        let mut left = self.superblock().blocks();
        let mut add = |run: BlockRun| {
            let rest = left.checked_sub(run.len);
            left = rest.ok_or_else(|| inode.wrong("it has more blocks than the filesystem", run.logical))?;
            allocation.content.push(run.into());
            Ok::<(), block::Error>(())
        };
        if inode.flags.contains(Flags::EXTENTS) {
            let mut tree = ExtentTree::new(self, inode)?;
            for run in tree.by_ref() {
                add(run?)?;
            }
            allocation.map = tree.nodes;
        } else {
            let mut map = BlockMap::new(self, inode);
            for run in map.by_ref() {
                add(run?)?;
            }
            allocation.map = map.nodes;
        }
        Ok(allocation)
    }

    /// The blocks that the journal would change, as it would make them.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn replayed(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let blocks = self.replay.iter().map(|(&block, copy)| {
            let mut bytes = vec![0; self.superblock().block_size() as usize];
            self.device
                .read_at(&mut bytes, copy.block << self.superblock().block_bits)?;
            if copy.escaped {
                bytes[..4].copy_from_slice(&ESCAPED);
            }
            Ok((block, bytes))
        });
        blocks.collect()
    }

    /// The journal, where there is one in the filesystem.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Io`.
    pub fn journal(&self) -> Result<Option<Journal>> {
        let superblock = self.superblock();
        if !superblock.compatible.contains(Compatible::HAS_JOURNAL) || superblock.journal_inode == 0 {
            return Ok(None);
        }
        let log = Log::of(self)?;
        if log.first >= log.last {
            let problem = "its log ends before it starts";
            return Err(Corruption::Journal { block: 0, problem }.into());
        }
        let tags = if log.has(Features::CSUM_V3) {
            Tags::Checksum3
        } else if log.has_checksums() {
            Tags::Checksum2
        } else {
            Tags::Plain
        };
        Ok(Some(Journal {
            blocks: log.runs.iter().map(|&run| run.into()).collect(),
            log: log.first..log.last,
            superblock: log.read(0)?,
            sequence: journal::next_sequence(&log)?,
            tags,
            is_64bit: log.has(Features::IS_64BIT),
            seed: log.seed.0,
        }))
    }

    /// What an inode that holds its content itself has of it besides its map.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn inline_rest(&self, inode: &Inode) -> Result<Vec<u8>> {
        xattr::inline_data(inode)
    }
}

impl Inode {
    /// All of it, as it is on the disk.
    pub fn as_bytes(&self) -> &[u8] {
        self.raw()
    }

    /// The block with more of its extended attributes; 0 for none.
    pub fn xattrs_block(&self) -> u64 {
        self.xattr_block()
    }

    /// What its fields leave of it, for extended attributes.
    pub fn room(&self) -> &[u8] {
        self.xattr_room()
    }

    /// Where its content is, or what it is where that is short.
    pub fn map(&self) -> &[u8] {
        self.i_block()
    }

    /// An error about it, with a value that was seen.
    #[must_use]
    pub fn corrupt(&self, problem: &'static str, value: u64) -> block::Error {
        self.wrong(problem, value)
    }
}

impl From<InodeNumber> for u32 {
    fn from(number: InodeNumber) -> Self {
        number.0
    }
}
