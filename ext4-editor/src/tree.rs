//! Names that are removed and moved.

use std::collections::HashSet;

use block::Result;
use ext4_reader::format::Allocation;
use ext4_reader::{InodeNumber, Visits};

use crate::files::{Place, about};
use crate::inode::{CHANGED, Inode};
use crate::{Editor, damaged};

impl Editor {
    /// Removes a name, and the file where it was the last one. A directory must be empty; a symbolic link is not followed.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is not there, and for directories with files in them; `Corrupt`, `Io`.
    pub fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.atomically(|editor| {
            let (place, inode) = editor.existing(path)?;
            if inode.is_directory() && !editor.is_empty(inode.number)? {
                return Err(about(path, "the directory is not empty"));
            }
            editor.remove_at(&place, inode)
        })
    }

    /// Removes a name and, of a directory, all that is below it.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is not there; `Corrupt`, `Io`.
    pub fn remove_tree(&mut self, path: &[u8]) -> Result<()> {
        self.atomically(|editor| {
            let (place, inode) = editor.existing(path)?;
            if inode.is_directory() {
                editor.empty_directory(inode.number)?;
            }
            editor.remove_at(&place, inode)
        })
    }

    /// Moves a file or directory to another name, in the place of a file or an empty directory that has it. Symbolic links
    /// at the end of the paths are not followed.
    ///
    /// # Errors
    /// `InvalidInput` where the first is not there, or the second cannot be replaced or is below the first; `NoSpace`;
    /// `Corrupt`, `Io`.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        self.atomically(|editor| {
            let (source, mut inode) = editor.existing(from)?;
            let target = editor.place(to)?;
            let number = inode.number;
            if target.inode == Some(number) {
                return Ok(());
            }
            if inode.is_directory() && editor.is_below(target.directory, number)? {
                return Err(about(to, "a directory cannot be moved into itself"));
            }
            if let Some(there) = target.inode {
                let there = editor.load(there)?;
                if there.is_directory() != inode.is_directory() {
                    return Err(about(
                        to,
                        "a directory and another file cannot replace each other",
                    ));
                }
                if there.is_directory() && !editor.is_empty(there.number)? {
                    return Err(about(to, "the directory is not empty"));
                }
                editor.remove_at(&target, there)?;
                inode = editor.load(number)?;
            }
            editor.remove_name(source.directory, &source.name)?;
            editor.touch(source.directory)?;
            inode.set_time(CHANGED, editor.options.time);
            editor.store(&mut inode)?;
            editor.name(&target, &inode)?;
            if inode.is_directory() && source.directory != target.directory {
                editor.set_parent(number, target.directory)?;
                editor.discount_subdirectory(source.directory)?;
                editor.count_subdirectory(target.directory)?;
            }
            Ok(())
        })
    }

    /// The place of a path that is there, and its inode, both of which may be changed.
    fn existing(&self, path: &[u8]) -> Result<(Place, Inode)> {
        let place = self.place(path)?;
        let Some(number) = place.inode else {
            return Err(about(path, "there is no such file in the filesystem"));
        };
        self.load(place.directory)?.check_changeable()?;
        let inode = self.load(number)?;
        inode.check_changeable()?;
        Ok((place, inode))
    }

    fn is_empty(&self, directory: u32) -> Result<bool> {
        let directory = self.reader_inode(directory)?;
        Ok(self.filesystem.read_dir(&directory)?.is_empty())
    }

    /// Whether a directory is `above` or somewhere below it.
    fn is_below(&self, mut directory: u32, above: u32) -> Result<bool> {
        let mut seen = HashSet::new();
        while directory != above {
            if directory == InodeNumber::ROOT.0 {
                return Ok(false);
            }
            if !seen.insert(directory) {
                return Err(damaged("directories lead up in a circle".to_owned()));
            }
            directory = self.parent(directory)?;
        }
        Ok(true)
    }

    /// Removes a name that stands for `inode`, where a directory is empty.
    fn remove_at(&mut self, place: &Place, inode: Inode) -> Result<()> {
        let is_directory = inode.is_directory();
        self.remove_name(place.directory, &place.name)?;
        self.touch(place.directory)?;
        if is_directory {
            self.discount_subdirectory(place.directory)?;
            return self.delete(&inode);
        }
        self.unlink(inode)
    }

    /// Takes one name from a file that is no directory, and deletes it where that was the last.
    fn unlink(&mut self, mut inode: Inode) -> Result<()> {
        if inode.links() <= 1 {
            return self.delete(&inode);
        }
        inode.set_links(inode.links() - 1);
        inode.set_time(CHANGED, self.options.time);
        self.store(&mut inode)
    }

    fn discount_subdirectory(&mut self, directory: u32) -> Result<()> {
        let mut inode = self.load(directory)?;
        // 1 says that there are, or once were, too many to count.
        if inode.links() > 2 {
            inode.set_links(inode.links() - 1);
        }
        self.store(&mut inode)
    }

    /// Gives back all that a file has, and itself.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn delete(&mut self, inode: &Inode) -> Result<()> {
        if inode.number < self.layout().first_inode() {
            let problem = format!("inode {} is the filesystem's own, and has a name", inode.number);
            return Err(damaged(problem));
        }
        let allocation = if Self::has_blocks(inode) {
            self.filesystem.allocation(&self.reader_inode(inode.number)?)?
        } else {
            Allocation::default()
        };
        self.drop_xattrs(inode)?;
        self.free_allocation(&allocation)?;
        self.wipe_inode(inode.number)?;
        self.free_inode(inode.number, inode.is_directory())
    }

    /// Deletes all that is in a directory; its names stay, for it is to be deleted next.
    fn empty_directory(&mut self, top: u32) -> Result<()> {
        let mut visits = Visits::new(self.layout());
        let mut ahead = vec![top];
        let mut directories = Vec::new();
        while let Some(number) = ahead.pop() {
            let directory = self.reader_inode(number)?;
            visits.enter(&directory)?;
            for entry in self.filesystem.read_dir(&directory)? {
                let inode = self.load(entry.inode.into())?;
                inode.check_changeable()?;
                if inode.is_directory() {
                    ahead.push(inode.number);
                } else {
                    self.unlink(inode)?;
                }
            }
            if number != top {
                directories.push(number);
            }
        }
        for number in directories {
            let inode = self.load(number)?;
            self.delete(&inode)?;
        }
        Ok(())
    }
}
