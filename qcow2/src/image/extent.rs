//! Which runs of the disk are data, zeros or holes, without reading any of it.

use block::{Extent, ExtentState, Result};

use super::Image;
use crate::address::{GuestOffset, HostOffset};
use crate::entry::{L1Entry, L2Entry, L2Mapping, OFFSET};

/// L1 entries without a table that are looked at for one run at most.
const EMPTY_TABLES: u64 = 4096;

impl Image {
    /// The run that starts at `guest` in this layer, `len` bytes at most. It may go on behind its end: however little of it
    /// is used, because a layer below has shorter runs, finding it must not cost much. So it ends with its L2 slice at
    /// the latest, or with so many L1 entries where there are no tables.
    pub(super) fn own_extent(&self, guest: GuestOffset, len: u64) -> Result<Extent> {
        let end = guest + len;
        if self.l1_entry(guest)? == L1Entry::Unallocated {
            let len = (self.unallocated_tables_end(guest, end)? - guest).min(len);
            let (state, host) = self.unallocated(guest);
            return Ok(Extent {
                offset: guest.0,
                len,
                state,
                depth: 0,
                host,
            });
        }
        let end = end.min(self.slice_end(guest));
        let words = self.words(guest)?;
        let mut run = self.extent_in_cluster(words, guest)?;
        run.len += self.goes_on_evenly(words[0], guest, &run, end)?;
        while run.end() < end.0 {
            let next = GuestOffset(run.end());
            let next = self.extent_in_cluster(self.words(next)?, next)?;
            if !run.continued_by(&next) {
                break;
            }
            run.len += next.len;
        }
        Ok(run.clip(guest.0, end - guest))
    }

    /// How many bytes after `run`, which reaches from `guest` to the end of its cluster, are seen to go on with it by a
    /// look at the entries as numbers: from `entry` on each names the next cluster of the file, or all are the same. It is
    /// the common case, and takes a tenth of the time; what it does not see may go on all the same. Looks no further than
    /// the cluster that ends at `end` or after it.
    fn goes_on_evenly(&self, entry: u64, guest: GuestOffset, run: &Extent, end: GuestOffset) -> Result<u64> {
        let cluster_size = self.geometry.cluster_size();
        let more = end.0.saturating_sub(run.end()).div_ceil(cluster_size);
        if self.geometry.extended_l2 || more == 0 {
            return Ok(0);
        }
        let (slice, index) = self.slice_of(guest);
        let entries = index..index + 1 + more as usize;
        let step = if run.host.is_some() { cluster_size } else { 0 };
        let len = self.cache.even_run(slice, entries, entry, step) as u64 * cluster_size;
        let Some(host) = run.host else { return Ok(len) };
        let last = HostOffset(host - self.geometry.in_cluster(guest) + len);
        let valid = last.0 & !OFFSET == 0 && self.is_present(last)?;
        Ok(if valid { len } else { 0 })
    }

    /// What no table maps: nothing of this layer's, but in a raw data file.
    fn unallocated(&self, guest: GuestOffset) -> (ExtentState, Option<u64>) {
        if self.raw_data {
            (ExtentState::Data, Some(guest.0))
        } else {
            (ExtentState::Hole, None)
        }
    }

    /// Where the first L2 table after `guest` starts that exists; if none does before it, `end`, or where enough was
    /// looked at.
    fn unallocated_tables_end(&self, guest: GuestOffset, end: GuestOffset) -> Result<GuestOffset> {
        let coverage = self.geometry.l2_coverage();
        let end = end.min(GuestOffset(
            guest.0.saturating_add(coverage.saturating_mul(EMPTY_TABLES)),
        ));
        let mut at = guest;
        while at < end && self.l1_entry(at)? == L1Entry::Unallocated {
            at = GuestOffset((at.0 / coverage + 1).saturating_mul(coverage));
        }
        Ok(at)
    }

    /// The run that starts at `guest`, to the end of its cluster at most, by the words of that one's entry.
    fn extent_in_cluster(&self, words: [u64; 2], guest: GuestOffset) -> Result<Extent> {
        let entry = self.decode_l2(words, guest)?;
        let (mapping, count) = entry.run(self.geometry.subcluster_of(guest), self.geometry);
        let place = match entry {
            L2Entry::Standard { host, .. } => {
                host.map(|(host, _)| (host + self.geometry.in_cluster(guest)).0)
            }
            L2Entry::Compressed(_) => None,
        };
        // What lies there is not what the guest reads.
        let place = place.filter(|_| self.encryption.is_none());
        let (state, host) = match mapping {
            L2Mapping::Unallocated if place.is_some() && !self.raw_data => (ExtentState::Hole, place),
            L2Mapping::Unallocated => self.unallocated(guest),
            L2Mapping::Zero { .. } => (ExtentState::Zero, place),
            // Data that a cut file has lost lies nowhere: only reading it tells.
            L2Mapping::Standard { host, .. } if !self.is_present(host)? => (ExtentState::Data, None),
            L2Mapping::Standard { .. } => (ExtentState::Data, place),
            L2Mapping::Compressed(_) => (ExtentState::Compressed, None),
        };
        let len = u64::from(count) << self.geometry.subcluster_bits();
        Ok(Extent {
            offset: guest.0,
            len: len - self.geometry.in_subcluster(guest),
            state,
            depth: 0,
            host,
        })
    }

    /// The run that starts at `guest`, `len` bytes at most, through the backing.
    pub(super) fn extent(&self, guest: GuestOffset, len: u64) -> Result<Extent> {
        let own = self.own_extent(guest, len)?;
        let Some(backing) = self.backing.as_ref().filter(|_| own.state == ExtentState::Hole) else {
            return Ok(own);
        };
        let inside = backing.size().saturating_sub(own.offset);
        if inside == 0 {
            return Ok(own);
        }
        let below = backing.extent_at(own.offset, own.len.min(inside))?;
        Ok(Extent {
            depth: below.depth + 1,
            ..below
        })
    }
}
