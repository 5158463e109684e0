//! What a repair has done, or would do.

use std::fmt;

use crate::address::HostOffset;
use crate::check::{CheckReport, Finding};

/// What a step of a repair changed. The text ([`Display`](fmt::Display)) is one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepairChange {
    /// The active L1 table was cut to what the disk needs: the header had it reach over something else, or past the end of
    /// the file.
    L1Cut {
        /// Entries that it has now.
        entries: u32,
    },
    /// Zero clusters lost a host cluster that they kept at an impossible place.
    Preallocated {
        /// L2 entries.
        entries: u64,
    },
    /// Refcounts were raised.
    Raised {
        /// Of how many clusters.
        clusters: u64,
    },
    /// The refcount table and all its blocks were made anew.
    Rebuilt {
        /// Where the table is now.
        table: HostOffset,
        /// Bytes that it and its blocks take.
        bytes: u64,
    },
    /// The snapshot table was written anew.
    SnapshotTable {
        /// Where it is now.
        at: HostOffset,
        /// Snapshots in it.
        kept: u32,
        /// Snapshots beyond the limits of the table, which are gone.
        dropped: u32,
    },
    /// COPIED flags were cleared.
    CopiedCleared {
        /// L1 and L2 entries.
        entries: u64,
    },
    /// Refcounts were lowered.
    Lowered {
        /// Of how many clusters.
        clusters: u64,
    },
    /// COPIED flags were set.
    CopiedSet {
        /// L1 and L2 entries.
        entries: u64,
    },
    /// The header says no longer that the image is dirty or corrupt.
    Unmarked,
    /// Feature bits were cleared that no writer may keep who does not know what they promise.
    AutoclearCleared,
}

impl fmt::Display for RepairChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::L1Cut { entries } => {
                write!(f, "L1 table cut to the entries that the disk needs: {entries}")
            }
            Self::Preallocated { entries } => {
                write!(f, "unaligned host clusters taken from zero clusters: {entries}")
            }
            Self::Raised { clusters } => write!(f, "refcounts raised: {clusters}"),
            Self::Rebuilt { table, bytes } => {
                write!(
                    f,
                    "refcount structure made anew: table at {table}, {bytes} bytes in all"
                )
            }
            Self::SnapshotTable { at, kept, dropped } => write!(
                f,
                "snapshot table written anew: at {at}, snapshots kept: {kept}, dropped: {dropped}"
            ),
            Self::CopiedCleared { entries } => write!(f, "COPIED flags cleared: {entries}"),
            Self::Lowered { clusters } => write!(f, "refcounts lowered: {clusters}"),
            Self::CopiedSet { entries } => write!(f, "COPIED flags set: {entries}"),
            Self::AutoclearCleared => f.write_str("unknown autoclear feature bits cleared"),
            Self::Unmarked => f.write_str("marks \"dirty\" and \"corrupt\" cleared"),
        }
    }
}

/// The result of a repair; of a dry run, what would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// What the check before it found.
    pub before: CheckReport,
    /// What a check after it finds.
    pub after: CheckReport,
    /// Corruptions and errors of the first check that the last does not find any more.
    pub corruptions_fixed: u64,
    /// Leaks of the first check that the last does not find any more.
    pub leaks_fixed: u64,
    /// Entries of L1 tables that name nothing which can be an L2 table, snapshots' L1 tables that are not all there, and an
    /// active L1 table that something else lies over, or that is empty while clusters leak. If there are any, clusters that
    /// nothing references may be the only copy of what they named: a repair of everything leaves these leaks, and one of
    /// [leaks](super::RepairKind::Leaks) alone does not.
    pub lost_tables: u64,
    /// The file ends before its active L1 table does, or the table lies nowhere. What its missing entries named is lost, unless
    /// somebody finds the L2 tables: leaks are left, and refcounts are only made anew if there is room in the file as it is,
    /// or none of the table is there.
    pub l1_is_cut: bool,
    /// Tables name what lies past the end of the file: that is lost, and stays an error, since the file is not made so long that
    /// it would be zeros. There may be no room for new refcounts then.
    pub reaches_past_end: bool,
    /// Tables that have wrong entries and were left alone, since something else references their clusters too, or they do
    /// not look like tables.
    pub spared_tables: u64,
    /// What was changed, in this order.
    pub changes: Vec<RepairChange>,
    /// COPIED flags that were wrong once refcounts were right, and are not any more; the first of them.
    pub mended_flags: Vec<Finding>,
    /// Clusters that an old refcount structure had until a new one was made, as the leaks that they would be.
    pub retired: Vec<Finding>,
    /// Bytes written, in whole sectors.
    pub bytes_written: u64,
}

impl RepairReport {
    pub(super) fn new(
        before: CheckReport,
        after: CheckReport,
        changes: Vec<RepairChange>,
        bytes_written: u64,
    ) -> Self {
        let errors = |report: &CheckReport| report.corruptions.saturating_add(report.check_errors);
        Self {
            corruptions_fixed: errors(&before).saturating_sub(errors(&after)),
            leaks_fixed: before.leaks.saturating_sub(after.leaks),
            before,
            after,
            changes,
            bytes_written,
            ..Self::default()
        }
    }

    /// Whether anything was changed.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What the first check found and the last does not find any more, as far as both keep their findings.
    pub fn repaired(&self) -> impl Iterator<Item = &Finding> {
        let counted = self.after.corruptions + self.after.leaks + self.after.check_errors;
        let all_kept = counted <= self.after.findings.len() as u64;
        self.before
            .findings
            .iter()
            .filter(move |finding| all_kept && !self.after.findings.contains(finding))
    }
}
