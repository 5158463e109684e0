//! Reads tar archives as streams: from a file, a pipe or a socket, with memory that does not grow with the archive.
//!
//! [`decompress`] takes any input and finds out how it is compressed; [`Archive`] takes it apart into entries, each
//! with all of its metadata. What is read is what the programs that write archives mean: the formats of Unix V7,
//! ustar, GNU, star and pax, with long names, extended attributes, access control lists, nanoseconds, and sparse
//! files, whose holes are never written out.
//!
//! # What it is strict about
//! Whoever builds a system from an archive wants all of it or none. So these are errors, where some programs warn or
//! say nothing at all:
//!
//! - an archive that ends early, also at the end of an entry: blocks of zeros mark the end, two of them, and one at least
//!   must be there, unless [`Options::end_mark_optional`] is set;
//! - data after that mark, as of two archives that were appended by `cat`: GNU tar without `-i` never sees it. Zeros
//!   may follow, as many as there are;
//! - a header whose checksum is wrong: nothing is skipped in search of the next one;
//! - names with `..`, and absolute ones unless [`Options::absolute_names`] is set;
//! - types of entry that are not known, which POSIX would have read as plain files, and all that would be lost
//!   otherwise: parts of multi-volume archives, access control lists of `NFSv4` and Solaris.
//!
//! Volume labels are passed over. A size that is stored with something other than a file counts only if data
//! follows. A time before 1970 with a fraction is the number that it looks like: -1.25 is a quarter of a second before
//! -1, as POSIX has it and GNU tar writes it, where libarchive means one after. File flags (`SCHILY.fflags`) and
//! numbers of inodes are not read.
//!
//! # What it is bounded by
//! A name may have 64 KiB, the extended headers of an entry 16 MiB, a sparse map two million pieces. Buffers grow as their bytes
//! arrive, not as a header claims.
//!
//! # Why it is our own
//! The crate `tar` needs the caller to track sparse maps and to give them up for pax, knows neither libarchive's
//! records nor access control lists, takes the end of the input for the end of the archive, and reads sizes into
//! memory as they are claimed.

mod acl;
mod archive;
mod blocks;
mod compression;
mod fault;
mod header;
mod other;
mod pax;
mod sparse;

use std::ops::Range;

pub use acl::{NamedList, Names};
pub use archive::Archive;
pub use compression::{Decompressed, decompress};
pub(crate) use pax::decode_base64;

/// How an archive is to be read. By default, strictly.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Takes absolute names and hard links as if they had no slash at their start.
    pub absolute_names: bool,
    /// Takes the input's end between two entries, or where only what fills up the last block is missing, for the archive's. Only right where something else shows that
    /// nothing is missing, such as the digest of an image's layer.
    pub end_mark_optional: bool,
    /// Numbers for access control lists that name users or groups without any, as those of GNU tar do. A name that is not
    /// among them makes the list one of [`Entry::named_lists`].
    pub names: Names,
}

/// A time, in seconds since 1970 and nanoseconds after that second, less than a billion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Before 1970 where negative.
    pub secs: i64,
    /// Always forward.
    pub nanos: u32,
}

impl Time {
    fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }
}

/// An extended attribute's full name and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What an archive holds under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From the tree's root, without a slash at the start or end, and without `.` and `..`. Empty for the root.
    pub path: Vec<u8>,
    /// What it is, with what only such a thing has.
    pub kind: Kind,
    /// Permissions, with set-user-ID, set-group-ID and sticky bit. Of a symbolic link, always 0777.
    pub mode: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The owner's name, empty where there is none.
    pub user: Vec<u8>,
    /// The group's name, empty where there is none.
    pub group: Vec<u8>,
    /// Last modification.
    pub mtime: Time,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of metadata.
    pub ctime: Option<Time>,
    /// Creation.
    pub created: Option<Time>,
    /// Extended attributes, sorted by their full names (`user.x`). Access control lists are those that start with
    /// `system.posix_acl_`, in the form of the kernel's calls.
    pub xattrs: Vec<Xattr>,
    /// Access control lists that name users or groups whose numbers are not known, each with the name of the attribute
    /// that it is. The archive itself may tell, in `etc/passwd` and `etc/group`, but maybe later.
    pub named_lists: Vec<(Vec<u8>, NamedList)>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file. The archive has the bytes of the ranges in `data`, which are in order, not empty, and do not touch;
    /// all others are zeros.
    File {
        /// In bytes, holes included.
        size: u64,
        /// What [`Archive::read_data`] returns.
        data: Vec<Range<u64>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// As it was written, never empty.
        target: Vec<u8>,
    },
    /// Another name of an earlier entry.
    HardLink {
        /// That entry's name, in the form of [`Entry::path`].
        target: Vec<u8>,
    },
    /// A character device.
    CharacterDevice {
        /// The driver's number.
        major: u32,
        /// The device's number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// The driver's number.
        major: u32,
        /// The device's number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}
