//! A refcount structure of another width, for an image that is sound: what changing it shares with a repair.
//!
//! References are counted as by a check, and a [new structure](rebuild) is written beside everything. It counts in the new
//! width; the old one stays what it is until the header names the new one, and says how wide its refcounts are, in one
//! sector.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

use block::{Error, ErrorKind, Result, Storage};

use super::rebuild;
use super::room::{can_grow, in_best_room};
use crate::address::{ClusterIndex, HostOffset};
use crate::check::references::CHUNK;
use crate::check::{CheckProgress, Checker};
use crate::geometry::{Geometry, MAX_REFCOUNT_ORDER};
use crate::limit::Limit;

/// All references of a sound image.
pub(crate) struct Recount<'a>(Checker<'a>);

/// A new refcount structure, durable, that the header does not name yet.
#[derive(Clone, Debug)]
pub(crate) struct RefcountStructure {
    pub(crate) table: HostOffset,
    pub(crate) table_clusters: u32,
    /// Clusters of the old structure, which the new one counts as free.
    pub(crate) old: Vec<Range<u64>>,
}

impl<'a> Recount<'a> {
    /// Counts the references of an image that nobody changes. COPIED flags may be missing, and clusters leak.
    ///
    /// # Errors
    /// `Corrupt` for an image in which anything else is wrong; as [`check`](crate::check()).
    pub(crate) fn of(
        storage: &'a dyn Storage,
        progress: impl FnMut(CheckProgress) -> ControlFlow<()> + 'a,
    ) -> Result<Self> {
        let checker = Checker::run(storage, 1, Box::new(progress))?;
        let (report, known) = (&checker.recorder.report, &checker.for_repair);
        let wrong = report.corruptions - known.missing_flags.min(report.corruptions);
        if wrong == 0
            && report.check_errors == 0
            && !known.incomplete
            && !known.l1_is_cut
            && !known.distrusted
        {
            return Ok(Self(checker));
        }
        let message = format!(
            "the image is damaged: a check finds {} errors",
            wrong + report.check_errors
        );
        Err(Error::new(ErrorKind::Corrupt, message).with_hint("`imgtool check -r all` repairs it"))
    }

    /// Makes sure that refcounts of `1 << order` bits can count everything.
    ///
    /// # Errors
    /// `Unsupported`, naming the first cluster that has too many references.
    pub(crate) fn check_width(&self, order: u32) -> Result<()> {
        let wide = |order| Geometry {
            refcount_order: order,
            ..self.0.geometry
        };
        let most = wide(order).max_refcount();
        let mut first = None;
        let mut highest = 0;
        let mut counts = vec![0; CHUNK as usize];
        for key in self.0.references.keys() {
            if let Some(chunk) = self.0.references.chunk(key) {
                chunk.copy(0, &mut counts);
            }
            for (cluster, &count) in (key * CHUNK..).zip(&counts) {
                highest = count.max(highest);
                if count > most && first.is_none() {
                    first = Some((ClusterIndex(cluster), count));
                }
            }
        }
        let Some((cluster, count)) = first else {
            return Ok(());
        };
        let limit = Limit::References {
            offset: self.0.geometry.offset_of(cluster),
            references: count,
            bits: 1 << order,
            most,
        };
        let fits = (order..=MAX_REFCOUNT_ORDER).find(|order| wide(*order).max_refcount() >= highest);
        let bits = 1 << fits.unwrap_or(MAX_REFCOUNT_ORDER);
        let hint =
            format!("refcount_bits={bits} is the least that is enough; deleting snapshots lowers refcounts");
        Err(limit.error(ErrorKind::Unsupported, hint))
    }

    /// Writes a structure with refcounts of `1 << order` bits, durably.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; the file is then as long as before, if the storage still does what it is told.
    pub(crate) fn write(mut self, order: u32) -> Result<RefcountStructure> {
        let checker = &mut self.0;
        let storage = checker.storage;
        let geometry = Geometry {
            refcount_order: order,
            ..checker.geometry
        };
        let old = checker.uncount_refcount_structure();
        let budget = rebuild::budget(checker.host_bytes);
        let len = storage.len()?;
        let written = in_best_room(checker, can_grow(storage), &old, |room| {
            rebuild::build(storage, geometry, room, budget)
        });
        let new = written.and_then(|new| storage.sync_data().map(|()| new));
        let new = new.inspect_err(|_| {
            // Nothing names what lies behind the old end.
            let _ = storage.set_len(len);
        })?;
        Ok(RefcountStructure {
            table: new.table,
            table_clusters: new.table_clusters,
            old: runs(&old),
        })
    }
}

/// The clusters as ranges.
fn runs(clusters: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &cluster in clusters {
        match runs.last_mut() {
            Some(run) if run.end == cluster => run.end += 1,
            _ => runs.push(cluster..cluster + 1),
        }
    }
    runs
}
