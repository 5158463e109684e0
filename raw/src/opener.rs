//! Opening the files of a chain: the one that the user names, and those that images name.

use std::path::Path;
use std::sync::Arc;

use block::gate::Permit;
use block::{Access, Error, ErrorKind, FileOpener, Result, Storage};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use crate::{File, OpenOptions};

/// How often a name is looked up again while directories above it are being moved.
const LOOKUPS: usize = 16;

/// Opens files of the host, with image locks.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOpener {
    direct: bool,
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

    fn options(self, access: Access) -> OpenOptions {
        OpenOptions::new()
            .write(access.write)
            .force_share(access.force_share)
            .direct(self.direct)
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
