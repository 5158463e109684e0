//! Making templates of images.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use block::chain::{Below, Chain, ChainOptions};
use block::gate::Deny;
use block::{Access, Backing, BlockDevice, Error, HostCopy, Result, Storage};
use disk_builder::System;
use jiff::Timestamp;
use ops::{Control, ConvertOptions, Offload};
use raw::HostOpener;
use raw::partition::PartitionTable;

use super::document::{self, text_of};
use super::scratch::Scratch;
use super::template::{BESIDE, Stamp, modified};
use super::unfinished::Unfinished;
use super::{Alias, Fingerprint, Provenance, Store, Template, TemplateDocument, publish};
use crate::{BootKind, Root, Settings};

/// Bytes of a kernel or an initrd at most.
pub(crate) const MAX_KERNEL: u64 = 1 << 30;

/// The kernel or the initrd in a file of the host.
///
/// # Errors
/// `Io`; `InvalidInput` for more than a GiB.
pub fn read_kernel(path: &Path) -> Result<Vec<u8>> {
    raw::read_whole(path, "a kernel or an initrd", MAX_KERNEL)
}

/// A template in the making.
#[derive(Clone, Debug, Default)]
pub struct NewTemplate {
    /// What it is to be called.
    pub alias: Option<Alias>,
    /// The alias is taken away from another template that has it.
    pub move_alias: bool,
    /// The operating system; found out where it is not stated.
    pub os: Option<String>,
    /// Who people log in as.
    pub user: Option<String>,
    /// Whatever there is to say.
    pub notes: Option<String>,
    /// The template that it was made of.
    pub parent: Option<Fingerprint>,
    /// How machines of it are.
    pub machine: Settings,
    /// How it came about.
    pub provenance: Option<Provenance>,
    /// The kernel for machines whose launcher loads one.
    pub kernel: Option<Vec<u8>>,
    /// What goes with the kernel.
    pub initrd: Option<Vec<u8>>,
    /// Compress the image, unless it is taken as it is.
    pub compress: bool,
}

impl NewTemplate {
    /// Finds out what is not stated yet: the system on a disk, how it boots, and the kernel for a launcher that is to load it.
    ///
    /// # Errors
    /// `InvalidInput` for a disk that is to have a kernel in its root filesystem, and has none; `Corrupt`, `Io`.
    pub fn look_at(&mut self, disk: &Arc<dyn BlockDevice>) -> Result<()> {
        let root = Root::find(disk)?;
        let system = match &root {
            Some(root) => Some(System::look(&root.filesystem()?)?),
            None => None,
        };
        if self.os.is_none() {
            self.os = system.as_ref().map(|system| system.title.clone());
        }
        let boot = &mut self.machine.boot;
        let newest = system.and_then(|mut system| system.kernels.pop());
        if boot.kind.is_none() {
            boot.kind = match (&self.kernel, has_esp(&**disk), &newest) {
                (Some(_), _, _) | (None, false, Some(_)) => Some(BootKind::Direct),
                (None, true, _) => Some(BootKind::Uefi),
                (None, false, None) => None,
            };
        }
        if boot.kind != Some(BootKind::Direct) {
            return Ok(());
        }
        if boot.append.is_none() {
            let device = match root.as_ref().and_then(|root| root.partition) {
                Some(number) => format!("/dev/vda{number}"),
                None => "/dev/vda".to_owned(),
            };
            boot.append = Some(format!("root={device} rw console=ttyS0"));
        }
        if self.kernel.is_none() {
            let (Some(root), Some(kernel)) = (&root, newest) else {
                let message =
                    "there is no kernel on the disk: neither boot/vmlinuz-* nor usr/lib/modules/*/vmlinuz";
                return Err(
                    Error::invalid(message).with_hint("name one with --kernel, or let it boot by UEFI")
                );
            };
            self.kernel = Some(root.read(&kernel.path, MAX_KERNEL)?);
            self.initrd = match kernel.initrd {
                Some(path) => Some(root.read(&path, MAX_KERNEL)?),
                None => None,
            };
        }
        Ok(())
    }
}

/// Whether firmware finds an EFI system partition.
pub(crate) fn has_esp(disk: &dyn BlockDevice) -> bool {
    PartitionTable::read(disk, None).is_ok_and(|table| {
        let mut kinds = table.partitions().iter().map(|partition| partition.kind.name());
        kinds.any(|kind| kind == Some("efi"))
    })
}

/// A template that has no name yet.
struct Made<'m> {
    scratch: &'m Scratch,
    fingerprint: Fingerprint,
    /// Its description.
    text: &'m str,
}

impl Store {
    /// Makes a template of the disk that a chain is. An image that stands alone is taken as it is, byte by byte; what else there
    /// may be is copied into one that does.
    ///
    /// # Errors
    /// `InvalidInput` for an alias that another template has; `NoSpace`, `Io`.
    pub fn import(&self, source: &Chain, new: &NewTemplate, control: &Control<'_>) -> Result<Template> {
        let scratch = self.scratch()?;
        copy_image(source, &scratch.path("qcow2"), new.compress, control)?;
        self.adopt(&scratch, source.size(), new, control)
    }

    /// Makes a template of the qcow2 image that `make` makes at the first path; the second is a directory for what else it may
    /// need meanwhile. The image is taken as it is, unless it is to be compressed.
    pub(crate) fn template_of(
        &self,
        compress: bool,
        control: &Control<'_>,
        make: impl FnOnce(&Path, &Path) -> Result<NewTemplate>,
    ) -> Result<Template> {
        let scratch = self.scratch()?;
        let (image, plain) = (scratch.path("qcow2"), scratch.path("plain.qcow2"));
        let made = if compress { &plain } else { &image };
        let new = make(made, &scratch.path(""))?;
        fs::File::open(made)
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io("sync", error).with_path(made))?;
        let options = ChainOptions {
            format: Some("qcow2"),
            ..ChainOptions::default()
        };
        let chain = Chain::open_with(&HostOpener::new(), &[&qcow2::Qcow2], &Deny, made, &options)?;
        let size = chain.size();
        if compress {
            let storage = new_file(&image)?;
            copy_disk(&chain, &storage, true, control)?;
            storage.sync_data()?;
        }
        drop(chain);
        self.adopt(&scratch, size, &new, control)
    }

    /// Makes a template of the image in a directory of its own.
    fn adopt(
        &self,
        scratch: &Scratch,
        disk_size: u64,
        new: &NewTemplate,
        control: &Control<'_>,
    ) -> Result<Template> {
        new.machine.check_values()?;
        let image = scratch.path("qcow2");
        set_mode(&image, 0o444)?;
        let fingerprint = Fingerprint::of_file(&image, control)?;
        let file = fs::metadata(&image).map_err(|error| Error::io("look at", error).with_path(&image))?;
        let beside = |bytes: &Option<Vec<u8>>, name: &str| -> Result<(Option<Fingerprint>, Option<Stamp>)> {
            let Some(bytes) = bytes else {
                return Ok((None, None));
            };
            let to = scratch.path(name);
            document::create(&to, bytes, 0o444)?;
            let file = fs::metadata(&to).map_err(|error| Error::io("look at", error).with_path(&to))?;
            Ok((Some(Fingerprint::of_file(&to, control)?), Some(Stamp::of(&file))))
        };
        let (kernel, kernel_file) = beside(&new.kernel, "kernel")?;
        let (initrd, initrd_file) = beside(&new.initrd, "initrd")?;
        let document = TemplateDocument {
            os: new.os.clone(),
            created: now(),
            describes: Some(fingerprint),
            disk_size,
            image_size: file.len(),
            image_modified: modified(&file),
            user: new.user.clone(),
            notes: new.notes.clone(),
            parent: new.parent,
            kernel,
            initrd,
            kernel_file,
            initrd_file,
            machine: new.machine.clone(),
            provenance: new.provenance.clone(),
        };
        let text = text_of(&document)?;
        document::create(&scratch.path("toml"), text.as_bytes(), document.mode())?;
        control.check()?;
        let held = self.hold()?;
        if let (Some(alias), false) = (&new.alias, new.move_alias) {
            self.check_alias(alias, Some(fingerprint))?;
        }
        let directory = self.templates_directory();
        fs::create_dir_all(&directory)
            .map_err(|error| Error::io("make a directory", error).with_path(&directory))?;
        let made = Made {
            scratch,
            fingerprint,
            text: &text,
        };
        // The same content is the same template: what is known of it stays, and what it lacks is given to it.
        if Self::file(&directory, fingerprint, "qcow2").exists() {
            self.name_beside(&made)?;
            if let Some(alias) = &new.alias {
                self.add_alias(&held, alias, fingerprint)?;
            }
        } else {
            let unfinished = Unfinished::new_template(fingerprint, new.alias.as_ref());
            self.finish(&held, unfinished, || self.name_new(&made))?;
        }
        let template = self.load_template(fingerprint)?;
        Ok(match &new.alias {
            Some(alias) => template.called(alias),
            None => template,
        })
    }

    /// Gives a template that is not there yet its files. With its image it has its alias, too.
    fn name_new(&self, made: &Made<'_>) -> Result<()> {
        let directory = self.templates_directory();
        for name in BESIDE {
            document::remove(&Self::file(&directory, made.fingerprint, name))?;
        }
        self.name_beside(made)?;
        document::sync(&directory)?;
        let image = Self::file(&directory, made.fingerprint, "qcow2");
        publish(&made.scratch.path("qcow2"), &image)?;
        document::sync(&directory)
    }

    /// Names what goes with a template, where that is not there.
    fn name_beside(&self, made: &Made<'_>) -> Result<()> {
        for name in BESIDE {
            let (from, to) = (
                made.scratch.path(name),
                Self::file(&self.templates_directory(), made.fingerprint, name),
            );
            if from.exists() && !to.exists() {
                publish(&from, &to)?;
                if name == "toml" {
                    self.note_made(made.fingerprint, Fingerprint::of_bytes(made.text.as_bytes()))?;
                }
            }
        }
        Ok(())
    }
}

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| Error::io("set the mode", error).with_path(path))
}

fn new_file(path: &Path) -> Result<Arc<dyn Storage>> {
    let options = raw::OpenOptions::new().write(true).create_new(true).lock(false);
    Ok(Arc::new(options.open(path)?))
}

/// Copies the disk of the image at a path into a new qcow2 image that stands alone.
pub(crate) fn copy_image_file(from: &Path, to: &Path, control: &Control<'_>) -> Result<()> {
    let options = ChainOptions::default();
    let formats: [&dyn block::Format; 2] = [&qcow2::Qcow2, &raw::Raw];
    let source = Chain::open_with(&HostOpener::new(), &formats, &Deny, from, &options)?;
    let storage = new_file(to)?;
    copy_disk(&source, &storage, false, control).and_then(|()| storage.sync_data())
}

/// Copies the disk of a chain into a new qcow2 image that stands alone.
pub(crate) fn copy_image(source: &Chain, path: &Path, compress: bool, control: &Control<'_>) -> Result<()> {
    let storage = new_file(path)?;
    let copied = if stands_alone(source)? {
        copy_file(&source.layers()[0].path, &storage, control)
    } else {
        copy_disk(source, &storage, compress, control)
    };
    copied.and_then(|()| storage.sync_data())
}

/// Whether an image is a qcow2 image with nothing in it but its disk.
pub(crate) fn stands_alone(source: &Chain) -> Result<bool> {
    let [layer] = source.layers() else {
        return Ok(false);
    };
    let device: &dyn std::any::Any = &*layer.device;
    let Some(image) = device.downcast_ref::<qcow2::Image>() else {
        return Ok(false);
    };
    Ok(layer.data_file.is_none()
        && layer.device.backing_reference().is_none()
        && (image.header().incompatible - qcow2::IncompatibleFeatures::COMPRESSION_TYPE).is_empty()
        && image.snapshots()?.is_empty()
        && image.bitmaps()?.is_empty())
}

/// Copies a file as it is: as if it were a raw image, so that holes stay holes, and the host shares what it can.
pub(crate) fn copy_file(from: &Path, to: &Arc<dyn Storage>, control: &Control<'_>) -> Result<()> {
    let options = ChainOptions {
        format: Some("raw"),
        below: Below::Nothing,
        ..ChainOptions::default()
    };
    let source = Chain::open_with(&HostOpener::new(), &[&raw::Raw], &Deny, from, &options)?;
    to.set_len(source.layers()[0].storage.len()?)?;
    let target = raw::Image::open(to.clone(), Access::WRITE)?;
    let options = ConvertOptions {
        offload: Some(Offload::new(&source, HostCopy::Any)),
        ..ConvertOptions::new()
    };
    ops::convert(&*source.device(), &target, &options, control)
}

fn copy_disk(source: &Chain, to: &Arc<dyn Storage>, compress: bool, control: &Control<'_>) -> Result<()> {
    let new = qcow2::CreateOptions {
        size: source.size(),
        compression: if compress {
            qcow2::CompressionType::Zstd
        } else {
            qcow2::CompressionType::Zlib
        },
        ..qcow2::CreateOptions::default()
    };
    qcow2::create(&**to, &new)?;
    let target = qcow2::Image::open(
        to.clone(),
        qcow2::OpenOptions {
            access: Access::WRITE,
            backing: Backing::None,
            ..qcow2::OpenOptions::default()
        },
    )?;
    let options = ConvertOptions {
        compress,
        offload: (!compress).then(|| Offload::new(source, HostCopy::Reflink)),
        ..ConvertOptions::new()
    };
    ops::convert(&*source.device(), &target, &options, control)?;
    target.close()
}
