//! A disk as a storage: for whatever is stored on the disk that an image holds, such as a filesystem.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{
    Alignment, BlockDevice, Error, ErrorKind, HostCopy, HostExtent, Resize, Result, Storage, ZeroMode,
};

/// What a disk that follows its contents grows by at least: each time, an image may have to move tables.
const GROWTH: u64 = 64 << 20;

/// A disk, as a [`Storage`].
///
/// ```
/// use block::{DeviceStorage, MemStorage, Storage};
/// # use block::{BlockDevice, DeviceInfo, Extent, ExtentState, Result, ZeroMode};
/// # #[derive(Debug)] struct Disk(MemStorage);
/// # impl BlockDevice for Disk {
/// #     fn info(&self) -> DeviceInfo { DeviceInfo::new("demo") }
/// #     fn size(&self) -> u64 { 1024 }
/// #     fn read_at(&self, b: &mut [u8], o: u64) -> Result<()> { self.0.read_exact_at(b, o) }
/// #     fn write_at(&self, b: &[u8], o: u64) -> Result<()> { self.0.write_all_at(b, o) }
/// #     fn zero_at(&self, o: u64, l: u64, m: ZeroMode) -> Result<()> { self.0.zero(o, l, m) }
/// #     fn discard_at(&self, _: u64, _: u64) -> Result<()> { Ok(()) }
/// #     fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
/// #         Ok(Extent { offset, len, state: ExtentState::Data, depth: 0, host: None })
/// #     }
/// #     fn flush(&self) -> Result<()> { self.0.sync_data() }
/// # }
/// # let disk = Disk(MemStorage::new());
/// let storage = DeviceStorage::fixed(&disk);
/// storage.write_all_at(b"on the disk", 1000)?;
/// let mut bytes = [0xFF; 4];
/// storage.read_exact_at(&mut bytes, 1022)?;
/// assert_eq!(bytes, [0; 4]);
/// assert!(storage.write_all_at(b"past its end", 1020).is_err());
/// # Ok::<(), block::Error>(())
/// ```
pub struct DeviceStorage<'d> {
    device: &'d dyn BlockDevice,
    /// The length so far of one whose disk follows it. Held while the disk is resized.
    follows: Option<Mutex<()>>,
    len: AtomicU64,
}

impl<'d> DeviceStorage<'d> {
    /// A disk whose size stays.
    pub fn fixed(device: &'d dyn BlockDevice) -> Self {
        Self {
            device,
            follows: None,
            len: AtomicU64::new(device.size()),
        }
    }

    /// A new disk that is to become as large as what is written to it. It is larger meanwhile, up to
    /// [`trim`](Self::trim).
    pub fn growing(device: &'d dyn BlockDevice) -> Self {
        Self {
            device,
            follows: Some(Mutex::new(())),
            len: AtomicU64::new(0),
        }
    }

    /// Cuts a disk that follows to the storage's length, in whole sectors.
    ///
    /// # Errors
    /// As [`BlockDevice::resize`].
    pub fn trim(&self) -> Result<()> {
        let size = self.len.load(Ordering::Relaxed).next_multiple_of(512);
        if self.follows.is_none() || self.device.size() == size {
            return Ok(());
        }
        let how = Resize {
            shrink: true,
            ..Resize::default()
        };
        self.device.resize(size, how)
    }

    /// Sees to it that the disk has these bytes.
    fn make_room(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len);
        let end = end.ok_or_else(|| Error::out_of_bounds("write", offset, len, self.device.size()))?;
        let Some(resizing) = &self.follows else {
            if end <= self.device.size() {
                return Ok(());
            }
            let message = format!(
                "a write of {len} bytes reaches past the end of the disk ({} bytes)",
                self.device.size()
            );
            return Err(Error::new(ErrorKind::NoSpace, message).with_offset(offset));
        };
        if end > self.device.size() {
            let _resizing = resizing.lock().unwrap_or_else(PoisonError::into_inner);
            let size = self.device.size();
            if end > size {
                let next = end.max(size.saturating_add(size / 2));
                let next = next.checked_next_multiple_of(GROWTH).unwrap_or(end);
                self.device.resize(next, Resize::default())?;
            }
        }
        self.len.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    /// How many of `len` bytes at `offset` are on the disk.
    fn on_disk(&self, offset: u64, len: u64) -> u64 {
        self.device.size().saturating_sub(offset).min(len)
    }
}

impl fmt::Debug for DeviceStorage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceStorage")
            .field("device", &self.device)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Storage for DeviceStorage<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (there, past) = buf.split_at_mut(self.on_disk(offset, buf.len() as u64) as usize);
        past.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        self.device.read_at(there, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.make_room(offset, buf.len() as u64)?;
        self.device.write_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        let len: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        if self.on_disk(offset, len) == len {
            return self.device.read_vectored_at(bufs, offset);
        }
        for buf in bufs {
            self.read_exact_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.make_room(offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.device.write_vectored_at(bufs, offset)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.make_room(offset, len)?;
        self.device.zero_at(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        match self.on_disk(offset, len) {
            0 => Ok(()),
            len => self.device.discard_at(offset, len),
        }
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        let Some(offloaded) = self.device.offloaded() else {
            return Ok(0);
        };
        self.make_room(offset, len)?;
        let mut done = 0;
        while done < len {
            let more = offloaded.copy_from(offset + done, source, source_offset + done, len - done, how)?;
            if more == 0 {
                break;
            }
            done += more;
        }
        Ok(done)
    }

    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        let offloaded = self.device.offloaded();
        offloaded.is_some_and(|offloaded| offloaded.may_copy_from(source, how))
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        match self.on_disk(offset, len) {
            0 => Ok(HostExtent { len, data: false }),
            there => {
                let extent = self.device.extent_at(offset, there)?;
                Ok(HostExtent {
                    len: extent.len,
                    data: !extent.state.reads_as_zero(),
                })
            }
        }
    }

    fn sync_data(&self) -> Result<()> {
        self.device.flush()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len.load(Ordering::Relaxed))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.follows.is_none() {
            let size = self.device.size();
            if len == size {
                return Ok(());
            }
            return Err(Error::unsupported(format!(
                "a disk of {size} bytes cannot have {len} here"
            )));
        }
        // What was there must not come back when it grows again: it is cut off at once.
        self.len.store(len, Ordering::Relaxed);
        if len > self.device.size() {
            return self.make_room(len, 0);
        }
        self.trim()?;
        let rest = self.device.size() - len;
        if rest > 0 {
            self.device.zero_at(len, rest, ZeroMode::Allocate)?;
        }
        Ok(())
    }

    fn alignment(&self) -> Alignment {
        Alignment {
            offset: self.device.info().alignment,
            memory: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceInfo, Extent, ExtentState, MemStorage, OffloadedWrite};

    /// A disk of its storage's size, which can be resized.
    #[derive(Debug)]
    struct Disk(MemStorage);

    impl BlockDevice for Disk {
        fn info(&self) -> DeviceInfo {
            DeviceInfo::new("disk")
        }
        fn size(&self) -> u64 {
            self.0.len().unwrap()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            assert!(offset + buf.len() as u64 <= self.size());
            self.0.read_exact_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
            assert!(offset + buf.len() as u64 <= self.size());
            self.0.write_all_at(buf, offset)
        }
        fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
            assert!(offset + len <= self.size());
            self.0.zero(offset, len, mode)
        }
        fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
            self.0.discard(offset, len)
        }
        fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
            assert!(len > 0 && offset + len <= self.size());
            let run = self.0.host_extent(offset, len)?;
            let state = if run.data {
                ExtentState::Data
            } else {
                ExtentState::Hole
            };
            Ok(Extent {
                offset,
                len: run.len,
                state,
                depth: 0,
                host: None,
            })
        }
        fn flush(&self) -> Result<()> {
            self.0.sync_data()
        }
        fn resize(&self, size: u64, how: Resize) -> Result<()> {
            assert!(how.shrink || size >= self.size());
            self.0.set_len(size)
        }
        fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
            Some(self)
        }
    }

    /// Takes over 100 bytes at a time, and nothing from offset 1000 of the source on.
    impl OffloadedWrite for Disk {
        fn may_copy_from(&self, _: &dyn Storage, how: HostCopy) -> bool {
            how == HostCopy::Reflink
        }
        fn copy_from(
            &self,
            offset: u64,
            source: &dyn Storage,
            from: u64,
            len: u64,
            _: HostCopy,
        ) -> Result<u64> {
            let len = len.min(100).min(1000_u64.saturating_sub(from));
            let mut bytes = vec![0; len as usize];
            source.read_exact_at(&mut bytes, from)?;
            assert!(offset + len <= self.size());
            self.0.write_all_at(&bytes, offset)?;
            Ok(len)
        }
    }

    #[test]
    fn the_host_is_asked_for_as_long_as_it_takes_something_over() {
        let source = MemStorage::from(vec![7; 2000]);
        let disk = disk(0);
        let storage = DeviceStorage::growing(&disk);
        assert!(storage.may_copy_from(&source, HostCopy::Reflink));
        assert!(!storage.may_copy_from(&source, HostCopy::Any));
        let copied = storage.copy_from(5000, &source, 650, 1000, HostCopy::Reflink);
        assert_eq!(copied.unwrap(), 350);
        assert_eq!(storage.len().unwrap(), 6000);
        assert_eq!(
            disk.0.to_vec()[4999..5351]
                .iter()
                .map(|byte| u32::from(*byte))
                .sum::<u32>(),
            350 * 7
        );
        let fixed = DeviceStorage::fixed(&disk);
        let past = fixed.copy_from(GROWTH - 10, &source, 0, 11, HostCopy::Reflink);
        assert_eq!(past.unwrap_err().kind(), ErrorKind::NoSpace);
    }

    fn disk(len: u64) -> Disk {
        let disk = Disk(MemStorage::new());
        disk.0.set_len(len).unwrap();
        disk
    }

    #[test]
    fn a_fixed_disk_reads_as_zeros_past_its_end_and_takes_no_writes_there() {
        let disk = disk(1000);
        let storage = DeviceStorage::fixed(&disk);
        assert_eq!(storage.len().unwrap(), 1000);
        storage.write_all_at(&[7; 10], 990).unwrap();
        for offset in [991, u64::MAX - 5] {
            let error = storage.write_all_at(&[7; 10], offset).unwrap_err();
            assert!(error.to_string().contains("past the end"), "{error}");
        }
        assert_eq!(
            storage.zero(999, 2, ZeroMode::Unmap).unwrap_err().kind(),
            ErrorKind::NoSpace
        );
        let mut buf = [1; 12];
        storage.read_exact_at(&mut buf, 998).unwrap();
        assert_eq!(buf, [7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!storage.host_extent(1000, 50).unwrap().data);
        assert_eq!(storage.host_extent(1000, 50).unwrap().len, 50);
        storage.set_len(1000).unwrap();
        assert_eq!(storage.set_len(999).unwrap_err().kind(), ErrorKind::Unsupported);
        storage.trim().unwrap();
    }

    #[test]
    fn a_disk_that_follows_grows_in_steps_and_is_cut_in_the_end() {
        let disk = disk(0);
        let storage = DeviceStorage::growing(&disk);
        storage.write_all_at(&[7; 10], 5000).unwrap();
        assert_eq!((storage.len().unwrap(), disk.size()), (5010, GROWTH));
        storage.zero(GROWTH, 1, ZeroMode::Unmap).unwrap();
        assert_eq!((storage.len().unwrap(), disk.size()), (GROWTH + 1, 2 * GROWTH));
        storage.set_len(5001).unwrap();
        assert_eq!(disk.size(), 5120);
        assert_eq!(disk.0.to_vec()[5000..5010], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        storage.set_len(GROWTH + 5).unwrap();
        assert_eq!((storage.len().unwrap(), disk.size()), (GROWTH + 5, 2 * GROWTH));
        storage.trim().unwrap();
        assert_eq!(disk.size(), GROWTH + 512);
    }
}
