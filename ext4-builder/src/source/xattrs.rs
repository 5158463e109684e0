//! Extended attributes of files on the host.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::Errno;

use crate::xattr;

/// Bytes that names together have at most, and a value; and for how many room is made at first. The kernel takes as
/// much memory for each call, which costs more than the call.
const MOST: usize = 64 << 10;
const USUAL: usize = 512;

/// Whose attributes are meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Xattrs<'a> {
    /// Of what is open.
    Open(BorrowedFd<'a>),
    /// Of what a directory has by a name, which is not followed. There is no call for that: the directory has another
    /// name, in `/proc`.
    Named(BorrowedFd<'a>, &'a CStr),
}

/// Reads attributes, with buffers that are used again.
#[derive(Debug)]
pub(super) struct XattrReader {
    names: Vec<u8>,
    values: Vec<u8>,
    /// Where names and values of the last set are.
    found: Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>,
    path: Vec<u8>,
}

impl XattrReader {
    pub(super) fn new() -> Self {
        Self {
            names: vec![0; USUAL],
            values: Vec::new(),
            found: Vec::new(),
            path: Vec::new(),
        }
    }

    /// All attributes that ext4 knows the names of; others are of the host's file system and not of its files. The
    /// time is short in which one may vanish, and then it has.
    pub(super) fn read(&mut self, of: &Xattrs<'_>) -> Result<impl Iterator<Item = (&[u8], &[u8])>, Errno> {
        self.found.clear();
        self.values.clear();
        if let Xattrs::Named(directory, name) = of {
            self.path.clear();
            let number = directory.as_raw_fd();
            self.path.extend(format!("/proc/self/fd/{number}/").bytes());
            self.path.extend(name.to_bytes_with_nul());
        }
        let path = CStr::from_bytes_until_nul(&self.path).unwrap_or_default();
        let list = |names: &mut [u8]| match of {
            Xattrs::Open(file) => flistxattr(file, &mut *names),
            Xattrs::Named(..) => llistxattr(path, &mut *names),
        };
        let mut listed = list(&mut self.names);
        if listed == Err(Errno::RANGE) {
            self.names.resize(MOST, 0);
            listed = list(&mut self.names);
        }
        let len = match listed {
            Ok(len) => len,
            // A file system without any.
            Err(Errno::NOTSUP) => 0,
            Err(errno) => return Err(errno),
        };
        let mut start = 0;
        while start < len {
            let name = CStr::from_bytes_until_nul(&self.names[start..len]).unwrap_or_default();
            let bytes = name.to_bytes().len();
            if xattr::is_known(name.to_bytes()) {
                let at = self.values.len();
                let get = |value: &mut [u8]| match of {
                    Xattrs::Open(file) => fgetxattr(file, name, &mut *value),
                    Xattrs::Named(..) => lgetxattr(path, name, &mut *value),
                };
                self.values.resize(at + USUAL, 0);
                let mut value = get(&mut self.values[at..]);
                if value == Err(Errno::RANGE) {
                    self.values.resize(at + MOST, 0);
                    value = get(&mut self.values[at..]);
                }
                let value = match value {
                    Ok(value) => value,
                    Err(Errno::NODATA) => {
                        self.values.truncate(at);
                        start += bytes + 1;
                        continue;
                    }
                    Err(errno) => return Err(errno),
                };
                self.values.truncate(at + value);
                self.found.push((start..start + bytes, at..at + value));
            }
            start += bytes + 1;
        }
        Ok(self
            .found
            .iter()
            .map(|(name, value)| (&self.names[name.clone()], &self.values[value.clone()])))
    }
}
