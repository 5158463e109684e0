//! The ways in which an image contradicts the format, each with the values that were seen.
//!
//! The enum is private to the crate: callers see [`block::ErrorKind::Corrupt`] and a sentence, and a new check is
//! no change of the interface.

use thiserror::Error;

use crate::address::HostOffset;

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
    #[error("{what} entry {index} is {entry:#x}: reserved bits {reserved:#x} are set")]
    ReservedBits {
        what: &'static str,
        index: u64,
        entry: u64,
        reserved: u64,
    },
    #[error("{what} at {start} ({len} bytes) reaches past the end of the file ({file_len} bytes)")]
    BeyondEnd {
        what: &'static str,
        start: HostOffset,
        len: u64,
        file_len: u64,
    },
}
