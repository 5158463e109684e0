//! Repairing an image: making refcounts, flags and the snapshot table agree with what the tables reference.
//!
//! A repair believes references, never refcounts. It is a row of steps, each of which sets one kind of damage right, is
//! made durable ([`staged`]) and is followed by another check. No step relies on what an earlier one remembers, so one
//! that was cut off, by a power cut or a caller, is gone on with by the next repair, which need not know of it:
//!
//! 1. an active L1 table that the header has reach over something else, behind what the disk needs of it, is cut;
//! 2. zero clusters lose host clusters that they keep at impossible places ([`tables`]);
//! 3. refcounts that are too low are raised ([`refcounts`]), or, where refcount blocks are missing or can't be trusted,
//!    a new structure is written beside everything and the header's sector switched to it ([`rebuild`]);
//! 4. a damaged snapshot table is written anew and the header's sector switched to it ([`snapshots`]);
//! 5. COPIED flags are cleared where they must not be ([`tables`]);
//! 6. refcounts that are too high are lowered ([`refcounts`]);
//! 7. COPIED flags are set where they should be ([`tables`]);
//! 8. the dirty and corrupt bits are cleared, if nothing but leaks is left.
//!
//! So at any time a cluster in use is counted before it may be relied on, and what the image reads as never changes.
//! Guest data is never written to, nor is a cluster of a table that something else references too. Where it is not sure that
//! every reference was counted (a table is missing, or too much of it is nonsense), refcounts that seem too high are left: a
//! leak harms nobody, and may be the only copy of what a damaged entry named. A new structure then counts whatever holds
//! something.
//!
//! A file that was cut is made no longer than to the first thing that it lacks ([`room`]): what is lost would be zeros, and no
//! check could tell. Where there is no room then, refcounts are raised as far as there are blocks for them, and the rest is
//! left.
//!
//! Like the check, it costs what the file holds, whatever that claims.

mod backup;
mod rebuild;
mod recount;
mod refcounts;
mod report;
mod room;
mod snapshots;
mod staged;
mod tables;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

use block::{Error, ErrorKind, Result, Storage};
use byteorder::{BE, ByteOrder};

use self::backup::BackupWriter;
use self::refcounts::Direction;
use self::room::{Room, in_best_room, is_no_space};
use self::staged::Staged;
use self::tables::Mend;
use super::{CheckOptions, CheckProgress, CheckReport, Checker, Finding};
use crate::address::{ClusterIndex, HostOffset};
use crate::feature::IncompatibleFeatures;

pub use self::backup::{RestoreReport, restore};
pub(crate) use self::recount::{Recount, RefcountStructure};
pub use self::report::{RepairChange, RepairReport};

use self::report::RepairChange as Change;

/// Where the header has the number of entries in the active L1 table.
const L1_SIZE: u64 = 36;
/// Where the header has the refcount table's place; its clusters follow.
const REFCOUNT_TABLE_OFFSET: u64 = 48;
/// Where the header has the incompatible features.
const INCOMPATIBLE_FEATURES: u64 = 72;
/// Where the header has the autoclear features.
const AUTOCLEAR_FEATURES: u64 = 88;
/// How often all steps are taken at most. Where one thing was damaged in two ways, a late step can make an early one
/// possible.
const ROUNDS: u32 = 4;

/// What a repair sets right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RepairKind {
    /// Refcounts that are too high, and what follows from lowering them. This can't make anything worse.
    Leaks,
    /// Everything that can be.
    #[default]
    All,
}

/// How to repair.
#[derive(Clone, Copy, Debug)]
pub struct RepairOptions<'a> {
    /// What is set right.
    pub what: RepairKind,
    /// Find out what would be done, and change nothing.
    pub dry_run: bool,
    /// An empty file that gets what is overwritten, before it is: see [`restore`].
    pub backup: Option<&'a dyn Storage>,
    /// How many findings to keep of each check. All are counted.
    pub max_findings: usize,
    /// Make a new refcount structure where a cluster that is in use is counted as free, as QEMU does, instead of counting it.
    pub rebuild_uncounted: bool,
    /// Clear the autoclear feature bits that have no name here even if nothing is wrong, as every writer does who changes anything.
    pub clear_unknown: bool,
}

impl Default for RepairOptions<'_> {
    /// Everything, without a backup, keeping the first 1000 findings.
    fn default() -> Self {
        Self {
            what: RepairKind::All,
            dry_run: false,
            backup: None,
            max_findings: CheckOptions::default().max_findings,
            rebuild_uncounted: false,
            clear_unknown: false,
        }
    }
}

/// How far a repair has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepairProgress {
    /// Which of its checks it is at, from 0; some may be left out.
    pub pass: u32,
    /// How many there may be.
    pub passes: u32,
    /// How far that check, or what is done after it, has come.
    pub check: CheckProgress,
}

impl RepairProgress {
    /// How much of the whole repair is done, from 0 to 1.
    pub fn fraction(self) -> f64 {
        (f64::from(self.pass) + self.check.fraction()) / f64::from(self.passes)
    }
}

/// Repairs the metadata of an image. `progress` is told how far it has come, often and from this thread; it may end it,
/// between two steps or before one has written anything, without harm.
///
/// The image is a storage and not an [`Image`](crate::Image), since a damaged one can't be opened. Nobody else may
/// read or write it meanwhile. What can't be repaired is left as it is, and said in [`RepairReport::after`].
///
/// # Errors
/// As [`check`](super::check); `InvalidInput` for a file for the backup that is not empty; `NoSpace`, `Io`. Steps that were
/// done by then remain done.
pub fn repair(
    storage: &dyn Storage,
    options: &RepairOptions<'_>,
    progress: &mut dyn FnMut(RepairProgress) -> ControlFlow<()>,
) -> Result<RepairReport> {
    repair_storage(storage, options, progress).map_err(|error| error.with_path_of(storage.path()))
}

/// Makes an image usable again that its writer did not close, having postponed refcounts: repairs everything, as QEMU
/// does when it opens such an image.
///
/// # Errors
/// As [`repair`]; `Corrupt` if something but leaks is left that can't be repaired.
pub fn recover(storage: &dyn Storage) -> Result<RepairReport> {
    let report = repair(storage, &RepairOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })?;
    let left = report.after.corruptions.saturating_add(report.after.check_errors);
    if left == 0 {
        return Ok(report);
    }
    let message = format!("the image was not closed properly, and {left} errors in it cannot be repaired");
    Err(Error::new(ErrorKind::Corrupt, message)
        .with_path_of(storage.path())
        .with_hint("`imgtool check` says which; it can still be read"))
}

fn repair_storage(
    storage: &dyn Storage,
    options: &RepairOptions<'_>,
    progress: &mut dyn FnMut(RepairProgress) -> ControlFlow<()>,
) -> Result<RepairReport> {
    let backup = match options.backup {
        Some(file) if !options.dry_run => Some(BackupWriter::new(file, storage)?),
        _ => None,
    };
    let staged = Staged::new(storage, backup, options.dry_run)?;
    let mut engine = Engine {
        staged: &staged,
        what: options.what,
        max_findings: options.max_findings,
        rebuild_uncounted: options.rebuild_uncounted,
        clear_unknown: options.clear_unknown,
        progress: &RefCell::new(progress),
        changes: Vec::new(),
        spared_tables: BTreeSet::new(),
        mended_flags: Vec::new(),
        retired: Vec::new(),
    };
    let (before, last) = engine.run()?;
    let known = &last.for_repair;
    let (lost_tables, l1_is_cut, reaches_past_end) =
        (known.lost_tables, known.l1_is_cut, known.first_missing.is_some());
    let after = last.recorder.report;
    let report = RepairReport::new(before, after, engine.changes, staged.written());
    Ok(RepairReport {
        lost_tables,
        l1_is_cut,
        reaches_past_end,
        spared_tables: engine.spared_tables.len() as u64,
        mended_flags: engine.mended_flags,
        retired: engine.retired,
        ..report
    })
}

/// A kind of damage that is set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    L1Size,
    Preallocated,
    Refcounts,
    SnapshotTable,
    ClearCopied,
    Leaks,
    SetCopied,
}

const ALL: &[Step] = &[
    Step::L1Size,
    Step::Preallocated,
    Step::Refcounts,
    Step::SnapshotTable,
    Step::ClearCopied,
    Step::Leaks,
    Step::SetCopied,
];
const LEAKS: &[Step] = &[Step::Leaks, Step::SetCopied];

type Progress<'a> = RefCell<&'a mut dyn FnMut(RepairProgress) -> ControlFlow<()>>;

/// A repair under way.
struct Engine<'a> {
    staged: &'a Staged<'a>,
    what: RepairKind,
    max_findings: usize,
    rebuild_uncounted: bool,
    clear_unknown: bool,
    progress: &'a Progress<'a>,
    changes: Vec<Change>,
    spared_tables: BTreeSet<HostOffset>,
    mended_flags: Vec<Finding>,
    retired: Vec<Finding>,
}

impl<'a> Engine<'a> {
    /// Takes all steps. Returns what the check before the first said, and the one after the last.
    fn run(&mut self) -> Result<(CheckReport, Checker<'a>)> {
        let mut checker = self.check(0)?;
        let before = checker.recorder.report.clone();
        for round in 0..ROUNDS {
            let mut any = false;
            self.spared_tables.clear();
            for (pass, &step) in (1..).zip(self.steps()) {
                if self.take(step, &mut checker)? {
                    any = true;
                    let pass = if round == 0 {
                        pass
                    } else {
                        self.steps().len() as u32
                    };
                    checker = self.check(pass)?;
                }
            }
            if !any {
                break;
            }
        }
        self.unmark(&checker)?;
        self.clear_autoclear(&checker)?;
        Ok((before, checker))
    }

    fn steps(&self) -> &'static [Step] {
        match self.what {
            RepairKind::Leaks => LEAKS,
            RepairKind::All => ALL,
        }
    }

    /// Checks the image as it is with all steps so far.
    fn check(&self, pass: u32) -> Result<Checker<'a>> {
        let (progress, passes) = (self.progress, self.steps().len() as u32 + 1);
        let tell = move |check| {
            let report = RepairProgress { pass, passes, check };
            (*progress.borrow_mut())(report)
        };
        Checker::run(self.staged, self.max_findings, Box::new(tell))
    }

    /// Takes a step, if there is a need. Returns whether it has changed anything, which is then durable.
    fn take(&mut self, step: Step, checker: &mut Checker<'a>) -> Result<bool> {
        let known = &checker.for_repair;
        let (distrusted, unread) = (known.distrusted, known.incomplete);
        let incomplete = unread || known.l1_is_cut;
        let lost = known.lost_tables > 0 && self.what == RepairKind::All;
        let anew = distrusted || checker.lacks_blocks() || (self.rebuild_uncounted && known.uncounted);
        match step {
            Step::L1Size => self.cut_l1(checker),
            Step::Preallocated => {
                let entries = self.mend_tables(checker, Mend::Preallocated)?;
                self.finish(Change::Preallocated { entries }, entries)
            }
            Step::Refcounts if anew => {
                if unread {
                    return Ok(false);
                }
                Ok(self.rebuild(checker)? || (!distrusted && self.raise(checker)?))
            }
            // With blocks that can't be trusted, nothing can be done that needs refcounts.
            _ if distrusted => Ok(false),
            Step::Refcounts => self.raise(checker),
            Step::SnapshotTable => self.mend_snapshot_table(checker),
            Step::ClearCopied => {
                let lowered = !incomplete && !lost;
                let entries = self.mend_tables(checker, Mend::ClearCopied { lowered })?;
                self.finish(Change::CopiedCleared { entries }, entries)
            }
            Step::Leaks if incomplete || lost => Ok(false),
            Step::Leaks => {
                let clusters = checker.mend_refcounts(self.staged, Direction::Lower)?;
                self.finish(Change::Lowered { clusters }, clusters)
            }
            Step::SetCopied => {
                // To repair leaks is not to touch a table, unless that is what makes the image whole.
                let report = &checker.recorder.report;
                let whole =
                    report.corruptions == checker.for_repair.missing_flags && report.check_errors == 0;
                if self.what == RepairKind::Leaks && !whole {
                    return Ok(false);
                }
                let entries = self.mend_tables(checker, Mend::SetCopied)?;
                self.finish(Change::CopiedSet { entries }, entries)
            }
        }
    }

    /// Raises refcounts, those of what lies past the end of the file too: nobody may take its place.
    fn raise(&mut self, checker: &mut Checker<'a>) -> Result<bool> {
        checker.count_dangling()?;
        let clusters = checker.mend_refcounts(self.staged, Direction::Raise)?;
        self.finish(Change::Raised { clusters }, clusters)
    }

    fn mend_tables(&mut self, checker: &mut Checker<'_>, mend: Mend) -> Result<u64> {
        let changed = checker.mend_tables(self.staged, mend)?;
        let flag = match mend {
            Mend::ClearCopied { .. } => Some(true),
            Mend::SetCopied => Some(false),
            Mend::Preallocated => None,
        };
        if let Some(set) = flag.filter(|_| changed > 0) {
            let findings = checker.recorder.report.findings.iter();
            let mended = findings.filter(|finding| finding.copied_flag() == Some(set));
            self.mended_flags.extend(mended.cloned());
        }
        self.spared_tables.append(&mut checker.for_repair.spared_tables);
        Ok(changed)
    }

    /// Has the header say an L1 table no longer than the disk needs it, where that lies over something else. Which of the
    /// two is wrong need not be known: what is cut off maps nothing of the disk.
    fn cut_l1(&mut self, checker: &Checker<'_>) -> Result<bool> {
        let Some(entries) = checker.for_repair.l1_excess else {
            return Ok(false);
        };
        self.staged.write_all_at(&entries.to_be_bytes(), L1_SIZE)?;
        self.finish(Change::L1Cut { entries }, 1)
    }

    /// Makes a step durable that has changed `count` things.
    fn finish(&mut self, change: Change, count: u64) -> Result<bool> {
        if count == 0 {
            return Ok(false);
        }
        self.staged.commit()?;
        self.changes.push(change);
        Ok(true)
    }

    /// Gives the image a new refcount structure. Where something may be lost, it counts what nothing references too. Nothing is
    /// done, and `false` returned, if there is no room in a file that must not grow.
    fn rebuild(&mut self, checker: &mut Checker<'a>) -> Result<bool> {
        let geometry = checker.geometry;
        let (old, retired) = Self::retire_refcount_structure(checker);
        let known = &checker.for_repair;
        if known.incomplete || known.l1_is_cut || known.lost_tables > 0 {
            checker.keep_unreferenced()?;
        }
        let counted = checker.count_dangling()?;
        let budget = rebuild::budget(checker.host_bytes);
        let can_grow = self.staged.can_grow();
        let mut build = |room: &mut Room<'_>| rebuild::build(self.staged, geometry, room, budget);
        let mut new = in_best_room(checker, can_grow, &old, &mut build);
        if !counted.is_empty() && is_no_space(&new) {
            for cluster in counted {
                checker.references.clear(cluster);
            }
            new = in_best_room(checker, can_grow, &old, &mut build);
        }
        if checker.for_repair.first_missing.is_some() && is_no_space(&new) {
            *checker = self.check(self.steps().len() as u32)?;
            return Ok(false);
        }
        let new = new?;
        self.staged.commit()?;
        let mut fields = [0; 12];
        BE::write_u64(&mut fields, new.table.0);
        BE::write_u32(&mut fields[8..], new.table_clusters);
        self.staged.write_all_at(&fields, REFCOUNT_TABLE_OFFSET)?;
        self.staged.commit()?;
        self.retired.extend(retired);
        self.changes.push(Change::Rebuilt {
            table: new.table,
            bytes: new.bytes,
        });
        Ok(true)
    }

    /// Takes back the references to the refcount table and its blocks. Gives their clusters, and those as the leaks that they
    /// would be.
    fn retire_refcount_structure(checker: &mut Checker<'_>) -> (BTreeSet<u64>, Vec<Finding>) {
        let clusters: BTreeSet<u64> = checker.for_repair.refcount_structure.iter().copied().collect();
        let counts = |checker: &Checker<'_>| -> Vec<u64> {
            let count = |cluster: &u64| checker.references.get(ClusterIndex(*cluster));
            clusters.iter().map(count).collect()
        };
        let before = counts(checker);
        let old = checker.uncount_refcount_structure();
        let after = counts(checker);
        let leaks = clusters.into_iter().zip(before.into_iter().zip(after));
        let retired = leaks.map(|(cluster, (refcount, references))| Finding::Leak {
            cluster: ClusterIndex(cluster),
            refcount,
            references,
        });
        (old, retired.collect())
    }

    /// Clears the autoclear bits that have no name here: a repair is a writer.
    fn clear_autoclear(&mut self, checker: &Checker<'_>) -> Result<()> {
        let mut header = checker.header.clone();
        if !self.clear_unknown || !header.clear_autoclear() {
            return Ok(());
        }
        let bits = header.autoclear.bits().to_be_bytes();
        self.staged.write_all_at(&bits, AUTOCLEAR_FEATURES)?;
        self.staged.commit()?;
        self.changes.push(Change::AutoclearCleared);
        Ok(())
    }

    /// Clears the dirty and corrupt bits of an image that is neither any more.
    fn unmark(&mut self, checker: &Checker<'_>) -> Result<()> {
        let report = &checker.recorder.report;
        let marks = IncompatibleFeatures::DIRTY | IncompatibleFeatures::CORRUPT;
        let features = checker.header.incompatible;
        if report.corruptions > 0 || report.check_errors > 0 || !features.intersects(marks) {
            return Ok(());
        }
        let cleared = (features - marks).bits();
        self.staged
            .write_all_at(&cleared.to_be_bytes(), INCOMPATIBLE_FEATURES)?;
        self.staged.commit()?;
        self.changes.push(Change::Unmarked);
        Ok(())
    }
}

impl Checker<'_> {
    /// Counts a reference to every cluster that has none and holds something, so that a new refcount structure does not
    /// call it free.
    fn keep_unreferenced(&mut self) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let mut at = 0;
        while at < self.file_len {
            let run = self.storage.host_extent(at, self.file_len - at)?;
            let end = at + run.len.max(1);
            for cluster in (at >> bits..self.geometry.clusters(end)).filter(|_| run.data) {
                if self.references.get(ClusterIndex(cluster)) == 0 {
                    self.references.add(ClusterIndex(cluster), 1)?;
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Counts clusters soon behind the end of the file that something references, so that nobody takes them for free ones.
    /// Gives what was counted.
    fn count_dangling(&mut self) -> Result<Vec<ClusterIndex>> {
        let mut counted = Vec::new();
        for (&cluster, &times) in &self.for_repair.dangling {
            let cluster = ClusterIndex(cluster);
            if self.references.get(cluster) == 0 {
                self.references.add(cluster, times)?;
                counted.push(cluster);
            }
        }
        Ok(counted)
    }

    /// Takes back the references to the refcount table and its blocks, and gives their clusters.
    fn uncount_refcount_structure(&mut self) -> BTreeSet<u64> {
        let structure = std::mem::take(&mut self.for_repair.refcount_structure);
        for &cluster in &structure {
            self.references.remove(ClusterIndex(cluster));
        }
        let table: Range<u64> = self.refcount_table_clusters();
        structure.into_iter().chain(table).collect()
    }
}
