//! The superblock's sets of features ("Super Block"): what a kernel has to know to use the filesystem.

use crate::options::Compat;

/// `has_journal`.
const JOURNAL: u32 = 0x4;
/// `ext_attr`.
const XATTRS: u32 = 0x8;
/// `resize_inode`.
const RESIZE_INODE: u32 = 0x10;
/// `dir_index`.
const DIRECTORY_INDEX: u32 = 0x20;
/// `orphan_file`.
const ORPHAN_FILE: u32 = 0x1000;

/// `filetype`, `extent`, `64bit`, `flex_bg`.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// `ea_inode`.
const EA_INODE: u32 = 0x400;
/// `metadata_csum_seed`.
const CHECKSUM_SEED: u32 = 0x2000;
/// `large_dir`.
const LARGE_DIRECTORY: u32 = 0x4000;
/// `inline_data`.
const INLINE_DATA: u32 = 0x8000;

/// `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize`.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40;
/// `uninit_bg`.
const GROUP_CHECKSUMS: u32 = 0x10;
/// `metadata_csum`.
const METADATA_CHECKSUMS: u32 = 0x400;

/// The features that are not in every filesystem made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    pub(crate) journal: bool,
    pub(crate) resize_inode: bool,
    pub(crate) orphan_file: bool,
    pub(crate) ea_inode: bool,
    pub(crate) large_directory: bool,
    pub(crate) inline_data: bool,
    /// Everything is under a CRC-32C; else group descriptors alone, under a CRC-16.
    pub(crate) metadata_checksums: bool,
}

impl Features {
    /// All that the kernels of a profile know, and that is not to be asked for.
    pub(crate) fn of(compat: Compat) -> Self {
        Self {
            journal: true,
            resize_inode: true,
            orphan_file: compat >= Compat::Latest,
            ea_inode: compat >= Compat::Linux4_19,
            large_directory: compat >= Compat::Linux4_19,
            inline_data: false,
            metadata_checksums: compat >= Compat::Linux4_19,
        }
    }

    /// What a kernel that does not know it may ignore.
    pub(crate) fn compatible(self) -> u32 {
        XATTRS
            | DIRECTORY_INDEX
            | flag(self.journal, JOURNAL)
            | flag(self.resize_inode, RESIZE_INODE)
            | flag(self.orphan_file, ORPHAN_FILE)
    }

    /// What a kernel that does not know it must not mount.
    pub(crate) fn incompatible(self) -> u32 {
        INCOMPATIBLE
            | flag(self.ea_inode, EA_INODE)
            | flag(self.large_directory, LARGE_DIRECTORY)
            | flag(self.inline_data, INLINE_DATA)
            | flag(self.metadata_checksums, CHECKSUM_SEED)
    }

    /// What a kernel that does not know it must not write to.
    pub(crate) fn read_only_compatible(self) -> u32 {
        let checksums = if self.metadata_checksums {
            METADATA_CHECKSUMS
        } else {
            GROUP_CHECKSUMS
        };
        READ_ONLY_COMPATIBLE | checksums
    }
}

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}
