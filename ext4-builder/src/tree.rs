//! The tree of names and inodes, as small as it goes: a million files are a few hundred bytes each, and no more.
//!
//! A node is a number; its [`Inode`](Record) is one record in a vector, and so is each name that it has. Names lie one
//! after the other in one buffer. What is in a directory is found by one hash table over (directory, name), and listed by
//! a chain through the names. What is removed stays in these vectors, marked: numbers are never given again.

use std::hash::{BuildHasher, RandomState};

use block::{Error, Result};
use hashbrown::HashTable;

use crate::Node;
use crate::inode::FileType;

/// Ends a chain of names.
const NONE: u32 = u32::MAX;

/// What an inode holds besides its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing: an empty file, a fifo, a socket.
    Empty,
    /// A file's only run, from its start on.
    Run {
        start: u64,
        blocks: u32,
    },
    /// A file's runs, in a table of such.
    Runs(u32),
    /// What has been made of the runs, in a table of such.
    Mapped(u32),
    /// The last name put in a directory, and the directory that it is in.
    Directory {
        last: u32,
        parent: u32,
    },
    /// A small file; where its contents are among the names.
    Small {
        contents: u32,
    },
    /// Where the target is among the names.
    Symlink {
        target: u32,
    },
    Device {
        major: u32,
        minor: u32,
    },
}

/// An inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// Access, change, modification, creation: fields as they are in the inode.
    pub(crate) times: [(u32, u32); 4],
    pub(crate) content: Content,
    pub(crate) size: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names; for a directory, subdirectories and one. 0 when removed.
    pub(crate) links: u32,
    /// Number of the inode, once it is given.
    pub(crate) number: u32,
    /// Number of the set of extended attributes; when all is placed, of the set with its block.
    pub(crate) xattrs: u32,
    pub(crate) permissions: u16,
    pub(crate) file_type: FileType,
}

impl Record {
    pub(crate) fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }
}

/// A name in the table, and half of its hash: where the table grows, or another name is near, the name itself need not be
/// looked at, which is not in the cache.
#[derive(Clone, Copy, Debug)]
struct Slot {
    name: u32,
    hash: u32,
}

impl Slot {
    /// The hash that the table sees: it takes a place from the low bits, and a tag from the high ones.
    fn spread(hash: u32) -> u64 {
        u64::from(hash) << 32 | u64::from(hash)
    }
}

#[derive(Clone, Copy, Debug)]
struct Name {
    directory: u32,
    /// What it names, or [`NONE`] when removed.
    node: u32,
    /// Where it starts among the names, with a byte of its length.
    start: u32,
    /// The name before it in the directory.
    before: u32,
}

/// Names and inodes.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) records: Vec<Record>,
    names: Vec<Name>,
    /// Names after their length in a byte, and targets of symlinks and small files after theirs in two.
    bytes: Vec<u8>,
    lookup: HashTable<Slot>,
    hasher: RandomState,
}

impl Tree {
    /// A tree of a root, whose node is 0.
    pub(crate) fn new(root: Record) -> Self {
        let content = Content::Directory {
            last: NONE,
            parent: 0,
        };
        Self {
            records: vec![Record {
                content,
                links: 1,
                ..root
            }],
            names: Vec::new(),
            bytes: Vec::new(),
            lookup: HashTable::new(),
            // Which names meet in the table is not to be chosen by who chooses names. The table's order is never seen.
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn record(&self, node: Node) -> &Record {
        &self.records[node.0 as usize]
    }

    pub(crate) fn record_mut(&mut self, node: Node) -> &mut Record {
        &mut self.records[node.0 as usize]
    }

    /// The target of a symlink, or the contents of a small file.
    pub(crate) fn bytes(&self, start: u32) -> &[u8] {
        let start = start as usize;
        let len = usize::from(u16::from_le_bytes([self.bytes[start], self.bytes[start + 1]]));
        &self.bytes[start + 2..start + 2 + len]
    }

    pub(crate) fn put_bytes(&mut self, bytes: &[u8]) -> Result<u32> {
        let start = self.next_byte(bytes)?;
        self.bytes.extend((bytes.len() as u16).to_le_bytes());
        self.bytes.extend(bytes);
        Ok(start)
    }

    fn next_byte(&self, bytes: &[u8]) -> Result<u32> {
        u32::try_from(self.bytes.len())
            .ok()
            .filter(|start| start.checked_add(bytes.len() as u32 + 2).is_some())
            .ok_or_else(|| Error::unsupported("the names in this tree take more than 4 GiB"))
    }

    fn name(&self, name: u32) -> &[u8] {
        let start = self.names[name as usize].start as usize;
        &self.bytes[start + 1..start + 1 + usize::from(self.bytes[start])]
    }

    fn hash(&self, directory: u32, name: &[u8]) -> u32 {
        self.hasher.hash_one((directory, name)) as u32
    }

    fn find(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let hash = self.hash(directory, name);
        let is_same = |slot: &Slot| {
            slot.hash == hash
                && self.names[slot.name as usize].directory == directory
                && self.name(slot.name) == name
        };
        let slot = self.lookup.find(Slot::spread(hash), is_same)?;
        Some(slot.name)
    }

    /// What a directory has by this name.
    pub(crate) fn lookup(&self, directory: Node, name: &[u8]) -> Option<Node> {
        let found = self.find(directory.0, name)?;
        Some(Node(self.names[found as usize].node))
    }

    /// Adds a record that has no name yet.
    pub(crate) fn add(&mut self, mut record: Record) -> Result<Node> {
        let node = u32::try_from(self.records.len())
            .ok()
            .filter(|&node| node < NONE - 16)
            .ok_or_else(|| Error::unsupported("a filesystem cannot hold more than 2^32 files"))?;
        record.links = 0;
        if record.is_directory() {
            record.content = Content::Directory {
                last: NONE,
                parent: NONE,
            };
        }
        self.records.push(record);
        Ok(Node(node))
    }

    /// Gives a node a name that its directory does not have.
    pub(crate) fn link(&mut self, directory: Node, name: &[u8], node: Node) -> Result<()> {
        let start = self.next_byte(name)?;
        let index = u32::try_from(self.names.len())
            .ok()
            .filter(|&index| index < NONE)
            .ok_or_else(|| Error::unsupported("a filesystem cannot hold more than 2^32 names"))?;
        self.bytes.push(name.len() as u8);
        self.bytes.extend(name);
        let Content::Directory { last, .. } = &mut self.records[directory.0 as usize].content else {
            unreachable!("names are put in directories")
        };
        let before = std::mem::replace(last, index);
        self.names.push(Name {
            directory: directory.0,
            node: node.0,
            start,
            before,
        });
        let record = &mut self.records[node.0 as usize];
        record.links += 1;
        if let Content::Directory { parent, .. } = &mut record.content {
            *parent = directory.0;
            self.records[directory.0 as usize].links += 1;
        }

        let hash = self.hash(directory.0, name);
        let slot = Slot { name: index, hash };
        self.lookup
            .insert_unique(Slot::spread(hash), slot, |other| Slot::spread(other.hash));
        Ok(())
    }

    /// Takes a name away from a directory, and all that is only reached through it; `gone` is called with each
    /// record that has no name any more.
    pub(crate) fn unlink(&mut self, directory: Node, name: &[u8], mut gone: impl FnMut(&Record)) {
        let Some(found) = self.find(directory.0, name) else {
            return;
        };
        let mut left = vec![found];
        while let Some(name) = left.pop() {
            let node = self.forget(name);
            let record = &mut self.records[node as usize];
            if let Content::Directory { last, .. } = record.content {
                record.links = 0;
                let parent = self.names[name as usize].directory;
                let links = &mut self.records[parent as usize].links;
                *links = links.saturating_sub(1);
                left.extend(self.chain(last));
            } else {
                record.links -= 1;
            }
            let record = &self.records[node as usize];
            if record.links == 0 {
                gone(record);
            }
        }
    }

    /// Takes everything out of a directory.
    pub(crate) fn clear(&mut self, directory: Node, mut gone: impl FnMut(&Record)) {
        let names: Vec<Vec<u8>> = self.entries(directory).map(|(name, _)| name.to_vec()).collect();
        for name in names {
            self.unlink(directory, &name, &mut gone);
        }
    }

    /// Removes a name from the table. Returns what it named.
    fn forget(&mut self, name: u32) -> u32 {
        let directory = self.names[name as usize].directory;
        let hash = self.hash(directory, self.name(name));
        if let Ok(entry) = self
            .lookup
            .find_entry(Slot::spread(hash), |other| other.name == name)
        {
            entry.remove();
        }
        std::mem::replace(&mut self.names[name as usize].node, NONE)
    }

    /// The names that are left in a chain, the last first.
    fn chain(&self, last: u32) -> impl Iterator<Item = u32> {
        let next = |&name: &u32| Some(self.names[name as usize].before).filter(|&name| name != NONE);
        std::iter::successors(Some(last).filter(|&name| name != NONE), next)
            .filter(|&name| self.names[name as usize].node != NONE)
    }

    /// What is in a directory, in no order that means anything, but the same in every run.
    pub(crate) fn entries(&self, directory: Node) -> impl Iterator<Item = (&[u8], Node)> {
        let last = match self.record(directory).content {
            Content::Directory { last, .. } => last,
            _ => NONE,
        };
        self.chain(last)
            .map(|name| (self.name(name), Node(self.names[name as usize].node)))
    }

    /// The nodes that are not removed, in order of arrival.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node> {
        let live = |(_, record): &(usize, &Record)| record.links > 0;
        self.records
            .iter()
            .enumerate()
            .filter(live)
            .map(|(node, _)| Node(node as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(file_type: FileType) -> Record {
        Record {
            times: [(0, 0); 4],
            content: Content::Empty,
            size: 0,
            uid: 0,
            gid: 0,
            links: 0,
            number: 0,
            xattrs: 0,
            permissions: 0,
            file_type,
        }
    }

    fn names(tree: &Tree, directory: Node) -> Vec<String> {
        let mut names: Vec<String> = tree
            .entries(directory)
            .map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_record_and_a_name_stay_small() {
        assert!(size_of::<Record>() <= 80, "{}", size_of::<Record>());
        assert_eq!(size_of::<Name>(), 16);
    }

    #[test]
    fn what_is_removed_takes_all_below_it_along_but_not_what_has_another_name() {
        let mut tree = Tree::new(record(FileType::Directory));
        let root = Node(0);
        let directory = tree.add(record(FileType::Directory)).unwrap();
        tree.link(root, b"directory", directory).unwrap();
        let below = tree.add(record(FileType::Directory)).unwrap();
        tree.link(directory, b"below", below).unwrap();
        let linked = tree.add(record(FileType::Regular)).unwrap();
        tree.link(below, b"one", linked).unwrap();
        tree.link(root, b"two", linked).unwrap();
        let alone = tree.add(record(FileType::Fifo)).unwrap();
        tree.link(below, b"alone", alone).unwrap();
        assert_eq!(tree.record(root).links, 2);

        let mut gone = Vec::new();
        tree.unlink(root, b"directory", |record| gone.push(record.file_type));
        gone.sort_by_key(|&file_type| file_type as u8);
        assert_eq!(gone, [FileType::Directory, FileType::Directory, FileType::Fifo]);
        assert_eq!(names(&tree, root), ["two"]);
        assert_eq!(tree.lookup(root, b"directory"), None);
        assert_eq!(tree.lookup(below, b"one"), None);
        assert_eq!(tree.lookup(root, b"two"), Some(linked));
        assert_eq!(tree.record(root).links, 1);
        assert_eq!(tree.nodes().collect::<Vec<_>>(), [root, linked]);
    }
}
