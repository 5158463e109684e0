//! Files of templates, which no command writes to or replaces, whoever may, and disks that others in a store are based on, whose content stays.
//!
//! # How they are known
//!
//! By their name, links followed: a fingerprint with the ending of a template's file, beside the description or the image of that
//! template. This is so in whichever store, and holds for a file that is not there, too: it may be away for a while.
//!
//! By what they are: a hard link has any name, and so has what a symbolic link in a store leads to. Only files that are there
//! can be such, and only those of one store, that of the caller, are compared: by device and inode, which reads one directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use block::{Error, Result};

use super::template::BESIDE;
use super::{Fingerprint, LOCK, Store};

impl Store {
    /// Fails for a file of a template: of any store by its name, and of this `own` one by whatever name.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn refuse_template_file(path: &Path, own: Option<&Self>) -> Result<()> {
        let is_named = place(path).and_then(|place| part_by_name(&place));
        let Some(part) = is_named.or_else(|| own?.part_of_same_file(path)) else {
            return Ok(());
        };
        let message = format!("it is the {part} of a template, and a template is not changed");
        Err(Error::invalid(message)
            .with_path(path)
            .with_hint("change a machine that is a clone of it, and publish that: imgtool template publish"))
    }

    /// Fails for a file that a disk in a store is based on, and whose content is about to change: that disk would read something else. Stores are
    /// those that the file lies in, and this `own` one, by whatever name.
    ///
    /// # Errors
    /// `InvalidInput`, which names such a disk; `Io` where a store cannot be read.
    pub fn refuse_base(path: &Path, own: Option<&Self>) -> Result<()> {
        match Self::overlays(path, own)?.first() {
            Some(overlay) => {
                let shown = block::escape(&overlay.to_string_lossy()).into_owned();
                let message = format!("{shown} is based on it, and would read something else afterwards");
                Err(Error::invalid(message)
                    .with_path(path)
                    .with_hint("make that one stand alone first: imgtool stream"))
            }
            None => Ok(()),
        }
    }

    /// The disks that are based on a file, in the stores that [`refuse_base`](Self::refuse_base) looks into.
    ///
    /// # Errors
    /// `Io`.
    pub fn overlays(path: &Path, own: Option<&Self>) -> Result<Vec<PathBuf>> {
        let mut overlays = Vec::new();
        for store in stores_of(path, own) {
            overlays.extend(store.disks_based_on(path)?);
        }
        Ok(overlays)
    }

    /// Fails for the name of a file in one of this store's directories, or of the names of its templates: only the store makes those.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn refuse_own_file(&self, path: &Path) -> Result<()> {
        let (Some(place), Ok(store)) = (place(path), fs::canonicalize(&self.directory)) else {
            return Ok(());
        };
        let Ok(inside) = place.strip_prefix(&store) else {
            return Ok(());
        };
        let own = [
            "instances",
            "templates",
            "profiles",
            "keys",
            "trusted",
            ".work",
            "aliases.toml",
            LOCK,
            ".unfinished",
        ];
        if !own.iter().any(|name| inside.starts_with(name)) {
            return Ok(());
        }
        let error = Error::invalid(
            "it is a file of the store, whose templates and machines are made by its own commands",
        );
        Err(error.with_path(path).with_hint("name a file outside of it"))
    }

    /// Fails for the name of a file of a store's own, be it the one that the file lies in or this `own` one, but for the disk of a machine, which is an
    /// image as others are.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn refuse_store_file(path: &Path, own: Option<&Self>) -> Result<()> {
        let others = stores_of(path, None);
        // Anybody's directories may be called as those of a store are.
        let others = others.iter().filter(|store| store.directory.join(LOCK).is_file());
        for store in others.chain(own) {
            if !store.is_disk(path) {
                store.refuse_own_file(path)?;
            }
        }
        Ok(())
    }

    /// Whether a file is the disk of a machine.
    fn is_disk(&self, path: &Path) -> bool {
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        let Ok(instance) = self.instance(name) else {
            return false;
        };
        let places = (fs::canonicalize(instance.image()), fs::canonicalize(path));
        matches!(places, (Ok(disk), Ok(path)) if disk == path)
    }

    /// Whether a file is the image of a template, of whichever store, under its name there.
    pub(crate) fn is_template_image(path: &Path) -> bool {
        place(path).and_then(|place| part_by_name(&place)) == Some("image")
    }

    /// What of a template in this store a file is, whatever it is called.
    fn part_of_same_file(&self, path: &Path) -> Option<&'static str> {
        let same = same_file(&self.templates_directory(), path)?;
        Some(part_of(&same).map_or("file", |(_, part)| part))
    }
}

/// The name in a directory of a file, or of a link to it.
fn same_file(directory: &Path, path: &Path) -> Option<PathBuf> {
    let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let is_same = |other: &fs::DirEntry| {
        let is_link = other.file_type().is_ok_and(|kind| kind.is_symlink());
        // The directory knows the inode of what is no link, so that hardly a file has to be looked at.
        (is_link || other.ino() == file.ino())
            && fs::metadata(other.path())
                .is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()))
    };
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    entries.find(is_same).map(|entry| entry.path())
}

/// The stores that a file lies in, by its name and with links followed, and this `own` one if it is in there by any name.
fn stores_of(path: &Path, own: Option<&Store>) -> Vec<Store> {
    let mut stores: Vec<Store> = Vec::new();
    for place in [place(path), std::path::absolute(path).ok()]
        .into_iter()
        .flatten()
    {
        for directory in place.ancestors().skip(1) {
            let is_store = ["templates", "instances"]
                .iter()
                .all(|name| directory.join(name).is_dir());
            if is_store && stores.iter().all(|store| store.directory != directory) {
                stores.push(Store::at(directory));
            }
        }
    }
    let has = |own: &&Store| {
        let directory = fs::canonicalize(&own.directory).ok();
        stores
            .iter()
            .all(|store| Some(&store.directory) != directory.as_ref())
            && same_file(&own.instances_directory(), path).is_some()
    };
    let own = own.filter(has).cloned();
    stores.extend(own);
    stores
}

/// Where a file is or would be, with links followed.
fn place(path: &Path) -> Option<PathBuf> {
    if let Ok(place) = fs::canonicalize(path) {
        return Some(place);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = fs::canonicalize(directory.unwrap_or(Path::new("."))).ok()?;
    Some(directory.join(path.file_name()?))
}

/// What of a template a file is by its name, if there is anything of that template beside it.
fn part_by_name(place: &Path) -> Option<&'static str> {
    let (fingerprint, part) = part_of(place)?;
    let directory = place.parent()?;
    ["toml", "qcow2"]
        .iter()
        .any(|known| {
            Store::file(directory, fingerprint, known)
                .symlink_metadata()
                .is_ok()
        })
        .then_some(part)
}

/// The template and the part of it that a file's name says it is.
fn part_of(path: &Path) -> Option<(Fingerprint, &'static str)> {
    let (stem, extension) = path.file_name()?.to_str()?.split_once('.')?;
    let part = match extension {
        "qcow2" => "image",
        "toml" => "description",
        "kernel" => "kernel",
        "initrd" => "initrd",
        other if BESIDE.contains(&other) => "signature",
        _ => return None,
    };
    Some((stem.parse().ok()?, part))
}
