//! Ctrl-C and its like: an orderly stop within a second.
//!
//! A job is asked to stop and does so between two requests. One that cannot (it waits for a slow disk) is not waited
//! for: whatever is unfinished is removed and the process ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io, process, thread};

use block::{Error, Result};
use ops::Cancel;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGURG, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;

/// How long a job may take to stop by itself.
const GRACE: Duration = Duration::from_millis(700);

/// Files that exist and must not outlive the process unless they are taken off the list.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The signal that has interrupted; until one does, Ctrl-C's.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(|| Arc::new(AtomicUsize::new(SIGINT as usize)));

/// The exit code after an interrupt: 128 and the number of the signal, as shells have it.
pub(crate) fn exit_code() -> u8 {
    128 + SIGNAL.load(Ordering::Relaxed) as u8
}

/// What threads that wait for signals are to do besides.
struct Errand {
    /// Threads that wait.
    watchers: usize,
    /// Errands so far.
    number: usize,
    what: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
    /// Threads that have done this one.
    done: usize,
    /// It has worked in each of them.
    worked: bool,
}

static ERRAND: Mutex<Errand> = Mutex::new(Errand {
    watchers: 0,
    number: 0,
    what: None,
    done: 0,
    worked: true,
});

static ERRAND_DONE: Condvar = Condvar::new();

/// Tells the threads that there is an errand. Whoever does not wait for it ignores it.
const WAKE: i32 = SIGURG;

fn errand() -> MutexGuard<'static, Errand> {
    ERRAND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has every thread that waits for signals do something, and waits until all have. Whether it worked in all.
pub(crate) fn in_watchers(what: impl Fn() -> bool + Send + Sync + 'static) -> bool {
    let mut errand = errand();
    if errand.watchers == 0 {
        return true;
    }
    (errand.number, errand.done, errand.worked) = (errand.number + 1, 0, true);
    errand.what = Some(Arc::new(what));
    if signal_hook::low_level::raise(WAKE).is_err() {
        return false;
    }
    while errand.done < errand.watchers {
        errand = ERRAND_DONE.wait(errand).unwrap_or_else(PoisonError::into_inner);
    }
    errand.worked
}

/// Counts a thread that waits, and gives the errands that it need not do.
fn join_watchers() -> usize {
    let mut errand = errand();
    errand.watchers += 1;
    errand.number
}

/// In a thread that waits: does the errand, unless that is `done`.
fn run_errand(done: &mut usize) {
    let mut errand = errand();
    let Some(what) = errand.what.clone().filter(|_| errand.number > *done) else {
        return;
    };
    *done = errand.number;
    errand.worked &= what();
    errand.done += 1;
    ERRAND_DONE.notify_all();
}

/// What interrupts.
const INTERRUPTS: [i32; 7] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGUSR2, SIGXCPU];

/// Those of some signals that whoever started this does not have it ignore, as `nohup` does.
fn heeded<const N: usize>(signals: [i32; N]) -> impl Iterator<Item = i32> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = mask.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap_or(0));
    signals
        .into_iter()
        .filter(move |signal| ignored & (1 << (signal - 1)) == 0)
}

/// From now on, signals that say something rather than stop a job end nobody: a file that reaches a limit of length is an error of
/// whoever writes it, and who asks how far a job is gets an answer or none.
pub(crate) fn outlive() {
    for signal in [SIGXFSZ, SIGUSR1] {
        // If that fails, they do what they did.
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

/// From now on, an interrupt asks whoever holds the result to stop.
pub(crate) fn watch() -> Result<Cancel> {
    watch_as("imgtool")
}

/// [`watch`], for a program of another name.
pub(crate) fn watch_as(program: &str) -> Result<Cancel> {
    let program = program.to_owned();
    let cancel = Cancel::new();
    let watched = cancel.clone();
    let mut signals = Signals::new(heeded(INTERRUPTS).chain([WAKE]))
        .map_err(|error| Error::io("watch for signals", error))?;
    let mut done = join_watchers();
    let wait = move || {
        for signal in signals.forever() {
            if signal == WAKE {
                run_errand(&mut done);
                continue;
            }
            SIGNAL.store(signal as usize, Ordering::Relaxed);
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
            let _ = writeln!(io::stderr(), "{program}: interrupted{left}");
            process::exit(exit_code().into());
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
    for signal in heeded(INTERRUPTS) {
        signal_hook::flag::register_usize(signal, SIGNAL.clone(), signal as usize)
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|error| Error::io("watch for signals", error))?;
    }
    Ok(flag.into())
}

/// From now on, what the keyboard interrupts is not this process but a program that it starts: that has no handler of ours, and so
/// does by itself what it does otherwise. What comes from elsewhere asks whoever holds the result to stop.
pub(crate) fn leave_the_keyboard() -> Result<Cancel> {
    let (nobody, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let failed = |error| Error::io("watch for signals", error);
    for signal in heeded([SIGINT, SIGQUIT]) {
        signal_hook::flag::register(signal, nobody.clone()).map_err(failed)?;
    }
    for signal in heeded([SIGTERM, SIGHUP]) {
        signal_hook::flag::register_usize(signal, SIGNAL.clone(), signal as usize)
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(failed)?;
    }
    Ok(stop.into())
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
