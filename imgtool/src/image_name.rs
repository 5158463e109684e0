//! Names of images, and of partitions in them, as [`split_name`] has them: `IMAGE#2`, `IMAGE#name:root`, `IMAGE#uuid:GUID`.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::view::Window;
use block::{BlockDevice, Error, ErrorKind, Result, escape};
use machines::{Root, nearest};
use raw::partition::{PartitionTable, Selector, split_name};

use crate::images::directory_of;
use crate::opener::is_export;
use crate::stores::is_machine;

/// The commands that take partitions, for messages.
const COMMANDS: &str = "compare, convert, dd, fs, info, map, measure and mkfs";

/// What an argument names: an image, or a partition of the disk in one.
#[derive(Clone, Debug)]
pub(crate) struct ImageName {
    /// The image's file.
    pub(crate) path: PathBuf,
    pub(crate) partition: Option<Selector>,
    /// All of it.
    text: PathBuf,
}

impl ImageName {
    pub(crate) fn parse(text: &Path) -> Result<Self> {
        let (path, partition) = split_name(text, |image| {
            is_export(image) || image.metadata().is_ok_and(|file| !file.is_dir()) || is_machine(image)
        })?;
        Ok(Self {
            path: path.to_owned(),
            partition,
            text: text.to_owned(),
        })
    }

    /// The disk that is named, on the whole disk of the image.
    pub(crate) fn on(&self, disk: Arc<dyn BlockDevice>) -> Result<Arc<dyn BlockDevice>> {
        if self.partition.is_none() {
            return Ok(disk);
        }
        let range = self.range_on(&*disk)?;
        Ok(Arc::new(Window::new(disk, range.start, range.end - range.start)?))
    }

    /// The same for a filesystem: where it is the whole disk of a machine that is named, its root filesystem is meant, wherever
    /// on the disk that is.
    pub(crate) fn filesystem_on(&self, disk: Arc<dyn BlockDevice>) -> Result<Arc<dyn BlockDevice>> {
        let named = self.on(disk)?;
        if self.partition.is_none()
            && is_machine(&self.path)
            && let Some(root) = Root::find(&named)?
        {
            return Ok(root.device);
        }
        Ok(named)
    }

    /// Where on the whole disk of the image it is, in bytes.
    pub(crate) fn range_on(&self, disk: &dyn BlockDevice) -> Result<Range<u64>> {
        let Some(selector) = &self.partition else {
            return Ok(0..disk.size());
        };
        let table = PartitionTable::read(disk, None).map_err(|error| self.explain(error))?;
        let partition = table.locate(selector).map_err(|error| self.explain(error))?;
        Ok(partition.start()..partition.start() + partition.len())
    }

    /// Bytes in the sectors that the table with the partition counts in: those of whoever will use it.
    pub(crate) fn sector_size_on(&self, disk: &dyn BlockDevice) -> Result<u64> {
        let table = PartitionTable::read(disk, None).map_err(|error| self.explain(error))?;
        Ok(table.sector().bytes())
    }

    /// Says which image it is about, and what to do about damage.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let damaged = error.kind() == ErrorKind::Corrupt && error.hint().is_none();
        let error = error.with_path(&self.path);
        if damaged {
            let image = self.path.display();
            error.with_hint(format!(
                "imgtool partition verify {image} lists all that is wrong with the table"
            ))
        } else {
            error
        }
    }

    /// Fails for a partition where a new image is to be made.
    pub(crate) fn must_be_new(&self) -> Result<()> {
        match &self.partition {
            None => Ok(()),
            Some(_) => Err(Error::invalid("a partition is no new image")
                .with_path(&self.text)
                .with_hint("imgtool convert -n writes into a partition that is there")),
        }
    }
}

/// Names of a directory that are looked at, at most, for those that may have been meant.
const NEIGHBOURS: usize = 10_000;

/// The hint for an image that is not there: where it has the name of a partition, that it has, and else what name beside it may have been
/// meant.
pub(crate) fn hint_for_missing(path: &Path) -> Option<String> {
    if ImageName::parse(path).ok()?.partition.is_some() {
        return Some(format!("only {COMMANDS} take partitions: name the image alone"));
    }
    let (directory, wanted) = (directory_of(path), path.file_name()?.to_str()?);
    let names = fs::read_dir(directory).ok()?.take(NEIGHBOURS).flatten();
    let names: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let near = nearest(wanted, names.iter().map(String::as_str));
    (!near.is_empty()).then(|| format!("there is {}", escape(&near.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(directory: &Path, name: &str) -> (String, Option<String>) {
        let name = ImageName::parse(&directory.join(name)).unwrap();
        let path = name
            .path
            .strip_prefix(directory)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        (path, name.partition.map(|partition| partition.to_string()))
    }

    #[test]
    fn a_file_has_its_own_name_and_others_are_taken_apart() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        for file in ["a", "a#2", "b#1"] {
            fs::write(directory.join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", directory.join("a#4")).unwrap();
        for (name, path, partition) in [
            ("a", "a", None),
            ("a#2", "a#2", None),
            ("a#4", "a#4", None),
            ("a#1", "a", Some("1")),
            ("a#2#1", "a#2", Some("1")),
            ("b#1#name:x#1", "b#1", Some("name:x#1")),
            ("a#name:", "a", Some("name:")),
            // No partition, or no image: a name like any other.
            ("a#x", "a#x", None),
            ("a#", "a#", None),
            ("c#1", "c#1", None),
        ] {
            assert_eq!(
                parsed(directory, name),
                (path.to_owned(), partition.map(str::to_owned)),
                "{name}"
            );
        }
        for wrong in ["a#0", "a#uuid:1", "a#99999999999"] {
            let error = ImageName::parse(&directory.join(wrong)).unwrap_err();
            assert!(
                error.to_string().contains("names no partition") || wrong == "a#uuid:1",
                "{error}"
            );
        }
    }
}
