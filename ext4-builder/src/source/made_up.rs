//! File systems that a kernel makes up: their files say that they are empty, and are not once they are read.

use std::os::fd::BorrowedFd;

use block::{Error, Result};
use rustix::fs::fstatfs;

use super::descent::read;
use super::stat::Stat;

/// Types of file systems that a kernel makes up: proc, sysfs, debugfs, tracefs, securityfs and both versions of cgroup
/// (linux/magic.h).
const MADE_UP: [u64; 7] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x0027_e0eb,
    0x6367_7270,
];

/// The last file system that was looked at whose empty files are empty.
#[derive(Debug, Default)]
pub struct Plain(Option<u64>);

impl Plain {
    /// Fails for an empty file of a directory where files are empty only as long as nobody reads them: in /proc, and in
    /// what else a kernel makes up.
    ///
    /// # Errors
    /// `InvalidInput`; `Io`.
    pub fn check(&mut self, directory: BorrowedFd<'_>, file: &Stat) -> Result<()> {
        if self.0 == Some(file.id.device) {
            return Ok(());
        }
        let kind = fstatfs(directory)
            .map_err(read("look at the file system"))?
            .f_type;
        if MADE_UP.contains(&(kind as u64)) {
            let message = "the files here are made up by the kernel of this machine, and cannot be copied";
            return Err(Error::invalid(message));
        }
        self.0 = Some(file.id.device);
        Ok(())
    }
}
