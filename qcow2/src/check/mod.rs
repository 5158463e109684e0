//! Checking an image: do the refcounts say what the tables say?
//!
//! A check is a merge of two sequences over the clusters of the file. One is stored: refcounts, in refcount blocks.
//! The other is counted: references, from the L1 table through L2 tables to data, from snapshots, bitmaps and the
//! tables that the header names. Where they differ, a refcount that is too high is a leak, and one that is too low
//! is a corruption.
//!
//! It runs in three phases, each of which reads in file order:
//!
//! 1. *Refcounts* ([`stored`]): every refcount block is read once, and what remains in memory is a bit for each
//!    cluster, "the refcount is exactly 1". That is all the COPIED flags need, so that the tables are read once.
//! 2. *References* ([`tables`], [`metadata`]): all L1 tables are walked, the L2 tables that they name are sorted by
//!    offset, and each is read once, however often it is named: its references count as many times. Counters
//!    are small and appear on demand ([`references`]).
//! 3. *Comparison* ([`compare`]): refcount blocks are read again and compared with the counters, 64 at a time.
//!
//! Nothing about a damaged or hostile image may make that slow or large. Time follows the bytes that the file holds
//! (holes are skipped, [`reader`]; what overlaps is visited once, [`sweep`]), and memory follows what is
//! referenced, within a budget. What QEMU counts is counted the same way, so that figures can be compared.
//!
//! What was counted is also what a [`repair`] goes by.

mod compare;
mod loose;
mod metadata;
mod reader;
mod references;
pub(crate) mod repair;
mod report;
mod shared;
mod stored;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};

use block::{Error, ErrorKind, Result, Storage};

use self::reader::TableReader;
use self::references::References;
use self::report::Recorder;
use self::stored::StoredRefcounts;
use crate::address::{ClusterIndex, HostOffset};
use crate::feature::{AutoclearFeatures, IncompatibleFeatures};
use crate::geometry::Geometry;
use crate::header::Header;

pub(crate) use self::repair::{Recount, RefcountStructure};
pub use self::repair::{
    RepairChange, RepairKind, RepairOptions, RepairProgress, RepairReport, RestoreReport, recover, repair,
    restore,
};
pub use self::report::{CheckReport, Finding, Severity, TableKind};
pub use self::shared::{SharedCluster, find_shared};

/// How to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// How many findings to keep. All are counted.
    pub max_findings: usize,
}

impl Default for CheckOptions {
    /// Keeps the first 1000 findings.
    fn default() -> Self {
        Self { max_findings: 1000 }
    }
}

/// What a check is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckPhase {
    /// Reading refcounts.
    Refcounts,
    /// Counting references.
    References,
    /// Comparing them.
    Comparison,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckProgress {
    /// What it is doing.
    pub phase: CheckPhase,
    /// Tables of this phase that are done.
    pub done: u64,
    /// Tables of this phase in all; 0 if there are none.
    pub total: u64,
}

impl CheckProgress {
    /// How much of the whole check is done, from 0 to 1. Counting references is most of it.
    pub fn fraction(self) -> f64 {
        let (before, share) = match self.phase {
            CheckPhase::Refcounts => (0.0, 0.1),
            CheckPhase::References => (0.1, 0.7),
            CheckPhase::Comparison => (0.8, 0.2),
        };
        before + share * self.done as f64 / self.total.max(1) as f64
    }
}

/// Checks the refcounts, tables and flags of an image without changing it. `progress` is told how far the check
/// has come, often and from this thread; it may end it.
///
/// The image is a storage and not an [`Image`](crate::Image), since a damaged one can't be opened. It must not
/// be written to meanwhile.
///
/// Of the header, what is needed to find the tables must be sound. That they lie past the end of the file or over each
/// other is a finding. Guest data is not read.
///
/// # Errors
/// As [`Header::read`], but for tables at impossible places; `Unsupported` if the references are so scattered that
/// counting them takes more memory than any sound image needs; `Interrupted` if `progress` says so; `Io`.
pub fn check(
    storage: &dyn Storage,
    options: &CheckOptions,
    progress: &mut dyn FnMut(CheckProgress) -> ControlFlow<()>,
) -> Result<CheckReport> {
    Checker::run(storage, options.max_findings, Box::new(progress))
        .map(|checker| checker.recorder.report)
        .map_err(|error| error.with_path_of(storage.path()))
}

/// Whether anything in the image names a cluster that lies past the end of the file.
pub(crate) fn reaches_past_end(storage: &dyn Storage) -> Result<bool> {
    let checker = Checker::run(storage, 0, Box::new(|_| ControlFlow::Continue(())))?;
    Ok(checker.for_repair.first_missing.is_some())
}

fn report_progress(
    progress: &mut dyn FnMut(CheckProgress) -> ControlFlow<()>,
    phase: CheckPhase,
    done: u64,
    total: u64,
) -> Result<()> {
    match progress(CheckProgress { phase, done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Interrupted, "the check was stopped")),
    }
}

/// A check in the making.
struct Checker<'a> {
    storage: &'a dyn Storage,
    geometry: Geometry,
    file_len: u64,
    /// Data clusters lie in another file, and have no refcounts.
    data_file: bool,
    header: Header,
    /// Bytes that the file takes on its host.
    host_bytes: u64,
    stored: StoredRefcounts,
    references: References,
    recorder: Recorder,
    for_repair: ForRepair,
    progress: ProgressFn<'a>,
}

/// Who is told how far a check has come.
type ProgressFn<'a> = Box<dyn FnMut(CheckProgress) -> ControlFlow<()> + 'a>;

/// How many clusters behind the end of the file a repair asks about.
const DANGLING: u64 = 1 << 16;

/// What a repair has to know beyond the findings, of which only the first are kept.
#[derive(Debug, Default)]
struct ForRepair {
    /// Something that may reference clusters could not be read: a refcount may be right that seems too high.
    incomplete: bool,
    /// So could the active L1 table not: the file ends before it does, or it lies nowhere.
    l1_is_cut: bool,
    /// How often the clusters soon behind the end of the file are referenced, which are not there.
    dangling: BTreeMap<u64, u64>,
    /// The first cluster behind the file that something lies in which is lost.
    first_missing: Option<u64>,
    /// Refcount blocks lie where none can be, or where something else lies.
    distrusted: bool,
    /// A cluster that something references is counted as free.
    uncounted: bool,
    /// Entries of L1 tables that name nothing which can be an L2 table, and an active L1 table that something else lies
    /// over, or that is empty while clusters leak: these may be what there once was named.
    lost_tables: u64,
    /// The active L1 table names anything.
    has_tables: bool,
    /// As many entries are enough for the active L1 table, and behind their clusters it lies over something else, or
    /// past the end of the file.
    l1_excess: Option<u32>,
    /// Entries of the active L1 table have wrong COPIED flags.
    l1_flags: bool,
    /// L2 tables with entries that a repair can change.
    l2_tables: Vec<tables::L2Use>,
    /// Tables with entries to be changed that were left alone, since something else lies there too.
    spared_tables: BTreeSet<HostOffset>,
    /// COPIED flags that are missing, as often as they are counted.
    missing_flags: u64,
    /// Clusters of the refcount table and its blocks, each as often as it was counted for these.
    refcount_structure: Vec<u64>,
    /// How the snapshot table must be written anew.
    snapshot_table: Option<metadata::SnapshotTableRepair>,
}

impl<'a> Checker<'a> {
    /// Counts and compares everything.
    fn run(storage: &'a dyn Storage, max_findings: usize, mut progress: ProgressFn<'a>) -> Result<Self> {
        let header = Header::read_damaged(storage)?;
        let geometry = header.geometry;
        let file_len = storage.len()?;
        let table = (header.refcount_table_offset, refcount_table_len(&header));
        let stored = StoredRefcounts::load(storage, geometry, table, file_len, |done, total| {
            report_progress(&mut progress, CheckPhase::Refcounts, done, total)
        })?;
        let host_bytes = storage.allocated()?.map_or(file_len, |bytes| bytes.min(file_len));
        let mut checker = Self {
            storage,
            geometry,
            file_len,
            data_file: header
                .incompatible
                .contains(IncompatibleFeatures::EXTERNAL_DATA_FILE),
            host_bytes,
            stored,
            references: References::new(host_bytes),
            recorder: Recorder::new(max_findings),
            for_repair: ForRepair::default(),
            progress,
            header,
        };
        checker.recorder.report.total_clusters = geometry.clusters(checker.header.size);
        checker.count_all()?;
        checker.compare()?;
        checker.judge_empty_l1();
        Ok(checker)
    }

    /// Counts every reference that there is.
    fn count_all(&mut self) -> Result<()> {
        let header = self.header.clone();
        let geometry = self.geometry;
        self.count_region(HostOffset(0), geometry.cluster_size(), 1)?;
        let table = self.refcount_table_clusters();
        if self.count_region(header.refcount_table_offset, refcount_table_len(&header), 1)? {
            self.for_repair.refcount_structure.extend(table);
        } else {
            // It can be made anew.
            self.for_repair.dangling.clear();
            self.for_repair.first_missing = None;
        }
        if let Some(encryption) = &header.extensions.encryption_header {
            self.count_region(encryption.offset, encryption.len, 1)?;
        }
        let snapshot_tables = self.count_snapshots(&header)?;
        let active = table_range(header.l1_offset, header.l1_entries.into());
        // Without the L1 table everything seems to leak.
        let l1_is_cut = !active.is_empty() && (active.start == 0 || active.end > self.file_len);
        self.for_repair.l1_is_cut = l1_is_cut;
        if l1_is_cut && active.start != 0 {
            self.cut(HostOffset(active.start), active.end - active.start);
        }
        self.count_tables(active, &snapshot_tables)?;
        if let Some(bitmaps) = &header.extensions.bitmaps
            && header.autoclear.contains(AutoclearFeatures::BITMAPS)
        {
            self.count_bitmaps(bitmaps)?;
        }
        self.count_refcount_blocks()?;
        self.judge_active_l1();
        Ok(())
    }

    /// Looks whether the active L1 table has its clusters for itself, once everything is counted.
    fn judge_active_l1(&mut self) {
        let (start, claimed) = (self.header.l1_offset, self.header.l1_entries);
        let needed = self.header.size.div_ceil(self.geometry.l2_coverage());
        let needed = u32::try_from(needed).unwrap_or(claimed).min(claimed);
        let clusters = |entries: u32| {
            let bytes = table_range(start, entries.into());
            bytes.start >> self.geometry.cluster_bits..self.geometry.clusters(bytes.end)
        };
        let (needed_clusters, all) = (clusters(needed), clusters(claimed));
        let present = self.geometry.clusters(self.file_len);
        if start.0 == 0 || needed_clusters.end > present {
            return;
        }
        let is_shared = |cluster| self.references.get(ClusterIndex(cluster)) > 1;
        let lost = needed_clusters.clone().any(is_shared);
        let excess = needed_clusters.end..all.end;
        let excess = excess.end > present || excess.clone().any(is_shared);
        self.for_repair.lost_tables += u64::from(lost);
        self.for_repair.l1_excess = excess.then_some(needed);
    }

    /// An active L1 table of zeros may lie at a wrong place. A dirty image is expected to leak.
    fn judge_empty_l1(&mut self) {
        let dirty = self.header.incompatible.contains(IncompatibleFeatures::DIRTY);
        let leaks = self.recorder.report.leaks > 0;
        let empty = self.header.l1_entries > 0 && !self.for_repair.has_tables;
        self.for_repair.lost_tables += u64::from(empty && leaks && !dirty);
    }

    /// Counts `times` references to every cluster that `len` bytes at `start` touch. The last cluster of a file may
    /// be incomplete; what reaches further is not counted but recorded. Returns whether it was counted.
    #[inline]
    fn count_region(&mut self, start: HostOffset, len: u64, times: u64) -> Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        let bits = self.geometry.cluster_bits;
        match start.0.checked_add(len) {
            Some(end) if end < self.file_len.saturating_add(self.geometry.cluster_size()) => {
                let clusters = start.0 >> bits..((end - 1) >> bits) + 1;
                if clusters.end - clusters.start == 1 {
                    self.references.add(ClusterIndex(clusters.start), times)?;
                } else {
                    self.references.add_run(clusters, times)?;
                }
                Ok(true)
            }
            _ => {
                self.beyond_end(start, len, times);
                self.dangle(self.clusters_of(start, len), times);
                Ok(false)
            }
        }
    }

    #[cold]
    fn beyond_end(&mut self, start: HostOffset, len: u64, times: u64) {
        self.recorder.record(times, Finding::BeyondEnd { start, len });
        self.missing(start);
    }

    /// Remembers references to clusters behind the end of the file.
    fn dangle(&mut self, clusters: Range<u64>, times: u64) {
        let end = self.geometry.clusters(self.file_len);
        for cluster in clusters.start.max(end)..clusters.end.min(end + DANGLING) {
            let references = self.for_repair.dangling.entry(cluster).or_default();
            *references = references.saturating_add(times);
        }
    }

    fn clusters_of(&self, start: HostOffset, len: u64) -> Range<u64> {
        let bits = self.geometry.cluster_bits;
        start.0 >> bits..(start.0.saturating_add(len - 1) >> bits) + 1
    }

    /// Counts regions that may overlap, each once.
    fn count_regions(&mut self, regions: &[Range<u64>]) -> Result<()> {
        let limit = self.file_len.saturating_add(self.geometry.cluster_size());
        let (mut clusters, mut dangling) = (Vec::new(), Vec::new());
        for region in regions.iter().filter(|region| !region.is_empty()) {
            let (start, len) = (HostOffset(region.start), region.end - region.start);
            if region.end < limit {
                clusters.push(self.clusters_of(start, len));
            } else {
                self.beyond_end(start, len, 1);
                dangling.push(self.clusters_of(start, len));
            }
        }
        for segment in sweep::sweep(&dangling) {
            self.dangle(segment.range, segment.times);
        }
        for segment in sweep::sweep(&clusters) {
            for cluster in segment.range {
                self.references.add(ClusterIndex(cluster), segment.times)?;
            }
        }
        Ok(())
    }

    /// Counts tables of which the file does not have all, so that what they named seems to leak.
    fn count_cut(&mut self, tables: &[Range<u64>]) {
        let file_len = self.file_len;
        let cut = |table: &&Range<u64>| !table.is_empty() && table.end > file_len;
        for table in tables.iter().filter(cut) {
            self.for_repair.lost_tables += 1;
            self.cut(HostOffset(table.start), table.end - table.start);
        }
    }

    /// Records what reaches past the end of the file by less than a cluster, and is [counted](Self::count_region).
    #[cold]
    fn cut(&mut self, start: HostOffset, len: u64) {
        if start.0.saturating_add(len) < self.file_len.saturating_add(self.geometry.cluster_size()) {
            self.recorder.record(1, Finding::Cut { start, len });
            self.missing(start);
        }
    }

    /// Notes that what starts here is not all there.
    fn missing(&mut self, start: HostOffset) {
        let end = self.geometry.clusters(self.file_len);
        let cluster = (start.0 >> self.geometry.cluster_bits).max(end);
        let first = &mut self.for_repair.first_missing;
        *first = Some(first.map_or(cluster, |first| first.min(cluster)));
    }

    /// Clusters that the file has, the last one perhaps incomplete; one more if something touches it.
    fn file_clusters(&self) -> u64 {
        self.geometry.clusters(self.file_len).max(self.references.end())
    }

    fn tick(&mut self, phase: CheckPhase, done: u64, total: u64) -> Result<()> {
        report_progress(&mut self.progress, phase, done, total)
    }

    fn reader(&self) -> TableReader<'a> {
        TableReader::new(self.storage, self.file_len)
    }
}

/// Bytes of the refcount table.
fn refcount_table_len(header: &Header) -> u64 {
    u64::from(header.refcount_table_clusters) << header.geometry.cluster_bits
}

/// The bytes of a table of 64-bit entries; they end where a `u64` does.
fn table_range(start: HostOffset, entries: u64) -> Range<u64> {
    start.0..start.0.saturating_add(entries.saturating_mul(8))
}
