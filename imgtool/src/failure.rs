//! How a command fails: one line that says what, where and why, a line that says what to do, and an exit code.

use std::error::Error as _;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write};

use block::{Error, ErrorKind, escape};

use crate::interrupt;

/// Why a command ends without having done what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong.
    Error { error: Error, code: u8 },
    /// Nobody reads the output any more: an end, and nothing to tell anyone.
    NobodyReads { code: u8 },
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Error { error, .. } if error.kind() == ErrorKind::Interrupted => interrupt::exit_code(),
            Self::Error { code, .. } | Self::NobodyReads { code } => *code,
        }
    }

    /// The same failure with another exit code.
    pub(crate) fn with_code(self, code: u8) -> Self {
        match self {
            Self::Error { error, .. } => Self::Error { error, code },
            Self::NobodyReads { .. } => Self::NobodyReads { code },
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let error = match (error.kind(), error.hint()) {
            (ErrorKind::NoSpace, None) => error.with_hint("make room on that file system, and try again"),
            _ => error,
        };
        Self::Error { error, code: 1 }
    }
}

/// Only writing to standard output fails with a plain I/O error.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads { code: 1 },
            _ => Error::io("write to standard output", error).into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Error { error, .. } = self else {
            return Ok(());
        };
        let text = error.to_string();
        // A name from an image may be anywhere in the text.
        writeln!(f, "imgtool: {}", escape(&without_os_codes(&text)))?;
        match error.hint().or_else(|| usual_hint(error)) {
            Some(hint) => writeln!(f, "hint: {}", escape(hint)),
            None => Ok(()),
        }
    }
}

/// What to do about a failure of the host that can happen to every command.
fn usual_hint(error: &Error) -> Option<&'static str> {
    let full = error.kind() == ErrorKind::NoSpace && error.path().is_some() && error.source().is_some();
    full.then_some("make room on that file system, and try again")
}

/// The text without ` (os error 2)`: the words before it say the same.
fn without_os_codes(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((code, rest)) if code.bytes().all(|byte| byte.is_ascii_digit()) => plain.push_str(rest),
            _ => {
                plain.push_str(" (os error ");
                plain.push_str(part);
            }
        }
    }
    plain
}

/// Prints what is wrong with the command line, or the help that was asked for, and gives the exit code.
pub(crate) fn usage(error: &clap::Error, command: Option<&OsStr>) -> u8 {
    use clap::error::ErrorKind as Kind;
    if !error.use_stderr() {
        let printed = error.print().and_then(|()| io::stdout().flush());
        return match printed {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => crate::report(&error.into()),
            _ => 0,
        };
    }
    let text = match error.kind() {
        Kind::InvalidUtf8 => {
            "imgtool: an argument is not UTF-8, and only names of files may be anything else\n".to_owned()
        }
        Kind::DisplayHelpOnMissingArgumentOrSubcommand => error.render().to_string(),
        _ => line_and_hint(&error.render().to_string(), own_hint(error)),
    };
    // With nobody left to read it there is nothing to be done about that.
    let _ = write!(io::stderr(), "{text}");
    // 1 means that the images differ.
    if command.is_some_and(|command| command == "compare") {
        2
    } else {
        1
    }
}

/// What to do about a value that one of our own parsers has refused.
fn own_hint(error: &clap::Error) -> Option<&str> {
    error.source()?.downcast_ref::<Error>()?.hint()
}

/// What clap has to say in several paragraphs, in the form that every other failure has: a line that says what is wrong,
/// and one that says what to do, with what is known better than that. Usage in several forms is left to the help.
fn line_and_hint(text: &str, known: Option<&str>) -> String {
    let mut paragraphs = text.trim().split("\n\n");
    let joined = |paragraph: &str| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let wrong = joined(paragraphs.next().unwrap_or_default());
    let wrong = wrong.trim_start_matches("error: ");
    let hints = paragraphs.filter(|hint| !hint.starts_with("Usage: ") || hint.lines().count() == 1);
    let hints: Vec<String> = hints
        .map(joined)
        .map(|hint| hint.trim_start_matches("tip: ").trim_end_matches('.').to_owned())
        .collect();
    let hint = known.map_or_else(|| hints.join(". "), str::to_owned);
    let wrong = escape(wrong);
    format!("imgtool: {wrong}\nhint: {}\n", escape(&hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_line_and_a_hint() {
        let error = Error::io("open", io::Error::from_raw_os_error(2))
            .with_path("a\x1b[1m\nb")
            .with_hint("look\nelsewhere");
        let failure = Failure::from(error);
        assert_eq!(
            failure.to_string(),
            "imgtool: a\\u{1b}[1m\\nb: open: No such file or directory\nhint: look\\nelsewhere\n"
        );
        assert_eq!(failure.code(), 1);
        assert_eq!(failure.with_code(2).code(), 2);
    }

    #[test]
    fn a_full_file_system_has_a_hint_whoever_meets_it() {
        let full = || Error::io("write", io::ErrorKind::StorageFull.into());
        let hint = |error| Failure::from(error).to_string();
        assert!(hint(full()).ends_with("\nhint: make room on that file system, and try again\n"));
        assert!(hint(full().with_hint("choose another")).ends_with("\nhint: choose another\n"));
    }

    #[test]
    fn what_clap_says_is_a_line_and_a_hint() {
        let text = "error: the following required arguments were not provided:\n  <FILE>\n  <BITMAP>\n\n\
                    Usage: imgtool bitmap <FILE>\n       imgtool bitmap --list\n\n\
                    For more information, try '--help'.\n";
        assert_eq!(
            line_and_hint(text, None),
            "imgtool: the following required arguments were not provided: <FILE> <BITMAP>\n\
             hint: For more information, try '--help'\n"
        );
        let text = "error: unexpected argument '--a\x1bb' found\n\n  tip: a similar argument exists: '--all'\n\n\
                    Usage: imgtool x --all\n\nFor more information, try '--help'.\n";
        assert_eq!(
            line_and_hint(text, None),
            "imgtool: unexpected argument '--a\\u{1b}b' found\n\
             hint: a similar argument exists: '--all'. Usage: imgtool x --all. For more information, try '--help'\n"
        );
    }

    #[test]
    fn a_value_that_is_refused_has_the_hint_of_who_refuses_it() {
        let refuse = |_: &str| Err::<u8, _>(Error::invalid("\"x\" is none").with_hint("there are y and z"));
        let argument = clap::Arg::new("what").long("what").value_parser(refuse);
        let command = clap::Command::new("imgtool").arg(argument);
        let error = command
            .try_get_matches_from(["imgtool", "--what", "x"])
            .unwrap_err();
        assert_eq!(
            line_and_hint(&error.render().to_string(), own_hint(&error)),
            "imgtool: invalid value 'x' for '--what <what>': \"x\" is none\nhint: there are y and z\n"
        );
    }

    #[test]
    fn only_codes_of_the_system_are_cut() {
        assert_eq!(
            without_os_codes("a (os error 17): b (os error x)"),
            "a: b (os error x)"
        );
    }

    #[test]
    fn a_closed_pipe_is_silent() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.to_string().as_str(), failure.code()), ("", 1));
    }
}
