//! Files that are made, and contents that are replaced.

use std::io::Read;
use std::slice;

use block::{Error, Result, escape};
use ext4_builder::format::{FileType, MAX_LINKS, device, fast_symlink, symlink_block};
use ext4_reader::LastLink;

use crate::Editor;
use crate::directory::Name;
use crate::inode::{CHANGED, Inode, MODIFIED};
use crate::options::{Attributes, Contents, Special};

/// The longest name.
const MAX_NAME: usize = 255;

/// A name in a directory, whether it is there or not.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) directory: u32,
    pub(crate) name: Vec<u8>,
    /// What it stands for.
    pub(crate) inode: Option<u32>,
}

impl Editor {
    /// Gives a regular file these contents, in the place of those that it has. A new one is made where there is none; where a
    /// symbolic link is, the file that it leads to is changed.
    ///
    /// # Errors
    /// `InvalidInput` for a path that leads nowhere or to what is no regular file; `NoSpace`; `Corrupt`, `Io`.
    pub fn put(&mut self, path: &[u8], contents: &[u8], attributes: &Attributes) -> Result<()> {
        self.put_from(path, contents.len() as u64, &mut &*contents, attributes)
    }

    /// [`put`](Self::put) with the next `len` bytes of `contents`.
    ///
    /// # Errors
    /// As there; `InvalidInput` if there are fewer.
    pub fn put_from(
        &mut self,
        path: &[u8],
        len: u64,
        contents: &mut dyn Read,
        attributes: &Attributes,
    ) -> Result<()> {
        let whole = 0..len;
        let contents = Contents {
            len,
            data: slice::from_ref(&whole),
            read: &mut |buffer, _| contents.read_exact(buffer),
        };
        self.put_sparse(path, contents, attributes)
    }

    /// [`put`](Self::put) with contents that may have holes, which take no room.
    ///
    /// # Errors
    /// As there; `InvalidInput` for parts that are not in order, and if there are fewer bytes than they say.
    pub fn put_sparse(&mut self, path: &[u8], contents: Contents<'_>, attributes: &Attributes) -> Result<()> {
        self.atomically(|editor| {
            let place = editor.place(path)?;
            if place.inode.is_none() {
                return editor.make_file(&place, contents, attributes);
            }
            let number = editor.filesystem.resolve(path, LastLink::Follow)?.number().into();
            let mut inode = editor.load(number)?;
            if inode.file_type() != FileType::Regular {
                return Err(about(path, "it is no regular file"));
            }
            inode.check_changeable()?;
            editor.drop_content(&mut inode)?;
            editor.write_content(&mut inode, contents)?;
            inode.set_time(MODIFIED, editor.options.time);
            inode.set_time(CHANGED, editor.options.time);
            editor.store(&mut inode)?;
            editor.apply(number, attributes)
        })
    }

    fn make_file(&mut self, place: &Place, contents: Contents<'_>, attributes: &Attributes) -> Result<()> {
        let mut inode = self.make_inode(place, FileType::Regular, 0o644, attributes)?;
        self.empty(&mut inode)?;
        self.write_content(&mut inode, contents)?;
        inode.set_links(1);
        self.store(&mut inode)?;
        self.name(place, &inode)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is there or leads nowhere, or a target that cannot be stored; `NoSpace`; `Corrupt`,
    /// `Io`.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], attributes: &Attributes) -> Result<()> {
        self.atomically(|editor| {
            let place = editor.new_place(path)?;
            if target.is_empty() || target.contains(&0) {
                return Err(about(path, "the target of a symbolic link is empty or has a NUL"));
            }
            if symlink_block(target, editor.block_size()).is_none() {
                return Err(about(
                    path,
                    "the target of a symbolic link is longer than a block",
                ));
            }
            let mut inode = editor.make_inode(&place, FileType::Symlink, 0o777, attributes)?;
            if let Some(map) = fast_symlink(target) {
                inode.set_map(&map);
                inode.set_size(target.len() as u64);
            } else {
                editor.empty(&mut inode)?;
                editor.write_bytes(&mut inode, target)?;
            }
            inode.set_links(1);
            editor.store(&mut inode)?;
            editor.name(&place, &inode)
        })
    }

    /// Makes a device, a named pipe or a socket's name.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is there or leads nowhere, or numbers that cannot be stored; `NoSpace`; `Corrupt`,
    /// `Io`.
    pub fn make_special(&mut self, path: &[u8], special: Special, attributes: &Attributes) -> Result<()> {
        self.atomically(|editor| {
            let place = editor.new_place(path)?;
            let (file_type, numbers) = match special {
                Special::CharacterDevice(major, minor) => (FileType::CharacterDevice, Some((major, minor))),
                Special::BlockDevice(major, minor) => (FileType::BlockDevice, Some((major, minor))),
                Special::Fifo => (FileType::Fifo, None),
                Special::Socket => (FileType::Socket, None),
            };
            let mut inode = editor.make_inode(&place, file_type, 0o644, attributes)?;
            if let Some((major, minor)) = numbers {
                let map = device(major, minor);
                let map = map.ok_or_else(|| about(path, "a device's numbers have 12 and 20 bits"))?;
                inode.set_map(&map);
            }
            inode.set_links(1);
            editor.store(&mut inode)?;
            editor.name(&place, &inode)
        })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is there or leads nowhere; `NoSpace`; `Corrupt`, `Io`.
    pub fn make_directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<()> {
        self.atomically(|editor| {
            let place = editor.new_place(path)?;
            editor.make_directory_at(&place, attributes)
        })
    }

    /// Makes a directory and those above it, as far as they are not there; `attributes` are of those that are made.
    ///
    /// # Errors
    /// As [`make_directory`](Self::make_directory), but for a directory that is there.
    pub fn make_directories(&mut self, path: &[u8], attributes: &Attributes) -> Result<()> {
        self.atomically(|editor| {
            let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            let ends: Vec<usize> = ends.map(|(at, _)| at).chain([path.len()]).collect();
            for end in ends {
                let part = &path[..end];
                let name = part.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                if matches!(name, b"" | b"." | b"..") {
                    continue;
                }
                let place = editor.place(part)?;
                if place.inode.is_none() {
                    editor.make_directory_at(&place, attributes)?;
                    continue;
                }
                let there = editor.filesystem.resolve(part, LastLink::Follow)?;
                if there.kind() != ext4_reader::FileKind::Directory {
                    return Err(about(part, "it is there, and no directory"));
                }
            }
            Ok(())
        })
    }

    fn make_directory_at(&mut self, place: &Place, attributes: &Attributes) -> Result<()> {
        let mut inode = self.make_inode(place, FileType::Directory, 0o755, attributes)?;
        inode.set_links(2);
        let number = inode.number;
        self.make_blocks(inode, place.directory, &[])?;
        let inode = self.load(number)?;
        self.name(place, &inode)?;
        self.count_subdirectory(place.directory)
    }

    /// Counts a directory's link from one more directory in it.
    ///
    /// # Errors
    /// `InvalidInput` for too many; `Corrupt`, `Io`.
    pub(crate) fn count_subdirectory(&mut self, directory: u32) -> Result<()> {
        let mut inode = self.load(directory)?;
        let links = match inode.links() {
            // It has more than can be counted.
            1 => 1,
            links if u32::from(links) < MAX_LINKS => links + 1,
            _ if self.superblock.has_many_links() => 1,
            _ => return Err(Error::invalid("the directory cannot have more directories in it")),
        };
        inode.set_links(links);
        self.store(&mut inode)
    }

    /// Gives a file one name more. A symbolic link at the end of `existing` is not followed.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is there or leads nowhere, and for directories; `NoSpace`; `Corrupt`, `Io`.
    pub fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<()> {
        self.atomically(|editor| {
            let number = editor
                .filesystem
                .resolve(existing, LastLink::Keep)?
                .number()
                .into();
            let place = editor.new_place(path)?;
            let mut inode = editor.load(number)?;
            inode.check_changeable()?;
            if inode.is_directory() {
                return Err(about(existing, "a directory has one name only"));
            }
            if u32::from(inode.links()) >= MAX_LINKS {
                return Err(about(existing, "it cannot have more names"));
            }
            inode.set_links(inode.links() + 1);
            inode.set_time(CHANGED, editor.options.time);
            editor.store(&mut inode)?;
            editor.name(&place, &inode)
        })
    }

    /// The directory and the name of a path.
    ///
    /// # Errors
    /// `InvalidInput` for one whose directory is not there, or that ends without a name; `Corrupt`, `Io`.
    pub(crate) fn place(&self, path: &[u8]) -> Result<Place> {
        let end = path
            .iter()
            .rposition(|byte| *byte != b'/')
            .map_or(0, |last| last + 1);
        let start = path[..end]
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let name = &path[start..end];
        if matches!(name, b"" | b"." | b"..") || name.contains(&0) {
            return Err(about(path, "it does not end with a name"));
        }
        if name.len() > MAX_NAME {
            return Err(about(path, "its last name has more than 255 bytes"));
        }
        let directory = self.filesystem.resolve(&path[..start], LastLink::Follow)?;
        if directory.kind() != ext4_reader::FileKind::Directory {
            return Err(about(path, "what it is to be in is no directory"));
        }
        let directory = directory.number().into();
        Ok(Place {
            directory,
            name: name.to_vec(),
            inode: self.find(directory, name)?,
        })
    }

    /// The place of a path that is not there.
    ///
    /// # Errors
    /// `InvalidInput` for one that is; as [`place`](Self::place).
    pub(crate) fn new_place(&self, path: &[u8]) -> Result<Place> {
        let place = self.place(path)?;
        match place.inode {
            Some(_) => Err(about(path, "it is there already")),
            None => Ok(place),
        }
    }

    /// A new inode for a place.
    fn make_inode(
        &mut self,
        place: &Place,
        file_type: FileType,
        permissions: u16,
        attributes: &Attributes,
    ) -> Result<Inode> {
        let directory = self.load(place.directory)?;
        directory.check_changeable()?;
        let group = self.group_of_inode(place.directory);
        let number = self.take_inode(group, file_type == FileType::Directory)?;
        let permissions = attributes.permissions.unwrap_or(permissions) & 0o7777;
        let mut inode = self.new_inode(number, file_type.mode() | permissions);
        inode.set_owner(attributes.uid, attributes.gid);
        inode.inherit_from(&directory);
        Self::set_times(&mut inode, attributes);
        Ok(inode)
    }

    /// Puts a file's name into its place.
    pub(crate) fn name(&mut self, place: &Place, inode: &Inode) -> Result<()> {
        let name = Name {
            inode: inode.number,
            file_type: inode.file_type(),
            bytes: place.name.clone(),
        };
        self.add_name(place.directory, name)?;
        self.touch(place.directory)
    }

    /// Says of a directory that it was changed.
    pub(crate) fn touch(&mut self, directory: u32) -> Result<()> {
        let mut inode = self.load(directory)?;
        inode.set_time(MODIFIED, self.options.time);
        inode.set_time(CHANGED, self.options.time);
        self.store(&mut inode)
    }
}

/// An error about a path.
pub(crate) fn about(path: &[u8], problem: &str) -> Error {
    let path = String::from_utf8_lossy(path);
    Error::invalid(format!("{}: {problem}", escape(&path)))
}
