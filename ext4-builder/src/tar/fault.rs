//! The ways in which an archive contradicts its format, or asks for what is not done, each with the values seen.
//!
//! The enum is private to the module: callers see an [`ErrorKind`] and a sentence, and a new check is no change of
//! the interface.

use block::{Error, ErrorKind, escape};

/// What is wrong with an archive, as found while parsing.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Fault {
    #[error("this is no tar archive: its first 512 bytes are not a header")]
    NoArchive,
    #[error("this is no tar archive: it is {0}")]
    Other(&'static str),
    #[error("this is no header: its checksum is {stored:#o}, and its bytes add up to {sum:#o}")]
    Checksum { stored: i64, sum: i64 },
    #[error("the archive ends early, within {0}")]
    Truncated(&'static str),
    #[error("the archive ends early: the blocks of zeros that mark its end are missing")]
    NoEndMark,
    #[error("a lone block of zeros is followed by more: one of zeros too, or nothing, was to be expected")]
    LoneZeroBlock,
    #[error("more data follows the mark of the archive's end")]
    DataAfterEnd,
    #[error("an extended header is followed by no entry")]
    DanglingHeader,
    #[error("the {field} is {text:?}, which is no number")]
    NotANumber { field: &'static str, text: String },
    #[error("the {field} is {value}, which is out of range")]
    OutOfRange { field: &'static str, value: i128 },
    #[error("the {what} has {len} bytes, more than the {limit} that are taken")]
    TooLong {
        what: &'static str,
        len: u64,
        limit: u64,
    },
    #[error("the {what} has more than {limit} parts, where no path leads on a running system")]
    TooDeep { what: &'static str, limit: usize },
    #[error("record {0:?} of an extended header is malformed")]
    Record(String),
    #[error("the {what} contains a NUL byte")]
    Nul { what: &'static str },
    #[error("the {0} is empty")]
    Empty(&'static str),
    #[error("the {what} {path:?} has a component \"..\"")]
    ParentDirectory { what: &'static str, path: String },
    #[error("the {what} {path:?} is absolute")]
    Absolute { what: &'static str, path: String },
    #[error("only a directory can be the root of the tree")]
    RootIsNoDirectory,
    #[error("type {0:?} of entry is not known")]
    UnknownType(char),
    #[error("{0} are not supported")]
    Unsupported(&'static str),
    #[error("sparse format {major}.{minor} is not known")]
    SparseVersion { major: u64, minor: u64 },
    #[error("the sparse map is damaged: {0}")]
    SparseMap(&'static str),
    #[error("the access control list {text:?} is malformed: {problem}")]
    Acl { text: String, problem: &'static str },
    #[error(
        "the access control list names the {what} {name:?} without a number, and etc/passwd and etc/group in the tree have none"
    )]
    UnknownName { what: &'static str, name: String },
}

impl Fault {
    /// The error for it, wherever it is.
    pub(super) fn error(self) -> Error {
        let error = Error::new(self.kind(), self.to_string());
        match self.hint() {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// The error for it, at an offset of the archive, and in an entry where its name is known.
    pub(super) fn at(self, offset: u64, entry: Option<&[u8]>) -> Error {
        let kind = self.kind();
        let hint = self.hint();
        let message = match entry {
            Some(name) => format!("entry {:?}: {self}", printable(name)),
            None => self.to_string(),
        };
        let error = Error::new(kind, message).with_offset(offset);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownType(_)
            | Self::Unsupported(_)
            | Self::SparseVersion { .. }
            | Self::TooDeep { .. }
            | Self::TooLong { .. }
            | Self::UnknownName { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Corrupt,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoArchive => "give a tar archive, plain or compressed by gzip, zstd or xz",
            Self::Other("a text") => {
                "look at it: what a server says in place of a file is text, too; give a tar archive, plain or compressed by gzip, zstd or \
                 xz"
            }
            Self::Other(_) => {
                "give a tar archive, plain or compressed by gzip, zstd or xz; what this holds can be unpacked, and the directory given"
            }
            Self::Truncated(_) => "what made or sent it stopped before it was done: make or fetch it again",
            Self::NoEndMark => {
                "what made or sent it stopped before it was done: make or fetch it again; if nothing is missing, \
                 --allow-missing-end takes it"
            }
            Self::DataAfterEnd => {
                "archives that were appended with cat are joined by 'tar --concatenate' instead"
            }
            Self::ParentDirectory { .. } => "make the archive with names that stay within its root",
            Self::Absolute { .. } => "make the archive with relative names, as tar does without -P",
            Self::UnknownName { .. } => {
                "say where such names have numbers with --names DIR, or make the archive with bsdtar or with tar --xattrs \
                 --xattrs-include='*', which store numbers"
            }
            Self::Unsupported("parts of multi-volume archives") => "join the volumes first",
            _ => return None,
        })
    }
}

/// Bytes from an archive, fit for a message.
pub(super) fn printable(bytes: &[u8]) -> String {
    const LIMIT: usize = 200;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LIMIT)]);
    let mut text = escape(&text).into_owned();
    if bytes.len() > LIMIT {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_it_once() {
        for (fault, text) in [
            (
                Fault::UnknownType('Z'),
                "type 'Z' of entry is not known at offset 0x200",
            ),
            (
                Fault::NoArchive,
                "this is no tar archive: its first 512 bytes are not a header at offset 0x200",
            ),
        ] {
            assert_eq!(fault.at(512, None).to_string(), text);
        }
    }
}
