//! Trees in tar archives.
//!
//! GNU tar writes access control lists with names of users and groups. The numbers are those that the tree itself has for
//! them, in `etc/passwd` and `etc/group`, which may come last: such lists are set when everything else is there. The host's
//! numbers would be others on another host.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use block::{Error, Result};

use super::copying::{self, BUFFER, Copier, Job};
use super::filter::Filter;
use super::left_out::LeftOut;
use super::{Control, paths};
use crate::tar::{self, Archive, Entry, Kind, NamedList, Names};
use crate::{Builder, Metadata, Node, Special, Time};

/// Bytes of a list of users or groups that is read.
const MAX_NAMES: u64 = 16 << 20;

/// Copies what is in a tar archive, which may be compressed, into the root of a filesystem. It is read as a stream.
///
/// Of entries by one name, the last counts. What comes before the directory that it is in is put there; directories
/// that the archive has no entry for belong to root. Access control lists with names have the numbers that `options` say, or
/// else the `etc/passwd` and `etc/group` of the archive itself.
///
/// # Errors
/// Those of [`tar`]; `InvalidInput` for links to what is not there and for what ext4 cannot hold; `Io`, `NoSpace`; what
/// [`Control::report`] returns.
pub fn copy_archive(
    builder: &mut Builder<'_>,
    input: impl Read + Send + 'static,
    options: tar::Options,
    filter: &Filter,
    control: &Control<'_>,
) -> Result<LeftOut> {
    let input = tar::decompress(input)?;
    let mut archive = Archive::new(input, options);
    copying::run(builder.storage(), control, |copier| {
        let mut unpacking = Unpacking::new(builder, copier, filter);
        while let Some(entry) = archive.next_entry()? {
            copier.check()?;
            if !filter.excludes_any_of(&entry.path) {
                unpacking
                    .add(&entry, &mut |buffer| archive.read_data(buffer))
                    .map_err(|error| named(error, &entry.path))?;
            }
        }
        unpacking.finish()
    })
}

/// Puts entries of archives into a filesystem.
pub(super) struct Unpacking<'u, 's> {
    builder: &'u mut Builder<'s>,
    copier: &'u Copier<'u>,
    filter: &'u Filter,
    /// Something with contents was replaced, whose room is not settled.
    replaced: bool,
    /// What has lists with names of users and groups.
    named: BTreeMap<Node, Named>,
    left_out: LeftOut,
}

/// Access control lists whose ids are to be found, with the names of their attributes, and the path of what has them.
struct Named {
    path: Vec<u8>,
    lists: Vec<(Vec<u8>, NamedList)>,
}

impl<'u, 's> Unpacking<'u, 's> {
    pub(super) fn new(builder: &'u mut Builder<'s>, copier: &'u Copier<'u>, filter: &'u Filter) -> Self {
        Self {
            builder,
            copier,
            filter,
            replaced: false,
            named: BTreeMap::new(),
            left_out: LeftOut::default(),
        }
    }

    /// What entries are put into.
    pub(super) fn builder(&mut self) -> &mut Builder<'s> {
        self.builder
    }

    /// Puts an entry where it belongs. `read` is [`Archive::read_data`].
    pub(super) fn add(
        &mut self,
        entry: &Entry,
        read: &mut dyn FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        let metadata = self.filter.metadata(&metadata(entry));
        let Some((way, name)) = paths::split(&entry.path) else {
            let root = self.builder.root();
            self.builder.set_metadata(root, &metadata)?;
            return self.set_xattrs(root, entry);
        };
        let parent = paths::directory(self.builder, way)?;
        let node = match &entry.kind {
            Kind::Directory => self.builder.directory(parent, name, &metadata)?,
            Kind::HardLink { target } => return self.hard_link(parent, name, target),
            Kind::Symlink { target } => self.builder.symlink(parent, name, &metadata, target)?,
            Kind::File { size, data } if self.builder.is_small_file(*size, data) => {
                let mut contents = vec![0; *size as usize];
                read(&mut contents)?;
                self.builder.small_file(parent, name, &metadata, &contents)?
            }
            Kind::File { size, data } => {
                self.settle(parent, name)?;
                let (node, placement) = self.builder.file(parent, name, &metadata, *size, data)?;
                let placement = Arc::new(placement);
                for range in data {
                    let mut offset = range.start;
                    while offset < range.end {
                        let mut bytes = self
                            .copier
                            .buffer((range.end - offset).min(BUFFER as u64) as usize);
                        let len = read(&mut bytes)?;
                        bytes.truncate(len);
                        let placement = Arc::clone(&placement);
                        self.copier.put(Job::Bytes {
                            bytes,
                            placement,
                            offset,
                        })?;
                        offset += len as u64;
                    }
                }
                node
            }
            &Kind::CharacterDevice { major, minor } => {
                let special = Special::CharacterDevice { major, minor };
                self.builder.special(parent, name, &metadata, special)?
            }
            &Kind::BlockDevice { major, minor } => {
                let special = Special::BlockDevice { major, minor };
                self.builder.special(parent, name, &metadata, special)?
            }
            Kind::Fifo => self.builder.special(parent, name, &metadata, Special::Fifo)?,
        };
        self.set_xattrs(node, entry)
    }

    fn set_xattrs(&mut self, node: Node, entry: &Entry) -> Result<()> {
        if entry.named_lists.is_empty() {
            self.named.remove(&node);
        } else {
            let named = Named {
                path: entry.path.clone(),
                lists: entry.named_lists.clone(),
            };
            self.named.insert(node, named);
        }
        let xattrs = entry.xattrs.iter().map(|(name, value)| (&name[..], &value[..]));
        self.filter
            .set_xattrs(self.builder, node, xattrs, &mut self.left_out)
    }

    /// Ends when all entries are there.
    pub(super) fn finish(mut self) -> Result<LeftOut> {
        // Where it is full, there will be another error, and nothing to be read.
        if self.named.is_empty() || self.builder.is_full() {
            return Ok(self.left_out);
        }
        self.copier.wait()?;
        let names = Names::new(&self.contents(b"etc/passwd")?, &self.contents(b"etc/group")?);
        for (node, Named { path, lists }) in std::mem::take(&mut self.named) {
            if self.builder.is_removed(node) {
                continue;
            }
            for (attribute, list) in &lists {
                list.resolve(&names)
                    .and_then(|list| self.filter.add_xattr(self.builder, node, attribute, &list))
                    .map_err(|error| named(error, &path))?;
            }
        }
        Ok(self.left_out)
    }

    /// All of a file in the tree; nothing where there is none.
    fn contents(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        let Some(node) = paths::lookup(self.builder, path)? else {
            return Ok(Vec::new());
        };
        Ok(self.builder.contents(node, MAX_NAMES)?.unwrap_or_default())
    }

    fn hard_link(&mut self, parent: Node, name: &[u8], target: &[u8]) -> Result<()> {
        if let Some(node) = paths::lookup(self.builder, target)? {
            return self.builder.hard_link(parent, name, node);
        }
        let shown = String::from_utf8_lossy(target);
        if self.filter.excludes_any_of(target) {
            let message = format!("it is a link to {shown:?}, which has its contents and is excluded");
            return Err(Error::invalid(message).with_hint("exclude both of them, or neither"));
        }
        let message = format!("it is a link to {shown:?}, which is not in the archive before it");
        Err(Error::invalid(message))
    }

    /// Lets the room of what was replaced be used again, before more is replaced.
    fn settle(&mut self, parent: Node, name: &[u8]) -> Result<()> {
        if std::mem::take(&mut self.replaced) {
            self.copier.wait()?;
            self.builder.settle();
        }
        self.replaced = self.builder.lookup(parent, name).is_some();
        Ok(())
    }
}

fn metadata(entry: &Entry) -> Metadata {
    let time = |time: tar::Time| Time {
        secs: time.secs,
        nanos: time.nanos,
    };
    let other = |other: Option<tar::Time>| time(other.unwrap_or(entry.mtime));
    Metadata {
        permissions: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        accessed: other(entry.atime),
        changed: other(entry.ctime),
        modified: time(entry.mtime),
        created: other(entry.created),
    }
}

/// The error, told of the entry where it says nothing of a file.
pub(super) fn named(error: Error, path: &[u8]) -> Error {
    match error.kind() {
        block::ErrorKind::InvalidInput | block::ErrorKind::Unsupported if error.path().is_none() => {
            let name = String::from_utf8_lossy(path);
            let named = Error::new(error.kind(), format!("entry {name:?}: {error}"));
            match error.hint() {
                Some(hint) => named.with_hint(hint.to_owned()),
                None => named,
            }
        }
        _ => error,
    }
}
