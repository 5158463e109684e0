//! To and from the traits of `positioned-io`, which filesystem and partition crates read and write through.
//!
//! [`FromReadWriteAt`] makes a [`Storage`] of anything that reads and writes at offsets, and [`ToReadWriteAt`]
//! lets crates that want such a thing use a [`BlockDevice`], so the inside of an image.
//!
//! ```
//! use std::sync::Arc;
//! use block::compat::{FromReadWriteAt, ToReadWriteAt};
//! use block::Storage;
//! use positioned_io::{ReadAt, Size};
//! # use block::{BlockDevice, DeviceInfo, Extent, ExtentState, Result, ZeroMode};
//! # #[derive(Debug)] struct Disk(Arc<dyn Storage>);
//! # impl BlockDevice for Disk {
//! #     fn info(&self) -> DeviceInfo { DeviceInfo::new("demo") }
//! #     fn size(&self) -> u64 { 1024 }
//! #     fn read_at(&self, b: &mut [u8], o: u64) -> Result<()> { self.0.read_exact_at(b, o) }
//! #     fn write_at(&self, b: &[u8], o: u64) -> Result<()> { self.0.write_all_at(b, o) }
//! #     fn zero_at(&self, o: u64, l: u64, m: ZeroMode) -> Result<()> { self.0.zero(o, l, m) }
//! #     fn discard_at(&self, _: u64, _: u64) -> Result<()> { Ok(()) }
//! #     fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
//! #         Ok(Extent { offset, len, state: ExtentState::Data, depth: 0, host: None })
//! #     }
//! #     fn flush(&self) -> Result<()> { self.0.sync_data() }
//! # }
//!
//! // A vector of bytes is storage for a format...
//! let storage = FromReadWriteAt::new(vec![0_u8; 512]);
//! storage.write_all_at(b"0123456789", 600)?;
//! assert_eq!(storage.len()?, 610);
//!
//! // ... and the device that a format makes of it is there for everybody else.
//! # let device = Disk(Arc::new(storage));
//! let disk = ToReadWriteAt::new(Arc::new(device));
//! let mut buf = [0; 4];
//! disk.read_exact_at(602, &mut buf)?;
//! assert_eq!((&buf, disk.size()?), (b"2345", Some(1024)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use positioned_io::{ReadAt, Size, WriteAt};

use crate::{BlockDevice, Error, HostExtent, Result, Storage, ZeroMode};

/// Bytes of zeros written at once.
const ZEROS: usize = 64 << 10;

/// Anything that reads and writes at offsets, as a [`Storage`].
///
/// Reads run side by side, and a write waits for them, since [`WriteAt`] wants it alone. It has no holes, gives no
/// room back, and cannot be made shorter: those traits have no words for that.
pub struct FromReadWriteAt<T> {
    inner: RwLock<T>,
    sync: fn(&mut T) -> io::Result<()>,
}

impl<T: ReadAt + WriteAt + Size + Send + Sync> FromReadWriteAt<T> {
    /// `inner`, made durable by its [`flush`](WriteAt::flush).
    ///
    /// That of a [`File`](std::fs::File) does nothing at all: for files, and what wraps them, say how with
    /// [`with_sync`](Self::with_sync).
    pub fn new(inner: T) -> Self {
        Self::with_sync(inner, T::flush)
    }

    /// `inner`, made durable by `sync`, such as `|file| file.sync_data()`.
    pub fn with_sync(inner: T, sync: fn(&mut T) -> io::Result<()>) -> Self {
        Self {
            inner: RwLock::new(inner),
            sync,
        }
    }

    /// What was wrapped.
    pub fn into_inner(self) -> T {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    // A panic inside of `T` is `T`'s to recover from: this adds no state that it could leave half changed.
    fn shared(&self) -> RwLockReadGuard<'_, T> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, T> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ReadAt + WriteAt + Size + Send + Sync> Storage for FromReadWriteAt<T> {
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let inner = self.shared();
        while !buf.is_empty() {
            match inner.read_at(offset, buf) {
                Ok(0) => break,
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", error).with_offset(offset)),
            }
        }
        buf.fill(0);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let written = self.alone().write_all_at(offset, buf);
        written.map_err(|error| Error::io("write", error).with_offset(offset))
    }

    /// Writes zeros.
    fn zero(&self, offset: u64, len: u64, _: ZeroMode) -> Result<()> {
        let zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
        let end = offset.checked_add(len);
        let end =
            end.ok_or_else(|| Error::io("zero", io::ErrorKind::FileTooLarge.into()).with_offset(offset))?;
        let mut at = offset;
        while at < end {
            let now = zeros.len().min(usize::try_from(end - at).unwrap_or(ZEROS));
            self.write_all_at(&zeros[..now], at)?;
            at += now as u64;
        }
        Ok(())
    }

    /// Ignored.
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        match self.len()?.saturating_sub(offset).min(len) {
            0 => Ok(HostExtent { len, data: false }),
            len => Ok(HostExtent { len, data: true }),
        }
    }

    fn sync_data(&self) -> Result<()> {
        (self.sync)(&mut self.alone()).map_err(|error| Error::io("sync", error))
    }

    fn len(&self) -> Result<u64> {
        let size = self
            .shared()
            .size()
            .map_err(|error| Error::io("find the length", error))?;
        size.ok_or_else(|| Error::unsupported("this storage does not know its length"))
    }

    /// Only to grow, which writes the last byte.
    fn set_len(&self, len: u64) -> Result<()> {
        let now = self.len()?;
        if len > now {
            return self.write_all_at(&[0], len - 1);
        }
        if len < now {
            return Err(Error::unsupported(format!(
                "this storage of {now} bytes cannot be cut to {len}"
            )));
        }
        Ok(())
    }
}

impl<T> fmt::Debug for FromReadWriteAt<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FromReadWriteAt<{}>", std::any::type_name::<T>())
    }
}

/// A device, for crates that read and write through the traits of `positioned-io`.
///
/// Its end is where a file's would be: a read there gives fewer bytes or none. A write past it writes nothing, which
/// [`write_all_at`](WriteAt::write_all_at) makes an error.
#[derive(Clone, Debug)]
pub struct ToReadWriteAt(Arc<dyn BlockDevice>);

impl ToReadWriteAt {
    /// `device`, as something that reads and writes at offsets.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self(device)
    }

    /// How many of `len` bytes at `offset` are on the disk.
    fn on_disk(&self, offset: u64, len: usize) -> usize {
        let rest = self.0.size().saturating_sub(offset);
        usize::try_from(rest).map_or(len, |rest| rest.min(len))
    }
}

impl ReadAt for ToReadWriteAt {
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.on_disk(pos, buf.len());
        if len > 0 {
            self.0.read_at(&mut buf[..len], pos)?;
        }
        Ok(len)
    }
}

impl WriteAt for ToReadWriteAt {
    fn write_at(&mut self, pos: u64, buf: &[u8]) -> io::Result<usize> {
        let len = self.on_disk(pos, buf.len());
        if len > 0 {
            self.0.write_at(&buf[..len], pos)?;
        }
        Ok(len)
    }

    /// Makes everything written durable, which is more than the trait asks for.
    fn flush(&mut self) -> io::Result<()> {
        Ok(self.0.flush()?)
    }
}

impl Size for ToReadWriteAt {
    fn size(&self) -> io::Result<Option<u64>> {
        Ok(Some(self.0.size()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::ErrorKind;
    use crate::chain::toy::{ToyImage, byte_at};

    #[test]
    fn a_file_is_a_storage() {
        static SYNCS: AtomicU32 = AtomicU32::new(0);
        let file = tempfile::tempfile().unwrap();
        let storage = FromReadWriteAt::with_sync(file, |file: &mut File| {
            SYNCS.fetch_add(1, Ordering::Relaxed);
            file.sync_data()
        });
        storage.write_all_at(b"hello", 3).unwrap();
        storage.sync_data().unwrap();
        assert_eq!(SYNCS.load(Ordering::Relaxed), 1);
        let mut buf = [1; 8];
        storage.read_exact_at(&mut buf, 4).unwrap();
        assert_eq!(&buf, b"ello\0\0\0\0");
        storage.set_len(100).unwrap();
        assert_eq!(storage.len().unwrap(), 100);
        assert_eq!(storage.set_len(99).unwrap_err().kind(), ErrorKind::Unsupported);
        storage.read_exact_at(&mut buf, 4).unwrap();
        assert_eq!(&buf, b"ello\0\0\0\0");
    }

    #[test]
    fn zeroing_grows_and_is_checked() {
        let storage = FromReadWriteAt::new(vec![7_u8; 10]);
        storage.zero(5, 100_000, ZeroMode::Unmap).unwrap();
        storage.zero(0, 0, ZeroMode::Unmap).unwrap();
        storage.write_all_at(&[], u64::MAX).unwrap();
        assert_eq!(
            storage.zero(2, u64::MAX, ZeroMode::Unmap).unwrap_err().kind(),
            ErrorKind::Io
        );
        let run = storage.host_extent(5, 1 << 40).unwrap();
        assert_eq!((run.len, run.data), (100_000, true));
        let bytes = storage.into_inner();
        assert_eq!(bytes.len(), 100_005);
        assert!(bytes[..5] == [7; 5] && bytes[5..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_storage_of_fixed_length_refuses_to_grow() {
        let mut bytes = [0_u8; 8];
        let storage = FromReadWriteAt::new(bytes.as_mut_slice());
        storage.write_all_at(&[1; 8], 0).unwrap();
        let error = storage.write_all_at(&[1; 8], 4).unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Io, Some(4)));
    }

    #[test]
    fn a_device_ends_as_a_file_does() {
        let mut disk = ToReadWriteAt::new(Arc::new(ToyImage::new(5000, 12, [(1, 9)])));
        let mut buf = [0; 10];
        assert_eq!(disk.read_at(4995, &mut buf).unwrap(), 5);
        assert_eq!(buf[4], byte_at(9, 4999));
        assert_eq!(disk.read_at(u64::MAX, &mut buf).unwrap(), 0);
        assert_eq!(disk.size().unwrap(), Some(5000));
        assert_eq!(disk.write_at(5000, &buf).unwrap(), 0);
        let error = disk.write_at(0, &buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}
