//! Where files are made before they get their names.
//!
//! Every job has a directory of its own in the store, which it holds a lock on. A job that was killed leaves its directory,
//! and its lock is gone; the next job removes such. Nothing else is removed there, and nothing anywhere else: whoever may write to a store
//! could put a link in its place, to what somebody else would rather keep, so that all of it is reached through the directory that was opened.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use block::{Error, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed with all that is in it.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    parent: File,
    name: String,
    /// Holds the lock.
    _directory: File,
}

impl Scratch {
    /// A new one in `parent`, which is made if it is not there. What killed jobs left in there is removed.
    pub(super) fn new(parent: &Path) -> Result<Self> {
        let failed = |error| Error::io("make a directory", error).with_path(parent);
        fs::create_dir_all(parent).map_err(failed)?;
        let gate = pass(parent)?;
        remove_stale(&gate).map_err(failed)?;
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{number}", process::id());
            let path = parent.join(&name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed)?,
            }
            let directory = job(&gate, &name).map_err(failed)?;
            flock(&directory, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
            flock(&gate, FlockOperation::Unlock).map_err(|error| failed(error.into()))?;
            return Ok(Self {
                path,
                parent: gate,
                name,
                _directory: directory,
            });
        }
    }

    /// Those in `parent` whose job is no more.
    pub(super) fn stale(parent: &Path) -> Result<Vec<PathBuf>> {
        let names = stale(&pass(parent)?)
            .map_err(|error| Error::io("read the directory", error).with_path(parent))?;
        Ok(names.into_iter().map(|name| parent.join(name)).collect())
    }

    /// Removes those in `parent` whose job is no more.
    pub(super) fn tidy(parent: &Path) -> Result<()> {
        remove_stale(&pass(parent)?).map_err(|error| Error::io("read the directory", error).with_path(parent))
    }

    /// A file in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next job.
        let _ = fs::remove_dir_all(within(&self.parent, &self.name));
    }
}

/// Opens the directory of all jobs, when no other job has it so: a job's is made and locked, or found to be nobody's and removed, by one at
/// a time. Otherwise one that is made would be taken for a dead one's before it is locked.
fn pass(parent: &Path) -> Result<File> {
    let failed = |error| Error::io("open the directory", error).with_path(parent);
    if parent.is_symlink() {
        let error = Error::invalid("this is a link, and what killed commands have left there is removed");
        return Err(error.with_path(parent).with_hint("remove the link"));
    }
    let gate = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed())
        .open(parent)
        .map_err(failed)?;
    flock(&gate, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    Ok(gate)
}

/// The path of a file in a directory that is open, wherever that is by now.
fn within(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Opens the directory of a job.
fn job(parent: &File, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(parent, name, flags, Mode::empty())?))
}

/// The names of those whose job is no more.
fn stale(parent: &File) -> io::Result<Vec<String>> {
    let mut stale = Vec::new();
    for entry in fs::read_dir(within(parent, ""))? {
        let name = entry?.file_name();
        let is_free = |directory| flock(directory, FlockOperation::NonBlockingLockExclusive).is_ok();
        if let Some(name) = name.to_str().filter(|name| is_of_a_job(name))
            && job(parent, name).is_ok_and(is_free)
        {
            stale.push(name.to_owned());
        }
    }
    Ok(stale)
}

fn remove_stale(parent: &File) -> io::Result<()> {
    for name in stale(parent)? {
        let _ = fs::remove_dir_all(within(parent, &name));
    }
    Ok(())
}

/// Whether a name is that of a process and of its job.
fn is_of_a_job(name: &str) -> bool {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    name.split_once('-')
        .is_some_and(|(process, number)| is_number(process) && is_number(number))
}
