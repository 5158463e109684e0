//! Reading: runs of clusters that lie next to each other in the file are read as one, and those that lie apart are asked
//! of the storage all at once.

use block::{Error, Result};

use super::Image;
use crate::address::{GuestOffset, HostOffset};
use crate::entry::{CompressedCluster, L2Mapping};
use crate::scratch::Scratch;

impl Image {
    /// Fills `buf` from `guest` on. The range lies on the disk.
    pub(super) fn read(&self, mut buf: &mut [u8], mut guest: GuestOffset) -> Result<()> {
        // Runs of data that lie apart in the file; one by itself needs no list.
        let mut apart: Vec<(u64, &mut [u8])> = Vec::new();
        while !buf.is_empty() {
            let mapping = self.mapping(guest)?;
            let len = self.run_length(mapping, guest, buf.len())?;
            let (run, rest) = buf.split_at_mut(len);
            match mapping {
                L2Mapping::Standard { host, .. } if !(rest.is_empty() && apart.is_empty()) => {
                    apart.push(((host + self.geometry.in_cluster(guest)).0, run));
                }
                _ => self.read_mapped(mapping, run, guest)?,
            }
            buf = rest;
            guest += len as u64;
        }
        if apart.is_empty() {
            return Ok(());
        }
        self.data.read_batch(&mut apart)
    }

    /// What maps `guest`, and how many bytes from there on, `most` at most, go on with it.
    #[inline]
    pub(super) fn run(&self, guest: GuestOffset, most: u64) -> Result<(L2Mapping, u64)> {
        let mapping = self.mapping(guest)?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok((mapping, self.run_length(mapping, guest, most)? as u64))
    }

    /// How many bytes from `guest` on, `most` at most, continue `mapping`, which is that of `guest`: in the same
    /// state, and adjacent in the file. A compressed cluster is a run of its own.
    pub(super) fn run_length(&self, mapping: L2Mapping, guest: GuestOffset, most: usize) -> Result<usize> {
        let size = self.geometry.cluster_size();
        let mut len = size - self.geometry.in_cluster(guest);
        while len < most as u64 {
            let distance = len + self.geometry.in_cluster(guest);
            if !continues(mapping, self.mapping(guest + len)?, distance) {
                break;
            }
            len += size;
        }
        Ok(most.min(usize::try_from(len).unwrap_or(most)))
    }

    /// Fills `buf` from a run that starts in the cluster of `guest` and is in the state `mapping`.
    pub(super) fn read_mapped(&self, mapping: L2Mapping, buf: &mut [u8], guest: GuestOffset) -> Result<()> {
        let in_cluster = self.geometry.in_cluster(guest);
        match mapping {
            // The file is the disk, whatever the tables say.
            L2Mapping::Unallocated if self.raw_data => self.data.read_exact_at(buf, guest.0),
            L2Mapping::Unallocated => self.read_backing(buf, guest),
            L2Mapping::Zero { .. } => {
                buf.fill(0);
                Ok(())
            }
            L2Mapping::Standard { host, .. } => self.data.read_exact_at(buf, (host + in_cluster).0),
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

/// Whether a cluster mapped as `next`, `distance` bytes after the start of one mapped as `first`, goes on with it.
fn continues(first: L2Mapping, next: L2Mapping, distance: u64) -> bool {
    let adjacent = |a: HostOffset, b: HostOffset| a + distance == b;
    match (first, next) {
        (L2Mapping::Unallocated, L2Mapping::Unallocated)
        | (L2Mapping::Zero { preallocated: None }, L2Mapping::Zero { preallocated: None }) => true,
        (L2Mapping::Standard { host: a, copied: x }, L2Mapping::Standard { host: b, copied: y })
        | (
            L2Mapping::Zero {
                preallocated: Some((a, x)),
            },
            L2Mapping::Zero {
                preallocated: Some((b, y)),
            },
        ) => adjacent(a, b) && x == y,
        _ => false,
    }
}
