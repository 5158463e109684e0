//! Templates of what others have exported, or [we](crate::export): disk images, archives of root trees, container images, and
//! virtual machines' images of Incus and LXD.
//!
//! What is known of a template comes along ([`notes`]), and what is said on the way in wins. All of it is somebody else's: sizes and
//! counts are bounded, nothing is opened that a file names, no member of an archive is written by its name, and what would reach into
//! this host (files, its network) is left behind.

mod form;
mod incus;
mod metadata;
mod notes;
mod tree;

use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{Error, Result};
use ops::Control;

use crate::export::Form;
use crate::store::{NewTemplate, Store, Template};
use notes::BootFiles;

/// Something that is to become a template.
pub struct Importing<'i> {
    /// A file, the directory of an image layout, or a container image as in `oci:DIR:TAG`.
    pub file: PathBuf,
    /// The disk of an Incus image whose metadata is a file of its own.
    pub disk: Option<PathBuf>,
    /// What it is; found out where that is not said.
    pub form: Option<Form>,
    /// Opens a disk image, with what it may be based on.
    pub open: &'i dyn Fn(&Path, Form) -> Result<Chain>,
}

impl Store {
    /// Makes a template of what somebody exported. What `new` leaves open is as it says itself, or else found out.
    ///
    /// # Errors
    /// `InvalidInput` for what is none of all forms, and for an alias that another template has; `Corrupt` for what contradicts
    /// itself; `Unsupported`; `NoSpace`, `Io`; `Interrupted`. Nothing is left of an import that fails.
    pub fn take_in(
        &self,
        importing: &Importing<'_>,
        mut new: NewTemplate,
        control: &Control<'_>,
    ) -> Result<Template> {
        let file = &importing.file;
        let form = match importing.form {
            Some(form) => form,
            None => form::detect(file)?,
        };
        if importing.disk.is_some() && form != Form::Incus {
            let message = "a second file is the disk of an Incus image whose metadata is a file of its own";
            return Err(Error::invalid(message).with_path(file));
        }
        // Archives of Incus and container images have them inside.
        let noted = match notes::beside(file)? {
            Some(notes) => new.take_notes(notes),
            None => BootFiles::default(),
        };
        match form {
            Form::Qcow2 | Form::Raw => {
                let chain = (importing.open)(file, form)?;
                notes::boot_files(file, noted, &mut new)?;
                new.look_at(&chain.device())
                    .map_err(|error| error.with_path(file))?;
                self.import(&chain, &new, control)
            }
            Form::Tar => self.import_tar(file, noted, new, control),
            Form::Oci => self.import_oci(file, new, control),
            Form::Incus => self.import_incus(file, importing.disk.as_deref(), new, control),
        }
    }
}

impl std::fmt::Debug for Importing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Importing")
            .field("file", &self.file)
            .field("disk", &self.disk)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}
