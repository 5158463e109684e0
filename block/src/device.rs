//! What lies above a format: the disk that a guest sees.

use std::any::Any;
use std::fmt::Debug;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

use crate::{Error, Extent, HostCopy, Result, Storage};

/// What becomes of the room when a range is made to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroMode {
    /// Give it back where that is possible.
    Unmap,
    /// Keep it, so that a later write there needs no allocation.
    Allocate,
}

/// How much of a new or grown image is laid out in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Preallocation {
    /// Nothing: room is taken as it is written to.
    #[default]
    Off,
    /// The format's tables, with every cluster mapped, and no room for data.
    Metadata,
    /// Tables, and room for the data reserved by the host.
    Falloc,
    /// Tables, and zeros written for all of the data.
    Full,
}

/// A change of a disk's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    /// Permission to cut off what lies beyond the new end.
    pub shrink: bool,
    /// What is laid out of a grown part.
    pub preallocation: Preallocation,
}

/// What a device is and can do; asked once, never guessed at I/O time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The format's name as on a command line: `raw`, `qcow2`.
    pub format: &'static str,
    /// Writes are refused.
    pub read_only: bool,
    /// Bytes in the unit of allocation, where there is one.
    pub cluster_size: Option<u64>,
    /// Bytes in the parts of that which have a state of their own each, where there are such (qcow2's subclusters).
    pub subcluster_size: Option<u64>,
    /// [`BlockDevice::zero_at`] is cheaper than writing zeros.
    pub fast_zero: bool,
    /// A new device reads as zeros everywhere, so that zeros need not be written to it.
    pub zero_init: bool,
    /// What lies in the file is not what the disk reads as.
    pub encrypted: bool,
    /// The best alignment of requests, in bytes; others work.
    pub alignment: u32,
}

impl DeviceInfo {
    /// A writable device with no clusters, no fast zeroing, and no alignment to heed.
    pub fn new(format: &'static str) -> Self {
        Self {
            format,
            read_only: false,
            cluster_size: None,
            subcluster_size: None,
            fast_zero: false,
            zero_init: false,
            encrypted: false,
            alignment: 1,
        }
    }
}

/// A disk: `size` bytes at offsets, as a guest sees it.
///
/// Requests may have any alignment and length; an empty one does nothing. Writes that overlap in time leave the
/// bytes of either. A write is visible to later reads at once, and durable once a [`flush`](Self::flush) that
/// began after it has returned.
pub trait BlockDevice: Send + Sync + Debug {
    /// What the device is and can do.
    fn info(&self) -> DeviceInfo;

    /// Length of the disk in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `OutOfBounds` past the end of the disk; `Corrupt`, `Io`. `buf` is then undefined.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// `OutOfBounds` past the end of the disk, `ReadOnly`, `NoSpace`, `Corrupt`, `Io`. The range is then undefined.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// [`read_at`](Self::read_at) into several buffers, one after the other.
    ///
    /// # Errors
    /// As there.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        for buf in bufs {
            self.read_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// [`write_at`](Self::write_at) from several buffers, one after the other.
    ///
    /// # Errors
    /// As there.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> Result<()> {
        for buf in bufs {
            self.write_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Makes `len` bytes at `offset` read as zeros.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()>;

    /// Says that the guest does not need `len` bytes at `offset` any more. Whole clusters inside are given back
    /// and read as zeros afterwards; what cannot be given back without old data of a backing device coming to light
    /// (version 2 of qcow2) and parts of clusters stay as they are.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn discard_at(&self, offset: u64, len: u64) -> Result<()>;

    /// The run that starts at `offset`, `len` bytes at most, seen through the whole chain. It may be shorter than
    /// the run really is, never empty.
    ///
    /// # Errors
    /// `OutOfBounds` where `offset` is not on the disk or `len` is 0; `Corrupt`, `Io`.
    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent>;

    /// Makes everything acknowledged before this call durable.
    ///
    /// # Errors
    /// `Io`, `NoSpace`. The device may refuse writes from then on, with this error.
    fn flush(&self) -> Result<()>;

    /// Flushes, and brings what the device keeps about itself into the state in which it is when nobody writes (dirty
    /// bitmaps saved, marks of use taken away): what closing it does too, but this tells of failures. It may be
    /// written to again.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    fn settle(&self) -> Result<()> {
        self.flush()
    }

    /// Changes the size of the disk. What is added reads as zeros, whatever a backing device holds there.
    ///
    /// # Errors
    /// `Unsupported`; `InvalidInput` for a smaller size without [`Resize::shrink`]; as [`write_at`](Self::write_at).
    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        let _ = (size, how);
        Err(Error::unsupported(format!(
            "a {} device cannot be resized",
            self.info().format
        )))
    }

    /// The way to write compressed clusters, for a device that has it.
    fn compressed(&self) -> Option<&dyn CompressedWrite> {
        None
    }

    /// The way to leave writing to the host, for a device that has it.
    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        None
    }
}

/// Writing clusters compressed, in two steps: [`compress`](Self::compress) is pure work for many threads, and
/// [`write_compressed_at`](Self::write_compressed_at) gives out room in the order it is called.
pub trait CompressedWrite: Send + Sync {
    /// Compresses one cluster. `None` where that would not save room: write it as it is.
    ///
    /// # Errors
    /// `InvalidInput` unless `cluster` is exactly one cluster long.
    fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Stores what [`compress`](Self::compress) made of the cluster at `offset`, a multiple of the cluster size.
    ///
    /// # Errors
    /// `InvalidInput` for an offset inside a cluster; as [`BlockDevice::write_at`].
    fn write_compressed_at(&self, compressed: &[u8], offset: u64) -> Result<()>;
}

/// Writing what lies in a file of the host already: the host shares or copies it, and it does not come this way.
pub trait OffloadedWrite: Send + Sync + Debug {
    /// As [`Storage::may_copy_from`].
    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool;

    /// Has the host put `len` bytes of `source` from `source_offset` on to `offset` of the disk. Returns how many bytes,
    /// from the start, are there: fewer than `len` where it is to be asked again for the others, and 0 where the host
    /// refuses. What is not there reads as before, or as the source.
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`].
    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64>;
}

/// How an image names the file below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackingReference {
    /// The name as stored: relative to the directory of the image that names it, or absolute.
    pub name: String,
    /// The format as stored. Without it the file cannot be opened: a guest could have written what a probe finds.
    pub format: Option<String>,
}

/// How an image names an external file that holds its data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DataFileReference {
    /// The name as stored, where one is.
    pub name: Option<String>,
    /// The file is a raw image of the whole disk.
    pub raw: bool,
}

/// A device that reads through to a backing device where it holds nothing itself.
///
/// Whoever knows the format can have what only that has: `(overlay as &dyn Any).downcast_ref()`.
pub trait Overlay: BlockDevice + Any {
    /// The device below, if one was given.
    fn backing(&self) -> Option<Arc<dyn BlockDevice>>;

    /// The name of the file below, as stored in the image.
    fn backing_reference(&self) -> Option<BackingReference>;

    /// The run that starts at `offset` in this layer alone: [`Hole`](crate::ExtentState::Hole) is what falls
    /// through to the backing. Depth is always 0.
    ///
    /// # Errors
    /// As [`BlockDevice::extent_at`].
    fn own_extent_at(&self, offset: u64, len: u64) -> Result<Extent>;

    /// Has the image name another file below, or none, durably: everything acknowledged before is durable first, and
    /// a power cut leaves the old name or the new one. The name is stored as it is; whether it can be opened is the
    /// caller's business. This device goes on reading from what it was opened over, and is best closed now.
    ///
    /// # Errors
    /// `Unsupported` for a format without backing files, `InvalidInput` for a name that cannot be stored, `ReadOnly`,
    /// `Io`. After `Io` it is unknown which of the two the image names.
    fn set_backing_reference(&self, reference: Option<BackingReference>) -> Result<()> {
        let _ = reference;
        Err(
            Error::unsupported(format!("a {} image has no backing file", self.info().format))
                .with_path_of(self.path()),
        )
    }

    /// Makes the whole clusters (subclusters, where the image has them) in `len` bytes at `offset` holes of this layer:
    /// what lies below shows. A cluster that the end of the disk cuts off counts as whole; other parts of clusters stay
    /// as they are.
    ///
    /// It is for what lies below in the same words already: dirty bitmaps do not take it down as a change of the disk.
    ///
    /// # Errors
    /// `Unsupported` for a format without backing files; as [`BlockDevice::write_at`].
    fn unmap_to_backing(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(
            Error::unsupported(format!("a {} image has no backing file", self.info().format))
                .with_path_of(self.path()),
        )
    }

    /// Makes `len` bytes at `offset` read as zeros by a statement of this layer. [`BlockDevice::zero_at`] need not
    /// state anything where nothing lies below; this holds whatever comes to lie there.
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`].
    fn state_zero(&self, offset: u64, len: u64) -> Result<()> {
        let zeros = vec![0; len.min(64 << 10) as usize];
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let step = (end - at).min(zeros.len() as u64);
            self.write_at(&zeros[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    /// The file this layer is stored in.
    fn storage(&self) -> &Arc<dyn Storage>;

    /// The file's name, for messages and maps.
    fn path(&self) -> Option<&Path> {
        self.storage().path()
    }
}
