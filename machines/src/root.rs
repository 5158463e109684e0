//! The root filesystem on a disk: found by what partitions say they are for, or else by what is on them.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use block::chain::{Chain, ChainOptions};
use block::gate::Deny;
use block::{BlockDevice, Error, ErrorKind, Result, escape};
use ext4_reader::{FileKind, Filesystem, Inode, LastLink};
use raw::HostOpener;
use raw::partition::{Partition, PartitionTable, Selector, split_name};

/// The root filesystem on a disk.
#[derive(Clone)]
pub struct Root {
    /// It, alone.
    pub device: Arc<dyn BlockDevice>,
    /// The number of its partition; `None` where it is all of the disk.
    pub partition: Option<u32>,
}

impl Root {
    /// The root filesystem on a disk, if there is one that can be read: on a partition for that, or else on one with an `/etc`.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn find(disk: &Arc<dyn BlockDevice>) -> Result<Option<Self>> {
        let Ok(table) = PartitionTable::read(&**disk, None) else {
            let whole = Self {
                device: disk.clone(),
                partition: None,
            };
            return Ok(Filesystem::is_on(&**disk)?.then_some(whole));
        };
        let mut likely = Vec::new();
        for partition in table.partitions() {
            let selector: Selector = partition.number.to_string().parse()?;
            // What reaches past the end is another's to tell of.
            let Ok(window) = table.open(disk.clone(), &selector) else {
                continue;
            };
            if !Filesystem::is_on(&window)? {
                continue;
            }
            let root = Self {
                device: Arc::new(window),
                partition: Some(partition.number),
            };
            likely.push((root.likelihood(partition), root));
        }
        // The first of those that are as likely.
        let mut best = None;
        for (likelihood, root) in likely {
            if best.as_ref().is_none_or(|(most, _)| likelihood > *most) {
                best = Some((likelihood, root));
            }
        }
        Ok(best.map(|(_, root)| root))
    }

    /// How likely it is that this is the root.
    fn likelihood(&self, partition: &Partition) -> u8 {
        let kind = partition.kind.name().unwrap_or_default();
        let etc = || {
            let filesystem = self.filesystem().ok()?;
            let inode = filesystem.resolve(b"/etc", LastLink::Follow).ok()?;
            (inode.kind() == FileKind::Directory).then_some(())
        };
        match () {
            () if kind.starts_with("root-") => 3,
            () if etc().is_some() => 2,
            () if partition.name == "root" => 1,
            () => 0,
        }
    }

    /// The filesystem, for reading.
    ///
    /// # Errors
    /// As [`Filesystem::open`].
    pub fn filesystem(&self) -> Result<Filesystem> {
        Filesystem::open(self.device.clone())
    }

    /// The content of a file of at most `most` bytes.
    ///
    /// # Errors
    /// `InvalidInput` for what is not there, no regular file, or longer; `Corrupt`, `Io`.
    pub fn read(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        read(&self.filesystem()?, path, most)
    }
}

/// The filesystem that a name of an image is of, for reading: the one on the partition that it names (`IMAGE#2`, `IMAGE#name:data`),
/// and otherwise the root filesystem on the disk. An image that is based on another is refused, as those that a recipe is made of.
///
/// # Errors
/// `InvalidInput` for a disk without a root filesystem, and a partition that is not there; those of opening an image and a
/// filesystem.
pub fn filesystem_in(name: &Path) -> Result<Filesystem> {
    let (image, partition) = split_name(name, Path::is_file)?;
    let formats: [&dyn block::Format; 2] = [&qcow2::Qcow2, &raw::Raw];
    let chain = Chain::open_with(
        &HostOpener::new(),
        &formats,
        &Deny,
        image,
        &ChainOptions::default(),
    )?;
    let disk = chain.device();
    let opened = match partition {
        Some(selector) => PartitionTable::read(&*disk, None)
            .and_then(|table| table.open(disk, &selector))
            .and_then(|window| Filesystem::open(Arc::new(window))),
        None => Root::find(&disk).and_then(|root| match root {
            Some(root) => root.filesystem(),
            None => Err(Error::invalid("there is no ext4 filesystem on its disk")),
        }),
    };
    opened.map_err(|error| error.with_path(name))
}

/// The content of a file of at most `most` bytes.
pub(crate) fn read(filesystem: &Filesystem, path: &str, most: u64) -> Result<Vec<u8>> {
    let inode = filesystem.resolve(path.as_bytes(), LastLink::Follow)?;
    let wrong = |what| Error::invalid(format!("{} {what}", escape(path)));
    if inode.kind() != FileKind::Regular {
        return Err(wrong("is no regular file"));
    }
    if inode.size() > most {
        return Err(wrong("is too long"));
    }
    contents(filesystem, &inode)
}

/// The content of a regular file, whose size was looked at.
pub(crate) fn contents(filesystem: &Filesystem, inode: &Inode) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = filesystem.reader(inode)?.read_to_end(&mut bytes);
    read.map_err(|error| {
        let io = |error| Error::new(ErrorKind::Io, "read").with_source(error);
        error.downcast::<Error>().unwrap_or_else(io)
    })?;
    Ok(bytes)
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("partition", &self.partition)
            .finish_non_exhaustive()
    }
}
