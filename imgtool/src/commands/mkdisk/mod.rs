//! `imgtool mkdisk`: make a disk that boots. How is in `disk_builder`.

mod report;

use std::io::Write;
use std::path::{Path, PathBuf};

use block::{Backing, Error, Result};
use clap::{Args, ValueEnum};
use disk_builder::{Arch, BootLoader, Options};
use ext4_builder::Size;
use ext4_builder::source::Source;
use raw::partition::SectorSize;

use super::Outcome;
use super::convert::interrupted;
use super::mkfs::{Building, MakeArgs, open_source, refuse_as_target};
use crate::formats::NewImage;
use crate::image_name::ImageName;
use crate::target::Making;
use crate::targets::Targets;
use crate::{interrupt, size};
use report::Made;

/// Make a disk that boots, of a directory, an archive or a container image
///
/// The disk gets a GPT, an EFI system partition and a root partition, and boots wherever firmware is UEFI for its processor.
/// SOURCE is what `imgtool mkfs` takes: a directory, a tar archive, - for one on standard input, or a container image. All of it
/// becomes the root filesystem, and its kernels (boot/vmlinuz-* or usr/lib/modules/*/vmlinuz) with their initrds are copied beside
/// systemd-boot. Nothing is mounted, and root is not needed. TARGET is a new image, which gets its name when it is whole, or a
/// block device, which is written in place: what it held is lost when the first data of the source is placed there. That
/// a directory has no kernel is found out before; that an archive has none, at its end.
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
    mut_arg("target", |arg| arg.help("The new image, or a block device")),
    after_help = "Examples:
  imgtool mkdisk --size 20G -O qcow2 rootfs/ disk.qcow2
  imgtool mkdisk --append 'console=ttyS0' rootfs.tar.zst disk.img
  mmdebstrap --include=linux-image-cloud-amd64,systemd-sysv,systemd-boot bookworm - | imgtool mkdisk -O qcow2 - disk.qcow2
  imgtool mkdisk --esp-size 1G --boot-efi systemd-bootx64.efi rootfs/ /dev/sdX
  imgtool mkdisk --arch arm64 -O qcow2 oci:system disk.qcow2"
)]
pub(crate) struct MkdiskArgs {
    /// Size of the EFI system partition
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    esp_size: String,
    /// What it is to boot on; of a container image for several, that is the one that is taken
    #[arg(long, value_enum, default_value_t)]
    arch: ArchArg,
    /// Bytes in a sector of the disk that the image is for: 512 or 4096 [default: those of a device, or 512]
    #[arg(long, value_name = "BYTES")]
    sector_size: Option<u64>,
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
    make: MakeArgs,
}

/// What disks boot on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ArchArg {
    /// 64-bit x86.
    #[default]
    #[value(name = "x86-64", aliases = ["x86_64", "amd64"])]
    X86_64,
    /// 64-bit ARM.
    #[value(alias = "aarch64")]
    Arm64,
}

impl From<ArchArg> for Arch {
    fn from(arch: ArchArg) -> Self {
        match arch {
            ArchArg::X86_64 => Self::X86_64,
            ArchArg::Arm64 => Self::Arm64,
        }
    }
}

impl ArchArg {
    /// As container images have it.
    fn platform(self) -> &'static str {
        match self {
            Self::X86_64 => "linux/amd64",
            Self::Arm64 => "linux/arm64",
        }
    }
}

impl MkdiskArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let Some((source, target, options)) = self.make.start(out)? else {
            return Ok(0);
        };
        if ImageName::parse(target)?.partition.is_some() {
            let error = Error::invalid("a partition cannot have partitions").with_path(target);
            return Err(error
                .with_hint("name the image, or make a filesystem on it: imgtool mkfs")
                .into());
        }
        let image = self.make.new_image(target, options)?;
        let disk = self.options()?;
        disk.validate()?;
        // What it boots on is known.
        let from = open_source(source, Some(self.arch.platform()))?;
        refuse_as_target(&from, target)?;
        if let Some(directory) = from.directory()
            && !self.make.tree.adds()
        {
            disk.check_directory(directory)?;
        }
        let made = self.make(from, target, image, disk)?;
        if !self.make.watch.quiet {
            made.print(out, target, self.make.output)?;
        }
        Ok(0)
    }

    /// What disk is to be made, if it is a new image.
    fn options(&self) -> Result<Options> {
        let mut options = Options::new(self.make.filesystem.options(None)?);
        options.esp_size = size::of("esp-size", &self.esp_size)?;
        options.arch = self.arch.into();
        options.sector = SectorSize::of(self.sector_size.unwrap_or(512))?;
        options.append.clone_from(&self.append);
        options.loader = match &self.boot_efi {
            Some(path) => BootLoader::read(path)?,
            None => BootLoader::SystemdBoot {
                or_from: Some(BootLoader::DIRECTORY.into()),
            },
        };
        Ok(options)
    }

    /// The sectors of a device, which are as they are.
    fn sector_of_device(&self, bytes: Option<u64>) -> Result<SectorSize> {
        let bytes = bytes.unwrap_or(512);
        match self.sector_size {
            Some(stated) if stated != bytes => {
                let message = format!("the device has sectors of {bytes} bytes, and not of {stated}");
                Err(Error::invalid(message).with_hint("leave out --sector-size"))
            }
            _ => SectorSize::of(bytes),
        }
    }

    fn make(&self, source: Source, target: &Path, mut image: NewImage, mut options: Options) -> Result<Made> {
        let cancel = interrupt::watch()?;
        let making = Making {
            io: self.make.open.io.into(),
            ..Making::default()
        };
        let copying = self.make.tree.copying()?;
        let building = Building {
            copying: &copying,
            tree: &self.make.tree,
            threads: &self.make.threads,
            watch: &self.make.watch,
            cancel: &cancel,
        };
        let targets = Targets::new(target, &image, making)?;
        let left = targets.image().if_dropped();
        let made = (|| {
            let file = targets.image().storage();
            let is_device = targets.image().is_device() && image.format() == "raw";
            if is_device {
                options.root = self.make.filesystem.options(Some(file.len()?))?;
                options.sector = self.sector_of_device(targets.image().sector_size())?;
            } else {
                image.size = match options.root.size {
                    Size::Given(size) => Some(size),
                    Size::Fit(_) | Size::Shrink => None,
                };
                image.check()?;
                targets.refuse_old_data(&image)?;
                targets.create(&image)?;
            }
            let new = targets.open(&image, Backing::None, None)?;
            let fill =
                |builder: &mut ext4_builder::Builder<'_>| building.fill(source, builder, file.file_id());
            let disk = disk_builder::build(&new.shared(), &options, fill, &|_| cancel.check())?;
            new.close()?;
            targets.finish(&cancel)?;
            Ok(Made {
                disk,
                format: image.format(),
                uuid: options.root.uuid,
            })
        })();
        made.map_err(|error: Error| interrupted(error.with_path(target), target, left))
    }
}
