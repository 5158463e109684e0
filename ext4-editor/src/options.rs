//! How a filesystem is changed, and what is said of its files.

use std::fmt;
use std::io;
use std::ops::Range;

use ext4_builder::Time;

/// How a change reaches the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// All of it or nothing, whenever the power goes: through the filesystem's journal. Without a journal, the
    /// filesystem is marked as not unmounted until all is written, so that a power cut is found, and e2fsck needed.
    #[default]
    Atomic,
    /// The disk is of no use unless all is written: a new overlay, which is deleted on failure. Changes are written
    /// where they belong at once, with one flush at the end.
    Expendable,
}

/// How a filesystem is changed. Nothing is taken from the clock, the host or a random number generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The time of all changes.
    pub time: Time,
    /// Where the generation numbers of new inodes come from: another one for each time that it is changed.
    pub seed: u64,
    /// How changes reach the disk.
    pub durability: Durability,
}

impl Options {
    /// Changes at `time`, all or nothing.
    pub fn new(time: Time) -> Self {
        Self {
            time,
            seed: (time.secs as u64) << 32 ^ u64::from(time.nanos),
            durability: Durability::Atomic,
        }
    }
}

/// What is to be said of a file. What is `None` stays as it is; a new file has the values that are given with each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The lower 12 bits of its mode. New: 0644 for files, 0755 for directories, 0777 for symbolic links.
    pub permissions: Option<u16>,
    /// Its owner. New: 0.
    pub uid: Option<u32>,
    /// Its group. New: 0.
    pub gid: Option<u32>,
    /// When its content was last changed. New: [`Options::time`].
    pub modified: Option<Time>,
    /// When it was last read. New: [`Options::time`].
    pub accessed: Option<Time>,
}

impl Attributes {
    /// Root's, with these permissions.
    pub fn of(permissions: u16) -> Self {
        Self {
            permissions: Some(permissions),
            ..Self::default()
        }
    }

    /// The same with this owner and group.
    #[must_use]
    pub fn owned_by(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (Some(uid), Some(gid));
        self
    }
}

/// Contents that may have holes, which read as zeros.
pub struct Contents<'c> {
    /// Bytes in all.
    pub len: u64,
    /// What is no hole, in order. A hole that shares a block of the filesystem with any of it is written as zeros.
    pub data: &'c [Range<u64>],
    /// Reads as many bytes as are asked for from an offset on, in the order of offsets: those of `data`, and what of holes shares a
    /// block with them.
    pub read: &'c mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
}

impl fmt::Debug for Contents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Contents");
        shown.field("len", &self.len).field("data", &self.data);
        shown.finish_non_exhaustive()
    }
}

/// A file without contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A character device with major and minor number.
    CharacterDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}
