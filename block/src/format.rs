//! How a chain of images is opened by code that knows no format: each format says what it is called, what an
//! image refers to, and how a layer is opened.

use std::fmt::{self, Debug, Display};
use std::path::Path;
use std::sync::Arc;

use crate::gate::Permit;
use crate::{
    BackingReference, BlockDevice, DataFileReference, Error, Keys, Overlay, Result, Storage, escape,
};

/// What an image is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Writes are allowed.
    pub write: bool,
    /// Take no lock that another process could hold against: read what somebody else may be writing.
    pub force_share: bool,
}

impl Access {
    /// Read only, locked against writers.
    pub const READ: Self = Self {
        write: false,
        force_share: false,
    };
    /// Read and write, locked against everybody else.
    pub const WRITE: Self = Self {
        write: true,
        force_share: false,
    };
}

/// What lies below a layer that is being opened.
#[derive(Clone, Debug, Default)]
pub enum Backing {
    /// The image must not name a backing file; one that does is refused, so that none is forgotten.
    #[default]
    None,
    /// The image may name one, and the caller takes care of it: what this layer does not hold reads as zeros here.
    Detached,
    /// What this layer does not hold is read from this device, and as zeros past its end.
    Device(Arc<dyn BlockDevice>),
}

/// What other files an image names, and what else it takes to open it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// The file below.
    pub backing: Option<BackingReference>,
    /// The file that holds the data, for a format that keeps only its tables in its own.
    pub data_file: Option<DataFileReference>,
    /// Its data is encrypted: it is opened with [`Keys`].
    pub encrypted: bool,
}

/// A disk-image format, as far as opening a chain needs it.
pub trait Format: Debug + Send + Sync {
    /// The name as on a command line and in a backing reference: `raw`, `qcow2`.
    fn name(&self) -> &'static str;

    /// Whether a file that starts with `head` (its first 512 bytes or more, fewer if it is shorter) is in this
    /// format. Only ever asked about a file that the user named: never probe what a guest could have written.
    fn probe(&self, head: &[u8]) -> bool;

    /// What the image in `storage` refers to, without opening any of it.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Io`.
    fn references(&self, storage: &dyn Storage) -> Result<References>;

    /// Opens a layer.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Io`; `Key` for an encrypted image that `keys` do not open; `InvalidInput` for a backing that the image does not name, or
    /// [`Backing::None`] for one that it does.
    fn open(
        &self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        access: Access,
        backing: Backing,
        keys: Keys,
    ) -> Result<Arc<dyn Overlay>>;

    /// Opens an internal snapshot as a layer, for reading. It lies on the same backing as the image itself.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Unsupported` for a format without snapshots; `InvalidInput` where there is no such
    /// snapshot, or more than one.
    fn open_snapshot(
        &self,
        storage: Arc<dyn Storage>,
        snapshot: &SnapshotSelector,
        backing: Backing,
        keys: Keys,
    ) -> Result<Arc<dyn Overlay>> {
        let _ = (snapshot, backing, keys);
        Err(
            Error::unsupported(format!("{} images have no internal snapshots", self.name()))
                .with_path_of(storage.path()),
        )
    }
}

/// Which internal snapshot of an image is meant.
///
/// ```
/// use block::SnapshotSelector;
///
/// assert_eq!(SnapshotSelector::parse("clean")?, SnapshotSelector::Either("clean".into()));
/// let exact = SnapshotSelector::parse("snapshot.id=2,snapshot.name=clean")?;
/// assert!(exact.matches("2", "clean") && !exact.matches("3", "clean"));
/// # Ok::<(), block::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SnapshotSelector {
    /// The one that has this as its ID or as its name; none if that fits two.
    Either(String),
    /// The one with this ID and this name, of which one is given at least.
    Exactly {
        /// The ID.
        id: Option<String>,
        /// The name.
        name: Option<String>,
    },
}

impl SnapshotSelector {
    /// The one with this ID, whatever its name.
    pub fn id(id: impl Into<String>) -> Self {
        Self::Exactly {
            id: Some(id.into()),
            name: None,
        }
    }

    /// The one with this name, whatever its ID.
    pub fn name(name: impl Into<String>) -> Self {
        Self::Exactly {
            id: None,
            name: Some(name.into()),
        }
    }

    /// What people write: an ID or a name, or `snapshot.id=ID`, `snapshot.name=NAME` or both with a comma between
    /// (two commas stand for one that is part of a value).
    ///
    /// # Errors
    /// `InvalidInput` for something else after `snapshot.`, or for nothing at all.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid("the name of a snapshot is empty"));
        }
        if !text.starts_with("snapshot.") {
            return Ok(Self::Either(text.to_owned()));
        }
        let (mut id, mut name) = (None, None);
        let doubled = text.replace(",,", "\0");
        for part in doubled.split(',') {
            let part = part.replace('\0', ",");
            let field = match part.split_once('=') {
                Some(("snapshot.id", value)) => Some((&mut id, value)),
                Some(("snapshot.name", value)) => Some((&mut name, value)),
                _ => None,
            };
            let Some((field, value)) = field else {
                let message = format!("\"{}\" names no snapshot", escape(&part));
                let hint = "write snapshot.id=ID, snapshot.name=NAME, or both with a comma between";
                return Err(Error::invalid(message).with_hint(hint));
            };
            *field = Some(value.to_owned());
        }
        Ok(Self::Exactly { id, name })
    }

    /// Whether the snapshot with this ID and this name may be meant.
    pub fn matches(&self, id: &str, name: &str) -> bool {
        match self {
            Self::Either(either) => either == id || either == name,
            Self::Exactly {
                id: wanted_id,
                name: wanted_name,
            } => {
                wanted_id.as_ref().is_none_or(|wanted| wanted == id)
                    && wanted_name.as_ref().is_none_or(|wanted| wanted == name)
            }
        }
    }
}

impl Display for SnapshotSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Either(either) => write!(f, "\"{}\"", escape(either)),
            Self::Exactly { id, name } => {
                let id = id.as_ref().map(|id| format!("ID \"{}\"", escape(id)));
                let name = name.as_ref().map(|name| format!("name \"{}\"", escape(name)));
                let parts: Vec<String> = id.into_iter().chain(name).collect();
                f.write_str(&parts.join(" and "))
            }
        }
    }
}

/// Opens files for a chain, with locks; the host's side of it.
pub trait FileOpener: Debug + Send + Sync {
    /// Opens the file that the user named.
    ///
    /// # Errors
    /// `Io`, `Locked`, `InvalidInput` for what is no file or block device.
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Storage>>;

    /// Opens a file that an image names, as its gate permits: a regular file, or a block device where the permit
    /// says so; never something that blocks, and never through a link out of the permit's directory.
    ///
    /// # Errors
    /// As [`open`](Self::open), and `Denied`.
    fn open_nested(&self, permit: &Permit, access: Access) -> Result<Arc<dyn Storage>>;
}
