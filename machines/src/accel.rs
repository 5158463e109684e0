//! What runs a guest's instructions, and whether KVM does.
//!
//! # How it is found out
//!
//! That `/dev/kvm` opens says little: a hypervisor below may let a guest hang, QEMU may not be able to set a register, or every
//! instruction may be carried out one by one. So QEMU is run with a guest of a few hundred bytes (`accel/guest.s`), which takes
//! the way of a kernel into long mode, works for a moment, and is woken up by a timer; that for Arm only works for a moment. It
//! ends within a second where KVM works; where it has not after [`LIMIT`], KVM does not. The processor is the one that machines
//! get.
//!
//! The answer holds until the next boot of the host or another QEMU, and is kept in a file, since waiting for it each time
//! would not be worth it.

mod guest;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use block::{Error, ErrorKind, Result, escape};

use crate::launch::qemu;
use crate::machine::Architecture;
use guest::Guest;

/// How long the guest may take.
const LIMIT: Duration = Duration::from_secs(5);
const DEVICE: &str = "/dev/kvm";

/// What QEMU runs a guest's instructions on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accel {
    /// The processor, with the kernel's help.
    Kvm,
    /// QEMU, which translates them. It works everywhere, and is ten times slower.
    Tcg,
}

impl Accel {
    /// As QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// QEMU's name for the processor with all that can be had.
    pub(crate) fn processor(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Choice {
    /// KVM where it works.
    #[default]
    Auto,
    /// This one.
    Only(Accel),
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Only(Accel::Kvm)),
            "tcg" => Ok(Self::Only(Accel::Tcg)),
            _ => Err(Error::invalid(format!("\"{}\" runs no guests", escape(text)))
                .with_hint("these do: auto, kvm, tcg")),
        }
    }
}

/// Whether KVM works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// It has run a guest.
    Works,
    /// It has not.
    Fails {
        /// Why.
        reason: String,
        /// What can be done about it.
        hint: Option<String>,
    },
}

impl Kvm {
    fn fails(reason: impl Into<String>) -> Self {
        Self::Fails {
            reason: reason.into(),
            hint: None,
        }
    }

    /// Whether guests of an architecture run on KVM. The answer is kept in a directory, if one is given, and taken from
    /// there if it still holds.
    ///
    /// # Errors
    /// `InvalidInput` where there is no QEMU; `Io` where it cannot be started.
    pub fn find(architecture: Architecture, cache: Option<&Path>) -> Result<Self> {
        let cached = cache.and_then(|directory| Cached::of(architecture, directory));
        match cached.and_then(|cached| cached.read()) {
            // Whoever may open the device can change without a boot.
            Some(kvm) if obstacle(architecture).is_none() => Ok(kvm),
            _ => Self::find_anew(architecture, cache),
        }
    }

    /// The same, whatever was found before.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn find_anew(architecture: Architecture, cache: Option<&Path>) -> Result<Self> {
        if let Some(obstacle) = obstacle(architecture) {
            return Ok(obstacle);
        }
        let kvm = probe(architecture, Accel::Kvm, LIMIT)?;
        if let Some(cached) = cache.and_then(|directory| Cached::of(architecture, directory)) {
            // Where it cannot be kept it is found out again.
            let _ = cached.write(&kvm);
        }
        Ok(kvm)
    }
}

impl Choice {
    /// What a machine of an architecture is to be run on; and why it is not KVM, where that might have been expected.
    ///
    /// # Errors
    /// As [`Kvm::find`].
    pub fn accel(self, architecture: Architecture, cache: Option<&Path>) -> Result<(Accel, Option<String>)> {
        match self {
            Self::Only(accel) => Ok((accel, None)),
            Self::Auto => match Kvm::find(architecture, cache)? {
                Kvm::Works => Ok((Accel::Kvm, None)),
                Kvm::Fails { reason, .. } => Ok((Accel::Tcg, Some(reason))),
            },
        }
    }
}

/// What is in the way of KVM, so far as it can be told without running anything.
fn obstacle(architecture: Architecture) -> Option<Kvm> {
    if architecture.name() != std::env::consts::ARCH {
        return Some(Kvm::fails(format!(
            "the host's processor is no {}",
            architecture.name()
        )));
    }
    let error = fs::File::options().read(true).write(true).open(DEVICE).err()?;
    let hint = match error.kind() {
        io::ErrorKind::NotFound => {
            "turn virtualisation on in the firmware's setup, or nested virtualisation in the hypervisor below, and load the module kvm"
        }
        io::ErrorKind::PermissionDenied => {
            "join the group of /dev/kvm: usermod -aG kvm USER, and log in again"
        }
        _ => "load the module kvm_intel or kvm_amd",
    };
    Some(Kvm::Fails {
        reason: format!("{DEVICE} cannot be opened: {}", error.kind()),
        hint: Some(hint.to_owned()),
    })
}

/// Runs the guest.
fn probe(architecture: Architecture, accel: Accel, limit: Duration) -> Result<Kvm> {
    let failed = |error| Error::io("try whether KVM works", error);
    let guest = Guest::of(architecture);
    let file = tempfile::NamedTempFile::new().map_err(failed)?;
    fs::write(file.path(), &guest.image).map_err(failed)?;
    let mut command = Command::new(qemu::program(architecture));
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-m",
            "16",
        ])
        .args(["-accel", accel.name(), "-cpu", accel.processor()])
        .args(guest.options)
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| not_started(architecture, error))?;
    let status = wait(&mut child, limit).map_err(failed)?;
    let said = read(child.stdout.take());
    Ok(match status {
        Some(status) if guest.came_to_its_end(status, &said) => Kvm::Works,
        Some(status) => {
            let said = read(child.stderr.take());
            let said = String::from_utf8_lossy(&said);
            let why = said.lines().find(|line| !line.contains("warning: "));
            let why = why.map(|line| format!(": {}", line.trim()));
            Kvm::fails(format!(
                "{DEVICE} is there, but QEMU cannot use it ({status}){}",
                why.unwrap_or_default()
            ))
        }
        None => Kvm::Fails {
            reason: format!("{DEVICE} is there, but a guest of no size does not come to its end on it"),
            hint: Some("see whether the hypervisor below allows nested virtualisation".to_owned()),
        },
    })
}

/// What was written to a pipe, by whom has ended, as far as it matters.
fn read(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What cannot be read is not there.
        let _ = pipe.take(4096).read_to_end(&mut bytes);
    }
    bytes
}

/// The status of a process, which is ended if it takes too long.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Why an emulator could not be started.
pub(crate) fn not_started(architecture: Architecture, error: io::Error) -> Error {
    let program = qemu::program(architecture);
    if error.kind() == io::ErrorKind::NotFound {
        return Error::new(ErrorKind::InvalidInput, format!("{program} is not installed"))
            .with_hint(format!("install it: apt install {}", qemu::package(architecture)));
    }
    Error::io(format!("start {program}"), error)
}

/// An answer of this boot, about this QEMU.
struct Cached {
    path: PathBuf,
    /// What it is about: the first line of the file.
    about: String,
}

impl Cached {
    /// `None` where that cannot be told.
    fn of(architecture: Architecture, directory: &Path) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let program = find_program(qemu::program(architecture))?;
        let file = fs::metadata(&program).ok()?;
        let about = format!("{} {} {} {}", boot.trim(), file.ino(), file.size(), file.mtime());
        Some(Self {
            path: directory.join("kvm"),
            about,
        })
    }

    fn read(&self) -> Option<Kvm> {
        let text = fs::read_to_string(&self.path).ok()?;
        let mut lines = text.lines();
        if lines.next()? != self.about {
            return None;
        }
        match lines.next()? {
            "works" => Some(Kvm::Works),
            "fails" => Some(Kvm::Fails {
                reason: lines.next()?.to_owned(),
                hint: lines.next().map(str::to_owned),
            }),
            _ => None,
        }
    }

    fn write(&self, kvm: &Kvm) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let answer = match kvm {
            Kvm::Works => "works\n".to_owned(),
            Kvm::Fails { reason, hint } => {
                let hint = hint.as_ref().map(|hint| format!("{hint}\n"));
                format!("fails\n{reason}\n{}", hint.unwrap_or_default())
            }
        };
        // Whole or not at all: another may read it meanwhile.
        let file = tempfile::NamedTempFile::new_in(directory)?;
        fs::write(file.path(), format!("{}\n{answer}", self.about))?;
        file.persist(&self.path)?;
        Ok(())
    }
}

/// A program in `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_comes_to_its_end_where_it_is_emulated() {
        let limit = Duration::from_secs(300);
        for architecture in [Architecture::X86_64, Architecture::Aarch64] {
            assert_eq!(probe(architecture, Accel::Tcg, limit).unwrap(), Kvm::Works);
        }
    }

    #[test]
    fn an_answer_is_kept_for_as_long_as_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("a/b");
        let cached = Cached::of(Architecture::X86_64, &below).unwrap();
        assert_eq!(cached.read(), None);
        let hint = Some("c".to_owned());
        let fails = |hint| Kvm::Fails {
            reason: "because".into(),
            hint,
        };
        for kvm in [Kvm::Works, fails(None), fails(hint)] {
            cached.write(&kvm).unwrap();
            assert_eq!(cached.read(), Some(kvm));
        }
        let other = Cached {
            about: "another boot".into(),
            ..cached
        };
        assert_eq!(other.read(), None);
    }

    #[test]
    fn other_processors_are_not_tried() {
        let other = match std::env::consts::ARCH {
            "aarch64" => Architecture::X86_64,
            _ => Architecture::Aarch64,
        };
        let (accel, why) = Choice::Auto.accel(other, None).unwrap();
        assert_eq!(accel, Accel::Tcg);
        assert!(why.unwrap().contains(other.name()));
        assert_eq!(
            "kvm"
                .parse::<Choice>()
                .unwrap()
                .accel(Architecture::X86_64, None)
                .unwrap(),
            (Accel::Kvm, None)
        );
    }

    /// Whatever this host has: the answer is the same again, and KVM is used only if it is good.
    #[test]
    fn what_was_found_out_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let first = Kvm::find(Architecture::X86_64, Some(directory.path())).unwrap();
        let again = Kvm::find(Architecture::X86_64, Some(directory.path())).unwrap();
        assert_eq!(first, again);
        let (accel, why) = Choice::Auto
            .accel(Architecture::X86_64, Some(directory.path()))
            .unwrap();
        assert_eq!(accel == Accel::Kvm, first == Kvm::Works);
        assert_eq!(why.is_none(), first == Kvm::Works);
    }
}
