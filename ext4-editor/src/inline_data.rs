//! Directories inside their inodes ("Inline Data"): written anew with every change, and given blocks when they do not fit.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{FLAG_INLINE_DATA, MAP_SIZE, inline_directory};

use crate::directory::{Name, Slot, slots};
use crate::slack::clear_slack;
use crate::{Editor, damaged};

/// Bytes before the entries: the directory above.
const PARENT_SIZE: usize = 4;

impl Editor {
    fn inline_names(&self, number: u32) -> Result<(u32, Vec<Name>)> {
        let inode = self.load(number)?;
        let rest = self.filesystem.inline_rest(&self.reader_inode(number)?)?;
        if inode.size() != (MAP_SIZE + rest.len()) as u64 {
            return Err(damaged(format!(
                "inline directory inode {number} has another size"
            )));
        }
        let parent = LittleEndian::read_u32(inode.map());
        let mut names = Vec::new();
        for part in [&inode.map()[PARENT_SIZE..], &rest] {
            let files = slots(part)?.into_iter().filter(Slot::is_file);
            names.extend(files.map(Slot::to_name));
        }
        Ok((parent, names))
    }

    pub(crate) fn add_inline_name(&mut self, number: u32, name: Name) -> Result<()> {
        let (parent, mut names) = self.inline_names(number)?;
        names.push(name);
        self.store_inline_names(number, parent, &names)
    }

    pub(crate) fn remove_inline_name(&mut self, number: u32, name: &[u8]) -> Result<()> {
        let (parent, mut names) = self.inline_names(number)?;
        names.retain(|other| other.bytes != name);
        self.store_inline_names(number, parent, &names)
    }

    fn store_inline_names(&mut self, number: u32, parent: u32, names: &[Name]) -> Result<()> {
        let mut inode = self.load(number)?;
        let xattrs = self.xattrs(number)?;
        let entries: Vec<_> = names.iter().map(Name::entry).collect();
        let room = inode.room().len();
        let Some(inline) = inline_directory(parent, &entries, &xattrs, room) else {
            return self.give_directory_blocks(number, parent, names);
        };
        inode.set_map(&inline.map);
        inode.set_size(inline.size);
        self.store_xattrs(&mut inode, xattrs, Some(inline.xattr.value().to_vec()))?;
        self.store(&mut inode)
    }

    /// Has a directory keep nothing but its names.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn forget_inline_names(&mut self, number: u32) -> Result<()> {
        let inode = self.load(number)?;
        let mut map = inode.map()[PARENT_SIZE..].to_vec();
        let mut rest = self.filesystem.inline_rest(&self.reader_inode(number)?)?;
        if clear_slack(&mut map)? | clear_slack(&mut rest)? {
            let (parent, names) = self.inline_names(number)?;
            self.store_inline_names(number, parent, &names)?;
        }
        Ok(())
    }

    fn give_directory_blocks(&mut self, number: u32, parent: u32, names: &[Name]) -> Result<()> {
        let mut inode = self.load(number)?;
        let xattrs = self.xattrs(number)?;
        self.store_xattrs(&mut inode, xattrs, None)?;
        inode.set_flag(FLAG_INLINE_DATA, false);
        self.make_blocks(inode, parent, names)
    }

    /// Has a file that is inside its inode have blocks, so that the inode has room for something else.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn give_blocks(&mut self, number: u32) -> Result<()> {
        let mut inode = self.load(number)?;
        if inode.is_directory() {
            let (parent, names) = self.inline_names(number)?;
            return self.give_directory_blocks(number, parent, &names);
        }
        let mut bytes = inode.map().to_vec();
        bytes.extend(self.filesystem.inline_rest(&self.reader_inode(number)?)?);
        // What is missing behind the end of what is stored is zeros.
        bytes.resize(
            usize::try_from(inode.size()).unwrap_or(0).min(self.block_size()),
            0,
        );
        self.drop_content(&mut inode)?;
        self.write_bytes(&mut inode, &bytes)?;
        self.store(&mut inode)
    }
}
