//! What an image may open: the caller's decision, asked for every file that an image names.
//!
//! The names come from inside images, that is, from whoever made them. A gate sees each before anything is
//! opened, and decides where it leads and whether to go there. Four are ready made: [`Deny`] for those who expect
//! no references at all, [`Within`] for a directory of images, [`Explicit`] for a list, and [`Permissive`] for
//! people at a command line who trust their images. All but `Deny` read names with [`resolve`].
//!
//! ```
//! use block::ErrorKind;
//! use block::gate::{OpenGate, OpenRequest, Permissive, Purpose};
//! use std::path::Path;
//!
//! let ask = |name| {
//!     Permissive::default().admit(&OpenRequest {
//!         from: Path::new("/images/overlay.qcow2"),
//!         name,
//!         purpose: Purpose::Backing,
//!     })
//! };
//! assert_eq!(ask("base.raw")?.path, Path::new("/images/base.raw"));
//! assert_eq!(ask("nbd://example.org/disk").unwrap_err().kind(), ErrorKind::Unsupported);
//! # Ok::<(), block::Error>(())
//! ```

use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};

use crate::Result;

mod name;
mod policies;

pub use name::resolve;
pub use policies::{Deny, Explicit, Permissive, Within};

/// Why an image names a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// It is the backing file: opened for reading.
    Backing,
    /// It holds the image's data: opened for whatever the image is.
    DataFile,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backing => "backing file",
            Self::DataFile => "data file",
        })
    }
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
