//! What is in the EFI system partition: the boot loader, under the name that firmware looks for and under its own, kernels
//! with their initrds, and what the loader is to show (the Boot Loader Specification's type 1).

use std::io::{self, Read};

use block::{Error, ErrorKind, Result, Storage};
use ext4_reader::Filesystem;
use fat_builder::{Builder, Node, Options as FatOptions, Summary, Time};
use raw::partition::Guid;

use crate::Arch;
use crate::options::{ALIGNMENT, Options};
use crate::system::{Kernel, System, find};

/// Number of the volume among all that follows from one seed; disk and partitions are those before.
const VOLUME: u32 = 3;

/// The first entry is booted at once; the menu is there for who holds the space bar down.
const LOADER_CONF: &str = "timeout 0\n";

/// The partition.
#[derive(Debug)]
pub(crate) struct Esp {
    options: FatOptions,
    arch: Arch,
}

impl Esp {
    /// The one of a disk.
    pub(crate) fn new(disk: &Options) -> Self {
        let guid = Guid::from_seed(disk.root.uuid, VOLUME).to_bytes();
        let volume_id = u32::from_le_bytes([guid[0], guid[1], guid[2], guid[3]]);
        Self {
            options: FatOptions {
                label: "ESP".to_owned(),
                time: Time {
                    secs: disk.root.time.secs,
                },
                sector_size: disk.sector.bytes() as u32,
                hidden_sectors: (ALIGNMENT / disk.sector.bytes()) as u32,
                ..FatOptions::new(disk.esp_len(), volume_id)
            },
            arch: disk.arch,
        }
    }

    /// Fails for sizes that cannot be.
    pub(crate) fn validate(&self) -> Result<()> {
        self.options.validate().map_err(|error| {
            let message = format!("the EFI system partition cannot be made: {}", error.message());
            let hint = error.hint().unwrap_or_default();
            Error::invalid(message).with_hint(format!("--esp-size: {hint}"))
        })
    }

    /// As it is in `/dev/disk/by-uuid`, as a number.
    pub(crate) fn volume_id(&self) -> u32 {
        self.options.volume_id
    }

    /// Makes the filesystem on `storage`.
    pub(crate) fn fill(
        &self,
        storage: &dyn Storage,
        contents: &Contents<'_>,
        report: &dyn Fn(u64) -> Result<()>,
    ) -> Result<Summary> {
        let filling = Filling {
            builder: Builder::new(storage, self.options.clone())?,
            time: self.options.time,
            report,
        };
        filling.fill(contents, self.arch).map_err(too_small)
    }
}

/// What it is to hold.
pub(crate) struct Contents<'c> {
    pub(crate) root: &'c Filesystem,
    pub(crate) system: &'c System,
    /// The program.
    pub(crate) boot_loader: &'c [u8],
    /// What kernels are told.
    pub(crate) command_line: &'c str,
}

/// Says which option would make more room.
fn too_small(error: Error) -> Error {
    if error.kind() != ErrorKind::NoSpace || error.hint().is_none() {
        return error;
    }
    let message = format!("the EFI system partition is too small: {}", error.message());
    Error::new(ErrorKind::NoSpace, message).with_hint("choose a larger --esp-size")
}

/// Where the files of a kernel are.
fn directory_of(system: &System, kernel: &Kernel) -> String {
    format!("{}/{}", system.id, kernel.version)
}

/// What systemd-boot adds to the command line of a kernel.
pub(crate) fn initrd_argument(system: &System, kernel: &Kernel) -> String {
    match kernel.initrd {
        Some(_) => format!(" initrd=/{}/initrd", directory_of(system, kernel)),
        None => String::new(),
    }
}

struct Filling<'f> {
    builder: Builder<'f>,
    time: Time,
    report: &'f dyn Fn(u64) -> Result<()>,
}

impl Filling<'_> {
    fn fill(mut self, contents: &Contents<'_>, arch: Arch) -> Result<Summary> {
        let Contents {
            root,
            system,
            boot_loader,
            command_line,
        } = *contents;
        let name = arch.in_names();
        for path in [
            format!("EFI/BOOT/BOOT{}.EFI", name.to_uppercase()),
            format!("EFI/systemd/systemd-boot{name}.efi"),
        ] {
            self.file(&path, boot_loader.len() as u64, &mut &boot_loader[..])?;
        }
        self.text("loader/loader.conf", LOADER_CONF)?;
        // Says to who adds kernels later that entries are of type 1.
        self.text("loader/entries.srel", "type1\n")?;
        for kernel in &system.kernels {
            let directory = directory_of(system, kernel);
            self.copy(root, &kernel.path, &format!("{directory}/linux"))?;
            if let Some(initrd) = &kernel.initrd {
                self.copy(root, initrd, &format!("{directory}/initrd"))?;
            }
            let entry = format!("loader/entries/{}-{}.conf", system.id, kernel.version);
            self.text(&entry, &self::entry(system, kernel, command_line))?;
        }
        self.builder.finish()
    }

    fn copy(&mut self, root: &Filesystem, from: &str, to: &str) -> Result<()> {
        let Some(inode) = find(root, from)? else {
            return Err(Error::invalid(format!("{from:?} is no file")));
        };
        let mut bytes = root.reader(&inode)?;
        self.file(to, inode.size(), &mut bytes)
    }

    fn text(&mut self, path: &str, text: &str) -> Result<()> {
        self.file(path, text.len() as u64, &mut text.as_bytes())
    }

    fn file(&mut self, path: &str, len: u64, content: &mut dyn Read) -> Result<()> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = self.directory(directory)?;
        let mut content = Watched {
            content,
            report: self.report,
        };
        self.builder
            .file(directory, name.as_bytes(), self.time, len, &mut content)
    }

    /// The directory of a path, with all above it.
    fn directory(&mut self, path: &str) -> Result<Node> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(self.builder.root(), |parent, name| {
            self.builder.directory(parent, name.as_bytes(), self.time)
        })
    }
}

/// A loader's entry for a kernel. It sorts entries by version, the latest first.
fn entry(system: &System, kernel: &Kernel, command_line: &str) -> String {
    let System { title, id, .. } = system;
    let version = &kernel.version;
    let directory = directory_of(system, kernel);
    let initrd = match kernel.initrd {
        Some(_) => format!("initrd     /{directory}/initrd\n"),
        None => String::new(),
    };
    format!(
        "title      {title}\nversion    {version}\nsort-key   {id}\nlinux      /{directory}/linux\n{initrd}options    {command_line}\n"
    )
}

/// Content of which it is told how much was read, and which ends with an error when somebody wants it to stop.
struct Watched<'w> {
    content: &'w mut dyn Read,
    report: &'w dyn Fn(u64) -> Result<()>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.content.read(buf)?;
        (self.report)(len as u64)?;
        Ok(len)
    }
}
