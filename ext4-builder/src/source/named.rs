//! Sources by their names, as commands and recipes have them.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Error, Result};

use super::{Control, Directory, Filter, LeftOut, copy_archive, copy_directory, copy_image};
use crate::oci::{Image, Platform, Reference};
use crate::{Builder, tar};

/// A tree that was named, and is ready to be copied.
#[derive(Debug)]
pub struct Source {
    name: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Directory,
    Archive {
        file: File,
        /// Bytes, or 0 where that is not known.
        len: u64,
        read: Arc<AtomicU64>,
    },
    Image(Box<Image>),
}

/// What becomes of a source on the way into a filesystem. By default, nothing.
#[derive(Clone, Debug, Default)]
pub struct Copying {
    /// What is left out and changed of any source.
    pub filter: Filter,
    /// How a directory is gone through.
    pub directory: Directory,
    /// How an archive is read.
    pub archive: tar::Options,
}

impl Source {
    /// Opens what is named: a directory, a tar archive, `-` for one on standard input, or a container image as
    /// [`Reference`] has it (`oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`). What a file or
    /// directory has as its name is that, whatever it looks like. Of a container image for several platforms, the one for
    /// `platform` is taken; of an archive, nothing is read yet.
    ///
    /// # Errors
    /// `Io` for what is not there; `InvalidInput` for a standard input that cannot be an archive; those of [`Image::open`].
    pub fn open(name: &Path, platform: Option<&Platform>) -> Result<Self> {
        if name == Path::new("-") {
            return standard_input().map_err(|error| error.with_path(name));
        }
        if fs::symlink_metadata(name).is_err()
            && let Some(reference) = Reference::parse(name.as_os_str())?
        {
            let image = Box::new(Image::open(&reference, platform)?);
            return Ok(Self::of(name, Kind::Image(image)));
        }
        let failed = |error| {
            let error = Error::io("open", error).with_path(name);
            match name.to_string_lossy().split_once("://") {
                Some(("docker" | "https" | "http", _)) => error.with_hint(
                    "fetch it first: skopeo copy docker://NAME oci:DIR:TAG, and then name oci:DIR:TAG",
                ),
                _ => error,
            }
        };
        if fs::metadata(name).map_err(failed)?.is_dir() {
            return Ok(Self::of(name, Kind::Directory));
        }
        let file = File::open(name).map_err(failed)?;
        let len = len(&file).map_err(failed)?;
        Ok(Self::archive(name, file, len))
    }

    fn of(name: &Path, kind: Kind) -> Self {
        let name = name.to_owned();
        Self { name, kind }
    }

    fn archive(name: &Path, file: File, len: u64) -> Self {
        let read = Arc::default();
        Self::of(name, Kind::Archive { file, len, read })
    }

    /// Bytes of an archive, where that is known, and otherwise 0.
    pub fn archive_size(&self) -> u64 {
        match &self.kind {
            Kind::Archive { len, .. } => *len,
            _ => 0,
        }
    }

    /// How many bytes of an archive were read, while it is [copied](Self::copy): what [`Control::report`] counts is without
    /// its compression.
    pub fn archive_read(&self) -> Arc<AtomicU64> {
        match &self.kind {
            Kind::Archive { read, .. } => Arc::clone(read),
            _ => Arc::default(),
        }
    }

    /// The directory that it is.
    pub fn directory(&self) -> Option<&Path> {
        matches!(self.kind, Kind::Directory).then_some(&*self.name)
    }

    /// The container image that it is.
    pub fn image(&self) -> Option<&Image> {
        match &self.kind {
            Kind::Image(image) => Some(image),
            _ => None,
        }
    }

    /// Whether it is read from this file, which then must not be written to.
    pub fn is_in(&self, other: &Path) -> bool {
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = match &self.kind {
            Kind::Directory => return false,
            Kind::Archive { file, .. } => file.metadata(),
            Kind::Image(image) => fs::metadata(&image.reference().path),
        };
        match (own, fs::metadata(other)) {
            (Ok(own), Ok(other)) => id(own) == id(other),
            _ => false,
        }
    }

    /// Copies all of it into the root of a filesystem, but the extended attributes that it returns.
    ///
    /// # Errors
    /// Those of [`copy_directory`], [`copy_archive`] and [`copy_image`].
    pub fn copy(
        self,
        builder: &mut Builder<'_>,
        copying: &Copying,
        control: &Control<'_>,
    ) -> Result<LeftOut> {
        let Copying {
            filter,
            directory,
            archive,
        } = copying;
        match self.kind {
            Kind::Directory => copy_directory(builder, &self.name, directory, filter, control),
            Kind::Archive { file, read, .. } => {
                let input = Counted { input: file, read };
                copy_archive(builder, input, archive.clone(), filter, control)
                    .map_err(|error| error.with_path(self.name))
            }
            Kind::Image(image) => copy_image(builder, &image, filter, control),
        }
    }
}

/// Standard input, which holds an archive.
fn standard_input() -> Result<Source> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Error::invalid(
            "standard input is a terminal: give it a tar archive",
        ));
    }
    let failed = |error| Error::io("read standard input", error);
    let file = File::from(stdin.as_fd().try_clone_to_owned().map_err(failed)?);
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(Error::invalid("standard input is a directory: name it"));
    }
    let len = len(&file).map_err(failed)?;
    Ok(Source::archive(Path::new("-"), file, len))
}

/// Bytes of a regular file, and of anything else 0.
fn len(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    Ok(if metadata.is_file() { metadata.len() } else { 0 })
}

/// An input whose bytes are counted.
struct Counted {
    input: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buf)?;
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_name_is_meant_before_what_the_name_looks_like() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("oci:tree")).unwrap();
        fs::write(at("archive"), [0; 1024]).unwrap();
        let open = |name: &Path| Source::open(name, None).unwrap();
        assert!(matches!(open(&at("oci:tree")).kind, Kind::Directory));
        let archive = open(&at("archive"));
        assert_eq!((archive.archive_size(), archive.image().is_none()), (1024, true));
        assert!(archive.is_in(&directory.path().join("./archive")) && !archive.is_in(&at("oci:tree")));
        assert!(!open(&at("oci:tree")).is_in(&at("oci:tree")));
        let error = Source::open(&at("none"), None).unwrap_err();
        assert_eq!(error.path(), Some(&*at("none")));
        let error = Source::open(Path::new("oci:none/layout:tag"), None).unwrap_err();
        assert_eq!(error.path(), Some(Path::new("none/layout")));
    }

    #[test]
    fn an_archive_is_copied_and_what_was_read_of_it_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        fs::write(&path, [0; 10_240]).unwrap();
        let source = Source::open(&path, None).unwrap();
        let read = source.archive_read();
        let storage = block::MemStorage::new();
        let options = crate::Options::new(crate::Size::Shrink, [1; 16]);
        let mut builder = Builder::new(&storage, options).unwrap();
        let copying = Copying::default();
        source
            .copy(&mut builder, &copying, &Control::unwatched())
            .unwrap();
        assert_eq!(read.load(Ordering::Relaxed), 10_240);
    }
}
