//! Extended attributes ("Extended Attributes"): in what is left of the inode, in a block of their own, and large values
//! in inodes of their own.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::acl;
use crate::checksum::Checksum;
use crate::corruption::{Corruption, verify};
use crate::inode::{FileKind, Flags, Inode, InodeNumber};
use crate::{Filesystem, Superblock};

const MAGIC: u32 = 0xEA02_0000;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 16;
/// The longest value that Linux has, whatever the format could hold.
const MAX_VALUE: u64 = 65536;

const SYSTEM: u8 = 7;
const INLINE_DATA: &[u8] = b"data";
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;

/// What names start with, by the number that stands for it.
fn prefix(index: u8) -> Option<&'static str> {
    Some(match index {
        0 => "",
        1 => "user.",
        ACL_ACCESS => "system.posix_acl_access",
        ACL_DEFAULT => "system.posix_acl_default",
        4 => "trusted.",
        6 => "security.",
        SYSTEM => "system.",
        8 => "system.richacl",
        _ => return None,
    })
}

/// An extended attribute, as `getxattr` gives it: ACLs too are in the form of that call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Its name with what it starts with, such as `user.`.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// An entry, and where its value is.
struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Value<'a>,
}

enum Value<'a> {
    Here(&'a [u8]),
    Inode(InodeNumber, u32),
}

impl Entry<'_> {
    /// The inode that holds the value.
    fn holder(&self) -> Option<InodeNumber> {
        match self.value {
            Value::Inode(number, _) => Some(number),
            Value::Here(_) => None,
        }
    }
}

impl Filesystem {
    /// The extended attributes of a file, sorted by name.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let mut found = Vec::new();
        let mut keep = |entry: Entry<'_>| {
            if (entry.index, entry.name) != (SYSTEM, INLINE_DATA) {
                found.push(self.xattr(inode, &entry)?);
            }
            Ok(())
        };
        self.for_each_xattr(inode, &mut keep)?;
        found.sort();
        Ok(found)
    }

    /// The inodes that hold values of a file's extended attributes: for those that are kept in its own inode, and for
    /// those in the block that it may share.
    ///
    /// # Errors
    /// As [`xattrs`](Self::xattrs).
    pub fn xattr_inodes(&self, inode: &Inode) -> Result<[Vec<InodeNumber>; 2]> {
        let mut own = Vec::new();
        in_inode(inode, &mut |entry| {
            own.extend(entry.holder());
            Ok(())
        })?;
        let mut all = Vec::new();
        self.for_each_xattr(inode, &mut |entry| {
            all.extend(entry.holder());
            Ok(())
        })?;
        let shared = all.split_off(own.len());
        Ok([own, shared])
    }

    fn for_each_xattr(&self, inode: &Inode, keep: &mut dyn FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        in_inode(inode, keep)?;
        let block = inode.xattr_block();
        if block != 0 {
            let superblock = self.superblock();
            if block <= superblock.first_data_block.into() || block >= superblock.blocks {
                return Err(wrong(inode, "their block lies outside of the filesystem"));
            }
            let bytes = self.metadata_block(block)?;
            check_block(superblock, inode, block, &bytes)?;
            entries(inode, &bytes, BLOCK_HEADER, 0, keep)?;
        }
        Ok(())
    }

    fn xattr(&self, inode: &Inode, entry: &Entry<'_>) -> Result<Xattr> {
        let prefix = prefix(entry.index).ok_or_else(|| wrong(inode, "a name has an unknown prefix"))?;
        let value = match entry.value {
            Value::Here(bytes) => bytes.to_vec(),
            Value::Inode(number, size) => self.large_value(inode, number, size)?,
        };
        let value = match entry.index {
            ACL_ACCESS | ACL_DEFAULT => {
                acl::to_syscall(&value).ok_or_else(|| wrong(inode, "an ACL is malformed"))?
            }
            _ => value,
        };
        Ok(Xattr {
            name: [prefix.as_bytes(), entry.name].concat(),
            value,
        })
    }

    fn large_value(&self, owner: &Inode, number: InodeNumber, size: u32) -> Result<Vec<u8>> {
        let inode = self.inode(number)?;
        if inode.kind != FileKind::Regular || !inode.flags.contains(Flags::EA_INODE) {
            return Err(wrong(owner, "a value is in an inode that is not for values"));
        }
        if inode.size() != u64::from(size) {
            return Err(wrong(
                owner,
                "a value has another length than the inode that holds it",
            ));
        }
        self.read_all(&inode, MAX_VALUE)
    }
}

/// The part of an inline file that does not fit where others have their map.
pub(crate) fn inline_data(inode: &Inode) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    in_inode(inode, &mut |entry| {
        if let (SYSTEM, INLINE_DATA, Value::Here(bytes)) = (entry.index, entry.name, entry.value) {
            data = bytes.to_vec();
        }
        Ok(())
    })?;
    Ok(data)
}

fn in_inode(inode: &Inode, keep: &mut dyn FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
    let room = inode.xattr_room();
    if room.len() < 4 || LittleEndian::read_u32(room) != MAGIC {
        return Ok(());
    }
    entries(inode, room, 4, 4, keep)
}

/// Goes through the entries from `start` on; values count from `base`.
fn entries(
    inode: &Inode,
    bytes: &[u8],
    start: usize,
    base: usize,
    keep: &mut dyn FnMut(Entry<'_>) -> Result<()>,
) -> Result<()> {
    let outside = || wrong(inode, "an entry or its value reaches past the end");
    let mut rest = &bytes[start..];
    // Four zero bytes end the list, where it does not fill the room.
    while rest.len() >= 4 && LittleEndian::read_u32(rest) != 0 {
        let header = rest.get(..ENTRY_HEADER).ok_or_else(outside)?;
        let (name_len, index) = (usize::from(header[0]), header[1]);
        let name = rest
            .get(ENTRY_HEADER..ENTRY_HEADER + name_len)
            .ok_or_else(outside)?;
        if name.contains(&0) {
            return Err(wrong(inode, "a name has a NUL"));
        }
        let offset = base + usize::from(LittleEndian::read_u16(&header[2..]));
        let holder = LittleEndian::read_u32(&header[4..]);
        let size = LittleEndian::read_u32(&header[8..]);
        let value = if holder != 0 {
            Value::Inode(InodeNumber(holder), size)
        } else {
            let end = offset.checked_add(size as usize);
            Value::Here(end.and_then(|end| bytes.get(offset..end)).ok_or_else(outside)?)
        };
        keep(Entry { index, name, value })?;
        rest = rest
            .get((ENTRY_HEADER + name_len).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(())
}

fn check_block(superblock: &Superblock, inode: &Inode, block: u64, bytes: &[u8]) -> Result<()> {
    if LittleEndian::read_u32(bytes) != MAGIC {
        return Err(wrong(inode, "the magic number of their block is wrong"));
    }
    if LittleEndian::read_u32(&bytes[8..]) != 1 {
        return Err(wrong(inode, "they claim to have other than one block"));
    }
    if superblock.has_checksums() {
        let sum: Checksum = superblock.seed.with(&block.to_le_bytes());
        let computed = sum.with(&bytes[..0x10]).with(&[0; 4]).with(&bytes[0x14..]);
        let stored = LittleEndian::read_u32(&bytes[0x10..]);
        verify(stored, computed.0, || format!("extended attribute block {block}"))?;
    }
    Ok(())
}

fn wrong(inode: &Inode, problem: &'static str) -> block::Error {
    let number = inode.number;
    Corruption::Xattr { number, problem }.into()
}
