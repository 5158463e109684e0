//! Inodes ("Index Nodes"): what is known about a file but its name.

use std::fmt;

use bitflags::bitflags;
use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::Filesystem;
use crate::checksum::Checksum;
use crate::corruption::{Corruption, verify};
use crate::group_descriptor::inode_table;
use crate::superblock::{Incompatible, ReadOnlyCompatible, Superblock};

/// The number of an inode; the first one is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeNumber(pub u32);

impl InodeNumber {
    /// The root directory's.
    pub const ROOT: Self = Self(2);
}

impl fmt::Display for InodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A file with content.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            0x1 => Self::Fifo,
            0x2 => Self::CharacterDevice,
            0x4 => Self::Directory,
            0x6 => Self::BlockDevice,
            0x8 => Self::Regular,
            0xA => Self::Symlink,
            0xC => Self::Socket,
            _ => return None,
        })
    }
}

/// A moment: seconds since 1970 and nanoseconds into the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970, before it negative.
    pub seconds: i64,
    /// Less than a thousand million.
    pub nanoseconds: u32,
}

impl Time {
    /// From the field of 32 bits, and the one that extends it where the inode has it.
    fn of(seconds: u32, extra: Option<u32>) -> Self {
        let extra = extra.unwrap_or(0);
        Self {
            seconds: i64::from(seconds.cast_signed()) + (i64::from(extra & 3) << 32),
            // 30 bits can say more than there are. It is not worth refusing a file for.
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }
}

bitflags! {
    /// Flags of an inode, those that matter to a reader.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Flags: u32 {
        const ENCRYPT = 0x800;
        const INDEX = 0x1000;
        const HUGE_FILE = 0x4_0000;
        const EXTENTS = 0x8_0000;
        const EA_INODE = 0x20_0000;
        const INLINE_DATA = 0x1000_0000;
        const _ = !0;
    }
}

/// A file, whatever its names are.
#[derive(Clone, Debug)]
pub struct Inode {
    pub(crate) number: InodeNumber,
    pub(crate) kind: FileKind,
    pub(crate) flags: Flags,
    /// Seeds the checksums of its directory blocks and extent tree.
    pub(crate) seed: Checksum,
    size: u64,
    sectors: u64,
    /// All of the inode on the disk.
    bytes: Vec<u8>,
}

/// Where an inode's map or short content is.
const I_BLOCK: std::ops::Range<usize> = 0x28..0x64;
/// The part of an inode that all have.
const BASE_SIZE: usize = 0x80;

impl Inode {
    pub(crate) fn read(filesystem: &Filesystem, number: InodeNumber) -> Result<Self> {
        let superblock = filesystem.superblock();
        let count = superblock.inodes;
        if number.0 == 0 || number.0 > count {
            return Err(Corruption::NoInode { number, count }.into());
        }
        let (group, index) = (
            (number.0 - 1) / superblock.inodes_per_group,
            (number.0 - 1) % superblock.inodes_per_group,
        );
        let table = inode_table(filesystem, group)?;
        let offset = u64::from(index) * u64::from(superblock.inode_size);
        let mut bytes = vec![0; superblock.inode_size.into()];
        let block = table + (offset >> superblock.block_bits);
        filesystem.read_blocks(&mut bytes, block, offset % superblock.block_size())?;
        Self::parse(superblock, number, bytes)
    }

    fn parse(superblock: &Superblock, number: InodeNumber, bytes: Vec<u8>) -> Result<Self> {
        let wrong = |problem, value| Corruption::Inode {
            number,
            problem,
            value,
        };
        let u16_at = |offset: usize| LittleEndian::read_u16(&bytes[offset..]);
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);
        let room = bytes.len() - BASE_SIZE;
        let extra = if room > 0 { usize::from(u16_at(0x80)) } else { 0 };
        let seed = superblock
            .seed
            .with(&number.0.to_le_bytes())
            .with(&bytes[0x64..0x68]);
        if superblock.has_checksums() {
            check(&bytes, extra, seed, number)?;
        }
        // Only what is unused otherwise is all zeros; a file that is deleted keeps its mode and has no links.
        let links = u16_at(0x1A);
        if links == 0 && number.0 >= superblock.first_inode {
            return Err(wrong("it is a deleted file's", u64::from(u32_at(0x14))).into());
        }
        let mode = u16_at(0x0);
        let kind =
            FileKind::of_mode(mode).ok_or_else(|| wrong("its mode says no type of file", mode.into()))?;
        if extra > room || !extra.is_multiple_of(4) {
            return Err(wrong("its extra fields do not fit into it", extra as u64).into());
        }
        let flags = Flags::from_bits_retain(u32_at(0x20));
        let mut size = u64::from(u32_at(0x4));
        if kind == FileKind::Regular || superblock.has(Incompatible::LARGEDIR) {
            size |= u64::from(u32_at(0x6C)) << 32;
        }
        if size > i64::MAX as u64 {
            return Err(wrong("its size is more than a file can have", size).into());
        }
        let mut sectors = u64::from(u32_at(0x1C));
        if superblock
            .read_only_compatible
            .contains(ReadOnlyCompatible::HUGE_FILE)
        {
            sectors |= u64::from(u16_at(0x74)) << 32;
            if flags.contains(Flags::HUGE_FILE) {
                sectors <<= superblock.block_bits - 9;
            }
        }
        Ok(Self {
            number,
            kind,
            flags,
            seed,
            size,
            sectors,
            bytes,
        })
    }

    fn u16_at(&self, offset: usize) -> u16 {
        LittleEndian::read_u16(&self.bytes[offset..])
    }

    fn u32_at(&self, offset: usize) -> u32 {
        LittleEndian::read_u32(&self.bytes[offset..])
    }

    /// Bytes of extra fields.
    fn extra(&self) -> usize {
        if self.bytes.len() > BASE_SIZE {
            self.u16_at(0x80).into()
        } else {
            0
        }
    }

    /// A field of those that not every inode has.
    fn extra_field(&self, offset: usize) -> Option<u32> {
        (offset + 4 <= BASE_SIZE + self.extra()).then(|| self.u32_at(offset))
    }

    pub(crate) fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// What is left of the inode after all fields, for extended attributes.
    pub(crate) fn xattr_room(&self) -> &[u8] {
        &self.bytes[(BASE_SIZE + self.extra()).min(self.bytes.len())..]
    }

    /// The block with more extended attributes; 0 for none.
    pub(crate) fn xattr_block(&self) -> u64 {
        u64::from(self.u32_at(0x68)) | u64::from(self.u16_at(0x76)) << 32
    }

    /// The map of the content, or a short content itself.
    pub(crate) fn i_block(&self) -> &[u8] {
        &self.bytes[I_BLOCK]
    }

    /// Its number.
    pub fn number(&self) -> InodeNumber {
        self.number
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Type and permissions, as `stat` has them.
    pub fn mode(&self) -> u16 {
        self.u16_at(0x0)
    }

    /// Its owner.
    pub fn uid(&self) -> u32 {
        u32::from(self.u16_at(0x2)) | u32::from(self.u16_at(0x78)) << 16
    }

    /// Its group.
    pub fn gid(&self) -> u32 {
        u32::from(self.u16_at(0x18)) | u32::from(self.u16_at(0x7A)) << 16
    }

    /// Bytes of content; of a symbolic link, its target's length.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Names that it has. 1 for a directory with more subdirectories than can be counted.
    pub fn links(&self) -> u16 {
        self.u16_at(0x1A)
    }

    /// Room that it takes, in units of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Flags as `lsattr` reads them.
    pub fn flags(&self) -> u32 {
        self.flags.bits()
    }

    /// Tells apart the files that had this number in turn.
    pub fn generation(&self) -> u32 {
        self.u32_at(0x64)
    }

    /// Whether content and names are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.flags.contains(Flags::ENCRYPT)
    }

    /// When it was last read.
    pub fn accessed(&self) -> Time {
        Time::of(self.u32_at(0x8), self.extra_field(0x8C))
    }

    /// When its content was last changed.
    pub fn modified(&self) -> Time {
        Time::of(self.u32_at(0x10), self.extra_field(0x88))
    }

    /// When content or anything else was last changed.
    pub fn changed(&self) -> Time {
        Time::of(self.u32_at(0xC), self.extra_field(0x84))
    }

    /// When it was made, where that is kept.
    pub fn created(&self) -> Option<Time> {
        let seconds = self.extra_field(0x90)?;
        Some(Time::of(seconds, self.extra_field(0x94)))
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> Option<(u32, u32)> {
        if !matches!(self.kind, FileKind::CharacterDevice | FileKind::BlockDevice) {
            return None;
        }
        let [old, new] = [I_BLOCK.start, I_BLOCK.start + 4].map(|offset| self.u32_at(offset));
        Some(if old == 0 {
            ((new >> 8) & 0xFFF, (new & 0xFF) | ((new >> 12) & 0xF_FF00))
        } else {
            ((old >> 8) & 0xFF, old & 0xFF)
        })
    }

    pub(crate) fn wrong(&self, problem: &'static str, value: u64) -> block::Error {
        let number = self.number;
        Corruption::Inode {
            number,
            problem,
            value,
        }
        .into()
    }
}

/// Verifies the checksum, which has its upper half in a field that not every inode has.
fn check(bytes: &[u8], extra: usize, seed: Checksum, number: InodeNumber) -> Result<()> {
    let high = bytes.len() > BASE_SIZE && extra >= 4;
    let computed = seed
        .with(&bytes[..0x7C])
        .with(&[0; 2])
        .with(&bytes[0x7E..BASE_SIZE]);
    let mut stored = u32::from(LittleEndian::read_u16(&bytes[0x7C..]));
    let computed = if high {
        stored |= u32::from(LittleEndian::read_u16(&bytes[0x82..])) << 16;
        computed
            .with(&bytes[0x80..0x82])
            .with(&[0; 2])
            .with(&bytes[0x84..])
            .0
    } else {
        computed.with(&bytes[BASE_SIZE..]).low().into()
    };
    verify(stored, computed, || format!("inode {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_from_1901_to_2446() {
        let seconds = |field, extra| Time::of(field, extra).seconds;
        assert_eq!(seconds(0x8000_0000, None), -0x8000_0000);
        assert_eq!(seconds(0x8000_0000, Some(1)), 0x8000_0000);
        assert_eq!(seconds(0x7FFF_FFFF, Some(3)), 0x3_7FFF_FFFF);
        assert_eq!(Time::of(0, Some(!0)).nanoseconds, 999_999_999);
        assert_eq!(Time::of(0, Some(5 << 2)).nanoseconds, 5);
    }
}
