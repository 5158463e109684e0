//! The layers of an image as changes, from the lowest up ("Image Layer Filesystem Changeset").
//!
//! # Whiteouts
//! A name that starts with `.wh.` stands for what a layer removes, whatever is stored under it: files mostly, and other
//! names of one file in layers that were made by aufs. `.wh..wh..opq` empties the directory that it is in. Both are about
//! what lower layers have: where in its layer one comes makes no difference, and that is for whoever applies the
//! changes to see to.
//!
//! Names of aufs's own (`.wh..wh.aufs`, `.wh..wh.orph`) are passed over, and so is what is in such directories. Only
//! `.wh..wh.plnk` matters: files in it are what other entries are names of. It belongs to its layer alone, and the end of the
//! layer removes it.
//!
//! A character device 0:0 is how overlayfs keeps whiteouts on a disk. In a layer it is none: the specification knows names
//! only, and those who make layers from an overlay translate it. So it is taken for what it says that it is.

use block::{Error, ErrorKind, Result, escape};

use super::digest::Ended;
use super::fault::Fault;
use super::image::{Image, LayerArchive};
use crate::tar::Entry;

const PREFIX: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The directory, in the root, of files that have other names.
pub(crate) const PLINK: &[u8] = b".wh..wh.plnk";

/// What a layer does to what those below it have made. Paths start at the root, without a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // There is one at a time, and it mostly is an entry.
pub enum Change {
    /// A layer begins; the lowest is 0. All changes up to the next are its own.
    Layer(usize),
    /// A file, a directory or anything else, in place of what had the name before; a directory keeps what is in it.
    Put(Entry),
    /// What lower layers have by this path is removed.
    Remove(Vec<u8>),
    /// What lower layers have in this directory is removed.
    Clear(Vec<u8>),
}

impl Image {
    /// All that its layers do, in order.
    pub fn changes(&self) -> Changes<'_> {
        Changes {
            image: self,
            next: 0,
            layer: None,
            failed: None,
        }
    }

    /// An error of a layer's contents, told of the layer; of any error, where the image is.
    pub(crate) fn explain(&self, layer: usize, error: Error) -> Error {
        let name = self.layer_name(layer);
        let path = &self.reference().path;
        let of_contents = matches!(
            error.kind(),
            ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::InvalidInput
        );
        if !of_contents || error.path().is_some() || error.message().contains(&name) {
            return error.with_path(path);
        }
        let mut explained = Error::new(error.kind(), format!("{name}: {}", error.message())).with_path(path);
        if let Some(hint) = error.hint() {
            explained = explained.with_hint(hint.to_owned());
        }
        match error.offset() {
            Some(offset) => explained.with_offset(offset),
            None => explained,
        }
    }
}

/// The changes of an image, read from its layers as they are asked for.
///
/// What a layer has said may be relied on when the next one begins or there are no more changes: only then all of it was
/// what its digests say.
pub struct Changes<'a> {
    image: &'a Image,
    next: usize,
    layer: Option<(LayerArchive, [Ended; 2])>,
    failed: Option<Error>,
}

impl Changes<'_> {
    /// The next change, or none when all layers have ended as they should.
    ///
    /// # Errors
    /// `Corrupt` for what is no layer, or not the one that it should be; `Unsupported`, `Io`. After an error there are no
    /// more changes: every call returns it again.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let change = self.advance();
        change.map_err(|error| self.fail(error))
    }

    /// Reads on in the data of the latest entry, as [`Archive::read_data`](crate::tar::Archive::read_data) does.
    ///
    /// # Errors
    /// As [`next_change`](Self::next_change).
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let read = match &mut self.layer {
            Some((archive, _)) => archive.read_data(buffer),
            None => Ok(0),
        };
        read.map_err(|error| self.fail(error))
    }

    /// Bytes of the current layer that were read, without its compression.
    pub fn offset(&self) -> u64 {
        self.layer
            .as_ref()
            .map_or(0, |(archive, _)| archive.data_offset())
    }

    fn fail(&mut self, error: Error) -> Error {
        let error = error.with_path(&self.image.reference().path);
        self.failed = Some(error.clone());
        error
    }

    fn advance(&mut self) -> Result<Option<Change>> {
        loop {
            let Some((archive, ended)) = &mut self.layer else {
                if self.next == self.image.layers() {
                    return Ok(None);
                }
                self.layer = Some(self.image.open_layer(self.next)?);
                self.next += 1;
                return Ok(Some(Change::Layer(self.next - 1)));
            };
            let index = self.next - 1;
            match archive.next_entry() {
                Err(error) => return Err(self.image.explain(index, error)),
                Ok(Some(entry)) => {
                    let change = classify(entry).map_err(|error| self.image.explain(index, error))?;
                    if change.is_some() {
                        return Ok(change);
                    }
                }
                Ok(None) => {
                    let what = self.image.layer_name(index);
                    for ended in ended {
                        ended.check(&what)?;
                    }
                    self.layer = None;
                }
            }
        }
    }
}

/// What an entry of a layer stands for; none for what is passed over.
fn classify(entry: Entry) -> Result<Option<Change>> {
    let (parent, name) = split(&entry.path);
    for component in parent.split(|byte| *byte == b'/') {
        if component.starts_with(META) && component != PLINK {
            return Ok(None);
        }
        if component.starts_with(PREFIX) && component != PLINK {
            return Err(whiteout(&entry.path));
        }
    }
    if name == OPAQUE {
        return Ok(Some(Change::Clear(parent.to_vec())));
    }
    if name == PLINK && parent.is_empty() {
        return Ok(Some(Change::Put(entry)));
    }
    if name.starts_with(META) {
        return Ok(None);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Some(Change::Put(entry))),
        // These would remove the directory itself, or the one above it.
        Some(b"" | b"." | b"..") => Err(whiteout(&entry.path)),
        Some(removed) if parent.is_empty() => Ok(Some(Change::Remove(removed.to_vec()))),
        Some(removed) => Ok(Some(Change::Remove([parent, b"/", removed].concat()))),
    }
}

fn whiteout(path: &[u8]) -> Error {
    Fault::Whiteout(escape(&String::from_utf8_lossy(path)).into_owned()).error()
}

/// The directory that a path is in, and its name there.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Kind, Time};

    fn entry(path: &str) -> Entry {
        Entry {
            path: path.into(),
            kind: Kind::File {
                size: 0,
                data: Vec::new(),
            },
            mode: 0o644,
            uid: 0,
            gid: 0,
            user: Vec::new(),
            group: Vec::new(),
            mtime: Time::default(),
            atime: None,
            ctime: None,
            created: None,
            xattrs: Vec::new(),
            named_lists: Vec::new(),
        }
    }

    #[test]
    fn names_say_what_is_removed() {
        let change = |path: &str| classify(entry(path)).unwrap();
        assert_eq!(change("a/.wh.b"), Some(Change::Remove(b"a/b".to_vec())));
        assert_eq!(change(".wh.b"), Some(Change::Remove(b"b".to_vec())));
        assert_eq!(change("a/b/.wh..wh..opq"), Some(Change::Clear(b"a/b".to_vec())));
        assert_eq!(change(".wh..wh..opq"), Some(Change::Clear(Vec::new())));
        assert_eq!(change("a/.wh...c"), Some(Change::Remove(b"a/..c".to_vec())));
        for passed_over in [
            ".wh..wh.aufs",
            "a/.wh..wh.orph",
            ".wh..wh.orph/x/y",
            "a/.wh..wh.plnk",
        ] {
            assert_eq!(change(passed_over), None, "{passed_over}");
        }
        for put in ["a", "wh.a", ".wh", "a.wh.b", ".wh..wh.plnk", ".wh..wh.plnk/1.2"] {
            assert_eq!(change(put), Some(Change::Put(entry(put))), "{put}");
        }
        for wrong in [".wh.", ".wh..", ".wh...", "a/.wh..", ".wh.a/b"] {
            classify(entry(wrong)).unwrap_err();
        }
    }
}
