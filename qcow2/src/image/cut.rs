//! Files that were cut: what an entry names and the file no longer has must not read as zeros.
//!
//! A storage reads as zeros past its end, and of the last cluster that is as it should be: a writer need not write what
//! is zero there. A cluster that lies past the end as a whole was never written, and no writer maps one, so that its
//! data is lost: a copy that broke off, a file system that was full. Reading it is an error.
//!
//! How long the file is at least is remembered, so that a read costs one comparison. Only a place beyond that has the
//! host asked for the length, once for all that was written up to then. (Whoever cuts a file that is open is not found
//! out.)
//!
//! Writing to such an image would make its file longer again, and what is lost would read as zeros from then on. So it is
//! refused when the image is opened: where refcounts count clusters past the end, which leaks after a crash may be too, a
//! check says whether anything names them.

use std::sync::atomic::Ordering;

use block::{Error, ErrorKind, Result, Storage};

use super::Image;
use crate::address::{ClusterIndex, GuestOffset, HostOffset};
use crate::check;
use crate::corruption::Corruption;
use crate::entry::CompressedCluster;
use crate::refcount_table::RefcountTable;

/// Compressed data ends somewhere in its last sector.
const SECTOR: u64 = 512;

impl Image {
    /// Fails for `len` bytes at `host`, a run of guest data from `guest` on, if one of their clusters lies past the end of
    /// the file.
    #[inline]
    pub(super) fn check_present(&self, host: HostOffset, len: u64, guest: GuestOffset) -> Result<()> {
        if host.0 + len <= self.data_len.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.check_last_cluster(host, len, guest)
    }

    #[cold]
    fn check_last_cluster(&self, host: HostOffset, len: u64, guest: GuestOffset) -> Result<()> {
        let last = HostOffset((host.0 + len - 1) >> self.geometry.cluster_bits << self.geometry.cluster_bits);
        let file_len = self.ask_data_len()?;
        if last.0 < file_len {
            return Ok(());
        }
        let present = self.geometry.clusters(file_len) << self.geometry.cluster_bits;
        let first = HostOffset(present.max(host.0));
        Err(self.lost(guest + (first - host), first, file_len))
    }

    /// Fails for compressed data of which more than the rest of its last sector lies past the end of the file.
    pub(super) fn check_compressed_present(&self, data: CompressedCluster, guest: GuestOffset) -> Result<()> {
        let end = data.host + data.len;
        if end.0 <= self.data_len.load(Ordering::Relaxed) {
            return Ok(());
        }
        let file_len = self.ask_data_len()?;
        let last_sector = (end.0 - 1) / SECTOR * SECTOR;
        if last_sector.max(data.host.0) < file_len {
            return Ok(());
        }
        Err(self.lost(guest, data.host, file_len))
    }

    /// Whether any of the cluster at `host` is there.
    pub(super) fn is_present(&self, host: HostOffset) -> Result<bool> {
        Ok(host.0 < self.data_len.load(Ordering::Relaxed) || host.0 < self.ask_data_len()?)
    }

    fn ask_data_len(&self) -> Result<u64> {
        let len = self.data.len()?;
        self.data_len.fetch_max(len, Ordering::Relaxed);
        Ok(len)
    }

    fn lost(&self, guest: GuestOffset, host: HostOffset, file_len: u64) -> Error {
        Error::corrupt(Corruption::Cut {
            guest,
            host,
            file_len,
        })
        .with_path_of(self.data.path())
        .with_hint("the file was cut; `imgtool convert --salvage` copies what is left of the disk")
    }

    /// Refuses to write to an image of whose file something is cut off that a table names.
    pub(super) fn refuse_cut(&self, refcounts: &mut RefcountTable) -> Result<()> {
        let file_len = self.storage.len()?;
        let end = refcounts.end_from(ClusterIndex(self.geometry.clusters(file_len)))?;
        let counted = self.geometry.offset_of(end).0;
        if counted <= file_len.next_multiple_of(self.geometry.cluster_size())
            || !check::reaches_past_end(&self.storage)?
        {
            return Ok(());
        }
        let message = format!(
            "the file was cut: it has {file_len} bytes, and the image's tables name clusters past its end (it counts \
             {counted} bytes)"
        );
        Err(Error::new(ErrorKind::Corrupt, message)
            .with_path_of(self.storage.path())
            .with_hint(format!(
                "it is not written to; `imgtool convert --salvage` copies what is left, and `truncate -s {counted}` has \
                 what is lost read as zeros"
            )))
    }
}
