//! Programs of the host that recipes use: what they write is read through a pipe, what they complain of is told, and none
//! outlives the job.
//!
//! A program gets a process group of its own, and a job that is stopped ends the whole group: first as a terminal would, so that
//! what it has mounted and put aside goes too, and a while later for good. Where this process is killed, the kernel tells the program to end ([`bound`]).

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use block::{Error, ErrorKind, Result, escape};
use ops::Control;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::bound;

/// Lines of complaints that are told, the last ones.
const LINES: usize = 12;

/// Between two looks at whether the job is to stop.
const TICK: Duration = Duration::from_millis(50);

/// How long a program may take to put away what it has.
const TO_END: Duration = Duration::from_secs(20);

/// Runs a program, and gives what it writes to `read`. `install` is the package that has it.
///
/// # Errors
/// `InvalidInput` where the program is not installed, or fails, with the last of what it said; `Interrupted`; otherwise what
/// `read` returns, which is not asked for more once it has failed.
pub(super) fn piped<T>(
    command: Command,
    install: &str,
    control: &Control<'_>,
    read: impl FnOnce(ChildStdout) -> Result<T>,
) -> Result<T> {
    let name = command.get_program().to_string_lossy().into_owned();
    piped_of(command, &name, install, control, read)
}

/// The same of a program that another, `command`, starts.
fn piped_of<T>(
    command: Command,
    name: &str,
    install: &str,
    control: &Control<'_>,
    read: impl FnOnce(ChildStdout) -> Result<T>,
) -> Result<T> {
    let mut command = bound::to_us(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C.UTF-8")
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(|error| not_started(&command, install, error))?;
    let (Some(output), Some(complaints)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both are pipes");
    };
    let group = Group::of(&child);
    let last = Mutex::new(VecDeque::new());
    let done = AtomicBool::new(false);
    let (result, status) = thread::scope(|scope| {
        scope.spawn(|| keep_last(complaints, &last));
        scope.spawn(|| group.watch(&done, control));
        let result = read(output);
        if result.is_err() {
            // It is not to go on, and nobody reads what it writes.
            group.signal(Signal::TERM);
        }
        let status = group.wait(&mut child, result.is_err());
        done.store(true, Ordering::Relaxed);
        (result, status)
    });
    control.check()?;
    let status = status.map_err(|error| Error::io("wait for", error).with_path(name))?;
    // What is wrong with what it wrote may only be that it failed.
    match result {
        Err(error) if error.kind() != ErrorKind::InvalidInput && error.kind() != ErrorKind::Corrupt => {
            Err(error)
        }
        Err(error) if status.success() || was_ended(status) => Err(error),
        result => check(name, status, &last.lock().unwrap_or_else(PoisonError::into_inner)).and(result),
    }
}

/// Runs a program to its end; gives what it wrote.
///
/// # Errors
/// As [`piped`].
pub(super) fn output(command: Command, install: &str, control: &Control<'_>) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    output_of(command, &name, install, control)
}

/// The same of a program that another, `command`, starts.
pub(super) fn output_of(
    command: Command,
    name: &str,
    install: &str,
    control: &Control<'_>,
) -> Result<String> {
    piped_of(command, name, install, control, |mut output| {
        let mut text = Vec::new();
        output
            .read_to_end(&mut text)
            .map_err(|error| Error::io("read what a program writes", error))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    })
}

/// A program, of the package `install`, that is missing.
pub(super) fn not_installed(name: &str, install: &str) -> Error {
    Error::invalid(format!(
        "{name} is not installed, and the recipe is built with it"
    ))
    .with_hint(format!("install it: apt install {install}"))
}

fn not_started(command: &Command, install: &str, error: io::Error) -> Error {
    let name = command.get_program();
    if error.kind() == io::ErrorKind::NotFound {
        return not_installed(&name.to_string_lossy(), install);
    }
    Error::io("start", error).with_path(name)
}

/// Whether it ended by the signal that it was sent.
fn was_ended(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal().is_some()
}

fn check(name: &str, status: ExitStatus, last: &VecDeque<String>) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let error = Error::invalid(format!("{name} failed ({status}), and said last"));
    Err(error.with_source(Complaints(last.iter().cloned().collect())))
}

/// The last lines of what a program said that failed.
#[derive(Debug)]
pub(super) struct Complaints(Vec<String>);

impl Complaints {
    /// Those that an error is about, if it is of a program that failed.
    pub(super) fn of(error: &Error) -> &[String] {
        let source = std::error::Error::source(error);
        source
            .and_then(|source| source.downcast_ref::<Self>())
            .map_or(&[], |complaints| &complaints.0)
    }
}

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&escape(&self.0.join(" | ")))
    }
}

impl std::error::Error for Complaints {}

fn keep_last(from: impl Read, last: &Mutex<VecDeque<String>>) {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(lines.read_until(b'\n', &mut line), Ok(read) if read > 0) {
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        line.clear();
        if text.is_empty() {
            continue;
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back(text);
        if last.len() > LINES {
            last.pop_front();
        }
    }
}

/// The processes of a program.
#[derive(Clone, Copy)]
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(i32::try_from(child.id()).ok().and_then(Pid::from_raw))
    }

    fn signal(self, signal: Signal) {
        if let Some(group) = self.0 {
            // Those that have ended need none.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Ends it as soon as the job is to stop.
    fn watch(self, done: &AtomicBool, control: &Control<'_>) {
        let mut since: Option<Instant> = None;
        while !done.load(Ordering::Relaxed) {
            match since {
                None if control.check().is_err() => {
                    self.signal(Signal::TERM);
                    since = Some(Instant::now());
                }
                Some(start) if start.elapsed() > TO_END => self.signal(Signal::KILL),
                _ => {}
            }
            thread::sleep(TICK);
        }
    }

    /// Waits for the end, for a while only of one that was told to.
    fn wait(self, child: &mut Child, is_told: bool) -> io::Result<ExitStatus> {
        let start = Instant::now();
        while is_told && start.elapsed() < TO_END {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(TICK);
        }
        if is_told {
            self.signal(Signal::KILL);
        }
        child.wait()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ops::Cancel;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_program_says_last_is_told_when_it_fails() {
        let control = Control::unwatched();
        assert_eq!(output(shell("echo a; echo b >&2"), "x", &control).unwrap(), "a\n");
        let error = output(
            shell("for n in $(seq 50); do echo line $n >&2; done; exit 3"),
            "x",
            &control,
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("line 50") && !error.contains("line 30"),
            "{error}"
        );
        let error = output(Command::new("no-such-program"), "a-package", &control).unwrap_err();
        assert!(error.hint().unwrap().contains("apt install a-package"));
    }

    #[test]
    fn nothing_of_a_program_is_left_when_the_job_is_stopped() {
        let lab = tempfile::tempdir().unwrap();
        let path = lab.path().join("pid");
        let script = format!(
            "sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait",
            path.display()
        );
        let cancel = Cancel::new();
        let control = Control::new(cancel.clone(), &|_| {});
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                while !path.exists() {
                    thread::sleep(TICK);
                }
                cancel.cancel();
            });
            output(shell(&script), "x", &control)
        });
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Interrupted);
        let pid = fs::read_to_string(path).unwrap();
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        assert!(state.is_err() || state.unwrap().contains(") Z "), "it runs on");
    }

    #[test]
    fn a_program_whose_output_is_refused_is_ended() {
        let result = piped(shell("yes"), "x", &Control::unwatched(), |_| {
            Err::<(), _>(Error::invalid("not this"))
        });
        assert_eq!(result.unwrap_err().to_string(), "not this");
    }
}
