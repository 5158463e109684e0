//! The boot loader: systemd-boot, or whatever EFI program is given.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use ext4_reader::Filesystem;

use crate::arch::{Arch, HEADERS};
use crate::system;

/// Bytes of a boot loader at most: a kernel with its initrd in one is no more.
const MAX_LEN: u64 = 1 << 30;

/// Where a disk has its boot loader from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BootLoader {
    /// systemd-boot, from [`DIRECTORY`](Self::DIRECTORY) in the root filesystem.
    SystemdBoot {
        /// The directory of this machine from which it is taken where the root has none.
        or_from: Option<PathBuf>,
    },
    /// An EFI program.
    Program {
        /// Where it comes from, for who is told of it.
        origin: String,
        /// All of it.
        bytes: Vec<u8>,
    },
}

impl Default for BootLoader {
    fn default() -> Self {
        Self::SystemdBoot { or_from: None }
    }
}

impl BootLoader {
    /// Where systemd has its boot loader.
    pub const DIRECTORY: &str = "/usr/lib/systemd/boot/efi";

    /// An EFI program, and where it comes from.
    pub fn program(origin: impl Into<String>, bytes: Vec<u8>) -> Self {
        let origin = origin.into();
        Self::Program { origin, bytes }
    }

    /// The EFI program in a file of this machine.
    ///
    /// # Errors
    /// `InvalidInput` for one that is too large for a boot loader; `Io`.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("read", error).with_path(path);
        let file = File::open(path).map_err(|error| Error::io("open", error).with_path(path))?;
        let mut bytes = Vec::new();
        // A pipe does not tell its length; a file that does is not read to find out.
        if file.metadata().map_err(failed)?.len() <= MAX_LEN {
            file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 <= MAX_LEN {
                return Ok(Self::program(path.to_string_lossy(), bytes));
            }
        }
        Err(too_large().with_path(path))
    }

    /// Fails for a program that firmware cannot start.
    pub(crate) fn check(&self, arch: Arch) -> Result<()> {
        match self {
            Self::Program { origin, bytes } if !arch.is_program(bytes) => {
                Err(no_program(arch).with_path(origin))
            }
            _ => Ok(()),
        }
    }

    /// The program, and where it comes from.
    ///
    /// # Errors
    /// `InvalidInput` if there is none, or it is no EFI program; `Corrupt`, `Io`.
    pub(crate) fn find(&self, root: &Filesystem, arch: Arch) -> Result<(Vec<u8>, String)> {
        let or_from = match self {
            Self::Program { origin, bytes } => return Ok((bytes.clone(), origin.clone())),
            Self::SystemdBoot { or_from } => or_from.as_deref(),
        };
        let names = names(arch);
        for name in &names {
            let path = format!("{}/{name}", Self::DIRECTORY);
            if let Some(inode) = system::find(root, &path)? {
                let origin = format!("{path} of the source");
                if inode.size() > MAX_LEN {
                    return Err(too_large().with_path(origin));
                }
                let mut bytes = Vec::new();
                let mut reader = root.reader(&inode)?;
                reader.read_to_end(&mut bytes).map_err(system::inside)?;
                Self::program(&*origin, bytes.clone()).check(arch)?;
                return Ok((bytes, origin));
            }
        }
        if let Some(path) = or_from.and_then(|directory| on_host(directory, arch)) {
            let found = Self::read(&path)?;
            found.check(arch)?;
            return found.find(root, arch);
        }
        Err(missing(or_from, arch))
    }

    /// Fails if there is none for a root that has none itself.
    pub(crate) fn check_elsewhere(&self, arch: Arch) -> Result<()> {
        match self {
            Self::SystemdBoot { or_from } => {
                let or_from = or_from.as_deref();
                let found = or_from.and_then(|directory| on_host(directory, arch));
                found.map(drop).ok_or_else(|| missing(or_from, arch))
            }
            Self::Program { .. } => Ok(()),
        }
    }
}

fn too_large() -> Error {
    Error::invalid(format!("this is larger than any boot loader ({MAX_LEN} bytes)"))
}

/// What systemd's is called: where it is signed, that one counts, as for `bootctl`.
pub(crate) fn names(arch: Arch) -> [String; 2] {
    let name = format!("systemd-boot{}.efi", arch.in_names());
    [format!("{name}.signed"), name]
}

/// The one in a directory of this machine.
fn on_host(directory: &Path, arch: Arch) -> Option<PathBuf> {
    let paths = names(arch).map(|name| directory.join(name));
    paths.into_iter().find(|path| path.is_file())
}

fn missing(or_from: Option<&Path>, arch: Arch) -> Error {
    let [_, name] = names(arch);
    let message = match or_from {
        Some(directory) => format!(
            "there is no boot loader {name}, neither in {} of the source nor in {} here",
            BootLoader::DIRECTORY,
            escape(&directory.to_string_lossy())
        ),
        None => format!(
            "there is no boot loader {name} in {} of the source",
            BootLoader::DIRECTORY
        ),
    };
    let hint = "install Debian's systemd-boot-efi in either, or name a program with --boot-efi";
    Error::invalid(message).with_hint(hint)
}

fn no_program(arch: Arch) -> Error {
    let message = format!("this is no EFI program for {}", arch.name());
    let [_, name] = names(arch);
    Error::invalid(message).with_hint(format!("systemd-boot's is {name}"))
}

/// Whether what starts with the bytes that `reader` gives is a program for an architecture.
pub(crate) fn is_program(reader: impl Read, arch: Arch) -> Result<bool> {
    let mut start = Vec::new();
    reader
        .take(HEADERS)
        .read_to_end(&mut start)
        .map_err(system::inside)?;
    Ok(arch.is_program(&start))
}
