//! What each launcher is told of a machine, in the form that it takes.
//!
//! [`Launcher::describe`] turns a [`Machine`] into a text: libvirt's domain XML, a JSON configuration, or a command line.
//! It reads nothing and starts nothing. What a launcher cannot do is an error that says what to do instead; what it can
//! do only with a file in another form is told by [`Launcher::needs`], and [`prepare`] makes such files.

mod cloud_hypervisor;
mod credentials;
mod crosvm;
mod firecracker;
pub mod firmware;
mod kvmtool;
mod libvirt;
mod prepare;
pub mod qemu;
pub(crate) mod reach;
mod shell;
mod tap;
pub mod vmlinux;
pub(crate) mod words;
mod xml;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use block::{Error, Result, escape};
use ops::Control;

use crate::accel::Accel;
use crate::machine::{Architecture, Boot, Disk, Machine};

pub use prepare::{is_as_made, prepare, sign};
pub use reach::libvirt_is_kept_out;
pub use shell::quoted;

/// A program that boots machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Launcher {
    /// libvirt, by a domain's XML.
    Libvirt,
    /// QEMU, by a command line.
    Qemu,
    /// Firecracker, by a JSON file.
    Firecracker,
    /// Cloud Hypervisor, by the JSON that creates a machine in its API.
    CloudHypervisor,
    /// crosvm, by a command line.
    Crosvm,
    /// kvmtool, by a command line.
    Kvmtool,
}

/// What a launcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What it takes as it is, with a line break at its end.
    pub text: String,
    /// Lines of a shell: what is to be done before, then how the launcher is given the text, which they call `FILE`.
    pub steps: Vec<String>,
}

/// In what form a launcher wants a machine's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Disks are raw files, without any below them.
    pub raw_disks: bool,
    /// The kernel is an ELF file, not a compressed one.
    pub elf_kernel: bool,
}

impl Needs {
    /// The machine as if its files were so.
    fn assumed(self, machine: &Machine) -> Machine {
        let mut machine = machine.clone();
        if self.raw_disks {
            for disk in &mut machine.disks {
                disk.chain.truncate(1);
                for layer in &mut disk.chain {
                    "raw".clone_into(&mut layer.format);
                }
            }
        }
        machine
    }
}

impl Launcher {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Libvirt,
        Self::Qemu,
        Self::Firecracker,
        Self::CloudHypervisor,
        Self::Crosvm,
        Self::Kvmtool,
    ];

    /// The word for it in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Crosvm => "crosvm",
            Self::Kvmtool => "kvmtool",
        }
    }

    /// How it writes its own name.
    fn title(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::Qemu => "QEMU",
            Self::Firecracker => "Firecracker",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Crosvm => "crosvm",
            Self::Kvmtool => "kvmtool",
        }
    }

    /// In what form it wants this machine's files. [`prepare`] makes them so.
    pub fn needs(self, machine: &Machine) -> Needs {
        let direct = matches!(machine.boot, Boot::Direct { .. });
        Needs {
            // crosvm reads qcow2 files, but does not know the record of a backing file's format.
            raw_disks: match self {
                Self::Firecracker | Self::Kvmtool => machine.disks.iter().any(|disk| !is_raw(disk)),
                Self::Crosvm => machine.disks.iter().any(|disk| disk.chain.len() > 1),
                _ => false,
            },
            elf_kernel: self == Self::Firecracker && direct && machine.architecture == Architecture::X86_64,
        }
    }

    /// What the launcher is told of the machine.
    ///
    /// libvirt and QEMU run it on `accel`; the others have only KVM.
    ///
    /// # Errors
    /// `Unsupported` for what the launcher cannot do, `InvalidInput` for names that it cannot be told.
    pub fn describe(self, machine: &Machine, accel: Accel) -> Result<Description> {
        match self {
            Self::Libvirt => libvirt::describe(machine, accel),
            Self::Qemu => qemu::describe(machine, accel),
            Self::Firecracker => firecracker::describe(machine),
            Self::CloudHypervisor => cloud_hypervisor::describe(machine),
            Self::Crosvm => crosvm::describe(machine),
            Self::Kvmtool => kvmtool::describe(machine),
        }
    }

    /// The same, after all that is to be done for it: the host's firmware is found for a machine that names none, and files in
    /// the form that the launcher wants are made in `files`.
    ///
    /// # Errors
    /// As [`describe`](Self::describe) and [`prepare`]; `InvalidInput` where files are to be made and it is not said where.
    pub fn ready(
        self,
        machine: &Machine,
        accel: Accel,
        files: Option<&Path>,
        control: &Control<'_>,
    ) -> Result<Description> {
        let mut machine = machine.clone();
        if matches!(self, Self::Qemu | Self::Libvirt) {
            machine = firmware::resolve(&machine)?;
        }
        let needs = self.needs(&machine);
        if needs != Needs::default() {
            // What would be refused in any case is, before anything is copied.
            self.describe(&needs.assumed(&machine), accel)?;
            let files = files.ok_or_else(|| {
                self.cannot(
                    "takes the machine only after a part of it was copied",
                    "say where to, with -o or --files",
                )
            })?;
            machine = prepare(&machine, needs, files, control)?;
        }
        let description = self.describe(&machine, accel)?;
        if self == Self::Qemu {
            firmware::make_variables(&machine)?;
        }
        Ok(description)
    }

    /// An error for what it cannot do: `what` follows its name.
    fn cannot(self, what: &str, hint: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::unsupported(format!("{} {what}", self.title())).with_hint(hint)
    }

    /// That disks are raw files, for those that take no others.
    fn raw_disks_only(self, machine: &Machine) -> Result<()> {
        match machine.disks.iter().find(|disk| !is_raw(disk)) {
            Some(disk) => {
                let error = self.cannot("takes raw disks only", "convert it with imgtool convert -O raw");
                Err(error.with_path(active(disk)?))
            }
            None => Ok(()),
        }
    }

    /// That no disk is limited, for those that have no limits.
    fn no_limits(self, machine: &Machine) -> Result<()> {
        if machine.disks.iter().all(|disk| disk.limits.is_empty()) {
            return Ok(());
        }
        let hint = "take the machine's limits away, or use another launcher";
        Err(self.cannot("cannot limit what a disk does", hint))
    }

    /// The error for a user network.
    fn no_user_network(self) -> Error {
        let hint = "connect the machine to a bridge (bridge=NAME) or to nothing (none)";
        self.cannot("has no network of its own", hint)
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Launcher {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|launcher| launcher.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid(format!("there is no launcher \"{}\"", escape(text)))
                .with_hint(format!("these are: {names}"))
        })
    }
}

fn is_raw(disk: &Disk) -> bool {
    matches!(disk.chain.as_slice(), [layer] if layer.format == "raw")
}

/// The image of a disk that is written to.
fn active(disk: &Disk) -> Result<&Path> {
    let layer = disk.chain.first();
    layer
        .map(|layer| layer.path.as_path())
        .ok_or_else(|| Error::invalid("a disk of the machine has no image"))
}

/// A path as text, which all of these formats are.
fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::invalid("the name is not UTF-8, which launchers need")
            .with_path(path)
            .with_hint("rename the file, or a directory on the way to it")
    })
}

/// `52:54:00:12:34:56`.
fn mac(machine: &Machine) -> String {
    machine.mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// MiB of memory.
fn mebibytes(machine: &Machine) -> u64 {
    machine.memory >> 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn launchers_are_known_by_their_names() {
        for launcher in Launcher::ALL {
            assert_eq!(launcher.name().parse::<Launcher>().unwrap(), launcher);
        }
        let error = "vmware".parse::<Launcher>().unwrap_err();
        assert!(error.hint().unwrap().contains("cloud-hypervisor"), "{error:?}");
    }

    #[test]
    fn what_a_launcher_cannot_do_says_what_to_do() {
        let mut chain = machine();
        chain.disks[0].chain[0].format = "qcow2".into();
        let mut limited = machine();
        limited.disks[0].limits.requests = Some(5);
        let mut user = machine();
        user.network = crate::machine::Network::User { forwards: vec![] };
        let mut uefi = machine();
        uefi.disks[0].chain[0].path = "/disk".into();
        uefi.boot = Boot::Uefi {
            firmware: None,
            variables: "/v".into(),
        };
        for (launcher, machine, says) in [
            (Launcher::Firecracker, &chain, "raw disks only"),
            (Launcher::Kvmtool, &chain, "raw disks only"),
            (Launcher::Kvmtool, &limited, "cannot limit"),
            (Launcher::Crosvm, &limited, "cannot limit"),
            (Launcher::Firecracker, &user, "no network of its own"),
            (Launcher::CloudHypervisor, &user, "no network of its own"),
            (Launcher::Crosvm, &user, "no network of its own"),
            (Launcher::Firecracker, &uefi, "has no firmware"),
            (Launcher::CloudHypervisor, &uefi, "firmware"),
            (Launcher::Crosvm, &uefi, "firmware"),
            (Launcher::Kvmtool, &uefi, "firmware"),
            (Launcher::Qemu, &uefi, "firmware"),
        ] {
            let error = launcher.describe(machine, Accel::Kvm).unwrap_err();
            assert!(error.to_string().contains(says), "{launcher}: {error}");
            assert!(error.hint().is_some(), "{launcher}: {error}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf_8_is_refused_by_all() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let mut machine = machine();
        machine.disks[0].chain[0].path = OsStr::from_bytes(b"/a\xff").into();
        for launcher in Launcher::ALL {
            let error = launcher.describe(&machine, Accel::Tcg).unwrap_err();
            assert!(error.to_string().contains("not UTF-8"), "{launcher}: {error}");
        }
    }
}
