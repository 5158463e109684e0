//! Going through directories of the host.
//!
//! Every name is looked up in its directory, which is open, and no link is followed: whoever can write to the tree cannot
//! lead us out of it. Names are taken in the order of their bytes, so that the order in which the host lists them does not
//! matter. A few directories at the end of the path are open at a time; one that was closed is found again as the parent
//! of the one below, and must still be the same.
//!
//! Files and directories are opened without a change of their times of access where that is allowed, as it is to their
//! owner and to root. What reading changes the time of, and a symlink always, gets the time of modification instead: the
//! next run would see another tree otherwise.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use block::{Error, FileId, Result};
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, readlinkat, seek};
use rustix::io::Errno;

use super::stat::{Stat, changed};
use super::xattrs::Xattrs;
use crate::Metadata;

/// Directories that are open at a time.
const OPEN: usize = 64;

/// Bytes of names that are asked for at a time.
const LISTING: usize = 64 << 10;

/// A way down through directories. `N` is what a directory is to whoever goes.
#[derive(Debug)]
pub struct Descent<N> {
    stack: Vec<Frame<N>>,
    /// From the root to the latest entry.
    path: Vec<u8>,
}

/// A name in a directory, and that directory, which is open.
#[derive(Debug)]
pub struct Entry<'d, N> {
    directory: BorrowedFd<'d>,
    name: &'d CStr,
    path: &'d [u8],
    inside: &'d N,
}

impl<N> Default for Descent<N> {
    fn default() -> Self {
        Self {
            stack: Vec::new(),
            path: Vec::new(),
        }
    }
}

impl<N> Descent<N> {
    /// Goes on with what is in a directory: the root, or what the latest entry stands for.
    ///
    /// # Errors
    /// `Io`.
    pub fn enter(&mut self, directory: OwnedFd, stat: &Stat, inside: N) -> Result<()> {
        let names = Names::read(&directory).map_err(read("list the directory"))?;
        self.stack.push(Frame {
            directory: Some(directory),
            id: stat.id,
            inside,
            names,
            path_len: self.path.len(),
        });
        if let Some(far) = self.stack.len().checked_sub(OPEN + 1) {
            self.stack[far].directory = None;
        }
        Ok(())
    }

    /// Passes over what is left in the directory that was entered last.
    pub fn pass_over(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            frame.names.starts.clear();
        }
    }

    /// The next name; none at the end of all.
    ///
    /// # Errors
    /// `Io`, also for a tree that changes meanwhile.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_, N>>> {
        while let Some(frame) = self.stack.last_mut() {
            self.path.truncate(frame.path_len);
            if frame.names.next() {
                break;
            }
            leave(&mut self.stack)?;
        }
        let Some(frame) = self.stack.last() else {
            return Ok(None);
        };
        // It is open: leaving another one has seen to that.
        let Some(directory) = &frame.directory else {
            return Ok(None);
        };
        let name = frame.names.latest();
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend(name.to_bytes());
        Ok(Some(Entry {
            directory: directory.as_fd(),
            name,
            path: &self.path,
            inside: &frame.inside,
        }))
    }

    /// From the root to the latest entry.
    pub fn path(&self) -> &[u8] {
        &self.path
    }
}

impl<'d> Entry<'d, ()> {
    /// What has this path from the working directory: where a descent may start.
    pub fn at(path: &'d CStr) -> Self {
        Self {
            directory: CWD,
            name: path,
            path: &[],
            inside: &(),
        }
    }
}

impl<'d, N> Entry<'d, N> {
    /// What it is called in its directory.
    pub fn name(&self) -> &'d [u8] {
        self.name.to_bytes()
    }

    /// From the root to it.
    pub fn path(&self) -> &'d [u8] {
        self.path
    }

    /// What its directory was said to be.
    pub fn inside(&self) -> &'d N {
        self.inside
    }

    /// Its directory.
    pub fn directory(&self) -> BorrowedFd<'d> {
        self.directory
    }

    /// What the host says of it.
    ///
    /// # Errors
    /// `Io`.
    pub fn stat(&self) -> Result<Stat> {
        Stat::of(self.directory, self.name).map_err(vanished("look at the file"))
    }

    /// Opens it: a directory, which must be the one that `stat` is of.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_directory(&self, stat: &Stat) -> Result<Opened> {
        let below = open_directory(self.directory, self.name).map_err(vanished("open the directory"))?;
        let now = Stat::of(&below.file, c"").map_err(read("look at the directory"))?;
        if now.id != stat.id {
            return Err(changed("it was replaced"));
        }
        Ok(below)
    }

    /// Opens it: a file.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_file(&self) -> Result<Opened> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        open(self.directory, self.name, flags).map_err(vanished("open the file"))
    }

    /// Where it leads: a symbolic link.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        let target = readlinkat(self.directory, self.name, Vec::new());
        Ok(target.map_err(vanished("read the link"))?.into_bytes())
    }

    /// Its extended attributes, by its name.
    pub fn xattrs(&self) -> Xattrs<'d> {
        Xattrs::Named(self.directory, self.name)
    }
}

/// What was opened to be read.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: OwnedFd,
    /// Reading changes its time of access.
    is_noticed: bool,
}

impl Opened {
    /// What is told of it, of what it has.
    pub fn metadata(&self, metadata: &Metadata) -> Metadata {
        if self.is_noticed {
            unread(metadata)
        } else {
            metadata.clone()
        }
    }
}

/// A directory whose names are gone through.
#[derive(Debug)]
struct Frame<N> {
    /// `None` when it was closed, to be opened again.
    directory: Option<OwnedFd>,
    id: FileId,
    inside: N,
    names: Names,
    /// Bytes of the path up to its own name's end.
    path_len: usize,
}

/// The names in a directory, sorted, each with a NUL, in reverse: the next is the last.
#[derive(Debug)]
struct Names {
    bytes: Vec<u8>,
    /// First bytes of each name, as a number that sorts as they do, and where it starts.
    starts: Vec<(u64, usize)>,
    /// Where the latest one starts.
    latest: usize,
}

/// Ends with a directory, and goes on with the one that it is in.
fn leave<N>(stack: &mut Vec<Frame<N>>) -> Result<()> {
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
            latest: 0,
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

    /// Goes on to the next one, if there is one.
    fn next(&mut self) -> bool {
        let next = self.starts.pop();
        self.latest = next.map_or(self.latest, |(_, start)| start);
        next.is_some()
    }

    /// The one that [`next`](Self::next) went to.
    fn latest(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[self.latest..]).unwrap_or_default()
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
pub(super) fn unread(metadata: &Metadata) -> Metadata {
    Metadata {
        accessed: metadata.modified,
        ..metadata.clone()
    }
}

/// Opens the directory that a descent starts at, through links.
///
/// # Errors
/// `Io`.
pub fn open_root(path: &Path) -> Result<Opened> {
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

/// The ranges of a file that hold data, in order; of one that somebody is writing to, perhaps not all.
///
/// # Errors
/// Those of lseek(2).
pub fn data(file: &OwnedFd, size: u64) -> Result<Vec<Range<u64>>, Errno> {
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

pub(super) fn read(what: &'static str) -> impl Fn(Errno) -> Error {
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
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;

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
            assert!(read.next());
            assert_eq!(read.latest().to_bytes(), name);
        }
        assert!(!read.next());
    }
}
