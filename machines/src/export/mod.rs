//! Templates as files that other programs take, and that [`import`](crate::import) takes back.
//!
//! Each form is one file. What is known of the template is in it where the form has a place for that; else it is beside it, as
//! the document that the store has ([`Beside`]). A kernel or an initrd that is not on the disk is beside any of them.

mod incus;
mod oci;
mod tarball;

use std::fs;
use std::sync::Arc;

use block::chain::{Chain, ChainOptions};
use block::gate::Deny;
use block::{Access, Error, Result, Storage};
use disk_builder::System;
use ops::{Control, ConvertOptions};
use raw::HostOpener;

pub(crate) use oci::LABEL;

use crate::Root;
use crate::archive::write_tar;
use crate::store::{Fingerprint, MAX_KERNEL, SIGNATURE, Template, copy_file, read_kernel};

/// What a template becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// The image as it is, byte by byte.
    #[default]
    Qcow2,
    /// The disk as a raw image.
    Raw,
    /// The tree of the root filesystem as a tar archive.
    Tar,
    /// A container image of that tree: an image layout of the Open Container Initiative, in a tar archive.
    Oci,
    /// A virtual machine's image for Incus and LXD, in one tar archive.
    Incus,
}

/// A file that goes beside that of a template.
#[derive(Clone, Debug)]
pub struct Beside {
    /// What its name has at its end, behind all of the other's.
    pub suffix: &'static str,
    /// All that is in it.
    pub content: Vec<u8>,
}

/// What is to be told of an export.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// Sockets that were left out: archives have none.
    pub sockets: u64,
    /// What goes beside the file.
    pub beside: Vec<Beside>,
}

/// What is known of a template, beside its image.
pub(crate) const NOTES: &str = ".toml";
/// A kernel that is not on the disk.
pub(crate) const KERNEL: &str = ".kernel";
/// An initrd that is not on the disk.
pub(crate) const INITRD: &str = ".initrd";

impl Template {
    /// Writes it to an empty file. The image is read in full before, so that nothing is handed on that has changed.
    ///
    /// # Errors
    /// `Corrupt` for an image that has changed; `InvalidInput` for a disk without a root filesystem, where the form is made of that,
    /// and for one that the form's programs could not boot; `Unsupported` for files that the form cannot have; `NoSpace`, `Io`; `Interrupted`.
    pub fn export(&self, form: Form, to: &Arc<dyn Storage>, control: &Control<'_>) -> Result<Exported> {
        self.verify_contents(control)?;
        let chain = self.open()?;
        let disk = chain.device();
        let root = Root::find(&disk)?;
        let tree = || {
            let Some(root) = &root else {
                let error = Error::invalid("the disk has no root filesystem of ext4 to make an archive of");
                return Err(error.with_path(self.image()));
            };
            root.filesystem()
        };
        let mut exported = Exported::default();
        match form {
            Form::Qcow2 => copy_file(&self.image(), to, control)?,
            Form::Raw => {
                to.set_len(chain.size())?;
                let target = raw::Image::open(to.clone(), Access::WRITE)?;
                ops::convert(&*disk, &target, &ConvertOptions::new(), control)?;
            }
            Form::Tar => {
                let mut at = 0;
                let mut sink = |bytes: &[u8]| {
                    to.write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                    Ok(())
                };
                exported.sockets = write_tar(&tree()?, &mut sink, control)?;
            }
            Form::Oci => exported.sockets = oci::write(self, &tree()?, &**to, control)?,
            Form::Incus => incus::write(self, &*disk, to, control)?,
        }
        if matches!(form, Form::Qcow2 | Form::Raw | Form::Tar) {
            let mut document = self.document.without_credentials();
            if form != Form::Qcow2 {
                // Of another file, whose SHA-256 whoever signs it can add.
                document.describes = None;
            }
            let content = document.to_toml()?.into_bytes();
            exported.beside.push(Beside {
                suffix: NOTES,
                content,
            });
        }
        if form == Form::Qcow2
            && let Some(signature) = self.signature()
        {
            let content =
                fs::read(&signature).map_err(|error| Error::io("read", error).with_path(signature))?;
            let suffix = SIGNATURE;
            exported.beside.push(Beside { suffix, content });
        }
        exported.beside.extend(self.loose_boot_files(root.as_ref())?);
        Ok(exported)
    }

    /// Its image alone.
    fn open(&self) -> Result<Chain> {
        let options = ChainOptions {
            format: Some("qcow2"),
            ..ChainOptions::default()
        };
        Chain::open_with(
            &HostOpener::new(),
            &[&qcow2::Qcow2],
            &Deny,
            &self.image(),
            &options,
        )
    }

    /// Its kernel and initrd, unless an import would find the same on the disk.
    fn loose_boot_files(&self, root: Option<&Root>) -> Result<Vec<Beside>> {
        let newest = match root {
            Some(root) => System::look(&root.filesystem()?)?.kernels.pop(),
            None => None,
        };
        let on_disk = |path: Option<&String>| -> Result<Option<Fingerprint>> {
            match (root, path) {
                (Some(root), Some(path)) => Ok(Some(Fingerprint::of_bytes(&root.read(path, MAX_KERNEL)?))),
                _ => Ok(None),
            }
        };
        let kernel = on_disk(newest.as_ref().map(|kernel| &kernel.path))?;
        let initrd = on_disk(newest.as_ref().and_then(|kernel| kernel.initrd.as_ref()))?;
        let document = &self.document;
        if (kernel, initrd) == (document.kernel, document.initrd) {
            return Ok(Vec::new());
        }
        let mut beside = Vec::new();
        for (suffix, path) in [(KERNEL, self.kernel()), (INITRD, self.initrd())] {
            if let Some(path) = path {
                let content = read_kernel(&path)?;
                beside.push(Beside { suffix, content });
            }
        }
        Ok(beside)
    }
}
