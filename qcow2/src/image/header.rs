//! Changing the header of an open image.

use block::{BackingReference, Error, Result, Storage};

use super::Image;
use crate::header::{self, Header, SectorWrite};

impl Image {
    /// Changes the header, in memory and durably in the file: a power cut leaves the old header or the new one (see
    /// `header/rewrite.rs`). After a failure on the way the image takes no more writes, since it is unknown which of
    /// them the file has.
    pub(super) fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = self.locked_header();
        let mut new = header.clone();
        change(&mut new);
        let mut first_cluster = vec![0; self.geometry.cluster_size() as usize];
        self.storage.read_exact_at(&mut first_cluster, 0)?;
        let steps = header::plan(first_cluster, &new)?;
        for step in &steps {
            self.write_sectors(step).inspect_err(|error| {
                if let Some(writer) = &self.writer {
                    writer.latch(error);
                }
            })?;
        }
        *header = new;
        Ok(())
    }

    fn write_sectors(&self, sectors: &[SectorWrite]) -> Result<()> {
        for sector in sectors {
            self.storage.write_all_at(&sector.bytes, sector.offset)?;
        }
        self.storage.sync_data()
    }

    /// Fails for a backing file that the image cannot name.
    pub(super) fn check_backing(&self, reference: Option<&BackingReference>) -> Result<()> {
        let wrong = match reference {
            Some(reference) if reference.name.is_empty() => "the name of the backing file is empty",
            Some(_) if self.raw_data => {
                "its data file is raw and holds the whole disk: such an image cannot have a backing file"
            }
            _ => return Ok(()),
        };
        Err(Error::invalid(wrong))
    }

    /// Has the image name another backing file, or none. Nobody else is writing.
    pub(super) fn change_backing(&self, reference: Option<BackingReference>) -> Result<()> {
        // What hides the old backing file, or stands in for it, before the header that names the new one.
        self.write_back()?;
        self.update_header(|header| header.set_backing(reference))
    }
}
