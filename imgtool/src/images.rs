//! Opening images and what they are based on, as the command line allows.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use block::chain::{self, Below, Chain, ChainOptions};
use block::gate::{Deny, OpenGate, OpenRequest, Permissive, Permit, Purpose, Within};
use block::{Access, Error, ErrorKind, FileOpener, Format, Result, SnapshotSelector, Storage};
use raw::lock::Conflict;
use raw::{HostOpener, Io};

use crate::arguments::Nested;
use crate::image_name::hint_for_missing;
use crate::keys;
use crate::opener::Opener;
use crate::stores::{image_to_open, refuse_base};

/// The formats that images can be in.
pub(crate) const FORMATS: [&dyn Format; 3] = [&qcow2::Qcow2, &encryption::LuksFormat, &raw::Raw];

/// How images are opened: by the names of their files, or of the machines that they belong to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opening {
    pub(crate) nested: Option<Nested>,
    pub(crate) access: Access,
    /// Past the host's page cache.
    pub(crate) direct: bool,
    pub(crate) io: Io,
}

impl Opening {
    /// The image at `path` with everything below it. Without a `format` it is found out.
    pub(crate) fn chain(self, path: &Path, format: Option<&str>) -> Result<Chain> {
        self.open(path, format, Below::AsStored)
    }

    /// The same, for a change of what is on the disk where it is: no other disk in a store may be based on that, nor may it be mounted, be it by a loop
    /// device over a file.
    pub(crate) fn chain_to_change(self, path: &Path, format: Option<&str>) -> Result<Chain> {
        let chain = self.chain(path, format)?;
        if self.access.write {
            let active = &chain.layers()[0];
            refuse_base(&active.path)?;
            for file in std::iter::once(&active.storage).chain(&active.data_file) {
                let refused = file.file_id().map_or(Ok(()), raw::refuse_mounted);
                refused.map_err(|error| error.with_path(file.path().unwrap_or(path)))?;
            }
        }
        Ok(chain)
    }

    /// The same, to be looked at: images whose data is encrypted take no key.
    pub(crate) fn chain_to_look_at(self, path: &Path, format: Option<&str>) -> Result<Chain> {
        let options = ChainOptions {
            format,
            locked: true,
            ..ChainOptions::default()
        };
        self.open_with(path, options)
    }

    /// A snapshot of the image at `path`, with everything below it.
    pub(crate) fn snapshot(
        self,
        path: &Path,
        format: Option<&str>,
        snapshot: &SnapshotSelector,
    ) -> Result<Chain> {
        let options = ChainOptions {
            format,
            snapshot: Some(snapshot),
            ..ChainOptions::default()
        };
        self.open_with(path, options)
    }

    /// The image at `path` alone: no other file is opened.
    pub(crate) fn alone(self, path: &Path, format: Option<&str>) -> Result<Chain> {
        self.open(path, format, Below::Nothing)
    }

    /// The image at `path` with so many images below it: a part of its chain.
    pub(crate) fn part(self, path: &Path, format: Option<&str>, below: usize) -> Result<Chain> {
        self.open(path, format, Below::Layers(below))
    }

    /// The file at `path` and its format, without a look at what is in it.
    pub(crate) fn file(self, path: &Path, format: Option<&str>) -> Result<(Arc<dyn Storage>, &'static str)> {
        let path = &*image_to_open(path, self.access)?;
        let opener = self.opener();
        let storage = opener
            .open(path, self.access)
            .map_err(|error| explain_missing(self.explain(error), path))?;
        let format = match format {
            Some(name) => chain::format_named(&FORMATS, name),
            None => chain::probe(&FORMATS, &*storage),
        };
        let format = format.map_err(|error| error.with_path(path))?;
        Ok((storage, format.name()))
    }

    /// The image at `path` with the file that holds its data, and nothing below it.
    pub(crate) fn detached(self, path: &Path, format: Option<&str>) -> Result<Chain> {
        self.open(path, format, Below::Layers(0))
    }

    fn opener(self) -> Opener {
        Opener(HostOpener::new().direct(self.direct).io(self.io).exclusive(true))
    }

    fn open(self, path: &Path, format: Option<&str>, below: Below<'_>) -> Result<Chain> {
        let options = ChainOptions {
            format,
            below,
            ..ChainOptions::default()
        };
        self.open_with(path, options)
    }

    fn open_with(self, path: &Path, mut options: ChainOptions<'_>) -> Result<Chain> {
        let path = &*image_to_open(path, self.access)?;
        options.access = self.access;
        options.keys = Some(keys::given());
        let gate = Gate(self.nested);
        let opener = self.opener();
        let chain = Chain::open_with(&opener, &FORMATS, &gate, path, &options);
        chain.map_err(|error| explain_missing(self.explain(error), path))
    }

    /// Says which option of the command line would have made the difference.
    fn explain(self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Key => keys::explain(error),
            // No lock, but a device that is in use: what is to be ended is said.
            ErrorKind::Locked if Conflict::of(&error).is_none() => error,
            ErrorKind::Locked if self.access.write => error.with_hint("wait for it or stop it"),
            ErrorKind::Locked => error.with_hint(
                "wait for it or stop it; commands that have -U read an image as it is being written to",
            ),
            ErrorKind::Denied => {
                error.with_hint("allow it with --nested any, if you trust the maker of the image")
            }
            _ => error,
        }
    }
}

/// Says of a partition where an image was wanted that it is one.
fn explain_missing(error: Error, path: &Path) -> Error {
    let missing = error.io_kind() == Some(std::io::ErrorKind::NotFound) && error.path() == Some(path);
    match missing.then(|| hint_for_missing(path)).flatten() {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// The active image of a chain, which must be a qcow2 image: only such have `what`.
pub(crate) fn qcow2_with<'a>(chain: &'a Chain, what: &str) -> Result<&'a qcow2::Image> {
    let device: &dyn Any = &**chain.active();
    device.downcast_ref().ok_or_else(|| {
        let layer = &chain.layers()[0];
        Error::unsupported(format!("a {} image has no {what}", layer.format)).with_path(&layer.path)
    })
}

/// What `--nested` says. Without it a backing file, which is only read, may be anywhere, if it is a regular file; a data
/// file, which is written to, beside the image only. Block devices have to be asked for.
#[derive(Clone, Copy, Debug)]
struct Gate(Option<Nested>);

impl OpenGate for Gate {
    fn admit(&self, request: &OpenRequest<'_>) -> Result<Permit> {
        match (self.0, request.purpose) {
            (Some(Nested::Deny), _) => Deny.admit(request),
            (Some(Nested::Any), _) => Permissive::default().with_block_devices().admit(request),
            (None, Purpose::Backing) => Permissive::default().admit(request),
            (Some(Nested::Beside), _) | (None, Purpose::DataFile) => {
                Within::new(directory_of(request.from))?.admit(request)
            }
        }
    }
}

/// The directory that a file lies in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The file that an image at `image` means by a backing file called `name`, as it is shown and looked up.
pub(crate) fn backing_path(image: &Path, name: &str) -> std::path::PathBuf {
    match image.parent() {
        Some(parent) => parent.join(name),
        None => name.into(),
    }
}
