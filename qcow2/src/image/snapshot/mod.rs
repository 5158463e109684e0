//! Taking, going back to, deleting and renaming internal snapshots ("Snapshots").
//!
//! A snapshot is a copy of the L1 table. Everything below it is shared, and counted once for each L1 table from
//! which it can be reached; what is counted more than once has no COPIED flag, and so is never written in place. The
//! operations are updates of whole trees of tables (see [`tree`]), with nobody else changing the image.
//!
//! # Order
//!
//! One write of one sector, the header's, is where each operation happens: it places the snapshot table and the
//! active L1 table, and says how long the disk is. What comes before it is in vain if the power goes, what comes
//! after it is only tidying up. Steps are durable before the next:
//!
//! - *Take*: COPIED is cleared in the active tables; refcounts are raised, and the copy of the L1 table and the new snapshot
//!   table written; the header; the old snapshot table is given back.
//! - *Go back*: COPIED is cleared in the snapshot's tables; refcounts are raised, and the new active L1 table written,
//!   with dirty bitmaps that say that all of the disk has changed; the header; when the requests that were running have ended, refcounts of the old tree are lowered.
//! - *Delete*: the new snapshot table is written; the header; refcounts of the snapshot's tree are lowered; COPIED is set
//!   again where a refcount of 1 is left.
//!
//! So a cut leaves clusters that are counted too high and flags that are missing. Both only waste: a cluster whose
//! flag is missing is copied when it is written to. Never is a flag set on what is shared.
//!
//! Checks, QEMU's too, count a missing flag as an error, and no order of writes in place spares them that: a flag and its
//! refcount lie in different sectors, so that one is ahead of the other for a while, and a missing flag is the harmless
//! one. Only new copies of all L2 tables and refcount blocks, named by the header at once, would do without that while, and
//! they would take as much room again and be written for every snapshot.
//!
//! Before any of it, a first pass over the tables makes sure that every entry is sound and every refcount has room, so
//! that an operation which cannot be done is refused with nothing changed.

mod references;
mod tree;
mod watch;

use std::ops::{ControlFlow, Range};
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use block::sync::RwLockWriteGuard;
use block::{BlockDevice, Error, Result, SnapshotSelector, Storage};

use super::bitmap::{Bitmaps, NewDirectory};
use super::{Image, OpenOptions, Writer};
use crate::address::{ClusterIndex, HostOffset};
use crate::allocator::Use;
use crate::bitmap::table;
use crate::entry::{L1Entry, clear_copied, set_copied};
use crate::feature::IncompatibleFeatures;
use crate::header::{Header, MAX_SNAPSHOTS, Version};
use crate::snapshot::{self, Snapshot, SnapshotTable};
use references::Runs;
use tree::Counting;
pub(super) use tree::{Batch, Tree};
pub use watch::SnapshotProgress;
pub(super) use watch::Steps;

/// What a snapshot is taken of, or gone back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotPart {
    /// The disk.
    Disk,
    /// The disk and what lies behind it in the L1 table, such as VM state.
    Everything,
}

/// Bytes of an L1 entry.
const L1_ENTRY: usize = 8;

/// Exclusive use of the image for a change of its snapshots, or of all of it.
pub(super) struct Change<'a> {
    pub(super) image: &'a Image,
    pub(super) writer: &'a Writer,
    pub(super) table: SnapshotTable,
    pub(super) bitmaps: RwLockWriteGuard<'a, Bitmaps>,
}

/// Clusters given out for a table that the header does not name yet.
pub(super) struct NewTable {
    place: HostOffset,
    clusters: Range<u64>,
}

impl Image {
    /// The internal snapshots, in the order of the snapshot table.
    ///
    /// # Errors
    /// As [`SnapshotTable::read`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        // The lock is held to the end: a table that the header names is not reused.
        let header = self.locked_header();
        Ok(SnapshotTable::read(&self.storage, &header)?.snapshots)
    }

    /// Takes a snapshot of the disk as it is, called `name` and dated `date`. Its ID is one more than the highest. It
    /// has no VM state.
    ///
    /// Changes of the disk wait meanwhile, and it waits for [plans](Image::plan_write); reads do not. `watch` is told how far it has come, and can end it as long as
    /// nothing has been changed. What was written before is durable afterwards.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is taken, empty, longer than 255 bytes or has a NUL in it, or a date that the
    /// format cannot hold; `Unsupported` where a refcount has no room for another reference, or for one snapshot too
    /// many; `ReadOnly`, `Corrupt`, `NoSpace`, `Io`; `Interrupted` if `watch` says so. Nothing has changed then, unless
    /// the image refuses writes from there on.
    pub fn create_snapshot(
        &self,
        name: &str,
        date: SystemTime,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<Snapshot> {
        self.create_snapshot_of(SnapshotPart::Disk, name, date, watch)
    }

    /// [`create_snapshot`](Self::create_snapshot), of a part of the image. What lies behind the disk is not called VM state by
    /// that.
    ///
    /// # Errors
    /// As there.
    pub fn create_snapshot_of(
        &self,
        part: SnapshotPart,
        name: &str,
        date: SystemTime,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<Snapshot> {
        self.change_snapshots("take a snapshot", |change| {
            let snapshot = change.new_snapshot(name, date)?;
            change.create(part, snapshot, watch)
        })
    }

    /// Makes the disk what it was when a snapshot was taken, its size included. The disk as it is now is lost, unless
    /// a snapshot holds it. VM state stays with the snapshot.
    ///
    /// Other changes wait meanwhile. Reads do not, and may see some of the old disk and some of the new one; it waits
    /// for those that were running to end, and for what is [mapped](Image::map) to be dropped: the thread that calls
    /// this must hold nothing mapped. `watch` as in [`create_snapshot`](Self::create_snapshot).
    ///
    /// # Errors
    /// `InvalidInput` where there is no such snapshot, or more than one; `Unsupported` where a refcount has no room
    /// for another reference, and in version 2 for a snapshot of another size; else as
    /// [`create_snapshot`](Self::create_snapshot).
    pub fn apply_snapshot(
        &self,
        which: &SnapshotSelector,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        self.apply_snapshot_of(SnapshotPart::Disk, which, watch)
    }

    /// [`apply_snapshot`](Self::apply_snapshot), for a part of the image: VM state may come along.
    ///
    /// # Errors
    /// As there.
    pub fn apply_snapshot_of(
        &self,
        part: SnapshotPart,
        which: &SnapshotSelector,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        self.change_snapshots("go back to a snapshot", |change| {
            let index = snapshot::find(&change.table.snapshots, which)?;
            change.apply(part, index, watch)
        })
    }

    /// Deletes a snapshot, and gives back the room that only it needed. Nobody may have it open.
    ///
    /// Changes of the disk wait meanwhile; reads do not. `watch` as in [`create_snapshot`](Self::create_snapshot).
    ///
    /// # Errors
    /// `InvalidInput` where there is no such snapshot, or more than one; else as
    /// [`create_snapshot`](Self::create_snapshot).
    pub fn delete_snapshot(
        &self,
        which: &SnapshotSelector,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<Snapshot> {
        self.change_snapshots("delete a snapshot", |change| {
            let index = snapshot::find(&change.table.snapshots, which)?;
            change.delete(index, watch)
        })
    }

    /// Gives a snapshot another name.
    ///
    /// # Errors
    /// `InvalidInput` where there is no such snapshot, or more than one, and for names as in
    /// [`create_snapshot`](Self::create_snapshot); else as there.
    pub fn rename_snapshot(&self, which: &SnapshotSelector, name: &str) -> Result<()> {
        self.change_snapshots("rename a snapshot", |change| {
            let index = snapshot::find(&change.table.snapshots, which)?;
            snapshot::check_name(&change.table.snapshots, name)?;
            let mut snapshots = change.table.snapshots.clone();
            name.clone_into(&mut snapshots[index].name);
            change.begin()?;
            let table = change.write_table(&snapshots)?;
            latching(change.writer, || {
                change.commit(&table, snapshots.len())?;
                self.write_back()
            })
        })
    }

    /// Opens a snapshot of the image in `storage`, for reading: its disk, as long as it was. [`Image::header`] is then
    /// that of the image with the snapshot as the active state. Nobody may delete it meanwhile.
    ///
    /// # Errors
    /// `InvalidInput` where there is no such snapshot, or more than one; `ReadOnly` for options that ask for writing;
    /// as [`open`](Self::open).
    pub fn open_snapshot(
        storage: std::sync::Arc<dyn Storage>,
        which: &SnapshotSelector,
        options: OpenOptions,
    ) -> Result<Self> {
        let path = storage.path().map(std::path::Path::to_owned);
        let opened = if options.access.write {
            Err(Error::read_only("write to a snapshot"))
        } else {
            Self::open_in(storage, options, Some(which))
        };
        opened.map_err(|error| error.with_path_of(path.as_deref()))
    }

    /// Runs a change of the snapshots while nobody else changes anything.
    fn change_snapshots<T>(&self, op: &str, change: impl FnOnce(&mut Change<'_>) -> Result<T>) -> Result<T> {
        self.change_alone(op, |alone| self.refuse_data_file().and_then(|()| change(alone)))
    }

    /// Runs a change of the tables in the file while nobody else changes anything.
    pub(super) fn change_alone<T>(
        &self,
        op: &str,
        change: impl FnOnce(&mut Change<'_>) -> Result<T>,
    ) -> Result<T> {
        let writer = self.writer(op)?;
        let bitmaps = writer.bitmaps_mut();
        // What waits first: the tables in the file are what is worked on.
        let changed = self.write_back().and_then(|()| {
            let table = SnapshotTable::read(&self.storage, &self.locked_header())?;
            change(&mut Change {
                image: self,
                writer,
                table,
                bitmaps,
            })
        });
        changed.map_err(|error| error.with_path_of(self.storage.path()))
    }

    fn refuse_data_file(&self) -> Result<()> {
        let header = self.locked_header();
        if !header
            .incompatible
            .contains(IncompatibleFeatures::EXTERNAL_DATA_FILE)
        {
            return Ok(());
        }
        Err(Error::unsupported(
            "an image with an external data file cannot have internal snapshots: its data is not counted",
        )
        .with_hint("make an overlay instead: `imgtool create -f qcow2 -b IMAGE -F qcow2 OVERLAY`"))
    }

    /// Writes the refcount blocks that wait, without a sync.
    fn write_refcounts(&self, writer: &Writer) -> Result<()> {
        let _one_at_a_time = writer.flushing();
        let writes = writer.meta().allocator.refcounts.take_blocks();
        self.write_each(&writes.blocks)?;
        // Nothing but blocks was taken, so the table has not moved.
        let _ = writer.meta().allocator.refcounts.written(&writes);
        Ok(())
    }

    /// For each cluster that starts at one of these offsets, whether its refcount is exactly 1.
    fn refcounts_of_one(&self, writer: &Writer, starts: &[HostOffset]) -> Result<Vec<bool>> {
        let mut once = vec![false; starts.len()];
        let runs = Runs::collect(self, starts.iter().copied().enumerate());
        runs.for_each_counted_once(writer, |index| once[index] = true)?;
        Ok(once)
    }
}

impl Change<'_> {
    /// Describes a snapshot of the disk as it is. It has no L1 table yet.
    fn new_snapshot(&self, name: &str, date: SystemTime) -> Result<Snapshot> {
        let snapshots = &self.table.snapshots;
        snapshot::check_name(snapshots, name)?;
        if snapshots.len() >= MAX_SNAPSHOTS as usize {
            let message = format!("the image has {MAX_SNAPSHOTS} snapshots, and cannot have more");
            return Err(Error::unsupported(message).with_hint("delete some that are not needed any more"));
        }
        let since = date.duration_since(UNIX_EPOCH).ok();
        let Some((seconds, nanoseconds)) =
            since.and_then(|since| Some((u32::try_from(since.as_secs()).ok()?, since.subsec_nanos())))
        else {
            return Err(Error::invalid("a snapshot is dated from 1970 to 2106"));
        };
        let size = self.image.size();
        Ok(Snapshot {
            l1_offset: HostOffset(0),
            l1_entries: 0,
            id: snapshot::new_id(snapshots),
            name: name.to_owned(),
            date_seconds: seconds,
            date_nanoseconds: nanoseconds,
            vm_clock_nanoseconds: 0,
            vm_state_size: 0,
            size,
            icount: None,
            extra_data: Snapshot::new_extra_data(size),
        })
    }

    fn create(
        &self,
        part: SnapshotPart,
        mut snapshot: Snapshot,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<Snapshot> {
        let image = self.image;
        let mut l1 = self.active_l1(match part {
            SnapshotPart::Disk => self.entries_for(snapshot.size),
            SnapshotPart::Everything => image.l1.entries(),
        });
        let tree = Tree::new(image, &l1)?;
        let mut steps = Steps::new(3 * tree.tables().len(), watch);
        tree.verify(
            image,
            self.writer,
            &self.fixed_metadata()?,
            Counting::Raise,
            &mut steps,
        )?;
        self.begin()?;
        steps.begin();

        forget_copied(&mut l1);
        let copy = self.write_l1(&l1)?;
        (snapshot.l1_offset, snapshot.l1_entries) = (copy.place, l1.len() as u32);
        let mut snapshots = self.table.snapshots.clone();
        snapshots.push(snapshot.clone());
        let table = match self.write_table(&snapshots) {
            Ok(table) => table,
            Err(error) => {
                self.give_back(copy)?;
                return Err(error);
            }
        };
        if let Err(error) = self.clear_copied(&tree, &l1, &mut steps) {
            // No refcount is another yet, so the flags are all set as they were: there is room for what was there before.
            latching(self.writer, || self.restore_copied(&tree, &mut steps))?;
            self.give_back(table)?;
            self.give_back(copy)?;
            return Err(error);
        }
        latching(self.writer, || {
            tree.count(image, self.writer, Counting::Raise, &mut steps)?;
            self.commit(&table, snapshots.len())?;
            image.write_back()
        })?;
        Ok(snapshot)
    }

    /// Clears COPIED in all tables of the active disk, of which `l1` is the first, durably.
    fn clear_copied(&self, tree: &Tree, l1: &[u64], steps: &mut Steps<'_>) -> Result<()> {
        let image = self.image;
        let cleared = tree.clear_copied(image, steps)?;
        if self.store_l1(0, l1)? || cleared {
            image.storage.sync_data()?;
        }
        // What was read of the tables before says COPIED.
        image.cache.forget(|_| true);
        Ok(())
    }

    /// Sets COPIED again where [`clear_copied`](Self::clear_copied) has not come to its end.
    fn restore_copied(&self, tree: &Tree, steps: &mut Steps<'_>) -> Result<()> {
        let tables = tree.set_copied(self.image, self.writer, steps);
        self.set_l1_copied()?;
        self.image.cache.forget(|_| true);
        tables
    }

    fn apply(
        &mut self,
        part: SnapshotPart,
        index: usize,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        let (image, snapshot) = (self.image, &self.table.snapshots[index]);
        let size = snapshot.size;
        self.check_size(size)?;
        let mut l1 = self.snapshot_l1(snapshot)?;
        // VM state lies behind the disk.
        let disk = self.entries_for(size);
        match part {
            SnapshotPart::Disk => l1.truncate(disk),
            SnapshotPart::Everything => l1.resize(l1.len().max(disk), 0),
        }
        forget_copied(&mut l1);
        let old = Tree::new(image, &self.active_l1(image.l1.entries()))?;
        let new = Tree::new(image, &l1)?;
        let mut steps = Steps::new(2 * old.tables().len() + 3 * new.tables().len(), watch);
        let fixed = self.fixed_metadata()?;
        new.verify(image, self.writer, &fixed, Counting::Raise, &mut steps)?;
        old.verify(image, self.writer, &fixed, Counting::Lower, &mut steps)?;
        image.save_bitmaps(self.writer, &mut self.bitmaps)?;
        self.begin()?;
        steps.begin();

        let table = self.write_l1(&l1)?;
        let directory = match image.dirty_all(self.writer, &self.bitmaps, size) {
            Ok(directory) => directory,
            Err(error) => {
                self.give_back(table)?;
                return Err(error);
            }
        };
        let writer = self.writer;
        latching(writer, || {
            if new.clear_copied(image, &mut steps)? {
                image.storage.sync_data()?;
            }
            new.count(image, writer, Counting::Raise, &mut steps)?;
            let old_table = self.switch_to(&l1, &table, &new, size, directory)?;
            writer.epoch.wait(|epoch| {
                let _one_at_a_time = writer.meta();
                epoch.advance();
            });
            old.count(image, writer, Counting::Lower, &mut steps)?;
            writer.meta().allocator.release(old_table, 1)?;
            image.write_back()
        })
    }

    fn delete(
        &self,
        index: usize,
        watch: &mut dyn FnMut(SnapshotProgress) -> ControlFlow<()>,
    ) -> Result<Snapshot> {
        let image = self.image;
        let mut snapshots = self.table.snapshots.clone();
        let snapshot = snapshots.remove(index);
        let tree = Tree::new(image, &self.snapshot_l1(&snapshot)?)?;
        let active = Tree::new(image, &self.active_l1(image.l1.entries()))?;
        let mut steps = Steps::new(2 * tree.tables().len() + active.tables().len(), watch);
        tree.verify(
            image,
            self.writer,
            &self.fixed_metadata()?,
            Counting::Lower,
            &mut steps,
        )?;
        self.begin()?;
        steps.begin();

        let table = self.write_table(&snapshots)?;
        latching(self.writer, || {
            self.commit(&table, snapshots.len())?;
            tree.count(image, self.writer, Counting::Lower, &mut steps)?;
            let l1 = self.clusters(snapshot.l1_offset, snapshot.l1_entries as usize * L1_ENTRY);
            self.writer.meta().allocator.release(l1, 1)?;
            // No flag on the disk before the refcount that it stands for.
            image.write_back()?;
            active.set_copied(image, self.writer, &mut steps)?;
            self.set_l1_copied()?;
            // What was read of the tables before lacks flags, which does no harm but to be slow.
            image.cache.forget(|_| true);
            image.write_back()
        })?;
        Ok(snapshot)
    }

    /// A snapshot of version 2 need not say how long its disk is, and has the image's length then.
    fn check_size(&self, size: u64) -> Result<()> {
        let image = self.image;
        if size == image.size() {
            return Ok(());
        }
        if image.locked_header().version >= Version::V3 {
            return self.bitmaps.check_resizable();
        }
        let message = format!(
            "the snapshot has a disk of {size} bytes and the image one of {}, which an image of version 2 \
             (compat=0.10) with snapshots must keep",
            image.size()
        );
        Err(Error::unsupported(message)
            .with_hint("make it one of version 3 first: `imgtool amend -o compat=1.1`"))
    }

    /// The first change of the file.
    pub(super) fn begin(&self) -> Result<()> {
        self.image.clear_autoclear(self.writer)
    }

    /// The clusters of all metadata but L2 tables, ascending.
    fn fixed_metadata(&self) -> Result<Vec<Range<u64>>> {
        let header = self.image.locked_header();
        let l1 = |start, entries: u32| self.clusters(start, entries as usize * L1_ENTRY);
        let mut fixed = vec![
            0..1,
            l1(header.l1_offset, header.l1_entries),
            self.clusters(header.snapshots_offset, self.table.len as usize),
        ];
        let snapshots = self.table.snapshots.iter();
        fixed.extend(snapshots.map(|snapshot| l1(snapshot.l1_offset, snapshot.l1_entries)));
        fixed.push(self.bitmaps.directory());
        for bitmap in self.bitmaps.list() {
            fixed.extend(table::clusters(&self.image.storage, bitmap, self.image.geometry)?);
        }
        fixed.extend(self.writer.meta().allocator.refcounts.metadata());
        fixed.retain(|range| !range.is_empty());
        fixed.sort_unstable_by_key(|range| range.start);
        Ok(fixed)
    }

    /// L1 entries of a disk, and one at least, so that an L1 table is always somewhere.
    fn entries_for(&self, size: u64) -> usize {
        self.image.geometry.l1_entries(size).max(1) as usize
    }

    /// The first entries of the active L1 table.
    pub(super) fn active_l1(&self, entries: usize) -> Vec<u64> {
        (0..entries).map(|index| self.image.l1.load(index)).collect()
    }

    /// All entries of a snapshot's L1 table.
    pub(super) fn snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        let mut bytes = vec![0; snapshot.l1_entries as usize * L1_ENTRY];
        self.image
            .storage
            .read_exact_at(&mut bytes, snapshot.l1_offset.0)?;
        let entries = bytes.as_chunks::<L1_ENTRY>().0.iter();
        Ok(entries.map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// Writes a new L1 table, not durably.
    fn write_l1(&self, entries: &[u64]) -> Result<NewTable> {
        self.write_new(
            &entries
                .iter()
                .flat_map(|entry| entry.to_be_bytes())
                .collect::<Vec<_>>(),
        )
    }

    /// Writes a new snapshot table, not durably.
    pub(super) fn write_table(&self, snapshots: &[Snapshot]) -> Result<NewTable> {
        self.write_new(&SnapshotTable::encode(snapshots)?)
    }

    /// Writes bytes to new clusters; nothing goes nowhere.
    fn write_new(&self, bytes: &[u8]) -> Result<NewTable> {
        let geometry = self.image.geometry;
        if bytes.is_empty() {
            return Ok(NewTable {
                place: HostOffset(0),
                clusters: 0..0,
            });
        }
        let count = geometry.clusters(bytes.len() as u64);
        let allocation = self.writer.meta().allocator.allocate(count, Use::Metadata)?;
        let table = NewTable {
            place: geometry.offset_of(ClusterIndex(allocation.clusters.start)),
            clusters: allocation.clusters,
        };
        match self.image.storage.write_all_at(bytes, table.place.0) {
            Ok(()) => Ok(table),
            Err(error) => {
                self.give_back(table)?;
                Err(error)
            }
        }
    }

    fn give_back(&self, table: NewTable) -> Result<()> {
        self.writer.meta().allocator.give_back(table.clusters)
    }

    /// Makes everything written so far durable, and then the header name the new snapshot table. The old one is given
    /// back, which the next flush makes durable.
    fn commit(&self, table: &NewTable, count: usize) -> Result<()> {
        self.commit_with(table, count, |_| ())
    }

    /// The same, with another change of the header.
    pub(super) fn commit_with(
        &self,
        table: &NewTable,
        count: usize,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        self.image.write_back()?;
        let old = self.clusters(
            self.image.locked_header().snapshots_offset,
            self.table.len as usize,
        );
        self.image.update_header(|header| {
            header.snapshots_offset = table.place;
            header.snapshot_count = count as u32;
            change(header);
        })?;
        self.writer.meta().allocator.release(old, 1)
    }

    /// Makes everything written so far durable, and then the header and the image in memory name another L1 table, with
    /// the bitmaps of that disk. Returns where the old one is.
    fn switch_to(
        &mut self,
        l1: &[u64],
        table: &NewTable,
        tree: &Tree,
        size: u64,
        directory: Option<NewDirectory>,
    ) -> Result<Range<u64>> {
        let image = self.image;
        let old = {
            let header = image.locked_header();
            self.clusters(header.l1_offset, header.l1_entries as usize * L1_ENTRY)
        };
        image.switch_directory(self.writer, &mut self.bitmaps, directory, |header| {
            header.l1_offset = table.place;
            header.l1_entries = l1.len() as u32;
            header.size = size;
        })?;
        {
            let map = &mut self
                .writer
                .metadata
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            for host in tree.tables() {
                let cluster = image.geometry.cluster_of(*host).0;
                map.insert(cluster..cluster + 1);
            }
        }
        for index in 0..image.l1.entries().max(l1.len()) {
            image.l1.store(index, l1.get(index).copied().unwrap_or(0));
        }
        image.l1.set_entries(l1.len());
        // After the L1 table: who has read an old slice meanwhile does not get it in.
        image.cache.forget(|_| true);
        image.set_size(size);
        Ok(old)
    }

    fn clusters(&self, start: HostOffset, len: usize) -> Range<u64> {
        let first = self.image.geometry.cluster_of(start).0;
        first..first + self.image.geometry.clusters(len as u64)
    }

    /// Sets COPIED in the entries of the active L1 table whose L2 tables have a refcount of exactly 1.
    fn set_l1_copied(&self) -> Result<()> {
        let image = self.image;
        let l1 = self.active_l1(image.l1.entries());
        let entries = l1.iter().enumerate();
        let tables = entries.filter_map(|(index, entry)| match image.decode_l1(*entry, index) {
            Ok(L1Entry::Table { host, copied: false }) => Some((index, host)),
            _ => None,
        });
        let mut flagged = l1.clone();
        Runs::collect(image, tables).for_each_counted_once(self.writer, |index| {
            let mut bytes = flagged[index].to_be_bytes();
            set_copied(&mut bytes);
            flagged[index] = u64::from_be_bytes(bytes);
        })?;
        self.store_l1(0, &flagged)?;
        Ok(())
    }

    /// Changes entries of the active L1 table from `first` on, in memory and, without a sync, in the file. Whether any was another.
    fn store_l1(&self, first: usize, entries: &[u64]) -> Result<bool> {
        const PIECE: usize = 4096;
        let image = self.image;
        let start = image.locked_header().l1_offset;
        let mut changed = false;
        for (number, piece) in entries.chunks(PIECE).enumerate() {
            let first = first + number * PIECE;
            let same = (first..)
                .zip(piece)
                .all(|(index, entry)| image.l1.load(index) == *entry);
            if same {
                continue;
            }
            changed = true;
            for (index, entry) in (first..).zip(piece) {
                image.l1.store(index, *entry);
            }
            let bytes = image.l1.to_bytes(first, piece.len());
            image
                .storage
                .write_all_at(&bytes, (start + (first * L1_ENTRY) as u64).0)?;
        }
        Ok(changed)
    }
}

/// Runs the part of a change after which the state of the file is unknown if it fails.
pub(super) fn latching<T>(writer: &Writer, change: impl FnOnce() -> Result<T>) -> Result<T> {
    change().inspect_err(|error| writer.latch(error))
}

/// Clears COPIED in the entries of an L1 table.
fn forget_copied(l1: &mut [u64]) {
    for entry in l1 {
        let mut bytes = entry.to_be_bytes();
        clear_copied(&mut bytes, L1_ENTRY);
        *entry = u64::from_be_bytes(bytes);
    }
}
