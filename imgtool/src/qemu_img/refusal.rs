//! Why a command ends without having done what it was asked, in the words that scripts know.

use std::error::Error as _;
use std::fmt;
use std::io;

use block::{Error, ErrorKind};

/// What is printed after the program's name, lines that follow as they are, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    text: String,
    /// What is printed after the program's name in a line of its own.
    more: Option<String>,
    hint: String,
    code: u8,
    usage: bool,
}

impl Refusal {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            more: None,
            hint: String::new(),
            code: 1,
            usage: false,
        }
    }

    /// The command line is wrong.
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self {
            usage: true,
            ..Self::new(text).with_hint("Try 'qemu-img --help' for more information")
        }
    }

    /// Nothing is wrong: something else was asked for, and has been said.
    pub(super) fn answered() -> Self {
        Self::new("").with_code(0)
    }

    /// Whether the command line is what is wrong.
    pub(super) fn is_usage(&self) -> bool {
        self.usage
    }

    /// The same, with another line after the program's name.
    pub(super) fn with_more(mut self, line: impl Into<String>) -> Self {
        self.more = Some(line.into());
        self
    }

    /// The same, with another line.
    pub(super) fn with_hint(mut self, line: &str) -> Self {
        self.hint.push_str(line);
        self.hint.push('\n');
        self
    }

    /// The same, without its other lines.
    pub(super) fn without_hint(mut self) -> Self {
        self.hint.clear();
        self
    }

    pub(super) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The same, with something in front of its text.
    pub(super) fn after(mut self, prefix: impl fmt::Display) -> Self {
        self.text.insert_str(0, &prefix.to_string());
        self
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn more(&self) -> Option<&str> {
        self.more.as_deref()
    }

    /// Lines for after the text, each with its end.
    pub(super) fn hint(&self) -> &str {
        &self.hint
    }

    pub(super) fn code(&self) -> u8 {
        self.code
    }
}

/// Writing to standard output fails when nobody reads it.
impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::new(format!("write to standard output: {}", host_text(&error)))
    }
}

/// The words of the C library for what went wrong: its own number where the host refused, the number that QEMU would have had
/// where it was not the host.
pub(super) fn reason(error: &Error) -> String {
    match host_error(error) {
        Some(cause) => host_text(cause),
        None => host_text(&io::Error::from_raw_os_error(number(error))),
    }
}

/// Whether the host has refused, with this number.
pub(super) fn is_errno(error: &Error, number: i32) -> bool {
    host_error(error).and_then(io::Error::raw_os_error) == Some(number)
}

/// What the host has refused with, if it was the host.
pub(super) fn host_error(error: &Error) -> Option<&io::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

/// `strerror`.
pub(super) fn host_text(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number).to_string(),
        None => error.to_string(),
    };
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

pub(super) const ENOENT: i32 = 2;
pub(super) const EIO: i32 = 5;
pub(super) const ENXIO: i32 = 6;
pub(super) const EAGAIN: i32 = 11;
pub(super) const EINVAL: i32 = 22;
pub(super) const EISDIR: i32 = 21;
pub(super) const EFBIG: i32 = 27;
pub(super) const ENOSPC: i32 = 28;
pub(super) const ELOOP: i32 = 40;
const EPERM: i32 = 1;
pub(super) const ENOTSUP: i32 = 95;

fn number(error: &Error) -> i32 {
    match error.kind() {
        ErrorKind::NoSpace => ENOSPC,
        ErrorKind::Unsupported => ENOTSUP,
        ErrorKind::InvalidInput => EINVAL,
        ErrorKind::ReadOnly | ErrorKind::Denied => EPERM,
        ErrorKind::Locked => EAGAIN,
        _ => EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_speaks_as_the_c_library_does() {
        let error = Error::io("open", io::Error::from_raw_os_error(2)).with_path("a");
        assert_eq!(reason(&error), "No such file or directory");
        assert_eq!(reason(&Error::invalid("no")), "Invalid argument");
        let nested = Error::new(ErrorKind::Io, "outer").with_source(error);
        assert_eq!(reason(&nested), "No such file or directory");
        assert!(is_errno(&nested, 2));
    }

    #[test]
    fn a_prefix_comes_first_and_hints_last() {
        let refusal = Refusal::new("b").after("a: ").with_hint("c").with_code(3);
        assert_eq!(
            (refusal.text(), refusal.hint(), refusal.code()),
            ("a: b", "c\n", 3)
        );
    }
}
