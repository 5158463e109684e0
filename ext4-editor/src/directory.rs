//! Directories ("Linear Directories"): names that are added and removed.
//!
//! A linear directory whose blocks are full becomes an indexed one, where the filesystem has such, or gets a block more.

use block::{Error, ErrorKind, Result};
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{
    Checksum, Directory, DirectoryPlan, Entry, FLAG_EXTENTS, FLAG_INDEX, FileType, fill, put_entry, room,
};
use ext4_reader::format::Blocks;

use crate::inode::Inode;
use crate::{Editor, damaged};

/// An entry's bytes before its name.
pub(crate) const HEADER: usize = 8;
/// Where the entry for `..` is.
const DOT_DOT: usize = 12;
/// Levels of an index below its root that every kernel knows, and that `large_dir` allows.
const PLAIN_LEVELS: usize = 1;
const LARGE_LEVELS: usize = 2;

/// A name that is in a directory, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) inode: u32,
    pub(crate) file_type: FileType,
    pub(crate) bytes: Vec<u8>,
}

impl Name {
    pub(crate) fn entry(&self) -> Entry<'_> {
        Entry {
            inode: self.inode,
            file_type: self.file_type,
            name: &self.bytes,
        }
    }
}

/// An entry in a block, in use or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<'a> {
    pub(crate) at: usize,
    pub(crate) len: usize,
    pub(crate) inode: u32,
    pub(crate) file_type: u8,
    pub(crate) name: &'a [u8],
}

impl Slot<'_> {
    /// Bytes that the entry needs.
    pub(crate) fn used(&self) -> usize {
        if self.inode == 0 { 0 } else { size(self.name) }
    }

    pub(crate) fn to_name(self) -> Name {
        Name {
            inode: self.inode,
            file_type: entry_type(self.file_type),
            bytes: self.name.to_vec(),
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        self.inode != 0 && self.name != b"." && self.name != b".."
    }
}

pub(crate) fn size(name: &[u8]) -> usize {
    (HEADER + name.len()).next_multiple_of(4)
}

fn entry_type(value: u8) -> FileType {
    match value {
        1 => FileType::Regular,
        2 => FileType::Directory,
        3 => FileType::CharacterDevice,
        4 => FileType::BlockDevice,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        _ => FileType::Unknown,
    }
}

/// The entries that fill `bytes`.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn slots(bytes: &[u8]) -> Result<Vec<Slot<'_>>> {
    let mut slots = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let entry = &bytes[at..];
        let header = entry.get(..HEADER);
        let len = header.map_or(0, |header| LittleEndian::read_u16(&header[4..]).into());
        if len < HEADER || len > entry.len() || len % 4 != 0 {
            return Err(damaged(format!("a directory entry has the wrong length {len}")));
        }
        let inode = LittleEndian::read_u32(entry);
        let name_len = if inode == 0 { 0 } else { usize::from(entry[6]) };
        let Some(name) = entry[..len].get(HEADER..HEADER + name_len) else {
            return Err(damaged("a directory entry is shorter than its name".to_owned()));
        };
        slots.push(Slot {
            at,
            len,
            inode,
            file_type: entry[7],
            name,
        });
        at += len;
    }
    Ok(slots)
}

/// Puts a name into `bytes` where there is room for it. Says whether there is.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn insert(bytes: &mut [u8], name: &Name) -> Result<bool> {
    let needed = size(&name.bytes);
    let found = slots(bytes)?
        .into_iter()
        .find(|slot| slot.len - slot.used() >= needed)
        .map(|slot| (slot.at, slot.len, slot.used()));
    let Some((at, len, used)) = found else {
        return Ok(false);
    };
    if used > 0 {
        LittleEndian::write_u16(&mut bytes[at + 4..], used as u16);
    }
    let place = &mut bytes[at + used..at + len];
    put_entry(place, len - used, name.inode, name.file_type as u8, &name.bytes);
    Ok(true)
}

/// Takes a name out of `bytes`. Says whether it was there.
///
/// # Errors
/// `Corrupt`.
fn remove(bytes: &mut [u8], name: &[u8]) -> Result<bool> {
    let all = slots(bytes)?;
    let Some(place) = all.iter().position(|slot| slot.inode != 0 && slot.name == name) else {
        return Ok(false);
    };
    let (at, len, used) = (all[place].at, all[place].len, all[place].used());
    let before = place
        .checked_sub(1)
        .map(|before| (all[before].at, all[before].len));
    bytes[at..at + used].fill(0);
    match before {
        Some((at, before)) => LittleEndian::write_u16(&mut bytes[at + 4..], (before + len) as u16),
        None => LittleEndian::write_u16(&mut bytes[at + 4..], len as u16),
    }
    Ok(true)
}

/// A directory that has blocks.
#[derive(Debug)]
pub(crate) struct Blocked {
    pub(crate) inode: Inode,
    /// The directory's blocks.
    pub(crate) blocks: Vec<u64>,
    map: Vec<u64>,
    had: usize,
    /// The seed of checksums in its blocks.
    pub(crate) seed: Option<Checksum>,
}

impl Editor {
    /// A directory and its blocks.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn blocked(&self, number: u32) -> Result<Blocked> {
        let inode = self.load(number)?;
        let allocation = self.filesystem.allocation(&self.reader_inode(number)?)?;
        let mut blocks = Vec::new();
        let count = inode.size() / self.layout().block_size();
        for run in allocation.content {
            if run.logical != blocks.len() as u64 || run.unwritten {
                return Err(damaged(format!("directory inode {number} has a hole")));
            }
            let left = count.saturating_sub(run.logical);
            if run.len > left {
                let problem = format!("directory inode {number} has blocks behind its end");
                return Err(damaged(problem));
            }
            blocks.extend(run.physical..run.physical + run.len);
        }
        if blocks.is_empty() || blocks.len() as u64 != count {
            return Err(damaged(format!(
                "directory inode {number} has other blocks than its size says"
            )));
        }
        Ok(Blocked {
            seed: inode.seed(self.seed()),
            had: blocks.len(),
            inode,
            blocks,
            map: allocation.map,
        })
    }

    /// Writes a directory's inode, with a new map where its blocks are others.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn store_blocked(&mut self, directory: Blocked) -> Result<()> {
        let mut inode = directory.inode;
        if directory.blocks.len() != directory.had {
            inode.set_size((directory.blocks.len() * self.block_size()) as u64);
            let runs = (0..).zip(&directory.blocks).map(|(logical, &physical)| Blocks {
                logical,
                physical,
                len: 1,
                unwritten: false,
            });
            self.store_map(&mut inode, &runs.collect::<Vec<_>>(), directory.map)?;
        }
        self.store(&mut inode)
    }

    /// Adds a block to a directory.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn append_block(&mut self, directory: &mut Blocked) -> Result<u32> {
        let block = self.take_block(self.group_of_inode(directory.inode.number))?;
        directory.blocks.push(block);
        Ok(directory.blocks.len() as u32 - 1)
    }

    /// Writes a block of names.
    ///
    /// # Errors
    /// `InvalidInput` where there are too many changes.
    pub(crate) fn put_leaf(&self, block: u64, mut bytes: Vec<u8>, seed: Option<Checksum>) -> Result<()> {
        if let Some(seed) = seed {
            let end = room(bytes.len(), true);
            let sum = seed.with(&bytes[..end]).value();
            LittleEndian::write_u32(&mut bytes[end + HEADER..], sum);
        }
        self.staging.put(block, bytes)
    }

    /// Bytes of a block that names can have.
    pub(crate) fn names_end(&self) -> usize {
        room(self.block_size(), self.seed().is_some())
    }

    /// The type that an entry is to say.
    pub(crate) fn entry_type(&self, of: FileType) -> FileType {
        if self.superblock.has_file_types() {
            of
        } else {
            FileType::Unknown
        }
    }

    /// Puts a name that is not there into a directory.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn add_name(&mut self, directory: u32, mut name: Name) -> Result<()> {
        name.file_type = self.entry_type(name.file_type);
        if self.load(directory)?.is_inline() {
            return self.add_inline_name(directory, name);
        }
        let directory = self.blocked(directory)?;
        if directory.inode.has(FLAG_INDEX) {
            return self.add_indexed_name(directory, &name);
        }
        let end = self.names_end();
        for &block in &directory.blocks {
            let mut bytes = self.staging.block(block)?;
            if insert(&mut bytes[..end], &name)? {
                self.put_leaf(block, bytes, directory.seed)?;
                return self.store_blocked(directory);
            }
        }
        self.make_room(directory, name)
    }

    /// Makes room for a name in a linear directory that is full.
    fn make_room(&mut self, mut directory: Blocked, name: Name) -> Result<()> {
        if self.superblock.has_indexes() {
            let (parent, mut names) = self.names(&directory)?;
            names.push(name);
            return self.rebuild(directory, parent, &names);
        }
        let logical = self.append_block(&mut directory)?;
        let mut bytes = vec![0; self.block_size()];
        fill(&mut bytes, [name.entry()], directory.seed);
        self.staging.put(directory.blocks[logical as usize], bytes)?;
        self.store_blocked(directory)
    }

    /// The directory above, and all names.
    fn names(&self, directory: &Blocked) -> Result<(u32, Vec<Name>)> {
        let mut names = Vec::new();
        let mut parent = None;
        let end = self.names_end();
        for &block in &directory.blocks {
            let bytes = self.staging.block(block)?;
            for slot in slots(&bytes[..end])? {
                if slot.inode != 0 && slot.name == b".." {
                    parent = Some(slot.inode);
                } else if slot.is_file() {
                    names.push(slot.to_name());
                }
            }
        }
        let number = directory.inode.number;
        let parent = parent.ok_or_else(|| damaged(format!("directory inode {number} has no .. entry")))?;
        Ok((parent, names))
    }

    /// Writes a directory anew, indexed where it takes more than a block.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn rebuild(&mut self, mut directory: Blocked, parent: u32, names: &[Name]) -> Result<()> {
        let layout = Directory {
            number: directory.inode.number,
            parent,
            inode: directory.seed,
            block_size: self.block_size(),
            hash: self.superblock.default_hash()?,
        };
        let entry = |index: u32| names[index as usize].entry();
        let plan = DirectoryPlan::new(layout, names.len() as u32, entry);
        let plan = plan
            .filter(|plan| !plan.needs_large_dir() || self.superblock.has_large_directories())
            .ok_or_else(full)?;
        let group = self.group_of_inode(directory.inode.number);
        let missing = u64::from(plan.blocks()).saturating_sub(directory.blocks.len() as u64);
        let taken = self.take_blocks(missing, group)?;
        directory.blocks.extend(taken.into_iter().flatten());
        for block in directory.blocks.split_off(plan.blocks() as usize) {
            self.free_blocks(block..block + 1)?;
        }
        let mut next = directory.blocks.iter();
        plan.write(entry, |bytes| match next.next() {
            Some(&block) => self.staging.put(block, bytes.to_vec()),
            None => Err(full()),
        })?;
        self.fix_dot_types(directory.blocks[0], directory.seed, plan.is_indexed())?;
        directory.inode.set_flag(FLAG_INDEX, plan.is_indexed());
        self.store_blocked(directory)
    }

    /// Takes the types of `.` and `..` away where entries have none.
    fn fix_dot_types(&self, block: u64, seed: Option<Checksum>, is_index: bool) -> Result<()> {
        if self.superblock.has_file_types() {
            return Ok(());
        }
        let mut bytes = self.staging.block(block)?;
        for at in [0, DOT_DOT] {
            bytes[at + 7] = 0;
        }
        if is_index {
            self.put_index_block(block, bytes, seed, crate::htree::ROOT_HEADER)
        } else {
            self.put_leaf(block, bytes, seed)
        }
    }

    /// The blocks in which a name can be.
    fn blocks_with(&self, directory: &Blocked, name: &[u8]) -> Result<Vec<u64>> {
        if directory.inode.has(FLAG_INDEX) {
            self.leaves(directory, name)
        } else {
            Ok(directory.blocks.clone())
        }
    }

    /// What a name in a directory stands for, without reading all of an indexed one.
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt`, `Io`.
    pub(crate) fn find(&self, directory: u32, name: &[u8]) -> Result<Option<u32>> {
        if !self.load(directory)?.has(FLAG_INDEX) {
            let found = self.filesystem.lookup(&self.reader_inode(directory)?, name)?;
            return Ok(found.map(u32::from));
        }
        let directory = self.blocked(directory)?;
        let end = self.names_end();
        for block in self.leaves(&directory, name)? {
            let bytes = self.staging.block(block)?;
            self.check_leaf(&directory, &bytes)?;
            for slot in slots(&bytes[..end])? {
                if slot.inode != 0 && slot.name == name {
                    return Ok(Some(slot.inode));
                }
            }
        }
        Ok(None)
    }

    /// Fails for a block of names whose checksum is wrong.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_leaf(&self, directory: &Blocked, bytes: &[u8]) -> Result<()> {
        let Some(seed) = directory.seed else { return Ok(()) };
        let end = self.names_end();
        if LittleEndian::read_u32(&bytes[end + HEADER..]) == seed.with(&bytes[..end]).value() {
            return Ok(());
        }
        let number = directory.inode.number;
        Err(damaged(format!(
            "a block of directory inode {number} has a wrong checksum"
        )))
    }

    /// Takes a name out of a directory.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn remove_name(&mut self, directory: u32, name: &[u8]) -> Result<()> {
        if self.load(directory)?.is_inline() {
            return self.remove_inline_name(directory, name);
        }
        let directory = self.blocked(directory)?;
        let end = self.names_end();
        for &block in &self.blocks_with(&directory, name)? {
            let mut bytes = self.staging.block(block)?;
            if remove(&mut bytes[..end], name)? {
                return self.put_leaf(block, bytes, directory.seed);
            }
        }
        Err(damaged("a name that was found before is not there".to_owned()))
    }

    /// The directory above a directory.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn parent(&self, directory: u32) -> Result<u32> {
        let inode = self.load(directory)?;
        if inode.is_inline() {
            return Ok(LittleEndian::read_u32(inode.map()));
        }
        let bytes = self.staging.block(self.blocked(directory)?.blocks[0])?;
        check_dot_dot(&bytes)?;
        Ok(LittleEndian::read_u32(&bytes[DOT_DOT..]))
    }

    /// Has `..` of a directory lead elsewhere.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn set_parent(&mut self, directory: u32, parent: u32) -> Result<()> {
        let mut inode = self.load(directory)?;
        if inode.is_inline() {
            let mut map = [0; ext4_builder::format::MAP_SIZE];
            map.copy_from_slice(inode.map());
            LittleEndian::write_u32(&mut map, parent);
            inode.set_map(&map);
            return self.store(&mut inode);
        }
        let directory = self.blocked(directory)?;
        let block = directory.blocks[0];
        let mut bytes = self.staging.block(block)?;
        check_dot_dot(&bytes)?;
        LittleEndian::write_u32(&mut bytes[DOT_DOT..], parent);
        if directory.inode.has(FLAG_INDEX) {
            self.put_index_block(block, bytes, directory.seed, crate::htree::ROOT_HEADER)
        } else {
            self.put_leaf(block, bytes, directory.seed)
        }
    }

    /// Gives a new directory its first block, with these names besides `.` and `..`.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn make_blocks(&mut self, mut inode: Inode, parent: u32, names: &[Name]) -> Result<()> {
        inode.set_flag(FLAG_EXTENTS, self.superblock.has_extents());
        inode.set_map(&crate::map::empty(self.superblock.has_extents()));
        self.set_room(&mut inode, 0)?;
        let directory = Blocked {
            seed: inode.seed(self.seed()),
            inode,
            blocks: Vec::new(),
            map: Vec::new(),
            had: 0,
        };
        self.rebuild(directory, parent, names)
    }

    /// Levels of an index below its root.
    pub(crate) fn index_levels(&self) -> usize {
        if self.superblock.has_large_directories() {
            LARGE_LEVELS
        } else {
            PLAIN_LEVELS
        }
    }
}

/// Fails unless `..` is where it has to be: after an entry for `.`, which has no room to spare.
fn check_dot_dot(bytes: &[u8]) -> Result<()> {
    if bytes[DOT_DOT + 6] == 2 && bytes[DOT_DOT + HEADER..].starts_with(b"..") {
        return Ok(());
    }
    Err(damaged("a directory does not start with . and ..".to_owned()))
}

/// A directory cannot have more names.
pub(crate) fn full() -> Error {
    Error::new(ErrorKind::NoSpace, "the directory cannot hold more names")
}
