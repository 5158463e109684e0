//! The documents of a store: TOML, replaced whole, and read with errors that say where.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use block::{Error, Result};
use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a document at most.
const MAX_LEN: u64 = 1 << 20;

/// Opens a file to read it. What there would be something to wait for, such as a pipe that somebody has put in its place, is refused.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no file"));
    }
    Ok(file)
}

/// Reads the document at `path`; `None` where there is none.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read(path)? else { return Ok(None) };
    parse(&text).map(Some).map_err(|error| error.with_path(path))
}

/// The text of the document at `path`; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    let failed = |error| Error::io("read", error).with_path(path);
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(Error::invalid(format!("a document of more than {MAX_LEN} bytes")).with_path(path));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::invalid("it is not UTF-8").with_path(path))?;
    Ok(Some(text))
}

/// The document that `text` is.
///
/// # Errors
/// `InvalidInput`, with line and column of what is wrong.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    toml_edit::de::from_str(text).map_err(|error| {
        let what = error.message().trim_end();
        Error::invalid(match error.span() {
            Some(span) => {
                let (line, column) = position(text, span.start);
                format!("line {line}, column {column}: {what}")
            }
            None => what.to_owned(),
        })
    })
}

/// Line and column, from 1 on, of the byte at `offset`.
pub(crate) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = String::from_utf8_lossy(&text.as_bytes()[..offset.min(text.len())]);
    let line = before.split('\n').count();
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

/// The text of a document.
pub(super) fn text_of<T: Serialize>(document: &T) -> Result<String> {
    toml_edit::ser::to_string_pretty(document)
        .map_err(|error| Error::invalid(format!("it cannot be written as TOML: {error}")))
}

/// Writes a new file at `path`, durably.
pub(super) fn create(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let file = create_unsynced(path, content, mode)?;
    file.sync_all()
        .map_err(|error| Error::io("sync", error).with_path(path))
}

/// Writes a new file at `path`, for who syncs many at once.
pub(super) fn create_unsynced(path: &Path, content: &[u8], mode: u32) -> Result<File> {
    let failed = |error| Error::io("write", error).with_path(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    Ok(file)
}

/// Syncs a directory, so that names in it stay what they are.
pub(super) fn sync(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::io("sync the directory", error).with_path(directory))
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", error).with_path(path))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn errors_say_where() {
        for (text, start) in [
            ("cpus = 1\nmemory = \"1X\"\n", "line 2, column 10: "),
            ("cpus = 1\n  ram = 1\n", "line 2, column 3: "),
            ("cpus = ", "line 1, column 8: "),
        ] {
            let error = parse::<Settings>(text).unwrap_err();
            assert!(error.to_string().contains(start), "{error}");
        }
    }
}
