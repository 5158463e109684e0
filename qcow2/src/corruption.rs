//! The ways in which an image contradicts the format, each with the values that were seen.
//!
//! The enum is private to the crate: callers see [`block::ErrorKind::Corrupt`] and a sentence, and a new check is
//! no change of the interface. What they tell apart is a [`Damage`].

use std::error::Error as _;

use thiserror::Error;

use crate::address::{ClusterIndex, GuestOffset, HostOffset};

/// A contradiction, as found while parsing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Corruption {
    #[error(
        "{what} entry {index} is {entry:#x}: its offset is not a multiple of the cluster size ({cluster_size})"
    )]
    Unaligned {
        what: &'static str,
        index: u64,
        entry: u64,
        cluster_size: u64,
    },
    #[error("{what} entry {index} is {entry:#x}: it points into the header")]
    IntoHeader {
        what: &'static str,
        index: u64,
        entry: u64,
    },
    #[error(
        "L2 entry {index} is {entry:#x}: a compressed cluster, which an image with a data file cannot have"
    )]
    CompressedWithDataFile { index: u64, entry: u64 },
    #[error("guest offset {guest} is mapped to {host} in the data file, where it must be at the same offset")]
    ElsewhereInDataFile { guest: GuestOffset, host: HostOffset },
    #[error("{what} entry {index} is {entry:#x}: reserved bits {reserved:#x} are set")]
    ReservedBits {
        what: &'static str,
        index: u64,
        entry: u64,
        reserved: u64,
    },
    #[error("L2 entry {index} is {entry:#x} with the subcluster bitmap {bitmap:#x}: {problem}")]
    SubclusterBitmap {
        index: u64,
        entry: u64,
        bitmap: u64,
        problem: &'static str,
    },
    #[error("{what} at {start} ({len} bytes) reaches past the end of the file ({file_len} bytes)")]
    BeyondEnd {
        what: &'static str,
        start: HostOffset,
        len: u64,
        file_len: u64,
    },
    #[error(
        "the data of guest offset {guest} is at {host}, past the end of the file ({file_len} bytes): it is lost"
    )]
    Cut {
        guest: GuestOffset,
        host: HostOffset,
        file_len: u64,
    },
    #[error("no refcount block counts cluster {cluster}")]
    NoRefcountBlock { cluster: ClusterIndex },
    #[error("cluster {cluster} is counted as free, but holds metadata")]
    MetadataCountedFree { cluster: ClusterIndex },
    #[error("{what} lies in cluster {cluster}, which holds other metadata")]
    MetadataShared {
        what: &'static str,
        cluster: ClusterIndex,
    },
    #[error("cluster {cluster} is in use, but counted as free")]
    FreedTwice { cluster: ClusterIndex },
    #[error("cluster {cluster} has more references than its refcount says")]
    CountedTooLow { cluster: ClusterIndex },
    #[error("an L2 table maps guest data to cluster {cluster}, which holds metadata")]
    DataIsMetadata { cluster: ClusterIndex },
    #[error("guest offset {guest} is mapped to cluster {cluster}, which holds metadata")]
    MappedToMetadata {
        guest: GuestOffset,
        cluster: ClusterIndex,
    },
    #[error("header field {field} is {value}, but {rule}")]
    HeaderField {
        field: &'static str,
        value: u64,
        rule: &'static str,
    },
    #[error("header field {field} is {offset}, but {rule}")]
    HeaderOffset {
        field: &'static str,
        offset: HostOffset,
        rule: &'static str,
    },
    #[error("header extension {kind:#010x} at byte {at}: {problem}")]
    Extension {
        kind: u32,
        at: u64,
        problem: &'static str,
    },
    #[error("{what} name more clusters than the {file} of the file, and so share some of them")]
    Shared { what: &'static str, file: u64 },
    #[error("{first} and {second} overlap at {at}")]
    Overlap {
        first: &'static str,
        second: &'static str,
        at: HostOffset,
    },
    #[error("{what} is cut off: it needs {need} bytes, and there are {have}")]
    CutOff {
        what: &'static str,
        need: u64,
        have: u64,
    },
    #[error("{problem} ({compression}, {compressed} bytes for a cluster of {cluster_size})")]
    CompressedData {
        compression: &'static str,
        compressed: u64,
        cluster_size: u64,
        problem: &'static str,
    },
    #[error("{what} {index} has {field} {value}, but {rule}")]
    Entry {
        what: &'static str,
        index: u64,
        field: &'static str,
        value: u64,
        rule: &'static str,
    },
    #[error("two bitmaps are named '{name}'")]
    BitmapNamedTwice { name: String },
    #[error("{what} takes {len} bytes, and {limit} is the most")]
    TooLong {
        what: &'static str,
        len: u64,
        limit: u64,
    },
}

impl From<Corruption> for block::Error {
    fn from(corruption: Corruption) -> Self {
        Self::corrupt(corruption)
    }
}

/// What is damaged in an image, where a caller acts on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// An entry of a table has reserved bits set.
    ReservedBits,
    /// A cluster, of this image or far behind its end, has more references than its refcount says.
    CountedTooLow {
        /// Which one.
        cluster: ClusterIndex,
    },
}

impl Damage {
    /// The damage that an error, or what has caused it, tells of.
    pub fn of(error: &block::Error) -> Option<Self> {
        let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
        match causes.find_map(|cause| cause.downcast_ref::<Corruption>())? {
            Corruption::ReservedBits { .. } => Some(Self::ReservedBits),
            Corruption::CountedTooLow { cluster } => Some(Self::CountedTooLow { cluster: *cluster }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_known_whatever_is_said_around_it() {
        let cluster = ClusterIndex(5);
        let low = block::Error::from(Corruption::CountedTooLow { cluster });
        let said = low.clone().with_path("disk.qcow2").with_hint("repair it");
        let caused = block::Error::new(block::ErrorKind::Io, "take a snapshot").with_source(low);
        for error in [said, caused] {
            assert_eq!(Damage::of(&error), Some(Damage::CountedTooLow { cluster }));
        }
        let other = block::Error::from(Corruption::FreedTwice { cluster });
        assert_eq!(Damage::of(&other), None);
        assert_eq!(Damage::of(&block::Error::invalid("reserved bits are set")), None);
    }
}
