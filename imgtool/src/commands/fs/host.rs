//! Making files on the host, in a directory that nobody else reaches.
//!
//! Every file is made by its name in an open directory, and has to be new there: whatever a filesystem says is called
//! the same twice is an error, and no link on the way to a file is followed, since there is no way.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use ext4_reader::{FileKind, Inode, Time, Xattr};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::output::counted;

/// How often another name is tried for the staging directory.
const ATTEMPTS: u32 = 100;
/// Directories that are kept open on the way down. Those above are found again through `..`.
const OPEN: usize = 200;
const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::RDONLY)
    .union(OFlags::CLOEXEC);

/// An open directory.
pub(super) struct Directory(OwnedFd);

impl Directory {
    /// A new directory in this one; its owner may do everything there. `mode` is what others may, less the umask.
    fn make(&self, name: &[u8], mode: u16) -> io::Result<Self> {
        let mode = Mode::from_raw_mode((mode | 0o700).into());
        rustix::fs::mkdirat(&self.0, name, mode)?;
        Ok(Self(rustix::fs::openat(&self.0, name, DIRECTORY, Mode::empty())?))
    }

    /// A new file, to write to.
    pub(super) fn file(&self, name: &[u8], mode: u16) -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode.into());
        Ok(rustix::fs::openat(&self.0, name, flags, mode)?.into())
    }

    pub(super) fn symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    /// A device, FIFO or socket. Whether it could be made: not everyone may make devices.
    pub(super) fn special(&self, name: &[u8], inode: &Inode, mode: u16) -> io::Result<bool> {
        let kind = match inode.kind() {
            FileKind::CharacterDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Socket => FileType::Socket,
            _ => FileType::Fifo,
        };
        let (major, minor) = inode.device().unwrap_or_default();
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(mode.into());
        match rustix::fs::mknodat(&self.0, name, kind, mode, device) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a file that has the path `old` from here another name in `directory`.
    pub(super) fn link(&self, old: &Path, directory: &Self, name: &[u8]) -> io::Result<()> {
        let flags = AtFlags::empty();
        Ok(rustix::fs::linkat(&self.0, old, &directory.0, name, flags)?)
    }

    /// Sets what the owner may do to what `mode` says, and nothing else.
    pub(super) fn set_owner_rights(&self, mode: u16) -> io::Result<()> {
        let now = rustix::fs::fstat(&self.0)?.st_mode as u16 & 0o7777;
        let then = now & !0o700 | mode & 0o700;
        if now == then {
            return Ok(());
        }
        Made::Open(self).set_mode(then)
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

/// The directories from the one that is being filled up to where it began.
pub(super) struct Directories {
    here: Directory,
    above: Vec<Option<Directory>>,
}

impl Directories {
    pub(super) fn new(top: Directory) -> Self {
        Self {
            here: top,
            above: Vec::new(),
        }
    }

    /// The one that is being filled.
    pub(super) fn here(&self) -> &Directory {
        &self.here
    }

    /// Goes into a new one.
    pub(super) fn make(&mut self, name: &[u8], mode: u16) -> io::Result<()> {
        let made = self.here.make(name, mode)?;
        self.above.push(Some(std::mem::replace(&mut self.here, made)));
        if let Some(far) = self.above.len().checked_sub(OPEN) {
            self.above[far] = None;
        }
        Ok(())
    }

    /// Goes back to where the latest one was made. Gives that one.
    pub(super) fn leave(&mut self) -> io::Result<Directory> {
        let above = match self.above.pop().flatten() {
            Some(above) => above,
            None => Directory(rustix::fs::openat(&self.here.0, "..", DIRECTORY, Mode::empty())?),
        };
        Ok(std::mem::replace(&mut self.here, above))
    }
}

/// What was not permitted, and so is not in a copy.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub(super) owners: u64,
    pub(super) xattrs: u64,
    pub(super) devices: u64,
}

impl Lost {
    pub(super) fn is_nothing(&self) -> bool {
        self.owners == 0 && self.xattrs == 0 && self.devices == 0
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.owners, "owner", "owners"),
            (self.xattrs, "extended attribute", "extended attributes"),
            (self.devices, "device", "devices"),
        ];
        let mut between = "";
        for (count, one, more) in counts.into_iter().filter(|(count, ..)| *count > 0) {
            write!(f, "{between}{}", counted(count, one, more))?;
            between = ", ";
        }
        Ok(())
    }
}

/// A file that was made, as its metadata is set.
pub(super) enum Made<'a> {
    Open(&'a dyn AsFd),
    /// What cannot be opened, or is not to be: a link, a device.
    Named(&'a Directory, &'a [u8]),
}

impl Made<'_> {
    /// Sets owner, attributes, permissions and times, as far as this user may.
    pub(super) fn keep(&self, inode: &Inode, xattrs: &[Xattr], lost: &mut Lost) -> io::Result<()> {
        let mut mode = inode.mode() & 0o7777;
        if !permitted(self.own(inode.uid(), inode.gid()))? {
            lost.owners += 1;
            // What is to run as its owner must not run as another one.
            mode &= 0o1777;
        }
        for xattr in xattrs {
            if !permitted(self.set_xattr(xattr))? {
                lost.xattrs += 1;
            }
        }
        if inode.kind() != FileKind::Symlink {
            self.set_mode(mode)?;
        }
        self.set_times(inode.accessed(), inode.modified())?;
        Ok(())
    }

    fn own(&self, uid: u32, gid: u32) -> rustix::io::Result<()> {
        let uid = Some(rustix::fs::Uid::from_raw(uid));
        let gid = Some(rustix::fs::Gid::from_raw(gid));
        match self {
            Self::Open(file) => rustix::fs::fchown(file, uid, gid),
            Self::Named(directory, name) => {
                rustix::fs::chownat(&directory.0, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    fn set_xattr(&self, xattr: &Xattr) -> rustix::io::Result<()> {
        let (name, value, flags) = (&*xattr.name, &*xattr.value, XattrFlags::empty());
        match self {
            Self::Open(file) => rustix::fs::fsetxattr(file, name, value, flags),
            Self::Named(directory, file) => {
                // There is no call that takes an open directory and a name.
                let directory = format!("/proc/self/fd/{}", directory.0.as_raw_fd());
                let path = Path::new(&directory).join(OsStr::from_bytes(file));
                rustix::fs::lsetxattr(path, name, value, flags)
            }
        }
    }

    fn set_mode(&self, mode: u16) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode.into());
        match self {
            Self::Open(file) => rustix::fs::fchmod(file, mode)?,
            Self::Named(directory, name) => {
                rustix::fs::chmodat(&directory.0, *name, mode, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    fn set_times(&self, accessed: Time, modified: Time) -> io::Result<()> {
        let time = |time: Time| Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanoseconds.into(),
        };
        let times = Timestamps {
            last_access: time(accessed),
            last_modification: time(modified),
        };
        match self {
            Self::Open(file) => rustix::fs::futimens(file, &times)?,
            Self::Named(directory, name) => {
                rustix::fs::utimensat(&directory.0, *name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(())
    }
}

/// Whether it was done. What this user or the host's file system cannot do is no error.
fn permitted(done: rustix::io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL | Errno::TOOBIG | Errno::RANGE) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The directory in which things are made, beside where they are to be. Dropped before it is
/// [finished](Self::finish), it goes away with all that is in it.
pub(super) struct Staging {
    /// Where things are to be.
    directory: Directory,
    directory_path: PathBuf,
    name: OsString,
    own: Directory,
    finished: bool,
}

impl Staging {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let told =
            |error: io::Error| Error::io("make a directory for what is unfinished", error).with_path(path);
        // Links that the user names are followed, as everywhere.
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty());
        let directory = Directory(directory.map_err(|error| told(error.into()))?);
        let mut attempt = 0;
        loop {
            let name = OsString::from(format!(".imgtool-unfinished-{}-{attempt}", std::process::id()));
            match directory.make(name.as_bytes(), 0o700) {
                Ok(own) => {
                    return Ok(Self {
                        directory,
                        directory_path: path.to_owned(),
                        name,
                        own,
                        finished: false,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                Err(error) => return Err(told(error)),
            }
        }
    }

    /// Where to make things.
    pub(super) fn directory(&self) -> Result<Directory> {
        let clone = self.own.try_clone();
        clone.map_err(|error| Error::io("use the directory", error).with_path(&self.directory_path))
    }

    /// Where something called `name` is to be.
    pub(super) fn place(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory_path.join(name)
    }

    /// Moves what was made under a name to where it is to be, in place of a file that is there only if that is to be
    /// replaced.
    pub(super) fn give_name(&self, name: &OsStr, replace: bool) -> Result<()> {
        let rename = |flags| rustix::fs::renameat_with(&self.own.0, name, &self.directory.0, name, flags);
        let renamed = if replace {
            rename(RenameFlags::empty())
        } else {
            match rename(RenameFlags::NOREPLACE) {
                // Not every file system can do that in one step.
                Err(Errno::INVAL | Errno::NOSYS) => self.rename_if_new(name),
                renamed => renamed,
            }
        };
        renamed.map_err(|error| Error::io("give the copy its name", error.into()).with_path(self.place(name)))
    }

    fn rename_if_new(&self, name: &OsStr) -> rustix::io::Result<()> {
        match rustix::fs::statat(&self.directory.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(&self.own.0, name, &self.directory.0, name),
            Err(error) => Err(error),
        }
    }

    /// Everything has its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.finished = true;
        let removed = rustix::fs::unlinkat(&self.directory.0, &self.name, AtFlags::REMOVEDIR);
        removed.map_err(|error| {
            Error::io("remove the directory for what was unfinished", error.into())
                .with_path(self.place(&self.name))
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // What cannot be removed has a name that says what it is.
        let path = self.place(&self.name);
        if fs::remove_dir_all(&path).is_err() {
            make_removable(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Gives this user all rights to the directories below `path`.
fn make_removable(path: &Path) {
    let mut ahead = vec![path.to_owned()];
    while let Some(path) = ahead.pop() {
        let _ = fs::set_permissions(&path, Permissions::from_mode(0o700));
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        // The type is the entry's own: links are no directories.
        ahead.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}
