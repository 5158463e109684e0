//! What is said of files: mode, owner, times, and extended attributes.

use block::{Error, Result};
use ext4_builder::format::{Xattr, acl_permissions, split_name};
use ext4_reader::{InodeNumber, LastLink};

use crate::Editor;
use crate::files::about;
use crate::inode::{ACCESSED, CHANGED, Inode, MODIFIED};
use crate::options::Attributes;

/// The list of those who may access a file: it and the mode say the same.
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

impl Editor {
    /// Changes what is said of a file. An access control list follows its permissions.
    ///
    /// # Errors
    /// `InvalidInput` for a path that leads nowhere; `Corrupt`, `Io`.
    pub fn set_attributes(&mut self, path: &[u8], last: LastLink, attributes: &Attributes) -> Result<()> {
        self.atomically(|editor| {
            let number = editor.filesystem.resolve(path, last)?.number().into();
            editor.load(number)?.check_changeable()?;
            editor.apply(number, attributes)
        })
    }

    /// As [`set_attributes`](Self::set_attributes), of the file that an inode is, whatever its names are.
    ///
    /// # Errors
    /// `InvalidInput` for an inode of no file; `Corrupt`, `Io`.
    pub fn set_attributes_of(&mut self, inode: InodeNumber, attributes: &Attributes) -> Result<()> {
        self.atomically(|editor| {
            let number = inode.into();
            let inode = editor.load(number)?;
            if inode.links() == 0 {
                return Err(Error::invalid(format!("inode {number} is that of no file")));
            }
            inode.check_changeable()?;
            editor.apply(number, attributes)
        })
    }

    /// Gives a file an extended attribute, in the place of one that it has by this name. Its value is as system calls have
    /// it. An access control list sets the permissions too.
    ///
    /// # Errors
    /// `InvalidInput` for a path that leads nowhere, and for names and values that ext4 cannot hold; `NoSpace`; `Corrupt`,
    /// `Io`.
    pub fn set_xattr(&mut self, path: &[u8], last: LastLink, name: &[u8], value: &[u8]) -> Result<()> {
        self.atomically(|editor| {
            let number = editor.filesystem.resolve(path, last)?.number().into();
            let new = Xattr::new(name, value)?;
            let list = if name == ACCESS_LIST {
                acl_permissions(value)
            } else {
                None
            };
            if let Some((permissions, _)) = list {
                let mut inode = editor.load(number)?;
                inode.set_mode(inode.mode() & !0o777 | permissions);
                editor.store(&mut inode)?;
            }
            // What says no more than the mode is not kept.
            let new = new.filter(|_| !list.is_some_and(|(_, is_all)| is_all));
            let parts = split_name(name)?;
            editor.change_xattrs(number, |set| {
                set.retain(|xattr| !xattr.has_name(parts));
                set.extend(new);
                Ok(())
            })
        })
    }

    /// Takes an extended attribute from a file.
    ///
    /// # Errors
    /// `InvalidInput` for a path that leads nowhere, and where the file does not have it; `NoSpace`; `Corrupt`, `Io`.
    pub fn remove_xattr(&mut self, path: &[u8], last: LastLink, name: &[u8]) -> Result<()> {
        self.atomically(|editor| {
            let number = editor.filesystem.resolve(path, last)?.number().into();
            let parts = split_name(name)?;
            editor.change_xattrs(number, |set| {
                let before = set.len();
                set.retain(|xattr| !xattr.has_name(parts));
                if set.len() < before {
                    return Ok(());
                }
                let name = String::from_utf8_lossy(name);
                Err(about(path, &format!("it has no extended attribute {name:?}")))
            })
        })
    }

    fn change_xattrs(
        &mut self,
        number: u32,
        change: impl FnOnce(&mut Vec<Xattr>) -> Result<()>,
    ) -> Result<()> {
        let mut inode = self.load(number)?;
        inode.check_changeable()?;
        let mut set = self.xattrs(number)?;
        change(&mut set)?;
        let mut rest = None;
        if inode.is_inline() {
            let content = self.filesystem.inline_rest(&self.reader_inode(number)?)?;
            if Self::fits_inline(&mut inode, &set, &content) {
                rest = Some(content);
            } else {
                self.give_blocks(number)?;
                inode = self.load(number)?;
            }
        }
        self.store_xattrs(&mut inode, set, rest)?;
        inode.set_time(CHANGED, self.options.time);
        self.store(&mut inode)
    }

    /// Changes what is said of an inode.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn apply(&mut self, number: u32, attributes: &Attributes) -> Result<()> {
        if *attributes == Attributes::default() {
            return Ok(());
        }
        let mut inode = self.load(number)?;
        if let Some(permissions) = attributes.permissions {
            inode.set_mode(inode.mode() & 0xF000 | permissions & 0o7777);
        }
        inode.set_owner(attributes.uid, attributes.gid);
        inode.set_time(CHANGED, self.options.time);
        Self::set_times(&mut inode, attributes);
        self.store(&mut inode)?;
        let Some(permissions) = attributes.permissions else {
            return Ok(());
        };
        let xattrs = self.filesystem.xattrs(&self.reader_inode(number)?)?;
        if !xattrs.iter().any(|xattr| xattr.name == ACCESS_LIST) {
            return Ok(());
        }
        self.change_xattrs(number, |set| {
            for xattr in set {
                xattr.set_permissions(permissions);
            }
            Ok(())
        })
    }

    pub(crate) fn set_times(inode: &mut Inode, attributes: &Attributes) {
        for (field, time) in [(MODIFIED, attributes.modified), (ACCESSED, attributes.accessed)] {
            if let Some(time) = time {
                inode.set_time(field, time);
            }
        }
    }
}
