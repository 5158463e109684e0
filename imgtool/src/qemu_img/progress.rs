//! How far a command has come: `-p` prints it over and over in one line on standard output, and without it SIGUSR1 asks for it on
//! standard error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::SIGUSR1;

use super::console::Console;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Progress<'a> {
    console: &'a Console,
    shown: bool,
    /// Points that have to be gained between two lines.
    step: f64,
    asked: Arc<AtomicBool>,
    /// What was told last.
    last: Mutex<f64>,
}

impl<'a> Progress<'a> {
    /// With `-p` it is `shown`, whenever `step` points were gained.
    pub(super) fn new(console: &'a Console, shown: bool, step: f64) -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        // Without the signal there is nothing to tell; with it unhandled the process would end.
        let _ = signal_hook::flag::register(SIGUSR1, asked.clone());
        let progress = Self {
            console,
            shown,
            step,
            asked,
            last: Mutex::new(0.0),
        };
        progress.print(0.0);
        progress
    }

    /// So much is done, in percent.
    pub(super) fn report(&self, percent: f64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if percent <= *last {
            return;
        }
        if self.asked.swap(false, Ordering::Relaxed) && !self.shown {
            self.console.note(&format!("    ({percent:.2}/100%)\n"));
        }
        if percent - *last > self.step || percent >= 100.0 {
            *last = percent;
            self.print(percent);
        }
    }

    /// So many of so many bytes are done.
    pub(super) fn bytes(&self, done: u64, total: u64) {
        if total > 0 {
            self.report(done as f64 * 100.0 / total as f64);
        }
    }

    /// All is done, whatever was counted.
    pub(super) fn end_at(&self, percent: f64) {
        self.print(percent);
    }

    /// The command is at its end, done or not.
    pub(super) fn end(&self) {
        if self.shown {
            self.console.remark("\n");
            let _ = self.console.flush();
        }
    }

    fn print(&self, percent: f64) {
        if self.shown {
            self.console.remark(format!("    ({percent:.2}/100%)\r"));
            let _ = self.console.flush();
        }
    }
}
