//! What the filesystem is made of.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Error, FileId, Result, escape};
use clap::Args;
use ext4_builder::oci::{self, Platform, Reference};
use ext4_builder::source::{
    Control, Directory, FileContexts, Filter, IdMap, Manifest, Pattern, copy_archive, copy_directory,
    copy_image,
};
use ext4_builder::{Builder, tar};

use crate::images::directory_of;

/// What becomes of the source on the way.
#[derive(Clone, Debug, Args)]
pub(in crate::commands) struct TreeArgs {
    /// Leave out what has this name, or with a slash in it, this path from the root: * ? [a-z] and ** are understood
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave out what is in directories that something is mounted on
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// Whom everything belongs to, as numbers
    #[arg(long, value_name = "UID[:GID]", conflicts_with_all = ["uid_map", "gid_map"])]
    owner: Option<String>,
    /// Make COUNT users from FROM on those from TO on; others stay
    #[arg(long, value_name = "FROM:TO[:COUNT]")]
    uid_map: Vec<String>,
    /// Make COUNT groups from FROM on those from TO on; others stay
    #[arg(long, value_name = "FROM:TO[:COUNT]")]
    gid_map: Vec<String>,
    /// Lay what a manifest says over the source: files, directories, links, devices, owners, modes and attributes, in
    /// TOML
    #[arg(long, value_name = "FILE")]
    manifest: Vec<PathBuf>,
    /// Label everything by the patterns in the `file_contexts` of a policy of `SELinux`
    #[arg(long, value_name = "FILE")]
    file_contexts: Option<PathBuf>,
}

/// What is laid over the source.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    manifests: Vec<(PathBuf, Manifest)>,
    file_contexts: Option<(PathBuf, FileContexts)>,
}

impl Overlays {
    pub(super) fn apply(&self, builder: &mut Builder<'_>, control: &Control<'_>) -> Result<()> {
        for (path, manifest) in &self.manifests {
            manifest
                .apply(builder, control)
                .map_err(|error| error.with_path(path))?;
        }
        if let Some((path, contexts)) = &self.file_contexts {
            contexts.apply(builder).map_err(|error| error.with_path(path))?;
        }
        Ok(())
    }
}

impl TreeArgs {
    /// Reads what is to be laid over the source.
    pub(super) fn overlays(&self) -> Result<Overlays> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|error| Error::io("read", error).with_path(path));
        let mut overlays = Overlays::default();
        for path in &self.manifest {
            let manifest = Manifest::parse(&read(path)?, directory_of(path));
            let manifest = manifest.map_err(|error| error.with_path(path))?;
            overlays.manifests.push((path.clone(), manifest));
        }
        if let Some(path) = &self.file_contexts {
            let contexts = FileContexts::parse(&read(path)?).map_err(|error| error.with_path(path))?;
            overlays.file_contexts = Some((path.clone(), contexts));
        }
        Ok(overlays)
    }

    /// Whether anything is added to the source.
    pub(in crate::commands) fn adds(&self) -> bool {
        !self.manifest.is_empty()
    }

    pub(in crate::commands) fn filter(&self) -> Result<Filter> {
        let mut filter = Filter {
            uids: id_map("--uid-map", &self.uid_map)?,
            gids: id_map("--gid-map", &self.gid_map)?,
            ..Filter::default()
        };
        for text in &self.exclude {
            filter.exclude.push(Pattern::new(text.as_bytes())?);
        }
        if let Some(text) = &self.owner {
            let ids: Option<Vec<u32>> = text.split(':').map(|id| id.parse().ok()).collect();
            match ids.as_deref() {
                Some([owner]) => filter.owner = Some(*owner),
                Some([owner, group]) => (filter.owner, filter.group) = (Some(*owner), Some(*group)),
                _ => {
                    let message = format!("--owner {}: this is no owner", escape(text));
                    return Err(Error::invalid(message).with_hint("give numbers, such as 0:0"));
                }
            }
        }
        Ok(filter)
    }

    /// How directories are gone through, when all is copied to the file `target`.
    pub(in crate::commands) fn directory(&self, target: Option<FileId>) -> Directory {
        Directory {
            one_file_system: self.one_file_system,
            refuse: target.into_iter().collect(),
        }
    }
}

fn id_map(option: &str, ranges: &[String]) -> Result<IdMap> {
    let mut map = IdMap::default();
    for text in ranges {
        let ids: Option<Vec<u32>> = text.split(':').map(|id| id.parse().ok()).collect();
        let (from, to, count) = match ids.as_deref() {
            Some(&[from, to]) => (from, to, 1),
            Some(&[from, to, count]) => (from, to, count),
            _ => {
                let message = format!("{option} {}: this is no range of ids", escape(text));
                return Err(Error::invalid(message).with_hint("give numbers, such as 100000:0:65536"));
            }
        };
        map.add(from, to, count)?;
    }
    Ok(map)
}

/// What there is to copy.
#[derive(Debug)]
pub(in crate::commands) enum Source {
    Directory(PathBuf),
    Archive {
        /// As it was named.
        path: PathBuf,
        file: File,
        /// Bytes, where that is known.
        len: u64,
    },
    Image(Box<oci::Image>),
}

impl Source {
    /// Looks at what is named: what a file or directory has as its name is that, whatever it looks like. Of a container
    /// image for several platforms, the one for `platform` is taken.
    pub(in crate::commands) fn open(path: &Path, platform: Option<&str>) -> Result<Self> {
        if path == Path::new("-") {
            return standard_input();
        }
        if fs::symlink_metadata(path).is_err()
            && let Some(reference) = Reference::parse(path.as_os_str())?
        {
            let platform = platform.map(str::parse::<Platform>).transpose()?;
            let image = oci::Image::open(&reference, platform.as_ref())?;
            return Ok(Self::Image(Box::new(image)));
        }
        let failed = |error| Error::io("open", error).with_path(path);
        let metadata = fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        Ok(Self::Archive {
            path: path.to_owned(),
            file: File::open(path).map_err(failed)?,
            len: if metadata.is_file() { metadata.len() } else { 0 },
        })
    }

    /// Bytes that will be read, where that is known, and otherwise 0.
    pub(in crate::commands) fn len(&self) -> u64 {
        match self {
            Self::Directory(_) | Self::Image(_) => 0,
            Self::Archive { len, .. } => *len,
        }
    }

    /// Refuses a target that is this source, or standard output: what is written does not come in order.
    pub(in crate::commands) fn refuse_as_target(&self, target: &Path) -> Result<()> {
        let (wrong, hint) = if target == Path::new("-") {
            (
                "a filesystem cannot be written to standard output",
                "name a file, and copy that; a file of this name is ./-",
            )
        } else if self.is(target) {
            (
                "the target is the archive that is read",
                "give the new image another name",
            )
        } else {
            return Ok(());
        };
        Err(Error::invalid(wrong).with_path(target).with_hint(hint))
    }

    /// Whether it is this file.
    fn is(&self, other: &Path) -> bool {
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = match self {
            Self::Directory(_) => return false,
            Self::Archive { file, .. } => file.metadata(),
            Self::Image(image) => fs::metadata(&image.reference().path),
        };
        match (own, fs::metadata(other)) {
            (Ok(source), Ok(other)) => id(source) == id(other),
            _ => false,
        }
    }

    /// The container image that it is.
    pub(in crate::commands) fn image(&self) -> Option<&oci::Image> {
        match self {
            Self::Image(image) => Some(image),
            _ => None,
        }
    }

    /// Copies it. Of an archive, `read` counts the bytes that were read.
    pub(in crate::commands) fn copy(
        self,
        builder: &mut Builder<'_>,
        filter: &Filter,
        directory: &Directory,
        read: &Arc<AtomicU64>,
        control: &Control<'_>,
    ) -> Result<()> {
        match self {
            Self::Directory(path) => copy_directory(builder, &path, directory, filter, control),
            Self::Archive { path, file, .. } => {
                let input = Counted {
                    input: file,
                    read: Arc::clone(read),
                };
                let tar = tar::Options {
                    names: host_names(),
                    ..tar::Options::default()
                };
                copy_archive(builder, input, tar, filter, control).map_err(|error| error.with_path(path))
            }
            Self::Image(image) => copy_image(builder, &image, filter, control),
        }
    }
}

/// Standard input, which holds an archive.
fn standard_input() -> Result<Source> {
    let named = |error: Error| error.with_path("-");
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let message = "standard input is a terminal: give it a tar archive";
        return Err(named(Error::invalid(message)));
    }
    let failed = |error| named(Error::io("read standard input", error));
    let file = File::from(stdin.as_fd().try_clone_to_owned().map_err(failed)?);
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        let message = "standard input is a directory: name it";
        return Err(named(Error::invalid(message)));
    }
    Ok(Source::Archive {
        path: "-".into(),
        file,
        len: if metadata.is_file() { metadata.len() } else { 0 },
    })
}

/// What the host calls users and groups, for access control lists that have names without numbers.
fn host_names() -> tar::Names {
    let read = |path| fs::read(path).unwrap_or_default();
    tar::Names::new(&read("/etc/passwd"), &read("/etc/group"))
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
    fn ranges_of_ids_are_numbers() {
        let map = id_map("--uid-map", &["1000:0".into(), "100000:1:65535".into()]).unwrap();
        assert_eq!([1000, 100_001, 5].map(|id| map.map(id)), [0, 2, 5]);
        for wrong in ["", "1", "a:b", "1:2:3:4", "1:2:0", "-1:2"] {
            let error = id_map("--uid-map", &[wrong.into()]).unwrap_err();
            assert!(!error.message().is_empty(), "{wrong}");
        }
    }
}
