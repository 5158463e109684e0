//! What is to be made.

use block::Result;

use crate::label;
use crate::layout::Layout;
use crate::time::Time;

/// What is to be made. Nothing is taken from the clock, the host or a random number generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the filesystem, of which a last part of a cluster is left over. The storage is grown to it where it is
    /// shorter.
    pub size: u64,
    /// Bytes in a sector, which must be those of the disk: 512, 1024, 2048 or 4096.
    pub sector_size: u32,
    /// Bytes in a cluster, a power of two from a sector to 32 KiB. Without it, what Microsoft's table says for the size:
    /// 512 bytes up to 260 MiB, 4 KiB up to 8 GiB, then 8, 16 and 32.
    pub cluster_size: Option<u32>,
    /// The volume's name: at most 11 characters that short names may have, or spaces; none if empty.
    pub label: String,
    /// Tells volumes apart: what others show as `1234-5678`.
    pub volume_id: u32,
    /// Creation of the volume, which its label has.
    pub time: Time,
    /// Sectors before the filesystem on its disk, which only very old boot code wants to know.
    pub hidden_sectors: u32,
}

impl Options {
    /// A filesystem of `size` bytes in sectors of 512, without a label.
    pub fn new(size: u64, volume_id: u32) -> Self {
        Self {
            size,
            sector_size: 512,
            cluster_size: None,
            label: String::new(),
            volume_id,
            time: Time::default(),
            hidden_sectors: 0,
        }
    }

    /// Whether such a filesystem can be made.
    ///
    /// # Errors
    /// `InvalidInput` for sizes and a label that cannot be, with what could.
    pub fn validate(&self) -> Result<()> {
        Layout::new(self)?;
        label::parse(&self.label).map(|_| ())
    }
}
