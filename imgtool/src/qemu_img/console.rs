//! Where a command prints: results on standard output, what is wrong on standard error after the program's name.
//!
//! Both often end up in one pipe, and scripts compare what comes out of it. So it is in C's order: standard output is kept back
//! until the end, or until a command lets it go, unless somebody watches it on a terminal.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ops::Cancel;

use super::refusal::Refusal;
use crate::interrupt;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Console {
    program: String,
    out: Mutex<BufWriter<Stdout>>,
    /// What an interrupt sets, for a command that must tidy up after itself.
    cancel: OnceLock<Cancel>,
}

impl Console {
    /// For a program that is called so.
    pub(super) fn new(program: String) -> Self {
        Self {
            program,
            out: Mutex::new(BufWriter::with_capacity(64 << 10, io::stdout())),
            cancel: OnceLock::new(),
        }
    }

    /// For a command that makes files: from now on an interrupt asks whoever holds the result to stop, so that no unfinished file
    /// is left. Others are ended by it, as QEMU's all are.
    pub(super) fn stop_orderly(&self) -> Result<Cancel, Refusal> {
        if let Some(cancel) = self.cancel.get() {
            return Ok(cancel.clone());
        }
        let cancel = interrupt::watch().map_err(|error| Refusal::new(error.to_string()))?;
        Ok(self.cancel.get_or_init(|| cancel).clone())
    }

    /// Whether an interrupt has stopped such a command.
    pub(super) fn was_interrupted(&self) -> bool {
        self.cancel.get().is_some_and(Cancel::is_cancelled)
    }

    fn out(&self) -> MutexGuard<'_, BufWriter<Stdout>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints to standard output, as it is.
    pub(super) fn print(&self, text: impl AsRef<str>) -> io::Result<()> {
        self.out().write_all(text.as_ref().as_bytes())
    }

    /// Lets go what was printed.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.out().flush()
    }

    /// Says on standard error what went wrong.
    pub(super) fn refuse(&self, refusal: &Refusal) {
        self.error(refusal.text());
        if let Some(line) = refusal.more() {
            self.error(line);
        }
        self.note(refusal.hint());
    }

    /// A line on standard error, after the program's name.
    pub(super) fn error(&self, text: &str) {
        self.note(&format!("{}: {text}\n", self.program));
    }

    /// Something on standard error, as it is. With nobody left to read it there is nothing to be done about that.
    pub(super) fn note(&self, text: &str) {
        if io::stdout().is_terminal() {
            let _ = self.flush();
        }
        let _ = io::stderr().write_all(text.as_bytes());
    }
}
