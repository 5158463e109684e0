//! The superblock ("Super Block"): 1024 bytes at byte 1024 of the disk.

use bitflags::bitflags;
use block::{Error, ErrorKind, Result};
use byteorder::{ByteOrder, LittleEndian};

use crate::checksum::Checksum;
use crate::corruption::{Corruption, verify};

/// Where it starts on the disk.
pub(crate) const OFFSET: u64 = 1024;
/// Its length.
pub(crate) const SIZE: usize = 1024;
/// Where its magic number is, and what it is.
pub(crate) const MAGIC_OFFSET: usize = 0x38;
pub(crate) const MAGIC: u16 = 0xEF53;
const CHECKSUM_OFFSET: usize = 0x3FC;
/// Log2 of the largest block, 64 KiB, over 1024.
const MAX_LOG_BLOCK_SIZE: u32 = 6;

bitflags! {
    /// Features that a reader may ignore.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Compatible: u32 {
        const HAS_JOURNAL = 0x4;
        const FAST_COMMIT = 0x400;
        const SPARSE_SUPER2 = 0x200;
        const _ = !0;
    }

    /// Features that a reader must know.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Incompatible: u32 {
        const FILETYPE = 0x2;
        const RECOVER = 0x4;
        const META_BG = 0x10;
        const EXTENTS = 0x40;
        const IS_64BIT = 0x80;
        const MMP = 0x100;
        const FLEX_BG = 0x200;
        const EA_INODE = 0x400;
        const CSUM_SEED = 0x2000;
        const LARGEDIR = 0x4000;
        const INLINE_DATA = 0x8000;
        const ENCRYPT = 0x1_0000;
        const CASEFOLD = 0x2_0000;
    }

    /// Features that only a writer must know.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct ReadOnlyCompatible: u32 {
        const SPARSE_SUPER = 0x1;
        const HUGE_FILE = 0x8;
        const GDT_CSUM = 0x10;
        const METADATA_CSUM = 0x400;
        const SHARED_BLOCKS = 0x4000;
        const _ = !0;
    }
}

/// Names of features that are known and not supported.
const UNSUPPORTED: [(u32, &str); 3] = [
    (0x1, "compression"),
    (0x8, "journal_dev (a journal, and no filesystem)"),
    (0x1000, "dirdata"),
];

/// What the superblock says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub(crate) block_bits: u32,
    pub(crate) blocks: u64,
    pub(crate) inodes: u32,
    pub(crate) first_data_block: u32,
    pub(crate) blocks_per_group: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inode_size: u16,
    pub(crate) first_inode: u32,
    pub(crate) descriptor_size: u16,
    pub(crate) first_meta_group: u32,
    pub(crate) backup_groups: [u32; 2],
    pub(crate) journal_inode: u32,
    pub(crate) compatible: Compatible,
    pub(crate) incompatible: Incompatible,
    pub(crate) read_only_compatible: ReadOnlyCompatible,
    pub(crate) uuid: [u8; 16],
    pub(crate) label: Vec<u8>,
    /// Seeds the checksums of everything else.
    pub(crate) seed: Checksum,
}

impl Superblock {
    /// Parses and checks it.
    ///
    /// # Errors
    /// `InvalidInput` where there is none; `Unsupported`, `Corrupt`.
    pub(crate) fn parse(bytes: &[u8; SIZE]) -> Result<Self> {
        let u16_at = |offset: usize| LittleEndian::read_u16(&bytes[offset..]);
        let u32_at = |offset: usize| LittleEndian::read_u32(&bytes[offset..]);
        if u16_at(MAGIC_OFFSET) != MAGIC {
            return Err(Error::invalid("this is no ext2, ext3 or ext4 filesystem"));
        }
        // Older revisions have no field for features, and inodes of 128 bytes.
        let dynamic = u32_at(0x4C) != 0;
        let features = |offset| if dynamic { u32_at(offset) } else { 0 };
        let read_only_compatible = ReadOnlyCompatible::from_bits_retain(features(0x64));
        if read_only_compatible.contains(ReadOnlyCompatible::METADATA_CSUM) {
            let computed = Checksum::START.with(&bytes[..CHECKSUM_OFFSET]);
            verify(u32_at(CHECKSUM_OFFSET), computed.0, || {
                "the superblock".to_owned()
            })?;
        }
        let incompatible = known(features(0x60))?;
        let is_64bit = incompatible.contains(Incompatible::IS_64BIT);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[0x68..0x78]);
        let label = bytes[0x78..0x88]
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        let seed = if incompatible.contains(Incompatible::CSUM_SEED) {
            Checksum(u32_at(0x270))
        } else {
            Checksum::START.with(&uuid)
        };
        let superblock = Self {
            block_bits: u32_at(0x18).saturating_add(10),
            blocks: u64::from(u32_at(0x4))
                | if is_64bit {
                    u64::from(u32_at(0x150)) << 32
                } else {
                    0
                },
            inodes: u32_at(0x0),
            first_data_block: u32_at(0x14),
            blocks_per_group: u32_at(0x20),
            inodes_per_group: u32_at(0x28),
            inode_size: if dynamic { u16_at(0x58) } else { 128 },
            first_inode: if dynamic { u32_at(0x54) } else { 11 },
            descriptor_size: if is_64bit { u16_at(0xFE) } else { 32 },
            first_meta_group: u32_at(0x104),
            backup_groups: [u32_at(0x24C), u32_at(0x250)],
            journal_inode: u32_at(0xE0),
            compatible: Compatible::from_bits_retain(features(0x5C)),
            incompatible,
            read_only_compatible,
            uuid,
            label: label.to_vec(),
            seed,
        };
        superblock.check()?;
        Ok(superblock)
    }

    /// Everything that arithmetic relies on.
    fn check(&self) -> Result<()> {
        let wrong = |field, value: u64, problem| {
            Err(Corruption::Superblock {
                field,
                value,
                problem,
            }
            .into())
        };
        if self.block_bits > MAX_LOG_BLOCK_SIZE + 10 {
            return wrong(
                "s_log_block_size",
                u64::from(self.block_bits - 10),
                "blocks have at most 64 KiB",
            );
        }
        if self.first_data_block > 1 || u64::from(self.first_data_block) >= self.blocks {
            return wrong("s_first_data_block", self.first_data_block.into(), "it is 0 or 1");
        }
        if self.blocks.checked_mul(self.block_size()).is_none() {
            return wrong("s_blocks_count", self.blocks, "no disk is so large");
        }
        if self.blocks_per_group == 0 {
            return wrong("s_blocks_per_group", 0, "groups have blocks");
        }
        let inode_size = u64::from(self.inode_size);
        if !inode_size.is_power_of_two() || inode_size < 128 || inode_size > self.block_size() {
            return wrong(
                "s_inode_size",
                inode_size,
                "it is a power of two from 128 to the block size",
            );
        }
        let descriptor_size = u64::from(self.descriptor_size);
        let least = if self.has(Incompatible::IS_64BIT) { 64 } else { 32 };
        if !descriptor_size.is_power_of_two()
            || descriptor_size < least
            || descriptor_size > self.block_size()
        {
            return wrong(
                "s_desc_size",
                descriptor_size,
                "it is a power of two from 64 to the block size",
            );
        }
        if self.inodes_per_group == 0 || u64::from(self.inodes_per_group) > self.block_size() * 8 {
            return wrong(
                "s_inodes_per_group",
                self.inodes_per_group.into(),
                "a block is to hold their bitmap",
            );
        }
        let groups = (self.blocks - u64::from(self.first_data_block)).div_ceil(self.blocks_per_group.into());
        if u32::try_from(groups).is_err() {
            return wrong(
                "s_blocks_count",
                self.blocks,
                "there are more groups than can be counted",
            );
        }
        if u64::from(self.inodes) > groups * u64::from(self.inodes_per_group) {
            return wrong("s_inodes_count", self.inodes.into(), "the groups hold fewer");
        }
        Ok(())
    }

    pub(crate) fn has(&self, feature: Incompatible) -> bool {
        self.incompatible.contains(feature)
    }

    pub(crate) fn has_checksums(&self) -> bool {
        self.read_only_compatible
            .contains(ReadOnlyCompatible::METADATA_CSUM)
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    /// Blocks of the filesystem.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Inodes, used ones or not.
    pub fn inodes(&self) -> u32 {
        self.inodes
    }

    /// The volume's name.
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// Identifies the filesystem.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// The first block of the first group.
    pub fn first_data_block(&self) -> u64 {
        self.first_data_block.into()
    }

    /// Blocks of a group but for the last, which may have fewer.
    pub fn blocks_per_group(&self) -> u32 {
        self.blocks_per_group
    }

    /// Groups of blocks.
    pub fn groups(&self) -> u32 {
        (self.blocks - self.first_data_block()).div_ceil(self.blocks_per_group.into()) as u32
    }

    /// Inodes of a group.
    pub fn inodes_per_group(&self) -> u32 {
        self.inodes_per_group
    }

    /// Bytes of an inode.
    pub fn inode_size(&self) -> u16 {
        self.inode_size
    }

    /// The first inode that is not kept for the filesystem's own files.
    pub fn first_inode(&self) -> u32 {
        self.first_inode
    }

    /// Bytes of a group's descriptor.
    pub fn descriptor_size(&self) -> u16 {
        self.descriptor_size
    }

    /// What all checksums start from, where metadata has checksums.
    pub fn checksum_seed(&self) -> Option<u32> {
        self.has_checksums().then_some(self.seed.0)
    }

    /// Whether files may share blocks, as read-only images of Android do.
    pub(crate) fn shares_blocks(&self) -> bool {
        self.read_only_compatible
            .contains(ReadOnlyCompatible::SHARED_BLOCKS)
    }
}

/// The features, if all of them are known.
fn known(bits: u32) -> Result<Incompatible> {
    let Some(features) = Incompatible::from_bits(bits) else {
        let unknown = bits & !Incompatible::all().bits();
        let named = UNSUPPORTED.iter().filter(|(bit, _)| unknown & bit != 0);
        let mut names: Vec<String> = named.map(|(_, name)| (*name).to_owned()).collect();
        let rest = unknown & !UNSUPPORTED.iter().fold(0, |all, (bit, _)| all | bit);
        if rest != 0 {
            names.push(format!("incompatible features {rest:#x}"));
        }
        let message = format!("the filesystem needs what is not supported: {}", names.join(", "));
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    Ok(features)
}
