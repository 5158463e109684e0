//! What belongs to single inodes: numbers, blocks of directories, extent trees, targets of symlinks, extended
//! attributes.

use block::{Error, Result};

use super::own_files::OwnFiles;
use super::xattrs::Xattrs;
use crate::Node;
use crate::allocator::{Allocator, Run};
use crate::builder::{Builder, push_extent};
use crate::checksum::Checksum;
use crate::directory::{Entry, fill};
use crate::disk::BlockWriter;
use crate::extent::{self, Extent, MAX_LEN};
use crate::hash::NameHash;
use crate::htree::{Directory, Plan};
use crate::inline_data::{self, InlineData};
use crate::inode::{
    self, FIRST_FREE_INODE, FLAG_EXTENTS, FLAG_INDEX, FLAG_INLINE_DATA, FileType, INODE_SIZE, Inode,
    MAP_SIZE, ROOT_INODE, XATTR_ROOM,
};
use crate::time::Time;
use crate::tree::{Content, Record, Tree};
use crate::xattr::{self, Xattr};
use crate::xattr_sets::XattrSets;

/// Bytes of `lost+found`, allocated in advance: whoever repairs a filesystem puts files there, and had better not have
/// to allocate.
const LOST_AND_FOUND_SIZE: usize = 16 << 10;

/// Entries that fit an inode at most: they have 12 bytes or more.
const MAX_INLINE_ENTRIES: usize = 12;

/// Extents that the inode itself has room for.
const INLINE_EXTENTS: u32 = 4;

/// What an inode says of its contents, where that was not known when it came.
#[derive(Clone, Copy, Debug)]
struct Mapped {
    map: [u8; MAP_SIZE],
    flags: u32,
    /// Blocks of data and of the map.
    blocks: u64,
}

/// All contents that are placed.
#[derive(Debug)]
pub(super) struct Contents {
    /// Inodes in use; their numbers have no gaps.
    pub(super) inodes: u32,
    /// Whether there are directories with three levels of index.
    pub(super) large_directories: bool,
    mapped: Vec<Mapped>,
    xattrs: Xattrs,
}

impl Contents {
    /// Gives every inode its number, and every one its blocks.
    pub(super) fn place(builder: &mut Builder<'_>) -> Result<Self> {
        let nodes: Vec<Node> = builder.tree.nodes().collect();
        let mut next = FIRST_FREE_INODE;
        for &node in &nodes {
            let number = if node == builder.root() {
                ROOT_INODE
            } else {
                next += 1;
                next - 1
            };
            builder.tree.record_mut(node).number = number;
        }
        let mut placing = Placing {
            sets: std::mem::take(&mut builder.xattrs),
            inline_data: builder.features.inline_data,
            writer: BlockWriter::new(&builder.disk),
            allocator: &mut builder.allocator,
            runs: &mut builder.runs,
            block_size: builder.options.block_size as usize,
            hash: NameHash::half_md4(builder.options.hash_seed),
            allows_large_directories: builder.features.large_directory,
            large_directories: false,
            seed: builder.seal.seed(),
            mapped: Vec::new(),
        };
        for &node in &nodes {
            let placed = placing.place(&builder.tree, node)?;
            let record = builder.tree.record_mut(node);
            (record.content, record.size) = (placed.content, placed.size);
            record.xattrs = placed.xattrs;
        }
        let sets = std::mem::take(&mut placing.sets);
        let filesystem = Checksum::of_filesystem(&builder.options.uuid);
        let xattrs = Xattrs::place(sets, filesystem, &mut builder.tree, &nodes, next, &mut placing)?;
        placing.writer.flush()?;
        Ok(Self {
            inodes: next - 1 + xattrs.values().len() as u32,
            mapped: placing.mapped,
            large_directories: placing.large_directories,
            xattrs,
        })
    }

    /// Whether values of extended attributes are in inodes.
    pub(super) fn has_value_inodes(&self) -> bool {
        !self.xattrs.values().is_empty()
    }

    /// Whether an inode is a directory, and its bytes, for all that are in use, in order of their numbers.
    pub(super) fn inodes(
        &self,
        builder: &Builder<'_>,
        own_files: &OwnFiles,
    ) -> impl Iterator<Item = (bool, [u8; INODE_SIZE])> {
        let seed = builder.seal.seed();
        let reserved = (1..FIRST_FREE_INODE).map(move |number| match number {
            ROOT_INODE => (true, self.inode(builder, builder.root()).to_bytes(number, seed)),
            _ => (false, own_files.inode(number).to_bytes(number, seed)),
        });
        let others = builder.tree.nodes().skip(1).map(move |node| {
            let record = builder.tree.record(node);
            let bytes = self.inode(builder, node).to_bytes(record.number, seed);
            (record.is_directory(), bytes)
        });
        let values = self.xattrs.values().iter().map(move |value| {
            let (map, _, blocks) = self.map(builder, value.content, FileType::Regular);
            let inode = self
                .xattrs
                .value_inode(value, map, blocks * builder.geometry.block_size() / 512);
            (false, inode.to_bytes(value.number, seed))
        });
        let orphan_file = own_files.orphan_file_number().map(|number| {
            let bytes = own_files.inode(number).to_bytes(number, seed);
            (false, bytes)
        });
        reserved.chain(others).chain(values).chain(orphan_file)
    }

    /// The inode of a node of the tree.
    fn inode(&self, builder: &Builder<'_>, node: Node) -> Inode {
        let record = builder.tree.record(node);
        let [accessed, changed, modified, created] = record.times.map(Time::of_fields);
        let (map, flags, blocks) = self.map(builder, record.content, record.file_type);
        let xattrs = self.xattrs.of(record, builder.geometry.block_size());
        Inode {
            mode: record.file_type.mode() | record.permissions,
            uid: record.uid,
            gid: record.gid,
            size: record.size,
            sectors: (blocks + xattrs.blocks) * builder.geometry.block_size() / 512,
            links: links(record),
            flags,
            accessed,
            changed,
            modified,
            created,
            map,
            xattr_block: xattrs.block,
            xattrs: xattrs.room,
            ..Inode::default()
        }
    }

    /// The inode's map, its flags, and the blocks that contents and map take.
    fn map(
        &self,
        builder: &Builder<'_>,
        content: Content,
        file_type: FileType,
    ) -> ([u8; MAP_SIZE], u32, u64) {
        let tree = |extents: &[Extent]| extent::inline(extents).unwrap_or([0; MAP_SIZE]);
        match content {
            Content::Mapped(index) => {
                let mapped = &self.mapped[index as usize];
                (mapped.map, mapped.flags, mapped.blocks)
            }
            Content::Run { start, blocks } => {
                let run = single(start, blocks);
                let map = if blocks <= MAX_LEN {
                    tree(&[run])
                } else {
                    tree(&run.pieces().collect::<Vec<_>>())
                };
                (map, FLAG_EXTENTS, blocks.into())
            }
            Content::Device { major, minor } => (inode::device(major, minor).unwrap_or([0; MAP_SIZE]), 0, 0),
            Content::Symlink { target } => {
                let map = inode::fast_symlink(builder.tree.bytes(target));
                (map.unwrap_or([0; MAP_SIZE]), 0, 0)
            }
            _ if file_type == FileType::Regular => (tree(&[]), FLAG_EXTENTS, 0),
            _ => ([0; MAP_SIZE], 0, 0),
        }
    }
}

/// The links that an inode says: names, for a directory its `.` and all `..` below.
fn links(record: &Record) -> u16 {
    if record.is_directory() {
        inode::directory_links(record.links - 1)
    } else {
        record.links as u16
    }
}

fn too_many_entries(count: usize) -> Error {
    Error::unsupported(format!(
        "a directory of {count} entries is larger than its index can be"
    ))
    .with_hint("choose blocks of 4096 bytes, and no profile for kernels before 4.13")
}

/// A file's only extent.
fn single(start: u64, blocks: u32) -> Extent {
    Extent {
        logical: 0,
        physical: start,
        len: blocks,
        unwritten: false,
    }
}

/// What is known of an inode when its contents have their place.
struct Placed {
    content: Content,
    size: u64,
    xattrs: u32,
}

/// Places contents one after the other.
pub(super) struct Placing<'a, 's> {
    sets: XattrSets,
    inline_data: bool,
    writer: BlockWriter<'a, 's>,
    allocator: &'a mut Allocator,
    runs: &'a mut Vec<Vec<Extent>>,
    pub(super) block_size: usize,
    hash: NameHash,
    allows_large_directories: bool,
    /// Whether there are any.
    large_directories: bool,
    seed: Option<Checksum>,
    mapped: Vec<Mapped>,
}

impl Placing<'_, '_> {
    fn place(&mut self, tree: &Tree, node: Node) -> Result<Placed> {
        let record = tree.record(node);
        let content = match record.content {
            Content::Directory { .. } => return self.directory(tree, node),
            Content::Small { contents } => {
                let bytes = tree.bytes(contents);
                if let Some(inline) = self.inline(|set| inline_data::file(bytes, set), record)? {
                    return Ok(inline);
                }
                self.contents(record.number, bytes)?
            }
            Content::Runs(index) => {
                let extents = std::mem::take(&mut self.runs[index as usize]);
                self.map(record.number, &extents, 0)?
            }
            Content::Run { start, blocks } if blocks > MAX_LEN * INLINE_EXTENTS => {
                self.map(record.number, &[single(start, blocks)], 0)?
            }
            Content::Symlink { target } => {
                let block = inode::symlink_block(tree.bytes(target), self.block_size);
                match block {
                    Some(bytes) if inode::fast_symlink(tree.bytes(target)).is_none() => {
                        self.contents(record.number, &bytes)?
                    }
                    _ => record.content,
                }
            }
            content => content,
        };
        Ok(Placed {
            content,
            size: record.size,
            xattrs: record.xattrs,
        })
    }

    /// Places contents in the inode, if they are to be there and fit. What does not fit the map becomes an attribute.
    fn inline(
        &mut self,
        make: impl FnOnce(&[Xattr]) -> Option<InlineData>,
        record: &Record,
    ) -> Result<Option<Placed>> {
        let set = self.sets.plans()[record.xattrs as usize].set();
        let Some(inline) = self.inline_data.then(|| make(set)).flatten() else {
            return Ok(None);
        };
        let mut set = set.to_vec();
        set.push(inline.xattr);
        let plan = xattr::Plan::new(set, XATTR_ROOM, self.block_size, false)?;
        self.mapped.push(Mapped {
            map: inline.map,
            flags: FLAG_INLINE_DATA,
            blocks: 0,
        });
        Ok(Some(Placed {
            content: Content::Mapped(self.mapped.len() as u32 - 1),
            size: inline.size,
            xattrs: self.sets.put(plan)?,
        }))
    }

    fn directory(&mut self, tree: &Tree, node: Node) -> Result<Placed> {
        let record = tree.record(node);
        let parent = match record.content {
            Content::Directory { parent, .. } => tree.record(Node(parent)).number,
            _ => ROOT_INODE,
        };
        let entries: Vec<(&[u8], Node)> = tree.entries(node).collect();
        let entry = |index: u32| {
            let (name, node) = entries[index as usize];
            let record = tree.record(node);
            Entry {
                inode: record.number,
                file_type: record.file_type,
                name,
            }
        };
        // The root and lost+found have blocks: what mounts and repairs expects that.
        if entries.len() <= MAX_INLINE_ENTRIES && record.number > FIRST_FREE_INODE {
            let all: Vec<Entry<'_>> = (0..entries.len() as u32).map(entry).collect();
            let make = |set: &[Xattr]| inline_data::directory(parent, &all, set, XATTR_ROOM);
            if let Some(inline) = self.inline(make, record)? {
                return Ok(inline);
            }
        }
        let seed = self.seed.map(|seed| seed.of_inode(record.number, 0));
        let directory = Directory {
            number: record.number,
            parent,
            inode: seed,
            block_size: self.block_size,
            hash: self.hash,
        };
        let plan = Plan::new(directory, entries.len() as u32, entry)
            .filter(|plan| self.allows_large_directories || !plan.needs_large_dir())
            .ok_or_else(|| too_many_entries(entries.len()))?;
        self.large_directories |= plan.needs_large_dir();
        let mut least = 1;
        if record.number == FIRST_FREE_INODE && !plan.is_indexed() {
            least = LOST_AND_FOUND_SIZE.div_ceil(self.block_size) as u32;
        }
        let count = plan.blocks().max(least);
        let runs = self.allocator.allocate(count.into());
        let mut places = runs.iter().cloned().flatten();
        let writer = &mut self.writer;
        let mut write = |bytes: &[u8]| {
            // There are as many places as blocks.
            places.next().map_or(Ok(()), |block| writer.write(block, bytes))
        };
        plan.write(entry, &mut write)?;
        if count > plan.blocks() {
            let mut empty = vec![0; self.block_size];
            fill(&mut empty, [], seed);
            (plan.blocks()..count).try_for_each(|_| write(&empty))?;
        }
        let flags = if plan.is_indexed() { FLAG_INDEX } else { 0 };
        let content = self.content(record.number, &runs, flags)?;
        Ok(Placed {
            content,
            size: u64::from(count) * self.block_size as u64,
            xattrs: record.xattrs,
        })
    }

    /// Gives blocks with these bytes a place, as what an inode holds.
    pub(super) fn contents(&mut self, number: u32, bytes: &[u8]) -> Result<Content> {
        let runs = self
            .allocator
            .allocate(bytes.len().div_ceil(self.block_size) as u64);
        let mut blocks = bytes.to_vec();
        blocks.resize(bytes.len().next_multiple_of(self.block_size), 0);
        self.writer.write_runs(&runs, &blocks)?;
        self.content(number, &runs, 0)
    }

    /// Gives a block of the filesystem a place, which what is in it depends on.
    pub(super) fn block(&mut self, bytes: impl FnOnce(u64, Option<Checksum>) -> Vec<u8>) -> Result<u64> {
        let block = self.allocator.allocate_block();
        self.writer.write(block, &bytes(block, self.seed))?;
        Ok(block)
    }

    /// What an inode holds whose contents are all of these runs.
    fn content(&mut self, number: u32, runs: &[Run], flags: u32) -> Result<Content> {
        if let ([run], 0) = (runs, flags) {
            return Ok(Content::Run {
                start: run.start,
                blocks: (run.end - run.start) as u32,
            });
        }
        let mut extents = Vec::new();
        let mut logical = 0;
        for run in runs {
            push_extent(&mut extents, logical, run);
            logical += run.end - run.start;
        }
        self.map(number, &extents, flags)
    }

    /// Makes the extent tree of runs.
    fn map(&mut self, number: u32, runs: &[Extent], flags: u32) -> Result<Content> {
        let extents: Vec<Extent> = runs.iter().flat_map(|run| run.pieces()).collect();
        let mut blocks = runs.iter().map(|run| u64::from(run.len)).sum();
        let seed = self.seed.map(|seed| seed.of_inode(number, 0));
        let (allocator, writer) = (&mut *self.allocator, &mut self.writer);
        let map = extent::tree(&extents, self.block_size, seed, |bytes| {
            let block = allocator.allocate_block();
            writer.write(block, bytes)?;
            blocks += 1;
            Ok(block)
        })?;
        self.mapped.push(Mapped {
            map,
            flags: FLAG_EXTENTS | flags,
            blocks,
        });
        Ok(Content::Mapped(self.mapped.len() as u32 - 1))
    }
}
