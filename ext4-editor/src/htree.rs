//! Indexed directories ("Hash Tree Directories"): the block for a name is found by its hash. A leaf without room is
//! split by its names' hashes; a node without room is split too, and a root without room gets a level below it.

use std::collections::BTreeMap;

use block::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{Checksum, Directory, FLAG_INDEX, NameHash, fill, put_entry};

use crate::directory::{Blocked, Name, full, insert, size, slots};
use crate::slack::clear;
use crate::{Editor, damaged};

/// Where the entries of the root start: after `.`, `..` and what is said of the index; and those of a node: after an
/// unused entry.
pub(crate) const ROOT_HEADER: usize = 32;
const NODE_HEADER: usize = 8;
/// An entry: a hash and a block. In place of the first one's hash there are limit and count.
const ENTRY: usize = 8;
/// What the root says of the index.
const HASH_VERSION: usize = 28;
const INFO_LEN: usize = 29;
const LEVELS: usize = 30;
/// Bits of a block's number.
const BLOCK_MASK: u32 = 0x0FFF_FFFF;

/// A block of the index.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its block of the directory.
    logical: u32,
    bytes: Vec<u8>,
    header: usize,
    /// The entry that leads to where the name belongs.
    place: usize,
}

impl Node {
    fn limit(&self) -> usize {
        LittleEndian::read_u16(&self.bytes[self.header..]).into()
    }

    fn count(&self) -> usize {
        LittleEndian::read_u16(&self.bytes[self.header + 2..]).into()
    }

    fn set_counts(&mut self, limit: usize, count: usize) {
        LittleEndian::write_u16(&mut self.bytes[self.header..], limit as u16);
        LittleEndian::write_u16(&mut self.bytes[self.header + 2..], count as u16);
    }

    fn at(&self, place: usize) -> usize {
        self.header + place * ENTRY
    }

    fn hash(&self, place: usize) -> u32 {
        LittleEndian::read_u32(&self.bytes[self.at(place)..])
    }

    fn block(&self, place: usize) -> u32 {
        LittleEndian::read_u32(&self.bytes[self.at(place) + 4..]) & BLOCK_MASK
    }

    fn set_block(&mut self, place: usize, block: u32) {
        let at = self.at(place) + 4;
        LittleEndian::write_u32(&mut self.bytes[at..], block);
    }

    /// Puts an entry behind the one that leads on.
    fn insert(&mut self, hash: u32, block: u32) {
        let (count, limit) = (self.count(), self.limit());
        let place = self.place + 1;
        let (from, to) = (self.at(place), self.at(count));
        self.bytes.copy_within(from..to, from + ENTRY);
        LittleEndian::write_u32(&mut self.bytes[from..], hash);
        self.set_block(place, block);
        self.set_counts(limit, count + 1);
    }

    /// Makes zeros of the room for more entries. Says whether there was something else.
    pub(crate) fn clear_slack(&mut self) -> bool {
        let (from, to) = (self.at(self.count()), self.at(self.limit()));
        clear(&mut self.bytes[from..to])
    }

    /// Takes the entries from `place` on to a new node. Gives it and the hash that it starts with.
    fn split_off(&mut self, place: usize, logical: u32, limit: usize) -> (Self, u32) {
        let hash = if place == 0 { 0 } else { self.hash(place) };
        let count = self.count();
        let mut node = Self {
            logical,
            bytes: vec![0; self.bytes.len()],
            header: NODE_HEADER,
            place: self.place.saturating_sub(place),
        };
        let len = node.bytes.len();
        put_entry(&mut node.bytes, len, 0, 0, b"");
        let moved = &self.bytes[self.at(place)..self.at(count)];
        node.bytes[NODE_HEADER..NODE_HEADER + moved.len()].copy_from_slice(moved);
        node.set_counts(limit, count - place);
        (node, hash)
    }
}

/// The way from the root of an index to a leaf.
struct Path {
    hash: NameHash,
    nodes: Vec<Node>,
    leaf: u32,
}

impl Editor {
    /// Puts a name into an indexed directory.
    ///
    /// # Errors
    /// `NoSpace`, `Unsupported`, `Corrupt`, `Io`.
    pub(crate) fn add_indexed_name(&mut self, mut directory: Blocked, name: &Name) -> Result<()> {
        let mut path = self.path(&directory, &name.bytes)?;
        let leaf = directory.blocks[path.leaf as usize];
        let end = self.names_end();
        let mut bytes = self.staging.block(leaf)?;
        if insert(&mut bytes[..end], name)? {
            self.put_leaf(leaf, bytes, directory.seed)?;
            return self.store_blocked(directory);
        }
        let mut names: Vec<(u32, Name)> = slots(&bytes[..end])?
            .into_iter()
            .filter(|slot| slot.inode != 0)
            .map(|slot| (path.hash.of(slot.name), slot.to_name()))
            .collect();
        names.push((path.hash.of(&name.bytes), name.clone()));
        let needed: usize = names.iter().map(|(_, name)| size(&name.bytes)).sum();
        if needed <= end {
            // The room is there, in pieces.
            self.fill_leaf(leaf, &names, directory.seed)?;
            return self.store_blocked(directory);
        }
        names.sort_by_key(|(hash, _)| *hash);
        let upper = names.split_off(middle(&names, needed));
        let hash = upper[0].0;
        let goes_on = names.last().is_some_and(|(last, _)| *last == hash);
        let logical = self.append_block(&mut directory)?;
        self.fill_leaf(leaf, &names, directory.seed)?;
        self.fill_leaf(directory.blocks[logical as usize], &upper, directory.seed)?;
        self.add_entry(
            &mut directory,
            &mut path.nodes,
            hash | u32::from(goes_on),
            logical,
        )?;
        self.store_blocked(directory)
    }

    fn fill_leaf(&self, block: u64, names: &[(u32, Name)], seed: Option<Checksum>) -> Result<()> {
        let mut bytes = vec![0; self.block_size()];
        fill(&mut bytes, names.iter().map(|(_, name)| name.entry()), seed);
        self.staging.put(block, bytes)
    }

    /// The blocks that an indexed directory may have a name in: one, or more where names of one hash go on.
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt`, `Io`.
    pub(crate) fn leaves(&self, directory: &Blocked, name: &[u8]) -> Result<Vec<u64>> {
        let mut path = self.path(directory, name)?;
        let wanted = path.hash.of(name);
        let levels = path.nodes.len();
        let mut leaves = vec![directory.blocks[path.leaf as usize]];
        loop {
            // Up to where there is a next entry, and from that down again.
            while path
                .nodes
                .last()
                .is_some_and(|node| node.place + 1 == node.count())
            {
                path.nodes.pop();
            }
            let Some(node) = path.nodes.last_mut() else { break };
            if node.hash(node.place + 1) & !1 != wanted {
                break;
            }
            node.place += 1;
            let mut logical = node.block(node.place);
            while path.nodes.len() < levels {
                let node = self.node(directory, logical, false)?;
                logical = node.block(0);
                path.nodes.push(node);
            }
            leaves.push(below(directory, logical)?);
            if leaves.len() > directory.blocks.len() {
                return Err(wrong_index(directory, "it goes in circles"));
            }
        }
        Ok(leaves)
    }

    fn path(&self, directory: &Blocked, name: &[u8]) -> Result<Path> {
        let root = self.staging.block(directory.blocks[0])?;
        let (version, levels) = (root[HASH_VERSION], self.levels(directory, &root)?);
        let hash = self.superblock.hash(version).ok_or_else(|| {
            Error::unsupported(format!("a directory is indexed by the unknown hash {version}"))
        })?;
        let wanted = hash.of(name);
        let mut nodes = Vec::new();
        let mut logical = 0;
        while nodes.len() <= levels {
            let mut node = self.node(directory, logical, nodes.is_empty())?;
            // The first entry is for all that comes before the second. Others are in order.
            let (mut low, mut high) = (1, node.count());
            while low < high {
                let middle = usize::midpoint(low, high);
                if node.hash(middle) <= wanted {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            node.place = low - 1;
            logical = node.block(node.place);
            nodes.push(node);
        }
        below(directory, logical)?;
        let leaf = logical;
        Ok(Path { hash, nodes, leaf })
    }

    /// All blocks of the index of a directory, by their place in it; none where it has no index.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn index(&self, directory: &Blocked) -> Result<BTreeMap<u32, Node>> {
        let mut index = BTreeMap::new();
        if !directory.inode.has(FLAG_INDEX) {
            return Ok(index);
        }
        let levels = self.levels(directory, &self.staging.block(directory.blocks[0])?)?;
        let mut level = vec![0];
        for depth in 0..=levels {
            let mut next = Vec::new();
            for logical in level {
                let node = self.node(directory, logical, depth == 0)?;
                next.extend((0..node.count()).map(|place| node.block(place)));
                if index.insert(logical, node).is_some() {
                    return Err(wrong_index(directory, "it goes in circles"));
                }
            }
            level = next;
        }
        Ok(index)
    }

    /// Levels below the root.
    fn levels(&self, directory: &Blocked, root: &[u8]) -> Result<usize> {
        let levels = usize::from(root[LEVELS]);
        if root[INFO_LEN] != 8 || levels > self.index_levels() {
            return Err(wrong_index(directory, "its root is malformed"));
        }
        Ok(levels)
    }

    /// A block of the index: the root, or one below it.
    fn node(&self, directory: &Blocked, logical: u32, is_root: bool) -> Result<Node> {
        let block = if is_root {
            directory.blocks[0]
        } else {
            below(directory, logical)?
        };
        let node = Node {
            logical,
            bytes: self.staging.block(block)?,
            header: if is_root { ROOT_HEADER } else { NODE_HEADER },
            place: 0,
        };
        self.check_node(directory, &node)?;
        Ok(node)
    }

    fn check_node(&self, directory: &Blocked, node: &Node) -> Result<()> {
        let limits = self.limits(directory);
        let expected = if node.header == ROOT_HEADER {
            limits.0
        } else {
            limits.1
        };
        if node.limit() != expected || node.count() == 0 || node.count() > node.limit() {
            return Err(wrong_index(directory, "a block of it has other entries than fit"));
        }
        let Some(seed) = directory.seed else { return Ok(()) };
        match checksum(&node.bytes, seed, node.header) {
            Some((at, sum)) if LittleEndian::read_u32(&node.bytes[at..]) == sum => Ok(()),
            _ => Err(wrong_index(directory, "a block of it has a wrong checksum")),
        }
    }

    /// How many entries root and nodes have at most.
    fn limits(&self, directory: &Blocked) -> (usize, usize) {
        let layout = Directory {
            number: directory.inode.number,
            parent: 0,
            inode: directory.seed,
            block_size: self.block_size(),
            hash: NameHash::half_md4([0; 16]),
        };
        (layout.root_limit(), layout.node_limit())
    }

    /// Puts an entry into the last of these nodes, behind the one that leads on.
    fn add_entry(
        &mut self,
        directory: &mut Blocked,
        nodes: &mut Vec<Node>,
        hash: u32,
        block: u32,
    ) -> Result<()> {
        let Some(mut node) = nodes.pop() else {
            return Err(full());
        };
        if node.count() < node.limit() {
            node.insert(hash, block);
            return self.put_node_of(directory, node);
        }
        let (_, limit) = self.limits(directory);
        if !nodes.is_empty() {
            let logical = self.append_block(directory)?;
            let place = node.count() / 2;
            let (mut upper, first) = node.split_off(place, logical, limit);
            node.set_counts(limit, place);
            if node.place >= place {
                upper.insert(hash, block);
            } else {
                node.insert(hash, block);
            }
            self.put_node_of(directory, node)?;
            self.put_node_of(directory, upper)?;
            return self.add_entry(directory, nodes, first, logical);
        }
        // A node has more room than the root.
        if usize::from(node.bytes[LEVELS]) >= self.index_levels() {
            return Err(full());
        }
        let logical = self.append_block(directory)?;
        let (mut below, _) = node.split_off(0, logical, limit);
        below.insert(hash, block);
        let root_limit = node.limit();
        node.set_counts(root_limit, 1);
        node.set_block(0, logical);
        node.bytes[LEVELS] += 1;
        self.put_node_of(directory, node)?;
        self.put_node_of(directory, below)
    }

    /// Writes a block of the index of a directory.
    ///
    /// # Errors
    /// `InvalidInput` where there are too many changes.
    pub(crate) fn put_node_of(&self, directory: &Blocked, node: Node) -> Result<()> {
        let block = directory.blocks[node.logical as usize];
        self.put_index_block(block, node.bytes, directory.seed, node.header)
    }

    /// Writes a block of an index whose entries start at `header`.
    ///
    /// # Errors
    /// `Corrupt`; `InvalidInput` where there are too many changes.
    pub(crate) fn put_index_block(
        &self,
        block: u64,
        mut bytes: Vec<u8>,
        seed: Option<Checksum>,
        header: usize,
    ) -> Result<()> {
        if let Some(seed) = seed {
            let (at, sum) = checksum(&bytes, seed, header)
                .ok_or_else(|| damaged("an index has more entries than fit".to_owned()))?;
            LittleEndian::write_u32(&mut bytes[at..], sum);
        }
        self.staging.put(block, bytes)
    }
}

/// Where to part names of so many bytes in all, so that both parts have about the same.
fn middle(names: &[(u32, Name)], all: usize) -> usize {
    let mut before = 0_usize;
    let mut best = (usize::MAX, 1);
    for (place, (_, name)) in names.iter().enumerate() {
        if place > 0 {
            best = best.min((before.abs_diff(all - before), place));
        }
        before += size(&name.bytes);
    }
    best.1
}

/// Where the checksum of a block of an index is, and what it should be. `None` where there are more entries than fit.
fn checksum(bytes: &[u8], seed: Checksum, header: usize) -> Option<(usize, u32)> {
    let limit = usize::from(LittleEndian::read_u16(&bytes[header..]));
    let count = usize::from(LittleEndian::read_u16(&bytes[header + 2..]));
    let tail = header + limit * ENTRY;
    if count > limit || tail + ENTRY > bytes.len() {
        return None;
    }
    // What is in use, and the tail with its own sum counted as zero.
    let sum = seed.with(&bytes[..header + count * ENTRY]);
    let sum = sum.with(&bytes[tail..tail + 4]).with(&[0; 4]);
    Some((tail + 4, sum.value()))
}

/// The block that an index leads to.
fn below(directory: &Blocked, logical: u32) -> Result<u64> {
    let block = directory.blocks.get(logical as usize);
    let block = block.filter(|_| logical > 0);
    block
        .copied()
        .ok_or_else(|| wrong_index(directory, "it leads out of the directory"))
}

fn wrong_index(directory: &Blocked, problem: &str) -> Error {
    let number = directory.inode.number;
    damaged(format!("the index of directory inode {number}: {problem}"))
}
