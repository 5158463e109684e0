//! Reads ext2, ext3 and ext4 filesystems from any [`BlockDevice`], without mounting them and without writing.
//!
//! All that current kernels and mke2fs make can be read: extents and block maps, blocks of 1 to 64 KiB, 64bit,
//! `meta_bg`, `bigalloc`, indexed and large directories, inline data, extended attributes in inodes, blocks and inodes
//! of their own, ACLs, nanosecond times. A filesystem that was not unmounted is read as it is after its journal is
//! replayed, in memory. What is encrypted stays so, and fast commits are refused.
//!
//! Images may be damaged or made to harm: every number is checked before it is used, checksums are verified where there
//! are some, and nothing goes in circles. [`Visits`] does that for walks over whole trees.
//!
//! Every structure has a module of its own, named as in the kernel's documentation of the format ("ext4 Data Structures
//! and Algorithms"), and the section there is named in its first line.
//!
//! ```
//! use std::sync::Arc;
//! use ext4_reader::{Filesystem, LastLink};
//!
//! # fn main() -> block::Result<()> {
//! # let file = tempfile::NamedTempFile::new().unwrap();
//! # file.as_file().set_len(4 << 20).unwrap();
//! # let made = std::process::Command::new("mke2fs").env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin")
//! #     .args(["-q", "-F", "-t", "ext4"]).arg(file.path()).status().unwrap();
//! # assert!(made.success());
//! # let storage = Arc::new(raw::OpenOptions::new().open(file.path())?);
//! let disk = Arc::new(raw::Image::open(storage, block::Access::READ)?);
//! let filesystem = Filesystem::open(disk)?;
//! let root = filesystem.resolve(b"/", LastLink::Follow)?;
//! for entry in filesystem.read_dir(&root)? {
//!     let inode = filesystem.inode(entry.inode)?;
//!     println!("{} {:o}", String::from_utf8_lossy(&entry.name), inode.mode());
//! #   assert_eq!((entry.name.as_slice(), inode.mode()), (&b"lost+found"[..], 0o40700));
//! }
//! # Ok(())
//! # }
//! ```

mod acl;
mod block_map;
mod checksum;
mod content;
mod corruption;
mod directory;
mod extent_tree;
pub mod format;
mod group_descriptor;
mod inode;
mod journal;
mod reader;
mod resolve;
mod superblock;
mod visits;
mod xattr;

use std::sync::Arc;

use block::{BlockDevice, Result};

pub use content::{Content, Run};
pub use directory::Entry;
pub use inode::{FileKind, Inode, InodeNumber, Time};
pub use reader::Reader;
pub use resolve::LastLink;
pub use superblock::Superblock;
pub use visits::Visits;
pub use xattr::Xattr;

use corruption::Corruption;
use journal::{ESCAPED, Replay};

/// A filesystem, for reading. The device must not change while it is in use.
#[derive(Debug)]
pub struct Filesystem {
    device: Arc<dyn BlockDevice>,
    superblock: Superblock,
    replay: Replay,
}

impl Filesystem {
    /// The filesystem on `device`.
    ///
    /// # Errors
    /// `InvalidInput` where there is none; `Unsupported` for features that are not known; `Corrupt`, `Io`.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self> {
        let superblock = read_superblock(&*device)?;
        let mut filesystem = Self {
            device,
            superblock,
            replay: Replay::new(),
        };
        filesystem.replay = journal::replay(&filesystem)?;
        if !filesystem.replay.is_empty() {
            // The superblock may be among what is in the journal, with a size that has grown.
            let mut bytes = [0; superblock::SIZE];
            let block = superblock::OFFSET >> filesystem.superblock.block_bits;
            let skip = superblock::OFFSET % filesystem.superblock.block_size();
            filesystem.read_blocks(&mut bytes, block, skip)?;
            filesystem.superblock = Superblock::parse(&bytes)?;
            fits(&*filesystem.device, &filesystem.superblock)?;
        }
        Ok(filesystem)
    }

    /// Whether a device holds what looks like such a filesystem, sound or not.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn is_on(device: &dyn BlockDevice) -> Result<bool> {
        if device.size() < superblock::OFFSET + superblock::SIZE as u64 {
            return Ok(false);
        }
        let mut magic = [0; 2];
        device.read_at(&mut magic, superblock::OFFSET + superblock::MAGIC_OFFSET as u64)?;
        Ok(magic == superblock::MAGIC.to_le_bytes())
    }

    /// What is known about all of it.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Whether it was not unmounted, and is read as its journal would make it.
    pub fn is_replayed(&self) -> bool {
        !self.replay.is_empty()
    }

    /// The inode of a number.
    ///
    /// # Errors
    /// `Corrupt` if there is none or no file has it; `Io`.
    pub fn inode(&self, number: InodeNumber) -> Result<Inode> {
        Inode::read(self, number)
    }

    /// A whole block of metadata.
    pub(crate) fn metadata_block(&self, block: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.superblock.block_size() as usize];
        self.read_blocks(&mut bytes, block, 0)?;
        Ok(bytes)
    }

    /// Reads from byte `skip` after the start of `block` on, and what is newer in the journal from there.
    fn read_blocks(&self, buf: &mut [u8], block: u64, skip: u64) -> Result<()> {
        let bits = self.superblock.block_bits;
        let start = (block << bits) + skip;
        let end = start + buf.len() as u64;
        self.device.read_at(buf, start)?;
        for (&block, copy) in self.replay.range(start >> bits..end.div_ceil(1 << bits)) {
            let mut bytes = vec![0; 1 << bits];
            self.device.read_at(&mut bytes, copy.block << bits)?;
            if copy.escaped {
                bytes[..4].copy_from_slice(&ESCAPED);
            }
            // The part of that block that was asked for.
            let (from, to) = ((block << bits).max(start), ((block + 1) << bits).min(end));
            let part = &bytes[(from - (block << bits)) as usize..][..(to - from) as usize];
            buf[(from - start) as usize..][..part.len()].copy_from_slice(part);
        }
        Ok(())
    }
}

fn read_superblock(device: &dyn BlockDevice) -> Result<Superblock> {
    let mut bytes = [0; superblock::SIZE];
    // A shorter disk reads as zeros, and so has none.
    if device.size() >= superblock::OFFSET + superblock::SIZE as u64 {
        device.read_at(&mut bytes, superblock::OFFSET)?;
    }
    let superblock = Superblock::parse(&bytes)?;
    fits(device, &superblock)?;
    Ok(superblock)
}

fn fits(device: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let (filesystem, disk) = (superblock.blocks() * superblock.block_size(), device.size());
    if filesystem > disk {
        return Err(Corruption::CutOff { filesystem, disk }.into());
    }
    Ok(())
}
