//! `imgtool mkfs`: make an ext4 filesystem of a directory, an archive or a container image.

mod arguments;
mod build;
mod options;
mod run_config;
mod source;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use block::{Access, Backing, DeviceStorage, Error, ErrorKind, FileId, Result, Storage, escape};
use clap::Args;
use ext4_builder::source::{Copying, Source};
use ext4_builder::{Builder, Options, Size, Summary};
use ops::Cancel;
use serde_json::json;

use super::Outcome;
use super::convert::interrupted;
use crate::image_name::ImageName;
use crate::images::Opening;
use crate::interrupt;
use crate::option_list::OptionList;
use crate::output::{self, OutputFormat, human_size};
use crate::target::Making;
use crate::targets::Targets;
use run_config::ContainerArgs;

pub(crate) use build::tell_left_out;

pub(super) use arguments::MakeArgs;
pub(super) use build::Building;
pub(super) use options::{epoch, show_uuid};
pub(super) use source::{open_source, refuse_as_target};

/// Make an ext4 filesystem of a directory, a tar archive or a container image
///
/// Nothing is mounted, and root is not needed. What a kernel finds in the filesystem is what was in the source: all metadata,
/// extended attributes, access control lists, links and holes. SOURCE is a directory, a tar archive (plain, or compressed
/// by gzip, zstd or xz), - for an archive on standard input, or a container image: oci:DIR[:TAG], oci-archive:FILE[:TAG] or
/// docker-archive:FILE[:NAME] (of docker save), whose layers are merged, and verified against their digests. TARGET is a new image, which gets its name when it is
/// whole, or a block device or a partition of an image (IMAGE#2), which is written in place: what it held is lost.
///
/// The same source with the same options and --uuid makes the same bytes. A number of seconds in the environment
/// variable `SOURCE_DATE_EPOCH` is the time of creation, and no time in the filesystem is later.
#[derive(Debug, Args)]
#[command(
    mut_arg("target_format", |arg| arg.help(
        "Format of the new image, or of the image with the partition [default: raw for a new image, else found out]",
    )),
    after_help = "Examples:
  imgtool mkfs rootfs/ root.img
  imgtool mkfs --shrink --journal none --label data site.tar.zst site.img
  mmdebstrap bookworm - | imgtool mkfs --size 10G -O qcow2 - root.qcow2
  imgtool mkfs --owner 0:0 --exclude '*.pyc' --exclude /var/cache/* build/ root.img
  imgtool mkfs --uid-map 1000:0:1 --gid-map 1000:0:1 home/ root.img
  imgtool mkfs --manifest overlay.toml --file-contexts file_contexts rootfs.tar root.img
  imgtool mkfs rootfs.tar disk.qcow2#name:root
  skopeo copy docker://debian:12 oci:debian:12 && imgtool mkfs oci:debian:12 root.img"
)]
pub(crate) struct MkfsArgs {
    #[command(flatten)]
    make: MakeArgs,
    #[command(flatten)]
    container: ContainerArgs,
}

impl MkfsArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let Some((source, target, options)) = self.make.start(out)? else {
            return Ok(0);
        };
        let copying = self.make.tree.copying()?;
        let source = open_source(source, self.container.platform.as_deref())?;
        let name = ImageName::parse(target)?;
        refuse_as_target(&source, &name.path)?;
        let is_new = name.partition.is_none() && !is_block_device(&name.path);
        let config = self.container.keep(&source, is_new.then_some(&*name.path))?;
        let cancel = interrupt::watch()?;
        let job = Job {
            arguments: &self.make,
            target,
            copying,
            cancel,
        };
        let made = if name.partition.is_some() {
            job.on_partition(source, &name, &options)?
        } else {
            job.in_new_image(source, options)?
        };
        if let Some(config) = config {
            config.finish()?;
        }
        if !self.make.watch.quiet {
            made.print(out, target, self.make.output)?;
        }
        Ok(0)
    }
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.file_type().is_block_device())
}

/// One run of the command.
struct Job<'j> {
    arguments: &'j MakeArgs,
    target: &'j Path,
    copying: Copying,
    cancel: Cancel,
}

impl Job<'_> {
    /// Writes onto a partition that is there.
    fn on_partition(&self, source: Source, name: &ImageName, options: &OptionList) -> Result<Made> {
        if let Some(option) = options.untaken() {
            let message = format!("the option {} is for new images", escape(option));
            return Err(Error::invalid(message).with_path(self.target));
        }
        let opening = Opening {
            nested: self.arguments.open.nested,
            io: self.arguments.open.io.into(),
            access: Access::WRITE,
            direct: false,
        };
        let chain = opening.chain_to_change(&name.path, self.arguments.target_format.as_deref())?;
        let disk = name.on(chain.device())?;
        let options = self.options(Some(disk.size()))?;
        self.check_block_size(&options, name.sector_size_on(&*chain.device())?)?;
        let storage = DeviceStorage::fixed(&*disk);
        let made = self
            .build(source, &storage, &options, None)
            .and_then(|made| chain.settle().map(|()| made));
        made.map_err(|error| {
            interrupted(
                error.with_path(self.target),
                self.target,
                "its contents are incomplete",
            )
        })
    }

    /// Writes into a new image, or onto a block device.
    fn in_new_image(&self, source: Source, options: OptionList) -> Result<Made> {
        let named = |error: Error| error.with_path(self.target);
        let mut image = self.arguments.new_image(self.target, options)?;
        let making = Making {
            io: self.arguments.open.io.into(),
            ..Making::default()
        };
        let targets = Targets::new(self.target, &image, making)?;
        let file = targets.image().storage();
        let is_raw = image.format() == "raw";
        let is_device = targets.image().is_device() && is_raw;
        let disk = is_device.then(|| file.len()).transpose()?;
        let options = self.options(disk)?;
        self.check_room(&options, disk)?;
        self.check_block_size(
            &options,
            targets.image().sector_size().filter(|_| is_device).unwrap_or(512),
        )?;
        let left = targets.image().if_dropped();
        let made = (|| {
            let made = if is_raw {
                self.build(source, &*file, &options, file.file_id())?
            } else {
                image.size = match options.size {
                    Size::Given(size) => Some(size),
                    Size::Fit(_) | Size::Shrink => None,
                };
                image.check()?;
                targets.refuse_old_data(&image)?;
                targets.create(&image)?;
                let new = targets.open(&image, Backing::None, None)?;
                let storage = match image.size {
                    Some(_) => DeviceStorage::fixed(new.device()),
                    None => DeviceStorage::growing(new.device()),
                };
                let made = self.build(source, &storage, &options, file.file_id())?;
                storage.trim()?;
                new.close()?;
                made
            };
            targets.finish(&self.cancel)?;
            Ok(made)
        })();
        made.map_err(|error| interrupted(named(error), self.target, left))
    }

    fn options(&self, disk: Option<u64>) -> Result<Options> {
        let options = self.arguments.filesystem.options(disk);
        options.map_err(|error| error.with_path(self.target))
    }

    /// Refuses a size that is larger than the device.
    fn check_room(&self, options: &Options, disk: Option<u64>) -> Result<()> {
        match (options.size, disk) {
            (Size::Given(size), Some(there)) if size > there => {
                let message = format!("the device has {there} bytes, and {size} are asked for");
                let error = Error::new(ErrorKind::NoSpace, message).with_path(self.target);
                Err(error.with_hint("choose a smaller size, or a larger device"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses blocks that are no whole sectors: no kernel would mount that.
    fn check_block_size(&self, options: &Options, sector: u64) -> Result<()> {
        if u64::from(options.block_size) >= sector {
            return Ok(());
        }
        let message = format!(
            "blocks of {} bytes are smaller than the sectors of the disk ({sector} bytes), and could not be mounted",
            options.block_size
        );
        let error = Error::invalid(message).with_path(self.target);
        Err(error.with_hint(format!("choose --block-size {sector}")))
    }

    /// Makes the filesystem.
    fn build(
        &self,
        source: Source,
        storage: &dyn Storage,
        options: &Options,
        target: Option<FileId>,
    ) -> Result<Made> {
        let building = Building {
            copying: &self.copying,
            tree: &self.arguments.tree,
            threads: &self.arguments.threads,
            watch: &self.arguments.watch,
            cancel: &self.cancel,
        };
        let mut builder = Builder::new(storage, options.clone())?;
        building.fill(source, &mut builder, target)?;
        let summary = builder.finish()?;
        Ok(Made {
            summary,
            uuid: options.uuid,
            label: options.label.clone(),
        })
    }
}

/// What was made.
struct Made {
    summary: Summary,
    uuid: [u8; 16],
    label: String,
}

impl Made {
    fn print(&self, out: &mut dyn Write, target: &Path, format: OutputFormat) -> io::Result<()> {
        let Self { summary, uuid, label } = self;
        let block_size = u64::from(summary.block_size);
        if format == OutputFormat::Json {
            let value = json!({
                "filename": target.to_string_lossy(),
                "size": summary.size(),
                "block-size": block_size,
                "blocks": summary.blocks,
                "free-blocks": summary.free_blocks,
                "inodes": summary.inodes,
                "free-inodes": summary.free_inodes,
                "journal-size": summary.journal_blocks * block_size,
                "label": label,
                "uuid": show_uuid(uuid),
            });
            return output::json(out, &value);
        }
        let target = target.to_string_lossy();
        writeln!(
            out,
            "{}: ext4, {}, {} free, {} inodes of which {} are free, UUID {}",
            escape(&target),
            human_size(summary.size()),
            human_size(summary.free_blocks * block_size),
            summary.inodes,
            summary.free_inodes,
            show_uuid(uuid),
        )
    }
}
