//! The part of a storage from some offset on, which grows as the storage does.

use std::io::IoSlice;
use std::path::Path;

use block::{Alignment, Error, HostCopy, HostExtent, Result, Storage, ZeroMode};

/// All of a storage behind an offset, as a storage of its own.
#[derive(Debug)]
pub(super) struct Behind<'s> {
    storage: &'s dyn Storage,
    start: u64,
}

impl<'s> Behind<'s> {
    pub(super) fn new(storage: &'s dyn Storage, start: u64) -> Self {
        Self { storage, start }
    }

    /// Where `len` bytes at `offset` are in the storage.
    fn place(&self, op: &str, offset: u64, len: u64) -> Result<u64> {
        let place = self.start.checked_add(offset);
        place
            .filter(|place| place.checked_add(len).is_some())
            .ok_or_else(|| Error::out_of_bounds(op, offset, len, u64::MAX - self.start))
    }
}

impl Storage for Behind<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let place = self.place("read", offset, buf.len() as u64)?;
        self.storage.read_exact_at(buf, place)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let place = self.place("write", offset, buf.len() as u64)?;
        self.storage.write_all_at(buf, place)
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
        let place = self.place("discard", offset, len)?;
        self.storage.discard(place, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let place = self.place("reservation", offset, len)?;
        self.storage.allocate(place, len)
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        let place = self.place("copy", offset, len)?;
        self.storage.copy_from(place, source, source_offset, len, how)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let place = self.place("extent", offset, len)?;
        self.storage.host_extent(place, len)
    }

    fn sync_data(&self) -> Result<()> {
        self.storage.sync_data()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.storage.len()?.saturating_sub(self.start))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let len = self.place("resize", len, 0)?;
        self.storage.set_len(len)
    }

    fn alignment(&self) -> Alignment {
        let alignment = self.storage.alignment();
        if self.start.is_multiple_of(alignment.offset.into()) {
            alignment
        } else {
            Alignment::NONE
        }
    }

    fn path(&self) -> Option<&Path> {
        self.storage.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::MemStorage;

    #[test]
    fn offsets_lengths_and_growth_count_from_the_start() {
        let whole = MemStorage::new();
        let behind = Behind::new(&whole, 1000);
        assert_eq!(behind.len().unwrap(), 0);
        behind.write_all_at(b"abc", 10).unwrap();
        assert_eq!((whole.len().unwrap(), behind.len().unwrap()), (1013, 13));
        behind.set_len(20).unwrap();
        assert_eq!(whole.len().unwrap(), 1020);
        let mut read = [0; 3];
        whole.read_exact_at(&mut read, 1010).unwrap();
        assert_eq!(&read, b"abc");
        behind.zero(11, 1, ZeroMode::Unmap).unwrap();
        behind.read_exact_at(&mut read, 10).unwrap();
        assert_eq!(&read, b"a\0c");
        assert!(behind.write_all_at(b"x", u64::MAX - 500).is_err());
        assert!(behind.set_len(u64::MAX - 500).is_err());
    }
}
