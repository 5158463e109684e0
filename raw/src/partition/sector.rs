//! The unit of partition tables.

use std::fmt;

use block::{Error, Result};

/// A sector of the disk, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lba(pub u64);

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long the sectors are that a partition table counts in. An image does not say; a table's place does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SectorSize {
    /// 512 bytes, as on nearly all disks.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

impl SectorSize {
    /// Both.
    pub const ALL: [Self; 2] = [Self::B512, Self::B4096];

    /// The size of so many bytes.
    ///
    /// # Errors
    /// `InvalidInput` for any but 512 and 4096.
    pub fn of(bytes: u64) -> Result<Self> {
        match bytes {
            512 => Ok(Self::B512),
            4096 => Ok(Self::B4096),
            other => Err(Error::invalid(format!("sectors cannot have {other} bytes"))
                .with_hint("there are 512 and 4096")),
        }
    }

    /// Bytes in a sector.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// The first byte of a sector. No disk reaches as far as those for which the answer is not exact.
    pub(super) fn start(self, lba: Lba) -> u64 {
        lba.0.saturating_mul(self.bytes())
    }
}
