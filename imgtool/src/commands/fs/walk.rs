//! A walk through a tree: a directory, what is in it, and so on down, in the order of names.
//!
//! The caller says which directories are entered. However deep a tree is, it is walked without recursion, and one that goes
//! in circles or claims to be larger than it can be is an error.

use block::{Error, Result};
use ext4_reader::{Entry, Filesystem, Inode, Visits};

/// Directories within each other at most: no path that a kernel takes (`PATH_MAX`, 4096 bytes with its end) has more parts. What is said of each file by
/// its whole path, or drawn behind a line for each directory, would be as much as the square of a greater depth.
const MAX_DEPTH: usize = 2047;

/// See the [module](self).
pub(super) struct Walk<'a> {
    filesystem: &'a Filesystem,
    visits: Visits,
    /// The directories that are being walked, each with what is left of it.
    levels: Vec<Level>,
    /// Whether names that start with a dot are walked.
    all: bool,
    /// From where the walk starts to the latest entry.
    path: Vec<u8>,
}

struct Level {
    entries: std::vec::IntoIter<Entry>,
    /// How much of the path leads to the directory.
    path_len: usize,
}

/// What a walk comes to.
pub(super) enum Step {
    /// What has a name in the directory that was entered last.
    Entry(Entry, Inode),
    /// That directory's end.
    Left,
}

impl<'a> Walk<'a> {
    /// Before the first directory is entered: the name of that one is no part of the walk's paths. Unless `all` are wanted,
    /// names that start with a dot are left out.
    pub(super) fn new(filesystem: &'a Filesystem, all: bool) -> Self {
        Self {
            filesystem,
            visits: Visits::new(filesystem.superblock()),
            levels: Vec::new(),
            all,
            path: Vec::new(),
        }
    }

    /// Goes on with what is in the directory that the latest step came to.
    ///
    /// # Errors
    /// `Corrupt` for one that was entered before, `Unsupported` for one that is too deep; as [`Filesystem::read_dir`].
    pub(super) fn enter(&mut self, directory: &Inode) -> Result<()> {
        if self.levels.len() >= MAX_DEPTH {
            let message = format!("it is more than {MAX_DEPTH} directories deep, where no path leads");
            return Err(Error::unsupported(message).with_hint("name a directory in it to start from"));
        }
        self.visits.enter(directory)?;
        let mut entries = self.filesystem.read_dir(directory)?;
        if !self.all {
            entries.retain(|entry| !entry.name.starts_with(b"."));
        }
        entries.sort_unstable();
        self.levels.push(Level {
            entries: entries.into_iter(),
            path_len: self.path.len(),
        });
        Ok(())
    }

    /// The next step; none at the end of the whole walk, which is after the first directory was left.
    ///
    /// # Errors
    /// As [`Filesystem::inode`].
    pub(super) fn step(&mut self) -> Result<Option<Step>> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(None);
        };
        self.path.truncate(level.path_len);
        let Some(entry) = level.entries.next() else {
            self.levels.pop();
            return Ok(Some(Step::Left));
        };
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&entry.name);
        let inode = self.filesystem.inode(entry.inode)?;
        Ok(Some(Step::Entry(entry, inode)))
    }

    /// What is left of each directory that is being walked, from the first one on.
    pub(super) fn left(&self) -> impl Iterator<Item = &[Entry]> {
        self.levels.iter().map(|level| level.entries.as_slice())
    }

    /// From where the walk starts to the latest entry, or to the directory that was left.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Takes note of content that is about to be read.
    ///
    /// # Errors
    /// `Corrupt` if there cannot be so much.
    pub(super) fn read(&mut self, len: u64) -> Result<()> {
        self.visits.read(len)
    }
}
