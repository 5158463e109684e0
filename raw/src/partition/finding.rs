//! What is wrong with a partition table: findings that name each place, and how much they matter.

use std::fmt;

use super::gpt::CopyKind;
use super::{Damage, Guid, Lba, Partition};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Partitions are where they should be; somebody may stumble over it nonetheless.
    Warning,
    /// Data is in danger, or another program sees other partitions.
    Error,
}

/// What is wrong with a master boot record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MbrFault {
    /// There is none, so that most programs do not look for a GPT.
    Missing,
    /// It protects nothing: there is no entry for the GPT.
    NotProtective,
    /// It has partitions beside the entry that protects the GPT.
    Hybrid,
    /// The protected range starts elsewhere than in sector 1.
    Start(u32),
    /// The protected range is not the disk.
    Length {
        /// Its length in sectors.
        sectors: u32,
        /// And what it should be.
        whole: u32,
    },
    /// The list of logical partitions leads out of the extended one, or off the disk.
    ListOutside(Lba),
    /// There is no record where the list of logical partitions goes on.
    ListBroken(Lba),
    /// The list of logical partitions has no end, or more of them than Linux looks at.
    ListEndless,
}

impl fmt::Display for MbrFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => {
                f.write_str("there is no protective MBR: other programs will not see the partitions")
            }
            Self::NotProtective => {
                f.write_str("the MBR does not protect the GPT: other programs will not see the partitions")
            }
            Self::Hybrid => f.write_str("the MBR has partitions of its own beside those of the GPT"),
            Self::Start(first) => write!(
                f,
                "the protective MBR starts at sector {first} and not at sector 1"
            ),
            Self::Length { sectors, whole } => {
                write!(
                    f,
                    "the protective MBR covers {sectors} sectors, and there are {whole}"
                )
            }
            Self::ListOutside(at) => {
                write!(
                    f,
                    "the list of logical partitions leads to sector {at}, outside of the extended partition"
                )
            }
            Self::ListBroken(at) => write!(f, "the list of logical partitions breaks off at sector {at}"),
            Self::ListEndless => f.write_str("the list of logical partitions does not end"),
        }
    }
}

/// One thing that is wrong with a partition table. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// One copy of a GPT cannot be used.
    Damaged {
        /// Which.
        copy: CopyKind,
        /// Its sector.
        at: Lba,
        /// Why.
        damage: Damage,
    },
    /// Both copies of a GPT can be used, and they differ.
    Disagree {
        /// In what.
        what: &'static str,
    },
    /// The backup of a GPT is not in the disk's last sector: the disk has grown.
    BackupNotAtEnd {
        /// Where it is.
        at: Lba,
        /// The last sector.
        last: Lba,
    },
    /// The GPT was made for a larger disk.
    DiskTooShort {
        /// The last sector that it says a partition may have.
        last_usable: Lba,
        /// The disk's last sector.
        last: Lba,
    },
    /// The MBR.
    Mbr(MbrFault),
    /// Two partitions share sectors.
    Overlap {
        /// One of them.
        number: u32,
        /// The other.
        other: u32,
        /// The first sector that they share.
        at: Lba,
    },
    /// A partition lies, in part at least, where none may be, or off the disk.
    OutOfRange {
        /// The partition.
        number: u32,
        /// Its first sector.
        first: Lba,
        /// Its last.
        last: Lba,
        /// First sector where partitions may be.
        first_usable: Lba,
        /// The last.
        last_usable: Lba,
    },
    /// A partition ends before it starts.
    Backwards {
        /// The partition.
        number: u32,
        /// Its first sector.
        first: Lba,
        /// Its last.
        last: Lba,
    },
    /// Two partitions have one GUID, or one has none.
    DuplicateGuid {
        /// One of them.
        number: u32,
        /// The other; the same number where the GUID is all zeros.
        other: u32,
        /// The GUID.
        guid: Guid,
    },
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::BackupNotAtEnd { .. }
            | Self::DuplicateGuid { .. }
            | Self::Mbr(MbrFault::Hybrid | MbrFault::Length { .. }) => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// Whether it says that this partition's place is wrong.
    pub(super) fn misplaces(&self, partition: u32) -> bool {
        match *self {
            Self::Overlap { number, other, .. } => number == partition || other == partition,
            Self::OutOfRange { number, .. } | Self::Backwards { number, .. } => number == partition,
            _ => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { copy, at, damage } => {
                write!(f, "the {copy} table in sector {at} is damaged: {damage}")
            }
            Self::Disagree { what } => write!(f, "the primary table and the backup have different {what}"),
            Self::BackupNotAtEnd { at, last } => write!(
                f,
                "the backup table is in sector {at}, and the disk's last sector is {last}: the disk has grown"
            ),
            Self::DiskTooShort { last_usable, last } => write!(
                f,
                "partitions may reach to sector {last_usable}, and the disk's last sector is {last}: the disk has been cut"
            ),
            Self::Mbr(fault) => fault.fmt(f),
            Self::Overlap { number, other, at } => {
                write!(f, "partitions {number} and {other} overlap, from sector {at} on")
            }
            Self::OutOfRange {
                number,
                first,
                last,
                first_usable,
                last_usable,
            } => write!(
                f,
                "partition {number} has sectors {first} to {last}, and partitions may have {first_usable} to {last_usable}"
            ),
            Self::Backwards { number, first, last } => {
                write!(
                    f,
                    "partition {number} ends in sector {last}, before it starts in sector {first}"
                )
            }
            Self::DuplicateGuid { number, guid, .. } if guid.is_nil() => {
                write!(f, "partition {number} has no GUID of its own")
            }
            Self::DuplicateGuid { number, other, guid } => {
                write!(f, "partitions {number} and {other} have the same GUID, {guid}")
            }
        }
    }
}

/// What is wrong with the places of partitions that may be in sectors `first` to `last`.
pub(super) fn of_ranges<'a>(
    partitions: impl Iterator<Item = &'a Partition>,
    first_usable: Lba,
    last_usable: Lba,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut forwards = Vec::new();
    for partition in partitions {
        let (number, first, last) = (partition.number, partition.first, partition.last);
        if last < first {
            findings.push(Finding::Backwards { number, first, last });
            continue;
        }
        forwards.push(partition);
        if first < first_usable || last > last_usable {
            findings.push(Finding::OutOfRange {
                number,
                first,
                last,
                first_usable,
                last_usable,
            });
        }
    }
    forwards.sort_by_key(|partition| partition.first);
    // The one that reaches furthest of those before.
    let mut furthest: Option<&Partition> = None;
    for partition in forwards {
        if let Some(before) = furthest.filter(|before| before.last >= partition.first) {
            findings.push(Finding::Overlap {
                number: before.number,
                other: partition.number,
                at: partition.first,
            });
        }
        if furthest.is_none_or(|before| before.last < partition.last) {
            furthest = Some(partition);
        }
    }
    findings
}
