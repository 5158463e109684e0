//! What a disk must read as.

use block::{MemStorage, Storage, ZeroMode};

/// A disk's bytes, sparse. A clone is a model of its own.
#[derive(Debug)]
pub struct Model {
    bytes: MemStorage,
}

impl Clone for Model {
    fn clone(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
        }
    }
}

impl Model {
    /// `size` bytes of zeros.
    pub fn new(size: u64) -> Self {
        let bytes = MemStorage::new();
        bytes.set_len(size).expect("memory");
        Self { bytes }
    }

    /// The disk of a new overlay of `size` bytes over this one.
    #[must_use]
    pub fn overlay(&self, size: u64) -> Self {
        let model = self.clone();
        model.resize(size);
        model
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.len().expect("memory")
    }

    /// The bytes.
    pub fn bytes(&self) -> &dyn Storage {
        &self.bytes
    }

    /// Writes.
    pub fn write(&self, bytes: &[u8], offset: u64) {
        assert!(offset + bytes.len() as u64 <= self.size(), "a write past the end");
        self.bytes.write_all_at(bytes, offset).expect("memory");
    }

    /// Makes a range read as zeros.
    pub fn zero(&self, offset: u64, len: u64) {
        assert!(offset + len <= self.size(), "zeros past the end");
        self.bytes.zero(offset, len, ZeroMode::Unmap).expect("memory");
    }

    /// Makes what a discard gives back read as zeros: the whole clusters of the range, with one that the end of the
    /// disk cuts off.
    pub fn discard(&self, offset: u64, len: u64, cluster_size: u64) {
        let end = offset + len;
        let start = offset.next_multiple_of(cluster_size);
        let end = if end == self.size() {
            end
        } else {
            end / cluster_size * cluster_size
        };
        if start < end {
            self.zero(start, end - start);
        }
    }

    /// Cuts the disk, or adds zeros.
    pub fn resize(&self, size: u64) {
        self.bytes.set_len(size).expect("memory");
    }
}
