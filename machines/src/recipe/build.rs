//! Building: a tree into a filesystem, and that into a template.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Access, Backing, BlockDevice, DeviceStorage, Error, ErrorKind, Result, Storage};
use disk_builder::{Arch, BootLoader};
use ext4_builder::oci::Platform;
use ext4_builder::source::{self, Copying, copy_archive};
use ext4_builder::{Builder, Size, Time, TooSmall, tar};
use ext4_reader::FileKind;
use ops::Control;

use super::blame::blamed;
use super::command::{Complaints, piped};
use super::origins::Step::{self, Key};
use super::source::{Mmdebstrap, Source};
use super::{Recipe, apt};
use crate::personalise::Guest;
use crate::store::{Alias, NewTemplate, Provenance, Store, Template};
use crate::{Architecture, BootKind, Root, Settings, seal};

/// What is said besides a recipe.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// What the template is to be called.
    pub alias: Option<Alias>,
    /// The alias is taken away from another template that has it.
    pub move_alias: bool,
    /// Settings of machines that win over those of the recipe.
    pub machine: Settings,
    /// The mirror that packages are taken from, in the place of the recipe's.
    pub mirror: Vec<String>,
    /// The time of creation, which no time in the filesystem is later than; in seconds since 1970.
    pub epoch: Option<i64>,
}

impl Store {
    /// Makes a template as a recipe says. Nothing is left of a build that fails.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be built, and programs that are not installed or fail, with what they said; `NoSpace`,
    /// `Io`; `Interrupted`.
    pub fn build(&self, recipe: &Recipe, options: &BuildOptions, control: &Control<'_>) -> Result<Template> {
        let new = NewTemplate {
            alias: options.alias.clone(),
            move_alias: options.move_alias,
            os: recipe.os.clone(),
            user: recipe.user.clone(),
            notes: recipe.notes.clone(),
            provenance: Some(Provenance {
                source: Some(recipe.source.describe()),
                recipe: Some(recipe.fingerprint),
                packages: recipe.packages(),
            }),
            ..NewTemplate::default()
        };
        self.build_as(recipe, options, new, control)
    }

    /// The same, with what is known of the template besides.
    pub(crate) fn build_as(
        &self,
        recipe: &Recipe,
        options: &BuildOptions,
        new: NewTemplate,
        control: &Control<'_>,
    ) -> Result<Template> {
        let build = Build {
            recipe,
            options,
            control,
            machine: recipe.machine.clone().then(options.machine.clone()),
            read: AtomicU64::new(0),
        };
        build.machine.check_values()?;
        // A template is the same as one before only where no UUID is drawn. Otherwise nobody is to wait for one that cannot be called so.
        let is_new = recipe.disk.uuid.is_none() && !matches!(recipe.source, Source::Image(_));
        if let (Some(alias), true, false) = (&options.alias, is_new, options.move_alias) {
            self.check_alias(alias, None)?;
        }
        let compress = recipe.disk.compress.unwrap_or_default();
        self.template_of(compress, control, |image, beside| build.run(image, beside, new))
    }
}

/// One run.
struct Build<'b> {
    recipe: &'b Recipe,
    options: &'b BuildOptions,
    control: &'b Control<'b>,
    machine: Settings,
    /// Bytes of the tree so far.
    read: AtomicU64,
}

impl Build<'_> {
    /// Makes the image; `beside` is a directory for what else there is meanwhile.
    fn run(&self, image: &Path, beside: &Path, mut new: NewTemplate) -> Result<NewTemplate> {
        new.machine = self.machine.clone();
        let is_image = match &self.recipe.source {
            Source::Image(path) => {
                self.check_image()?;
                let copied = crate::store::copy_image_file(path, image, self.control);
                copied.map_err(|error| self.tell_source(error))?;
                true
            }
            _ => false,
        };
        let disk = open_image(image, !is_image)?;
        let shared: Arc<dyn BlockDevice> = disk.clone();
        if !is_image {
            self.make_disk(&shared, beside)
                .map_err(|error| self.tell_disk(error))?;
        }
        self.settle(&shared).map_err(|error| match error.kind() {
            ErrorKind::NoSpace => self.tell_disk(error),
            _ => error,
        })?;
        new.look_at(&shared).map_err(|error| self.tell_kernel(error))?;
        drop(shared);
        match Arc::into_inner(disk) {
            Some(disk) => disk.close()?,
            None => unreachable!("nobody else keeps the disk"),
        }
        Ok(new)
    }

    /// An error, told of what the recipe has as its source, or of what there a program does not find.
    fn tell_source(&self, error: Error) -> Error {
        let Recipe { source, origins, .. } = self.recipe;
        let way = blamed(source, Complaints::of(&error));
        origins.tell(
            error,
            &way.unwrap_or_else(|| vec![Key("source"), Key(source.key())]),
        )
    }

    /// An error, told of what the recipe asks of the disk, if that is the reason.
    fn tell_disk(&self, error: Error) -> Error {
        // What the host has no room for is not the recipe's.
        if error.io_kind().is_some() {
            return error;
        }
        let Recipe { origins, .. } = self.recipe;
        let is_uefi = self.recipe.machine.boot.kind == Some(BootKind::Uefi);
        let told = match error.kind() {
            ErrorKind::NoSpace => {
                let way = self.short_of(&error);
                origins.tell(error, &way)
            }
            ErrorKind::InvalidInput if error.path().is_some() => return error,
            ErrorKind::InvalidInput if is_uefi && self.options.machine.boot.kind.is_none() => {
                origins.tell(error, &[Key("machine"), Key("boot"), Key("kind")])
            }
            ErrorKind::InvalidInput => error,
            _ => return error,
        };
        told.with_path(&self.recipe.name)
    }

    /// The way to what a tree has no room in: the key of `[disk]` that says so, where it can be only one, or else the table.
    fn short_of(&self, error: &Error) -> Vec<Step<'static>> {
        let disk = &self.recipe.disk;
        let source = std::error::Error::source(error);
        let is_size = disk.size.is_some() && source.is_some_and(<dyn std::error::Error>::is::<TooSmall>);
        let said = [
            (disk.size.is_some(), "size"),
            (disk.inodes.is_some() && !is_size, "inodes"),
            (disk.esp_size.is_some() && !is_size, "esp-size"),
            (disk.grow.is_some() && !is_size, "grow"),
        ];
        let mut way = vec![Key("disk")];
        let mut said = said.iter().filter(|(is_said, _)| *is_said);
        if let (Some((_, key)), None) = (said.next(), said.next()) {
            way.push(Key(key));
        }
        way
    }

    /// An error of looking for what machines start with, told of what the recipe says of that.
    fn tell_kernel(&self, error: Error) -> Error {
        let Recipe { machine, origins, .. } = self.recipe;
        let is_said = machine.boot.kind.is_some() && self.options.machine.boot.kind.is_none();
        if error.kind() != ErrorKind::InvalidInput || !is_said || origins.is_empty() {
            return error;
        }
        let error = error.with_hint("have the system have one, or leave out kind: the template can be exported, or be told to boot by UEFI");
        let way = [Key("machine"), Key("boot"), Key("kind")];
        origins.tell(error, &way)
    }

    /// Fails for what can only be done while a filesystem is built.
    fn check_image(&self) -> Result<()> {
        let recipe = self.recipe;
        let refused = |message: String, hint| {
            let error = Error::invalid(message).with_hint(hint);
            Err(self.tell_source(error).with_path(&recipe.name))
        };
        if !(recipe.files.is_empty() && recipe.initrd.is_none() && recipe.exclude.is_empty()) {
            let message = "files, exclude and an initrd are for systems that are made of a tree, and the source is an image";
            let hint = "users and services can be said; put files into a clone: imgtool fs";
            return refused(message.to_owned(), hint);
        }
        let disk = recipe.disk.of_new_filesystem();
        if disk.is_empty() {
            return Ok(());
        }
        let message = format!(
            "[disk] has {}, which only a disk that is made can have, and the source is an image, whose disk stays as it is",
            disk.join(", ")
        );
        refused(message, "clones can have a longer one: imgtool clone --size")
    }

    fn make_disk(&self, disk: &Arc<dyn BlockDevice>, beside: &Path) -> Result<()> {
        let epoch = self.options.epoch.map(|secs| Time { secs, nanos: 0 });
        let root = self.recipe.disk.root(epoch);
        let fill = |builder: &mut Builder<'_>| self.fill(builder, beside);
        if self.machine.boot.kind == Some(BootKind::Uefi) {
            let mut options = disk_builder::Options::new(root);
            options.arch = match self.machine.architecture.unwrap_or_default() {
                Architecture::X86_64 => Arch::X86_64,
                Architecture::Aarch64 => Arch::Arm64,
            };
            options.esp_size = self.recipe.disk.esp_size.unwrap_or(options.esp_size);
            options.append = self
                .machine
                .boot
                .append
                .clone()
                .unwrap_or_else(|| "console=ttyS0".to_owned());
            options.loader = BootLoader::SystemdBoot {
                or_from: Some(BootLoader::DIRECTORY.into()),
            };
            disk_builder::build(disk, &options, fill, &|_| self.control.check())?;
            return Ok(());
        }
        let storage = match root.size {
            Size::Given(size) => {
                disk.resize(size, block::Resize::default())?;
                DeviceStorage::fixed(&**disk)
            }
            Size::Fit(_) | Size::Shrink => DeviceStorage::growing(&**disk),
        };
        let key = if self.recipe.disk.size.is_some() {
            "size"
        } else {
            "free"
        };
        let mut builder = Builder::new(&storage, root)
            .map_err(|error| self.recipe.origins.tell(error, &[Key("disk"), Key(key)]))?;
        fill(&mut builder)?;
        builder.finish()?;
        storage.trim()
    }

    /// Puts all into a filesystem.
    fn fill(&self, builder: &mut Builder<'_>, beside: &Path) -> Result<()> {
        let report = |bytes| self.report(bytes);
        let control = source::Control {
            report: &report,
            ..source::Control::unwatched()
        };
        let mut copying = Copying::default();
        copying.filter.exclude.clone_from(&self.recipe.exclude);
        let copied = self.copy_source(builder, beside, &copying, &control);
        copied.map_err(|error| match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::Corrupt | ErrorKind::Unsupported => self.tell_source(error),
            _ => error,
        })?;
        for (name, files) in &self.recipe.files {
            files
                .apply(builder, &crate::filesystem_in, &control)
                .map_err(|error| error.with_path(name))?;
        }
        match &self.recipe.initrd {
            Some(initrd) => initrd.make(builder, &self.recipe.origins),
            None => Ok(()),
        }
    }

    fn copy_source(
        &self,
        builder: &mut Builder<'_>,
        beside: &Path,
        copying: &Copying,
        control: &source::Control<'_>,
    ) -> Result<()> {
        match &self.recipe.source {
            Source::Mmdebstrap(debian) => {
                let command = self.mmdebstrap(debian);
                self.unpack(command, "mmdebstrap", builder, copying, control)?;
            }
            Source::Debootstrap(debian) => {
                let tree = beside.join("debootstrap");
                debian.make(&tree, &self.options.mirror, self.control)?;
                self.copy(&tree, builder, copying, control)?;
            }
            Source::Debs(debs) => {
                for path in debs.fetch(&beside.join("debs"), self.control)? {
                    let mut command = Command::new("dpkg-deb");
                    command.arg("--fsys-tarfile").arg(&path);
                    self.unpack(command, "dpkg", builder, copying, control)?;
                }
            }
            Source::Tar(path) if path.is_dir() => {
                let error = Error::invalid("the source is a directory, and no archive").with_path(path);
                return Err(error.with_hint("say directory, and not tar"));
            }
            Source::Directory(path) if path.is_file() => {
                let error = Error::invalid("the source is a file, and no directory").with_path(path);
                return Err(error.with_hint("say tar of an archive, and image of a disk image"));
            }
            Source::Tar(path) | Source::Directory(path) => self.copy(path, builder, copying, control)?,
            Source::Oci(name) => self.copy(Path::new(name), builder, copying, control)?,
            Source::Image(_) => unreachable!("an image is no tree"),
        }
        Ok(())
    }

    fn copy(
        &self,
        path: &Path,
        builder: &mut Builder<'_>,
        copying: &Copying,
        control: &source::Control<'_>,
    ) -> Result<()> {
        let platform: Platform = match self.machine.architecture.unwrap_or_default() {
            Architecture::X86_64 => "linux/amd64",
            Architecture::Aarch64 => "linux/arm64",
        }
        .parse()?;
        let source = source::Source::open(path, Some(&platform)).map_err(|error| self.tell_source(error))?;
        source.copy(builder, copying, control).map(drop)
    }

    /// Copies the archive that a program writes.
    fn unpack(
        &self,
        command: Command,
        install: &str,
        builder: &mut Builder<'_>,
        copying: &Copying,
        control: &source::Control<'_>,
    ) -> Result<()> {
        let name = PathBuf::from(command.get_program());
        piped(command, install, self.control, |output| {
            copy_archive(builder, output, tar::Options::default(), &copying.filter, control)
                .map_err(|error| error.with_path(name))
                .map(drop)
        })
    }

    fn mmdebstrap(&self, debian: &Mmdebstrap) -> Command {
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--format=tar"]);
        let mut list = |option: &str, words: &[String]| {
            if !words.is_empty() {
                command.arg(format!("--{option}={}", words.join(",")));
            }
        };
        list("include", &debian.packages);
        list("components", &debian.components);
        list("variant", debian.variant.as_slice());
        list("architectures", debian.architecture.as_slice());
        for (option, hooks) in [
            ("setup-hook", &debian.setup_hooks),
            ("extract-hook", &debian.extract_hooks),
            ("essential-hook", &debian.essential_hooks),
            ("customize-hook", &debian.customize_hooks),
        ] {
            for hook in hooks {
                command.arg(format!("--{option}={hook}"));
            }
        }
        command.args(["--", debian.suite.as_deref().unwrap_or_default(), "-"]);
        let mirrors = match (&*self.options.mirror, &*debian.mirror) {
            ([], own) => own,
            (stated, _) => stated,
        };
        if mirrors.is_empty() {
            command.args(apt::mirror(
                debian.origin.as_deref().unwrap_or(apt::ORIGIN),
                self.control,
            ));
        } else {
            command.args(mirrors);
        }
        command
    }

    fn report(&self, bytes: u64) -> Result<()> {
        self.control.check()?;
        if bytes > 0 {
            let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
            // Nobody knows how much there is.
            self.control.report(read, 0);
        }
        Ok(())
    }

    /// Makes the edits of a filesystem that is whole.
    fn settle(&self, disk: &Arc<dyn BlockDevice>) -> Result<()> {
        let recipe = self.recipe;
        let Some(root) = Root::find(disk)? else {
            let error = Error::invalid("the disk has no root filesystem of ext4");
            return Err(self.tell_source(error).with_path(&recipe.name));
        };
        let mut guest = Guest::open(&root, true)?;
        if let Source::Mmdebstrap(_) | Source::Debootstrap(_) = &recipe.source {
            seal::forget_maker(&mut guest)?;
        }
        if let Some(name) = &recipe.hostname {
            guest.put("/etc/hostname", format!("{name}\n").as_bytes(), 0o644)?;
        }
        for user in &recipe.users {
            user.set(&mut guest, &recipe.origins)?;
        }
        recipe.services.set(&mut guest, &recipe.origins)?;
        forget_identity(&mut guest)?;
        guest.editor.commit()
    }
}

/// Takes away what is one machine's own, and made anew for each clone.
fn forget_identity(guest: &mut Guest) -> Result<()> {
    // Empty, and not missing: then a system that may not write there can mount one over it (machine-id(5)).
    if guest.kind("/etc/machine-id")?.is_some() {
        guest.put("/etc/machine-id", b"", 0o444)?;
    }
    let copy = "/var/lib/dbus/machine-id";
    if guest.own_kind(copy)? == Some(FileKind::Regular) {
        guest.editor.remove(copy.as_bytes())?;
    }
    seal::forget_identity(guest)
}

/// Opens an image for writing, a new one if it is to be made.
fn open_image(path: &Path, is_new: bool) -> Result<Arc<qcow2::Image>> {
    let mut options = raw::OpenOptions::new();
    options = options.write(true).lock(false);
    if is_new {
        options = options.create_new(true);
    }
    let storage: Arc<dyn Storage> = Arc::new(options.open(path)?);
    if is_new {
        let new = qcow2::CreateOptions {
            compression: qcow2::CompressionType::Zstd,
            ..qcow2::CreateOptions::default()
        };
        qcow2::create(&*storage, &new)?;
    }
    let options = qcow2::OpenOptions {
        access: Access::WRITE,
        backing: Backing::None,
        ..qcow2::OpenOptions::default()
    };
    qcow2::Image::open(storage, options).map(Arc::new)
}
