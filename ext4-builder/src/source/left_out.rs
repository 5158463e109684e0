//! What a source has that ext4 cannot hold, and that nobody would miss in the filesystem.

use std::collections::BTreeSet;

/// Names that are kept.
const MAX_NAMES: usize = 8;

/// Extended attributes that were left out of a tree: those whose names ext4 has no room for, such as `btrfs.compression`, and
/// those of users (`user.*`) on what is neither a file nor a directory. There, no kernel would show them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    count: u64,
    names: BTreeSet<Vec<u8>>,
}

impl LeftOut {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Some of their names.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().map(Vec::as_slice)
    }

    pub(super) fn add(&mut self, name: &[u8]) {
        self.count += 1;
        if self.names.len() < MAX_NAMES && !self.names.contains(name) {
            self.names.insert(name.to_vec());
        }
    }

    /// Both together.
    pub(super) fn and(mut self, other: &Self) -> Self {
        self.count += other.count;
        for name in &other.names {
            if self.names.len() < MAX_NAMES {
                self.names.insert(name.clone());
            }
        }
        self
    }
}
