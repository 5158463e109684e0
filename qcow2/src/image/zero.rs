//! Write-zeroes and discard: whole clusters change their L2 entry and give their room back; parts of clusters are
//! written (write-zeroes) or left alone (discard).

use block::{BlockDevice, Result, ZeroMode};

use super::{Image, Writer};
use crate::address::GuestOffset;
use crate::entry::{L1Entry, L2Mapping};
use crate::scratch::Scratch;

/// What whole clusters become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Becomes {
    /// Zero clusters, without host clusters.
    Zero,
    /// Zero clusters that keep their host cluster where they have one of their own.
    ZeroKept,
    /// Zero clusters, even where unallocated ones read as zeros because nothing lies below yet.
    ZeroStated,
    /// Whatever reads as zeros and takes least: unallocated where nothing lies below, else zero clusters.
    Nothing,
    /// Unallocated, whatever lies below.
    Unallocated,
}

impl Image {
    /// Makes a range read as zeros. It lies on the disk.
    pub(super) fn zero(&self, writer: &Writer, guest: GuestOffset, len: u64, mode: ZeroMode) -> Result<()> {
        if self.raw_data {
            return self.zero_in_raw_data(writer, guest, len, mode);
        }
        let end = guest + len;
        let (first, last) = self.whole_clusters(guest, end);
        if first >= last {
            return self.zero_part(writer, guest, len);
        }
        self.zero_part(writer, guest, first - guest)?;
        if self.zero_flag {
            let becomes = if mode == ZeroMode::Unmap {
                Becomes::Zero
            } else {
                Becomes::ZeroKept
            };
            self.change_clusters(writer, first, last, becomes)?;
        } else {
            self.zero_whole_v2(writer, first, last)?;
        }
        self.zero_part(writer, last.min(end), end.0.saturating_sub(last.0))
    }

    /// Version 2 has no zero clusters: where a backing file would show through, zeros are written.
    fn zero_whole_v2(&self, writer: &Writer, first: GuestOffset, last: GuestOffset) -> Result<()> {
        let covered = self.backing.as_ref().map_or(0, |backing| backing.size());
        let size = self.geometry.cluster_size();
        let covered = GuestOffset(covered.next_multiple_of(size)).clamp(first, last);
        let mut guest = first;
        while guest < covered {
            let len = (covered - guest)
                .min(size)
                .min(self.size().saturating_sub(guest.0));
            self.zero_part(writer, guest, len)?;
            guest += size;
        }
        self.change_clusters(writer, covered, last, Becomes::Nothing)
    }

    /// Gives back the whole clusters of a range. It lies on the disk.
    pub(super) fn discard(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        let (first, last) = self.whole_clusters(guest, guest + len);
        // Version 2 can't say "zero": what lies below must not come back, so nothing is given back.
        if first >= last || !self.zero_flag && self.backing.is_some() {
            return Ok(());
        }
        if self.raw_data {
            let len = last.0.min(self.size()) - first.0;
            return self.zero_in_raw_data(writer, first, len, ZeroMode::Unmap);
        }
        self.change_clusters(writer, first, last, Becomes::Nothing)
    }

    /// Makes the whole clusters of a range fall through to what lies below. It lies on the disk.
    pub(super) fn unmap(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        if self.raw_data {
            // Nothing can lie below a raw data file.
            return self.discard(writer, guest, len);
        }
        let (first, last) = self.whole_clusters(guest, guest + len);
        self.change_clusters(writer, first, last, Becomes::Unallocated)
    }

    /// Makes a range read as zeros whatever comes to lie below. It lies on the disk.
    pub(super) fn state_zero(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        if self.raw_data {
            return self.zero_in_raw_data(writer, guest, len, ZeroMode::Allocate);
        }
        let end = guest + len;
        let (first, last) = match self.whole_clusters(guest, end) {
            (first, last) if first < last && self.zero_flag => (first, last),
            // None, or in version 2 no way to say it but to write.
            _ => (end, end),
        };
        self.write_zeros(writer, guest, first - guest)?;
        self.change_clusters(writer, first, last, Becomes::ZeroStated)?;
        self.write_zeros(writer, last.min(end), end.0.saturating_sub(last.0))
    }

    fn write_zeros(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        let mut zeros = Scratch::new(len.min(1 << 20) as usize);
        zeros.fill(0);
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.write(writer, &zeros[..step as usize], guest + done)?;
            done += step;
        }
        Ok(())
    }

    /// The clusters that lie whole in a range; one cut off by the end of the disk counts as whole.
    fn whole_clusters(&self, guest: GuestOffset, end: GuestOffset) -> (GuestOffset, GuestOffset) {
        let size = self.geometry.cluster_size();
        let first = GuestOffset(guest.0.next_multiple_of(size));
        let last = if end.0 == self.size() {
            end.0.next_multiple_of(size)
        } else {
            end.0 / size * size
        };
        (first, GuestOffset(last))
    }

    /// Makes part of a range read as zeros by writing, unless it does already.
    pub(super) fn zero_part(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        let _pin = writer.epoch.pin();
        let mut done = 0;
        while done < len {
            let at = guest + done;
            let step = (self.geometry.cluster_size() - self.geometry.in_cluster(at)).min(len - done);
            let reads_as_zero = match self.mapping(at)? {
                L2Mapping::Zero { .. } => true,
                L2Mapping::Unallocated => self.nothing_below(at),
                _ => false,
            };
            if !reads_as_zero {
                let mut zeros = Scratch::new(step as usize);
                zeros.fill(0);
                self.write(writer, &zeros, at)?;
            }
            done += step;
        }
        Ok(())
    }

    /// Whether an unallocated cluster reads as zeros because no backing device reaches it.
    fn nothing_below(&self, guest: GuestOffset) -> bool {
        self.backing
            .as_ref()
            .is_none_or(|backing| backing.size() <= guest.0)
    }

    /// Changes the clusters `first .. last`, which may lie past the end of the disk if the L1 table has them.
    pub(super) fn change_clusters(
        &self,
        writer: &Writer,
        first: GuestOffset,
        last: GuestOffset,
        becomes: Becomes,
    ) -> Result<()> {
        let mut guest = first;
        while guest < last {
            let untouched = self.changed(L2Mapping::Unallocated, guest, becomes).is_none();
            if untouched && self.l1_entry(guest)? == L1Entry::Unallocated {
                // Nothing to change under a whole L1 entry.
                let coverage = self.geometry.l2_coverage();
                guest = GuestOffset((guest.0 / coverage + 1) * coverage);
                continue;
            }
            let end = last.min(self.slice_end(guest));
            self.change_slice(writer, guest, end, becomes)?;
            guest = end;
        }
        Ok(())
    }

    /// Changes the clusters `first .. last`, all in one slice, run by run.
    fn change_slice(
        &self,
        writer: &Writer,
        first: GuestOffset,
        last: GuestOffset,
        becomes: Becomes,
    ) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let size = self.geometry.cluster_size();
        self.write_back_if_full(writer)?;
        // One slice at a time: a discard of the whole disk must not hold up the reuse of what it frees.
        let _pin = writer.epoch.pin();
        let _range = writer.ranges.lock(first.0 >> bits..last.0 >> bits);
        let mut guest = first;
        let mut changes = Vec::new();
        while guest < last {
            changes.clear();
            let mut end = guest;
            while end < last
                && let Some(new) = self.changed(self.lookup_to_replace(writer, end)?, end, becomes)
            {
                changes.push(new);
                end += size;
            }
            if changes.is_empty() {
                guest += size;
                continue;
            }
            self.ensure_table(writer, guest)?;
            // What becomes unallocated stays until the file says so: what is below may differ from zeros.
            let keep = matches!(becomes, Becomes::ZeroKept | Becomes::Unallocated);
            if self.geometry.data_file && !keep {
                self.discard_data(guest, end)?;
            }
            self.set_mappings(writer, guest, changes.iter().copied())?;
            guest = end;
        }
        Ok(())
    }

    /// What a cluster mapped as `old` is to become; `None` if it may stay as it is.
    fn changed(&self, old: L2Mapping, guest: GuestOffset, becomes: Becomes) -> Option<L2Mapping> {
        let zero = L2Mapping::Zero { preallocated: None };
        let smallest = if self.nothing_below(guest) {
            L2Mapping::Unallocated
        } else {
            zero
        };
        let new = match (becomes, old) {
            (Becomes::Unallocated, _) => L2Mapping::Unallocated,
            (Becomes::Nothing, L2Mapping::Zero { preallocated: None })
            | (Becomes::ZeroKept | Becomes::ZeroStated, L2Mapping::Zero { .. }) => old,
            (Becomes::ZeroStated, _) => zero,
            (Becomes::Nothing, _) | (_, L2Mapping::Unallocated) => smallest,
            (Becomes::ZeroKept, L2Mapping::Standard { host, copied: true }) => L2Mapping::Zero {
                preallocated: Some((host, true)),
            },
            (Becomes::Zero | Becomes::ZeroKept, _) => zero,
        };
        (new != old).then_some(new)
    }
}
