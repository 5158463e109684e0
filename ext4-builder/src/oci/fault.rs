//! The ways in which an image contradicts its format or itself, or asks for what is not done, each with the values seen.
//!
//! The enum is private to the module: callers see an [`ErrorKind`] and a sentence, and a new check is no change of
//! the interface.

use block::{Error, ErrorKind};

/// What is wrong with an image.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Fault {
    #[error("this is no {format}: it has no {missing}")]
    NoImage {
        format: &'static str,
        missing: &'static str,
    },
    #[error("{what} is no JSON that it could be: {problem}")]
    Json { what: String, problem: String },
    #[error("{what} has {size} bytes, and {limit} at most are taken")]
    TooLong { what: String, size: u64, limit: u64 },
    #[error("there are more than {limit} {what}, which nobody needs")]
    TooMany { what: &'static str, limit: usize },
    #[error("{what} has {found} bytes, and should have {stated}")]
    Size { what: String, stated: u64, found: u64 },
    #[error("{what} is not what was meant: its digest is {found}, and should be {stated}")]
    Digest {
        what: String,
        stated: String,
        found: String,
    },
    #[error("{what} was not read to its end")]
    Unread { what: String },
    #[error("{text:?} is no digest")]
    NoDigest { text: String },
    #[error("digests by {0} are not supported")]
    Algorithm(String),
    #[error("{0} is missing")]
    Missing(String),
    #[error("{0} is no regular file")]
    NoFile(String),
    #[error("{what}: a link leads on and on, or to nowhere")]
    Link { what: String },
    #[error("{0} is both an index and a manifest")]
    Ambiguous(String),
    #[error("{0} is neither an index nor a manifest of an image")]
    NoManifest(String),
    #[error("indexes name each other more than {0} times")]
    Nested(usize),
    #[error("the image has {layers} layers, and its configuration knows {known}")]
    Layers { layers: usize, known: usize },
    #[error("layers of type {0:?} are not supported")]
    LayerType(String),
    #[error(
        "entry {0:?}: names that start with .wh. stand for what is removed, and this one can stand for nothing"
    )]
    Whiteout(String),
}

impl Fault {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoImage { .. } => ErrorKind::InvalidInput,
            Self::TooLong { .. } | Self::TooMany { .. } | Self::Algorithm(_) | Self::LayerType(_) => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Corrupt,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Size { .. } | Self::Digest { .. } | Self::Missing(_) => {
                "it was not copied as a whole, or changed since: fetch the image again"
            }
            Self::LayerType(_) => "only layers that are plain tar, or tar with gzip or zstd, are",
            _ => return None,
        })
    }
}

impl Fault {
    /// The error for it.
    pub(super) fn error(self) -> Error {
        let fault = self;
        let hint = fault.hint();
        let error = Error::new(fault.kind(), fault.to_string());
        let error = match fault.kind() {
            ErrorKind::Corrupt => error.with_source(fault),
            _ => error,
        };
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// Of an input that is read by others: an error of ours on its way through theirs.
pub(super) fn read_error(what: &str, error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io(format!("read {what}"), error),
    }
}
