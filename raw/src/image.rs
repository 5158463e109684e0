//! The raw format: the bytes of the file are the bytes of the disk.
//!
//! A disk has whole sectors of 512 bytes, a file any length. As in QEMU, the disk ends with the sector that the
//! file ends in: what lies past the end of the file reads as zeros, and writing there grows the file.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use block::{
    Access, Backing, BackingReference, BlockDevice, DeviceInfo, Error, ErrorKind, Extent, ExtentState,
    Format, Overlay, Preallocation, References, Resize, Result, Storage, ZeroMode,
};

/// The unit of a disk's size, in bytes.
pub const SECTOR: u64 = 512;

/// Bytes of zeros written at once for full preallocation.
const ZERO_CHUNK: u64 = 1 << 20;

const NAME: &str = "raw";

/// The raw format, for opening chains.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Format for Raw {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Never: any file could be a raw disk, and a guest writes what it likes to the first sector of one.
    fn probe(&self, _head: &[u8]) -> bool {
        false
    }

    fn references(&self, _storage: &dyn Storage) -> Result<References> {
        Ok(References::default())
    }

    fn open(
        &self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        access: Access,
        backing: Backing,
    ) -> Result<Arc<dyn Overlay>> {
        let refused = match (data_file, backing) {
            (Some(_), _) => "a raw image has no data file",
            (None, Backing::Device(_)) => "a raw image has no backing file",
            (None, Backing::None | Backing::Detached) => return Ok(Arc::new(Image::open(storage, access)?)),
        };
        Err(Error::invalid(refused).with_path_of(storage.path()))
    }
}

/// A raw disk image, open.
///
/// [`discard_at`](BlockDevice::discard_at) gives room back where the host can, and the range then reads as zeros;
/// where the host cannot, the bytes stay. There are no clusters of which more could be promised.
#[derive(Debug)]
pub struct Image {
    storage: Arc<dyn Storage>,
    write: bool,
    zero_init: bool,
    /// Bytes, a multiple of [`SECTOR`].
    size: AtomicU64,
    /// Held while the size changes.
    resizing: Mutex<()>,
}

impl Image {
    /// Opens what is in `storage`, whatever it is. The size is that of the storage now, in whole sectors.
    ///
    /// # Errors
    /// `Io`; `Unsupported` for a size that is not a file offset when rounded up to sectors.
    pub fn open(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        let size = whole_sectors(storage.len()?).map_err(|error| error.with_path_of(storage.path()))?;
        let start = storage.host_extent(0, size)?;
        Ok(Self {
            write: access.write,
            zero_init: !start.data && start.len >= size,
            size: AtomicU64::new(size),
            resizing: Mutex::new(()),
            storage,
        })
    }

    fn check(&self, op: &str, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::out_of_bounds(op, offset, len, size).with_path_of(self.path())),
        }
    }

    fn check_write(&self, op: &str, offset: u64, len: u64) -> Result<()> {
        self.check_writable(op)?;
        self.check(op, offset, len)
    }

    fn check_writable(&self, op: &str) -> Result<()> {
        if self.write {
            Ok(())
        } else {
            Err(Error::read_only(op).with_path_of(self.path()))
        }
    }
}

impl BlockDevice for Image {
    /// `zero_init` tells whether the file was one hole when it was opened.
    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new(NAME);
        info.read_only = !self.write;
        info.fast_zero = self.write;
        info.zero_init = self.zero_init;
        info.alignment = self.storage.alignment().offset;
        info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check("read", offset, buf.len() as u64)?;
        self.storage.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_write("write", offset, buf.len() as u64)?;
        self.storage.write_all_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [std::io::IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.check("read", offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.storage.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[std::io::IoSlice<'_>], offset: u64) -> Result<()> {
        self.check_write("write", offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.storage.write_vectored_at(bufs, offset)
    }

    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_write("write zeros", offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.storage.zero(offset, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write("discard", offset, len)?;
        self.storage.discard(offset, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let size = self.size();
        if offset >= size || len == 0 {
            return Err(Error::out_of_bounds("map", offset, len, size).with_path_of(self.path()));
        }
        let run = self.storage.host_extent(offset, len.min(size - offset))?;
        Ok(Extent {
            offset,
            len: run.len,
            state: if run.data {
                ExtentState::Data
            } else {
                ExtentState::Zero
            },
            depth: 0,
            host: Some(offset),
        })
    }

    fn flush(&self) -> Result<()> {
        self.storage.sync_data()
    }

    /// The new size is rounded up to whole sectors. Requests to a part that is being cut off meanwhile may bring
    /// the file's length back, though not the disk's.
    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        self.check_writable("resize")?;
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |error: Error| error.with_path_of(self.path());
        let (old, new) = (self.size(), whole_sectors(size).map_err(named)?);
        check_preallocation(how.preallocation).map_err(named)?;
        if new < old {
            if !how.shrink {
                return Err(named(shrink_refused(old, new)));
            }
            self.storage.set_len(new)?;
        } else if new > old {
            grow(&*self.storage, old, new, how.preallocation)?;
        }
        self.size.store(new, Ordering::Release);
        Ok(())
    }
}

impl Overlay for Image {
    fn backing(&self) -> Option<Arc<dyn BlockDevice>> {
        None
    }

    fn backing_reference(&self) -> Option<BackingReference> {
        None
    }

    fn own_extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.extent_at(offset, len)
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn path(&self) -> Option<&Path> {
        self.storage.path()
    }
}

/// Makes `storage` a raw image of `size` bytes, rounded up to whole sectors, that reads as zeros. A block device
/// only has to be long enough, and keeps what is on it.
///
/// # Errors
/// `InvalidInput` for a preallocation that raw images don't have, or a block device that is too short;
/// `Unsupported` for [`Preallocation::Falloc`] on a host that cannot reserve room; `NoSpace`, `Io`. The storage is
/// then empty.
pub fn create(storage: &dyn Storage, size: u64, preallocation: Preallocation) -> Result<()> {
    let named = |error: Error| error.with_path_of(storage.path());
    check_preallocation(preallocation).map_err(named)?;
    let size = whole_sectors(size).map_err(named)?;
    match storage.set_len(0) {
        Ok(()) => grow(storage, 0, size, preallocation),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let len = storage.len()?;
            if len < size {
                let message = format!("the device has {len} bytes, too few for an image of {size}");
                return Err(named(Error::invalid(message)));
            }
            lay_out(storage, 0, size, preallocation)
        }
        Err(error) => Err(error),
    }
}

/// Grows the storage from `old` to `new` bytes; after a failure it is as long as before.
fn grow(storage: &dyn Storage, old: u64, new: u64, preallocation: Preallocation) -> Result<()> {
    let len = storage.len()?;
    let result = storage
        .set_len(new)
        .and_then(|()| lay_out(storage, old, new, preallocation));
    if result.is_err() {
        // The first error says what is wrong; that the file could not be put back adds nothing to it.
        let _ = storage.set_len(len);
    }
    result
}

fn lay_out(storage: &dyn Storage, mut start: u64, end: u64, preallocation: Preallocation) -> Result<()> {
    match preallocation {
        _ if start >= end => Ok(()),
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => storage.allocate(start, end - start),
        Preallocation::Full => {
            let zeros = vec![0; (end - start).min(ZERO_CHUNK) as usize];
            while start < end {
                let len = (end - start).min(zeros.len() as u64);
                storage.write_all_at(&zeros[..len as usize], start)?;
                start += len;
            }
            Ok(())
        }
    }
}

fn check_preallocation(preallocation: Preallocation) -> Result<()> {
    match preallocation {
        Preallocation::Metadata => Err(Error::invalid("a raw image has no metadata to preallocate")
            .with_hint("use preallocation off, falloc or full")),
        Preallocation::Off | Preallocation::Falloc | Preallocation::Full => Ok(()),
    }
}

fn shrink_refused(old: u64, new: u64) -> Error {
    let message = format!(
        "shrinking from {old} to {new} bytes would cut off {} bytes",
        old - new
    );
    Error::invalid(message).with_hint("allow it to shrink, once nothing beyond the new end is needed")
}

/// `size` rounded up to sectors; refused where that is no offset in a file.
fn whole_sectors(size: u64) -> Result<u64> {
    match size.checked_next_multiple_of(SECTOR) {
        Some(size) if i64::try_from(size).is_ok() => Ok(size),
        _ => Err(Error::unsupported(format!(
            "a disk of {size} bytes is larger than any file"
        ))),
    }
}
