//! Images whose guest data lies in a file of its own ("External data file bit", "Raw external data bit").
//!
//! A guest cluster lies in the data file at its guest offset, always: an L2 entry only says whether it is there. So
//! nothing is allocated and nothing counted, the data file never moves data, and an entry that names another place
//! is damage. An entry that changes has data behind it that is on the disk: a flush syncs the data file first.
//!
//! A *raw* data file is the disk, readable by anybody who knows nothing of qcow2. Here the tables add nothing to
//! it: zeros are written to the file and entries stay as they are, and what no entry maps is read from the file as
//! well. Writes still set their entries, since other readers go by them.
//!
//! What is discarded is discarded in the data file before its entry goes, and with its range locked. The other way
//! round, the next write to the cluster, which goes to the same place, could be what is discarded.

use std::sync::Arc;

use block::{BlockDevice, Error, ErrorKind, Preallocation, Result, Storage, ZeroMode};

use super::file::ImageFile;
use super::{Image, Writer};
use crate::address::{GuestOffset, HostOffset};
use crate::corruption::Corruption;
use crate::entry::L2Entry;
use crate::header::Header;

/// Where the guest's data lies, given the data file that the caller opened for the image in `storage`.
pub(super) fn open(
    storage: &ImageFile,
    header: &Header,
    data_file: Option<Arc<dyn Storage>>,
) -> Result<ImageFile> {
    let Some(reference) = header.data_file() else {
        return match data_file {
            None => Ok(storage.clone()),
            Some(same) if same.file_id().is_some() && same.file_id() == storage.file_id() => {
                Ok(storage.by(same))
            }
            Some(_) => Err(Error::invalid("a data file was given, and the image has none")),
        };
    };
    let Some(data_file) = data_file else {
        let name = reference.name.unwrap_or_default();
        let message = format!(
            "the image keeps its data in the file '{}', and none was given",
            block::escape(&name)
        );
        return Err(Error::invalid(message).with_hint("open it as a chain"));
    };
    let len = data_file.len()?;
    if len < header.size {
        let message = format!(
            "the file holds the data of a disk of {} bytes, and has only {len} itself: it is not the whole data file",
            header.size
        );
        return Err(Error::new(ErrorKind::Corrupt, message)
            .with_path_of(data_file.path())
            .with_hint("find the right file; if this is the one, what it lacks is lost"));
    }
    // Whoever has made it for a new image may have left it to us to make it durable.
    Ok(ImageFile::new(data_file, true))
}

impl Image {
    /// Refuses an entry that names another place than the cluster's own.
    #[inline]
    pub(super) fn check_place_in_data_file(&self, host: HostOffset, guest: GuestOffset) -> Result<()> {
        let guest = GuestOffset(guest.0 - self.geometry.in_cluster(guest));
        if host.0 == guest.0 {
            return Ok(());
        }
        Err(self.corrupt_entry(Corruption::ElsewhereInDataFile { guest, host }, guest))
    }

    /// Where the copy of old data around a write to the clusters that end at `end` stops. A data file does not grow
    /// past the end of the disk.
    pub(super) fn end_of_copy(&self, end: GuestOffset) -> GuestOffset {
        if self.geometry.data_file {
            end.min(GuestOffset(self.size()))
        } else {
            end
        }
    }

    /// Whether a raw data file reads as zeros without a look at what is in it.
    pub(super) fn raw_data_is_hole(&self) -> bool {
        let size = self.size();
        let start = self.data.host_extent(0, size);
        start.is_ok_and(|start| !start.data && start.len >= size)
    }

    pub(super) fn refuse_compressed(&self) -> Result<()> {
        let message = if self.encryption.is_some() {
            "an encrypted image cannot have compressed clusters"
        } else if self.geometry.data_file {
            "an image with an external data file cannot have compressed clusters"
        } else {
            return Ok(());
        };
        Err(Error::unsupported(message).with_path_of(self.storage.path()))
    }

    /// Makes a range read as zeros in a raw data file. No allocating write may copy old data meanwhile.
    pub(super) fn zero_in_raw_data(
        &self,
        writer: &Writer,
        guest: GuestOffset,
        len: u64,
        mode: ZeroMode,
    ) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let _range = writer
            .ranges
            .lock(guest.0 >> bits..((guest.0 + len - 1) >> bits) + 1);
        self.data.zero(guest.0, len, mode)
    }

    /// Gives the room of clusters back that are about to be unmapped. The caller holds their range.
    pub(super) fn discard_data(&self, first: GuestOffset, last: GuestOffset) -> Result<()> {
        let end = last.0.min(self.data.len()?);
        match end.checked_sub(first.0) {
            None | Some(0) => Ok(()),
            Some(len) => self.data.discard(first.0, len),
        }
    }

    /// Makes the data file as long as a disk that grows from `old` to `size` bytes, reading as zeros there if it is
    /// raw. A raw data file has all of its clusters mapped, so that every reader finds them.
    pub(super) fn grow_data_file(&self, old: u64, size: u64, how: Preallocation) -> Result<Preallocation> {
        if !self.geometry.data_file {
            return Ok(how);
        }
        let len = self.data.len()?;
        if self.raw_data && len > old {
            self.data.zero(old, len.min(size) - old, ZeroMode::Unmap)?;
        }
        if len < size {
            self.data.set_len(size)?;
        }
        Ok(match how {
            Preallocation::Off if self.raw_data => Preallocation::Metadata,
            how => how,
        })
    }

    /// Cuts the data file to a disk that has become smaller.
    pub(super) fn cut_data_file(&self, size: u64) -> Result<()> {
        if !self.geometry.data_file || self.data.len()? <= size {
            return Ok(());
        }
        match self.data.set_len(size) {
            // A block device keeps its length.
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            cut => cut.and_then(|()| self.data.sync_data()),
        }
    }

    /// Maps `count` clusters from `guest` on, with as much room as `how` asks for. The caller holds their range.
    pub(super) fn preallocate_in_data_file(
        &self,
        writer: &Writer,
        guest: GuestOffset,
        count: u64,
        how: Preallocation,
    ) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let len = (count << bits).min(self.data.len()?.saturating_sub(guest.0));
        match how {
            Preallocation::Full => self.fill(guest.0, len)?,
            Preallocation::Falloc if len > 0 => {
                self.data.zero(guest.0, len, ZeroMode::Unmap)?;
                self.data.allocate(guest.0, len)?;
            }
            _ if len > 0 => self.data.zero(guest.0, len, ZeroMode::Unmap)?,
            _ => {}
        }
        let entries = (0..count).map(|i| {
            let host = HostOffset(guest.0) + (i << bits);
            match self.encryption {
                None => L2Entry::allocated(host, self.geometry),
                Some(_) => L2Entry::preallocated(host, self.geometry.all_subclusters(), self.geometry),
            }
        });
        self.set_entries(writer, guest, entries)
    }
}
