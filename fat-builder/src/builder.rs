//! The builder: a tree that grows as entries come, and whose data is written as it comes.
//!
//! Clusters are given one after the other, so that every file lies in one piece. Directories are known when all entries are,
//! and get theirs last; until then the room that they will take is counted, so that what does not fit is refused when it
//! comes.

use std::collections::HashMap;
use std::io::{self, Read};

use block::{Error, ErrorKind, Result, Storage};

use crate::directory_entry::{Entry, MAX_ENTRIES};
use crate::disk::Disk;
use crate::label::Label;
use crate::layout::{FIRST_CLUSTER, Layout};
use crate::options::Options;
use crate::short_name::ShortName;
use crate::time::Time;
use crate::{finish, label, long_name};

/// Bytes that are read and written at once.
const PIECE: usize = 1 << 20;

/// A directory in a [`Builder`]'s tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node(usize);

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes in a cluster.
    pub cluster_size: u32,
    /// Clusters in the filesystem.
    pub clusters: u32,
    /// Clusters that are free.
    pub free_clusters: u32,
}

/// Makes one filesystem on a storage.
///
/// Entries may come in any order in which directories come before what is in them. The data of files is written as they
/// come, and all else by [`finish`](Self::finish), the boot sector last. Until then the storage holds no filesystem, also when
/// a builder is dropped.
///
/// Names are told apart as FAT does it, whatever their case.
#[derive(Debug)]
pub struct Builder<'s> {
    pub(crate) disk: Disk<'s>,
    pub(crate) options: Options,
    pub(crate) layout: Layout,
    pub(crate) label: Option<Label>,
    pub(crate) directories: Vec<Directory>,
    /// Which of a directory's children is known by a name without case.
    names: HashMap<(usize, String), usize>,
    /// First cluster and number of clusters of every file that has any, in the order in which they were given.
    pub(crate) files: Vec<(u32, u32)>,
    /// The cluster that is given next.
    pub(crate) next: u32,
    /// Clusters that the directories will take, the first one of the root not counted.
    directory_clusters: u64,
    piece: Vec<u8>,
}

/// A directory, and what is in it.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) parent: usize,
    pub(crate) time: Time,
    pub(crate) children: Vec<Child>,
    /// Entries that the directory will have.
    pub(crate) entries: usize,
}

/// Something in a directory.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) name: String,
    pub(crate) time: Time,
    pub(crate) content: Content,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    Directory(usize),
    /// A file of so many bytes from a cluster on; without any, that is 0.
    File {
        size: u32,
        cluster: u32,
    },
}

impl<'s> Builder<'s> {
    /// Starts a filesystem of an empty root directory. What the storage held is lost, though not all of it is overwritten.
    ///
    /// # Errors
    /// `InvalidInput` for options that cannot be, before anything is written; `Io`, `NoSpace`, and `Unsupported` for a
    /// storage that is too short and cannot grow.
    pub fn new(storage: &'s dyn Storage, options: Options) -> Result<Self> {
        let layout = Layout::new(&options)?;
        let label = label::parse(&options.label)?;
        let root = Directory {
            parent: 0,
            time: options.time,
            children: Vec::new(),
            entries: usize::from(label.is_some()),
        };
        Ok(Self {
            disk: Disk::new(storage, options.size, layout.table(0))?,
            options,
            layout,
            label,
            directories: vec![root],
            names: HashMap::new(),
            files: Vec::new(),
            // The root's first cluster is where most expect it.
            next: FIRST_CLUSTER + 1,
            directory_clusters: 0,
            piece: Vec::new(),
        })
    }

    /// The root directory.
    pub fn root(&self) -> Node {
        Node(0)
    }

    /// Puts a directory into another. One that is there by that name, to the letter, is given back as it is.
    ///
    /// # Errors
    /// `InvalidInput` for a name that FAT cannot hold or takes for another that is there, and for a directory that would
    /// be too large; `NoSpace` with how much is missing.
    pub fn directory(&mut self, parent: Node, name: &[u8], time: Time) -> Result<Node> {
        let name = long_name::check(name)?;
        let key = (parent.0, long_name::folded(name));
        if let Some(there) = self.child(&key)
            && let Content::Directory(index) = there.content
            && there.name == name
        {
            return Ok(Node(index));
        }
        self.check_new(&key, name)?;
        let entries = self.check_entries(parent, name)?;
        self.check_room(parent, name, entries, 1)?;
        let node = Node(self.directories.len());
        self.directories.push(Directory {
            parent: parent.0,
            time,
            children: Vec::new(),
            // Itself, and the one that it is in.
            entries: 2,
        });
        self.directory_clusters += 1;
        self.put(key, name, entries, time, Content::Directory(node.0));
        Ok(node)
    }

    /// Puts a file into a directory, with the `size` bytes that `content` gives.
    ///
    /// # Errors
    /// As for [`directory`](Self::directory); `InvalidInput` for 4 GiB and more, and for content of another length too;
    /// `Io`; and any [`Error`] inside the one that reading gives. The file is then not there.
    pub fn file(
        &mut self,
        parent: Node,
        name: &[u8],
        time: Time,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<()> {
        let name = long_name::check(name)?;
        let key = (parent.0, long_name::folded(name));
        self.check_new(&key, name)?;
        let Ok(short_size) = u32::try_from(size) else {
            let message = format!("{name:?}: a file of {size} bytes is larger than FAT can hold");
            return Err(Error::invalid(message).with_hint(format!("files have {} bytes at most", u32::MAX)));
        };
        let entries = self.check_entries(parent, name)?;
        let clusters = self.layout.clusters_of(size);
        self.check_room(parent, name, entries, clusters)?;
        let cluster = if size == 0 { 0 } else { self.next };
        self.stream(name, size, content)?;
        if size > 0 {
            self.files.push((cluster, clusters as u32));
        }
        self.next += clusters as u32;
        let content = Content::File {
            size: short_size,
            cluster,
        };
        self.put(key, name, entries, time, content);
        Ok(())
    }

    /// Writes directories and tables, and the boot sector when everything else is durable.
    ///
    /// # Errors
    /// `Io`, `NoSpace`. The storage then holds no filesystem, unless it is the very last sync that failed.
    pub fn finish(self) -> Result<Summary> {
        finish::finish(self)
    }

    /// What a directory has by a name without case.
    fn child(&self, key: &(usize, String)) -> Option<&Child> {
        let index = *self.names.get(key)?;
        self.directories[key.0].children.get(index)
    }

    fn check_new(&self, key: &(usize, String), name: &str) -> Result<()> {
        match self.child(key) {
            None => Ok(()),
            Some(there) if there.name == name => {
                Err(Error::invalid(format!("there are two files called {name:?}")))
            }
            Some(Child { name: there, .. }) => {
                let message = format!("FAT does not tell {there:?} from {name:?}, which differ in case only");
                Err(Error::invalid(message).with_hint("rename one of them"))
            }
        }
    }

    /// How many entries a directory has with another name in it.
    fn check_entries(&self, parent: Node, name: &str) -> Result<usize> {
        let long = if ShortName::is_all_of(name) {
            0
        } else {
            long_name::entry_count(name)
        };
        let entries = self.directories[parent.0].entries + 1 + long;
        if entries > MAX_ENTRIES {
            let message = format!("{name:?} is one name too many for its directory");
            let hint = "a directory of FAT has 65536 entries, and a long name takes several";
            return Err(Error::invalid(message).with_hint(hint));
        }
        Ok(entries)
    }

    /// Clusters that a directory takes, beyond the root's first one.
    fn clusters_of_entries(&self, directory: usize, entries: usize) -> u64 {
        let clusters = self
            .layout
            .clusters_of((entries * size_of::<Entry>()) as u64)
            .max(1);
        clusters - u64::from(directory == 0)
    }

    /// Fails if there is no room for more clusters, and for a directory of so many entries.
    fn check_room(&self, parent: Node, name: &str, entries: usize, clusters: u64) -> Result<()> {
        let growth = self.growth(parent.0, entries);
        let free = u64::from(self.layout.end() - self.next) - self.directory_clusters;
        if clusters + growth <= free {
            return Ok(());
        }
        let cluster = u64::from(self.layout.cluster_size());
        let (needed, free) = ((clusters + growth) * cluster, free * cluster);
        let message = format!(
            "the filesystem is full: {name:?} needs {needed} bytes, {} more than the {free} that are free",
            needed - free
        );
        Err(Error::new(ErrorKind::NoSpace, message).with_hint("choose a larger size, or leave something out"))
    }

    /// Clusters by which a directory grows when it has so many entries.
    fn growth(&self, directory: usize, entries: usize) -> u64 {
        let before = self.directories[directory].entries;
        self.clusters_of_entries(directory, entries) - self.clusters_of_entries(directory, before)
    }

    fn put(&mut self, key: (usize, String), name: &str, entries: usize, time: Time, content: Content) {
        self.directory_clusters += self.growth(key.0, entries);
        let directory = &mut self.directories[key.0];
        directory.entries = entries;
        self.names.insert(key, directory.children.len());
        directory.children.push(Child {
            name: name.to_owned(),
            time,
            content,
        });
    }

    /// Writes what `content` gives from the next cluster on.
    fn stream(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        let mut offset = self.layout.cluster(self.next);
        let mut left = size;
        while left > 0 {
            let len = left.min(PIECE as u64) as usize;
            self.piece.resize(len, 0);
            let read = fill(content, &mut self.piece).map_err(|error| unreadable(name, error))?;
            if read < len {
                let there = size - left + read as u64;
                let message = format!("the content of {name:?} ends after {there} of {size} bytes");
                return Err(Error::invalid(message).with_hint("do not change it while it is read"));
            }
            self.disk.write(offset, &self.piece)?;
            offset += len as u64;
            left -= len as u64;
        }
        if fill(content, &mut [0]).map_err(|error| unreadable(name, error))? > 0 {
            let message = format!("the content of {name:?} goes on after {size} bytes");
            return Err(Error::invalid(message).with_hint("do not change it while it is read"));
        }
        let end = offset.next_multiple_of(u64::from(self.layout.cluster_size()));
        self.disk.zero_new(offset, end - offset)
    }
}

/// Reads until `buf` is full, or nothing is left. Returns how many bytes there were.
fn fill(content: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match content.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            // A signal came in between; an error inside says that somebody wants it to stop.
            Err(error) if error.kind() == io::ErrorKind::Interrupted && error.get_ref().is_none() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// The error that the reader meant: its own, or one of the host.
fn unreadable(name: &str, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(inner) => inner,
        Err(error) => Error::io(format!("read the content of {name:?}"), error),
    }
}
