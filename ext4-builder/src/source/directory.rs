//! Trees of directories on the host.
//!
//! They are gone through as [`Descent`] says. Of what reading changes the time of access, that is not copied.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, FileId, Result};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::Control;
use super::copying::{self, Copier, Job};
use super::descent::{self, Descent, Entry, read, unread};
use super::filter::Filter;
use super::left_out::LeftOut;
use super::made_up::Plain;
use super::stat::Stat;
use super::xattrs::{XattrReader, Xattrs};
use crate::{Builder, Node};

const MADE_UP_HINT: &str = "leave them out with --one-file-system, or --exclude '/proc/*' --exclude '/sys/*'";

/// How a directory is copied.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Leaves out what is in directories that something is mounted on.
    pub one_file_system: bool,
    /// Files that must not be in the tree: those that it is copied to.
    pub refuse: Vec<FileId>,
}

/// Copies what is in a directory of the host into the root of a filesystem, which gets the directory's own metadata.
///
/// Hard links stay links, between symlinks too; holes stay holes.
///
/// # Errors
/// `Io` for what cannot be read, and what changes while it is read; `InvalidInput` for what ext4 cannot hold;
/// `NoSpace`; what [`Control::report`] returns. All are told of the file.
pub fn copy_directory(
    builder: &mut Builder<'_>,
    path: &Path,
    options: &Directory,
    filter: &Filter,
    control: &Control<'_>,
) -> Result<LeftOut> {
    copying::run(builder.storage(), control, |copier| {
        let mut walk = Walk {
            builder,
            copier,
            options,
            filter,
            root: path,
            links: HashMap::new(),
            xattrs: XattrReader::new(),
            left_out: LeftOut::default(),
            device: 0,
            plain: Plain::default(),
        };
        let mut descent = Descent::default();
        walk.run(&mut descent)
            .map_err(|error| error.with_path(shown(path, descent.path())))?;
        Ok(walk.left_out.and(&walk.xattrs.left_out))
    })
}

struct Walk<'w, 's> {
    builder: &'w mut Builder<'s>,
    copier: &'w Copier<'w>,
    options: &'w Directory,
    filter: &'w Filter,
    root: &'w Path,
    /// What has several names.
    links: HashMap<FileId, Node>,
    xattrs: XattrReader,
    left_out: LeftOut,
    /// Of the root.
    device: u64,
    plain: Plain,
}

impl Walk<'_, '_> {
    fn run(&mut self, descent: &mut Descent<Node>) -> Result<()> {
        let root = descent::open_root(self.root)?;
        let stat = Stat::of(&root.file, c"").map_err(read("look at the directory"))?;
        self.device = stat.id.device;
        let node = self.builder.root();
        let metadata = self.filter.metadata(&root.metadata(&stat.metadata));
        self.builder.set_metadata(node, &metadata)?;
        self.set_xattrs(node, &Xattrs::Open(root.file.as_fd()))?;
        descent.enter(root.file, &stat, node)?;
        while let Some(entry) = descent.next_entry()? {
            if self.filter.excludes(entry.path()) {
                continue;
            }
            self.copier.check()?;
            let Some((directory, stat, node)) = self.entry(&entry)? else {
                continue;
            };
            descent.enter(directory, &stat, node)?;
            if self.options.one_file_system && stat.id.device != self.device {
                descent.pass_over();
            }
        }
        Ok(())
    }

    /// Copies what has a name. Returns a directory to go into.
    fn entry(&mut self, entry: &Entry<'_, Node>) -> Result<Option<(OwnedFd, Stat, Node)>> {
        let mut stat = entry.stat()?;
        stat.metadata = self.filter.metadata(&stat.metadata);
        if self.options.refuse.contains(&stat.id) {
            return Err(Error::invalid(
                "the filesystem is being written to a file in the tree that it is made of",
            )
            .with_path(self.root)
            .with_hint("write it to another directory"));
        }
        let (parent, name) = (*entry.inside(), entry.name());
        if stat.file_type == FileType::Directory {
            let below = entry.open_directory(&stat)?;
            let metadata = below.metadata(&stat.metadata);
            let node = self.builder.directory(parent, name, &metadata)?;
            self.set_xattrs(node, &Xattrs::Open(below.file.as_fd()))?;
            return Ok(Some((below.file, stat, node)));
        }
        if stat.links > 1
            && let Some(&node) = self.links.get(&stat.id)
        {
            self.builder.hard_link(parent, name, node)?;
            return Ok(None);
        }
        let node = match stat.special() {
            _ if stat.file_type == FileType::RegularFile => self.file(entry, &stat)?,
            _ if stat.file_type == FileType::Symlink => self.symlink(entry, &stat)?,
            Some(special) => self.builder.special(parent, name, &stat.metadata, special)?,
            None => return Err(Error::unsupported("the type of this file is not known")),
        };
        if stat.file_type != FileType::RegularFile {
            self.set_xattrs(node, &entry.xattrs())?;
        }
        if stat.links > 1 {
            self.links.insert(stat.id, node);
        }
        Ok(None)
    }

    fn file(&mut self, entry: &Entry<'_, Node>, stat: &Stat) -> Result<Node> {
        let (parent, name) = (*entry.inside(), entry.name());
        if stat.size == 0 {
            self.plain
                .check(entry.directory(), stat)
                .map_err(|error| match error.kind() {
                    ErrorKind::InvalidInput => error.with_hint(MADE_UP_HINT),
                    _ => error,
                })?;
            let (node, _) = self.builder.file(parent, name, &stat.metadata, 0, &[])?;
            self.set_xattrs(node, &entry.xattrs())?;
            return Ok(node);
        }
        let opened = entry.open_file()?;
        let metadata = opened.metadata(&stat.metadata);
        let file = opened.file;
        let data = descent::data(&file, stat.size).map_err(read("find the holes"))?;
        if self.builder.is_small_file(stat.size, &data) {
            let contents = copying::read_small(&file, stat)?;
            let node = self.builder.small_file(parent, name, &metadata, &contents)?;
            self.set_xattrs(node, &Xattrs::Open(file.as_fd()))?;
            return Ok(node);
        }
        let (node, placement) = self.builder.file(parent, name, &metadata, stat.size, &data)?;
        self.set_xattrs(node, &Xattrs::Open(file.as_fd()))?;
        self.copier.put(Job::File {
            file,
            stat: stat.clone(),
            placement,
            path: shown(self.root, entry.path()),
        })?;
        Ok(node)
    }

    fn symlink(&mut self, entry: &Entry<'_, Node>, stat: &Stat) -> Result<Node> {
        let target = entry.read_link()?;
        let metadata = unread(&stat.metadata);
        self.builder
            .symlink(*entry.inside(), entry.name(), &metadata, &target)
    }

    fn set_xattrs(&mut self, node: Node, of: &Xattrs<'_>) -> Result<()> {
        let xattrs = self.xattrs.read(of).map_err(|errno| match errno {
            Errno::NOSYS => Error::unsupported(
                "/proc is not mounted, and without it this kernel does not tell extended attributes",
            ),
            _ => read("read the extended attributes")(errno),
        })?;
        self.filter
            .set_xattrs(self.builder, node, xattrs, &mut self.left_out)
    }
}

/// The path on the host of what is being copied.
fn shown(root: &Path, path: &[u8]) -> PathBuf {
    match path {
        [] => root.to_owned(),
        path => root.join(OsStr::from_bytes(path)),
    }
}
