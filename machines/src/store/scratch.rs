//! Where files are made before they get their names.
//!
//! Every job has a directory of its own in the store, which it holds a lock on. A job that was killed leaves its directory,
//! and its lock is gone; the next job removes such.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use block::{Error, Result};
use rustix::fs::{FlockOperation, flock};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed with all that is in it.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    /// Holds the lock.
    _directory: File,
}

impl Scratch {
    /// A new one in `parent`, which is made if it is not there. What killed jobs left in there is removed.
    pub(super) fn new(parent: &Path) -> Result<Self> {
        let failed = |error| Error::io("make a directory", error).with_path(parent);
        fs::create_dir_all(parent).map_err(failed)?;
        // A directory is made and locked, or found to be nobody's and removed, by one job at a time: otherwise one that is made
        // would be taken for a dead one's before it is locked.
        let gate = File::open(parent).map_err(failed)?;
        flock(&gate, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        for stale in Self::stale(parent)? {
            let _ = fs::remove_dir_all(stale);
        }
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{}-{number}", process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed)?,
            }
            let directory = File::open(&path).map_err(failed)?;
            flock(&directory, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
            return Ok(Self {
                path,
                _directory: directory,
            });
        }
    }

    /// Those in `parent` whose job is no more.
    pub(super) fn stale(parent: &Path) -> Result<Vec<PathBuf>> {
        let failed = |error| Error::io("read the directory", error).with_path(parent);
        let mut stale = Vec::new();
        for entry in fs::read_dir(parent).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let free = |directory| flock(directory, FlockOperation::NonBlockingLockExclusive).is_ok();
            if File::open(&path).is_ok_and(free) {
                stale.push(path);
            }
        }
        Ok(stale)
    }

    /// A file in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next job.
        let _ = fs::remove_dir_all(&self.path);
    }
}
