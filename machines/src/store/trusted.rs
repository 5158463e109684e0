//! What of a template was found right: `trusted/FINGERPRINT.toml`.
//!
//! A note is made when a template is, of the document that it is made with, and again when its image's signature or a changed document's is
//! found right. It holds digests: of the document, the signature and the key, with size and time of the image, as they are for
//! [`Template::check`]. So it says nothing of any other content, and nothing once the key is not trusted any more. Where there is none,
//! or one that cannot be read, nothing was found right: signatures are checked, and a document that is not signed is refused. To remove a
//! note therefore opens nothing.
//!
//! A template whose files were read and found changed is marked by `trusted/FINGERPRINT.changed`, until they are read and found right: their size and
//! times say nothing then. Without the mark, as where it cannot be made, they are read where those say that they may have changed.
//!
//! Notes lie beside `templates/` and not in it, so that who may write images need not be able to write what is believed of them.

use std::fs;
use std::io;
use std::path::PathBuf;

use block::{Error, Result};
use serde::{Deserialize, Serialize};

use super::document::{self, load, text_of};
use super::template::Stamp;
use super::{Fingerprint, Store, Template, stems};

/// What was found right of a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Noted {
    /// The SHA-256 of its document.
    pub(super) document: Fingerprint,
    /// The image, if a signature of it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<SignedImage>,
}

/// An image whose signature was found right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SignedImage {
    /// The SHA-256 of the signature.
    pub(super) signature: Fingerprint,
    /// That of the key's file.
    pub(super) key: Fingerprint,
    /// The image's file as it was then.
    pub(super) file: Stamp,
}

impl Store {
    fn trusted_directory(&self) -> PathBuf {
        self.directory.join("trusted")
    }

    pub(super) fn trusted_path(&self, fingerprint: Fingerprint) -> PathBuf {
        Self::file(&self.trusted_directory(), fingerprint, "toml")
    }

    pub(super) fn changed_path(&self, fingerprint: Fingerprint) -> PathBuf {
        Self::file(&self.trusted_directory(), fingerprint, "changed")
    }

    /// What is noted of a template: nothing, where that cannot be read.
    pub(super) fn noted(&self, template: &Template) -> Option<Noted> {
        load(&self.trusted_path(template.fingerprint)).ok().flatten()
    }

    /// Notes what was found right of a template.
    pub(super) fn note(&self, fingerprint: Fingerprint, noted: &Noted) -> Result<()> {
        let (scratch, directory) = (self.scratch()?, self.trusted_directory());
        let (new, path) = (scratch.path("trusted"), self.trusted_path(fingerprint));
        document::create(&new, text_of(noted)?.as_bytes(), 0o644)?;
        fs::create_dir_all(&directory)
            .map_err(|error| Error::io("make a directory", error).with_path(&directory))?;
        fs::rename(&new, &path).map_err(|error| Error::io("replace", error).with_path(&path))?;
        document::sync(&directory)
    }

    /// Notes the document that a template is made with. Who may not is one whose templates have to be signed, documents and all.
    pub(super) fn note_made(&self, fingerprint: Fingerprint, document: Fingerprint) -> Result<()> {
        let image = None;
        match self.note(fingerprint, &Noted { document, image }) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::PermissionDenied) => Ok(()),
            noted => noted,
        }
    }

    /// Notes of templates that are not there, but for those that are wanted.
    pub(super) fn notes_of_nothing(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let (notes, templates) = (self.trusted_directory(), self.templates_directory());
        let is_there = |stem: &str| Self::file(&templates, stem, "qcow2").symlink_metadata().is_ok();
        let mut of_nothing = Vec::new();
        for extension in ["toml", "changed"] {
            let stems = stems(&notes, extension)?.into_iter();
            let stems = stems.filter(|stem| !is_there(stem) && !wanted(stem));
            of_nothing.extend(stems.map(|stem| Self::file(&notes, stem, extension)));
        }
        Ok(of_nothing)
    }
}
