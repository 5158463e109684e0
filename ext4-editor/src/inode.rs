//! Inodes ("Index Nodes") that are changed: the fields of one, of whatever size it is.

use block::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::Time;
use ext4_builder::format::{Checksum, FLAG_EA_INODE, FLAG_INLINE_DATA, FileType, MAP_SIZE};
use ext4_reader::InodeNumber;

use crate::{Editor, damaged};

/// The part that all inodes have.
const BASE_SIZE: usize = 0x80;
const MAP: std::ops::Range<usize> = 0x28..0x28 + MAP_SIZE;

/// The file may not be changed.
const FLAG_IMMUTABLE: u32 = 0x10;
/// It may only be added to.
const FLAG_APPEND: u32 = 0x20;
/// Sectors are counted in blocks of the filesystem.
const FLAG_HUGE_FILE: u32 = 0x4_0000;
/// The content is verified.
const FLAG_VERITY: u32 = 0x10_0000;
/// What is made in the directory belongs to its project.
const FLAG_PROJECT_INHERIT: u32 = 0x2000_0000;
/// When it was deleted, without an extension.
const DELETED: usize = 0x14;
/// The last time that fields without an extension can say.
const LAST_SECOND: i64 = i32::MAX as i64;

/// A field for a time: its seconds, and the extension that some inodes have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeField(usize, usize);

pub(crate) const ACCESSED: TimeField = TimeField(0x08, 0x8C);
pub(crate) const CHANGED: TimeField = TimeField(0x0C, 0x84);
pub(crate) const MODIFIED: TimeField = TimeField(0x10, 0x88);
pub(crate) const CREATED: TimeField = TimeField(0x90, 0x94);

/// An inode on its way to the disk.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    bytes: Vec<u8>,
    /// Blocks that it is charged for values of extended attributes in inodes of their own.
    pub(crate) values: u64,
}

impl Inode {
    fn u16(&self, offset: usize) -> u16 {
        LittleEndian::read_u16(&self.bytes[offset..])
    }

    fn u32(&self, offset: usize) -> u32 {
        LittleEndian::read_u32(&self.bytes[offset..])
    }

    fn set_u16(&mut self, offset: usize, value: u16) {
        LittleEndian::write_u16(&mut self.bytes[offset..], value);
    }

    fn set_u32(&mut self, offset: usize, value: u32) {
        LittleEndian::write_u32(&mut self.bytes[offset..], value);
    }

    pub(crate) fn mode(&self) -> u16 {
        self.u16(0x00)
    }

    pub(crate) fn set_mode(&mut self, mode: u16) {
        self.set_u16(0x00, mode);
    }

    pub(crate) fn file_type(&self) -> FileType {
        file_type(self.mode())
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    pub(crate) fn set_owner(&mut self, uid: Option<u32>, gid: Option<u32>) {
        for (id, low, high) in [(uid, 0x02, 0x78), (gid, 0x18, 0x7A)] {
            if let Some(id) = id {
                self.set_u16(low, id as u16);
                self.set_u16(high, (id >> 16) as u16);
            }
        }
    }

    pub(crate) fn links(&self) -> u16 {
        self.u16(0x1A)
    }

    pub(crate) fn set_links(&mut self, links: u16) {
        self.set_u16(0x1A, links);
    }

    pub(crate) fn flags(&self) -> u32 {
        self.u32(0x20)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags() & flag != 0
    }

    pub(crate) fn set_flag(&mut self, flag: u32, on: bool) {
        let others = self.flags() & !flag;
        self.set_u32(0x20, others | if on { flag } else { 0 });
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.has(FLAG_INLINE_DATA)
    }

    pub(crate) fn size(&self) -> u64 {
        u64::from(self.u32(0x6C)) << 32 | u64::from(self.u32(0x04))
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        self.set_u32(0x04, size as u32);
        self.set_u32(0x6C, (size >> 32) as u32);
    }

    pub(crate) fn map(&self) -> &[u8] {
        &self.bytes[MAP]
    }

    pub(crate) fn set_map(&mut self, map: &[u8; MAP_SIZE]) {
        self.bytes[MAP].copy_from_slice(map);
    }

    pub(crate) fn xattr_block(&self) -> u64 {
        u64::from(self.u16(0x76)) << 32 | u64::from(self.u32(0x68))
    }

    pub(crate) fn set_xattr_block(&mut self, block: u64) {
        self.set_u32(0x68, block as u32);
        self.set_u16(0x76, (block >> 32) as u16);
    }

    fn extra(&self) -> usize {
        if self.bytes.len() > BASE_SIZE {
            self.u16(0x80).into()
        } else {
            0
        }
    }

    /// What the fields leave of it, for extended attributes.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let start = (BASE_SIZE + self.extra()).min(self.bytes.len());
        &mut self.bytes[start..]
    }

    pub(crate) fn set_time(&mut self, TimeField(seconds, extension): TimeField, time: Time) {
        let has = |offset: usize| offset < BASE_SIZE || offset + 4 <= BASE_SIZE + self.extra();
        let (has_seconds, has_extension) = (has(seconds), has(extension));
        let mut time = time.clamped();
        if !has_extension {
            time.secs = time.secs.min(LAST_SECOND);
        }
        let (low, extra) = time.fields();
        if has_seconds {
            self.set_u32(seconds, low);
        }
        if has_extension {
            self.set_u32(extension, extra);
        }
    }

    /// Has it be one that holds the value of an extended attribute, which one file has.
    pub(crate) fn set_value_hash(&mut self, hash: u32) {
        let seconds = |secs: i64| Time { secs, nanos: 0 };
        self.set_flag(FLAG_EA_INODE, true);
        self.set_time(ACCESSED, seconds(hash.cast_signed().into()));
        // All its bits, whatever dates the field has room for.
        self.set_u32(ACCESSED.0, hash);
        self.set_time(CHANGED, seconds(0));
        self.set_references(1);
    }

    /// References to an inode that holds the value of an extended attribute: they are where others have a time and a version.
    pub(crate) fn references(&self) -> u64 {
        u64::from(self.u32(0x0C)) << 32 | u64::from(self.u32(0x24))
    }

    pub(crate) fn set_references(&mut self, references: u64) {
        self.set_u32(0x0C, (references >> 32) as u32);
        self.set_u32(0x24, references as u32);
    }

    /// The next inode of the list of orphans, in the place of the time at which this one was deleted.
    pub(crate) fn take_next_orphan(&mut self) -> u32 {
        let next = self.u32(DELETED);
        self.set_u32(DELETED, 0);
        next
    }

    /// What the checksums of its own blocks start from.
    pub(crate) fn seed(&self, filesystem: Option<Checksum>) -> Option<Checksum> {
        Some(filesystem?.of_inode(self.number, self.u32(0x64)))
    }

    /// Makes what is made in a directory belong to its project.
    pub(crate) fn inherit_from(&mut self, directory: &Self) {
        if !directory.has(FLAG_PROJECT_INHERIT) || directory.extra() < 0x20 || self.extra() < 0x20 {
            return;
        }
        self.set_u32(0x9C, directory.u32(0x9C));
        if self.is_directory() {
            self.set_flag(FLAG_PROJECT_INHERIT, true);
        }
    }

    /// Fails for a file that not even root may change.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub(crate) fn check_changeable(&self) -> Result<()> {
        for (flag, what, letter) in [
            (FLAG_IMMUTABLE, "immutable", "i"),
            (FLAG_APPEND, "append-only", "a"),
        ] {
            if self.has(flag) {
                let message = format!("inode {} is {what} (chattr +{letter})", self.number);
                return Err(Error::invalid(message));
            }
        }
        if self.has(FLAG_VERITY) {
            return Err(Error::unsupported("the content is under fs-verity"));
        }
        Ok(())
    }

    fn seal(&mut self, filesystem: Option<Checksum>) {
        let Some(seed) = self.seed(filesystem) else { return };
        let has_high = self.extra() >= 4;
        self.set_u16(0x7C, 0);
        if has_high {
            self.set_u16(0x82, 0);
        }
        let (low, high) = seed.with(&self.bytes).halves();
        self.set_u16(0x7C, low);
        if has_high {
            self.set_u16(0x82, high);
        }
    }
}

/// The type that a mode says.
pub(crate) fn file_type(mode: u16) -> FileType {
    match mode & 0xF000 {
        0x1000 => FileType::Fifo,
        0x2000 => FileType::CharacterDevice,
        0x4000 => FileType::Directory,
        0x6000 => FileType::BlockDevice,
        0x8000 => FileType::Regular,
        0xA000 => FileType::Symlink,
        0xC000 => FileType::Socket,
        _ => FileType::Unknown,
    }
}

impl Editor {
    /// An inode that is in use.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn load(&self, number: u32) -> Result<Inode> {
        let inode = self.filesystem.inode(InodeNumber(number))?;
        let bytes = inode.as_bytes().to_vec();
        let values = self.blocks_of_values(&inode)?;
        Ok(Inode {
            number,
            bytes,
            values,
        })
    }

    /// An inode that may be a deleted file's, which the reader does not take, and of which it is not known what it is charged for
    /// values.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn load_deleted(&self, number: u32) -> Result<Inode> {
        let (block, at) = self.place_of_inode(number)?;
        let all = self.staging.block(block)?;
        let bytes = all[at..at + usize::from(self.layout().inode_size())].to_vec();
        let inode = Inode {
            number,
            bytes,
            values: 0,
        };
        let mut sealed = inode.clone();
        sealed.seal(self.seed());
        if sealed.bytes != inode.bytes {
            return Err(damaged(format!("inode {number} has a wrong checksum")));
        }
        Ok(inode)
    }

    /// The same inode, as the reader knows it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn reader_inode(&self, number: u32) -> Result<ext4_reader::Inode> {
        self.filesystem.inode(InodeNumber(number))
    }

    /// A new inode of a number, with nothing said but its mode.
    pub(crate) fn new_inode(&mut self, number: u32, mode: u16) -> Inode {
        let size = self.layout().inode_size();
        let mut inode = Inode {
            number,
            bytes: vec![0; size.into()],
            values: 0,
        };
        if size > BASE_SIZE as u16 {
            inode.set_u16(0x80, self.superblock.extra_size(size));
        }
        inode.set_mode(mode);
        self.made = self.made.wrapping_add(1);
        let generation = Checksum::of_value(self.options.seed as u32)
            .with_u32((self.options.seed >> 32) as u32)
            .with_u32(number)
            .with_u32(self.made);
        inode.set_u32(0x64, generation.value());
        for field in [ACCESSED, CHANGED, MODIFIED, CREATED] {
            inode.set_time(field, self.options.time);
        }
        inode
    }

    /// Puts an inode into its table.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn store(&mut self, inode: &mut Inode) -> Result<()> {
        inode.seal(self.seed());
        self.put_inode_bytes(inode.number, &inode.bytes)
    }

    /// Has an inode be all zeros, as one that was never in use.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn wipe_inode(&mut self, number: u32) -> Result<()> {
        let zeros = vec![0; self.layout().inode_size().into()];
        self.put_inode_bytes(number, &zeros)
    }

    fn put_inode_bytes(&mut self, number: u32, bytes: &[u8]) -> Result<()> {
        let (block, at) = self.place_of_inode(number)?;
        self.change(block, |all| {
            all[at..at + bytes.len()].copy_from_slice(bytes);
        })
    }

    /// The block that an inode is in, and where.
    fn place_of_inode(&self, number: u32) -> Result<(u64, usize)> {
        let per_group = self.layout().inodes_per_group();
        let (group, index) = ((number - 1) / per_group, (number - 1) % per_group);
        let table = self.filesystem.inode_table(group)?;
        let offset = index as usize * usize::from(self.layout().inode_size());
        let (block, at) = (offset / self.block_size(), offset % self.block_size());
        Ok((table + block as u64, at))
    }

    /// Says how much room a file takes: blocks of contents, of its map and of extended attributes.
    ///
    /// # Errors
    /// `InvalidInput` for more than the field can say.
    pub(crate) fn set_room(&self, inode: &mut Inode, blocks: u64) -> Result<()> {
        let blocks = blocks + u64::from(inode.xattr_block() != 0) + inode.values;
        let sectors = blocks * (self.layout().block_size() / 512);
        let huge = self.superblock.has_huge_files();
        let limit = if huge { 1 << 48 } else { 1 << 32 };
        let (value, in_blocks) = if sectors < limit {
            (sectors, false)
        } else {
            (blocks, true)
        };
        if in_blocks && !huge || value >= limit {
            return Err(Error::invalid("the file is larger than an inode can count"));
        }
        inode.set_u32(0x1C, value as u32);
        if huge {
            inode.set_u16(0x74, (value >> 32) as u16);
        }
        inode.set_flag(FLAG_HUGE_FILE, in_blocks);
        Ok(())
    }

    /// Changes how many blocks a file takes, where its contents stay.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn adjust_room(&self, inode: &mut Inode, change: i64) -> Result<()> {
        let per_block = (self.layout().block_size() / 512).cast_signed();
        let unit = if inode.has(FLAG_HUGE_FILE) { 1 } else { per_block };
        let mut value = u64::from(inode.u32(0x1C));
        if self.superblock.has_huge_files() {
            value |= u64::from(inode.u16(0x74)) << 32;
        }
        let value = value
            .checked_add_signed(change * unit)
            .ok_or_else(|| damaged(format!("inode {} counts fewer blocks than it has", inode.number)))?;
        inode.set_u32(0x1C, value as u32);
        if self.superblock.has_huge_files() {
            inode.set_u16(0x74, (value >> 32) as u16);
        }
        Ok(())
    }
}
