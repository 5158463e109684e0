//! What a random image is like.

use block::BackingReference;
use block::test_utils::Rng;
use qcow2::{CompressionType, CreateOptions, Version};

/// The options of a qcow2 image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// log2 of the cluster size, 9..=21.
    pub cluster_bits: u32,
    /// log2 of the width of a refcount in bits.
    pub refcount_order: u32,
    /// Version 2 of the format (`compat=0.10`).
    pub v2: bool,
    /// Compressed clusters are compressed with zstd.
    pub zstd: bool,
    /// L2 entries are extended: clusters have subclusters.
    pub extended_l2: bool,
    /// Refcounts may be postponed.
    pub lazy: bool,
}

impl Shape {
    /// Any shape; the usual cluster size more often than others.
    pub fn random(rng: &mut Rng) -> Self {
        let cluster_bits = match rng.below(4) {
            0 => 16,
            _ => 9 + rng.below(13) as u32,
        };
        let v2 = rng.below(4) == 0;
        Self {
            cluster_bits,
            refcount_order: if v2 { 4 } else { rng.below(7) as u32 },
            v2,
            zstd: !v2 && rng.coin(),
            extended_l2: !v2 && cluster_bits >= 14 && rng.coin(),
            lazy: !v2 && rng.below(3) == 0,
        }
    }

    /// Bytes in a cluster.
    pub fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that an L2 table maps.
    pub fn l2_coverage(self) -> u64 {
        1 << (2 * self.cluster_bits - if self.extended_l2 { 4 } else { 3 })
    }

    /// Length of a disk in bytes: odd numbers of sectors more often than not, now and then none at all, a few, or
    /// several L2 tables' worth.
    pub fn random_size(self, rng: &mut Rng) -> u64 {
        let odd_sectors = |most: u64, rng: &mut Rng| (rng.below(most / 1024) * 2 + 1) * 512;
        match rng.below(12) {
            0 => 0,
            1 => 512 * (1 + rng.below(7)),
            2 | 3 if self.cluster_bits <= 17 => {
                self.l2_coverage() * (1 + rng.below(3)) + odd_sectors(65_536, rng)
            }
            4 => self.cluster_size() * (1 + rng.below(5)),
            _ => odd_sectors((1 << 20).max(5 * self.cluster_size()), rng),
        }
    }

    /// For `qemu-img create -o`.
    pub fn qemu_options(self) -> String {
        format!(
            "cluster_size={},refcount_bits={},compat={},compression_type={},extended_l2={},lazy_refcounts={}",
            self.cluster_size(),
            1 << self.refcount_order,
            if self.v2 { "0.10" } else { "1.1" },
            if self.zstd { "zstd" } else { "zlib" },
            if self.extended_l2 { "on" } else { "off" },
            if self.lazy { "on" } else { "off" },
        )
    }

    /// For [`qcow2::create`].
    pub fn create_options(self, size: u64, backing: Option<(&str, &str)>) -> CreateOptions {
        CreateOptions {
            size,
            version: if self.v2 { Version::V2 } else { Version::V3 },
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended_l2: self.extended_l2,
            lazy_refcounts: self.lazy,
            compression: if self.zstd {
                CompressionType::Zstd
            } else {
                CompressionType::Zlib
            },
            backing: backing.map(|(name, format)| BackingReference {
                name: name.to_owned(),
                format: Some(format.to_owned()),
            }),
            ..CreateOptions::default()
        }
    }
}

/// The size of another layer of a chain that is about `size` bytes long: the same, shorter or longer.
pub fn varied_size(size: u64, rng: &mut Rng) -> u64 {
    let sectors = size / 512;
    match rng.below(3) {
        0 => size,
        1 => rng.below(sectors + 1) * 512,
        _ => size + rng.below(sectors / 2 + 64) * 512,
    }
}
