//! The `imgtool` command line: create, inspect, check, convert, compare and resize disk images.
//!
//! Options and their order, results and exit codes are those of `qemu-img` wherever it has them, so that scripts go
//! on working; what is added is said in each command's help. [`run`] is the whole program, [`command`] its grammar.
//!
//! ```
//! let names: Vec<_> = imgtool::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
//! assert!(names.contains(&"convert".to_owned()));
//! ```

mod arguments;
mod commands;
mod failure;
mod formats;
mod image_name;
mod images;
mod interrupt;
mod keys;
mod layers;
mod luks_description;
mod opener;
mod option_list;
mod output;
mod picture;
mod qcow2_description;
mod qemu_img;
mod sandbox;
mod snapshots;
mod stores;
mod table;
mod target;
mod targets;
mod watch;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::ExitCode;

use block::size;
use clap::{CommandFactory, FromArgMatches};

use commands::Cli;
use failure::Failure;

/// Runs `imgtool` with the arguments of a process, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    interrupt::outlive();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.first().is_some_and(qemu_img::is_called) {
        return qemu_img::run(&arguments);
    }
    if arguments.get(1).is_some_and(|command| command == "qemu-img") {
        return qemu_img::run(&arguments[1..]);
    }
    let arguments = keep_sizes_apart(arguments);
    let parsed = command()
        .try_get_matches_from(&arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let result = match parsed {
        Ok(cli) => cli.run(),
        Err(error) => {
            return ExitCode::from(failure::usage(&error, arguments.get(1).map(OsString::as_os_str)));
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => ExitCode::from(report(&failure)),
    }
}

/// The grammar of the command line, for completions and manual pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Prints what went wrong and gives the exit code.
fn report(failure: &Failure) -> u8 {
    // With nobody left to read it there is nothing to be done about that.
    let _ = write!(std::io::stderr(), "{failure}");
    failure.code()
}

/// A last argument such as `-1G` is a size and not an option: `resize` shrinks by it, others say what is wrong.
fn keep_sizes_apart(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let takes_size = arguments
        .get(1)
        .is_some_and(|command| command == "resize" || command == "create");
    let negative = |argument: &OsStr| {
        let bytes = argument.as_encoded_bytes();
        bytes.len() > 1 && bytes[0] == b'-' && (bytes[1].is_ascii_digit() || bytes[1] == b'.')
    };
    if takes_size && arguments.len() > 3 && arguments.last().is_some_and(|last| negative(last)) {
        let ended = arguments.iter().any(|argument| argument == "--");
        if !ended {
            arguments.insert(arguments.len() - 1, "--".into());
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in command().get_subcommands() {
            let after = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                after.contains("imgtool "),
                "{} has no example",
                command.get_name()
            );
        }
    }

    #[test]
    fn a_negative_size_is_no_option() {
        let arguments = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            keep_sizes_apart(arguments("imgtool resize a -1G")),
            arguments("imgtool resize a -- -1G")
        );
        assert_eq!(
            keep_sizes_apart(arguments("imgtool resize -- a -1G")),
            arguments("imgtool resize -- a -1G")
        );
        assert_eq!(
            keep_sizes_apart(arguments("imgtool resize a -q")),
            arguments("imgtool resize a -q")
        );
    }
}
