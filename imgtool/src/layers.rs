//! Finding layers of a chain by name, naming them, and finding who else is based on them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use block::chain::{self, Chain, Layer};
use block::{Access, BackingReference, Error, FileId, FileOpener, Result, escape};
use raw::HostOpener;

use crate::images::{FORMATS, backing_path, directory_of};
use crate::target::is_one_of;

/// The number of the layer below the active one that `name` means: as the image above stores it, or a file of that name.
pub(crate) fn find(chain: &Chain, image: &Path, name: &str) -> Result<usize> {
    let layers = chain.layers();
    let stored = |number: usize| layers[number - 1].device.backing_reference();
    let below = 1..layers.len();
    let by_name = below
        .clone()
        .find(|number| stored(*number).is_some_and(|reference| reference.name == name));
    let by_file = || {
        below
            .clone()
            .find(|number| is_one_of(Path::new(name), [&layers[*number].storage]))
    };
    by_name.or_else(by_file).ok_or_else(|| {
        let error = Error::invalid(format!("it is not based on \"{}\"", escape(name))).with_path(image);
        let names: Vec<String> = below.filter_map(stored).map(|reference| reference.name).collect();
        match names.as_slice() {
            [] => error.with_hint("it has no backing file"),
            names => error.with_hint(format!("it is based on: {}", names.join(", "))),
        }
    })
}

/// How the image at `image` is to name layer `number` of its chain.
pub(crate) fn reference(chain: &Chain, image: &Path, number: usize) -> Result<BackingReference> {
    let (above, layer) = (&chain.layers()[number - 1], &chain.layers()[number]);
    let stored = above.device.backing_reference().map(|reference| reference.name);
    let name = match stored {
        Some(name) if Path::new(&name).is_absolute() || same_directory(image, &above.path) => name,
        _ => relative(image, layer)?,
    };
    Ok(BackingReference {
        name,
        format: Some(layer.format.to_owned()),
    })
}

fn same_directory(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(directory_of(path)).ok();
    real(one).is_some_and(|directory| real(other) == Some(directory))
}

/// The way to a layer's file from the directory of the image at `image`.
fn relative(image: &Path, layer: &Layer) -> Result<String> {
    let real =
        |path: &Path| fs::canonicalize(path).map_err(|error| Error::io("look up", error).with_path(path));
    let (from, to) = (real(directory_of(image))?, real(&layer.path)?);
    let shared = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(shared)).collect();
    way.into_os_string().into_string().map_err(|_| {
        Error::unsupported("the name of the backing file is not UTF-8 and cannot be stored")
            .with_path(&layer.path)
    })
}

/// Images that are based on one of `layers` and are none of `chain`, as far as they lie in the directory of one of
/// these. Only headers are read.
pub(crate) fn others_based_on(layers: &[Layer], chain: &[Layer]) -> Vec<PathBuf> {
    let id = |layer: &Layer| layer.storage.file_id();
    let bases: Vec<FileId> = layers.iter().filter_map(id).collect();
    let known: Vec<FileId> = chain.iter().filter_map(id).collect();
    let directories: BTreeSet<PathBuf> = chain
        .iter()
        .filter_map(|layer| fs::canonicalize(directory_of(&layer.path)).ok())
        .collect();
    let mut others: Vec<PathBuf> = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.path())
        .filter(|path| based_on(path, &bases, &known))
        .collect();
    others.sort();
    others
}

/// Whether the image at `path` is none of `known` and names one of `bases`. What cannot be read is no image.
fn based_on(path: &Path, bases: &[FileId], known: &[FileId]) -> bool {
    let share = Access {
        write: false,
        force_share: true,
    };
    let named = HostOpener::new().open(path, share).and_then(|storage| {
        if storage.file_id().is_some_and(|id| known.contains(&id)) {
            return Ok(None);
        }
        let format = chain::probe(&FORMATS, &*storage)?;
        Ok(format.references(&*storage)?.backing)
    });
    let Ok(Some(reference)) = named else { return false };
    let backing = HostOpener::new().open(&backing_path(path, &reference.name), share);
    backing.is_ok_and(|storage| storage.file_id().is_some_and(|id| bases.contains(&id)))
}
