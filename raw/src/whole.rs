//! Files that are read as a whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use block::{Error, Result};

/// All bytes of a file, a pipe or what else is read to an end, of which there are `most` at most. `what` says what is read, with its
/// article, as `a manifest`.
///
/// No memory is taken for more, whatever the file is: `/dev/zero`, say, or a disk that was named instead.
///
/// # Errors
/// `Io` as from the host; `InvalidInput` for more bytes.
pub fn read_whole(path: &Path, what: &str, most: u64) -> Result<Vec<u8>> {
    let failed = |error| Error::io("read", error).with_path(path);
    let file = File::open(path).map_err(failed)?;
    // A file that tells its length is not read to find out; what a pipe or a device has is seen at its end.
    let found = file.metadata().map_err(failed)?;
    let known = if found.is_file() { found.len() } else { 0 };
    let mut bytes = Vec::new();
    if known <= most {
        file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if known.max(bytes.len() as u64) > most {
        let message = format!("{what} has at most {most} bytes, and this has more");
        return Err(Error::invalid(message).with_path(path));
    }
    Ok(bytes)
}

/// The same, of a text.
///
/// # Errors
/// As [`read_whole`]; `InvalidInput` for what is not UTF-8.
pub fn read_text(path: &Path, what: &str, most: u64) -> Result<String> {
    let bytes = read_whole(path, what, most)?;
    String::from_utf8(bytes).map_err(|_| Error::invalid("this is no text: it is not UTF-8").with_path(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_longer_is_refused_and_what_has_no_end_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, b"12345678").unwrap();
        assert_eq!(read_whole(&path, "a text", 8).unwrap(), b"12345678");
        for (path, most) in [(&*path, 7), (Path::new("/dev/zero"), 100)] {
            let error = read_whole(path, "a text", most).unwrap_err().to_string();
            let expected = format!("a text has at most {most} bytes, and this has more");
            assert!(error.contains(&expected), "{error}");
        }
        assert_eq!(read_whole(Path::new("/dev/null"), "a text", 8).unwrap(), b"");
        let error = read_whole(directory.path(), "a text", 8).unwrap_err();
        assert!(error.to_string().contains("directory"), "{error}");
    }
}
