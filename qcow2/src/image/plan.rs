//! Map-then-I/O: the caller learns where the data lies, and moves it itself.
//!
//! A VMM's queue threads have their own ways of I/O: `io_uring`, `O_DIRECT` from guest memory, vectors of guest
//! pages. For
//! them [`Image::map`] and [`Image::plan_write`] give host offsets in [`Image::data_storage`], which is the image's
//! file or its data file; the bytes never pass through here.
//!
//! **Reading**: a [`Mapped`] run says where its bytes are, or that they are zeros, the backing's, compressed, or encrypted (the
//! last three are what [`read_at`](block::BlockDevice::read_at) is for). While it is held, the clusters that it names are
//! given to nobody else, whatever is discarded or rewritten meanwhile: it counts its holder in as a request
//! ([`crate::epoch`]). It costs a look-up and takes no lock. Drop it when the I/O has ended.
//!
//! **Writing** has two steps. [`Image::plan_write`] finds or allocates the clusters of a range and says where they are;
//! the caller writes there, all of it; [`WritePlan::commit`] copies what the request's first and last cluster held
//! around it and makes the new clusters the disk's. Until then nobody sees them, and dropping the plan gives them
//! back: the disk is as it was. Where the range has (sub)clusters of its own already, the plan names these, takes no
//! lock, and commits nothing: what is written there is written, as with any write in place.
//!
//! A plan that allocates holds its clusters, so that other allocating writes and discards there wait for it. No lock
//! that other requests need is held while the caller does its I/O. A thread that holds plans may read, flush, commit, drop,
//! and ask for more with [`Image::try_plan_write`], which never waits for another plan; anything else could wait for what
//! it holds itself. Changes of size, of bitmaps and of snapshots wait until no plan is left; going back to a snapshot, and
//! a growth that fails, wait until nothing is mapped either, so a thread that holds a run must do neither.
//!
//! **Durability** is that of writes: a committed plan is durable after the next flush, whose sync covers what was
//! written through other descriptors of the file too. After a power cut in between, clusters of a plan are leaks
//! at worst.

use std::sync::{PoisonError, TryLockError};

use block::sync::{Condvar, Mutex, MutexGuard};
use block::{Error, Result, Storage};

use super::cow::{Edges, Run, Target};
use super::{Image, Writer};
use crate::address::{GuestOffset, HostOffset};
use crate::entry::L2Mapping;
use crate::epoch::Pin;
use crate::range_lock::RangeGuard;

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this offset of [`Image::data_storage`], one after the other.
    Host(HostOffset),
    /// Nowhere: they are zeros.
    Zeros,
    /// At the same guest offset of the backing device.
    Backing,
    /// In a compressed cluster.
    Compressed,
    /// In the file, encrypted.
    Encrypted,
}

/// Where a run of the disk is, for as long as this is held.
#[derive(Debug)]
pub struct Mapped<'a> {
    /// Where its first byte is.
    pub place: Place,
    /// Its length in bytes, from the offset asked; never 0.
    pub len: u64,
    _pin: Option<Pin<'a>>,
}

/// A part of a [`WritePlan`] that lies in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRun {
    /// Where it starts on the disk.
    pub guest: GuestOffset,
    /// Where it starts in [`Image::data_storage`].
    pub host: HostOffset,
    /// Its length in bytes.
    pub len: u64,
}

/// Leave to write a range of the disk by oneself. See [`Image::plan_write`].
#[derive(Debug)]
#[must_use = "a plan that is dropped leaves the disk as it was"]
pub struct WritePlan<'a> {
    image: &'a Image,
    writer: &'a Writer,
    runs: Vec<PlannedRun>,
    /// What is not the disk's yet, in the order of `runs`.
    allocated: Vec<Allocated>,
    /// Dropped in this order, after the clusters were given back: others may then have the range, and the size change.
    _range: Option<RangeGuard<'a>>,
    _pin: Pin<'a>,
    _live: LivePlan<'a>,
}

/// Clusters that a plan has found for a part of its range.
#[derive(Debug)]
struct Allocated {
    guest: GuestOffset,
    len: u64,
    /// The clusters as they are: the plan holds them.
    run: Run,
    target: Target,
}

/// How many plans there are: what changes the image as a whole waits for the last.
#[derive(Debug, Default)]
pub(super) struct LivePlans {
    count: Mutex<usize>,
    none_left: Condvar,
}

#[derive(Debug)]
struct LivePlan<'a>(&'a LivePlans);

impl LivePlans {
    fn enter(&self) -> LivePlan<'_> {
        *self.count() += 1;
        LivePlan(self)
    }

    /// Waits until there is none. The caller sees to it that none begins.
    pub(super) fn wait(&self) {
        let mut count = self.count();
        while *count > 0 {
            count = self.none_left.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LivePlan<'_> {
    fn drop(&mut self) {
        let mut count = self.0.count();
        *count -= 1;
        if *count == 0 {
            self.0.none_left.notify_all();
        }
    }
}

impl Image {
    /// What the host offsets of [`map`](Self::map) and [`plan_write`](Self::plan_write) are offsets in: the image's
    /// file, or its data file.
    pub fn data_storage(&self) -> &dyn Storage {
        &self.data
    }

    /// Where the run of the disk that starts at `guest` is, `len` bytes at most.
    ///
    /// # Errors
    /// `OutOfBounds` past the end of the disk, or for no bytes; `Corrupt`, `Io`.
    #[inline]
    pub fn map(&self, guest: GuestOffset, len: u64) -> Result<Mapped<'_>> {
        let most = self.extent_bounds(guest.0, len)?;
        let pin = self.pin();
        let (mapping, len) = self.run(guest, most)?;
        let (place, len) = match mapping {
            L2Mapping::Standard { host, .. } => {
                let host = host + self.geometry.in_subcluster(guest);
                self.check_present(host, len, guest)?;
                match self.encryption {
                    None => (Place::Host(host), len),
                    Some(_) => (Place::Encrypted, len),
                }
            }
            L2Mapping::Zero { .. } => (Place::Zeros, len),
            L2Mapping::Compressed(_) => (Place::Compressed, len),
            L2Mapping::Unallocated => self.place_unallocated(guest, len),
        };
        Ok(Mapped {
            place,
            len,
            _pin: pin,
        })
    }

    fn place_unallocated(&self, guest: GuestOffset, len: u64) -> (Place, u64) {
        if self.raw_data {
            return (Place::Host(HostOffset(guest.0)), len);
        }
        let backing = match &self.backing {
            Some(backing) => backing.size(),
            // Detached: whoever takes care of the backing file knows where it ends.
            None if self.locked_header().backing_name.is_some() => u64::MAX,
            None => 0,
        };
        match backing.saturating_sub(guest.0) {
            0 => (Place::Zeros, len),
            below => (Place::Backing, len.min(below)),
        }
    }

    /// Finds or makes room for `len` bytes at `guest`, which the caller is going to write. See [`WritePlan`].
    ///
    /// Waits for other plans and allocating writes that share a cluster with it, so it is for a thread that holds no
    /// plan. Dirty bitmaps count the range as written from here on.
    ///
    /// # Errors
    /// As [`write_at`](block::BlockDevice::write_at); `OutOfBounds` for no bytes; `Unsupported` for an encrypted image.
    pub fn plan_write(&self, guest: GuestOffset, len: u64) -> Result<WritePlan<'_>> {
        let (writer, live) = self.begin_plan(guest, len)?;
        let pin = writer.epoch.pin();
        if let Some(run) = self.in_place(writer, guest, len)? {
            return Ok(self.plan_in_place(writer, run, pin, live));
        }
        drop(pin);
        self.write_back_if_full(writer)?;
        let range = writer.ranges.lock(self.clusters_of(guest, len));
        self.plan(writer, guest, len, range, live)
    }

    /// [`plan_write`](Self::plan_write), for a thread that holds plans: `None` if it would have to wait for somebody
    /// else, who may be waiting for one of these.
    ///
    /// # Errors
    /// As [`plan_write`](Self::plan_write).
    pub fn try_plan_write(&self, guest: GuestOffset, len: u64) -> Result<Option<WritePlan<'_>>> {
        let Some((writer, live)) = self.try_begin_plan(guest, len)? else {
            return Ok(None);
        };
        let pin = writer.epoch.pin();
        if let Some(run) = self.in_place(writer, guest, len)? {
            return Ok(Some(self.plan_in_place(writer, run, pin, live)));
        }
        drop(pin);
        self.write_back_if_full(writer)?;
        match writer.ranges.try_lock(self.clusters_of(guest, len)) {
            None => Ok(None),
            Some(range) => self.plan(writer, guest, len, range, live).map(Some),
        }
    }

    /// Counts a plan in, and its range as written.
    fn begin_plan(&self, guest: GuestOffset, len: u64) -> Result<(&Writer, LivePlan<'_>)> {
        let writer = self.writer("write")?;
        let bitmaps = self.begin_change(writer)?;
        self.check_plan(guest, len)?;
        bitmaps.mark(guest.0, len);
        Ok((writer, writer.plans.enter()))
    }

    /// [`begin_plan`](Self::begin_plan), unless somebody is waiting for all plans to end.
    fn try_begin_plan(&self, guest: GuestOffset, len: u64) -> Result<Option<(&Writer, LivePlan<'_>)>> {
        let writer = self.writer("write")?;
        let bitmaps = match writer.bitmaps.try_read() {
            Ok(bitmaps) => bitmaps,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        if !writer.has_begun() {
            // Nobody who holds a plan comes here: the first one has begun.
            drop(bitmaps);
            return self.begin_plan(guest, len).map(Some);
        }
        self.check_plan(guest, len)?;
        bitmaps.mark(guest.0, len);
        Ok(Some((writer, writer.plans.enter())))
    }

    fn check_plan(&self, guest: GuestOffset, len: u64) -> Result<()> {
        if self.encryption.is_some() {
            let message = "the image is encrypted: what lies in its file is written by itself alone";
            return Err(Error::unsupported(message).with_path_of(self.storage.path()));
        }
        if len == 0 {
            return self.extent_bounds(guest.0, len).map(|_| ());
        }
        self.check_bounds("write", guest.0, len)
    }

    fn clusters_of(&self, guest: GuestOffset, len: u64) -> std::ops::Range<u64> {
        let bits = self.geometry.cluster_bits;
        guest.0 >> bits..((guest.0 + len - 1) >> bits) + 1
    }

    /// The range as one run, if all of it can be written where it is.
    fn in_place(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<Option<PlannedRun>> {
        let run = self.first_in_place(writer, guest, len)?;
        Ok(run.filter(|run| run.len == len))
    }

    /// What of the range, from its start on, can be written where it is and in one piece.
    fn first_in_place(&self, writer: &Writer, guest: GuestOffset, len: u64) -> Result<Option<PlannedRun>> {
        let (L2Mapping::Standard { host, copied: true }, len) = self.run(guest, len)? else {
            return Ok(None);
        };
        let host = host + self.geometry.in_subcluster(guest);
        self.refuse_metadata(writer, guest, host, len)?;
        Ok(Some(PlannedRun { guest, host, len }))
    }

    fn plan_in_place<'a>(
        &'a self,
        writer: &'a Writer,
        run: PlannedRun,
        pin: Pin<'a>,
        live: LivePlan<'a>,
    ) -> WritePlan<'a> {
        WritePlan {
            image: self,
            writer,
            runs: vec![run],
            allocated: Vec::new(),
            _range: None,
            _pin: pin,
            _live: live,
        }
    }

    /// Finds room for every part of a range that the caller holds.
    fn plan<'a>(
        &'a self,
        writer: &'a Writer,
        guest: GuestOffset,
        len: u64,
        range: RangeGuard<'a>,
        live: LivePlan<'a>,
    ) -> Result<WritePlan<'a>> {
        let mut plan = WritePlan {
            image: self,
            writer,
            runs: Vec::new(),
            allocated: Vec::new(),
            _range: Some(range),
            _pin: writer.epoch.pin(),
            _live: live,
        };
        let end = guest + len;
        let mut at = guest;
        while at < end {
            // What fails here drops the plan, and with it all that it has taken.
            at += plan.add(at, end - at)?;
        }
        Ok(plan)
    }
}

impl WritePlan<'_> {
    /// Where the range is to be written, in guest order and without gaps.
    pub fn runs(&self) -> &[PlannedRun] {
        &self.runs
    }

    /// Makes the disk what was written. The caller has written every byte of every run, and all of that has ended.
    ///
    /// # Errors
    /// As [`write_at`](block::BlockDevice::write_at): the range is then undefined, old or new from cluster to cluster.
    pub fn commit(mut self) -> Result<()> {
        while let Some(part) = self.allocated.last() {
            self.image.writer("write")?;
            self.image.commit_part(self.writer, part)?;
            self.allocated.pop();
        }
        Ok(())
    }

    /// Adds the first part of a range that lies in one piece. How many bytes that is.
    fn add(&mut self, guest: GuestOffset, len: u64) -> Result<u64> {
        let (image, writer) = (self.image, self.writer);
        if let Some(run) = image.first_in_place(writer, guest, len)? {
            self.push(run);
            return Ok(run.len);
        }
        let end = (guest + len).min(image.slice_end(guest));
        let Some(run) = image.allocating_run(writer, guest, end)? else {
            return Ok(0);
        };
        let target = image.target(writer, guest, &run)?;
        let in_cluster = image.geometry.in_cluster(guest);
        let len = (end - guest).min((target.count << image.geometry.cluster_bits) - in_cluster);
        let host = target.host + in_cluster;
        self.allocated.push(Allocated {
            guest,
            len,
            run,
            target,
        });
        self.push(PlannedRun { guest, host, len });
        Ok(len)
    }

    /// Adds a run, to the last one if it goes on there.
    fn push(&mut self, run: PlannedRun) {
        match self.runs.last_mut() {
            Some(last) if last.host + last.len == run.host => last.len += run.len,
            _ => self.runs.push(run),
        }
    }
}

impl Drop for WritePlan<'_> {
    fn drop(&mut self) {
        for part in self.allocated.drain(..).filter(|part| part.target.new) {
            let first = self.image.geometry.cluster_of(part.target.host).0;
            // What can't be given back is a leak, as after a crash.
            let _ = self
                .writer
                .meta()
                .allocator
                .give_back(first..first + part.target.count);
        }
    }
}

impl Image {
    /// Copies around what the caller has written, and sets the entries.
    fn commit_part(&self, writer: &Writer, part: &Allocated) -> Result<()> {
        self.ensure_table(writer, part.guest)?;
        let in_cluster = self.geometry.in_cluster(part.guest);
        let edges = Edges::new(&part.run, &part.target, in_cluster, part.len, self.geometry);
        self.copy_around(part.guest, &part.target, &edges)?;
        let start = GuestOffset(part.guest.0 - in_cluster);
        self.set_entries(writer, start, edges.entries(&part.target, self.geometry))
    }
}
