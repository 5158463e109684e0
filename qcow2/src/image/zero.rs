//! Write-zeroes and discard: whole subclusters change their state in the L2 entry, and a cluster in which nothing is
//! allocated any more gives its room back; parts of subclusters are written (write-zeroes) or left alone (discard),
//! and so are parts of compressed clusters. Without extended L2 entries a cluster is its only subcluster.

use std::ops::Range;

use block::{BlockDevice, Error, Result, Scratch, ZeroMode};

use super::{Image, Writer};
use crate::address::GuestOffset;
use crate::entry::{L1Entry, L2Entry, L2Mapping, Subclusters};

/// What whole subclusters become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Becomes {
    /// Zero; a cluster in which nothing is allocated any more loses its host cluster.
    Zero,
    /// Zero; a cluster keeps its host cluster if it has one of its own.
    ZeroKept,
    /// Zero, even where what is unallocated reads as zeros because nothing lies below yet.
    ZeroStated,
    /// Whatever reads as zeros and takes least: unallocated where nothing lies below, else zero.
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
        let becomes = if mode == ZeroMode::Unmap {
            Becomes::Zero
        } else {
            Becomes::ZeroKept
        };
        self.make_zero(writer, guest, len, becomes)
    }

    /// Makes a range read as zeros, as a kind of zero.
    fn make_zero(&self, writer: &Writer, guest: GuestOffset, len: u64, becomes: Becomes) -> Result<()> {
        let end = guest + len;
        let (first, last) = self.whole_subclusters(guest, end);
        if first < last && self.can_say_zero() {
            self.change_subclusters(writer, first, last, becomes)?;
        } else if first < last && becomes != Becomes::ZeroStated {
            self.zero_whole_v2(writer, first, last)?;
        } else {
            // None, or in version 2 no way to state it but to write.
            return self.zero_part(writer, guest, len, becomes);
        }
        // The parts of subclusters, and of compressed clusters.
        let size = self.geometry.cluster_size();
        let first = GuestOffset(guest.0.next_multiple_of(size)).min(end);
        let last = GuestOffset(last.0 / size * size).clamp(first, end);
        self.zero_part(writer, guest, first - guest, becomes)?;
        self.zero_part(writer, last, end - last, becomes)
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
            self.zero_part(writer, guest, len, Becomes::Zero)?;
            guest += size;
        }
        self.change_subclusters(writer, covered, last, Becomes::Nothing)
    }

    /// Gives back the whole subclusters of a range. It lies on the disk.
    pub(super) fn discard(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        let (first, last) = self.whole_subclusters(guest, guest + len);
        // Version 2 can't say "zero": what lies below must not come back, so nothing is given back.
        if first >= last || !self.can_say_zero() && self.backing.is_some() {
            return Ok(());
        }
        if self.raw_data {
            // A subcluster of the last cluster may begin past the end of the disk.
            return match last.0.min(self.size()).checked_sub(first.0) {
                None | Some(0) => Ok(()),
                Some(len) => self.zero_in_raw_data(writer, first, len, ZeroMode::Unmap),
            };
        }
        self.change_subclusters(writer, first, last, Becomes::Nothing)
    }

    /// Makes the whole subclusters of a range fall through to what lies below. It lies on the disk.
    pub(super) fn unmap(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        if self.raw_data {
            // Nothing can lie below a raw data file.
            return self.discard(writer, guest, len);
        }
        let (first, last) = self.whole_subclusters(guest, guest + len);
        self.change_subclusters(writer, first, last, Becomes::Unallocated)
    }

    /// Makes a range read as zeros whatever comes to lie below. It lies on the disk.
    pub(super) fn state_zero(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<()> {
        if self.raw_data {
            return self.zero_in_raw_data(writer, guest, len, ZeroMode::Allocate);
        }
        self.make_zero(writer, guest, len, Becomes::ZeroStated)
    }

    /// The subclusters that lie whole in a range; the cluster cut off by the end of the disk counts as if it went on.
    fn whole_subclusters(&self, guest: GuestOffset, end: GuestOffset) -> (GuestOffset, GuestOffset) {
        let size = self.geometry.subcluster_size();
        let first = GuestOffset(guest.0.next_multiple_of(size));
        let last = if end.0 == self.size() {
            end.0.next_multiple_of(self.geometry.cluster_size())
        } else {
            end.0 / size * size
        };
        (first, GuestOffset(last))
    }

    /// Makes part of a range read as zeros by writing, unless it does already as `becomes` asks.
    pub(super) fn zero_part(
        &self,
        writer: &Writer,
        guest: GuestOffset,
        len: u64,
        becomes: Becomes,
    ) -> Result<()> {
        let _pin = writer.epoch.pin();
        let mut done = 0;
        while done < len {
            let at = guest + done;
            let most = (self.geometry.cluster_size() - self.geometry.in_cluster(at)).min(len - done);
            let (mapping, step) = self.run(at, most)?;
            let reads_as_zero = match mapping {
                L2Mapping::Zero { .. } => true,
                L2Mapping::Unallocated => becomes != Becomes::ZeroStated && self.nothing_below(at),
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

    /// Whether an L2 entry can say of what it maps that it reads as zeros: in version 2 it can't.
    pub(super) fn can_say_zero(&self) -> bool {
        self.zero_flag || self.geometry.extended_l2
    }

    /// Whether what is unallocated at `guest` reads as zeros because no backing device reaches it.
    fn nothing_below(&self, guest: GuestOffset) -> bool {
        self.backing
            .as_ref()
            .is_none_or(|backing| backing.size() <= guest.0)
    }

    /// Changes the subclusters of `first .. last`, which may lie past the end of the disk if the L1 table has them.
    /// A compressed cluster of which only a part lies there stays as it is.
    pub(super) fn change_subclusters(
        &self,
        writer: &Writer,
        first: GuestOffset,
        last: GuestOffset,
        becomes: Becomes,
    ) -> Result<()> {
        let mut guest = first;
        while guest < last {
            let untouched = match becomes {
                Becomes::Unallocated => true,
                Becomes::ZeroStated => false,
                _ => self.nothing_below(guest),
            };
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

    /// Changes the subclusters of `first .. last`, all in one slice, run by run of clusters.
    fn change_slice(
        &self,
        writer: &Writer,
        first: GuestOffset,
        last: GuestOffset,
        becomes: Becomes,
    ) -> Result<()> {
        let size = self.geometry.cluster_size();
        self.write_back_if_full(writer)?;
        // One slice at a time: a discard of the whole disk must not hold up the reuse of what it frees.
        let _pin = writer.epoch.pin();
        let _range = writer.ranges.lock(first.0 / size..last.0.div_ceil(size));
        let change_of = |cluster: GuestOffset| {
            let within = first.max(cluster) - cluster..(last - cluster).min(size);
            let old = self.lookup_to_replace(writer, cluster)?;
            Ok::<_, Error>(self.changed(old, cluster, &within, becomes))
        };
        let mut guest = GuestOffset(first.0 / size * size);
        let mut changes = Vec::new();
        while guest < last {
            changes.clear();
            let mut end = guest;
            while end < last
                && let Some(new) = change_of(end)?
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
                self.discard_data(guest.max(first), end.min(last))?;
            }
            self.set_entries(writer, guest, changes.iter().copied())?;
            guest = end;
        }
        Ok(())
    }

    /// What becomes of the entry `old` of the cluster at `guest` when the subclusters in `within`, bytes of the
    /// cluster, change; `None` if it may stay as it is, or can't say so, being compressed.
    fn changed(
        &self,
        old: L2Entry,
        guest: GuestOffset,
        within: &Range<u64>,
        becomes: Becomes,
    ) -> Option<L2Entry> {
        let all = self.geometry.all_subclusters();
        let mask = self.geometry.subclusters_inside(within);
        let compressed = Subclusters {
            allocated: all,
            zero: 0,
        };
        let (host, before) = match old {
            L2Entry::Compressed(_) if mask == all => (None, compressed),
            L2Entry::Compressed(_) => return None,
            L2Entry::Standard { host, subclusters } => (host, subclusters),
        };
        let zero = match becomes {
            Becomes::Unallocated => 0,
            Becomes::ZeroStated => all,
            // Where there is no host cluster, a zero subcluster takes as little as can be.
            Becomes::Nothing if host.is_none() => before.zero | self.backed(guest),
            Becomes::Nothing => self.backed(guest),
            Becomes::Zero | Becomes::ZeroKept => before.zero | before.allocated | self.backed(guest),
        };
        let subclusters = Subclusters {
            allocated: before.allocated & !mask,
            zero: before.zero & !mask | zero & mask,
        };
        let host = host.filter(|(_, copied)| {
            let kept = match becomes {
                Becomes::ZeroKept => *copied || subclusters == before,
                Becomes::ZeroStated => subclusters == before,
                _ => false,
            };
            subclusters.allocated != 0 || kept
        });
        let new = L2Entry::Standard { host, subclusters };
        (new != old).then_some(new)
    }

    /// A bit for each subcluster of the cluster at `guest` that the backing device reaches.
    fn backed(&self, guest: GuestOffset) -> u32 {
        let below = self.backing.as_ref().map_or(0, |backing| backing.size());
        let reached = below.saturating_sub(guest.0).min(self.geometry.cluster_size());
        self.geometry.subclusters_touched(&(0..reached))
    }
}
