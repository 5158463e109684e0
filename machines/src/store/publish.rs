//! Making a template of a machine's disk.
//!
//! The machine stays as it is: it is sealed in an overlay of its disk that is thrown away afterwards, and what the guest sees
//! through that is copied into an image that stands alone. What sealing has made zeros has no place in there, and no cluster that was
//! in use once is copied: images are read as a guest reads them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use block::chain::Chain;
use block::gate::Permissive;
use block::{Access, BackingReference, BlockDevice, Error, Result};
use disk_builder::System;
use ops::Control;
use qcow2::CreateOptions;
use raw::HostOpener;

use super::clones::create_private;
use super::instance::what_to_stop;
use super::{Instance, NewTemplate, Provenance, Store, Template, read_kernel};
use crate::seal::{self, Change, NotLookedInto, Selection};
use crate::{BootKind, Root};

/// What is to become of what is private and that sealing leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// No template has it.
    Refused,
    /// It is copied.
    Kept,
}

/// A template that was made of a machine.
#[derive(Clone, Debug)]
pub struct Published {
    /// It.
    pub template: Template,
    /// What was sealed.
    pub changes: Vec<Change>,
    /// What on the disk nobody looked into.
    pub not_looked_into: Vec<NotLookedInto>,
}

impl Store {
    /// Makes a template of the disk of a machine that does not run, sealed if that is said how. What `new` leaves open is as the
    /// machine and its template have it; the kernel that launchers load is that on the disk.
    ///
    /// # Errors
    /// `Locked` while the machine runs; `Corrupt` for a template that has changed, which is read; `InvalidInput` for an alias that another template has, and with [`Leftovers::Refused`] for what
    /// [`seal::lint`] finds after sealing, but for what the selection leaves out and passwords of users; as [`seal::seal`].
    pub fn publish(
        &self,
        instance: &Instance,
        mut new: NewTemplate,
        sealed: Option<(&Selection, Leftovers)>,
        control: &Control<'_>,
    ) -> Result<Published> {
        if let (Some(alias), false) = (&new.alias, new.move_alias)
            && self.template(alias.as_str()).is_ok()
        {
            let message = format!("\"{alias}\" is the name of a template already");
            return Err(Error::invalid(message).with_hint("choose another, or have it moved: --move"));
        }
        self.layers(instance, control)?;
        let template = match self.load_template(instance.document.template) {
            // One that stands alone may have outlived its template.
            Err(_) if instance.document.alone => None,
            found => Some(found?),
        };
        if let Some(template) = template.as_ref().filter(|_| !instance.document.alone) {
            // As for an export: it is copied, and what is copied is called right ever after.
            template.verify_contents(control)?;
        }
        let scratch = self.scratch()?;
        let chain = overlay(instance, &scratch.path("overlay"))?;
        let disk = chain.device();
        let changes = match sealed {
            Some((selection, leftovers)) => {
                let changes = seal::seal(&disk, selection, true, control)?;
                if leftovers == Leftovers::Refused {
                    selection.check_sealed(&disk)?;
                }
                changes
            }
            None => Vec::new(),
        };
        let not_looked_into = seal::not_looked_into(&disk, sealed.is_some())?;
        self.describe(&mut new, instance, template.as_ref(), &disk)?;
        new.look_at(&disk)?;
        drop(disk);
        let template = self.import(&chain, &new, control)?;
        Ok(Published {
            template,
            changes,
            not_looked_into,
        })
    }

    /// Says of the new template what is known of the machine and of the one that it is a clone of.
    fn describe(
        &self,
        new: &mut NewTemplate,
        instance: &Instance,
        template: Option<&Template>,
        disk: &Arc<dyn BlockDevice>,
    ) -> Result<()> {
        let mut settings = self.settings(instance)?;
        // Two machines cannot have the same ports of one host.
        settings.network.forward = None;
        // They are this one's own, and secret.
        settings.credentials.clear();
        new.machine = settings.then(new.machine.clone());
        new.parent = template.map(|template| template.fingerprint);
        new.user = new.user.take().or_else(|| template?.document.user.clone());
        new.provenance.get_or_insert_with(|| Provenance {
            source: Some(format!("machine {}", instance.name)),
            ..Provenance::default()
        });
        let (kernel, initrd) = self.kernel(instance)?;
        let kind = new.machine.boot.kind;
        let direct = kind.map_or(kernel.is_some(), |kind| kind == BootKind::Direct);
        if direct && new.kernel.is_none() && !has_kernel(disk)? {
            // It never was on the disk.
            new.kernel = kernel.as_deref().map(read_kernel).transpose()?;
            new.initrd = initrd.as_deref().map(read_kernel).transpose()?;
        }
        Ok(())
    }
}

fn has_kernel(disk: &Arc<dyn BlockDevice>) -> Result<bool> {
    match Root::find(disk)? {
        Some(root) => Ok(!System::look(&root.filesystem()?)?.kernels.is_empty()),
        None => Ok(false),
    }
}

/// A new overlay of a machine's disk, with which that is locked against being changed.
fn overlay(instance: &Instance, path: &Path) -> Result<Chain> {
    let image = instance.image();
    let image = fs::canonicalize(&image).map_err(|error| Error::io("look up", error).with_path(&image))?;
    let open = |path: &Path, access| {
        let formats: [&dyn block::Format; 2] = [&qcow2::Qcow2, &raw::Raw];
        let gate = Permissive::default();
        Chain::open(&HostOpener::new(), &formats, &gate, path, Some("qcow2"), access).map_err(what_to_stop)
    };
    let Some(name) = image.to_str() else {
        return Err(Error::invalid("an image can name only a file whose name is UTF-8").with_path(image));
    };
    let size = open(&image, Access::READ)?.size();
    let options = CreateOptions {
        size,
        // What is free comes in blocks of 4 KiB, and is to take no room in here.
        extended_l2: true,
        backing: Some(BackingReference {
            name: name.to_owned(),
            format: Some("qcow2".to_owned()),
        }),
        ..CreateOptions::default()
    };
    qcow2::create(&create_private(path)?, &options)?;
    open(path, Access::WRITE)
}
