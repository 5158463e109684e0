//! Files and directories of the host on their way into a filesystem.
//!
//! Directories are gone through as [`Descent`] says: no link is followed. Everything stays in the editor until all of it is
//! there, so that what fails in the middle changes nothing.
//!
//! What was put is never written to, replaced or followed again: names of the image can be names of one file, or links to one,
//! and one of two files that are put would have the contents of the other.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::{Error, FileId, Result, escape};
use ext4_builder::source::LeftOut;
use ext4_builder::source::host::{Descent, Entry, Plain, Stat, XattrReader, Xattrs, data};
use ext4_builder::{Metadata, Special as Found};
use ext4_editor::{Attributes, Contents, Editor, LastLink, Special};
use ext4_reader::{FileKind, Inode, InodeNumber};
use ops::{Cancel, Progress};
use rustix::fs::FileType;
use serde_json::json;

use super::below;
use crate::watch::Watch;

/// As many links as the kernel follows on a way.
const MAX_LINKS: u32 = 40;
/// What a file may do without being asked who runs it. New contents do not get it.
const CAPABILITY: &[u8] = b"security.capability";
/// Says what a name in a system stands for, which a host without such labels does not know.
const LABEL: &[u8] = b"security.selinux";
/// What names of access control lists start with.
const LISTS: &[u8] = b"system.posix_acl_";
const SET_UID: u16 = 0o4000;
/// Set-group-ID, of what the group may execute.
const SET_GID: u16 = 0o2010;

/// See the [module](self).
pub(super) struct Putting<'a> {
    editor: &'a mut Editor,
    /// What is asked for, whatever the files are.
    attributes: Attributes,
    /// Whether what is known of files is kept.
    preserve: bool,
    /// What is written to.
    refuse: Vec<FileId>,
    cancel: &'a Cancel,
    watch: &'a Watch,
    /// Where the first names of files with several names are, and what was put there.
    links: HashMap<FileId, (Vec<u8>, InodeNumber)>,
    /// What was put that is no directory, and from where.
    written: HashMap<InodeNumber, PathBuf>,
    /// What directories are to be like when nothing more is put into them. Their paths may lead elsewhere by then, where links on
    /// the way are replaced.
    late: Vec<(InodeNumber, Attributes)>,
    xattrs: XattrReader,
    plain: Plain,
    put: Put,
}

/// What has been put.
#[derive(Default)]
pub(super) struct Put {
    files: u64,
    directories: u64,
    symlinks: u64,
    others: u64,
    /// Further names of files.
    links: u64,
    bytes: u64,
    pub(super) left_out: LeftOut,
}

impl Put {
    pub(super) fn json(&self) -> serde_json::Value {
        json!({
            "files": self.files,
            "directories": self.directories,
            "symlinks": self.symlinks,
            "others": self.others,
            "links": self.links,
            "bytes": self.bytes,
            "left-out": { "xattrs": self.left_out.count() },
        })
    }
}

impl<'a> Putting<'a> {
    pub(super) fn new(
        editor: &'a mut Editor,
        attributes: Attributes,
        preserve: bool,
        refuse: Vec<FileId>,
        cancel: &'a Cancel,
        watch: &'a Watch,
    ) -> Self {
        Self {
            editor,
            attributes,
            preserve,
            refuse,
            cancel,
            watch,
            links: HashMap::new(),
            written: HashMap::new(),
            late: Vec::new(),
            xattrs: XattrReader::new(),
            plain: Plain::default(),
            put: Put::default(),
        }
    }

    pub(super) fn editor(&mut self) -> &mut Editor {
        self.editor
    }

    /// Says of directories what is known of them. Nothing more can be put.
    pub(super) fn finish(mut self) -> Result<Put> {
        for (inode, attributes) in &self.late {
            self.editor.set_attributes_of(*inode, attributes)?;
        }
        self.put.left_out = self.xattrs.left_out;
        Ok(self.put)
    }

    /// Puts bytes.
    pub(super) fn bytes(&mut self, contents: &[u8], to: &[u8], from: &Path) -> Result<()> {
        self.put.files += 1;
        self.put.bytes += contents.len() as u64;
        let there = self.there(to, LastLink::Follow, from)?;
        let attributes = Attributes {
            permissions: self.attributes.permissions.or(there.as_ref().and_then(harmless)),
            ..self.attributes.clone()
        };
        self.editor.put(to, contents, &attributes)?;
        let inode = self.written(to, LastLink::Follow, from)?;
        self.drop_capability(&inode, to)
    }

    /// Puts what a path leads to, whatever links are on the way: a file, or what can be read like one.
    pub(super) fn followed(&mut self, from: &Path, to: &[u8]) -> Result<()> {
        let failed = |what: &'static str| move |error| Error::io(what, error).with_path(from);
        let mut file = File::open(from).map_err(failed("open"))?;
        let stat = Stat::of(&file, c"").map_err(|errno| failed("look at")(errno.into()))?;
        self.refuse(&stat, from)?;
        match stat.file_type {
            FileType::Directory => {
                let error = Error::invalid("this is a directory").with_path(from);
                Err(error.with_hint("-r puts it with all that is in it"))
            }
            FileType::RegularFile => {
                let file = OwnedFd::from(file);
                self.content(&file, &stat, &stat.metadata, to, from)
            }
            _ => {
                let mut contents = Vec::new();
                file.read_to_end(&mut contents).map_err(failed("read"))?;
                self.bytes(&contents, to, from)
            }
        }
    }

    /// Puts what has a path; a directory with all that is in it.
    pub(super) fn tree(&mut self, from: &Path, to: &[u8]) -> Result<()> {
        let name = CString::new(from.as_os_str().as_bytes())
            .map_err(|_| Error::invalid("a name has a NUL in it").with_path(from))?;
        // What is found later has been there when its directory was read.
        fs::symlink_metadata(from).map_err(|error| Error::io("open", error).with_path(from))?;
        let mut descent = Descent::default();
        if let Some((directory, stat)) = self.entry(&Entry::at(&name), to, from)? {
            self.enter(&mut descent, directory, &stat, to.to_vec(), from)?;
        }
        loop {
            self.cancel.check()?;
            let next = descent.next_entry();
            let Some(entry) = next.map_err(|error| error.with_path(from))? else {
                return Ok(());
            };
            let host = from.join(OsStr::from_bytes(entry.path()));
            let to = below(entry.inside(), entry.name());
            if let Some((directory, stat)) = self.entry(&entry, &to, &host)? {
                self.enter(&mut descent, directory, &stat, to, &host)?;
            }
        }
    }

    /// Goes into a directory, which is in the filesystem already.
    fn enter(
        &mut self,
        descent: &mut Descent<Vec<u8>>,
        directory: OwnedFd,
        stat: &Stat,
        to: Vec<u8>,
        from: &Path,
    ) -> Result<()> {
        let inode = self.editor.filesystem().resolve(&to, LastLink::Follow)?;
        self.keep_xattrs(
            &Xattrs::Open(directory.as_fd()),
            &inode,
            &to,
            LastLink::Follow,
            from,
        )?;
        descent
            .enter(directory, stat, to)
            .map_err(|error| error.with_path(from))
    }

    /// Puts one file. Gives a directory that is to be gone into.
    fn entry<N>(&mut self, entry: &Entry<'_, N>, to: &[u8], from: &Path) -> Result<Option<(OwnedFd, Stat)>> {
        let told = |error: Error| error.with_path(from);
        let stat = entry.stat().map_err(told)?;
        self.refuse(&stat, from)?;
        if stat.file_type == FileType::Directory {
            let below = entry.open_directory(&stat).map_err(told)?;
            self.directory(&below.metadata(&stat.metadata), to, from)?;
            return Ok(Some((below.file, stat)));
        }
        if stat.links > 1
            && let Some((first, number)) = self.links.get(&stat.id).cloned()
        {
            return self.link(&first, number, to, from).map(|()| None);
        }
        match stat.special() {
            _ if stat.file_type == FileType::RegularFile => self.file(entry, &stat, to, from)?,
            _ if stat.file_type == FileType::Symlink => {
                let target = entry.read_link().map_err(told)?;
                self.symlink(&stat.metadata, &target, to, from)?;
                let inode = self.written(to, LastLink::Keep, from)?;
                self.keep_xattrs(&entry.xattrs(), &inode, to, LastLink::Keep, from)?;
            }
            Some(special) => {
                self.special(&stat.metadata, special, to, from)?;
                let inode = self.written(to, LastLink::Keep, from)?;
                self.keep_xattrs(&entry.xattrs(), &inode, to, LastLink::Keep, from)?;
            }
            None => return Err(told(Error::unsupported("the type of this file is not known"))),
        }
        if stat.links > 1 {
            let number = self.editor.filesystem().resolve(to, LastLink::Keep)?.number();
            // Contents that went to where a link leads are not what that name stands for.
            if self.written.contains_key(&number) {
                self.links.insert(stat.id, (to.to_vec(), number));
            }
        }
        Ok(None)
    }

    /// Refuses what is written to.
    fn refuse(&self, stat: &Stat, from: &Path) -> Result<()> {
        if self.refuse.contains(&stat.id) {
            let error = Error::invalid("this is what is written to, and cannot be put into itself");
            return Err(error.with_path(from));
        }
        Ok(())
    }

    /// What is at a path; nothing where the way there ends, which what is put there says best.
    ///
    /// # Errors
    /// `InvalidInput` where something on the way, or at its end, was put before; `Corrupt`, `Io`.
    fn there(&self, to: &[u8], last: LastLink, from: &Path) -> Result<Option<Inode>> {
        let filesystem = self.editor.filesystem();
        let mut ahead = names_backwards(to);
        let mut above = Vec::new();
        let mut here = filesystem.inode(InodeNumber::ROOT)?;
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                here = above.pop().unwrap_or(here);
                continue;
            }
            if here.kind() != FileKind::Directory {
                return Ok(None);
            }
            let Some(number) = filesystem.lookup(&here, &name)? else {
                return Ok(None);
            };
            if let Some(first) = self.written.get(&number) {
                return Err(twice(to, first, from));
            }
            let inode = filesystem.inode(number)?;
            let is_end = ahead.is_empty() && matches!(last, LastLink::Keep);
            if inode.kind() != FileKind::Symlink || is_end {
                above.push(std::mem::replace(&mut here, inode));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Ok(None);
            }
            let target = filesystem.read_link(&inode)?;
            if target.starts_with(b"/") {
                above.clear();
                here = filesystem.inode(InodeNumber::ROOT)?;
            }
            ahead.extend(names_backwards(&target));
        }
        Ok(Some(here))
    }

    /// Remembers what was put, and gives it.
    fn written(&mut self, to: &[u8], last: LastLink, from: &Path) -> Result<Inode> {
        let inode = self.editor.filesystem().resolve(to, last)?;
        self.written.insert(inode.number(), from.to_owned());
        Ok(inode)
    }

    fn directory(&mut self, metadata: &Metadata, to: &[u8], from: &Path) -> Result<()> {
        self.put.directories += 1;
        let mut attributes = self.attributes_of(metadata, 0o777);
        match self.there(to, LastLink::Follow, from)? {
            Some(there) if there.kind() == FileKind::Directory => {}
            Some(_) => return Err(in_the_way(to, "it is there, and no directory")),
            None => self.editor.make_directory(to, &attributes)?,
        }
        if self.preserve {
            attributes.permissions = Some(metadata.permissions);
            let inode = self.editor.filesystem().resolve(to, LastLink::Follow)?;
            self.late.push((inode.number(), attributes));
        }
        Ok(())
    }

    fn file<N>(&mut self, entry: &Entry<'_, N>, stat: &Stat, to: &[u8], from: &Path) -> Result<()> {
        let told = |error: Error| error.with_path(from);
        if stat.size == 0 {
            self.plain.check(entry.directory(), stat).map_err(told)?;
        }
        let opened = entry.open_file().map_err(told)?;
        self.content(&opened.file, stat, &opened.metadata(&stat.metadata), to, from)
    }

    /// Puts a regular file, which is open.
    fn content(
        &mut self,
        file: &OwnedFd,
        stat: &Stat,
        metadata: &Metadata,
        to: &[u8],
        from: &Path,
    ) -> Result<()> {
        let told = |error: Error| error.with_path(from);
        let mut attributes = self.attributes_of(metadata, 0o777);
        if let Some(there) = self.there(to, LastLink::Follow, from)?
            && !self.preserve
        {
            attributes.permissions = self.attributes.permissions.or(harmless(&there));
        }
        let data = data(file, stat.size).map_err(|errno| told(Error::io("look for holes", errno.into())))?;
        let source = file
            .try_clone()
            .map_err(|error| told(Error::io("use the file", error)))?;
        let (source, before) = (File::from(source), self.put.bytes);
        let contents = Contents {
            len: stat.size,
            data: &data,
            read: &mut |buffer, offset| {
                if self.cancel.is_cancelled() {
                    return Err(io::Error::other("stopped on request"));
                }
                source.read_exact_at(buffer, offset)?;
                self.watch.report(Progress {
                    done: before + offset + buffer.len() as u64,
                    total: 0,
                });
                Ok(())
            },
        };
        let put = self.editor.put_sparse(to, contents, &attributes);
        // What was asked to stop says so, and not that it could not read.
        self.cancel.check()?;
        stat.check(file).map_err(told)?;
        put?;
        self.put.bytes += stat.size;
        self.put.files += 1;
        let inode = self.written(to, LastLink::Follow, from)?;
        if !self.preserve {
            return self.drop_capability(&inode, to);
        }
        self.keep_xattrs(&Xattrs::Open(file.as_fd()), &inode, to, LastLink::Follow, from)
    }

    /// Takes from a file that has new contents what it might do with the old ones, as a kernel does.
    fn drop_capability(&mut self, inode: &Inode, to: &[u8]) -> Result<()> {
        let xattrs = self.editor.filesystem().xattrs(inode)?;
        if xattrs.iter().any(|xattr| xattr.name == CAPABILITY) {
            self.editor.remove_xattr(to, LastLink::Follow, CAPABILITY)?;
        }
        Ok(())
    }

    fn symlink(&mut self, metadata: &Metadata, target: &[u8], to: &[u8], from: &Path) -> Result<()> {
        self.put.symlinks += 1;
        self.clear(to, from)?;
        let attributes = Attributes {
            permissions: None,
            ..self.attributes_of(metadata, 0)
        };
        self.editor.symlink(to, target, &attributes)
    }

    fn special(&mut self, metadata: &Metadata, special: Found, to: &[u8], from: &Path) -> Result<()> {
        self.put.others += 1;
        self.clear(to, from)?;
        let special = match special {
            Found::Fifo => Special::Fifo,
            Found::Socket => Special::Socket,
            Found::CharacterDevice { major, minor } => Special::CharacterDevice(major, minor),
            Found::BlockDevice { major, minor } => Special::BlockDevice(major, minor),
        };
        let attributes = self.attributes_of(metadata, 0o777);
        self.editor.make_special(to, special, &attributes)
    }

    /// Gives what was put under a name another one.
    fn link(&mut self, first: &[u8], number: InodeNumber, to: &[u8], from: &Path) -> Result<()> {
        self.put.links += 1;
        let filesystem = self.editor.filesystem();
        let there = filesystem.resolve(to, LastLink::Keep);
        if there.is_ok_and(|there| there.number() == number) {
            return Ok(());
        }
        // A link on the way to the first name can have been replaced since.
        if filesystem.resolve(first, LastLink::Keep)?.number() != number {
            return Err(in_the_way(first, "another file has this name since it was put").with_path(from));
        }
        self.clear(to, from)?;
        self.editor.link(first, to)
    }

    /// Removes what has a name, if it is no directory.
    fn clear(&mut self, to: &[u8], from: &Path) -> Result<()> {
        match self.there(to, LastLink::Keep, from)? {
            Some(there) if there.kind() == FileKind::Directory => {
                Err(in_the_way(to, "it is a directory, and what is put there is none"))
            }
            Some(_) => self.editor.remove(to),
            // If it is more than that it is not there, making it says what.
            None => Ok(()),
        }
    }

    /// What a file that is put is to be like; without -p, of its permissions only these.
    fn attributes_of(&self, metadata: &Metadata, permissions: u16) -> Attributes {
        let asked = &self.attributes;
        let mut attributes = Attributes {
            permissions: Some(asked.permissions.unwrap_or(metadata.permissions & permissions)),
            ..asked.clone()
        };
        if self.preserve {
            attributes.permissions = Some(metadata.permissions);
            attributes.uid = asked.uid.or(Some(metadata.uid));
            attributes.gid = asked.gid.or(Some(metadata.gid));
            attributes.modified = Some(metadata.modified);
            attributes.accessed = Some(metadata.accessed);
        }
        attributes
    }

    /// Gives what was put the attributes that its source has. A file has no others then, but for its label; a directory can
    /// have been there before, and has no other lists.
    fn keep_xattrs(
        &mut self,
        of: &Xattrs<'_>,
        inode: &Inode,
        to: &[u8],
        last: LastLink,
        from: &Path,
    ) -> Result<()> {
        if !self.preserve {
            return Ok(());
        }
        let mut others = self.editor.filesystem().xattrs(inode)?;
        let read = self.xattrs.read(of);
        let read =
            read.map_err(|errno| Error::io("read the extended attributes", errno.into()).with_path(from))?;
        for (name, value) in read {
            self.editor.set_xattr(to, last, name, value)?;
            others.retain(|other| other.name != *name);
        }
        let is_directory = inode.kind() == FileKind::Directory;
        for other in others {
            let goes = if is_directory {
                other.name.starts_with(LISTS)
            } else {
                other.name != LABEL
            };
            if goes {
                self.editor.remove_xattr(to, last, &other.name)?;
            }
        }
        Ok(())
    }
}

/// The permissions of a file that gets new contents, where it may not keep those that it has: as another user, or with
/// another group, it was the old ones that were to run.
fn harmless(inode: &Inode) -> Option<u16> {
    let before = inode.mode() & 0o7777;
    let mut after = before & !SET_UID;
    if before & SET_GID == SET_GID {
        after &= !0o2000;
    }
    (after != before).then_some(after)
}

/// The names of a path, the last one first.
fn names_backwards(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').rev();
    names
        .filter(|name| !matches!(*name, b"" | b"."))
        .map(<[u8]>::to_vec)
        .collect()
}

fn twice(to: &[u8], first: &Path, from: &Path) -> Error {
    let text = |path: &[u8]| escape(&String::from_utf8_lossy(path)).into_owned();
    let [to, first] = [to, first.as_os_str().as_bytes()].map(text);
    Error::invalid(format!(
        "{to}: this is, or leads by, what {first} was put to, and would be written to again"
    ))
    .with_path(from)
    .with_hint("put them with two commands if the second one is to win; where names of the image are one file, remove one first: imgtool fs rm")
}

fn in_the_way(to: &[u8], problem: &str) -> Error {
    let to = String::from_utf8_lossy(to);
    Error::invalid(format!("{}: {problem}", escape(&to))).with_hint("move or remove it first: imgtool fs rm")
}
