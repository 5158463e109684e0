//! The image as a block device: bounds, grace periods and locks around what the other files do.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{
    BackingReference, BlockDevice, CompressedWrite, DeviceInfo, Error, Extent, OffloadedWrite, Overlay,
    Resize, Result, Storage, ZeroMode,
};

use super::{Image, Writer};
use crate::address::GuestOffset;
use crate::epoch::Pin;

impl Image {
    /// Refuses a request that does not lie on the disk.
    pub(super) fn check_bounds(&self, op: &str, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::out_of_bounds(op, offset, len, size).with_path_of(self.storage.path())),
        }
    }

    /// Holds up the reuse of what this request looks up. An image open for reading frees nothing.
    #[inline]
    pub(super) fn pin(&self) -> Option<Pin<'_>> {
        self.writer.as_ref().map(|writer| writer.epoch.pin())
    }

    /// Runs a change of the disk, which bitmaps take down.
    fn change(
        &self,
        op: &str,
        offset: u64,
        len: u64,
        change: impl FnOnce(&Writer) -> Result<()>,
    ) -> Result<()> {
        self.change_marked(op, offset, len, true, change)
    }

    fn change_marked(
        &self,
        op: &str,
        offset: u64,
        len: u64,
        mark: bool,
        change: impl FnOnce(&Writer) -> Result<()>,
    ) -> Result<()> {
        let writer = self.writer(op)?;
        self.check_bounds(op, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let bitmaps = self.begin_change(writer)?;
        self.check_bounds(op, offset, len)?;
        // Whatever comes of it: what fails may have changed some of the range.
        if mark {
            bitmaps.mark(offset, len);
        }
        change(writer).map_err(|error| error.with_path_of(self.storage.path()))
    }
}

impl BlockDevice for Image {
    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new("qcow2");
        info.read_only = self.writer.is_none();
        info.cluster_size = Some(self.geometry.cluster_size());
        let subcluster_size = self.geometry.subcluster_size();
        info.subcluster_size = self.geometry.extended_l2.then_some(subcluster_size);
        info.fast_zero = self.can_say_zero() || self.backing.is_none();
        info.zero_init = self.backing.is_none() && (!self.raw_data || self.raw_data_is_hole());
        info.encrypted = self.encryption.is_some();
        info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_bounds("read", offset, buf.len() as u64)?;
        let _pin = self.pin();
        self.read(buf, GuestOffset(offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.change("write", offset, buf.len() as u64, |writer| {
            self.write(writer, buf, GuestOffset(offset))
        })
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        // One buffer at a time, and the size of the whole checked first: all of it is written or refused.
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.change("write", offset, len, |writer| {
            let mut guest = GuestOffset(offset);
            for buf in bufs {
                self.write(writer, buf, guest)?;
                guest += buf.len() as u64;
            }
            Ok(())
        })
    }

    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.change("write zeroes", offset, len, |writer| {
            self.zero(writer, GuestOffset(offset), len, mode)
        })
    }

    fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.change("discard", offset, len, |writer| {
            self.discard(writer, GuestOffset(offset), len)
        })
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let len = self.extent_bounds(offset, len)?;
        let _pin = self.pin();
        self.extent(GuestOffset(offset), len)
    }

    fn flush(&self) -> Result<()> {
        self.write_back_for_guest()
    }

    fn settle(&self) -> Result<()> {
        Self::settle(self)
    }

    fn resize(&self, size: u64, how: Resize) -> Result<()> {
        let writer = self.writer("resize")?;
        let mut bitmaps = writer.bitmaps_mut();
        self.change_size(writer, &mut bitmaps, size, how)
            .map_err(|error| error.with_path_of(self.storage.path()))
    }

    fn compressed(&self) -> Option<&dyn CompressedWrite> {
        let writer = self
            .writer
            .as_ref()
            .filter(|_| !self.geometry.data_file && self.encryption.is_none());
        writer.map(|_| self as _)
    }

    fn offloaded(&self) -> Option<&dyn OffloadedWrite> {
        // What the host copies is not what an encrypted disk holds.
        let writer = self.writer.as_ref().filter(|_| self.encryption.is_none());
        writer.map(|_| self as _)
    }
}

impl CompressedWrite for Image {
    fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        let size = self.geometry.cluster_size();
        if cluster.len() as u64 != size {
            return Err(Error::invalid(format!(
                "{} bytes are not one cluster ({size})",
                cluster.len()
            )));
        }
        Ok(self.compression.compress(self.compression_level, cluster))
    }

    fn write_compressed_at(&self, compressed: &[u8], offset: u64) -> Result<()> {
        self.refuse_compressed()?;
        let size = self.geometry.cluster_size();
        if !offset.is_multiple_of(size) || compressed.is_empty() || compressed.len() as u64 >= size {
            return Err(Error::invalid(format!(
                "{} bytes at offset {offset} are not a compressed cluster (of {size} bytes)",
                compressed.len()
            )));
        }
        let len = size.min(self.size().saturating_sub(offset)).max(1);
        self.change("write", offset, len, |writer| {
            self.write_compressed(writer, compressed, GuestOffset(offset))
        })
    }
}

impl Overlay for Image {
    fn backing(&self) -> Option<Arc<dyn BlockDevice>> {
        self.backing.clone()
    }

    fn backing_reference(&self) -> Option<BackingReference> {
        self.locked_header().backing()
    }

    fn own_extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let len = self.extent_bounds(offset, len)?;
        let _pin = self.pin();
        self.own_extent(GuestOffset(offset), len)
    }

    fn set_backing_reference(&self, reference: Option<BackingReference>) -> Result<()> {
        let writer = self.writer("change the backing file")?;
        let _bitmaps = writer.bitmaps_mut();
        let changed = self
            .check_backing(reference.as_ref())
            .and_then(|()| self.clear_autoclear(writer))
            .and_then(|()| self.change_backing(reference));
        changed.map_err(|error| error.with_path_of(self.storage.path()))
    }

    fn unmap_to_backing(&self, offset: u64, len: u64) -> Result<()> {
        self.change_marked("unmap", offset, len, false, |writer| {
            self.unmap(writer, GuestOffset(offset), len)
        })
    }

    fn state_zero(&self, offset: u64, len: u64) -> Result<()> {
        self.change("write zeroes", offset, len, |writer| {
            Self::state_zero(self, writer, GuestOffset(offset), len)
        })
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.storage.inner()
    }
}

impl Image {
    /// Refuses a query that does not start on the disk; else how much of it does lie there.
    pub(super) fn extent_bounds(&self, offset: u64, len: u64) -> Result<u64> {
        let size = self.size();
        if offset >= size || len == 0 {
            return Err(
                Error::out_of_bounds("extent query", offset, len, size).with_path_of(self.storage.path())
            );
        }
        Ok(len.min(size - offset))
    }
}
