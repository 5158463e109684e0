//! Writes ext4 filesystems onto any [`Storage`]: no root, no loop device, no other program.
//!
//! [`format()`] makes an empty one, with a root directory and `lost+found`. It has blocks of 4 KiB, inodes of 256
//! bytes, extents, file types in directories, 64-bit block numbers, and checksums over all metadata. There is
//! neither a journal nor room kept for the descriptors of a larger filesystem. The same parameters make the same
//! bytes, always.
//!
//! Every structure has a module of its own, named as in the kernel's documentation of the format ("ext4 Data
//! Structures and Algorithms"), and the section there is named in its first line.
//!
//! ```
//! use block::{MemStorage, Storage};
//! use ext4_builder::Parameters;
//!
//! let storage = MemStorage::new();
//! let parameters = Parameters { label: "data".into(), ..Parameters::new(64 << 20, [7; 16]) };
//! let geometry = ext4_builder::format(&storage, &parameters)?;
//! assert_eq!((storage.len()?, geometry.blocks(), geometry.inodes()), (64 << 20, 16384, 4096));
//! # Ok::<(), block::Error>(())
//! ```

#[allow(dead_code)] // Until the builder of trees uses it.
mod acl;
mod bitmap;
mod checksum;
#[allow(dead_code)] // Until the builder of trees uses all of it.
mod directory;
#[allow(dead_code)] // Until the builder of trees uses it.
mod extent;
mod geometry;
mod group_descriptor;
#[allow(dead_code)] // Until the builder of trees uses it.
mod hash;
#[allow(dead_code)] // Until the builder of trees uses it.
mod htree;
#[allow(dead_code)] // Until the builder of trees uses it.
mod inline_data;
#[allow(dead_code)] // Until the builder of trees uses all of it.
mod inode;
#[allow(dead_code)] // Until the builder of trees uses it.
mod journal;
#[allow(dead_code)] // Until the builder of trees uses it.
mod orphan_file;
#[allow(dead_code)] // Until the builder of trees uses it.
mod resize_inode;
mod superblock;
#[allow(dead_code)] // Until the builder of trees uses all of it.
mod time;
#[allow(dead_code)] // Until the builder of trees uses it.
mod xattr;

use block::{Error, Result, Storage, ZeroMode};

use checksum::Checksum;
pub use geometry::{BLOCK_SIZE, Geometry, MAX_SIZE, MIN_SIZE};
use geometry::{first_block, has_superblock};
use group_descriptor::GroupDescriptor;
use inode::{DirectoryInode, FIRST_FREE_INODE, ROOT_INODE};

/// The last second that an inode's time can say, in the year 2446.
pub const MAX_TIME: u64 = 0x3_7FFF_FFFF;

/// Bytes of the superblock's field for the label.
const LABEL_SIZE: usize = 16;

/// Where the superblock starts in its block, in group 0 alone: the space before is the boot loader's.
const PRIMARY_SUPERBLOCK_OFFSET: usize = 1024;

/// Blocks of `lost+found`, allocated in advance: whoever repairs a filesystem puts files there, and had better not
/// have to allocate.
const LOST_AND_FOUND_BLOCKS: u16 = 4;

/// What is to be made. Nothing is taken from the clock, the host or a random number generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Bytes of the disk, from [`MIN_SIZE`] to [`MAX_SIZE`].
    pub size: u64,
    /// Identifies the filesystem, and seeds its checksums.
    pub uuid: [u8; 16],
    /// Seeds the hashes of names in indexed directories.
    pub hash_seed: [u8; 16],
    /// The volume's name: at most 16 bytes, no NUL among them.
    pub label: String,
    /// Creation, in seconds since 1970, up to [`MAX_TIME`]; also the directories' times.
    pub time: u64,
    /// The disk gets one inode for so many bytes, 1024 or more.
    pub bytes_per_inode: u64,
    /// Percentage of all blocks that only root may fill, up to 50.
    pub reserved_percent: u8,
}

impl Parameters {
    /// A disk of `size` bytes: no label, the start of 1970, an inode for every 16 KiB, 5 % for root. The hash seed
    /// is the UUID.
    pub fn new(size: u64, uuid: [u8; 16]) -> Self {
        Self {
            size,
            uuid,
            hash_seed: uuid,
            label: String::new(),
            time: 0,
            bytes_per_inode: 16384,
            reserved_percent: 5,
        }
    }

    fn validate(&self) -> Result<()> {
        if self.label.len() > LABEL_SIZE || self.label.contains('\0') {
            return Err(
                Error::invalid(format!("{:?} cannot be a volume's label", self.label))
                    .with_hint("choose one of at most 16 bytes without NUL"),
            );
        }
        if self.time > MAX_TIME {
            return Err(
                Error::invalid(format!("a time of {} s is past the year 2446", self.time))
                    .with_hint("ext4 cannot store it; choose an earlier one"),
            );
        }
        if self.reserved_percent > 50 {
            let message = format!(
                "cannot reserve {} % of the blocks for root",
                self.reserved_percent
            );
            return Err(Error::invalid(message).with_hint("choose at most 50 %"));
        }
        Ok(())
    }
}

/// Makes an empty filesystem on the first [`Parameters::size`] bytes of a storage, which is grown to that where it
/// is shorter. What it held there is lost, though not all of it is overwritten.
///
/// The filesystem is durable when this returns, and the superblock is written last: until then there is none.
///
/// # Errors
/// `InvalidInput` for parameters that cannot be, before anything is written; `Io`, `NoSpace`, and then the storage
/// holds no filesystem.
pub fn format(storage: &dyn Storage, parameters: &Parameters) -> Result<Geometry> {
    parameters.validate()?;
    let geometry = Geometry::new(parameters.size, parameters.bytes_per_inode)?;
    if storage.len()? < parameters.size {
        storage.set_len(parameters.size)?;
    }
    let builder = Builder {
        storage,
        parameters,
        geometry: &geometry,
        checksum: Checksum::of_filesystem(&parameters.uuid),
    };
    builder.erase_superblocks()?;
    builder.write_directories()?;
    let (usage, descriptors) = builder.write_groups()?;
    builder.write_superblocks(&usage, &descriptors)?;
    Ok(geometry)
}

/// What of the filesystem is in use.
#[derive(Debug, Default)]
struct Usage {
    blocks: u64,
    inodes: u32,
}

struct Builder<'a> {
    storage: &'a dyn Storage,
    parameters: &'a Parameters,
    geometry: &'a Geometry,
    /// The filesystem's seed.
    checksum: Checksum,
}

impl Builder<'_> {
    /// Removes an older filesystem's superblocks, so that a half-made one is never taken for it.
    fn erase_superblocks(&self) -> Result<()> {
        for group in self.groups_with_superblock() {
            self.zero_blocks(first_block(group), 1)?;
        }
        self.storage.sync_data()
    }

    /// Zeroes every group's part of the inode table, and writes the bitmaps that are not implied. Returns the table
    /// of descriptors.
    fn write_groups(&self) -> Result<(Usage, Vec<u8>)> {
        let mut usage = Usage::default();
        let mut descriptors = Vec::new();
        for group in 0..self.geometry.groups() {
            let (files, inodes, directories) = if group == 0 {
                (1 + u32::from(LOST_AND_FOUND_BLOCKS), FIRST_FREE_INODE, 2)
            } else {
                (0, 0, 0)
            };
            let blocks = self.geometry.overhead(group) + files;
            let descriptor = GroupDescriptor::new(self.geometry, group, blocks, inodes, directories);
            if let Some((blocks, inodes)) = descriptor.bitmaps() {
                self.write_block(self.geometry.block_bitmap(group), blocks.as_bytes())?;
                self.write_block(self.geometry.inode_bitmap(group), inodes.as_bytes())?;
            }
            if group != 0 {
                self.zero_blocks(
                    self.geometry.inode_table(group),
                    self.geometry.inode_table_blocks(),
                )?;
            }
            descriptors.extend(descriptor.to_bytes(self.geometry, self.checksum));
            usage.blocks += u64::from(blocks);
            usage.inodes += inodes;
        }
        Ok((usage, descriptors))
    }

    /// Writes the first group's inodes, and the blocks of the two directories, which follow each other.
    fn write_directories(&self) -> Result<()> {
        let time = self.parameters.time;
        let first_block = self.geometry.first_data_block(0);
        let root = DirectoryInode {
            permissions: 0o755,
            links: 3,
            first_block,
            blocks: 1,
            time,
        };
        let lost_and_found = DirectoryInode {
            permissions: 0o700,
            links: 2,
            first_block: first_block + 1,
            blocks: LOST_AND_FOUND_BLOCKS,
            time,
        };

        let table = self.geometry.inode_table(0);
        self.zero_blocks(table, self.geometry.inode_table_blocks())?;
        let mut inodes = Vec::new();
        for number in 1..=FIRST_FREE_INODE {
            inodes.extend(match number {
                ROOT_INODE => root.to_bytes(number, self.checksum),
                FIRST_FREE_INODE => lost_and_found.to_bytes(number, self.checksum),
                _ => inode::reserved(number, self.checksum),
            });
        }
        self.write_block(table, &inodes)?;

        let seed = self.checksum.of_inode(ROOT_INODE, 0);
        let names = [
            (ROOT_INODE, "."),
            (ROOT_INODE, ".."),
            (FIRST_FREE_INODE, "lost+found"),
        ];
        self.write_block(root.first_block, &directory::block(&names, seed))?;

        let seed = self.checksum.of_inode(FIRST_FREE_INODE, 0);
        for index in 0..u64::from(LOST_AND_FOUND_BLOCKS) {
            let names = [(FIRST_FREE_INODE, "."), (ROOT_INODE, "..")];
            let names = if index == 0 { &names[..] } else { &[] };
            self.write_block(lost_and_found.first_block + index, &directory::block(names, seed))?;
        }
        Ok(())
    }

    /// Writes all copies of descriptors and superblock, and when they are durable, the superblock itself.
    fn write_superblocks(&self, usage: &Usage, descriptors: &[u8]) -> Result<()> {
        for group in self.groups_with_superblock() {
            self.write_block(first_block(group) + 1, descriptors)?;
            if group != 0 {
                let copy = superblock::superblock(self.parameters, self.geometry, usage, group);
                self.write_block(first_block(group), &copy)?;
            }
        }
        self.storage.sync_data()?;
        let primary = superblock::superblock(self.parameters, self.geometry, usage, 0);
        self.storage
            .write_all_at(&primary, PRIMARY_SUPERBLOCK_OFFSET as u64)?;
        self.storage.sync_data()
    }

    fn groups_with_superblock(&self) -> impl Iterator<Item = u32> {
        (0..self.geometry.groups()).filter(|&group| has_superblock(group))
    }

    /// Writes `bytes` from the start of a block. More than a block goes on in the next; of a short one, the rest
    /// is zeroed.
    fn write_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        let mut bytes = std::borrow::Cow::Borrowed(bytes);
        if !bytes.len().is_multiple_of(BLOCK_SIZE as usize) {
            let len = bytes.len().next_multiple_of(BLOCK_SIZE as usize);
            bytes.to_mut().resize(len, 0);
        }
        self.storage.write_all_at(&bytes, block * BLOCK_SIZE)
    }

    fn zero_blocks(&self, block: u64, count: u32) -> Result<()> {
        self.storage
            .zero(block * BLOCK_SIZE, u64::from(count) * BLOCK_SIZE, ZeroMode::Unmap)
    }
}
