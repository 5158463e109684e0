//! What is to be made.

use std::path::Path;

use block::{Error, ErrorKind, Result};
use ext4_builder::{Options as RootOptions, Size};
use raw::partition::{Guid, SectorSize};

use crate::Arch;
use crate::esp::Esp;
use crate::loader::BootLoader;
use crate::system::{self, Listing};

/// What partitions start and end at multiples of. It is also room enough for a partition table at either end.
pub(crate) const ALIGNMENT: u64 = 1 << 20;

/// Number of the root partition; the EFI system partition is 1.
pub(crate) const ROOT: u32 = 2;

/// Bytes of a kernel's command line at most (`COMMAND_LINE_SIZE`, with a NUL at the end).
const MAX_COMMAND_LINE: usize = 2047;

/// What is to be made. Nothing is taken from the clock, the environment or a random number generator.
#[derive(Clone, Debug)]
pub struct Options {
    /// The root filesystem. A given size is that of the whole disk; without one, the disk is as large as it takes. All
    /// GUIDs of the disk follow from the UUID.
    pub root: RootOptions,
    /// Bytes of the EFI system partition, rounded up to a MiB.
    pub esp_size: u64,
    /// What it boots on.
    pub arch: Arch,
    /// The sectors that the disk has for who boots from it.
    pub sector: SectorSize,
    /// The boot loader.
    pub loader: BootLoader,
    /// What the kernel's command line has behind `root=PARTUUID=...` and `rw`.
    pub append: String,
}

impl Options {
    /// A disk with this root, and an EFI system partition of 512 MiB, for 64-bit x86: it boots by the systemd-boot that is
    /// in the root.
    pub fn new(root: RootOptions) -> Self {
        Self {
            root,
            esp_size: 512 << 20,
            arch: Arch::default(),
            sector: SectorSize::default(),
            loader: BootLoader::default(),
            append: String::new(),
        }
    }

    /// Whether such a disk can be made, as far as that can be known before there is anything to put on it.
    ///
    /// # Errors
    /// `InvalidInput` for sizes, blocks that are smaller than sectors, a boot loader and a command line that cannot be; `NoSpace` for a disk that is too small.
    pub fn validate(&self) -> Result<()> {
        let control = self.append.chars().find(|c| c.is_control());
        if let Some(control) = control {
            let message = format!("the kernel's command line cannot have the character {control:?}");
            return Err(Error::invalid(message).with_hint("give words with spaces between them (--append)"));
        }
        self.check_command_line("")?;
        if u64::from(self.root.block_size) < self.sector.bytes() {
            let message = format!(
                "blocks of {} bytes are smaller than the sectors of the disk ({} bytes), and could not be mounted",
                self.root.block_size,
                self.sector.bytes()
            );
            return Err(Error::invalid(message).with_hint("choose blocks of 4096 bytes (--block-size)"));
        }
        self.loader.check(self.arch)?;
        Esp::new(self).validate()?;
        self.root_options()?.validate()
    }

    /// Fails for a directory of this machine that certainly has no kernel for a disk whose root is made of it, or no boot
    /// loader where there is none elsewhere: to know before anything is written. Of an archive, that is only known when all
    /// of it was read.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check_directory(&self, root: &Path) -> Result<()> {
        let list = |path: &str| Listing::on_host(root, path);
        system::check(list, &self.loader, self.arch).map_err(|error| error.with_path(root))
    }

    /// Bytes of the EFI system partition.
    pub(crate) fn esp_len(&self) -> u64 {
        self.esp_size
            .checked_next_multiple_of(ALIGNMENT)
            .unwrap_or(u64::MAX)
    }

    /// Where the root partition starts.
    pub(crate) fn root_start(&self) -> u64 {
        self.esp_len().saturating_add(ALIGNMENT)
    }

    /// Bytes of the disk, where that is said.
    pub(crate) fn disk_size(&self) -> Option<u64> {
        match self.root.size {
            Size::Given(size) => size.checked_next_multiple_of(self.sector.bytes()),
            Size::Fit(_) | Size::Shrink => None,
        }
    }

    /// Bytes of a disk whose root partition has room for a filesystem of so many.
    pub(crate) fn fitting(&self, root: u64) -> u64 {
        let end = self.root_start().saturating_add(root);
        // The last part of a MiB, or all of one, is for the backup of the partition table.
        end.checked_next_multiple_of(ALIGNMENT)
            .map_or(u64::MAX, |end| end.saturating_add(ALIGNMENT))
    }

    /// The options of the root filesystem itself.
    pub(crate) fn root_options(&self) -> Result<RootOptions> {
        let mut options = self.root.clone();
        if let Some(disk) = self.disk_size() {
            let end = (disk / ALIGNMENT * ALIGNMENT).saturating_sub(ALIGNMENT);
            let room = end.saturating_sub(self.root_start());
            if room == 0 {
                let message = format!("a disk of {disk} bytes has no room for a root partition");
                let hint = format!(
                    "it starts at {}: choose a size above {} bytes, or a smaller EFI system partition (--esp-size)",
                    self.root_start(),
                    self.fitting(ALIGNMENT)
                );
                return Err(Error::new(ErrorKind::NoSpace, message).with_hint(hint));
            }
            options.size = Size::Given(room);
        }
        Ok(options)
    }

    /// What a kernel is told.
    pub(crate) fn command_line(&self) -> String {
        let root = Guid::from_seed(self.root.uuid, ROOT).to_string().to_lowercase();
        let line = format!("root=PARTUUID={root} rw {}", self.append.trim());
        line.trim_end().to_owned()
    }

    /// Fails for a command line of which a kernel would not see the end. `initrd` is what systemd-boot adds to it.
    pub(crate) fn check_command_line(&self, initrd: &str) -> Result<()> {
        let len = self.command_line().len() + initrd.len();
        if len <= MAX_COMMAND_LINE {
            return Ok(());
        }
        let over = len - MAX_COMMAND_LINE;
        let message = format!(
            "the kernel's command line would have {len} bytes with all that it needs, and kernels take {MAX_COMMAND_LINE}"
        );
        Err(Error::invalid(message).with_hint(format!("append {over} bytes less (--append)")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(size: u64) -> Options {
        Options::new(RootOptions::new(Size::Given(size), [7; 16]))
    }

    #[test]
    fn a_command_line_is_as_long_as_kernels_take() {
        let mut options = options(1 << 30);
        let own = options.command_line().len() + " ".len();
        options.append = "x".repeat(MAX_COMMAND_LINE - own);
        options.validate().unwrap();
        assert_eq!(options.command_line().len(), MAX_COMMAND_LINE);
        options.append.push('x');
        let error = options.validate().unwrap_err();
        assert!(
            error.to_string().contains("2048 bytes") && error.hint().unwrap().contains("1 bytes less"),
            "{error}"
        );
        options.append = "a\nb".into();
        assert!(options.validate().unwrap_err().to_string().contains("'\\n'"));
    }

    #[test]
    fn a_disk_has_room_for_its_parts_or_is_refused() {
        for (size, room) in [(600 << 20, 86), ((600 << 20) - 1, 86), ((600 << 20) - 512, 85)] {
            let root = options(size).root_options().unwrap();
            assert_eq!(root.size, Size::Given(room << 20), "{size}");
        }
        for size in [0, 1 << 20, 514 << 20, u64::MAX / 2] {
            let options = Options {
                esp_size: u64::MAX,
                ..options(size)
            };
            assert_eq!(
                options.root_options().unwrap_err().kind(),
                ErrorKind::NoSpace,
                "{size}"
            );
        }
        let least = options(0).fitting(1);
        assert_eq!(options(least).root_options().unwrap().size, Size::Given(1 << 20));
        assert!(options(least - 512).root_options().is_err());
    }
}
