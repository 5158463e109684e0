//! Reading: runs of clusters that lie next to each other in the file are read as one, and those that lie apart are asked
//! of the storage all at once.

use block::{Error, Result, Scratch, Storage};

use super::Image;
use crate::address::GuestOffset;
use crate::entry::{CompressedCluster, L2Mapping};

impl Image {
    /// Fills `buf` from `guest` on. The range lies on the disk.
    pub(super) fn read(&self, mut buf: &mut [u8], mut guest: GuestOffset) -> Result<()> {
        if let Some(encryption) = &self.encryption {
            return self.read_encrypted(encryption, buf, guest);
        }
        // Runs of data that lie apart in the file; one by itself needs no list.
        let mut apart: Vec<(u64, &mut [u8])> = Vec::new();
        while !buf.is_empty() {
            let (mapping, len) = self.run(guest, buf.len() as u64)?;
            let (run, rest) = buf.split_at_mut(len as usize);
            match mapping {
                L2Mapping::Standard { host, .. } if !(rest.is_empty() && apart.is_empty()) => {
                    let host = host + self.geometry.in_subcluster(guest);
                    self.check_present(host, len, guest)?;
                    apart.push((host.0, run));
                }
                _ => self.read_mapped(mapping, run, guest)?,
            }
            buf = rest;
            guest += len;
        }
        if apart.is_empty() {
            return Ok(());
        }
        self.data.read_batch(&mut apart)
    }

    /// Fills `buf` from a run that starts at `guest`, whose subcluster is in the state `mapping`.
    pub(super) fn read_mapped(&self, mapping: L2Mapping, buf: &mut [u8], guest: GuestOffset) -> Result<()> {
        let within = self.geometry.in_subcluster(guest);
        match mapping {
            // The file is the disk, whatever the tables say.
            L2Mapping::Unallocated if self.raw_data => self.data.read_exact_at(buf, guest.0),
            L2Mapping::Unallocated => self.read_backing(buf, guest),
            L2Mapping::Zero { .. } => {
                buf.fill(0);
                Ok(())
            }
            L2Mapping::Standard { host, .. } => {
                self.check_present(host + within, buf.len() as u64, guest)?;
                self.data.read_exact_at(buf, (host + within).0)
            }
            L2Mapping::Compressed(data) => self.read_compressed(data, buf, guest),
        }
    }

    /// Fills `buf` from the backing device, and with zeros past its end.
    pub(super) fn read_backing(&self, buf: &mut [u8], guest: GuestOffset) -> Result<()> {
        let Some(backing) = &self.backing else {
            buf.fill(0);
            return Ok(());
        };
        let inside = backing.size().saturating_sub(guest.0).min(buf.len() as u64) as usize;
        let (below, past_end) = buf.split_at_mut(inside);
        past_end.fill(0);
        if below.is_empty() {
            Ok(())
        } else {
            backing.read_at(below, guest.0)
        }
    }

    fn read_compressed(&self, data: CompressedCluster, buf: &mut [u8], guest: GuestOffset) -> Result<()> {
        self.refuse_compressed()?;
        let size = self.geometry.cluster_size() as usize;
        let start = self.geometry.in_cluster(guest) as usize;
        if buf.len() == size {
            return self.decompress(data, buf, guest);
        }
        let mut cluster = Scratch::new(size);
        self.decompress(data, &mut cluster, guest)?;
        buf.copy_from_slice(&cluster[start..start + buf.len()]);
        Ok(())
    }

    /// Fills `cluster`, all of one.
    fn decompress(&self, data: CompressedCluster, cluster: &mut [u8], guest: GuestOffset) -> Result<()> {
        self.check_compressed_present(data, guest)?;
        let mut compressed = Scratch::new(data.len as usize);
        // The last sector may reach past the end of the file, where the data ended before: that reads as zeros.
        self.storage.read_exact_at(&mut compressed, data.host.0)?;
        self.compression
            .decompress(&compressed, cluster)
            .map_err(|corruption| {
                Error::corrupt(corruption)
                    .with_path_of(self.storage.path())
                    .with_offset(data.host.0)
                    .with_hint(format!(
                        "the compressed cluster at guest offset {guest} is damaged"
                    ))
            })
    }
}
