//! Words of QEMU's command line, of which some name a file that holds a secret.
//!
//! Whoever may list the processes of a host sees their command lines, so a secret is never a part of one. For a QEMU that we start,
//! it is in a file without a name, in memory, which QEMU opens through our entry in /proc: only who may look into this process
//! can, and it is gone with it, however it ends. It is sealed: what QEMU reads is what was written, whoever opens it besides. A
//! command line that is shown has bash, zsh or ksh hand it over through a pipe.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process;

use block::{Error, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::shell::quoted;

/// What cannot be done to a file with a secret in it any more.
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// One word of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// What it says.
    text: String,
    /// What is in the file whose name follows the text.
    secret: Option<String>,
}

impl Word {
    /// `text`, and after it the name of a file with `secret` in it.
    pub(super) fn naming_secret(text: impl Into<String>, secret: String) -> Self {
        let secret = Some(secret);
        Self {
            secret,
            ..Self::from(text.into())
        }
    }

    /// As a shell takes it: a POSIX one where there is no secret.
    pub(super) fn for_shell(&self) -> String {
        match &self.secret {
            None => quoted(&self.text),
            Some(secret) => format!("{}<(printf %s {})", quoted(&self.text), quoted(secret)),
        }
    }

    /// Whether it starts an option.
    pub(super) fn is_option(&self) -> bool {
        self.text.starts_with('-')
    }

    /// Whether a file follows.
    pub(super) fn names_secret(&self) -> bool {
        self.secret.is_some()
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        let secret = None;
        Self { text, secret }
    }
}

/// A command line that can be run while this lives.
pub(crate) struct Ready {
    /// The words, the program first.
    pub words: Vec<OsString>,
    /// The files that some of them name.
    _secrets: Vec<OwnedFd>,
}

/// Has the secrets of a command line in files.
///
/// # Errors
/// `Io` where there is no memory for them.
pub(crate) fn ready(line: &[Word]) -> Result<Ready> {
    let mut words = Vec::with_capacity(line.len());
    let mut secrets = Vec::new();
    for Word { text, secret } in line {
        let mut word = OsString::from(text);
        if let Some(secret) = secret {
            let file = in_memory(secret)?;
            word.push(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
            secrets.push(file);
        }
        words.push(word);
    }
    Ok(Ready {
        words,
        _secrets: secrets,
    })
}

/// A file without a name, which no process inherits and nobody can change.
fn in_memory(text: &str) -> Result<OwnedFd> {
    let failed = |error| Error::io("keep a credential in memory", error);
    let file = memfd_create("credential", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let mut file = File::from(file.map_err(|error| failed(error.into()))?);
    file.write_all(text.as_bytes()).map_err(failed)?;
    fcntl_add_seals(&file, SEALS).map_err(|error| failed(error.into()))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// With all that a shell would make something else of, and an end without a line break.
    const SECRET: &str = "it's $HOME, %s\n \\n`id`\n\n";

    #[test]
    fn a_file_that_is_named_holds_the_secret_and_the_command_line_does_not() {
        let line = [
            Word::from("cat".to_owned()),
            Word::naming_secret("", SECRET.to_owned()),
        ];
        let ready = ready(&line).unwrap();
        let mut cat = Command::new(&ready.words[0]);
        let read = cat.args(&ready.words[1..]).output().unwrap();
        assert_eq!(String::from_utf8(read.stdout).unwrap(), SECRET);
        assert!(!format!("{:?}", ready.words).contains("HOME"));
    }

    #[test]
    fn nobody_can_change_a_file_with_a_secret() {
        let ready = ready(&[Word::naming_secret("", SECRET.to_owned())]).unwrap();
        let seals = rustix::fs::fcntl_get_seals(File::open(&ready.words[0]).unwrap()).unwrap();
        assert_eq!(seals, SEALS);
        let path = &ready.words[0];
        let mut file = File::options().write(true).open(path).unwrap();
        assert!(file.write_all(b"other").is_err() && file.set_len(1).is_err() && file.set_len(1000).is_err());
        assert!(File::create(path).is_err());
        assert_eq!(std::fs::read(path).unwrap(), SECRET.as_bytes());
    }

    #[test]
    fn bash_hands_over_the_secret_through_a_pipe() {
        // The file that a word names, and what is in it.
        let word = Word::naming_secret("-x=a b,", SECRET.to_owned());
        let script = format!(
            "show() {{ echo \"${{1%/dev/*}}\"; cat \"/dev/${{1#*/dev/}}\"; }}; show {}",
            word.for_shell()
        );
        let read = Command::new("bash").args(["-c", &script]).output().unwrap();
        let read = String::from_utf8(read.stdout).unwrap();
        assert_eq!(read, format!("-x=a b,\n{SECRET}"), "{script}");
    }
}
