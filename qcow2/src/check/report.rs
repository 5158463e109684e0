//! What a check found: figures that sum up the image, and findings that name each place.

use std::fmt;

use crate::address::{ClusterIndex, HostOffset};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Space is wasted; no data is in danger.
    Leak,
    /// Data is lost, or will be with the next write.
    Corruption,
    /// Something could not be checked: there may be more to find.
    CheckError,
}

/// A table whose entries name clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TableKind {
    /// The refcount table.
    Refcount,
    /// An L1 table, the active one or a snapshot's.
    L1,
    /// An L2 table.
    L2,
    /// The table of a persistent bitmap.
    Bitmap,
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refcount => "refcount table",
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::Bitmap => "bitmap table",
        })
    }
}

/// One thing that is wrong with an image.
///
/// An entry is named by where it lies in the file (`at`) and what it holds, so that a repair can go there. The
/// text of a finding ([`Display`](fmt::Display)) is one line in the words that administrators search for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The refcount is higher than the number of references.
    Leak {
        /// The cluster.
        cluster: ClusterIndex,
        /// Its refcount as stored.
        refcount: u64,
        /// References found.
        references: u64,
    },
    /// The refcount is lower than the number of references: a write may take the cluster from one of its users.
    RefcountTooLow {
        /// The cluster.
        cluster: ClusterIndex,
        /// Its refcount as stored.
        refcount: u64,
        /// References found, at most what a refcount of this image can hold.
        references: u64,
    },
    /// There are more references than a refcount of this image can hold.
    RefcountOverflow {
        /// The cluster.
        cluster: ClusterIndex,
        /// References found.
        references: u64,
        /// The largest refcount.
        max: u64,
    },
    /// A run of clusters whose refcounts can't be read, since their refcount block's place is impossible.
    RefcountUnreadable {
        /// The first of them.
        first: ClusterIndex,
        /// How many.
        clusters: u64,
        /// The place of the refcount block, as stored.
        block: HostOffset,
    },
    /// COPIED of an L1 entry is not "the L2 table's refcount is exactly 1".
    CopiedL2Table {
        /// Where the entry is.
        at: HostOffset,
        /// Its number.
        l1_index: u64,
        /// The entry.
        entry: u64,
        /// The refcount of the table it names.
        refcount: u64,
    },
    /// COPIED of an L2 entry is not "the data cluster's refcount is exactly 1".
    CopiedData {
        /// Where the entry is.
        at: HostOffset,
        /// The entry.
        entry: u64,
        /// The refcount of the cluster it names.
        refcount: u64,
    },
    /// COPIED of a compressed cluster's entry is set; it never may be.
    CopiedCompressed {
        /// Where the entry is.
        at: HostOffset,
        /// The entry.
        entry: u64,
    },
    /// Bits are set that the format reserves.
    ReservedBits {
        /// The kind of table.
        table: TableKind,
        /// Where the entry is.
        at: HostOffset,
        /// The entry.
        entry: u64,
    },
    /// An entry names an offset inside a cluster.
    Unaligned {
        /// The kind of table.
        table: TableKind,
        /// Where the entry is.
        at: HostOffset,
        /// The entry.
        entry: u64,
    },
    /// A zero cluster's entry keeps a host cluster at an offset inside a cluster.
    UnalignedPreallocated {
        /// Where the entry is.
        at: HostOffset,
        /// The entry.
        entry: u64,
    },
    /// A structure reaches past the end of the file by a cluster or more.
    BeyondEnd {
        /// Where it starts.
        start: HostOffset,
        /// Its length in bytes.
        len: u64,
    },
    /// An L1 or bitmap table, or compressed data, reaches past the end of the file, by less than a cluster: what is missing is
    /// lost.
    Cut {
        /// Where it starts.
        start: HostOffset,
        /// Its length in bytes.
        len: u64,
    },
    /// A refcount block lies where the file has no cluster.
    RefcountBlockOutside {
        /// Its number in the refcount table.
        index: u64,
        /// Its place.
        block: HostOffset,
    },
    /// A refcount block's cluster is used for something else too.
    RefcountBlockShared {
        /// Its number in the refcount table.
        index: u64,
        /// References to its cluster, this one included.
        references: u64,
    },
    /// A compressed cluster in an image with an external data file, where none can be.
    CompressedWithDataFile {
        /// Where the entry is.
        at: HostOffset,
        /// The entry.
        entry: u64,
    },
    /// The subcluster bitmap of an extended L2 entry contradicts the entry.
    SubclusterBitmap {
        /// Where the entry is.
        at: HostOffset,
        /// The entry's first half.
        entry: u64,
        /// Its bitmap.
        bitmap: u64,
    },
    /// An internal snapshot's entry in the snapshot table is damaged. Where that is about its L1 table, its clusters
    /// were not counted.
    SnapshotTable {
        /// The snapshot's number in the table.
        index: u64,
        /// What is wrong.
        problem: &'static str,
        /// Where its L1 table is said to be.
        l1_offset: HostOffset,
        /// Entries it is said to have.
        l1_entries: u64,
    },
    /// The snapshot table says more snapshots than there can be, or is longer than it can be.
    OverhangingSnapshots {
        /// Snapshots that are within the limits, and were counted.
        kept: u32,
        /// Snapshots that are not.
        overhanging: u32,
    },
    /// The snapshot table can't be read to its end.
    SnapshotTableUnreadable {
        /// Where it is.
        table: HostOffset,
        /// What is wrong.
        problem: &'static str,
    },
    /// Internal snapshots in an image with an external data file, where none can be.
    SnapshotsWithDataFile {
        /// How many.
        snapshots: u64,
    },
    /// The bitmap directory or a bitmap's table is damaged; what it would name was not counted.
    BitmapDirectory {
        /// Where the damage is.
        at: HostOffset,
        /// What is wrong.
        problem: &'static str,
    },
    /// An L2 table was not looked into: too many of them start inside a cluster.
    NotWalked {
        /// Where the table is.
        table: HostOffset,
    },
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Leak { .. } => Severity::Leak,
            Self::RefcountUnreadable { .. }
            | Self::NotWalked { .. }
            | Self::SnapshotTableUnreadable { .. } => Severity::CheckError,
            _ => Severity::Corruption,
        }
    }

    /// For a COPIED flag that is not what it should be, whether it is set.
    pub(super) fn copied_flag(&self) -> Option<bool> {
        match self {
            Self::CopiedL2Table { entry, .. } | Self::CopiedData { entry, .. } => Some(entry >> 63 == 1),
            Self::CopiedCompressed { .. } => Some(true),
            _ => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Leak {
                cluster,
                refcount,
                references,
            } => write!(
                f,
                "Leaked cluster {} refcount={refcount} reference={references}",
                cluster.0
            ),
            Self::RefcountTooLow {
                cluster,
                refcount,
                references,
            } => write!(
                f,
                "ERROR cluster {} refcount={refcount} reference={references}",
                cluster.0
            ),
            Self::RefcountOverflow {
                cluster,
                references,
                max,
            } => write!(
                f,
                "ERROR cluster {} has {references} references, more than its refcount can hold ({max})",
                cluster.0
            ),
            Self::RefcountUnreadable {
                first,
                clusters,
                block,
            } => write!(
                f,
                "ERROR can't read the refcounts of {clusters} clusters from cluster {} on: refcount block at {block}",
                first.0
            ),
            Self::CopiedL2Table {
                l1_index,
                entry,
                refcount,
                ..
            } => write!(
                f,
                "ERROR OFLAG_COPIED L2 cluster: l1_index={l1_index} l1_entry={entry:x} refcount={refcount}"
            ),
            Self::CopiedData { entry, refcount, .. } => {
                write!(
                    f,
                    "ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}"
                )
            }
            Self::CopiedCompressed { at, entry } => write!(
                f,
                "ERROR compressed cluster with the copied flag set: l2_entry={entry:x} at {at}"
            ),
            Self::ReservedBits { table, at, entry } => {
                write!(f, "ERROR {table} entry with reserved bits set: {entry:x} at {at}")
            }
            Self::Unaligned { table, at, entry } => write!(
                f,
                "ERROR {table} entry {entry:x} at {at} names an offset that is not cluster aligned"
            ),
            Self::UnalignedPreallocated { at, entry } => write!(
                f,
                "ERROR L2 entry {entry:x} at {at}: preallocated cluster is not cluster aligned"
            ),
            Self::BeyondEnd { start, len } => write!(
                f,
                "ERROR {len} bytes at {start} exceed the end of the file by one cluster or more"
            ),
            Self::Cut { start, len } => {
                write!(
                    f,
                    "ERROR {len} bytes at {start} are cut off by the end of the file"
                )
            }
            Self::RefcountBlockOutside { index, block } => {
                write!(f, "ERROR refcount block {index} at {block} is outside image")
            }
            Self::RefcountBlockShared { index, references } => {
                write!(f, "ERROR refcount block {index} refcount={references}")
            }
            Self::CompressedWithDataFile { at, entry } => write!(
                f,
                "ERROR compressed cluster in an image with an external data file: l2_entry={entry:x} at {at}"
            ),
            Self::SubclusterBitmap { at, entry, bitmap } => write!(
                f,
                "ERROR L2 entry {entry:x} at {at} with corrupted subcluster bitmap {bitmap:x}"
            ),
            Self::SnapshotTable {
                index,
                problem,
                l1_offset,
                l1_entries,
            } => write!(
                f,
                "ERROR snapshot table entry {index}: {problem} (L1 table of {l1_entries} entries at {l1_offset})"
            ),
            Self::OverhangingSnapshots { kept, overhanging } => write!(
                f,
                "ERROR snapshot table: {overhanging} snapshots after the first {kept} exceed its largest size"
            ),
            Self::SnapshotTableUnreadable { table, problem } => {
                write!(f, "ERROR can't read the snapshot table at {table}: {problem}")
            }
            Self::SnapshotsWithDataFile { snapshots } => {
                write!(
                    f,
                    "ERROR {snapshots} snapshots in an image with an external data file"
                )
            }
            Self::BitmapDirectory { at, problem } => write!(f, "ERROR bitmap directory: {problem} at {at}"),
            Self::NotWalked { table } => {
                write!(
                    f,
                    "ERROR L2 table at {table} not checked: too many tables are not cluster aligned"
                )
            }
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// References, entries and structures that contradict each other, each counted as often as it is named.
    pub corruptions: u64,
    /// Clusters whose refcount is too high.
    pub leaks: u64,
    /// Clusters and tables that could not be checked.
    pub check_errors: u64,
    /// Clusters of the guest's disk.
    pub total_clusters: u64,
    /// Those that this image maps to data of its own.
    pub allocated_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
    /// Those of them that do not follow the one before them in the file.
    pub fragmented_clusters: u64,
    /// One past the last byte of the last cluster that is in use, in bytes.
    pub image_end_offset: u64,
    /// What was found, in the order it was found; the first [`CheckOptions::max_findings`](super::CheckOptions)
    /// of them. The counters above count all.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Nothing at all was found.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }

    /// The worst that was found.
    pub fn worst(&self) -> Option<Severity> {
        match (self.check_errors, self.corruptions, self.leaks) {
            (0, 0, 0) => None,
            (0, 0, _) => Some(Severity::Leak),
            (0, _, _) => Some(Severity::Corruption),
            _ => Some(Severity::CheckError),
        }
    }
}

/// A report in the making: counts everything, keeps the first findings.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) report: CheckReport,
    max_findings: usize,
}

impl Recorder {
    pub(super) fn new(max_findings: usize) -> Self {
        Self {
            report: CheckReport::default(),
            max_findings,
        }
    }

    /// Whether another finding would be kept: otherwise it need not be made, only counted.
    pub(super) fn keeps(&self) -> bool {
        self.report.findings.len() < self.max_findings
    }

    /// Counts `times` findings of a severity.
    pub(super) fn count(&mut self, severity: Severity, times: u64) {
        let counter = match severity {
            Severity::Leak => &mut self.report.leaks,
            Severity::Corruption => &mut self.report.corruptions,
            Severity::CheckError => &mut self.report.check_errors,
        };
        *counter = counter.saturating_add(times);
    }

    /// Counts a finding as `times` and keeps it if there is room.
    #[cold]
    pub(super) fn record(&mut self, times: u64, finding: Finding) {
        if times == 0 {
            return;
        }
        self.count(finding.severity(), times);
        if self.keeps() {
            self.report.findings.push(finding);
        }
    }
}
