//! A growth of the disk that fails gives back what it has taken.
//!
//! Clusters are counted in the file before anything there names them, and named before the header says that the disk is
//! longer. Whatever fails in between leaves clusters that nobody needs: counted and not named, which are leaks, or mapped
//! past the end of the disk.
//!
//! As long as no write of metadata has failed, the tables in memory are what the file is about to have, and the growth is
//! taken back there, as a disk that becomes smaller does it. Otherwise it is unknown what the file has. The image takes no more writes then, and
//! reads what the file says from there on, while the file is treated as after a crash: another image over it unmaps what lies past the end
//! of the disk, and a repair of leaks counts all references. This writes to nothing that has no room yet, so that a full disk
//! does not stand in its way. What cannot be given back either is a leak.

use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Access, Backing, BlockDevice, Keys, Result};

use super::zero::Becomes;
use super::{Image, OpenOptions, Writer};
use crate::address::GuestOffset;
use crate::check::{self, RepairKind, RepairOptions};
use crate::header::Header;

impl Image {
    /// Takes back a growth to `size` bytes that has failed. The data file was `data_len` bytes long. Everything else was
    /// durable when it began, and nobody else is writing.
    pub(super) fn undo_growth(&self, writer: &Writer, size: u64, data_len: u64) {
        let mut undone = match writer.failed.get() {
            None => self.undo_growth_in_memory(writer, size),
            Some(error) => Err(error.clone()),
        };
        if writer.failed.get().is_some() {
            undone = self.undo_growth_in_file(writer, size);
        }
        if undone.is_ok() {
            // Of a file that stays too long nothing is read.
            let _ = self.cut_data_file(self.size().max(data_len));
        }
    }

    fn undo_growth_in_memory(&self, writer: &Writer, size: u64) -> Result<()> {
        self.unmap_past_end(writer, size)?;
        while writer.meta().allocator.is_dirty() {
            self.write_back()?;
        }
        Ok(())
    }

    /// Gives back what is mapped between the end of the disk and `end`, and the tables past the end.
    pub(super) fn unmap_past_end(&self, writer: &Writer, end: u64) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let first = GuestOffset(self.size().next_multiple_of(cluster_size));
        let last = GuestOffset(end.next_multiple_of(cluster_size));
        self.change_subclusters(writer, first, last, Becomes::Unallocated)?;
        self.write_back()?;
        self.drop_tables(writer, self.geometry.l1_entries(self.size()) as usize)?;
        self.write_back()
    }

    fn undo_growth_in_file(&self, writer: &Writer, size: u64) -> Result<()> {
        self.reload(writer)?;
        let storage = self.storage.inner();
        let options = OpenOptions {
            access: Access::WRITE,
            backing: Backing::Detached,
            data_file: self.geometry.data_file.then(|| Arc::clone(self.data.inner())),
            keys: Keys::Locked,
            ..OpenOptions::default()
        };
        let image = Self::open_in(Arc::clone(storage), options, None)?;
        if image.size() < size {
            image.unmap_past_end(image.writer("resize")?, size)?;
        }
        image.close()?;
        let options = RepairOptions {
            what: RepairKind::Leaks,
            ..RepairOptions::default()
        };
        check::repair(&**storage, &options, &mut |_| ControlFlow::Continue(())).map(|_| ())
    }

    /// Forgets what the file does not have, and waits until nobody is looking at it.
    fn reload(&self, writer: &Writer) -> Result<()> {
        let header = Header::read(&self.storage)?;
        for index in header.l1_entries as usize..self.l1.entries() {
            self.l1.store(index, 0);
        }
        self.l1.set_entries(header.l1_entries as usize);
        self.set_size(header.size);
        *self.locked_header() = header;
        let read = self.read_l1();
        self.cache.forget(|_| true);
        writer.epoch.wait(|epoch| {
            let _one_at_a_time = writer.meta();
            epoch.advance();
        });
        read
    }
}
