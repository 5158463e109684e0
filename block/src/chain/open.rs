//! Opening a chain: down the references to find the files, up again to make devices of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Below, ChainBase, ChainOptions, Layer, MAX_LAYERS};
use crate::gate::{OpenGate, OpenRequest, Permit, Purpose};
use crate::{
    Access, Backing, Error, ErrorKind, FileId, FileOpener, Format, KeyRing, Keys, References, Result,
    SnapshotSelector, Storage, escape, foreign_format,
};

/// Bytes of a file that a probe sees.
const PROBE_LEN: u64 = 4096;

/// The format called `name`.
///
/// # Errors
/// `Unsupported`, naming those that there are.
pub fn format_named<'a>(formats: &[&'a dyn Format], name: &str) -> Result<&'a dyn Format> {
    let found = formats.iter().find(|format| format.name() == name);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = formats.iter().map(|format| format.name()).collect();
        Error::unsupported(format!("the format \"{}\" is not known", escape(name)))
            .with_hint(format!("known formats: {}", known.join(", ")))
    })
}

/// The format of a file that the user named, told by its first bytes; raw if no format knows them.
///
/// # Errors
/// `Io`; `Unsupported` if no format knows it and there is none called raw, or if it is an image in a [foreign](foreign_format) format.
pub fn probe<'a>(formats: &[&'a dyn Format], storage: &dyn Storage) -> Result<&'a dyn Format> {
    let mut head = vec![0; storage.len()?.min(PROBE_LEN) as usize];
    storage.read_exact_at(&mut head, 0)?;
    if let Some(format) = formats.iter().find(|format| format.probe(&head)) {
        return Ok(*format);
    }
    refuse_foreign(&head)?;
    format_named(formats, "raw")
}

/// Fails for the start of an image that is not read here, and would be a disk of nonsense if it were taken for a raw one.
///
/// # Errors
/// `Unsupported`, naming the format.
pub fn refuse_foreign(head: &[u8]) -> Result<()> {
    let Some(name) = foreign_format(head) else {
        return Ok(());
    };
    let error = Error::unsupported(format!("it is a {name} image, and that format is not supported"));
    Err(error.with_hint(
        "convert it with QEMU's own qemu-img; if it is a raw disk that only starts like one, say that its format is raw",
    ))
}

/// Who opens a chain.
pub(super) struct Opening<'a> {
    pub(super) opener: &'a dyn FileOpener,
    pub(super) formats: &'a [&'a dyn Format],
    pub(super) gate: &'a dyn OpenGate,
    pub(super) keys: Option<&'a dyn KeyRing>,
    pub(super) locked: bool,
}

/// A file of the chain, before it is a device.
struct Found<'a> {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    format: &'a dyn Format,
    references: References,
    data_file: Option<Arc<dyn Storage>>,
    access: Access,
    /// What is opened instead of the image's disk.
    snapshot: Option<SnapshotSelector>,
}

impl<'a> Opening<'a> {
    /// Opens every layer, the active one first.
    pub(super) fn open(&self, path: &Path, options: &ChainOptions<'_>) -> Result<Vec<Layer>> {
        let storage = self.opener.open(path, options.access)?;
        let format = match options.format {
            Some(name) => format_named(self.formats, name),
            None => probe(self.formats, &*storage),
        };
        let format = format.map_err(|error| error.with_path(path))?;
        if options.snapshot.is_some() && options.access.write {
            return Err(Error::read_only("write to a snapshot").with_path(path));
        }
        let mut top = Found::new(path.to_owned(), storage, format, options.access)?;
        top.snapshot = options.snapshot.cloned();
        if options.below == Below::Nothing {
            let keys = self.keys_for(&top, Keys::Locked)?;
            return Ok(vec![top.into_layer(Backing::Detached, keys)?]);
        }
        let mut chain = Vec::new();
        self.add(&mut chain, top)?;
        if let Below::Stated { path, format } = options.below {
            let access = chain[0].access_below();
            let storage = self.opener.open(path, access);
            let storage = storage.map_err(|error| closes_loop(&chain, path).unwrap_or(error))?;
            let format = format_named(self.formats, format).map_err(|error| error.with_path(path))?;
            let stated = Found::new(path.to_owned(), storage, format, access)?;
            self.add(&mut chain, stated)?;
        }
        let most = match options.below {
            Below::Layers(below) => below.saturating_add(1),
            _ => usize::MAX,
        };
        while chain.len() < most
            && let Some(next) = self.below(&chain)?
        {
            self.add(&mut chain, next)?;
        }
        self.layers(chain)
    }

    /// What the last file of the chain is based on.
    fn below(&self, chain: &[Found<'a>]) -> Result<Option<Found<'a>>> {
        let Some(image) = chain.last() else {
            return Ok(None);
        };
        let Some(reference) = &image.references.backing else {
            return Ok(None);
        };
        let name = &reference.name;
        let Some(format) = reference.format.as_deref().filter(|format| !format.is_empty()) else {
            return Err(no_format(&image.path, name));
        };
        let format = format_named(self.formats, format).map_err(|error| error.with_path(&image.path))?;
        let access = image.access_below();
        let (permit, storage) = self.nested(chain, &image.path, name, Purpose::Backing, access)?;
        Found::new(permit.path, storage, format, access).map(Some)
    }

    /// Opens a file that the image at `from` names.
    fn nested(
        &self,
        chain: &[Found<'a>],
        from: &Path,
        name: &str,
        purpose: Purpose,
        access: Access,
    ) -> Result<(Permit, Arc<dyn Storage>)> {
        let permit = self.gate.admit(&OpenRequest { from, name, purpose })?;
        let storage = self.opener.open_nested(&permit, access).map_err(|error| {
            if let Some(looped) = closes_loop(chain, &permit.path) {
                return looped;
            }
            let hint = error.hint().map(ToOwned::to_owned);
            let message = format!("cannot open the {purpose} \"{}\"", escape(name));
            let outer = Error::new(error.kind(), message)
                .with_path(from)
                .with_source(error);
            match hint {
                Some(hint) => outer.with_hint(hint),
                None => outer,
            }
        })?;
        Ok((permit, storage))
    }

    /// Adds a file to the chain, with the file that holds its data, unless it is there or there are too many.
    fn add(&self, chain: &mut Vec<Found<'a>>, mut image: Found<'a>) -> Result<()> {
        not_twice(chain, &image.path, &*image.storage)?;
        if chain.len() == MAX_LAYERS {
            let message = format!("the chain has more than {MAX_LAYERS} layers");
            let hint = "join some of them, by converting or committing a part of the chain";
            return Err(Error::unsupported(message).with_path(&image.path).with_hint(hint));
        }
        if let Some(reference) = &image.references.data_file {
            let Some(name) = &reference.name else {
                let message = "the data is in an external file, and the image does not name it";
                return Err(Error::invalid(message).with_path(&image.path));
            };
            let (permit, storage) = self.nested(chain, &image.path, name, Purpose::DataFile, image.access)?;
            not_twice(chain, &permit.path, &*storage)?;
            not_twice(std::slice::from_ref(&image), &permit.path, &*storage)?;
            image.data_file = Some(storage);
        }
        chain.push(image);
        Ok(())
    }

    /// Makes devices of the files, from the last one up; each but the first stands alone.
    fn layers(&self, mut chain: Vec<Found<'_>>) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        while let Some(image) = chain.pop() {
            let backing = if chain.is_empty() && !layers.is_empty() {
                joined(layers.iter().rev())
            } else if image.references.backing.is_some() {
                Backing::Detached
            } else {
                Backing::None
            };
            let without = if self.locked { Keys::Locked } else { Keys::None };
            let keys = self.keys_for(&image, without)?;
            layers.push(image.into_layer(backing, keys)?);
        }
        layers.reverse();
        Ok(layers)
    }

    /// What a file is opened with; `without` if it is encrypted and nobody has a key.
    fn keys_for(&self, image: &Found<'_>, without: Keys) -> Result<Keys> {
        if !image.references.encrypted {
            return Ok(Keys::None);
        }
        let passphrases = self.keys.map(|keys| keys.passphrases(&image.path)).transpose()?;
        Ok(match passphrases {
            Some(passphrases) if !passphrases.is_empty() => Keys::Passphrases(passphrases),
            _ => without,
        })
    }
}

impl<'a> Found<'a> {
    /// A file with what it refers to.
    fn new(path: PathBuf, storage: Arc<dyn Storage>, format: &'a dyn Format, access: Access) -> Result<Self> {
        let references = format
            .references(&*storage)
            .map_err(|error| error.with_path(&path))?;
        Ok(Self {
            path,
            storage,
            format,
            references,
            data_file: None,
            access,
            snapshot: None,
        })
    }

    /// Opens the file, or a snapshot in it, as a device.
    fn into_layer(self, backing: Backing, keys: Keys) -> Result<Layer> {
        let storage = self.storage.clone();
        let opened = match &self.snapshot {
            None => self
                .format
                .open(storage, self.data_file.clone(), self.access, backing, keys),
            Some(snapshot) => self.format.open_snapshot(storage, snapshot, backing, keys),
        };
        Ok(Layer {
            device: opened.map_err(|error| error.with_path(&self.path))?,
            path: self.path,
            format: self.format.name(),
            storage: self.storage,
            data_file: self.data_file,
        })
    }

    fn access_below(&self) -> Access {
        Access {
            write: false,
            ..self.access
        }
    }

    fn files(&self) -> impl Iterator<Item = FileId> {
        let files = [Some(&self.storage), self.data_file.as_ref()];
        files.into_iter().flatten().filter_map(|file| file.file_id())
    }
}

/// What the active layer lies on, given the layers below it, the upper ones first.
pub(super) fn joined<'l>(layers: impl Iterator<Item = &'l Layer>) -> Backing {
    let mut devices: Vec<_> = layers.map(|layer| layer.device.clone()).collect();
    match devices.len() {
        0 => Backing::None,
        1 => Backing::Device(devices.remove(0)),
        _ => Backing::Device(Arc::new(ChainBase::new(devices))),
    }
}

/// Fails if `storage` is a file of the chain.
fn not_twice(chain: &[Found<'_>], path: &Path, storage: &dyn Storage) -> Result<()> {
    match storage.file_id().and_then(|id| earlier(chain, id)) {
        Some(earlier) => Err(looped(chain, path, earlier)),
        None => Ok(()),
    }
}

/// Whether a file that could not be opened is one of the chain: the lock that the chain holds on it may be why.
fn closes_loop(chain: &[Found<'_>], path: &Path) -> Option<Error> {
    let earlier = earlier(chain, id_of(path)?)?;
    Some(looped(chain, path, earlier))
}

fn earlier<'a>(chain: &'a [Found<'_>], id: FileId) -> Option<&'a Path> {
    let found = chain.iter().find(|image| image.files().any(|file| file == id))?;
    Some(&found.path)
}

#[cfg(unix)]
fn id_of(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().ok()?;
    Some(FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

#[cfg(not(unix))]
fn id_of(_: &Path) -> Option<FileId> {
    None
}

fn looped(chain: &[Found<'_>], path: &Path, earlier: &Path) -> Error {
    let from = chain.last().map_or(path, |image| &image.path);
    let message = format!(
        "the chain loops: {} is the file {} again, which is in the chain above it",
        escape(&path.to_string_lossy()),
        escape(&earlier.to_string_lossy()),
    );
    let name = escape(&from.to_string_lossy()).into_owned();
    Error::new(ErrorKind::Corrupt, message)
        .with_path(from)
        .with_hint(format!(
            "name another backing file: imgtool rebase -u -F FORMAT -b FILE {name}"
        ))
}

fn no_format(image: &Path, name: &str) -> Error {
    let name = escape(name);
    let message = format!(
        "the format of the backing file \"{name}\" is not stated, and is not guessed: a guest could have written \
         what a guess is based on"
    );
    let hint = format!(
        "state it: imgtool rebase -u -F FORMAT -b {name} {}",
        escape(&image.to_string_lossy())
    );
    Error::invalid(message).with_path(image).with_hint(hint)
}
