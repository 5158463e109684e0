//! Persistent dirty bitmaps ("Bitmaps"): what of the disk was written to since some point in time.
//!
//! The header's bitmaps extension names the [directory], an entry of which describes a bitmap: its name, its flags,
//! and where its [table] is. An entry of that says of a cluster of the bitmap's data where it lies, or that it is all
//! zeros or all ones. In memory, a bitmap's data are [bits].
//!
//! Here is what the format says; what an open image does with its bitmaps is in `image/bitmap`.

pub(crate) mod bits;
pub(crate) mod directory;
pub(crate) mod table;

use block::{Error, Result, Storage};

use crate::address::HostOffset;
use crate::header::Header;

/// Most bitmaps in an image (QEMU's limit, kept).
pub(crate) const MAX_BITMAPS: u32 = 65_535;
/// Longest name of a bitmap in bytes (QEMU's limit, kept).
pub(crate) const MAX_NAME: usize = 1023;
/// Least and greatest log2 of a granularity (QEMU's limits, kept).
pub(crate) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;
/// Most bytes of a bitmap's data (QEMU's limit, kept).
pub(crate) const MAX_DATA: u64 = 512 << 20;

/// A dirty bitmap, as the bitmap directory describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name, unique in the image. From the file: escape it before it is printed.
    pub name: String,
    /// log2 of the bytes of the disk that a bit stands for, 9..=31.
    pub granularity_bits: u32,
    /// It was not saved: its contents may be anything, and all that can be done with it is to remove it.
    pub in_use: bool,
    /// It is enabled: it records writes whenever the image is open for them.
    pub auto: bool,
    /// Its extra data may be ignored.
    pub extra_data_compatible: bool,
    /// Where its table starts.
    pub table_offset: HostOffset,
    /// Entries of its table.
    pub table_entries: u32,
    /// Bytes of extra data, which have no meaning yet.
    pub extra_data_len: u32,
}

impl Bitmap {
    /// Bytes of the disk that a bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Lists the bitmaps of an image: none if its bitmaps are not marked consistent. Tables are checked for their
    /// place, and not read.
    ///
    /// # Errors
    /// `Corrupt` for a directory that contradicts the format or exceeds a limit, `Unsupported` for a name that is
    /// not UTF-8 and for a type that is unknown, `Io`; each with the storage's path.
    pub fn list(storage: &dyn Storage, header: &Header) -> Result<Vec<Self>> {
        let entries = directory::read(storage, header)?;
        Ok(entries.into_iter().map(|entry| entry.bitmap).collect())
    }

    /// Why its contents cannot be used: they were not saved, or have a meaning that is unknown here.
    pub(crate) fn check_usable(&self) -> Result<()> {
        let name = block::escape(&self.name);
        let problem = if self.in_use {
            format!("bitmap '{name}' is inconsistent: the image was not closed after it was last written to")
        } else if self.extra_data_len > 0 && !self.extra_data_compatible {
            format!("bitmap '{name}' has extra data whose meaning is unknown")
        } else {
            return Ok(());
        };
        Err(Error::unsupported(problem).with_hint("remove it with `imgtool bitmap --remove`"))
    }
}

/// Bits of a bitmap for a disk of `size` bytes.
pub(crate) fn bits(size: u64, granularity_bits: u32) -> u64 {
    size.div_ceil(1 << granularity_bits)
}
