//! How a job is watched and stopped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{Error, ErrorKind, Result};

/// A request to stop, shared between whoever makes it and the jobs that heed it. Clones are the same request.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not asked to stop.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every job that holds a clone to stop; each does so within a few requests.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once somebody asked.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(ErrorKind::Interrupted, "stopped on request"));
        }
        Ok(())
    }
}

/// A flag that something else sets, such as a signal handler.
impl From<Arc<AtomicBool>> for Cancel {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}

/// How far a job has come, in bytes of the disk it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes in all; 0 where that is not known yet.
    pub total: u64,
}

/// What a job reports to and is stopped by.
#[derive(Clone)]
pub struct Control<'a> {
    cancel: Cancel,
    report: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Control<'a> {
    /// Stops on `cancel`, and calls `report` from any of the job's threads, one at a time in order of progress.
    pub fn new(cancel: Cancel, report: &'a (dyn Fn(Progress) + Sync)) -> Self {
        Self { cancel, report }
    }

    /// Runs to the end in silence.
    pub fn unwatched() -> Self {
        Self::new(Cancel::new(), &|_| {})
    }

    /// An error once the job should stop.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`].
    pub fn check(&self) -> Result<()> {
        self.cancel.check()
    }

    /// Tells the watcher.
    pub fn report(&self, done: u64, total: u64) {
        (self.report)(Progress { done, total });
    }
}

impl fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}
