//! Templates of what others have exported, or [we](crate::export): disk images, archives of root trees, container images, and
//! virtual machines' images of Incus and LXD.
//!
//! What is known of a template comes along, and what is said on the way in wins. All of it is somebody else's: sizes and
//! counts are bounded, nothing is opened that a file names, no member of an archive is written by its name, and what would reach into
//! this host (files, its network) is left behind.

mod form;
mod incus;
mod metadata;
mod notes;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{Error, Result};
use ops::Control;

use crate::export::Form;
use crate::store::{Fingerprint, NewTemplate, Store, Template};
use notes::BootFiles;

/// Something that is to become a template.
pub struct Importing<'i> {
    /// A file, the directory of an image layout, or a container image as in `oci:DIR:TAG`.
    pub file: PathBuf,
    /// The disk of an Incus image whose metadata is a file of its own.
    pub disk: Option<PathBuf>,
    /// What it is; found out where that is not said.
    pub form: Option<Form>,
    /// Who vouches for the file, where the store trusts keys: by default `FILE.minisig`.
    pub signature: Option<PathBuf>,
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
        if form == Form::Raw && !file.exists() {
            // What opens it says so, and what else may have been meant.
            (importing.open)(file, form)?;
        }
        let signature = self.check_signed(importing, control)?;
        // Archives of Incus and container images have them inside.
        let noted = match notes::beside(file)? {
            Some(notes) => {
                if signature.is_some() || notes.describes.is_some() {
                    let file = Fingerprint::of_file(file, control)?;
                    let is_of = match signature {
                        Some(_) => notes.check_is_of(file),
                        None => notes.check_describes(file),
                    };
                    is_of.map_err(|error| error.with_path(notes::path(&importing.file)))?;
                }
                new.take_notes(notes)
            }
            None => BootFiles::default(),
        };
        let template = match form {
            Form::Qcow2 | Form::Raw => {
                let chain = (importing.open)(file, form)?;
                if signature.is_some() && !is_one_file(&chain) {
                    let message = "the image is based on other files, which its signature says nothing of";
                    return Err(Error::invalid(message).with_path(file).with_hint(
                        "copy it into one that stands alone, and have that signed: imgtool convert",
                    ));
                }
                notes::boot_files(file, noted, &mut new)?;
                new.look_at(&chain.device())
                    .map_err(|error| error.with_path(file))?;
                self.import(&chain, &new, control)
            }
            Form::Tar => self.import_tar(file, noted, new, control),
            Form::Oci => self.import_oci(file, new, control),
            Form::Incus => self.import_incus(file, importing.disk.as_deref(), new, control),
        }?;
        if let (Some(signature), Form::Qcow2) = (signature, form) {
            self.keep_signature(&template, &signature, control)?;
        }
        Ok(template)
    }

    /// Checks the signatures of all that is imported, where the store trusts keys; gives that of the file.
    fn check_signed(&self, importing: &Importing<'_>, control: &Control<'_>) -> Result<Option<Vec<u8>>> {
        let file = &importing.file;
        let wants = self.wants_signatures()?;
        if wants && !fs::metadata(file).is_ok_and(|found| found.is_file()) {
            let message = "the store has keys, and only a file can be signed";
            return Err(Error::invalid(message).with_path(file).with_hint(
                "of an image layout, name an archive of it: skopeo copy oci:DIR:TAG oci-archive:FILE",
            ));
        }
        if let Some(disk) = importing.disk.as_ref().filter(|_| wants) {
            // Signed metadata of one image would do for the signed disk of another.
            let message = "the store has keys, and no signature says that an image's metadata and its disk belong together";
            return Err(Error::invalid(message).with_path(disk).with_hint(
                "put both into one archive, as metadata.yaml and rootfs.img, and have that signed",
            ));
        }
        let signature = self.check_signature(file, importing.signature.as_deref(), control)?;
        let notes = notes::path(file);
        if signature.is_some() && notes.exists() {
            // By its digests, this vouches for what else is beside the file.
            self.check_signature(&notes, None, control)?;
        }
        Ok(signature)
    }
}

fn is_one_file(chain: &Chain) -> bool {
    matches!(chain.layers(), [layer] if layer.data_file.is_none())
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
