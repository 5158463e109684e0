//! Inodes ("Inode Table"): 256 bytes each, with times to the nanosecond. The 60 bytes in the middle say where the
//! contents are: an extent tree's root, a device's number, a short symlink's target, or a small file itself. What
//! the fields leave of the 256 bytes is room for extended attributes.

use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::time::Time;

/// Bytes in an inode.
pub(crate) const INODE_SIZE: usize = 256;

/// Bytes that fields take beyond the first 128: up to the upper half of the version and the project.
pub(crate) const EXTRA_SIZE: u16 = 32;

/// Bytes after the fields, where extended attributes find room.
pub(crate) const XATTR_ROOM: usize = INODE_SIZE - 128 - EXTRA_SIZE as usize;

/// Bytes of the field that says where the contents are.
pub const MAP_SIZE: usize = 60;

/// Number of the root directory's inode.
pub(crate) const ROOT_INODE: u32 = 2;

/// The first number that is not reserved; by custom that of `lost+found`.
pub(crate) const FIRST_FREE_INODE: u32 = 11;

/// The directory is indexed by hashes of names.
pub const FLAG_INDEX: u32 = 0x1000;

/// The map is the root of an extent tree.
pub const FLAG_EXTENTS: u32 = 0x8_0000;
/// The contents are the value of an extended attribute.
pub const FLAG_EA_INODE: u32 = 0x20_0000;
/// The contents are in the inode itself.
pub const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// Links that an inode can count. A directory with more says 1, which means "many" (`dir_nlink`).
pub const MAX_LINKS: u32 = 65_000;

/// What an inode is; the discriminant is how directory entries say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileType {
    /// Entries do not say it, in filesystems without `filetype`.
    Unknown = 0,
    /// A file with contents.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A character device.
    CharacterDevice = 3,
    /// A block device.
    BlockDevice = 4,
    /// A FIFO.
    Fifo = 5,
    /// A socket.
    Socket = 6,
    /// A symbolic link.
    Symlink = 7,
}

impl FileType {
    /// The upper bits of the mode.
    pub fn mode(self) -> u16 {
        match self {
            Self::Unknown => 0,
            Self::Fifo => 0x1000,
            Self::CharacterDevice => 0x2000,
            Self::Directory => 0x4000,
            Self::BlockDevice => 0x6000,
            Self::Regular => 0x8000,
            Self::Symlink => 0xA000,
            Self::Socket => 0xC000,
        }
    }
}

/// The fields of an inode.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    /// Type ([`FileType::mode`]) and permissions.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes of the contents.
    pub(crate) size: u64,
    /// Units of 512 bytes that data, extent tree and extended attributes take outside the inode.
    pub(crate) sectors: u64,
    pub(crate) links: u16,
    pub(crate) flags: u32,
    pub(crate) generation: u32,
    /// For NFS, or the lower part of an extended attribute value's reference count.
    pub(crate) version: u64,
    pub(crate) project: u32,
    /// Times, each as [`Time::clamped`] gives it.
    pub(crate) accessed: Time,
    pub(crate) changed: Time,
    pub(crate) modified: Time,
    pub(crate) created: Time,
    /// Where the contents are.
    pub(crate) map: [u8; MAP_SIZE],
    /// The block of extended attributes, or 0.
    pub(crate) xattr_block: u64,
    /// Extended attributes in the inode, or zeros.
    pub(crate) xattrs: [u8; XATTR_ROOM],
}

impl Default for Inode {
    /// Zeros.
    fn default() -> Self {
        let zero = Time::default();
        Self {
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            sectors: 0,
            links: 0,
            flags: 0,
            generation: 0,
            version: 0,
            project: 0,
            accessed: zero,
            changed: zero,
            modified: zero,
            created: zero,
            map: [0; MAP_SIZE],
            xattr_block: 0,
            xattrs: [0; XATTR_ROOM],
        }
    }
}

impl Inode {
    /// Inode `number` as it is on disk, under a checksum if the filesystem has a seed for it.
    pub(crate) fn to_bytes(&self, number: u32, filesystem: Option<Checksum>) -> [u8; INODE_SIZE] {
        let mut bytes = [0; INODE_SIZE];
        let mut put_u16 = |offset: usize, value| LittleEndian::write_u16(&mut bytes[offset..], value);
        put_u16(0x00, self.mode);
        put_u16(0x02, self.uid as u16);
        put_u16(0x18, self.gid as u16);
        put_u16(0x1A, self.links);
        // 48 bits hold any file of at most 2^32 blocks of 4 KiB, so that blocks need never be counted instead.
        put_u16(0x74, (self.sectors >> 32) as u16);
        put_u16(0x76, (self.xattr_block >> 32) as u16);
        put_u16(0x78, (self.uid >> 16) as u16);
        put_u16(0x7A, (self.gid >> 16) as u16);
        put_u16(0x80, EXTRA_SIZE);

        let mut put_u32 = |offset: usize, value| LittleEndian::write_u32(&mut bytes[offset..], value);
        put_u32(0x04, self.size as u32);
        put_u32(0x1C, self.sectors as u32);
        put_u32(0x20, self.flags);
        put_u32(0x24, self.version as u32);
        put_u32(0x64, self.generation);
        put_u32(0x68, self.xattr_block as u32);
        put_u32(0x6C, (self.size >> 32) as u32);
        put_u32(0x98, (self.version >> 32) as u32);
        put_u32(0x9C, self.project);
        for (time, seconds, extra) in [
            (self.accessed, 0x08, 0x8C),
            (self.changed, 0x0C, 0x84),
            (self.modified, 0x10, 0x88),
            (self.created, 0x90, 0x94),
        ] {
            let fields = time.fields();
            put_u32(seconds, fields.0);
            put_u32(extra, fields.1);
        }

        bytes[0x28..0x28 + MAP_SIZE].copy_from_slice(&self.map);
        bytes[INODE_SIZE - XATTR_ROOM..].copy_from_slice(&self.xattrs);
        if let Some(filesystem) = filesystem {
            // The checksum's own fields count as zeros, which they still are.
            let inode = filesystem.of_inode(number, self.generation);
            let (low, high) = inode.with(&bytes).halves();
            LittleEndian::write_u16(&mut bytes[0x7C..], low);
            LittleEndian::write_u16(&mut bytes[0x82..], high);
        }
        bytes
    }
}

/// The count of links of a directory: its name, its `.`, and each subdirectory's `..`.
pub(crate) fn directory_links(subdirectories: u32) -> u16 {
    match subdirectories.saturating_add(2) {
        links if links <= MAX_LINKS => links as u16,
        _ => 1,
    }
}

/// The map of a symlink whose target is short enough for it. The NUL behind the target has to fit too; there are no
/// extents then.
pub fn fast_symlink(target: &[u8]) -> Option<[u8; MAP_SIZE]> {
    let mut map = [0; MAP_SIZE];
    let fits = target.len() < MAP_SIZE;
    fits.then(|| {
        map[..target.len()].copy_from_slice(target);
        map
    })
}

/// The block with the target of a symlink that is too long for its inode. A NUL has to fit behind it.
pub fn symlink_block(target: &[u8], block_size: usize) -> Option<Vec<u8>> {
    let fits = target.len() < block_size;
    fits.then(|| {
        let mut block = vec![0; block_size];
        block[..target.len()].copy_from_slice(target);
        block
    })
}

/// The map of a device: in the first word where both numbers fit a byte, as Linux always had it, else in the second.
/// Major numbers have 12 bits, minor numbers 20.
pub fn device(major: u32, minor: u32) -> Option<[u8; MAP_SIZE]> {
    let mut map = [0; MAP_SIZE];
    if major < 0x100 && minor < 0x100 {
        LittleEndian::write_u32(&mut map, major << 8 | minor);
    } else if major < 0x1000 && minor < 0x10_0000 {
        let number = minor & 0xFF | major << 8 | (minor & !0xFF) << 12;
        LittleEndian::write_u32(&mut map[4..], number);
    } else {
        return None;
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_more_links_than_fit_says_1() {
        assert_eq!(directory_links(0), 2);
        assert_eq!(directory_links(64_998), 65_000);
        assert_eq!(directory_links(64_999), 1);
        assert_eq!(directory_links(u32::MAX), 1);
    }

    #[test]
    fn targets_go_where_they_fit_with_their_nul() {
        assert!(fast_symlink(&[b'a'; 59]).is_some());
        assert!(fast_symlink(&[b'a'; 60]).is_none());
        assert!(symlink_block(&[b'a'; 1023], 1024).is_some());
        assert!(symlink_block(&[b'a'; 1024], 1024).is_none());
    }

    #[test]
    fn device_numbers_have_12_and_20_bits() {
        assert!(device(0xFFF, 0xF_FFFF).is_some());
        assert!(device(0x1000, 0).is_none());
        assert!(device(0, 0x10_0000).is_none());
    }
}
