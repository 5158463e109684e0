//! Finding layers of a chain by name, naming them, telling them apart, and finding who else depends on them.

use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use block::chain::{self, Chain, Layer, MAX_LAYERS};
use block::{Access, BackingReference, Error, FileId, FileOpener, Result, Storage, escape};
use raw::HostOpener;

use crate::images::{FORMATS, Opening, backing_path, directory_of};
use crate::stores::overlays_in_stores;
use crate::target::is_one_of;

/// Other images, and snapshots, are named up to this many.
const MOST_NAMED: usize = 3;

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

/// Every file of a layer: its own, and the one with its data.
pub(crate) fn files(layer: &Layer) -> impl Iterator<Item = &Arc<dyn Storage>> {
    std::iter::once(&layer.storage).chain(&layer.data_file)
}

/// Whether a file of `image` is one of `layers` too.
pub(crate) fn shares_a_file(image: &Layer, layers: &[Layer]) -> bool {
    let same = |one: &Arc<dyn Storage>, other: &Arc<dyn Storage>| match (one.file_id(), other.file_id()) {
        (Some(one), Some(other)) => one == other,
        _ => one.path().is_some_and(|path| is_one_of(path, [other])),
    };
    layers
        .iter()
        .flat_map(files)
        .any(|file| files(image).any(|own| same(own, file)))
}

/// Whether the image at `path` is `image`, or based on it, as far as can be seen: a chain that cannot be opened as a whole
/// is followed down to where it breaks.
pub(crate) fn leads_to(path: &Path, format: Option<&str>, image: &Layer, opening: Opening) -> bool {
    let leads = |chain: &Chain| shares_a_file(image, chain.layers());
    if let Ok(chain) = opening.chain(path, format) {
        return leads(&chain);
    }
    let mut parts = (0..MAX_LAYERS).map_while(|below| opening.part(path, format, below).ok());
    parts.any(|part| leads(&part)) || is_one_of(path, files(image))
}

/// What tells a layer from another: its files, its format, and what it names below.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    files: Vec<Option<FileId>>,
    format: &'static str,
    backing: Option<BackingReference>,
}

impl Identity {
    pub(crate) fn of(layer: &Layer) -> Self {
        Self {
            files: files(layer).map(|file| file.file_id()).collect(),
            format: layer.format,
            backing: layer.device.backing_reference(),
        }
    }
}

/// Fails if one of `overlays` has internal snapshots: where such a one holds nothing, what lies below the image shows, and
/// that is about to become something else.
pub(crate) fn refuse_snapshots(overlays: &[Layer]) -> Result<()> {
    for layer in overlays {
        let device: &dyn Any = &*layer.device;
        let Some(image) = device.downcast_ref::<qcow2::Image>() else {
            continue;
        };
        let snapshots = image.snapshots()?;
        if !snapshots.is_empty() {
            let names = some_of(snapshots.iter().map(|snapshot| snapshot.name.as_str()));
            let message = format!(
                "it has internal snapshots, which would read something else afterwards, since they are based on \
                 the same: {names}"
            );
            let hint = "copy them out with `imgtool snapshot export` and delete them first; if they are not needed \
                        any more, go on with --force";
            return Err(Error::invalid(message).with_path(&layer.path).with_hint(hint));
        }
    }
    Ok(())
}

/// The first of `names`, and how many more there are.
pub(crate) fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(MOST_NAMED);
    let named: Vec<_> = names.take(MOST_NAMED).map(escape).collect();
    match more {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Images that are based on one of `layers` and are none of `chain`, as far as they or links to them lie in the directory
/// of one of these, or in a store with it. Only headers are read.
pub(crate) fn others_based_on(layers: &[Layer], chain: &[Layer]) -> Vec<PathBuf> {
    let id = |layer: &Layer| layer.storage.file_id();
    let bases: Vec<FileId> = layers.iter().filter_map(id).collect();
    let mut known: Vec<FileId> = chain.iter().filter_map(id).collect();
    let directories: BTreeSet<PathBuf> = chain
        .iter()
        .filter_map(|layer| fs::canonicalize(directory_of(&layer.path)).ok())
        .collect();
    let names: BTreeSet<PathBuf> = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        // Asked before it is opened: a FIFO or a device may not take that well.
        .filter(|path| fs::metadata(path).is_ok_and(|found| found.is_file()))
        .collect();
    let mut others = Vec::new();
    for path in names {
        if let Some(id) = based_on(&path, &bases, &known) {
            known.push(id);
            others.push(path);
        }
    }
    others.extend(in_stores(layers, known));
    others
}

/// Disks in stores that are based on one of `layers` and are none of `chain`.
pub(crate) fn others_in_stores(layers: &[Layer], chain: &[Layer]) -> Vec<PathBuf> {
    in_stores(
        layers,
        chain.iter().filter_map(|layer| layer.storage.file_id()).collect(),
    )
}

/// Disks in stores that are based on one of `layers` and are none of `known`, each once.
fn in_stores(layers: &[Layer], mut known: Vec<FileId>) -> Vec<PathBuf> {
    let mut others = Vec::new();
    for path in layers.iter().flat_map(|layer| overlays_in_stores(&layer.path)) {
        let Ok(found) = fs::metadata(&path) else { continue };
        let id = FileId {
            device: found.dev(),
            inode: found.ino(),
        };
        if !known.contains(&id) {
            known.push(id);
            others.push(path);
        }
    }
    others
}

/// The file of the image at `path`, if it is none of `known` and names one of `bases`. What cannot be read is no image.
fn based_on(path: &Path, bases: &[FileId], known: &[FileId]) -> Option<FileId> {
    let share = Access {
        write: false,
        force_share: true,
    };
    let storage = HostOpener::new().open(path, share).ok()?;
    let id = storage.file_id().filter(|id| !known.contains(id))?;
    let format = chain::probe(&FORMATS, &*storage).ok()?;
    let reference = format.references(&*storage).ok()?.backing?;
    // What a link leads to is an image of its own place, too: names are looked up from there as well.
    let places = [Some(path.to_owned()), fs::canonicalize(path).ok()];
    let is_base = |place: PathBuf| {
        let backing = backing_path(&place, &reference.name);
        fs::metadata(backing).is_ok_and(|found| {
            bases.contains(&FileId {
                device: found.dev(),
                inode: found.ino(),
            })
        })
    };
    places.into_iter().flatten().any(is_base).then_some(id)
}
