//! Where a command prints: results on standard output, what is wrong on standard error after the program's name.
//!
//! Both often end up in one pipe, and scripts compare what comes out of it. So it is in C's order: standard output is kept back
//! until the end, or until a command lets it go, unless somebody watches it on a terminal.
//!
//! Names out of images are in these texts as they are, for scripts compare those too. All that a terminal would obey is therefore
//! escaped here, where everything passes, and not at each of the places that print a name.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ops::Cancel;

use super::refusal::Refusal;
use crate::interrupt;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Console {
    program: String,
    out: Mutex<BufWriter<Stdout>>,
    /// Something that was asked for was printed, so that it is an error if nobody gets it.
    answered: AtomicBool,
    /// What an interrupt sets, for a command that must tidy up after itself.
    cancel: OnceLock<Cancel>,
}

/// What the program is called, for what is said where no console is at hand.
static PROGRAM: OnceLock<String> = OnceLock::new();

/// Says on standard error that something is not as it should be, and is done all the same.
pub(super) fn warn(text: &str) {
    let program = PROGRAM.get().map_or("qemu-img", |program| program);
    note(&format!("{program}: warning: {}\n", block::escape(text)));
}

/// Writes to standard error. With nobody left to read it there is nothing to be done about that.
pub(super) fn note(text: &str) {
    let _ = io::stderr().write_all(harmless(text, &['\n']).as_bytes());
}

impl Console {
    /// For a program that is called so.
    pub(super) fn new(program: String) -> Self {
        let _ = PROGRAM.set(program.clone());
        Self {
            program,
            out: Mutex::new(BufWriter::with_capacity(64 << 10, io::stdout())),
            answered: AtomicBool::new(false),
            cancel: OnceLock::new(),
        }
    }

    /// For a command that makes files: from now on an interrupt asks whoever holds the result to stop, so that no unfinished file
    /// is left. Others are ended by it, as QEMU's all are.
    pub(super) fn stop_orderly(&self) -> Result<Cancel, Refusal> {
        if let Some(cancel) = self.cancel.get() {
            return Ok(cancel.clone());
        }
        let cancel = interrupt::watch_as(&self.program).map_err(|error| Refusal::new(error.to_string()))?;
        Ok(self.cancel.get_or_init(|| cancel).clone())
    }

    /// Whether an interrupt has stopped such a command.
    pub(super) fn was_interrupted(&self) -> bool {
        self.cancel.get().is_some_and(Cancel::is_cancelled)
    }

    fn out(&self) -> MutexGuard<'_, BufWriter<Stdout>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints what was asked for to standard output.
    pub(super) fn print(&self, text: impl AsRef<str>) -> io::Result<()> {
        self.answered.store(true, Ordering::Relaxed);
        unless_closed(self.out().write_all(harmless(text.as_ref(), &['\n']).as_bytes()))
    }

    /// Prints what was asked for instead of what the command does, and gives what ends it.
    pub(super) fn answer(&self, text: impl AsRef<str>) -> Refusal {
        match self.print(text).and_then(|()| self.flush()) {
            Ok(()) => Refusal::answered(),
            Err(error) => error.into(),
        }
    }

    /// Says something in passing on standard output. If nobody reads it, the command has done what it was to do all the same.
    pub(super) fn remark(&self, text: impl AsRef<str>) {
        // Progress is told on one line again and again.
        let text = harmless(text.as_ref(), &['\n', '\r']);
        let _ = self.out().write_all(text.as_bytes());
    }

    /// Lets go what was printed. Fails if something that was asked for cannot be.
    pub(super) fn flush(&self) -> io::Result<()> {
        let flushed = unless_closed(self.out().flush());
        if self.answered.load(Ordering::Relaxed) {
            flushed
        } else {
            Ok(())
        }
    }

    /// Says on standard error what went wrong.
    pub(super) fn refuse(&self, refusal: &Refusal) {
        if refusal.code() == 0 {
            // All has been said.
            return;
        }
        self.error(refusal.text());
        if let Some(line) = refusal.more() {
            self.error(line);
        }
        self.note(refusal.hint());
    }

    /// A line on standard error, after the program's name.
    pub(super) fn error(&self, text: &str) {
        self.note(&format!("{}: {}\n", self.program, block::escape(text)));
    }

    /// Something on standard error.
    pub(super) fn note(&self, text: &str) {
        if io::stdout().is_terminal() {
            let _ = self.flush();
        }
        note(text);
    }
}

/// `text` with its control characters escaped (`\u{1b}`), but for `meant`.
fn harmless<'a>(text: &'a str, meant: &[char]) -> Cow<'a, str> {
    let is_harmless = |c: char| !c.is_control() || meant.contains(&c);
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let pieces = text.split_inclusive(meant).map(|piece| {
        let (inner, end) = piece.split_at(piece.trim_end_matches(meant).len());
        block::escape(inner) + end
    });
    Cow::Owned(pieces.collect())
}

/// Whoever reads no further, `head` say, has what was wanted: the command is done for that as ever.
fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_but_what_is_meant() {
        assert_eq!(harmless("a\nb", &['\n']), "a\nb");
        assert_eq!(
            harmless("a\u{1b}[2J\n\n\rb\u{9b}\tc\n", &['\n']),
            "a\\u{1b}[2J\n\n\\rb\\u{9b}\\tc\n"
        );
    }
}
