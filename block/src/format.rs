//! How a chain of images is opened by code that knows no format: each format says what it is called, what an
//! image refers to, and how a layer is opened.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use crate::gate::Permit;
use crate::{BackingReference, BlockDevice, DataFileReference, Overlay, Result, Storage};

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

/// What other files an image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// The file below.
    pub backing: Option<BackingReference>,
    /// The file that holds the data, for a format that keeps only its tables in its own.
    pub data_file: Option<DataFileReference>,
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
    /// `Corrupt`, `Unsupported`, `Io`; `InvalidInput` for a backing that the image does not name, or
    /// [`Backing::None`] for one that it does.
    fn open(
        &self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        access: Access,
        backing: Backing,
    ) -> Result<Arc<dyn Overlay>>;
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
