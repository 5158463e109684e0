//! Opening a host file or block device, and nothing else.
//!
//! Opening alone can do harm: a FIFO blocks until somebody writes to it, a tape rewinds, a watchdog starts. So a
//! file is looked at first (`O_PATH` opens without side effects), opened without blocking, and looked at again,
//! because the name may have changed hands in between. It is emptied only once its lock is held.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::OnceLock;

use block::{Alignment, Error, ErrorKind, FileId, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::File;
use crate::direct::Direct;
use crate::file::{Kind, host_len};
use crate::host::{Host, Io};
use crate::in_use::in_use;
use crate::lock::{self, LockMode};

/// What a direct request is aligned to where the host does not say.
const USUAL_ALIGNMENT: u32 = 4096;

/// What becomes of the name that is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Creation {
    Never,
    New,
    Empty,
}

/// How a host file or block device is opened. At first: an existing one, for reading, locked against writers,
/// through the page cache.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    write: bool,
    creation: Creation,
    direct: bool,
    io: Io,
    force_share: bool,
    lock: bool,
    block_device: bool,
    exclusive: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenOptions {
    /// For reading, locked against writers.
    pub fn new() -> Self {
        Self {
            write: false,
            creation: Creation::Never,
            direct: false,
            io: Io::Auto,
            force_share: false,
            lock: true,
            block_device: true,
            exclusive: false,
        }
    }

    /// For writing too, locked against everybody else.
    #[must_use]
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Create the file; one that exists is refused, whatever it is. Needs [`write`](Self::write).
    #[must_use]
    pub fn create_new(mut self, create: bool) -> Self {
        self.creation = if create { Creation::New } else { Creation::Never };
        self
    }

    /// Create the file, or empty the one that exists, after its lock was obtained. A block device stays as it is.
    /// Needs [`write`](Self::write).
    #[must_use]
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.creation = if truncate {
            Creation::Empty
        } else {
            Creation::Never
        };
        self
    }

    /// Past the page cache (`O_DIRECT`). Requests of any alignment still work; aligned ones save a copy.
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// How the bytes are reached. [`Io::Mmap`] goes neither with [`write`](Self::write) nor with
    /// [`direct`](Self::direct) nor with [`force_share`](Self::force_share).
    #[must_use]
    pub fn io(mut self, io: Io) -> Self {
        self.io = io;
        self
    }

    /// Read what somebody else may be writing. Not together with [`write`](Self::write).
    #[must_use]
    pub fn force_share(mut self, force_share: bool) -> Self {
        self.force_share = force_share;
        self
    }

    /// Whether image locks are taken. Without, the caller answers for what other processes do to the file.
    #[must_use]
    pub fn lock(mut self, lock: bool) -> Self {
        self.lock = lock;
        self
    }

    /// Refuse a block device that is in use by this machine: mounted, swapped to, or part of another device, also where
    /// that is only true of a partition of it. While the file is open, none of that can begin.
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Whether a block device will do as well; one that won't is `Denied`.
    pub(crate) fn allow_block_device(mut self, allow: bool) -> Self {
        self.block_device = allow;
        self
    }

    /// Opens `path`, following symbolic links.
    ///
    /// # Errors
    /// `Io`; `InvalidInput` for what is neither a regular file nor a block device, and for options that exclude
    /// each other; `Locked` with the holder's name where the kernel tells it, also for what is in use and was to be opened
    /// [exclusively](Self::exclusive); `Unsupported` for direct I/O on a
    /// file system without, and for a way of [`Io`] that the host does not have.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        self.open_by(path, |flags| {
            rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o666))
        })
    }

    /// Opens what `open` opens with the flags that it is given; `path` is for messages.
    pub(crate) fn open_by(
        &self,
        path: &Path,
        open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
    ) -> Result<File> {
        self.check()?;
        let open = |flags| retry_on_intr(|| open(flags | OFlags::CLOEXEC));
        let mut flags = self.flags();
        let mut device = None;
        if self.creation != Creation::New {
            match open(OFlags::PATH) {
                Ok(fd) => {
                    let (kind, metadata) = self.kind(path, &fs::File::from(fd))?;
                    if self.exclusive && kind == Kind::BlockDevice {
                        flags = (flags - OFlags::CREATE) | OFlags::EXCL;
                        device = Some(metadata.rdev());
                    }
                }
                Err(Errno::NOENT) if self.creation == Creation::Empty => {}
                Err(errno) => return Err(self.refused(path, errno)),
            }
        }
        let fd = open(flags).map_err(|errno| match (errno, device) {
            (Errno::BUSY, Some(device)) => in_use(device).with_path(path),
            _ => self.refused(path, errno),
        })?;
        self.adopt(path, fd.into()).map_err(|error| error.with_path(path))
    }

    fn check(&self) -> Result<()> {
        if self.creation != Creation::Never && !self.write {
            return Err(Error::invalid(
                "a file that is created must be opened for writing",
            ));
        }
        if self.write && self.force_share {
            return Err(Error::invalid("an image cannot be shared by force for writing")
                .with_hint("open it read-only, or without force-share"));
        }
        if self.io == Io::Mmap {
            let with = match () {
                () if self.write => "is only for reading",
                () if self.direct => "goes through the page cache",
                () if self.force_share => "is not for what somebody else may cut",
                () => return Ok(()),
            };
            return Err(Error::invalid(format!("a map of the file in memory {with}"))
                .with_hint("reach its bytes by system calls (--io sync)"));
        }
        Ok(())
    }

    fn flags(&self) -> OFlags {
        let mut flags = OFlags::NOCTTY | OFlags::NONBLOCK;
        flags |= if self.write { OFlags::RDWR } else { OFlags::RDONLY };
        flags |= match self.creation {
            Creation::Never => OFlags::empty(),
            Creation::New => OFlags::CREATE | OFlags::EXCL,
            Creation::Empty => OFlags::CREATE,
        };
        flags.set(OFlags::DIRECT, self.direct);
        flags
    }

    fn refused(&self, path: &Path, errno: Errno) -> Error {
        let op = match (self.creation, self.write) {
            (Creation::New, _) => "create",
            (_, true) => "open for writing",
            (_, false) => "open",
        };
        if errno == Errno::INVAL && self.direct {
            return no_direct().with_path(path);
        }
        Error::io(op, errno.into()).with_path(path)
    }

    fn adopt(&self, path: &Path, file: fs::File) -> Result<File> {
        let (kind, metadata) = self.kind(path, &file)?;
        become_blocking(&file).map_err(|errno| Error::io("open", errno.into()))?;
        let sector = match kind {
            Kind::Regular => 1,
            Kind::BlockDevice => rustix::fs::ioctl_blksszget(&file)
                .ok()
                .filter(|sector| sector.is_power_of_two())
                .unwrap_or(USUAL_ALIGNMENT),
        };
        let direct = match (self.direct, kind) {
            (false, _) => None,
            (true, Kind::Regular) => Some(direct_alignment(&file)?),
            (true, Kind::BlockDevice) => Some(Alignment {
                offset: sector,
                memory: sector,
            }),
        };
        if self.lock {
            lock::acquire(file.as_fd(), self.lock_mode())?;
        }
        if self.creation == Creation::Empty && kind == Kind::Regular {
            file.set_len(0).map_err(|error| Error::io("truncate", error))?;
        }
        let len = host_len(&file, kind).map_err(|error| Error::io("find the length", error))?;
        Ok(File {
            host: Host::new(file, self.io, len)?,
            path: path.to_owned(),
            kind,
            writable: self.write,
            id: identity(kind, &metadata),
            sector: sector.into(),
            direct: direct.map(Direct::new),
            sync_failure: OnceLock::new(),
        })
    }

    /// What the open file is; refused if that is nothing to keep a disk image in.
    fn kind(&self, path: &Path, file: &fs::File) -> Result<(Kind, fs::Metadata)> {
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("look at the file", error).with_path(path))?;
        let file_type = metadata.file_type();
        let what = if file_type.is_file() {
            return Ok((Kind::Regular, metadata));
        } else if file_type.is_block_device() && self.block_device {
            return Ok((Kind::BlockDevice, metadata));
        } else if file_type.is_block_device() {
            let message = "this is a block device, which an image may not open by naming it";
            return Err(Error::new(ErrorKind::Denied, message).with_path(path));
        } else if file_type.is_dir() {
            "a directory"
        } else if file_type.is_fifo() {
            "a FIFO"
        } else if file_type.is_socket() {
            "a socket"
        } else if file_type.is_char_device() {
            "a character device"
        } else {
            "neither a file nor a block device"
        };
        Err(
            Error::invalid(format!("this is {what}, which cannot hold a disk image"))
                .with_path(path)
                .with_hint("name a regular file or a block device"),
        )
    }

    fn lock_mode(&self) -> LockMode {
        match (self.write, self.force_share) {
            (true, _) => LockMode::Write,
            (false, false) => LockMode::Read,
            (false, true) => LockMode::ForceShare,
        }
    }
}

/// A device is the same under every name that it has, so it goes by its own number; no file has inode 0.
fn identity(kind: Kind, metadata: &fs::Metadata) -> FileId {
    match kind {
        Kind::Regular => FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        },
        Kind::BlockDevice => FileId {
            device: metadata.rdev(),
            inode: 0,
        },
    }
}

fn become_blocking(file: &fs::File) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags - OFlags::NONBLOCK)
}

fn no_direct() -> Error {
    Error::unsupported("this file system has no direct I/O")
        .with_hint("open the image through the page cache")
}

/// What the file system asks of direct requests, by `statx` where the kernel tells (Linux 6.1).
fn direct_alignment(file: &fs::File) -> Result<Alignment> {
    let usual = Alignment {
        offset: USUAL_ALIGNMENT,
        memory: USUAL_ALIGNMENT,
    };
    let Ok(statx) = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Ok(usual);
    };
    if statx.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(usual);
    }
    let told = Alignment {
        offset: statx.stx_dio_offset_align,
        memory: statx.stx_dio_mem_align,
    };
    match (told.offset, told.memory) {
        (0, _) => Err(no_direct()),
        (offset, memory) if offset.is_power_of_two() && memory.is_power_of_two() => Ok(told),
        _ => Ok(usual),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use block::{ErrorKind, Storage};
    use rustix::fs::FileType;

    use super::*;
    use crate::testing::Mount;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        (directory, path)
    }

    #[test]
    fn what_cannot_hold_an_image_is_named_and_nothing_blocks() {
        let (directory, path) = directory();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        let _socket = UnixListener::bind(&path).unwrap();
        let cases = [
            (directory.path(), "a directory"),
            (&fifo, "a FIFO"),
            (&link, "a FIFO"),
            (&path, "a socket"),
            (Path::new("/dev/null"), "a character device"),
        ];
        for (path, what) in cases {
            for options in [
                OpenOptions::new(),
                OpenOptions::new().write(true),
                OpenOptions::new().write(true).truncate(true),
            ] {
                let error = options.open(path).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.message().contains(what), "{error}");
                assert_eq!((error.path(), error.hint().is_some()), (Some(path), true));
            }
        }
    }

    #[test]
    fn a_missing_file_is_not_made() {
        let (_directory, path) = directory();
        for write in [false, true] {
            let error = OpenOptions::new().write(write).open(&path).unwrap_err();
            assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
            assert_eq!(error.path(), Some(&*path));
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_new_file_takes_nobodys_place() {
        let (_directory, path) = directory();
        let new = OpenOptions::new().write(true).create_new(true);
        new.open(&path).unwrap().write_all_at(b"mine", 0).unwrap();
        let error = new.open(&path).unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_locked_file_is_not_emptied() {
        let (_directory, path) = directory();
        fs::write(&path, "in use").unwrap();
        let empty = OpenOptions::new().write(true).truncate(true);
        let reader = File::open(&path).unwrap();
        assert_eq!(empty.open(&path).unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(reader.len().unwrap(), 6);
        drop(reader);
        assert_eq!(empty.open(&path).unwrap().len().unwrap(), 0);
    }

    #[test]
    fn without_locks_nobody_is_in_the_way() {
        let (_directory, path) = directory();
        let _writer = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        OpenOptions::new().write(true).lock(false).open(&path).unwrap();
    }

    #[test]
    fn options_that_exclude_each_other() {
        let (_directory, path) = directory();
        for options in [
            OpenOptions::new().create_new(true),
            OpenOptions::new().truncate(true),
            OpenOptions::new().write(true).force_share(true),
            OpenOptions::new().io(Io::Mmap).write(true),
            OpenOptions::new().io(Io::Mmap).direct(true),
            OpenOptions::new().io(Io::Mmap).force_share(true),
        ] {
            assert_eq!(options.open(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert!(!path.exists());
    }

    #[test]
    fn direct_alignment_is_what_the_host_tells() {
        let mount = Mount::ext4(16 << 20);
        let options = OpenOptions::new().write(true).create_new(true).direct(true);
        let file = options.open(mount.path().join("disk")).unwrap();
        let alignment = file.alignment();
        assert!(
            alignment.offset >= 512 && alignment.offset.is_power_of_two(),
            "{alignment:?}"
        );
        assert_eq!(File::open("/proc/self/exe").unwrap().alignment(), Alignment::NONE);
    }

    #[test]
    fn a_file_system_without_direct_requests_says_so() {
        let error = OpenOptions::new()
            .direct(true)
            .open("/proc/self/status")
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }

    #[test]
    fn a_file_is_the_same_under_every_name() {
        let (directory, path) = directory();
        fs::write(&path, "").unwrap();
        let other = directory.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        assert_eq!(
            File::open(&path).unwrap().file_id(),
            File::open(&other).unwrap().file_id()
        );
    }
}
