//! The room that a disk has for its root filesystem: all behind the EFI system partition.
//!
//! It keeps what the disk held until something is written there. Then its partition table goes first, so that nobody takes
//! a disk that is half made for what it was, or for a whole one.

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use block::{
    BlockDevice, DeviceInfo, Error, Extent, HostCopy, OffloadedWrite, Resize, Result, Storage, ZeroMode,
    is_zero,
};

use crate::options::ALIGNMENT;

/// All of a disk behind an offset, as a disk of its own, which grows and shrinks with the whole.
#[derive(Debug)]
pub(crate) struct Room {
    disk: Arc<dyn BlockDevice>,
    start: u64,
    /// The disk has no partition table any more.
    bare: AtomicBool,
    /// Held while it is removed.
    removing: Mutex<()>,
}

impl Room {
    pub(crate) fn new(disk: Arc<dyn BlockDevice>, start: u64) -> Self {
        Self {
            disk,
            start,
            bare: AtomicBool::new(false),
            removing: Mutex::new(()),
        }
    }

    /// Where `len` bytes at `offset` are on the disk.
    fn place(&self, op: &str, offset: u64, len: u64) -> Result<u64> {
        let place = self.start.checked_add(offset);
        place
            .filter(|place| place.checked_add(len).is_some())
            .ok_or_else(|| Error::out_of_bounds(op, offset, len, self.size()))
    }

    /// The same for what is to be changed.
    fn place_to_change(&self, op: &str, offset: u64, len: u64) -> Result<u64> {
        let place = self.place(op, offset, len)?;
        if !self.bare.load(Ordering::Acquire) {
            self.erase()?;
        }
        Ok(place)
    }

    /// Removes the partition table, both of its copies.
    fn erase(&self) -> Result<()> {
        let _removing = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.bare.load(Ordering::Acquire) {
            return Ok(());
        }
        let size = self.disk.size();
        let mut bytes = vec![0; ALIGNMENT.min(size) as usize];
        let mut erased = false;
        for start in [0, size - bytes.len() as u64] {
            self.disk.read_at(&mut bytes, start)?;
            if !is_zero(&bytes) {
                self.disk.zero_at(start, bytes.len() as u64, ZeroMode::Unmap)?;
                erased = true;
            }
        }
        if erased {
            self.disk.flush()?;
        }
        self.bare.store(true, Ordering::Release);
        Ok(())
    }
}

impl BlockDevice for Room {
    fn info(&self) -> DeviceInfo {
        let mut info = self.disk.info();
        info.cluster_size = info.cluster_size.filter(|size| self.start.is_multiple_of(*size));
        info.subcluster_size = info.subcluster_size.filter(|_| info.cluster_size.is_some());
        info
    }

    fn size(&self) -> u64 {
        self.disk.size().saturating_sub(self.start)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let place = self.place("read", offset, buf.len() as u64)?;
        self.disk.read_at(buf, place)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let place = self.place_to_change("write", offset, buf.len() as u64)?;
        self.disk.write_at(buf, place)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let place = self.place("read", offset, len)?;
        self.disk.read_vectored_at(bufs, place)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        let place = self.place_to_change("write", offset, len)?;
        self.disk.write_vectored_at(bufs, place)
    }

    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let place = self.place_to_change("write of zeros", offset, len)?;
        self.disk.zero_at(place, len, mode)
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        let place = self.place_to_change("discard", offset, len)?;
        self.disk.discard_at(place, len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let place = self.place("extent", offset, 0)?;
        let run = self.disk.extent_at(place, len)?;
        Ok(Extent { offset, ..run })
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        let size = self.place("resize", size, 0)?;
        self.disk.resize(size, how)
    }

    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        self.disk.offloaded().is_some().then_some(self)
    }
}

impl OffloadedWrite for Room {
    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        let offloaded = self.disk.offloaded();
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
        let place = self.place_to_change("write", offset, len)?;
        match self.disk.offloaded() {
            Some(offloaded) => offloaded.copy_from(place, source, source_offset, len, how),
            None => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::{Access, ExtentState, MemStorage};

    const MIB: u64 = 1 << 20;

    fn room(storage: &Arc<MemStorage>, start: u64) -> Room {
        let disk = raw::Image::open(storage.clone(), Access::WRITE).unwrap();
        Room::new(Arc::new(disk), start)
    }

    #[test]
    fn offsets_lengths_and_growth_count_from_the_start() {
        let whole = Arc::new(MemStorage::new());
        let room = room(&whole, 1024);
        assert_eq!(room.size(), 0);
        room.resize(512, Resize::default()).unwrap();
        assert_eq!((whole.len().unwrap(), room.size()), (1536, 512));
        room.write_at(b"abc", 10).unwrap();
        let mut read = [0; 3];
        whole.read_exact_at(&mut read, 1034).unwrap();
        assert_eq!(&read, b"abc");
        room.zero_at(11, 1, ZeroMode::Unmap).unwrap();
        room.read_at(&mut read, 10).unwrap();
        assert_eq!(&read, b"a\0c");
        assert_eq!(room.extent_at(10, 3).unwrap().offset, 10);
        assert!(room.write_at(b"x", u64::MAX - 500).is_err());
        assert!(room.write_at(b"x", 512).is_err());
        assert!(room.resize(u64::MAX - 500, Resize::default()).is_err());
    }

    #[test]
    fn both_copies_of_a_table_stay_until_the_first_change_and_nothing_else_goes() {
        for change in [
            (|room| room.write_at(&[1], 5)) as fn(&Room) -> Result<()>,
            |room| room.write_vectored_at(&[IoSlice::new(&[1])], 5),
            |room| room.zero_at(5, 1, ZeroMode::Unmap),
            |room| room.discard_at(5, 1),
            |room| {
                let source = MemStorage::from(vec![1]);
                let offloaded = room.offloaded().expect("a raw image asks its storage");
                // Which is in memory, and refuses.
                assert_eq!(offloaded.copy_from(5, &source, 0, 1, HostCopy::Any)?, 0);
                Ok(())
            },
        ] {
            let old = vec![7; 5 * MIB as usize];
            let whole = Arc::new(MemStorage::from(old.clone()));
            let room = room(&whole, 2 * MIB);
            room.read_at(&mut [0; 100], 0).unwrap();
            assert_eq!(room.extent_at(0, 1).unwrap().state, ExtentState::Data);
            room.flush().unwrap();
            assert!(whole.to_vec() == old);
            change(&room).unwrap();
            let new = whole.to_vec();
            let (mib, end) = (MIB as usize, 4 * MIB as usize);
            assert!(is_zero(&new[..mib]) && is_zero(&new[end..]));
            assert!(new[mib..2 * mib + 5] == old[mib..2 * mib + 5]);
            assert!(new[2 * mib + 6..end] == old[2 * mib + 6..end]);
        }
    }
}
