//! Trees of directories on the host.
//!
//! Every name is looked up in its directory, which is open, and no link is followed: whoever can write to the tree cannot
//! lead us out of it. Names are taken in the order of their bytes, so that the order in which the host lists them does not
//! matter. A few directories at the end of the path are open at a time; one that was closed is found again as the parent
//! of the one below, and must still be the same.
//!
//! Files and directories are opened without a change of their times of access where that is allowed, as it is to their
//! owner and to root. What reading changes the time of, and a symlink always, gets the time of modification instead: the
//! next run would see another tree otherwise.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use block::{Error, FileId, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, SeekFrom, fstatfs, openat, readlinkat, seek};
use rustix::io::Errno;

use super::Control;
use super::copying::{self, Copier, Job};
use super::filter::Filter;
use super::left_out::LeftOut;
use super::stat::{Stat, changed};
use super::xattrs::{XattrReader, Xattrs};
use crate::{Builder, Metadata, Node};

/// Directories that are open at a time.
const OPEN: usize = 64;

/// Bytes of names that are asked for at a time.
const LISTING: usize = 64 << 10;

/// Types of file systems that a kernel makes up: proc, sysfs, debugfs, tracefs, securityfs and both versions of cgroup
/// (linux/magic.h).
const MADE_UP: [u64; 7] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x0027_e0eb,
    0x6367_7270,
];

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
            path: Vec::new(),
            links: HashMap::new(),
            xattrs: XattrReader::new(),
            left_out: LeftOut::default(),
            device: 0,
            plain: None,
        };
        walk.run().map_err(|error| error.with_path(walk.shown()))?;
        Ok(walk.left_out.and(&walk.xattrs.left_out))
    })
}

struct Walk<'w, 's> {
    builder: &'w mut Builder<'s>,
    copier: &'w Copier<'w>,
    options: &'w Directory,
    filter: &'w Filter,
    root: &'w Path,
    /// From the root to what is being copied.
    path: Vec<u8>,
    /// What has several names.
    links: HashMap<FileId, Node>,
    xattrs: XattrReader,
    left_out: LeftOut,
    /// Of the root.
    device: u64,
    /// A file system whose empty files are empty, the last one that was looked at.
    plain: Option<u64>,
}

/// What was opened to be read.
struct Opened {
    file: OwnedFd,
    /// Reading changes its time of access.
    is_noticed: bool,
}

impl Opened {
    /// What is told of it, of what it has.
    fn metadata(&self, metadata: &Metadata) -> Metadata {
        if self.is_noticed {
            unread(metadata)
        } else {
            metadata.clone()
        }
    }
}

/// A directory whose names are gone through.
struct Frame {
    /// `None` when it was closed, to be opened again.
    directory: Option<OwnedFd>,
    id: FileId,
    node: Node,
    names: Names,
    /// Bytes of the path up to its own name's end.
    path_len: usize,
}

/// The names in a directory, sorted, each with a NUL, in reverse: the next is the last.
struct Names {
    bytes: Vec<u8>,
    /// First bytes of each name, as a number that sorts as they do, and where it starts.
    starts: Vec<(u64, usize)>,
}

impl Walk<'_, '_> {
    /// The path on the host of what is being copied.
    fn shown(&self) -> PathBuf {
        match &self.path[..] {
            [] => self.root.to_owned(),
            path => self.root.join(OsStr::from_bytes(path)),
        }
    }

    fn run(&mut self) -> Result<()> {
        let root = open_root(self.root)?;
        let stat = Stat::of(&root.file, c"").map_err(read("look at the directory"))?;
        self.device = stat.id.device;
        let node = self.builder.root();
        let metadata = self.filter.metadata(&root.metadata(&stat.metadata));
        self.builder.set_metadata(node, &metadata)?;
        let mut stack = vec![self.enter(root.file, &stat, node)?];
        while let Some(frame) = stack.last_mut() {
            self.path.truncate(frame.path_len);
            let Some(name) = frame.names.next() else {
                leave(&mut stack)?;
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend(name.to_bytes());
            if self.filter.excludes(&self.path) {
                continue;
            }
            self.copier.check()?;
            // It is open: leaving another one has seen to that.
            let Some(directory) = &frame.directory else {
                continue;
            };
            if let Some(below) = self.entry(directory.as_fd(), frame.node, name)? {
                stack.push(below);
                if let Some(far) = stack.len().checked_sub(OPEN + 1) {
                    stack[far].directory = None;
                }
            }
        }
        Ok(())
    }

    /// Begins with a directory that is in the tree already.
    fn enter(&mut self, directory: OwnedFd, stat: &Stat, node: Node) -> Result<Frame> {
        self.set_xattrs(node, &Xattrs::Open(directory.as_fd()))?;
        Ok(Frame {
            names: Names::read(&directory).map_err(read("list the directory"))?,
            directory: Some(directory),
            id: stat.id,
            node,
            path_len: self.path.len(),
        })
    }

    /// Copies what a directory has by a name. Returns the frame of a directory to go into.
    fn entry(&mut self, directory: BorrowedFd<'_>, parent: Node, name: &CStr) -> Result<Option<Frame>> {
        let mut stat = Stat::of(directory, name).map_err(vanished("look at the file"))?;
        stat.metadata = self.filter.metadata(&stat.metadata);
        if self.options.refuse.contains(&stat.id) {
            return Err(Error::invalid(
                "the filesystem is being written to a file in the tree that it is made of",
            )
            .with_path(self.root)
            .with_hint("write it to another directory"));
        }
        let bytes = name.to_bytes();
        if stat.file_type == FileType::Directory {
            let below = open_directory(directory, name).map_err(vanished("open the directory"))?;
            let now = Stat::of(&below.file, c"").map_err(read("look at the directory"))?;
            if now.id != stat.id {
                return Err(changed("it was replaced"));
            }
            let metadata = below.metadata(&stat.metadata);
            let node = self.builder.directory(parent, bytes, &metadata)?;
            let mut frame = self.enter(below.file, &stat, node)?;
            if self.options.one_file_system && stat.id.device != self.device {
                frame.names.starts.clear();
            }
            return Ok(Some(frame));
        }
        if stat.links > 1
            && let Some(&node) = self.links.get(&stat.id)
        {
            self.builder.hard_link(parent, bytes, node)?;
            return Ok(None);
        }
        let node = match stat.special() {
            _ if stat.file_type == FileType::RegularFile => self.file(directory, parent, name, &stat)?,
            _ if stat.file_type == FileType::Symlink => self.symlink(directory, parent, name, &stat)?,
            Some(special) => self.builder.special(parent, bytes, &stat.metadata, special)?,
            None => return Err(Error::unsupported("the type of this file is not known")),
        };
        if stat.file_type != FileType::RegularFile {
            self.set_xattrs(node, &Xattrs::Named(directory, name))?;
        }
        if stat.links > 1 {
            self.links.insert(stat.id, node);
        }
        Ok(None)
    }

    /// Fails where files are empty only as long as nobody reads them: in /proc, and in what else a kernel makes up.
    fn refuse_made_up(&mut self, directory: BorrowedFd<'_>, device: u64) -> Result<()> {
        if self.plain == Some(device) {
            return Ok(());
        }
        let kind = fstatfs(directory)
            .map_err(read("look at the file system"))?
            .f_type;
        if MADE_UP.contains(&(kind as u64)) {
            let message = "the files here are made up by the kernel of this machine, and cannot be copied";
            let hint = "leave them out with --one-file-system, or --exclude '/proc/*' --exclude '/sys/*'";
            return Err(Error::invalid(message).with_hint(hint));
        }
        self.plain = Some(device);
        Ok(())
    }

    fn file(&mut self, directory: BorrowedFd<'_>, parent: Node, name: &CStr, stat: &Stat) -> Result<Node> {
        if stat.size == 0 {
            self.refuse_made_up(directory, stat.id.device)?;
            let (node, _) = self
                .builder
                .file(parent, name.to_bytes(), &stat.metadata, 0, &[])?;
            self.set_xattrs(node, &Xattrs::Named(directory, name))?;
            return Ok(node);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let opened = open(directory, name, flags).map_err(vanished("open the file"))?;
        let metadata = opened.metadata(&stat.metadata);
        let file = opened.file;
        let data = data(&file, stat.size).map_err(read("find the holes"))?;
        if self.builder.is_small_file(stat.size, &data) {
            let contents = copying::read_small(&file, stat)?;
            let node = self
                .builder
                .small_file(parent, name.to_bytes(), &metadata, &contents)?;
            self.set_xattrs(node, &Xattrs::Open(file.as_fd()))?;
            return Ok(node);
        }
        let (node, placement) = self
            .builder
            .file(parent, name.to_bytes(), &metadata, stat.size, &data)?;
        self.set_xattrs(node, &Xattrs::Open(file.as_fd()))?;
        self.copier.put(Job::File {
            file,
            stat: stat.clone(),
            placement,
            path: self.shown(),
        })?;
        Ok(node)
    }

    fn symlink(&mut self, directory: BorrowedFd<'_>, parent: Node, name: &CStr, stat: &Stat) -> Result<Node> {
        let target = readlinkat(directory, name, Vec::new()).map_err(vanished("read the link"))?;
        let metadata = unread(&stat.metadata);
        self.builder
            .symlink(parent, name.to_bytes(), &metadata, target.to_bytes())
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

/// Ends with a directory, and goes on with the one that it is in.
fn leave(stack: &mut Vec<Frame>) -> Result<()> {
    let (Some(left), Some(above)) = (stack.pop(), stack.last_mut()) else {
        return Ok(());
    };
    if let (None, Some(below)) = (&above.directory, left.directory) {
        let again = open_directory(below.as_fd(), c"..").map_err(read("open the directory above"))?;
        let again = again.file;
        let stat = Stat::of(&again, c"").map_err(read("look at the directory above"))?;
        if stat.id != above.id {
            return Err(changed("it was moved"));
        }
        above.directory = Some(again);
    }
    Ok(())
}

impl Names {
    fn read(directory: &OwnedFd) -> Result<Self, Errno> {
        let mut names = Self {
            bytes: Vec::new(),
            starts: Vec::new(),
        };
        let mut buffer = vec![MaybeUninit::uninit(); LISTING];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.starts.push((first_bytes(name), names.bytes.len()));
                names.bytes.extend(name.to_bytes_with_nul());
            }
        }
        let bytes = &names.bytes;
        let name = |start: usize| CStr::from_bytes_until_nul(&bytes[start..]).unwrap_or_default();
        names
            .starts
            .sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| name(b.1).cmp(name(a.1))));
        Ok(names)
    }

    fn next(&mut self) -> Option<&CStr> {
        let (_, start) = self.starts.pop()?;
        CStr::from_bytes_until_nul(&self.bytes[start..]).ok()
    }
}

/// The first bytes of a name, which are enough to sort most.
fn first_bytes(name: &CStr) -> u64 {
    let mut first = [0; 8];
    for (first, byte) in first.iter_mut().zip(name.to_bytes()) {
        *first = *byte;
    }
    u64::from_be_bytes(first)
}

/// Metadata without what reading changes of it.
fn unread(metadata: &Metadata) -> Metadata {
    Metadata {
        accessed: metadata.modified,
        ..metadata.clone()
    }
}

/// The root, through links.
fn open_root(path: &Path) -> Result<Opened> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    unnoticed(flags, |flags| openat(CWD, path, flags, Mode::empty())).map_err(read("open the directory"))
}

fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> Result<Opened, Errno> {
    open(directory, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens what is no link.
fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<Opened, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    unnoticed(flags, |flags| openat(directory, name, flags, Mode::empty()))
}

/// Opens without a change of the time of access where that is allowed.
fn unnoticed(flags: OFlags, open: impl Fn(OFlags) -> Result<OwnedFd, Errno>) -> Result<Opened, Errno> {
    let (opened, is_noticed) = match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => (open(flags), true),
        opened => (opened, false),
    };
    let file = opened?;
    Ok(Opened { file, is_noticed })
}

/// The ranges of a file that hold data.
pub(super) fn data(file: &OwnedFd, size: u64) -> Result<Vec<Range<u64>>, Errno> {
    let mut ranges = Vec::new();
    let mut end = 0;
    while end < size {
        // The first byte mostly is data, and then one call is enough.
        let mut start = end;
        let mut hole = next(file, SeekFrom::Hole(start), size)?;
        if hole == start {
            start = next(file, SeekFrom::Data(start), size)?;
            if start == size {
                break;
            }
            hole = next(file, SeekFrom::Hole(start), size)?;
        }
        // Neither can be, unless somebody is writing; then the size will differ.
        if hole <= start {
            break;
        }
        ranges.push(start..hole);
        end = hole;
    }
    Ok(ranges)
}

/// Where the next data or hole begins; `size` where there is none.
fn next(file: &OwnedFd, from: SeekFrom, size: u64) -> Result<u64, Errno> {
    match (seek(file, from), from) {
        (Ok(offset), _) => Ok(offset.min(size)),
        // A file system that knows no holes says INVAL.
        (Err(Errno::NXIO), _) | (Err(Errno::INVAL), SeekFrom::Hole(_)) => Ok(size),
        (Err(errno), _) => Err(errno),
    }
}

fn read(what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| {
        let error = Error::io(what, errno.into());
        match errno {
            Errno::ACCESS | Errno::PERM => {
                error.with_hint("run as a user who may read all of the tree, or leave it out with --exclude")
            }
            _ => error,
        }
    }
}

/// The same for what was there when its directory was listed.
fn vanished(what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| match errno {
        Errno::NOENT | Errno::STALE => changed("it vanished"),
        Errno::LOOP | Errno::NOTDIR => changed("it was replaced"),
        _ => read(what)(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn names_come_in_the_order_of_their_bytes_however_long_they_are() {
        let names: [&[u8]; 9] = [
            b"a",
            b"a-longer-name",
            b"a-longer-name-1",
            b"a-longer-name-10",
            b"a-longer-name-2",
            b"a-longer\xff",
            b"aa",
            b"b",
            b"\xff\xfe",
        ];
        let directory = tempfile::tempdir().unwrap();
        for name in names.iter().rev() {
            File::create(directory.path().join(OsStr::from_bytes(name))).unwrap();
        }
        let mut read = Names::read(&File::open(directory.path()).unwrap().into()).unwrap();
        for name in names {
            assert_eq!(read.next().unwrap().to_bytes(), name);
        }
        assert!(read.next().is_none());
    }
}
