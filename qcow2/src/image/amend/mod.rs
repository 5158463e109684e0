//! Changing what an image is, in place: its version, the width of its refcounts, what it names, and so on.
//!
//! # Order
//!
//! Everything is looked at first: whether there can be such an image, whether all refcounts fit, whether a cluster is in
//! the way. What is refused is refused with nothing changed. Then, each step durable before the next:
//!
//! 1. *To version 3*: a snapshot table with all that version 3 asks for goes to new clusters, if the old one lacks any of it;
//!    the header says the version, and names the table.
//! 2. *Size*: as [`resize`](super::resize).
//! 3. *No raw data file any more*: all of the disk is mapped ([`raw`]), since what is not reads as zeros from then on.
//! 4. *To version 2*: zero clusters become what version 2 has for them ([`zeros`]).
//! 5. *Refcounts of another width*: a new refcount structure is written beside everything
//!    ([`Recount`](crate::check::Recount)).
//! 6. The header says all the rest, at once: version 2, the width and the place of the new refcount structure, features
//!    and names.
//!
//! # Why a cut does no harm
//!
//! Steps 1 and 6 are one write of one sector each (longer headers change whole or not at all too, see
//! `header/rewrite.rs`): there is the image before it and the image after it. The steps between leave, at every instant,
//! an image that says of every cluster, of the disk and of all snapshots, what it said before; in other words where it is
//! about zero clusters. What is written for step 5 lies where nothing references it until step 6. No step relies on what an
//! earlier one remembers, so another run finds less to do, and finishes the job.
//!
//! The cost of a cut are leaks, as ever: clusters counted for entries that do not name them yet, or do not any more.
//!
//! Afterwards the image in memory has another shape than the one in the file: it can be read, and is to be opened again
//! for writing.

mod raw;
mod tables;
mod target;
mod zeros;

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use block::{BackingReference, Error, ErrorKind, Resize, Result, Storage};

use self::tables::Tables;
use self::target::Target;
use super::snapshot::{Change, Steps, latching};
use super::{Image, SnapshotProgress};
use crate::check::{Recount, RefcountStructure};
use crate::compression::CompressionType;
use crate::header::{self, Header, Version};

/// What an image is to name as its backing file from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewBacking {
    /// None.
    Nothing,
    /// This one. It is only named: what the image reads as is the caller's business.
    File(BackingReference),
}

/// What is to change of an image. `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// Version of the format.
    pub version: Option<Version>,
    /// Refcount updates may be postponed; not in version 2.
    pub lazy_refcounts: Option<bool>,
    /// log2 of the width of a refcount in bits, 0..=6; 4 in version 2.
    pub refcount_order: Option<u32>,
    /// How compressed clusters are compressed. Only while there are none.
    pub compression: Option<CompressionType>,
    /// The backing file.
    pub backing: Option<NewBacking>,
    /// The name of the external data file. Only in an image that has one.
    pub data_file: Option<String>,
    /// The external data file stays a raw image of the disk. This can only be given up.
    pub data_file_raw: Option<bool>,
    /// Length of the disk in bytes; it can only grow, and the image must be open with all that it is based on.
    pub size: Option<u64>,
}

/// How far an amendment has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AmendProgress(f64);

impl AmendProgress {
    /// How much of it is done, from 0 to 1.
    pub fn fraction(self) -> f64 {
        self.0
    }
}

type Watch<'w> = dyn FnMut(AmendProgress) -> ControlFlow<()> + 'w;

/// The parts of an amendment that take long: where each begins and ends in the whole.
const LOOKING: (f64, f64) = (0.0, 0.2);
const COUNTING: (f64, f64) = (0.2, 0.5);
const CHANGING: (f64, f64) = (0.5, 0.8);
const COUNTING_AGAIN: (f64, f64) = (0.8, 1.0);

impl Image {
    /// Changes what the image is. Returns whether there was anything to change; then it is durable, and this image in
    /// memory, from now on for reading only, is best dropped.
    ///
    /// The disk and all snapshots read the same at every instant, whatever happens. `watch` is told how far it has come, and
    /// can end it between two steps; another call then finishes the job. Changes of the disk wait meanwhile, and it waits
    /// for [plans](Image::plan_write).
    ///
    /// ```
    /// # use std::ops::ControlFlow;
    /// # use std::sync::Arc;
    /// # use block::{Access, MemStorage};
    /// # use qcow2::{Amendment, CreateOptions, Header, Image, OpenOptions, Version};
    /// # let storage = Arc::new(MemStorage::new());
    /// # qcow2::create(&*storage, &CreateOptions { size: 1 << 30, ..CreateOptions::default() })?;
    /// # let options = OpenOptions { access: Access::WRITE, ..OpenOptions::default() };
    /// let image = Image::open(storage.clone(), options)?;
    /// let amendment = Amendment { version: Some(Version::V2), ..Amendment::default() };
    /// image.amend(&amendment, &mut |_| ControlFlow::Continue(()))?;
    /// assert_eq!(Header::read(&*storage)?.version, Version::V2);
    /// # Ok::<(), block::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` and `Unsupported` for what there cannot be, which say what is in the way, and `Corrupt` for an image
    /// that must be repaired first: nothing has changed then. `Interrupted` if `watch` says so; `ReadOnly`, `NoSpace`,
    /// `Io`.
    pub fn amend(
        &self,
        amendment: &Amendment,
        watch: &mut dyn FnMut(AmendProgress) -> ControlFlow<()>,
    ) -> Result<bool> {
        self.change_alone("amend the image", |change| {
            let amended = change.amend(amendment, watch);
            amended.map_err(|error| match error.kind() {
                ErrorKind::Interrupted => interrupted(),
                _ => error,
            })
        })
    }
}

impl Change<'_> {
    fn amend(&mut self, amendment: &Amendment, watch: &mut Watch<'_>) -> Result<bool> {
        self.settle()?;
        let target = Target::of(self.image, amendment)?;
        if !target.is_a_change() {
            return Ok(false);
        }
        target.check_snapshots(&self.table.snapshots)?;
        self.check_header(&target)?;
        let tables = if target.looks_at_tables() {
            let tables = Tables::of(self)?;
            let seen = in_part(&tables, LOOKING, watch, |steps| tables.look(self, steps))?;
            target.check_tables(&seen)?;
            (seen.zeros > 0 && target.downgrades()).then_some(tables)
        } else {
            None
        };
        // Refcounts must be right where they are gone by or written anew, and only there: to count takes longest.
        if tables.is_some() || target.new_order().is_some() {
            let recount = self.recount(COUNTING, watch)?;
            if let Some(order) = target.new_order() {
                recount.check_width(order)?;
            }
        }

        self.begin()?;
        if target.upgrades() {
            self.upgrade()?;
        }
        if let Some(size) = target.new_size() {
            (self.image).change_size(self.writer, &mut self.bitmaps, size, Resize::default())?;
        }
        if target.gives_up_raw() {
            self.image.map_all_of_data_file(self.writer)?;
        }
        if let Some(tables) = tables {
            let backed = target.is_backed();
            let expanded = in_part(&tables, CHANGING, watch, |steps| {
                self.expand_zeros(&tables, backed, steps)
            });
            // What was read of the tables before names what has been given back.
            self.image.cache.forget(|_| true);
            expanded?;
        }
        self.settle()?;
        let structure = match target.new_order() {
            Some(order) => Some(self.recount(COUNTING_AGAIN, watch)?.write(order)?),
            None => None,
        };
        self.switch(&target, structure.as_ref())?;
        // It is done, whoever would like to stop it now.
        let _ = watch(AmendProgress(1.0));
        Ok(true)
    }

    /// Brings the file to where nothing waits, in memory or in the order of writes.
    fn settle(&mut self) -> Result<()> {
        self.image.save_bitmaps(self.writer, &mut self.bitmaps)?;
        self.image.write_back()?;
        while self.writer.meta().allocator.is_dirty() {
            self.image.write_back()?;
        }
        Ok(())
    }

    /// Makes sure that the first cluster has room for the headers that are to come, and for the way to them.
    fn check_header(&self, target: &Target<'_>) -> Result<()> {
        let mut bytes = vec![0; self.image.geometry.cluster_size() as usize];
        self.image.storage.read_exact_at(&mut bytes, 0)?;
        let mut next = self.image.header();
        let mut check = |next: &Header| {
            for write in header::plan(bytes.clone(), next)?.into_iter().flatten() {
                bytes[write.offset as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
            }
            Ok::<_, Error>(())
        };
        if target.upgrades() {
            next.upgrade();
            check(&next)?;
        }
        target.apply(&mut next);
        check(&next)
    }

    /// Counts all references, of an image that must be sound.
    fn recount<'a>(&'a self, part: (f64, f64), watch: &'a mut Watch<'_>) -> Result<Recount<'a>> {
        Recount::of(&self.image.storage, move |progress| {
            watch(within(part, progress.fraction()))
        })
    }

    /// Makes the image one of version 3. Its snapshots say then how long their disks are.
    fn upgrade(&mut self) -> Result<()> {
        let lacking = |snapshot: &crate::Snapshot| !snapshot.has_required_extra_data();
        let snapshots = &self.table.snapshots;
        if snapshots.iter().any(lacking) {
            let table = self.write_table(snapshots)?;
            latching(self.writer, || {
                self.commit_with(&table, snapshots.len(), Header::upgrade)
            })?;
            return self.settle();
        }
        self.image.update_header(Header::upgrade)
    }

    /// Has the header say what the image is from now on.
    fn switch(&self, target: &Target<'_>, structure: Option<&RefcountStructure>) -> Result<()> {
        let image = self.image;
        image.update_header(|header| {
            target.apply(header);
            if let Some(structure) = structure {
                header.refcount_table_offset = structure.table;
                header.refcount_table_clusters = structure.table_clusters;
            }
        })?;
        self.writer.outdated.store(true, Ordering::Release);
        let bits = image.geometry.cluster_bits;
        for clusters in structure.map_or(&[][..], |structure| &structure.old) {
            // Room that is not given back to the host is free in the image all the same.
            let len = (clusters.end - clusters.start) << bits;
            let _ = image.storage.discard(clusters.start << bits, len);
        }
        Ok(())
    }
}

/// Does something with all tables that is a part of the whole.
fn in_part<T>(
    tables: &Tables,
    part: (f64, f64),
    watch: &mut Watch<'_>,
    act: impl FnOnce(&mut Steps<'_>) -> Result<T>,
) -> Result<T> {
    let mut tell =
        |progress: SnapshotProgress| watch(within(part, progress.done as f64 / progress.total.max(1) as f64));
    act(&mut Steps::new(tables.count(), &mut tell))
}

fn within((start, end): (f64, f64), fraction: f64) -> AmendProgress {
    AmendProgress(start + (end - start) * fraction.clamp(0.0, 1.0))
}

fn interrupted() -> Error {
    let message = "interrupted; the image reads as before, and another run goes on with it";
    Error::new(ErrorKind::Interrupted, message)
}

/// The error for a write after an amendment.
pub(super) fn outdated(op: &str) -> Error {
    Error::read_only(op).with_hint("the image was amended: open it again")
}
