//! Ctrl-C and its like: an orderly stop within a second.
//!
//! A job is asked to stop and does so between two requests. One that cannot (it waits for a slow disk) is not waited
//! for: whatever is unfinished is removed and the process ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io, process, thread};

use block::{Error, Result};
use ops::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::INTERRUPTED;

/// How long a job may take to stop by itself.
const GRACE: Duration = Duration::from_millis(700);

/// Files that exist and must not outlive the process unless they are taken off the list.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// From now on, an interrupt asks whoever holds the result to stop.
pub(crate) fn watch() -> Result<Cancel> {
    let cancel = Cancel::new();
    let watched = cancel.clone();
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| Error::io("watch for signals", error))?;
    let wait = move || {
        if signals.forever().next().is_some() {
            watched.cancel();
            thread::sleep(GRACE);
            // Held to the end: nothing can be finished any more.
            let unfinished = unfinished();
            for path in unfinished.iter() {
                let _ = fs::remove_file(path);
            }
            let left = if unfinished.is_empty() {
                ""
            } else {
                "; what was unfinished is gone"
            };
            let _ = writeln!(io::stderr(), "imgtool: interrupted{left}");
            process::exit(INTERRUPTED.into());
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map_err(|error| Error::io("watch for signals", error))?;
    Ok(cancel)
}

/// From now on, an interrupt asks whoever holds the result to stop, for as long as that takes: for a job that ends what it has
/// started.
pub(crate) fn watch_patiently() -> Result<Cancel> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, flag.clone())
            .map_err(|error| Error::io("watch for signals", error))?;
    }
    Ok(flag.into())
}

/// A file that is removed when it is dropped, or the process interrupted, unless it is [kept](Self::keep).
#[derive(Debug)]
pub(crate) struct Unfinished {
    path: PathBuf,
    kept: bool,
}

impl Unfinished {
    pub(crate) fn new(path: &Path) -> Self {
        unfinished().push(path.to_owned());
        Self {
            path: path.to_owned(),
            kept: false,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs the step that makes the file a finished one, such as giving it its name. The process does not end in
    /// the middle of it.
    pub(crate) fn keep(mut self, finish: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let mut unfinished = unfinished();
        finish(&self.path)?;
        unfinished.retain(|path| *path != self.path);
        self.kept = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
            unfinished().retain(|path| *path != self.path);
        }
    }
}

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "").unwrap();
        drop(Unfinished::new(&path));
        assert!(!path.exists());

        fs::write(&path, "").unwrap();
        let failed = Unfinished::new(&path).keep(|_| Err(io::ErrorKind::Other.into()));
        assert!(failed.is_err() && !path.exists());

        fs::write(&path, "").unwrap();
        Unfinished::new(&path).keep(|_| Ok(())).unwrap();
        assert!(path.exists());
        assert!(!unfinished().contains(&path));
    }
}
