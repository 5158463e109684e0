//! Running a machine with QEMU, on the terminal.
//!
//! # How it goes
//!
//! What QEMU would say in its own words is looked for first: a disk that another uses, a port that is taken, firmware that is
//! not there. Then QEMU has the terminal to itself. To wait for a text, its ends are pipes here instead: what the guest
//! writes is passed on and looked through, and the keys that a user would press are sent (Ctrl-A c for QEMU's monitor, and
//! Ctrl-A x for the end), so that what is run is the same in both cases.
//!
//! Whatever happens, QEMU has ended when this returns. It is asked to, so that what the guest has flushed is in the image. Where this
//! process is killed, the kernel asks it (`bound.rs`).

mod ephemeral;
mod terminal;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use block::{Error, ErrorKind, Result};
use ops::Cancel;
use regex::bytes::{Regex, RegexBuilder};
use rustix::process::{Pid, Signal, kill_process};

use crate::accel::{self, Accel};
use crate::bound;
use crate::bridge;
use crate::launch::{firmware, qemu, words};
use crate::machine::{Forward, Machine, Network};

use ephemeral::Ephemeral;
use terminal::Terminal;

/// How long QEMU may take to end when it is told to.
const TO_END: Duration = Duration::from_secs(10);
/// Between two looks at what else may have happened.
const TICK: Duration = Duration::from_millis(50);
/// Bytes of a line that are looked at, at most.
const LINE_MAX: usize = 64 << 10;
/// What Linux writes when it goes no further; whether it restarts then is up to its command line (`panic=`).
const PANIC: &str = "Kernel panic - not syncing";

/// How a machine is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// What runs its instructions.
    pub accel: Accel,
    /// What is written to its disks and variables goes into a directory that is made in this one, that nobody else may enter,
    /// and that is gone at the end. It may become as large as the disks. Those that killed processes left there are removed.
    pub ephemeral: Option<PathBuf>,
    /// Runs until this is read on the console, instead of until the guest ends.
    pub wait_for: Option<WaitFor>,
}

/// What is waited for.
#[derive(Clone, Debug)]
pub struct WaitFor {
    /// What a line of the console is to match, or the last one as far as it has come.
    pattern: Regex,
    /// How long at most, from the start.
    limit: Duration,
    /// How long the guest may then take to turn itself off, before it is turned off.
    to_power_down: Duration,
}

impl WaitFor {
    /// A regular expression, in the syntax of the crate `regex`, that matches bytes.
    ///
    /// # Errors
    /// `InvalidInput` where it is none.
    pub fn new(pattern: &str, limit: Duration, to_power_down: Duration) -> Result<Self> {
        let pattern = RegexBuilder::new(pattern).unicode(false).build();
        let pattern = pattern.map_err(|error| {
            let error = error.to_string();
            let what = error
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            Error::invalid(format!("no regular expression: {what}"))
                .with_hint(r"write \( for a parenthesis, and the same with . [ { * + ? ^ $ | and \")
        })?;
        Ok(Self {
            pattern,
            limit,
            to_power_down,
        })
    }
}

/// How a machine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest has turned itself off, or QEMU was told to end by who had its terminal.
    Itself,
    /// It was turned off at once, as was asked for.
    AtOnce,
    /// The guest was asked to turn itself off, did not, and was turned off: what it had not flushed is lost.
    Ignored,
}

/// Runs a machine until it ends, or until what is waited for is read, which `out` is given along with all that the guest
/// writes. Without anything to wait for, the guest has the terminal.
///
/// # Errors
/// As [`ready`] and [`Ready::run`].
pub fn run(machine: &Machine, options: &RunOptions, out: &mut dyn Write, cancel: &Cancel) -> Result<Ended> {
    ready(machine, options)?.run(out, cancel)
}

/// A machine that only has to be started.
pub struct Ready<'o> {
    machine: Machine,
    options: &'o RunOptions,
    line: words::Ready,
    /// Lives until QEMU has ended, as the files that the command line names.
    _scratch: Option<Ephemeral>,
}

/// Makes a machine ready to run: what can be refused is.
///
/// # Errors
/// `Locked` for a disk that another uses, with who it is; `InvalidInput` for what is not installed and ports that are taken; `Io`.
pub fn ready<'o>(machine: &Machine, options: &'o RunOptions) -> Result<Ready<'o>> {
    let mut machine = firmware::resolve(machine)?;
    check_disks(&machine, options.ephemeral.is_some())?;
    check_network(&machine)?;
    let place = options.ephemeral.as_deref();
    let scratch = place
        .map(|place| Ephemeral::of(&mut machine, place))
        .transpose()?;
    firmware::make_variables(&machine)?;
    let line = words::ready(&qemu::command_line(&machine, options.accel)?)?;
    if accel::find_program(qemu::program(machine.architecture)).is_none() {
        let missing = io::ErrorKind::NotFound.into();
        return Err(accel::not_started(machine.architecture, missing));
    }
    Ok(Ready {
        machine,
        options,
        line,
        _scratch: scratch,
    })
}

impl Ready<'_> {
    /// Runs it, as [`run`] does.
    ///
    /// # Errors
    /// `InvalidInput` for QEMU that is not installed, and an end or a time before what was waited for; `Interrupted` on request;
    /// `Io` where QEMU fails.
    pub fn run(self, out: &mut dyn Write, cancel: &Cancel) -> Result<Ended> {
        let mut command = Command::new(&self.line.words[0]);
        command.args(&self.line.words[1..]);
        let command = bound::to_us(command);
        let _terminal = Terminal::remembered();
        match &self.options.wait_for {
            None => on_terminal(command, &self.machine, cancel).map(|()| Ended::Itself),
            Some(wait_for) => until(command, &self.machine, wait_for, out, cancel),
        }
    }
}

impl std::fmt::Debug for Ready<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready")
            .field("machine", &self.machine.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// That each image can be used as QEMU is going to. What is found is let go again: only QEMU can keep it.
fn check_disks(machine: &Machine, ephemeral: bool) -> Result<()> {
    for disk in &machine.disks {
        for (depth, layer) in disk.chain.iter().enumerate() {
            let write = depth == 0 && !disk.read_only && !ephemeral;
            raw::OpenOptions::new().write(write).open(&layer.path)?;
        }
    }
    Ok(())
}

/// That nobody listens where QEMU is to, and that there is the bridge that QEMU is to use.
fn check_network(machine: &Machine) -> Result<()> {
    match &machine.network {
        Network::None => Ok(()),
        Network::User { forwards } => forwards.iter().copied().try_for_each(check_port),
        Network::Bridge { name } => bridge::check(name),
    }
}

fn check_port(forward: Forward) -> Result<()> {
    let port = (forward.address, forward.host);
    let taken = TcpListener::bind(port).err();
    taken.map_or(Ok(()), |error| {
        let message = format!("listen on port {} of {}", forward.host, forward.address);
        let error = Error::io(message, error);
        Err(match error.io_kind() {
            Some(io::ErrorKind::AddrInUse) => error.with_hint(format!(
                "forward another port to the guest's {}, or stop who listens there",
                forward.guest
            )),
            Some(io::ErrorKind::AddrNotAvailable) => {
                error.with_hint(format!("use {} or an address of this host", Ipv4Addr::LOCALHOST))
            }
            _ => error,
        })
    })
}

/// Gives QEMU the terminal, and waits for its end.
fn on_terminal(mut command: Command, machine: &Machine, cancel: &Cancel) -> Result<()> {
    let child = command.spawn();
    let mut qemu = Qemu(child.map_err(|error| accel::not_started(machine.architecture, error))?);
    loop {
        if let Some(status) = qemu.ended()? {
            // An interrupt from the keyboard reaches it too.
            cancel.check()?;
            return succeeded(status);
        }
        if cancel.is_cancelled() {
            qemu.end()?;
            return cancel.check();
        }
        thread::sleep(TICK);
    }
}

/// Runs QEMU until its console has what is waited for.
fn until(
    mut command: Command,
    machine: &Machine,
    wait_for: &WaitFor,
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<Ended> {
    let deadline = Instant::now() + wait_for.limit;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let child = command.spawn();
    let mut qemu = Qemu(child.map_err(|error| accel::not_started(machine.architecture, error))?);
    let mut keys = qemu.0.stdin.take().expect("it is a pipe");
    let said = listen(&mut qemu.0);
    let mut console = Console::default();
    loop {
        let wait = deadline.saturating_duration_since(Instant::now()).min(TICK);
        match said.recv_timeout(wait) {
            Ok(bytes) => {
                // With nobody left to read it there is nothing to be done about that.
                let _ = out.write_all(&bytes).and_then(|()| out.flush());
                let found = console.add(&bytes, &wait_for.pattern);
                if found == Some(Found::Match) {
                    return qemu.power_down(&mut keys, &said, wait_for.to_power_down, cancel);
                }
                if found == Some(Found::Panic) {
                    qemu.quit(&mut keys, &said)?;
                    return Err(console
                        .last_line("the guest's kernel panicked before what was waited for was read")
                        .with_hint("look at the console above"));
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = qemu.wait(TO_END)?;
                cancel.check()?;
                succeeded(status)?;
                let message = "the guest ended before what was waited for was read";
                return Err(console.last_line(message).with_hint("look at the console above"));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(stopped) = cancel.check() {
            qemu.quit(&mut keys, &said)?;
            return Err(stopped);
        }
        if Instant::now() >= deadline {
            qemu.quit(&mut keys, &said)?;
            let message = format!("what was waited for was not read in {:?}", wait_for.limit);
            return Err(console
                .last_line(&message)
                .with_hint("look at the console above, or allow more time"));
        }
    }
}

/// What a process writes, from a thread of its own, which ends with it.
fn listen(child: &mut Child) -> Receiver<Vec<u8>> {
    let (send, receive) = sync_channel(16);
    let mut pipe = child.stdout.take().expect("it is a pipe");
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(len) = pipe.read(&mut buffer) {
            if len == 0 || send.send(buffer[..len].to_vec()).is_err() {
                break;
            }
        }
    });
    receive
}

fn succeeded(status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, format!("QEMU failed ({status})")).with_hint("what it says of it is above"))
}

/// QEMU as it runs. Dropped, it is no more.
struct Qemu(Child);

impl Qemu {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0
            .try_wait()
            .map_err(|error| Error::io("wait for QEMU", error))
    }

    /// Waits for its end, and puts one to it if it takes too long.
    fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let failed = |error| Error::io("wait for QEMU", error);
        match accel::wait(&mut self.0, limit).map_err(failed)? {
            Some(status) => Ok(status),
            None => self.0.wait().map_err(failed),
        }
    }

    /// Has it end by itself: it writes out what the guest has flushed. Gives how it had ended before it was told to.
    fn end(&mut self) -> Result<Option<ExitStatus>> {
        if let Some(status) = self.ended()? {
            return Ok(Some(status));
        }
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        self.wait(TO_END)?;
        Ok(None)
    }

    /// The same by the keyboard, without a word about it.
    fn quit(&mut self, keys: &mut ChildStdin, said: &Receiver<Vec<u8>>) -> Result<Option<ExitStatus>> {
        // The pipe is gone where QEMU is.
        let _ = keys.write_all(b"\x01x").and_then(|()| keys.flush());
        let end = Instant::now() + TO_END;
        // It may have to be read from before it reads.
        while Instant::now() < end {
            if said.recv_timeout(TICK) == Err(RecvTimeoutError::Disconnected) {
                // It lets go of the pipe a moment before it can be waited for.
                return self.wait(TO_END).map(Some);
            }
        }
        self.end()
    }

    /// Presses the power button, and ends QEMU if the guest does not. With no time for that the button is not pressed.
    fn power_down(
        &mut self,
        keys: &mut ChildStdin,
        said: &Receiver<Vec<u8>>,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Ended> {
        let end = Instant::now() + limit;
        if limit.is_zero() {
            let status = self.quit(keys, said)?;
            return status.map_or(Ok(()), succeeded).map(|()| Ended::AtOnce);
        }
        // The pipe is gone where QEMU is.
        let _ = keys
            .write_all(b"\x01csystem_powerdown\n\x01c")
            .and_then(|()| keys.flush());
        while Instant::now() < end && !cancel.is_cancelled() {
            if said.recv_timeout(TICK) == Err(RecvTimeoutError::Disconnected) {
                let status = self.wait(TO_END)?;
                cancel.check()?;
                return succeeded(status).map(|()| Ended::Itself);
            }
        }
        let status = self.quit(keys, said)?;
        cancel.check()?;
        status.map_or(Ok(()), succeeded).map(|()| Ended::Ignored)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// What a line of the console has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// What is waited for.
    Match,
    /// The last words of a kernel.
    Panic,
}

/// What the guest has written, as far as it matters.
#[derive(Default)]
struct Console {
    /// The last line, which may go on.
    line: Vec<u8>,
    /// The last line that ended and had something in it.
    before: Vec<u8>,
}

impl Console {
    /// Goes on with `bytes`, up to the first line that has anything. An expression with the word of a panic waits for more of one.
    fn add(&mut self, bytes: &[u8], pattern: &Regex) -> Option<Found> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line
                .extend(part.iter().filter(|byte| !b"\r\n".contains(byte)).take(room));
            if pattern.is_match(&self.line) {
                return Some(Found::Match);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                if !line.is_empty() {
                    self.before = line;
                }
                // Not before the line has ended: what is waited for may be in the rest of it.
                let has_panic = String::from_utf8_lossy(&self.before).contains(PANIC);
                if has_panic && !pattern.as_str().contains("panic") {
                    return Some(Found::Panic);
                }
            }
        }
        None
    }

    /// An error that says what was last to be read.
    fn last_line(&self, message: &str) -> Error {
        let line = if self.line.is_empty() {
            &self.before
        } else {
            &self.line
        };
        let line = String::from_utf8_lossy(&line[..line.len().min(200)]);
        let last = if line.is_empty() {
            "the guest wrote nothing".to_owned()
        } else {
            format!("its last line is \"{}\"", block::escape(&line))
        };
        Error::invalid(format!("{message}; {last}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_matches_before_it_ends_and_wherever_it_was_cut() {
        let wait_for = WaitFor::new("^web-1 login: $", Duration::ZERO, Duration::ZERO).unwrap();
        let text = b"a\r\nDebian GNU/Linux\r\n\r\nweb-1 login: ";
        for cut in 0..text.len() {
            let mut console = Console::default();
            assert_eq!(console.add(&text[..cut], &wait_for.pattern), None, "{cut}");
            assert_eq!(
                console.add(&text[cut..], &wait_for.pattern),
                Some(Found::Match),
                "{cut}"
            );
        }
        let mut console = Console::default();
        assert_eq!(console.add(b"one\nxweb-1 login: \n\n", &wait_for.pattern), None);
        let error = console.last_line("nothing").to_string();
        assert_eq!(error, "nothing; its last line is \"xweb-1 login: \"");
    }

    #[test]
    fn a_line_without_end_is_not_kept_whole() {
        let wait_for = WaitFor::new("b", Duration::ZERO, Duration::ZERO).unwrap();
        let mut console = Console::default();
        for _ in 0..20 {
            assert_eq!(console.add(&[b'a'; 10_000], &wait_for.pattern), None);
        }
        assert_eq!(console.line.len(), LINE_MAX);
    }

    #[test]
    fn a_panic_ends_the_wait_unless_it_is_what_is_waited_for() {
        let text = b"[1.0] Kernel panic - not syncing: VFS: Unable to mount root\r\n[1.1] ---[ end Kernel panic - not syncing ]---\r\n";
        for (pattern, found) in [
            ("login:", Found::Panic),
            ("Unable to mount", Found::Match),
            ("end Kernel panic", Found::Match),
        ] {
            let wait_for = WaitFor::new(pattern, Duration::ZERO, Duration::ZERO).unwrap();
            for cut in 0..50 {
                let mut console = Console::default();
                assert_eq!(
                    console.add(&text[..cut], &wait_for.pattern),
                    None,
                    "{pattern} {cut}"
                );
                assert_eq!(
                    console.add(&text[cut..], &wait_for.pattern),
                    Some(found),
                    "{pattern} {cut}"
                );
            }
        }
    }

    /// What comes of the power button where QEMU is a script, which has read as far as the button.
    fn powered_down(script: &str, limit: Duration, cancel: &Cancel) -> Result<Ended> {
        turned_off(&format!("read -r button; {script}"), limit, cancel)
    }

    /// The same where the script has read nothing.
    fn turned_off(script: &str, limit: Duration, cancel: &Cancel) -> Result<Ended> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut qemu = Qemu(child.unwrap());
        let mut keys = qemu.0.stdin.take().unwrap();
        let said = listen(&mut qemu.0);
        qemu.power_down(&mut keys, &said, limit, cancel)
    }

    #[test]
    fn a_qemu_that_crashes_on_the_way_down_is_no_success() {
        let powered_down = |script| powered_down(script, Duration::from_secs(600), &Cancel::new());
        assert_eq!(powered_down("exit 0").unwrap(), Ended::Itself);
        for (script, status) in [("kill -SEGV $$", "signal: 11"), ("exit 3", "exit status: 3")] {
            let error = powered_down(script).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(
                error.to_string().contains("QEMU failed") && error.to_string().contains(status),
                "{error}"
            );
        }
    }

    #[test]
    fn a_qemu_that_crashes_when_it_is_turned_off_is_no_success() {
        let cancel = Cancel::new();
        // At once, and after the rest of the keys for the button, which the guest did not hear.
        let at_once = turned_off("head -c 2 >/dev/null; kill -SEGV $$", Duration::ZERO, &cancel);
        let script = "head -c 4 >/dev/null; kill -SEGV $$";
        let ignored = powered_down(script, Duration::from_nanos(1), &cancel);
        for ended in [at_once, ignored] {
            let error = ended.unwrap_err();
            assert!(error.to_string().contains("signal: 11"), "{error}");
        }
    }

    #[test]
    fn a_guest_that_is_not_waited_for_any_more_is_turned_off_and_whoever_stopped_it_is_told_so() {
        // The rest of the keys for the button, and those for the end.
        let ignores = "head -c 4 >/dev/null";
        let cancel = Cancel::new();
        let ended = powered_down(ignores, Duration::from_nanos(1), &cancel);
        assert_eq!(ended.unwrap(), Ended::Ignored);
        cancel.cancel();
        let error = powered_down(ignores, Duration::from_secs(600), &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }

    #[test]
    fn what_is_no_expression_says_so() {
        let error = WaitFor::new("(", Duration::ZERO, Duration::ZERO).unwrap_err();
        assert_eq!(error.to_string(), "no regular expression: unclosed group");
    }
}
