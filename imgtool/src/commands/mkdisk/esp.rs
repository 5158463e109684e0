//! What is in the EFI system partition: the boot loader, under the name that firmware looks for and under its own, kernels
//! with their initrds, and what the loader is to show (the Boot Loader Specification's type 1).

use std::io::{self, Read};

use block::{Error, ErrorKind, Result, Storage};
use ext4_builder::Options as RootOptions;
use fat_builder::{Builder, Node, Options, Summary, Time};
use ops::Cancel;
use raw::partition::Guid;

use super::boot::{Kernel, System, find};
use super::loader::BootLoader;

/// Number of the volume among all that follows from one seed; disk and partitions are those before.
const VOLUME: u32 = 3;

/// The first entry is booted at once; the menu is there for who holds the space bar down.
const LOADER_CONF: &str = "timeout 0\n";

/// The partition.
pub(super) struct Esp {
    options: Options,
}

impl Esp {
    /// One of so many bytes, for a root filesystem.
    pub(super) fn new(size: u64, root: &RootOptions) -> Self {
        let time = Time { secs: root.time.secs };
        Self {
            options: Options {
                label: "ESP".to_owned(),
                time,
                ..Options::new(size, 0)
            },
        }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Makes the filesystem on `storage`.
    pub(super) fn fill(
        &self,
        storage: &dyn Storage,
        seed: [u8; 16],
        loader: &BootLoader,
        system: &System<'_>,
        command_line: &str,
        cancel: &Cancel,
    ) -> Result<Filled> {
        let guid = Guid::from_seed(seed, VOLUME).to_bytes();
        let options = Options {
            volume_id: u32::from_le_bytes([guid[0], guid[1], guid[2], guid[3]]),
            hidden_sectors: (super::ALIGNMENT / 512) as u32,
            ..self.options.clone()
        };
        let volume_id = options.volume_id;
        let filling = Filling {
            builder: Builder::new(storage, options)?,
            time: self.options.time,
            cancel,
        };
        let summary = filling.fill(loader, system, command_line).map_err(too_small)?;
        Ok(Filled { summary, volume_id })
    }
}

/// What was made.
pub(super) struct Filled {
    pub(super) summary: Summary,
    pub(super) volume_id: u32,
}

/// Says which option would make more room.
fn too_small(error: Error) -> Error {
    if error.kind() != ErrorKind::NoSpace || error.hint().is_none() {
        return error;
    }
    let message = format!("the EFI system partition is too small: {}", error.message());
    Error::new(ErrorKind::NoSpace, message).with_hint("choose a larger --esp-size")
}

struct Filling<'f> {
    builder: Builder<'f>,
    time: Time,
    cancel: &'f Cancel,
}

impl Filling<'_> {
    fn fill(mut self, loader: &BootLoader, system: &System<'_>, command_line: &str) -> Result<Summary> {
        for path in ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"] {
            let (len, mut bytes) = loader.open(system.filesystem)?;
            self.file(path, len, &mut bytes)?;
        }
        self.text("loader/loader.conf", LOADER_CONF)?;
        // Says to who adds kernels later that entries are of type 1.
        self.text("loader/entries.srel", "type1\n")?;
        for kernel in &system.kernels {
            let directory = format!("{}/{}", system.id, kernel.version);
            self.copy(system, &kernel.path, &format!("{directory}/linux"))?;
            if let Some(initrd) = &kernel.initrd {
                self.copy(system, initrd, &format!("{directory}/initrd"))?;
            }
            let entry = format!("loader/entries/{}-{}.conf", system.id, kernel.version);
            self.text(&entry, &self::entry(system, kernel, &directory, command_line))?;
        }
        self.builder.finish()
    }

    fn copy(&mut self, system: &System<'_>, from: &str, to: &str) -> Result<()> {
        let Some(inode) = find(system.filesystem, from)? else {
            return Err(Error::invalid(format!("{from:?} is no file")));
        };
        let mut bytes = system.filesystem.reader(&inode)?;
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
            cancel: self.cancel,
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
fn entry(system: &System<'_>, kernel: &Kernel, directory: &str, command_line: &str) -> String {
    let System { title, id, .. } = system;
    let version = &kernel.version;
    let initrd = match kernel.initrd {
        Some(_) => format!("initrd     /{directory}/initrd\n"),
        None => String::new(),
    };
    format!(
        "title      {title}\nversion    {version}\nsort-key   {id}\nlinux      /{directory}/linux\n{initrd}options    {command_line}\n"
    )
}

/// Content that ends with an error when somebody wants it to stop.
struct Watched<'w> {
    content: &'w mut dyn Read,
    cancel: &'w Cancel,
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.content.read(buf)
    }
}
