//! Bounds of the format, of which callers have their own words.

use std::error::Error as _;

use block::{Error, ErrorKind};

use crate::address::HostOffset;

/// What an image cannot hold, where a caller acts on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Limit {
    /// A disk is longer than the largest L1 table can map.
    #[error("{size} bytes are more than clusters of {cluster_size} bytes can map ({most})")]
    DiskSize {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of a cluster.
        cluster_size: u64,
        /// Bytes that can be mapped.
        most: u64,
    },
    /// A bitmap has more bits than there may be.
    #[error(
        "a bitmap of {bits} bits is too large: {most} are the most, and each stands for {granularity} bytes"
    )]
    BitmapSize {
        /// Bits of the bitmap.
        bits: u64,
        /// The most that there may be.
        most: u64,
        /// Bytes that a bit stands for.
        granularity: u64,
    },
    /// A cluster has more references than a narrower refcount can count.
    #[error(
        "the cluster at offset {offset} has {references} references, and a refcount of {bits} bits can count {most}"
    )]
    References {
        /// Where the cluster is.
        offset: HostOffset,
        /// How many references it has.
        references: u64,
        /// Bits of a refcount.
        bits: u32,
        /// The most that it can count.
        most: u64,
    },
}

impl Limit {
    /// The bound that an error, or what has caused it, tells of.
    pub fn of(error: &Error) -> Option<Self> {
        let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
        causes.find_map(|cause| cause.downcast_ref::<Self>()).copied()
    }

    /// The error that it is, with this hint.
    pub(crate) fn error(self, kind: ErrorKind, hint: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::told_by(kind, self).with_hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_known_whatever_is_said_around_it_and_said_once() {
        let limit = Limit::BitmapSize {
            bits: 3,
            most: 2,
            granularity: 512,
        };
        let error = limit.error(ErrorKind::InvalidInput, "use a larger one");
        assert_eq!(Limit::of(&error.clone().with_path("disk.qcow2")), Some(limit));
        let text = "a bitmap of 3 bits is too large: 2 are the most, and each stands for 512 bytes";
        assert_eq!(error.to_string(), text);
        assert_eq!(Limit::of(&Error::invalid(text)), None);
    }
}
