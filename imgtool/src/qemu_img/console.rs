//! Where a command prints: results on standard output, what is wrong on standard error after the program's name.
//!
//! Both often end up in one pipe, and scripts compare what comes out of it; so what was printed is written out before anything
//! goes to standard error.

use std::cell::RefCell;
use std::io::{self, BufWriter, Stdout, Write};

use super::refusal::Refusal;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Console {
    program: String,
    out: RefCell<BufWriter<Stdout>>,
}

impl Console {
    /// For a program that is called so.
    pub(super) fn new(program: String) -> Self {
        Self {
            program,
            out: RefCell::new(BufWriter::new(io::stdout())),
        }
    }

    /// Prints to standard output, as it is.
    pub(super) fn print(&self, text: impl AsRef<str>) -> io::Result<()> {
        self.out.borrow_mut().write_all(text.as_ref().as_bytes())
    }

    /// Writes out what was printed.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.out.borrow_mut().flush()
    }

    /// Says on standard error what went wrong. With nobody left to read it there is nothing to be done about that.
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

    /// Something on standard error, as it is.
    pub(super) fn note(&self, text: &str) {
        let _ = self.flush();
        let _ = io::stderr().write_all(text.as_bytes());
    }
}
