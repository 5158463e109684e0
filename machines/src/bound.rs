//! Programs that are not to outlive who starts them, however that ends.
//!
//! Where a process is killed, it can tell its programs nothing. The kernel does: a program that asked for it gets a signal when the thread
//! that started it is no more (prctl(2), `PR_SET_PDEATHSIG`). setpriv(1) asks for others (util-linux 2.33); where there is none
//! that can, programs are started as they are.

use std::env;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

const WORDS: [&str; 3] = ["--pdeathsig", "TERM", "--"];

/// Whether there is a setpriv that can.
static CAN_BIND: LazyLock<bool> = LazyLock::new(|| {
    let mut probe = Command::new("setpriv");
    probe.args(WORDS).arg("true").stdin(Stdio::null());
    let ended = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
    ended.is_ok_and(|status| status.success())
});

/// The same command, which is told to end, by SIGTERM, when the thread that starts it has ended. What else was said of it but
/// words, directory and variables is left out.
pub(crate) fn to_us(command: Command) -> Command {
    // A program that is not there is to be missed by us.
    let program = command.get_program();
    let is_there = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).is_file()));
    if !is_there || !*CAN_BIND {
        return command;
    }
    let mut bound = Command::new("setpriv");
    bound.args(WORDS).arg(program).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        bound.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    bound
}
