//! What the host says of a file.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use block::{Error, FileId, Result};
use rustix::fs::{AtFlags, FileType, StatxFlags, StatxTimestamp, makedev};
use rustix::io::Errno;

use crate::{Metadata, Special, Time};

/// Type, metadata and identity of a file.
#[derive(Clone, Debug)]
pub struct Stat {
    /// What kind of file it is.
    pub file_type: FileType,
    /// Mode, owner and times.
    pub metadata: Metadata,
    /// Bytes in it.
    pub size: u64,
    /// Names that it has.
    pub links: u32,
    /// Which file it is.
    pub id: FileId,
    /// Major and minor number of a device.
    pub number: (u32, u32),
}

impl Stat {
    /// What a directory has by a name; or what is open, with an empty name.
    ///
    /// # Errors
    /// Those of the call.
    pub fn of(directory: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let statx = rustix::fs::statx(directory, name, flags, wanted)?;
        let modified = time(statx.stx_mtime);
        Ok(Self {
            file_type: FileType::from_raw_mode(statx.stx_mode.into()),
            metadata: Metadata {
                permissions: statx.stx_mode & 0o7777,
                uid: statx.stx_uid,
                gid: statx.stx_gid,
                accessed: time(statx.stx_atime),
                changed: time(statx.stx_ctime),
                modified,
                created: if statx.stx_mask & StatxFlags::BTIME.bits() != 0 {
                    time(statx.stx_btime)
                } else {
                    modified
                },
            },
            size: statx.stx_size,
            links: statx.stx_nlink,
            id: FileId {
                device: makedev(statx.stx_dev_major, statx.stx_dev_minor),
                inode: statx.stx_ino,
            },
            number: (statx.stx_rdev_major, statx.stx_rdev_minor),
        })
    }

    /// What it is, if it is neither a file nor a directory nor a symlink.
    pub fn special(&self) -> Option<Special> {
        let (major, minor) = self.number;
        match self.file_type {
            FileType::Fifo => Some(Special::Fifo),
            FileType::Socket => Some(Special::Socket),
            FileType::CharacterDevice => Some(Special::CharacterDevice { major, minor }),
            FileType::BlockDevice => Some(Special::BlockDevice { major, minor }),
            _ => None,
        }
    }

    /// Fails if the file is another by now, or another was opened.
    ///
    /// # Errors
    /// `Io`.
    pub fn check(&self, file: &OwnedFd) -> Result<()> {
        let now = Self::of(file, c"").map_err(|errno| Error::io("look at the file", errno.into()))?;
        if now.id != self.id {
            return Err(changed("it was replaced"));
        }
        if now.size != self.size {
            let how = if now.size > self.size {
                "it became longer"
            } else {
                "it became shorter"
            };
            return Err(changed(how));
        }
        if now.metadata.modified != self.metadata.modified {
            return Err(changed("it was written to"));
        }
        Ok(())
    }
}

/// The error for what somebody else changed meanwhile.
pub(super) fn changed(how: &str) -> Error {
    Error::new(
        block::ErrorKind::Io,
        format!("the source changed while it was read: {how}"),
    )
    .with_hint("stop what writes there, or take a snapshot of it, and start again")
}

fn time(time: StatxTimestamp) -> Time {
    Time {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}
