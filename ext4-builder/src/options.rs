//! What is to be made.

use block::{Error, Result};

use crate::geometry::Geometry;
use crate::layout;
use crate::time::Time;

/// Bytes of the superblock's field for the label.
const LABEL_SIZE: usize = 16;

/// How large the filesystem is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes, of which a last part of a block is left over. The storage is grown to it where it is shorter.
    Given(u64),
    /// What the tree takes, and so much free on top.
    Fit(Free),
    /// What the tree takes, to the block, with no inodes to spare.
    Shrink,
}

/// How much of a filesystem is to be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// At least so many bytes.
    Bytes(u64),
    /// At least so many hundredths of the whole, up to 90.
    Percent(u8),
}

/// Why a filesystem of a [given size](Size::Given) cannot be made: the cause of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tree needs {} bytes more than the {given} there are", enough - given)]
pub struct TooSmall {
    /// Bytes that there are, in whole blocks.
    pub given: u64,
    /// Bytes that would do.
    pub enough: u64,
}

/// How many inodes, the tree's included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inodes {
    /// One for so many bytes, 1024 or more, and some to spare where the tree has more than that.
    BytesPerInode(u64),
    /// So many, rounded up to whole blocks of inode tables. It is an error where the tree needs more.
    Count(u32),
}

/// The journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// As large as mke2fs makes it for the size of the filesystem; none below 2048 blocks.
    Default,
    /// So many bytes, 1024 blocks or more.
    Bytes(u64),
    /// None.
    None,
}

/// Which kernels, and which e2fsprogs of their time, can mount and check it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compat {
    /// Linux 3.10 and e2fsprogs 1.42: group checksums only, no values over a block in extended attributes.
    Linux3_10,
    /// Linux 4.19 and e2fsprogs 1.44: no orphan file.
    Linux4_19,
    /// Linux 5.15 and e2fsprogs 1.46: no orphan file.
    Linux5_15,
    /// What current mke2fs makes.
    #[default]
    Latest,
}

/// What is to be made. Nothing is taken from the clock, the host or a random number generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Size of the filesystem.
    pub size: Size,
    /// Bytes in a block: 1024, 2048 or 4096.
    pub block_size: u32,
    /// Identifies the filesystem, and seeds its checksums.
    pub uuid: [u8; 16],
    /// Seeds the hashes of names in indexed directories.
    pub hash_seed: [u8; 16],
    /// The volume's name: at most 16 bytes, no NUL among them.
    pub label: String,
    /// Creation; also the time of directories that nothing else is said of.
    pub time: Time,
    /// No time in the tree is later than this: later ones become this.
    pub clamp: Option<Time>,
    /// Number of inodes.
    pub inodes: Inodes,
    /// Percentage of all blocks that only root may fill, up to 50.
    pub reserved_percent: u8,
    /// The journal.
    pub journal: Journal,
    /// What must be able to use it.
    pub compat: Compat,
    /// Small files and directories are in their inodes, where all that is to be there fits.
    pub inline_data: bool,
    /// Bytes up to which a kernel can grow it while it is mounted: room is kept for the group descriptors. Without it,
    /// 1024 times a given size, and otherwise 512 GiB, or what a block of pointers to such room allows.
    pub growth: Option<u64>,
}

impl Options {
    /// A filesystem with blocks of 4 KiB: no label, the start of 1970, an inode for every 16 KiB, 5 % for root, and all
    /// that current mke2fs gives it. The hash seed is the UUID.
    pub fn new(size: Size, uuid: [u8; 16]) -> Self {
        Self {
            size,
            block_size: 4096,
            uuid,
            hash_seed: uuid,
            label: String::new(),
            time: Time::default(),
            clamp: None,
            inodes: Inodes::BytesPerInode(16384),
            reserved_percent: 5,
            journal: Journal::Default,
            compat: Compat::Latest,
            inline_data: false,
            growth: None,
        }
    }

    /// Whether such a filesystem can be made, as far as that can be known without its tree.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be, with what could.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: String, hint: &'static str| Err(Error::invalid(message).with_hint(hint));
        if !matches!(self.block_size, 1024 | 2048 | 4096) {
            let message = format!("blocks of {} bytes cannot be made", self.block_size);
            return refuse(message, "choose 1024, 2048 or 4096");
        }
        if self.label.len() > LABEL_SIZE || self.label.contains('\0') {
            let message = format!("{:?} cannot be a volume's label", self.label);
            return refuse(message, "choose one of at most 16 bytes without NUL");
        }
        if self.time.clamped() != self.time {
            let message = format!("a creation time of {} s is outside 1901 to 2446", self.time.secs);
            return refuse(message, "ext4 cannot store it; choose another");
        }
        if self.reserved_percent > 50 {
            let message = format!(
                "cannot reserve {} % of the blocks for root",
                self.reserved_percent
            );
            return refuse(message, "choose at most 50 %");
        }
        match self.size {
            Size::Fit(Free::Percent(percent @ 91..)) => {
                let message = format!("cannot keep {percent} % of a filesystem free");
                return refuse(message, "choose at most 90 %, or a number of bytes");
            }
            Size::Fit(Free::Bytes(bytes @ 0x0100_0000_0000_0000..)) => {
                return refuse(format!("cannot keep {bytes} bytes free"), "choose less room");
            }
            _ => {}
        }
        if let Inodes::BytesPerInode(bytes @ ..1024) = self.inodes {
            let message = format!("one inode for every {bytes} bytes is too many");
            return refuse(message, "choose 1024 bytes per inode or more");
        }
        if let Journal::Bytes(bytes) = self.journal {
            let block_size = u64::from(self.block_size);
            if !(1024..=10_240_000).contains(&(bytes / block_size)) {
                let message = format!("a journal of {bytes} bytes cannot be made");
                return refuse(message, "choose one of 1024 to 10,240,000 blocks");
            }
        }
        layout::descriptor_room(self, Geometry::new(self.block_size)).map(drop)
    }
}
