//! The system calls of a command that change something, and what becomes of it at one of them.

use std::fmt;
use std::fs;

use crate::common::{Done, Lab};

/// What changes a file, a directory, or what of them is on disk. strace knows some of these on some processors only.
const CHANGES: &str = "?write,?writev,?pwrite64,?pwritev,?pwritev2,?fallocate,?ftruncate,?fsync,?fdatasync,?syncfs,?sync_file_range,\
    ?copy_file_range,?ioctl,?open,?openat,?creat,?mkdir,?mkdirat,?rmdir,?rename,?renameat,?renameat2,?link,?linkat,?symlink,?symlinkat,\
    ?unlink,?unlinkat,?chmod,?fchmod,?fchmodat,?chown,?fchown,?fchownat,?utimensat,?setxattr,?fsetxattr,?io_uring_enter";

/// What every command finds in its environment: the same time, an editor, and a place for what it edits that goes away with the rest.
pub(crate) const ENVIRONMENT: [&str; 3] = ["SOURCE_DATE_EPOCH=1700000000", "EDITOR=cp edited", "TMPDIR=."];

/// The how many-th call of a name that a thread makes: strace counts each thread's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Among [`CHANGES`].
    name: &'static str,
    number: usize,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {}", self.name, self.number)
    }
}

/// Runs `imgtool` with the words of a line, to the end; the calls that it makes, in their order.
pub(crate) fn of(lab: &Lab, line: &str) -> Vec<Call> {
    let program = env!("CARGO_BIN_EXE_imgtool");
    let (log, trace) = (
        tempfile::NamedTempFile::new().unwrap(),
        format!("trace={CHANGES}"),
    );
    let mut words = vec![
        "strace",
        "-f",
        "-qq",
        "-o",
        log.path().to_str().unwrap(),
        "-e",
        &trace,
    ];
    words.extend(ENVIRONMENT.iter().flat_map(|variable| ["-E", variable]));
    words.push(program);
    words.extend(line.split(' '));
    lab.run_words(&words).ok();
    let text = fs::read_to_string(log.path()).unwrap();
    let mut counts: Vec<((&str, &str), usize)> = Vec::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        // "1234  openat(AT_FDCWD, ..."; where another thread comes between, the rest has a line of its own.
        let (thread, rest) = line.split_once(' ').unwrap();
        let Some((name, arguments)) = rest.trim_start().split_once('(') else {
            continue;
        };
        let Some(name) = known(name) else { continue };
        let key = (thread, name);
        let at = counts
            .iter()
            .position(|(other, _)| *other == key)
            .unwrap_or_else(|| {
                counts.push((key, 0));
                counts.len() - 1
            });
        counts[at].1 += 1;
        let call = Call {
            name,
            number: counts[at].1,
        };
        if changes(name, arguments) && !calls.contains(&call) {
            calls.push(call);
        }
    }
    calls
}

fn known(name: &str) -> Option<&'static str> {
    let mut all = CHANGES.split(',').map(|name| name.trim_start_matches('?'));
    all.find(|other| *other == name)
}

/// Whether a call changes something with these arguments.
fn changes(name: &str, arguments: &str) -> bool {
    match name {
        "open" | "openat" => arguments.contains("O_CREAT") || arguments.contains("O_TRUNC"),
        "ioctl" => arguments.contains("FICLONE"),
        _ => true,
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The process is killed as it makes it.
    Killed,
    /// It fails with an error of this name, and does nothing.
    Fails(&'static str),
}

impl Call {
    /// Runs `imgtool` up to the call and beyond. How that ends: `None` where it is killed.
    pub(crate) fn meet(self, fate: Fate, lab: &Lab, line: &str) -> Option<Done> {
        let happens = match fate {
            Fate::Killed => "signal=KILL".to_owned(),
            Fate::Fails(error) => format!("error={error}"),
        };
        let trace = format!("trace={}", self.name);
        let inject = format!("inject={}:{happens}:when={}", self.name, self.number);
        let mut words = vec![
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &trace,
            "-e",
            &inject,
        ];
        words.extend(ENVIRONMENT.iter().flat_map(|variable| ["-E", variable]));
        words.push(env!("CARGO_BIN_EXE_imgtool"));
        words.extend(line.split(' '));
        let done = lab.run_words(&words);
        (done.signal() != Some(9)).then_some(done)
    }
}
