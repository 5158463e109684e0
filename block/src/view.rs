//! Views: each wraps a device or a storage and is one.
//!
//! [`Window`] is a part of a disk, such as a partition; [`ReadOnly`] is all of one, without the means to change
//! it; [`StorageWindow`] is a part of a storage, for a format that is stored inside something else.
//!
//! ```
//! use block::{MemStorage, Storage, view::StorageWindow};
//! use std::sync::Arc;
//!
//! let disk = Arc::new(MemStorage::from(vec![0; 4096]));
//! let partition = StorageWindow::new(disk.clone(), 1024, 2048)?;
//! partition.write_all_at(b"inside", 0)?;
//! assert_eq!(&disk.to_vec()[1024..1030], b"inside");
//! assert!(partition.write_all_at(b"outside", 2048).is_err());
//! # Ok::<(), block::Error>(())
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

use crate::{
    Alignment, BlockDevice, DeviceInfo, Error, ErrorKind, Extent, HostCopy, HostExtent, OffloadedWrite,
    Result, Storage, ZeroMode,
};

/// A part of a disk, as a disk of its own: what a partition is. Its size is fixed.
#[derive(Clone, Debug)]
pub struct Window {
    device: Arc<dyn BlockDevice>,
    start: u64,
    len: u64,
}

impl Window {
    /// The `len` bytes of `device` from `start` on.
    ///
    /// # Errors
    /// `OutOfBounds` if they are not all on it.
    pub fn new(device: Arc<dyn BlockDevice>, start: u64, len: u64) -> Result<Self> {
        within("window", start, len, device.size())?;
        Ok(Self { device, start, len })
    }

    /// Where `len` bytes at `offset` lie on the device.
    fn place(&self, op: &str, offset: u64, len: u64) -> Result<u64> {
        within(op, offset, len, self.len)?;
        Ok(self.start + offset)
    }
}

impl BlockDevice for Window {
    /// As the device; alignment and clusters only where they start at the window's start too.
    fn info(&self) -> DeviceInfo {
        let mut info = self.device.info();
        info.cluster_size = info.cluster_size.filter(|size| self.start.is_multiple_of(*size));
        info.subcluster_size = info.subcluster_size.filter(|_| info.cluster_size.is_some());
        if !self.start.is_multiple_of(u64::from(info.alignment)) {
            info.alignment = 1;
        }
        info
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let place = self.place("read", offset, buf.len() as u64)?;
        self.device.read_at(buf, place)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let place = self.place("write", offset, buf.len() as u64)?;
        self.device.write_at(buf, place)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let place = self.place("read", offset, len)?;
        self.device.read_vectored_at(bufs, place)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let place = self.place("write", offset, len)?;
        self.device.write_vectored_at(bufs, place)
    }

    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let place = self.place("write of zeros", offset, len)?;
        self.device.zero_at(place, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        let place = self.place("discard", offset, len)?;
        self.device.discard_at(place, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let rest = self.len.checked_sub(offset).filter(|rest| *rest > 0 && len > 0);
        let Some(rest) = rest else {
            return Err(Error::out_of_bounds("extent", offset, len, self.len));
        };
        let run = self.device.extent_at(self.start + offset, len.min(rest))?;
        Ok(Extent { offset, ..run })
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    fn settle(&self) -> Result<()> {
        self.device.settle()
    }

    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        self.device.offloaded().is_some().then_some(self)
    }
}

impl OffloadedWrite for Window {
    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        let offloaded = self.device.offloaded();
        offloaded.is_some_and(|offloaded| offloaded.may_copy_from(source, how))
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        let place = self.place("write", offset, len)?;
        match self.device.offloaded() {
            Some(offloaded) => offloaded.copy_from(place, source, source_offset, len, how),
            None => Ok(0),
        }
    }
}

/// A device that refuses to be changed.
#[derive(Clone, Debug)]
pub struct ReadOnly(Arc<dyn BlockDevice>);

impl ReadOnly {
    /// `device`, for reading.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self(device)
    }
}

impl BlockDevice for ReadOnly {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            read_only: true,
            ..self.0.info()
        }
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::read_only("write"))
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.0.read_vectored_at(bufs, offset)
    }

    fn zero_at(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
        Err(Error::read_only("write zeros"))
    }

    fn discard_at(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::read_only("discard"))
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        self.0.extent_at(offset, len)
    }

    /// Does nothing: nothing was written through this view.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn resize(&self, _: u64, _: crate::Resize) -> Result<()> {
        Err(Error::read_only("resize"))
    }
}

/// A part of a storage, as a storage of its own with a fixed length. Past its end it reads as zeros, as any
/// storage does, and cannot be written to.
#[derive(Clone, Debug)]
pub struct StorageWindow {
    storage: Arc<dyn Storage>,
    start: u64,
    len: u64,
}

impl StorageWindow {
    /// The `len` bytes of `storage` from `start` on. The storage may be shorter: it grows as it is written to.
    ///
    /// # Errors
    /// `OutOfBounds` if they end past what an offset can say.
    pub fn new(storage: Arc<dyn Storage>, start: u64, len: u64) -> Result<Self> {
        within("window", start, len, u64::MAX)?;
        Ok(Self { storage, start, len })
    }

    /// Where `len` bytes at `offset` lie in the storage.
    fn place(&self, op: &'static str, offset: u64, len: u64) -> Result<u64> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !fits {
            let message = format!(
                "{op} of {len} bytes reaches past the end of the window ({} bytes)",
                self.len
            );
            let error = Error::new(ErrorKind::OutOfBounds, message).with_offset(offset);
            return Err(error.with_path_of(self.path()));
        }
        Ok(self.start + offset)
    }

    fn rest(&self, offset: u64) -> u64 {
        self.len.saturating_sub(offset)
    }
}

impl Storage for StorageWindow {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let inside = self.rest(offset).min(buf.len() as u64);
        let (inside, past) = buf.split_at_mut(inside as usize);
        past.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        self.storage.read_exact_at(inside, self.start + offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let place = self.place("write", offset, buf.len() as u64)?;
        self.storage.write_all_at(buf, place)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        let len: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        if len <= self.rest(offset) {
            return self.storage.read_vectored_at(bufs, self.start + offset);
        }
        for buf in bufs {
            self.read_exact_at(buf, offset)?;
            offset = offset.saturating_add(buf.len() as u64);
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let place = self.place("write", offset, len)?;
        self.storage.write_vectored_at(bufs, place)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let place = self.place("write of zeros", offset, len)?;
        self.storage.zero(place, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        match self.rest(offset).min(len) {
            0 => Ok(()),
            inside => self.storage.discard(self.start + offset, inside),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let place = self.place("reservation", offset, len)?;
        self.storage.allocate(place, len)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        match self.rest(offset).min(len) {
            0 => Ok(HostExtent { len, data: false }),
            inside => self.storage.host_extent(self.start + offset, inside),
        }
    }

    fn sync_data(&self) -> Result<()> {
        self.storage.sync_data()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }

    /// Only to the length that it has.
    fn set_len(&self, len: u64) -> Result<()> {
        if len == self.len {
            return Ok(());
        }
        let message = format!("a window of {} bytes cannot be made one of {len}", self.len);
        Err(Error::unsupported(message).with_path_of(self.path()))
    }

    fn alignment(&self) -> Alignment {
        let whole = self.storage.alignment();
        let step = u64::from(whole.offset);
        if self.start.is_multiple_of(step) && self.len.is_multiple_of(step) {
            whole
        } else {
            Alignment::NONE
        }
    }

    fn path(&self) -> Option<&Path> {
        self.storage.path()
    }
}

fn within(op: &str, offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::out_of_bounds(op, offset, len, size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::toy::{ToyImage, byte_at};
    use crate::{ExtentState, MemStorage, Resize};

    /// Clusters of 4 KiB: a hole, data, zeros, a hole.
    fn disk() -> Arc<dyn BlockDevice> {
        Arc::new(ToyImage::new(4 << 12, 12, [(1, 9), (2, 1)]))
    }

    fn kind<T>(result: Result<T>) -> ErrorKind {
        result.err().expect("an error").kind()
    }

    #[test]
    fn a_window_is_a_disk_of_its_own() {
        let window = Window::new(disk(), 5000, 8000).unwrap();
        let mut buf = [0; 100];
        window.read_at(&mut buf, 50).unwrap();
        assert_eq!(buf[7], byte_at(9, 5057));
        let run = window.extent_at(0, u64::MAX).unwrap();
        assert_eq!(
            (run.offset, run.len, run.state, run.host),
            (0, 8192 - 5000, ExtentState::Data, Some(5000))
        );
        let run = window.extent_at(7999, 10).unwrap();
        assert_eq!((run.offset, run.len), (7999, 1));
        assert_eq!(window.info().cluster_size, None);
        assert_eq!(
            Window::new(disk(), 4096, 1).unwrap().info().cluster_size,
            Some(4096)
        );
    }

    #[test]
    fn a_window_lets_nothing_past_its_ends() {
        let window = Window::new(disk(), 5000, 8000).unwrap();
        let mut buf = [0; 2];
        for result in [
            window.read_at(&mut buf, 7999),
            window.read_at(&mut buf, u64::MAX),
            window.read_vectored_at(&mut [IoSliceMut::new(&mut [0; 2])], 7999),
            window.write_at(&buf, 7999),
            window.write_vectored_at(&[IoSlice::new(&[0; 2])], 7999),
            window.zero_at(1, u64::MAX, ZeroMode::Unmap),
            window.discard_at(8000, 1),
            window.extent_at(8000, 1).map(drop),
            window.extent_at(0, 0).map(drop),
            Window::new(disk(), 1 << 14, 1).map(drop),
            Window::new(disk(), u64::MAX, 2).map(drop),
        ] {
            assert_eq!(kind(result), ErrorKind::OutOfBounds);
        }
        assert_eq!(kind(window.resize(1, Resize::default())), ErrorKind::Unsupported);
    }

    #[test]
    fn a_read_only_device_refuses_every_change() {
        let device = ReadOnly::new(disk());
        for result in [
            device.write_at(&[1], 0),
            device.write_vectored_at(&[IoSlice::new(&[1])], 0),
            device.zero_at(0, 1, ZeroMode::Allocate),
            device.discard_at(0, 1),
            device.resize(1, Resize::default()),
        ] {
            assert_eq!(kind(result), ErrorKind::ReadOnly);
        }
        let mut byte = [0];
        device.read_at(&mut byte, 4096).unwrap();
        assert_eq!(byte[0], byte_at(9, 4096));
        assert!(device.info().read_only && device.compressed().is_none());
    }

    #[test]
    fn a_window_of_a_storage_reads_zeros_past_its_end_and_not_what_lies_there() {
        let window = StorageWindow::new(Arc::new(MemStorage::from(vec![7; 100])), 10, 20).unwrap();
        let mut buf = [1; 10];
        window.read_exact_at(&mut buf, 15).unwrap();
        assert_eq!(buf, [7, 7, 7, 7, 7, 0, 0, 0, 0, 0]);
        let (mut a, mut b) = ([1; 4], [1; 4]);
        window
            .read_vectored_at(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)], 15)
            .unwrap();
        assert_eq!((a, b), ([7; 4], [7, 0, 0, 0]));
        window.read_exact_at(&mut buf, u64::MAX).unwrap();
        assert_eq!(buf, [0; 10]);
        let run = window.host_extent(15, 100).unwrap();
        assert_eq!((run.len, run.data), (5, true));
        let past = window.host_extent(20, 100).unwrap();
        assert_eq!((past.len, past.data), (100, false));
    }

    #[test]
    fn a_window_of_a_storage_changes_nothing_outside() {
        let storage = Arc::new(MemStorage::from(vec![7; 100]));
        let window = StorageWindow::new(storage.clone(), 10, 20).unwrap();
        for result in [
            window.write_all_at(&[1; 21], 0),
            window.write_vectored_at(&[IoSlice::new(&[1; 2])], 19),
            window.zero(19, 2, ZeroMode::Unmap),
            window.allocate(u64::MAX, 2),
        ] {
            assert_eq!(kind(result), ErrorKind::OutOfBounds);
        }
        window.discard(5, u64::MAX).unwrap();
        window.zero(0, 20, ZeroMode::Unmap).unwrap();
        window.set_len(20).unwrap();
        assert_eq!(kind(window.set_len(21)), ErrorKind::Unsupported);
        let mut expected = vec![7; 100];
        expected[10..30].fill(0);
        assert_eq!(storage.to_vec(), expected);
        assert_eq!(
            kind(StorageWindow::new(storage, u64::MAX, 1)),
            ErrorKind::OutOfBounds
        );
    }
}
