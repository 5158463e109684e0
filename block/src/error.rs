//! Errors: a kind to act on, a context to read, a cause to chain.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of everything that touches an image.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host refused an I/O; the cause is an [`io::Error`].
    Io,
    /// The image uses something this build does not do. The image itself is sound.
    Unsupported,
    /// The image contradicts its own format. The cause says how.
    Corrupt,
    /// A request reaches past the end of the disk.
    OutOfBounds,
    /// A write to something opened read-only.
    ReadOnly,
    /// The caller's policy ([`OpenGate`](crate::gate::OpenGate)) refused to open a file an image names.
    Denied,
    /// Another process holds a conflicting lock on the image.
    Locked,
    /// The image is encrypted, and no passphrase was given that opens it.
    Key,
    /// The host has no room left.
    NoSpace,
    /// An argument that can never work: a cluster size that is no power of two, a missing format.
    InvalidInput,
    /// The caller asked for the operation to stop (Ctrl-C, a cancelled job).
    Interrupted,
}

/// An error: its [kind](ErrorKind), what was being done, to which file, where, and why.
///
/// Cheap to clone: an image that has latched after a failed write hands the first error to every later caller.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    path: Option<PathBuf>,
    offset: Option<u64>,
    hint: Option<Cow<'static, str>>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of a kind, with the sentence that says what happened ("cannot grow a read-only image").
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            path: None,
            offset: None,
            hint: None,
            source: None,
        }))
    }

    /// An I/O error with what was being done ("read", "sync"). ENOSPC and EDQUOT become
    /// [`ErrorKind::NoSpace`], EROFS and EACCES stay [`ErrorKind::Io`].
    pub fn io(op: impl Into<Cow<'static, str>>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self::new(kind, op).with_source(source)
    }

    /// [`ErrorKind::InvalidInput`].
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::ReadOnly`], with what was tried ("write", "discard").
    pub fn read_only(op: &str) -> Self {
        Self::new(
            ErrorKind::ReadOnly,
            format!("cannot {op}: the image is open read-only"),
        )
    }

    /// [`ErrorKind::OutOfBounds`] for a request of `len` bytes at `offset` on a disk of `size` bytes.
    pub fn out_of_bounds(op: &str, offset: u64, len: u64, size: u64) -> Self {
        let message = format!("{op} of {len} bytes reaches past the end of the disk ({size} bytes)");
        Self::new(ErrorKind::OutOfBounds, message).with_offset(offset)
    }

    /// [`ErrorKind::Corrupt`]; the format's own error, with the values it saw, is the cause and the message.
    pub fn corrupt(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::told_by(ErrorKind::Corrupt, source)
    }

    /// An error of which its cause, a format's own error that callers know, says all.
    pub fn told_by(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::new(kind, source.to_string()).with_source(source)
    }

    /// The same error, with the file it happened to. A path that is there already stays: the innermost knows best.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        if self.0.path.is_none() {
            self.edit().path = Some(path.as_ref().to_owned());
        }
        self
    }

    /// The same error, with the path where one is known.
    #[must_use]
    pub fn with_path_of(self, path: Option<&Path>) -> Self {
        match path {
            Some(path) => self.with_path(path),
            None => self,
        }
    }

    /// The same error, told of `to` where it was told of `from`: for a file that has another name until it is whole.
    #[must_use]
    pub fn with_path_replaced(mut self, from: &Path, to: &Path) -> Self {
        if self.path() == Some(from) {
            self.edit().path = Some(to.to_owned());
        }
        self
    }

    /// The same error, with the byte offset in the file (or on the disk) it happened at.
    #[must_use]
    pub fn with_offset(mut self, offset: u64) -> Self {
        self.edit().offset = Some(offset);
        self
    }

    /// The same error, with what the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.edit().hint = Some(hint.into());
        self
    }

    /// The same error, with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.edit().source = Some(Arc::new(source));
        self
    }

    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The sentence that says what happened, without path, offset or cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file it happened to.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The byte offset it happened at.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    fn edit(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }
}

/// `PATH: what happened at offset N: cause`, on one line; control characters in the path are escaped.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(path) = &inner.path {
            write!(f, "{}: ", escape(&path.to_string_lossy()))?;
        }
        f.write_str(&inner.message)?;
        if let Some(offset) = inner.offset {
            write!(f, " at offset {offset:#x}")?;
        }
        match &inner.source {
            // A corruption's message is its cause, and so is that of a limit.
            Some(source) if source.to_string() != inner.message => write!(f, ": {source}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Io => error.io_kind().unwrap_or(io::ErrorKind::Other),
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::Corrupt => io::ErrorKind::InvalidData,
            ErrorKind::OutOfBounds => io::ErrorKind::UnexpectedEof,
            ErrorKind::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            ErrorKind::Denied | ErrorKind::Key => io::ErrorKind::PermissionDenied,
            ErrorKind::Locked => io::ErrorKind::ResourceBusy,
            ErrorKind::NoSpace => io::ErrorKind::StorageFull,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::Interrupted => io::ErrorKind::Interrupted,
        };
        io::Error::new(kind, error)
    }
}

impl Error {
    /// The kind of the [`io::Error`] that caused this one, if one did.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.0
            .source
            .as_ref()?
            .downcast_ref::<io::Error>()
            .map(io::Error::kind)
    }
}

/// `text` with control characters escaped (`\n`, `\u{1b}`): a name from an image must not steer a terminal.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().flat_map(|c| {
        let (plain, coded) = if c.is_control() {
            (None, Some(c.escape_default()))
        } else {
            (Some(c), None)
        };
        plain.into_iter().chain(coded.into_iter().flatten())
    });
    Cow::Owned(escaped.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_line_with_path_offset_and_cause() {
        let error = Error::io("read", io::Error::other("cable pulled"))
            .with_path("a\nb")
            .with_offset(512);
        assert_eq!(error.to_string(), "a\\nb: read at offset 0x200: cable pulled");
    }

    #[test]
    fn innermost_path_stays() {
        let error = Error::invalid("no").with_path("inner").with_path("outer");
        assert_eq!(error.path(), Some(Path::new("inner")));
    }

    #[test]
    fn a_full_disk_is_its_own_kind() {
        assert_eq!(
            Error::io("write", io::ErrorKind::StorageFull.into()).kind(),
            ErrorKind::NoSpace
        );
    }
}
