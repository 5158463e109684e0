//! A file of an image that knows whether anything waits for a sync.
//!
//! Closing, snapshots, bitmaps and resizing bring the file to where everything is durable, some of them more than once. A
//! sync takes a disk milliseconds even if it has nothing to do, so one is left out where nothing has been written since the last.
//!
//! A write is noted after it, and a sync takes the note away before it: what is written meanwhile is noted again. To see no note
//! is not yet to know that all is durable, as the sync that took it may be under way: who leaves one out holds the lock of
//! flushes. What the guest writes can come by other descriptors too ([plans](super::plan)), and is not relied on to be noted:
//! once it may have begun ([`Writer::has_begun`]), every sync is made.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use block::sync::atomic::{AtomicBool, Ordering};
use block::{Alignment, FileId, HostCopy, HostExtent, Result, Storage, ZeroMode};

use super::Writer;

/// See the [module](self). Clones share what they know.
#[derive(Clone, Debug)]
pub(super) struct ImageFile {
    inner: Arc<dyn Storage>,
    unsynced: Arc<AtomicBool>,
}

impl ImageFile {
    /// A file that the image reads and writes. `unsynced`: something in it may not be durable yet.
    pub(super) fn new(inner: Arc<dyn Storage>, unsynced: bool) -> Self {
        Self {
            inner,
            unsynced: Arc::new(AtomicBool::new(unsynced)),
        }
    }

    /// The same file, by another way.
    pub(super) fn by(&self, inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            unsynced: Arc::clone(&self.unsynced),
        }
    }

    /// The file itself. What is written to it goes unnoticed.
    pub(super) fn inner(&self) -> &Arc<dyn Storage> {
        &self.inner
    }

    /// Whether anything waits for a sync, of what does not come from the guest.
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced.load(Ordering::SeqCst)
    }

    /// [`sync_data`](Storage::sync_data), where there can be anything that is not durable. Called with the lock of flushes held.
    pub(super) fn sync_what_waits(&self, writer: &Writer) -> Result<()> {
        if writer.has_begun() || self.is_unsynced() {
            self.sync_data()
        } else {
            Ok(())
        }
    }

    #[inline]
    fn written<T>(&self, result: Result<T>) -> Result<T> {
        // Not stored where it is set, for the sake of other processors.
        if !self.is_unsynced() {
            self.unsynced.store(true, Ordering::SeqCst);
        }
        result
    }
}

impl Storage for ImageFile {
    #[inline]
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_exact_at(buf, offset)
    }

    #[inline]
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.written(self.inner.write_all_at(buf, offset))
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.written(self.inner.write_vectored_at(bufs, offset))
    }

    fn read_batch(&self, runs: &mut [(u64, &mut [u8])]) -> Result<()> {
        self.inner.read_batch(runs)
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.written(self.inner.zero(offset, len, mode))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.written(self.inner.discard(offset, len))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.written(self.inner.allocate(offset, len))
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        self.written(self.inner.copy_from(offset, source, source_offset, len, how))
    }

    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        self.inner.may_copy_from(source, how)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.inner.host_extent(offset, len)
    }

    fn sync_data(&self) -> Result<()> {
        self.unsynced.store(false, Ordering::SeqCst);
        self.inner
            .sync_data()
            .inspect_err(|_| self.unsynced.store(true, Ordering::SeqCst))
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.written(self.inner.set_len(len))
    }

    fn is_empty(&self) -> Result<bool> {
        self.inner.is_empty()
    }

    fn alignment(&self) -> Alignment {
        self.inner.alignment()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn file_id(&self) -> Option<FileId> {
        self.inner.file_id()
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        self.inner.host_file()
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.inner.allocated()
    }
}
