//! Where an image's files are: in a directory, or in a tar archive that is read in place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Error, Result};
use rustix::fs::OFlags;

use super::digest::Digest;
use super::fault::{Fault, read_error};
use crate::tar::{Archive, Kind, Options};

/// Bytes that a JSON document may have.
const MAX_DOCUMENT: u64 = 16 << 20;
/// Links that are followed in an archive, one after the other.
const MAX_LINKS: usize = 8;
/// Files that an archive may have.
const MAX_MEMBERS: usize = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(super) enum Store {
    Directory(PathBuf),
    Archive {
        file: Arc<File>,
        members: HashMap<Vec<u8>, Member>,
    },
}

/// What an archive has under a name.
#[derive(Clone, Debug)]
pub(super) enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// Another name, from the archive's root.
    Link(Vec<u8>),
}

/// A file that is read from its start.
pub(super) struct Blob {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Store {
    /// A directory.
    pub(super) fn directory(path: &Path) -> Result<Self> {
        let metadata = path.metadata().map_err(|error| Error::io("open", error))?;
        if !metadata.is_dir() {
            let error = Error::invalid("this is no directory");
            return Err(error.with_hint("an archive of one is named with oci-archive: or docker-archive:"));
        }
        Ok(Self::Directory(path.to_owned()))
    }

    /// A tar archive: finds out where in it the files are.
    pub(super) fn archive(path: &Path) -> Result<Self> {
        let file = Arc::new(open_file(path, &path.to_string_lossy())?);
        let len = file
            .metadata()
            .map_err(|error| Error::io("look at the file", error))?
            .len();
        let whole = Blob {
            file: Arc::clone(&file),
            offset: 0,
            end: len,
        };
        let mut archive = Archive::new(BufReader::with_capacity(1 << 16, whole), Options::default());
        let mut members = HashMap::new();
        while let Some(entry) = archive.next_entry().map_err(explain_compression)? {
            let member = match entry.kind {
                Kind::File { size, ref data } if data.iter().all(|range| *range == (0..size)) => {
                    Member::File {
                        offset: archive.data_offset(),
                        len: size,
                    }
                }
                // As docker does for layers that come twice.
                Kind::Symlink { target } => match join(&entry.path, &target) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                Kind::HardLink { target } => Member::Link(target),
                _ => continue,
            };
            members.insert(entry.path, member);
            if members.len() > MAX_MEMBERS {
                return Err(Fault::TooMany {
                    what: "files",
                    limit: MAX_MEMBERS,
                }
                .error());
            }
        }
        Ok(Self::Archive { file, members })
    }

    /// A file and its length; none where there is no such.
    pub(super) fn open(&self, name: &str) -> Result<Option<(Blob, u64)>> {
        let (file, offset, len) = match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                if !path.exists() {
                    return Ok(None);
                }
                let file = open_file(&path, name)?;
                let metadata = file
                    .metadata()
                    .map_err(|error| Error::io("look at the file", error))?;
                (Arc::new(file), 0, metadata.len())
            }
            Self::Archive { file, members } => {
                let mut found = members.get(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match found {
                        Some(Member::Link(target)) => found = members.get(target),
                        _ => break,
                    }
                }
                match found {
                    Some(Member::File { offset, len }) => (Arc::clone(file), *offset, *len),
                    Some(Member::Link(_)) => {
                        return Err(Fault::Link {
                            what: name.to_owned(),
                        }
                        .error());
                    }
                    None => return Ok(None),
                }
            }
        };
        let end = offset + len;
        Ok(Some((Blob { file, offset, end }, len)))
    }

    /// All of a document.
    pub(super) fn document(&self, name: &str, what: &str) -> Result<Option<Vec<u8>>> {
        let Some((mut blob, len)) = self.open(name)? else {
            return Ok(None);
        };
        if len > MAX_DOCUMENT {
            return Err(Fault::TooLong {
                what: what.to_owned(),
                size: len,
                limit: MAX_DOCUMENT,
            }
            .error());
        }
        let mut bytes = Vec::new();
        blob.read_to_end(&mut bytes)
            .map_err(|error| read_error(what, error))?;
        Ok(Some(bytes))
    }

    /// All of a document that must come to a digest.
    pub(super) fn verified(&self, digest: &Digest, size: u64, what: &str) -> Result<Vec<u8>> {
        let what = format!("{what} {digest}");
        let bytes = self.document(&digest.path(), &what)?;
        let bytes = bytes.ok_or_else(|| Fault::Missing(what.clone()).error())?;
        let found = bytes.len() as u64;
        if found != size {
            return Err(Fault::Size {
                what,
                stated: size,
                found,
            }
            .error());
        }
        digest.check(&what, &bytes)?;
        Ok(bytes)
    }
}

/// Opens a regular file, and waits for nobody at the other end of anything else.
fn open_file(path: &Path, name: &str) -> Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| Error::io("open", error).with_path(path))?;
    let metadata = file
        .metadata()
        .map_err(|error| Error::io("look at the file", error).with_path(path))?;
    if !metadata.is_file() {
        return Err(Fault::NoFile(name.to_owned()).error());
    }
    Ok(file)
}

/// An archive must be read in place, and so cannot be compressed.
fn explain_compression(error: Error) -> Error {
    if error.offset() == Some(0) {
        return error
            .with_hint("give a tar archive that is not compressed, as skopeo and docker save make it");
    }
    error
}

/// Where a link that is at `path` leads, from the root; none for one that leads out.
fn join(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    if target.starts_with(b"/") {
        return None;
    }
    let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    names.pop();
    for name in target.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (self.end - self.offset).min(buffer.len() as u64) as usize;
        let len = self.file.read_at(&mut buffer[..len], self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_the_archive() {
        for (path, target, leads) in [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("a", "b", Some("b")),
            ("a/b", "./c", Some("a/c")),
            ("a", "../b", None),
            ("a/b", "/etc/passwd", None),
        ] {
            let found = join(path.as_bytes(), target.as_bytes());
            assert_eq!(found.as_deref(), leads.map(str::as_bytes), "{path} {target}");
        }
    }
}
