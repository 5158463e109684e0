//! `imgtool mkdisk`: make a disk that boots.
//!
//! The root filesystem comes first, since it is made of a source that can be gone through only once, and since its size may
//! only be known then. It goes behind the room for the EFI system partition. What firmware and boot loader need is then
//! read back from it, wherever the source had it, and put into the EFI system partition. The partition table comes last:
//! until then the disk of a device that is written in place has none.

mod behind;
mod boot;
mod esp;
mod loader;
mod report;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::view::Window;
use block::{Backing, BlockDevice, DeviceStorage, Error, ErrorKind, Result, Storage, ZeroMode};
use clap::Args;
use ext4_builder::{Options, Size, Summary};
use ext4_reader::Filesystem;
use ops::Cancel;
use raw::partition::{self, Guid, Layout, NewPartition, PartitionTable};

use super::Outcome;
use super::convert::interrupted;
use super::mkfs::{Building, FilesystemArgs, Source, TreeArgs, new_image};
use crate::arguments::{OpenArgs, ThreadArgs, WatchArgs};
use crate::formats::{NewDevice, NewImage};
use crate::image_name::ImageName;
use crate::option_list::OptionList;
use crate::output::OutputFormat;
use crate::target::Making;
use crate::targets::Targets;
use crate::{interrupt, size};
use behind::Behind;
use boot::System;
use esp::Esp;
use loader::BootLoader;
use report::Made;

/// What partitions start and end at multiples of. It is also room enough for a partition table at either end.
const ALIGNMENT: u64 = 1 << 20;

/// Number of the root partition; the EFI system partition is 1.
const ROOT: u32 = 2;

/// Make a disk that boots, of a directory, an archive or a container image
///
/// The disk gets a GPT, an EFI system partition and a root partition, and boots wherever firmware is UEFI for x86-64.
/// SOURCE is what `imgtool mkfs` takes: a directory, a tar archive, - for one on standard input, or a container image. All of it
/// becomes the root filesystem, and its kernels (boot/vmlinuz-* or usr/lib/modules/*/vmlinuz) with their initrds are copied beside
/// systemd-boot. Nothing is mounted, and root is not needed. TARGET is a new image, which gets its name when it is whole, or a
/// block device, which is written in place: what it held is lost.
///
/// The same source with the same options and --uuid makes the same bytes. A number of seconds in the environment
/// variable `SOURCE_DATE_EPOCH` is the time of creation, and no time on the disk is later.
#[derive(Debug, Args)]
#[command(
    mut_arg("size", |arg| arg.help("Size of the disk [default: what its partitions take; all of a device]")),
    mut_arg("free", |arg| arg.help(
        "Make the root as large as the source takes, and so much more: a size, or hundredths of the whole, such as 20%",
    )),
    mut_arg("shrink", |arg| arg.help("Make the root as small as can be")),
    mut_arg("uuid", |arg| arg.help("UUID of the root filesystem, from which all others on the disk follow [default: drawn]")),
    after_help = "Examples:
  imgtool mkdisk --size 20G -O qcow2 rootfs/ disk.qcow2
  imgtool mkdisk --append 'console=ttyS0' rootfs.tar.zst disk.img
  mmdebstrap --include=linux-image-cloud-amd64,systemd-sysv,systemd-boot bookworm - | imgtool mkdisk -O qcow2 - disk.qcow2
  imgtool mkdisk --esp-size 1G --boot-efi systemd-bootx64.efi rootfs/ /dev/sdX"
)]
pub(crate) struct MkdiskArgs {
    /// Format of the new image
    #[arg(short = 'O', long, default_value = "raw", value_name = "FORMAT")]
    target_format: String,
    /// Options of that format, as key=value,key=value; `help` lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Size of the EFI system partition
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    esp_size: String,
    /// The boot loader [default: systemd-boot of the source, or else of this machine, from usr/lib/systemd/boot/efi]
    #[arg(long, value_name = "FILE")]
    boot_efi: Option<PathBuf>,
    /// What the kernel's command line has behind root=PARTUUID=... and rw
    #[arg(
        long,
        visible_alias = "cmdline",
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    append: String,
    #[command(flatten)]
    filesystem: FilesystemArgs,
    #[command(flatten)]
    tree: TreeArgs,
    /// How to print what was made
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// A directory, a tar archive, - for an archive on standard input, or a container image
    #[arg(required_unless_present = "options")]
    source: Option<PathBuf>,
    /// The new image, or a block device
    #[arg(required_unless_present = "options")]
    target: Option<PathBuf>,
}

impl MkdiskArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let options = OptionList::parse(&self.options)?;
        if options.help {
            NewImage::print_options(&self.target_format, out)??;
            return Ok(0);
        }
        let (Some(source), Some(target)) = (&self.source, &self.target) else {
            let error = Error::invalid("a source and a target have to be named");
            return Err(error.with_hint("imgtool mkdisk rootfs/ disk.img").into());
        };
        let plan = self.plan(target)?;
        // What it boots on is known.
        let source = Source::open(source, Some("linux/amd64"))?;
        source.refuse_as_target(target)?;
        let image = new_image(&self.target_format, options).map_err(|error| error.with_path(target))?;
        let made = plan.make(source, image)?;
        if !self.watch.quiet {
            made.print(out, target, self.output)?;
        }
        Ok(0)
    }

    /// All that can be known, and refused, before anything is made.
    fn plan<'p>(&'p self, target: &'p Path) -> Result<Plan<'p>> {
        if ImageName::parse(target)?.partition.is_some() {
            let error = Error::invalid("a partition cannot have partitions").with_path(target);
            return Err(error.with_hint("name the image, or make a filesystem on it: imgtool mkfs"));
        }
        if self.append.contains(char::is_control) {
            let error = Error::invalid("--append: a line of the boot loader's cannot have such characters");
            return Err(error.with_hint("give words with spaces between them"));
        }
        let esp_size = size::of("esp-size", &self.esp_size)?;
        let options = self.filesystem.options(None)?;
        let esp = Esp::new(
            esp_size.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX),
            &options,
        );
        esp.options().validate().map_err(|error| {
            let message = format!("the EFI system partition cannot be made: {}", error.message());
            let hint = error.hint().unwrap_or_default().to_owned();
            Error::invalid(message).with_hint(format!("--esp-size: {hint}"))
        })?;
        Ok(Plan {
            arguments: self,
            target,
            esp,
            loader: self.boot_efi.as_deref().map(BootLoader::given).transpose()?,
            cancel: interrupt::watch()?,
        })
    }
}

/// One run of the command.
struct Plan<'p> {
    arguments: &'p MkdiskArgs,
    target: &'p Path,
    esp: Esp,
    /// The one that was given.
    loader: Option<BootLoader>,
    cancel: Cancel,
}

impl Plan<'_> {
    /// Where the root partition starts.
    fn root_start(&self) -> u64 {
        ALIGNMENT + self.esp.options().size
    }

    fn make(self, source: Source, mut image: NewImage) -> Result<Made> {
        let making = Making {
            io: self.arguments.open.io.into(),
            ..Making::default()
        };
        let targets = Targets::new(self.target, &image, making)?;
        let left = targets.image().if_dropped();
        let made = (|| {
            let file = targets.image().storage();
            let is_raw = image.format() == "raw";
            let is_device = targets.image().is_block_device() && is_raw;
            let device = is_device.then(|| file.len()).transpose()?;
            let options = self.arguments.filesystem.options(device)?;
            let (options, disk) = self.root_options(options)?;
            let (new, root) = if is_raw {
                if let Some(size) = device {
                    erase(&*file, size)?;
                }
                let root = self.build_root(source, &*file, &options, &*file)?;
                if device.is_none() {
                    file.set_len(disk.unwrap_or_else(|| self.fitting(&root)))?;
                }
                (targets.open(&image, Backing::None, None)?, root)
            } else {
                image.size = disk;
                image.check()?;
                targets.create(&image)?;
                let new = targets.open(&image, Backing::None, None)?;
                let root = self.build_in_image(source, &new, &options, disk, &*file)?;
                (new, root)
            };
            let made = self.boot_from(&new.shared(), &options, &root)?;
            new.close()?;
            targets.finish(&self.cancel)?;
            Ok(made)
        })();
        made.map_err(|error: Error| interrupted(error.with_path(self.target), self.target, left))
    }

    /// The options of a root filesystem on a disk for which `options` were meant, and the size of the disk if it is given.
    fn root_options(&self, mut options: Options) -> Result<(Options, Option<u64>)> {
        let Size::Given(disk) = options.size else {
            return Ok((options, None));
        };
        let disk = size::whole_sectors(disk);
        // The last part of a MiB, or all of one, is for the backup of the partition table.
        let end = (disk / ALIGNMENT * ALIGNMENT).saturating_sub(ALIGNMENT);
        let room = end.saturating_sub(self.root_start());
        if room == 0 {
            let least = self.root_start() + 2 * ALIGNMENT;
            let message = format!("a disk of {disk} bytes has no room for a root partition");
            let hint = format!(
                "it starts at {}: choose a size above {least} bytes, or a smaller --esp-size",
                self.root_start()
            );
            return Err(Error::new(ErrorKind::NoSpace, message).with_hint(hint));
        }
        options.size = Size::Given(room);
        Ok((options, Some(disk)))
    }

    /// Bytes of a disk on which a root filesystem just fits.
    fn fitting(&self, root: &Summary) -> u64 {
        (self.root_start() + root.size()).next_multiple_of(ALIGNMENT) + ALIGNMENT
    }

    /// Makes the root filesystem on the disk in an image, and gives the disk its size.
    fn build_in_image(
        &self,
        source: Source,
        new: &NewDevice,
        options: &Options,
        disk: Option<u64>,
        file: &dyn Storage,
    ) -> Result<Summary> {
        let storage = match disk {
            Some(_) => DeviceStorage::fixed(new.device()),
            None => DeviceStorage::growing(new.device()),
        };
        let root = self.build_root(source, &storage, options, file)?;
        if disk.is_none() {
            storage.set_len(self.fitting(&root))?;
            storage.trim()?;
        }
        Ok(root)
    }

    /// Makes the root filesystem where it belongs on a disk. `file` is what the disk is in.
    fn build_root(
        &self,
        source: Source,
        disk: &dyn Storage,
        options: &Options,
        file: &dyn Storage,
    ) -> Result<Summary> {
        let MkdiskArgs {
            tree, threads, watch, ..
        } = self.arguments;
        let filter = tree.filter()?;
        let building = Building {
            filter: &filter,
            tree,
            threads,
            watch,
            cancel: &self.cancel,
        };
        let room = Behind::new(disk, self.root_start());
        building.build(source, &room, options, file.file_id())
    }

    /// Makes the disk one that boots what is in its root filesystem.
    fn boot_from(&self, disk: &Arc<dyn BlockDevice>, options: &Options, root: &Summary) -> Result<Made> {
        let window = Window::new(disk.clone(), self.root_start(), root.size())?;
        let filesystem = Filesystem::open(Arc::new(window))?;
        let system = System::find(&filesystem)?;
        let found;
        let loader = if let Some(given) = &self.loader {
            given
        } else {
            found = BootLoader::find(&filesystem)?;
            &found
        };
        let command_line = self.command_line(&options.uuid);
        let esp = Window::new(disk.clone(), ALIGNMENT, self.esp.options().size)?;
        let filled = self.esp.fill(
            &DeviceStorage::fixed(&esp),
            options.uuid,
            loader,
            &system,
            &command_line,
            &self.cancel,
        )?;
        let table = self.partition(&**disk, options.uuid)?;
        Ok(Made {
            format: disk.info().format.to_owned(),
            size: disk.size(),
            table,
            esp: filled,
            root: *root,
            uuid: options.uuid,
            loader: loader.origin().to_owned(),
            title: system.title.clone(),
            kernels: system.kernels,
            command_line,
        })
    }

    fn command_line(&self, seed: &[u8; 16]) -> String {
        let root = Guid::from_seed(*seed, ROOT).to_string().to_lowercase();
        let line = format!("root=PARTUUID={root} rw {}", self.arguments.append.trim());
        line.trim_end().to_owned()
    }

    /// Writes the partition table.
    fn partition(&self, disk: &dyn BlockDevice, seed: [u8; 16]) -> Result<PartitionTable> {
        let esp = NewPartition::new("efi".parse()?).name("ESP").start(ALIGNMENT);
        let root = NewPartition::new("root-x86-64".parse()?).name("root");
        let layout = Layout::new(seed)
            .with(esp.size(self.esp.options().size))
            .with(root.number(ROOT).start(self.root_start()))
            .overwrite(true);
        partition::create(disk, &layout)
    }
}

/// Removes the partition table of a device, so that nobody takes a half-made disk for a whole one.
fn erase(device: &dyn Storage, size: u64) -> Result<()> {
    let len = ALIGNMENT.min(size);
    for start in [0, size - len] {
        device.zero(start, len, ZeroMode::Unmap)?;
    }
    device.sync_data()
}
