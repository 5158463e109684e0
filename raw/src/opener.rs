//! Opening the files of a chain: the one that the user names, and those that images name.

use std::path::Path;
use std::sync::Arc;

use block::gate::Permit;
use block::{Access, Error, ErrorKind, FileOpener, Result, Storage};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use crate::{File, Io, OpenOptions};

/// How often a name is looked up again while directories above it are being moved.
const LOOKUPS: usize = 16;

/// Opens files of the host, with image locks.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOpener {
    direct: bool,
    io: Io,
    exclusive: bool,
}

impl HostOpener {
    /// Through the page cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Past the page cache, see [`OpenOptions::direct`].
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// How the bytes of the files are reached. [`Io::Mmap`] is for those that are read under a lock; what is written
    /// to or shared by force is reached by system calls.
    #[must_use]
    pub fn io(mut self, io: Io) -> Self {
        self.io = io;
        self
    }

    /// Refuse to write to block devices that are in use, see [`OpenOptions::exclusive`].
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    fn options(self, access: Access) -> OpenOptions {
        let alone = !access.write && !access.force_share;
        let io = if alone { self.io } else { self.io.for_writing() };
        OpenOptions::new()
            .io(io)
            .write(access.write)
            .force_share(access.force_share)
            .direct(self.direct)
            .exclusive(self.exclusive && access.write)
    }
}

impl FileOpener for HostOpener {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.options(access).open(path)?))
    }

    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>> {
        let options = self.options(access).allow_block_device(permit.block_device);
        let file = match &permit.within {
            Some(directory) => open_within(&options, directory, &permit.path)?,
            None => options.open(&permit.path)?,
        };
        Ok(Arc::new(file))
    }
}

/// Opens `path`, which must lead from `directory` downwards through no link: the kernel sees to it while it walks,
/// so a link that is put in the way after the gate has looked makes no difference.
fn open_within(options: &OpenOptions, directory: &Path, path: &Path) -> Result<File> {
    let outside = || {
        let message = format!(
            "it does not lie in {}, or a link leads to it",
            block::escape(&directory.to_string_lossy())
        );
        Error::new(ErrorKind::Denied, message).with_path(path)
    };
    let below = path.strip_prefix(directory).map_err(|_| outside())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = open(directory, flags, Mode::empty())
        .map_err(|errno| Error::io("open the directory", errno.into()).with_path(directory))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let walk = |flags| {
        for _ in 1..LOOKUPS {
            match openat2(&top, below, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        openat2(&top, below, flags, Mode::empty(), resolve)
    };
    // Asked here, so that what `options` sees afterwards are errors of opening a file that may be opened.
    match walk(OFlags::PATH | OFlags::CLOEXEC) {
        Err(Errno::XDEV | Errno::LOOP) => return Err(outside()),
        Err(Errno::NOSYS) => {
            let message = "this kernel cannot keep a file name within a directory (openat2, Linux 5.6)";
            return Err(Error::unsupported(message).with_path(path));
        }
        _ => {}
    }
    options
        .open_by(path, walk)
        .map_err(|error| match os_error(&error) {
            Some(Errno::XDEV | Errno::LOOP) => outside(),
            Some(Errno::NOSYS) => {
                let message = "this kernel cannot keep a file name within a directory (openat2, Linux 5.6)";
                Error::unsupported(message).with_path(path)
            }
            _ => error,
        })
}

fn os_error(error: &Error) -> Option<Errno> {
    let cause = std::error::Error::source(error)?;
    Errno::from_io_error(cause.downcast_ref()?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;
    use crate::testing::Loop;

    fn permit(path: impl Into<PathBuf>, within: Option<&Path>) -> Permit {
        Permit {
            path: path.into(),
            within: within.map(Path::to_owned),
            block_device: false,
        }
    }

    fn nested(permit: &Permit) -> Result<Arc<dyn Storage>> {
        HostOpener::new().open_nested(permit, Access::READ)
    }

    #[test]
    fn opens_what_lies_in_the_directory_and_nothing_that_a_link_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("images");
        fs::create_dir_all(top.join("base")).unwrap();
        fs::write(top.join("base/a"), "inside").unwrap();
        fs::write(directory.path().join("secret"), "outside").unwrap();
        symlink(directory.path(), top.join("up")).unwrap();
        symlink("base", top.join("beside")).unwrap();
        symlink("../secret", top.join("link")).unwrap();
        symlink("/proc/self/exe", top.join("magic")).unwrap();

        let mut head = [0; 6];
        let storage = nested(&permit(top.join("base/a"), Some(&top))).unwrap();
        storage.read_exact_at(&mut head, 0).unwrap();
        assert_eq!((&head, storage.path()), (b"inside", Some(&*top.join("base/a"))));

        for name in [
            "up/secret",
            "beside/a",
            "link",
            "magic",
            "../secret",
            "base/../../secret",
        ] {
            let path = top.join(name);
            let error = nested(&permit(&path, Some(&top))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{name}: {error}");
            assert_eq!(error.path(), Some(&*path));
        }
        let outside = permit(directory.path().join("secret"), Some(&top));
        assert_eq!(nested(&outside).unwrap_err().kind(), ErrorKind::Denied);
        let missing = nested(&permit(top.join("none"), Some(&top))).unwrap_err();
        assert_eq!(missing.io_kind(), Some(std::io::ErrorKind::NotFound));
        // With no directory to stay in, a link is as good as any name.
        nested(&permit(top.join("link"), None)).unwrap();
    }

    #[test]
    fn what_an_image_names_is_no_fifo_and_no_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (fifo, folder) = (directory.path().join("fifo"), directory.path().join("folder"));
        fs::create_dir(&folder).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for within in [None, Some(directory.path())] {
            for path in [&fifo, &folder] {
                assert_eq!(
                    nested(&permit(path, within)).unwrap_err().kind(),
                    ErrorKind::InvalidInput
                );
            }
        }
    }

    #[test]
    fn a_block_device_needs_leave_of_its_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let device = Loop::over(file.path(), 512);
        let mut permit = permit(device.path(), None);
        assert_eq!(nested(&permit).unwrap_err().kind(), ErrorKind::Denied);
        permit.block_device = true;
        assert_eq!(nested(&permit).unwrap().len().unwrap(), 1 << 20);
        let user = HostOpener::new()
            .direct(true)
            .open(device.path(), Access::WRITE)
            .unwrap();
        assert_eq!(user.alignment().offset, 512);
    }

    #[test]
    fn only_what_is_read_under_a_lock_is_mapped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "mapped").unwrap();
        let opener = HostOpener::new().io(Io::Mmap);
        let shared = Access {
            force_share: true,
            ..Access::READ
        };
        let path = file.path().to_str().unwrap();
        for (access, mapped) in [(Access::READ, true), (Access::WRITE, false), (shared, false)] {
            let storage = opener.open(file.path(), access).unwrap();
            let mut head = [0; 6];
            storage.read_exact_at(&mut head, 0).unwrap();
            assert_eq!(&head, b"mapped");
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            assert_eq!(maps.contains(path), mapped, "{access:?}");
        }
    }

    #[test]
    fn access_decides_the_locks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let opener = HostOpener::new();
        let writer = opener.open(file.path(), Access::WRITE).unwrap();
        assert_eq!(
            opener.open(file.path(), Access::READ).unwrap_err().kind(),
            ErrorKind::Locked
        );
        let shared = Access {
            force_share: true,
            ..Access::READ
        };
        opener.open(file.path(), shared).unwrap();
        writer.write_all_at(b"x", 0).unwrap();
    }
}
