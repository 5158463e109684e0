//! What an image may open: the caller's decision, asked for every file that an image names.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use crate::Result;

/// Why an image names a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// It is the backing file: opened for reading.
    Backing,
    /// It holds the image's data: opened for whatever the image is.
    DataFile,
}

/// A file that an image asks to have opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// The image that names it.
    pub from: &'a Path,
    /// The name as stored in the image: nobody has looked at it yet.
    pub name: &'a str,
    /// What the file is to it.
    pub purpose: Purpose,
}

/// Leave to open one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The file to open.
    pub path: PathBuf,
    /// The directory that it must lie in when it is opened, so that a link put in its way afterwards changes nothing.
    pub within: Option<PathBuf>,
    /// It may be a block device, not just a regular file.
    pub block_device: bool,
}

/// Decides what images may open by naming it.
pub trait OpenGate: Debug + Send + Sync {
    /// Leave to open what `request` asks for.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`](crate::ErrorKind::Denied), saying what was asked for and by whom.
    fn admit(&self, request: &OpenRequest<'_>) -> Result<Permit>;
}
