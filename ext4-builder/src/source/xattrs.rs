//! Extended attributes of files on the host.

use std::ffi::CStr;
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::Errno;

use super::left_out::LeftOut;
use crate::xattr;

/// Bytes that names together have at most, and a value; and for how many room is made at first. The kernel takes as
/// much memory for each call, which costs more than the call.
const MOST: usize = 64 << 10;
const USUAL: usize = 512;

/// Where open files have names.
const PROC: &str = "/proc/self/fd";

/// Whose attributes are meant.
#[derive(Clone, Copy, Debug)]
pub enum Xattrs<'a> {
    /// Of what is open.
    Open(BorrowedFd<'a>),
    /// Of what a directory has by a name, which is not followed.
    Named(BorrowedFd<'a>, &'a CStr),
}

/// Reads attributes, with buffers that are used again.
#[derive(Debug)]
pub struct XattrReader {
    asking: Asking,
    names: Vec<u8>,
    values: Vec<u8>,
    /// Where names and values of the last set are.
    found: Vec<(Range<usize>, Range<usize>)>,
    /// What was passed over so far.
    pub left_out: LeftOut,
}

impl Default for XattrReader {
    fn default() -> Self {
        Self::new()
    }
}

impl XattrReader {
    /// One that has read nothing yet.
    pub fn new() -> Self {
        Self {
            asking: Asking::default(),
            names: vec![0; USUAL],
            values: Vec::new(),
            found: Vec::new(),
            left_out: LeftOut::default(),
        }
    }

    /// All attributes that ext4 knows the names of; others are of the host's file system and not of its files. The
    /// time is short in which one may vanish, and then it has.
    ///
    /// # Errors
    /// `NOSYS` where there is no way to ask; those of the calls.
    pub fn read(&mut self, of: &Xattrs<'_>) -> Result<impl Iterator<Item = (&[u8], &[u8])>, Errno> {
        self.found.clear();
        self.values.clear();
        let len = self.list(of)?;
        let mut start = 0;
        while start < len {
            let name = CStr::from_bytes_until_nul(&self.names[start..len]).unwrap_or_default();
            let end = start + name.to_bytes().len();
            if xattr::is_known(name.to_bytes()) {
                let at = self.values.len();
                let value = get(&mut self.asking, of, name, &mut self.values);
                match value {
                    Ok(len) => self.found.push((start..end, at..at + len)),
                    Err(Errno::NODATA) => {}
                    Err(errno) => return Err(errno),
                }
            } else {
                self.left_out.add(name.to_bytes());
            }
            start = end + 1;
        }
        Ok(self
            .found
            .iter()
            .map(|(name, value)| (&self.names[name.clone()], &self.values[value.clone()])))
    }

    /// Fills `names`. Returns how many bytes of it.
    fn list(&mut self, of: &Xattrs<'_>) -> Result<usize, Errno> {
        let mut listed = self.asking.list(of, &mut self.names);
        if listed == Err(Errno::RANGE) {
            self.names.resize(MOST, 0);
            listed = self.asking.list(of, &mut self.names);
        }
        match listed {
            // A file system without any.
            Err(Errno::NOTSUP) => Ok(0),
            listed => listed,
        }
    }
}

/// Puts the value of an attribute behind `values`. Returns how many bytes it has.
fn get(asking: &mut Asking, of: &Xattrs<'_>, name: &CStr, values: &mut Vec<u8>) -> Result<usize, Errno> {
    let at = values.len();
    values.resize(at + USUAL, 0);
    let mut got = asking.get(of, name, &mut values[at..]);
    if got == Err(Errno::RANGE) {
        values.resize(at + MOST, 0);
        got = asking.get(of, name, &mut values[at..]);
    }
    values.truncate(at + got.unwrap_or(0));
    got
}

/// The ways to ask the kernel. Where it has no calls for a name in a directory, the directory has a path, in `/proc`:
/// that is right too, but slow.
#[derive(Debug, Default)]
struct Asking {
    through_proc: bool,
    /// The last path.
    path: Vec<u8>,
}

impl Asking {
    fn list(&mut self, of: &Xattrs<'_>, names: &mut [u8]) -> Result<usize, Errno> {
        match *of {
            Xattrs::Open(file) => flistxattr(file, names),
            Xattrs::Named(directory, name) => self.ask(
                directory,
                name,
                names,
                |names| raw::xattr::list_at(directory, name, names),
                |path, names| llistxattr(path, names),
            ),
        }
    }

    fn get(&mut self, of: &Xattrs<'_>, attribute: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
        match *of {
            Xattrs::Open(file) => fgetxattr(file, attribute, value),
            Xattrs::Named(directory, name) => self.ask(
                directory,
                name,
                value,
                |value| raw::xattr::get_at(directory, name, attribute, value),
                |path, value| lgetxattr(path, attribute, value),
            ),
        }
    }

    fn ask(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        buffer: &mut [u8],
        at: impl Fn(&mut [u8]) -> Result<usize, Errno>,
        by_path: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        if !self.through_proc {
            match at(buffer) {
                // A sandbox that does not know a call may forbid it.
                Err(Errno::NOSYS | Errno::PERM) if !Path::new(PROC).exists() => return Err(Errno::NOSYS),
                Err(Errno::NOSYS | Errno::PERM) => self.through_proc = true,
                answer => return answer,
            }
        }
        self.path.clear();
        // Writing to a vector cannot fail.
        let _ = write!(self.path, "{PROC}/{}/", directory.as_raw_fd());
        self.path.extend(name.to_bytes_with_nul());
        by_path(CStr::from_bytes_until_nul(&self.path).unwrap_or_default(), buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsFd;

    use rustix::fs::{XattrFlags, lsetxattr};

    use super::*;

    fn all(reader: &mut XattrReader, of: &Xattrs<'_>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let xattrs = reader.read(of).unwrap();
        xattrs
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect()
    }

    #[test]
    fn attributes_are_the_same_by_every_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "contents").unwrap();
        let mut expected = BTreeMap::new();
        // More names than there is room for at first, and a value that there is none for.
        for (number, len) in (0..60).zip([1000, 0].into_iter().chain(std::iter::repeat(10))) {
            let (name, value) = (format!("user.attribute-{number}"), vec![number; len]);
            lsetxattr(&path, &name, &value, XattrFlags::empty()).unwrap();
            expected.insert(name.into_bytes(), value);
        }
        let open = std::fs::File::open(directory.path()).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let named = Xattrs::Named(open.as_fd(), c"file");
        let mut reader = XattrReader::new();
        assert_eq!(all(&mut reader, &named), expected);
        assert_eq!(all(&mut reader, &Xattrs::Open(file.as_fd())), expected);
        let mut reader = XattrReader::new();
        reader.asking.through_proc = true;
        assert_eq!(all(&mut reader, &named), expected);
    }
}
