//! Files and trees of a filesystem that is there already, which is only read.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use block::{Error, Result, escape};
use ext4_reader::{FileKind, Filesystem, Inode, InodeNumber, LastLink, Visits};

use super::copying::{BUFFER, Copier, Job};
use crate::{Builder, Metadata, Node, Special, Time};

/// The directory that every filesystem has of its own.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Opens the filesystem that an image has, by the image's name.
pub type OpenImage<'o> = dyn Fn(&Path) -> Result<Filesystem> + 'o;

/// Where something is put: a directory and a name in it, or the root.
pub(super) type Target<'t> = Option<(Node, &'t [u8])>;

/// Puts what a filesystem has at a path, with all that is in it, in the place of whatever is there; a directory is laid over one
/// that is there. Modes, owners, times, extended attributes, holes, and which names are of the same file stay as they are.
///
/// # Errors
/// `InvalidInput` for a path that leads nowhere, and what is no directory as the root; `Unsupported` for what is encrypted;
/// `Corrupt`, `Io`.
pub(super) fn put(
    filesystem: &Filesystem,
    path: &[u8],
    builder: &mut Builder<'_>,
    target: Target<'_>,
    copier: &Copier<'_>,
) -> Result<Node> {
    let top = filesystem.resolve(path, LastLink::Keep)?;
    let copying = Copying {
        filesystem,
        builder,
        copier,
        visits: Visits::new(filesystem.superblock()),
        links: HashMap::new(),
    };
    copying.run(path.to_vec(), top, target)
}

struct Copying<'c, 'b> {
    filesystem: &'c Filesystem,
    builder: &'c mut Builder<'b>,
    copier: &'c Copier<'c>,
    visits: Visits,
    /// What has several names.
    links: HashMap<InodeNumber, Node>,
}

impl Copying<'_, '_> {
    fn run(mut self, path: Vec<u8>, top: Inode, target: Target<'_>) -> Result<Node> {
        let node = match target {
            Some((parent, name)) => self.entry(parent, name, &top),
            None => self.root(&top),
        };
        let node = node.map_err(|error| told(&path, &error))?;
        let mut left = Vec::new();
        if top.kind() == FileKind::Directory {
            left.push((path, top, node));
        }
        while let Some((way, directory, node)) = left.pop() {
            for entry in self.names(&directory).map_err(|error| told(&way, &error))? {
                self.copier.check()?;
                let path = match &way[..] {
                    b"" => entry.name.clone(),
                    way => [way, b"/", &entry.name].concat(),
                };
                let (inode, below) = self
                    .filesystem
                    .inode(entry.inode)
                    .and_then(|inode| Ok((self.entry(node, &entry.name, &inode)?, inode)))
                    .map(|(node, inode)| (inode, node))
                    .map_err(|error| told(&path, &error))?;
                if inode.kind() == FileKind::Directory {
                    left.push((path, inode, below));
                }
            }
        }
        Ok(node)
    }

    /// What is in a directory, in the order of names.
    fn names(&mut self, directory: &Inode) -> Result<Vec<ext4_reader::Entry>> {
        // Its names are encrypted too.
        if directory.is_encrypted() {
            return Err(Error::unsupported(
                "it is encrypted, and the key is not in the filesystem",
            ));
        }
        self.visits.enter(directory)?;
        let mut entries = self.filesystem.read_dir(directory)?;
        if directory.number() == InodeNumber::ROOT {
            entries.retain(|entry| entry.name != LOST_AND_FOUND);
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn root(&mut self, inode: &Inode) -> Result<Node> {
        if inode.kind() != FileKind::Directory {
            return Err(Error::invalid("it is no directory, which the root is"));
        }
        let root = self.builder.root();
        self.builder.set_metadata(root, &metadata(inode))?;
        self.set_xattrs(root, inode)?;
        Ok(root)
    }

    fn entry(&mut self, parent: Node, name: &[u8], inode: &Inode) -> Result<Node> {
        let kind = inode.kind();
        let has_others = kind != FileKind::Directory && inode.links() > 1;
        if has_others && let Some(&node) = self.links.get(&inode.number()) {
            self.builder.hard_link(parent, name, node)?;
            return Ok(node);
        }
        let metadata = metadata(inode);
        let device = || {
            let number = inode.device();
            number.ok_or_else(|| Error::invalid("this device has no number"))
        };
        let special = match kind {
            FileKind::CharacterDevice => {
                let (major, minor) = device()?;
                Some(Special::CharacterDevice { major, minor })
            }
            FileKind::BlockDevice => {
                let (major, minor) = device()?;
                Some(Special::BlockDevice { major, minor })
            }
            FileKind::Fifo => Some(Special::Fifo),
            FileKind::Socket => Some(Special::Socket),
            FileKind::Regular | FileKind::Directory | FileKind::Symlink => None,
        };
        let node = match special {
            Some(special) => self.builder.special(parent, name, &metadata, special)?,
            None if kind == FileKind::Directory => self.builder.directory(parent, name, &metadata)?,
            None if kind == FileKind::Symlink => {
                let target = self.filesystem.read_link(inode)?;
                self.builder.symlink(parent, name, &metadata, &target)?
            }
            None => self.file(parent, name, &metadata, inode)?,
        };
        self.set_xattrs(node, inode)?;
        if has_others {
            self.links.insert(inode.number(), node);
        }
        Ok(node)
    }

    fn file(&mut self, parent: Node, name: &[u8], metadata: &Metadata, inode: &Inode) -> Result<Node> {
        let mut data: Vec<Range<u64>> = Vec::new();
        for run in self.filesystem.content(inode)? {
            let run = run?;
            self.visits.read(run.len)?;
            match data.last_mut() {
                Some(last) if last.end == run.offset => last.end += run.len,
                _ => data.push(run.offset..run.offset + run.len),
            }
        }
        let size = inode.size();
        if self.builder.is_small_file(size, &data) {
            let mut contents = vec![0; size as usize];
            for run in self.filesystem.content(inode)? {
                let run = run?;
                let place = run.offset as usize..(run.offset + run.len) as usize;
                self.filesystem.read_run(&run, 0, &mut contents[place])?;
            }
            return self.builder.small_file(parent, name, metadata, &contents);
        }
        let (node, placement) = self.builder.file(parent, name, metadata, size, &data)?;
        let placement = Arc::new(placement);
        for run in self.filesystem.content(inode)? {
            let run = run?;
            let mut done = 0;
            while done < run.len {
                let mut bytes = self.copier.buffer((run.len - done).min(BUFFER as u64) as usize);
                self.filesystem.read_run(&run, done, &mut bytes)?;
                let offset = run.offset + done;
                done += bytes.len() as u64;
                let placement = Arc::clone(&placement);
                self.copier.put(Job::Bytes {
                    bytes,
                    placement,
                    offset,
                })?;
            }
        }
        Ok(node)
    }

    fn set_xattrs(&mut self, node: Node, inode: &Inode) -> Result<()> {
        let xattrs = self.filesystem.xattrs(inode)?;
        let own = xattrs
            .iter()
            .map(|xattr| (&xattr.name[..], &xattr.value[..]))
            // What a kernel would not show is none.
            .filter(|(name, _)| self.builder.takes_xattr(node, name));
        let own: Vec<_> = own.collect();
        self.builder.set_xattrs(node, own)
    }
}

fn metadata(inode: &Inode) -> Metadata {
    let time = |time: ext4_reader::Time| Time {
        secs: time.seconds,
        nanos: time.nanoseconds,
    };
    Metadata {
        permissions: inode.mode() & 0o7777,
        uid: inode.uid(),
        gid: inode.gid(),
        accessed: time(inode.accessed()),
        changed: time(inode.changed()),
        modified: time(inode.modified()),
        created: time(inode.created().unwrap_or_else(|| inode.changed())),
    }
}

/// The error, told of what is at a path in the filesystem.
fn told(path: &[u8], error: &Error) -> Error {
    let path = String::from_utf8_lossy(path);
    let told = Error::new(error.kind(), format!("\"/{}\": {error}", escape(&path)));
    match error.hint() {
        Some(hint) => told.with_hint(hint.to_owned()),
        None => told,
    }
}
