//! Making the disk: see the [crate](crate) for the order in which that happens.

use std::sync::Arc;

use block::view::Window;
use block::{BlockDevice, DeviceStorage, Error, ErrorKind, Resize, Result, Storage};
use ext4_builder::{Builder, Summary, TooSmall};
use ext4_reader::Filesystem;
use fat_builder::Summary as EspSummary;
use raw::partition::{self, Layout, NewPartition, PartitionTable};

use crate::esp::{Contents, Esp, initrd_argument};
use crate::options::{ALIGNMENT, Options, ROOT};
use crate::room::Room;
use crate::system::{self, Listing, System};

/// What was made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Made {
    /// Bytes of the disk.
    pub size: u64,
    /// Its partitions: 1 is the EFI system partition, 2 the root.
    pub table: PartitionTable,
    /// The filesystem of the EFI system partition.
    pub esp: EspSummary,
    /// What tells that filesystem from others, shown as `1234-5678`.
    pub volume_id: u32,
    /// The root filesystem.
    pub root: Summary,
    /// Where the boot loader comes from.
    pub boot_loader: String,
    /// What it boots.
    pub system: System,
    /// What kernels are told.
    pub command_line: String,
}

/// Makes a disk that boots: `fill` puts a tree with a kernel, and maybe a boot loader, into the root filesystem. A disk of
/// no bytes becomes as large as the options say, or as what is put on it takes; one that has a size keeps it. All is
/// durable at the end.
///
/// `report` is called often while kernels are copied, with the number of bytes since the last time. Its error stops that
/// and is passed on, as is one of `fill`.
///
/// # Errors
/// Those of [`Options::validate`] before anything is written, and `NoSpace` for a disk that is smaller than the options say.
/// `NoSpace` for a tree that does not fit, with the size of a disk that would do, and for kernels that do not fit;
/// `InvalidInput` if there is no kernel or no boot loader that firmware could start; what reading and writing gives. The
/// disk is as it was if nothing was written to the root, and otherwise has no partition table.
pub fn build(
    disk: &Arc<dyn BlockDevice>,
    options: &Options,
    fill: impl FnOnce(&mut Builder<'_>) -> Result<()>,
    report: &dyn Fn(u64) -> Result<()>,
) -> Result<Made> {
    options.validate()?;
    let job = Job { disk, options };
    let root = job.make_root(fill)?;
    job.boot_from(root, report)
}

struct Job<'j> {
    disk: &'j Arc<dyn BlockDevice>,
    options: &'j Options,
}

impl Job<'_> {
    fn make_root(&self, fill: impl FnOnce(&mut Builder<'_>) -> Result<()>) -> Result<Summary> {
        let Self { disk, options } = self;
        let follows = match (disk.size(), options.disk_size()) {
            (0, None) => true,
            (0, Some(size)) => {
                disk.resize(size, Resize::default())?;
                false
            }
            (there, Some(size)) if there < size => {
                let message = format!("the disk has {there} bytes, and {size} are asked for");
                return Err(Error::new(ErrorKind::NoSpace, message).with_hint("choose a smaller size"));
            }
            _ => false,
        };
        let room = Room::new((*disk).clone(), options.root_start());
        let storage = if follows {
            DeviceStorage::growing(&room)
        } else {
            DeviceStorage::fixed(&room)
        };
        let mut builder = Builder::new(&storage, options.root_options()?)?;
        let made = fill(&mut builder).and_then(|()| {
            // A tree without any data has cost nothing so far.
            let list = |path: &str| Listing::in_builder(&builder, path);
            system::check(list, &options.loader, options.arch)?;
            builder.finish()
        });
        let root = made.map_err(|error| self.size_of_disk(error))?;
        if follows {
            storage.set_len(options.fitting(root.size()) - options.root_start())?;
            storage.trim()?;
        }
        Ok(root)
    }

    /// The error for a root that is too small, with a size of the disk that would do.
    fn size_of_disk(&self, error: Error) -> Error {
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<TooSmall>());
        match cause {
            Some(TooSmall { enough, .. }) => {
                let disk = self.options.fitting(*enough);
                error.with_hint(format!("a disk of {disk} bytes would do"))
            }
            None => error,
        }
    }

    /// Makes the disk one that boots what is in its root filesystem.
    fn boot_from(&self, root: Summary, report: &dyn Fn(u64) -> Result<()>) -> Result<Made> {
        let Self { disk, options } = self;
        let window = Window::new((*disk).clone(), options.root_start(), root.size())?;
        let filesystem = Filesystem::open(Arc::new(window))?;
        let system = System::find(&filesystem, options.arch)?;
        for kernel in &system.kernels {
            options.check_command_line(&initrd_argument(&system, kernel))?;
        }
        let (program, boot_loader) = options.loader.find(&filesystem, options.arch)?;
        let command_line = options.command_line();
        let esp = Esp::new(options);
        let window = Window::new((*disk).clone(), ALIGNMENT, options.esp_len())?;
        let contents = Contents {
            root: &filesystem,
            system: &system,
            boot_loader: &program,
            command_line: &command_line,
        };
        let summary = esp.fill(&DeviceStorage::fixed(&window), &contents, report)?;
        Ok(Made {
            size: disk.size(),
            table: self.partition()?,
            esp: summary,
            volume_id: esp.volume_id(),
            root,
            boot_loader,
            system,
            command_line,
        })
    }

    /// Writes the partition table.
    fn partition(&self) -> Result<PartitionTable> {
        let options = self.options;
        let kind = format!("root-{}", options.arch.name()).parse()?;
        let esp = NewPartition::new("efi".parse()?).name("ESP").start(ALIGNMENT);
        let root = NewPartition::new(kind).name("root");
        let layout = Layout::new(options.root.uuid)
            .sector(options.sector)
            .with(esp.size(options.esp_len()))
            .with(root.number(ROOT).start(options.root_start()))
            .overwrite(true);
        partition::create(&**self.disk, &layout)
    }
}
