//! One machine, as a launcher is told of it: every path absolute, nothing left to be looked up.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::credential::Credentials;

/// A machine that can be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name, which is a valid hostname.
    pub name: String,
    /// What SMBIOS tells the guest, and what the MAC address follows from.
    pub uuid: Uuid,
    /// What its processors are.
    pub architecture: Architecture,
    /// Number of virtual processors, from 1 on.
    pub cpus: u32,
    /// Bytes of memory, in whole MiB.
    pub memory: u64,
    /// How it starts.
    pub boot: Boot,
    /// Its disks; the first has the root filesystem.
    pub disks: Vec<Disk>,
    /// What it is connected to.
    pub network: Network,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Credentials for systemd in the guest, told through SMBIOS where the machine has it.
    pub credentials: Credentials,
}

/// What a machine's processors are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// `x86_64`, amd64.
    #[default]
    #[serde(rename = "x86_64", alias = "amd64")]
    X86_64,
    /// `aarch64`, arm64.
    #[serde(alias = "arm64")]
    Aarch64,
}

impl Architecture {
    /// As `uname -m` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// How a machine starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The launcher loads a kernel.
    Direct {
        /// The kernel, a file of the host.
        kernel: PathBuf,
        /// What is unpacked into its first root.
        initrd: Option<PathBuf>,
        /// Its command line.
        command_line: String,
    },
    /// UEFI firmware finds a boot loader on the first disk.
    Uefi {
        /// Code of the firmware; `None` for the launcher's own.
        firmware: Option<PathBuf>,
        /// The file that keeps the machine's variables. It is made from the firmware's template where it is missing.
        variables: PathBuf,
    },
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The image that is written to, and below it those that it is based on, the nearest first.
    pub chain: Vec<Layer>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// What it may do.
    pub limits: Limits,
}

/// One image of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// `qcow2` or `raw`.
    pub format: String,
}

/// Limits of a disk, per second, reading and writing together. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct Limits {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none", with = "crate::settings::size_text")]
    pub bytes: Option<u64>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
}

impl Limits {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a machine is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// The emulator's own network: outwards only, but for what is forwarded.
    User {
        /// Ports of the host that lead into the guest.
        forwards: Vec<Forward>,
    },
    /// A bridge of the host.
    Bridge {
        /// Its name.
        name: String,
    },
    /// Nothing.
    #[default]
    None,
}

/// A TCP port of the host that leads into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// Where the host listens.
    pub address: Ipv4Addr,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}
