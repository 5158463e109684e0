//! What the disks of instances are based on, by the headers of their images.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use block::chain::MAX_LAYERS;
use block::{Error, ErrorKind, Format, Result, escape};
use ops::Control;

use super::bases::plain;
use super::{Fingerprint, Instance, InstanceName, Store, Template};
use crate::machine::Layer;

/// The cause of the error for an image that is not there and that another is based on.
#[derive(Clone, Debug)]
pub(super) struct MissingBase {
    base: PathBuf,
    above: PathBuf,
}

impl fmt::Display for MissingBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, above) = (self.base.to_string_lossy(), self.above.to_string_lossy());
        write!(
            f,
            "{} is missing, which {} is based on",
            escape(&base),
            escape(&above)
        )
    }
}

impl std::error::Error for MissingBase {}

impl Store {
    /// The images of an instance's disk, as their headers name them.
    ///
    /// # Errors
    /// `InvalidInput` where one is missing, or is another than the template that the instance is a clone of; `Corrupt` for
    /// a template that has changed.
    pub fn layers(&self, instance: &Instance, control: &Control<'_>) -> Result<Vec<Layer>> {
        let layers = chain(instance.image())?;
        if layers.len() == 1 && instance.document.alone {
            return Ok(layers);
        }
        let template = self.base_of(instance)?;
        self.check_noted(&template, control)?;
        if let Some(base) = layers.last().filter(|_| layers.len() > 1) {
            if !is_image_of(base, &template) {
                let message = format!(
                    "the disk is based on {}, and not on template {}",
                    escape(&base.path.to_string_lossy()),
                    template.name()
                );
                return Err(Error::invalid(message).with_path(instance.image()));
            }
            template.check(control)?;
        } else {
            // Its disk needs none, but what it is started with is the template's.
            template.check_boot_files(control)?;
        }
        Ok(layers)
    }

    /// The disks below the store that are based on a template, as far as can be seen: by their headers, and where those cannot be
    /// read, by what is known of their machines.
    pub(super) fn disks_on(&self, template: Fingerprint) -> Result<Vec<String>> {
        let image = Self::file(&self.templates_directory(), template, "qcow2");
        let mut users = Vec::new();
        for disk in self.disks()? {
            // What a machine is started with comes from there, too.
            let needs = || {
                let instance = self.load_instance(disk.machine.as_ref()?.parse().ok()?).ok()?;
                Some(instance.document.template == template && !instance.document.alone)
            };
            // Rather one too many than a base too few.
            if !disk.is_known || disk.is_on(&image) || needs() == Some(true) {
                users.push(disk.name);
            }
        }
        for name in self.away()? {
            let instance = self.load_instance(name.clone());
            // As above: what cannot be read may stand on any.
            let stands_on =
                |instance: Instance| instance.document.template == template && !instance.document.alone;
            if instance.map_or(true, stands_on) {
                users.push(format!("{name} (whose disk is away)"));
            }
        }
        Ok(users)
    }

    /// Fails if another disk below the store is based on that of an instance.
    pub(super) fn refuse_overlays(&self, name: &InstanceName) -> Result<()> {
        let image = Self::file(&self.instances_directory(), name, "qcow2");
        let Some(overlay) = self.overlay_of(&image)? else {
            return Ok(());
        };
        let message = format!("{} is based on the disk of machine {name}", overlay.name);
        Err(Error::invalid(message).with_hint("make that one stand alone first: imgtool stream"))
    }
}

/// Whether an image is that of a template.
pub(super) fn is_image_of(layer: &Layer, template: &Template) -> bool {
    let is = fs::canonicalize(&layer.path).ok();
    is.is_some() && is == fs::canonicalize(template.image()).ok()
}

/// The image at `path` and what it is based on, the nearest first, by their headers. Nothing is locked, since a machine may run.
pub(super) fn chain(path: PathBuf) -> Result<Vec<Layer>> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut next = Some((path, "qcow2".to_owned()));
    while let Some((path, format)) = next.take() {
        let below = |error: Error| {
            match layers.last() {
            Some(above) if error.io_kind() == Some(io::ErrorKind::NotFound) => Error::told_by(
                ErrorKind::InvalidInput,
                MissingBase {
                    base: plain(&path),
                    above: above.path.clone(),
                },
            )
            .with_hint("bring it back from a copy: without it there is no more of the disk than what was written to it since"),
            _ => error,
        }
        };
        if layers.len() == MAX_LAYERS {
            return Err(
                Error::unsupported(format!("the chain has more than {MAX_LAYERS} layers")).with_path(path),
            );
        }
        let path =
            fs::canonicalize(&path).map_err(|error| below(Error::io("look up", error).with_path(&path)))?;
        let storage = raw::OpenOptions::new().lock(false).open(&path)?;
        let reference = match format.as_str() {
            "qcow2" => {
                qcow2::Qcow2
                    .references(&storage)
                    .map_err(|error| error.with_path(&path))?
                    .backing
            }
            _ => None,
        };
        if let Some(reference) = reference {
            let Some(format) = reference.format else {
                let message = "it does not state the format of its backing file";
                return Err(Error::invalid(message).with_path(path));
            };
            let directory = path.parent().unwrap_or(&path);
            next = Some((directory.join(&reference.name), format));
        }
        layers.push(Layer { path, format });
    }
    Ok(layers)
}
