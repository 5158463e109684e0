//! How long the file of a new image will be.
//!
//! An upper bound that any way of filling the image keeps: refcounts cover every cluster of the disk from the
//! start, whatever is written to it.

use block::{Preallocation, Result};

use crate::bitmap::{self, Bitmap, directory};
use crate::create::{CreateOptions, ENTRY, refcount_clusters};
use crate::geometry::Geometry;

/// Lengths of a file in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// With the data that there is.
    pub required: u64,
    /// With every cluster of the disk written.
    pub fully_allocated: u64,
}

/// Measures an image with `options`, in which `data_clusters` of its clusters are to be written; `None` if that is
/// not known, because there is only a size.
///
/// How much of its data an image with a backing file shares with that is not known either: given data, it is taken
/// to share none.
///
/// # Errors
/// `InvalidInput` as [`CreateOptions::validate`].
pub fn measure(options: &CreateOptions, data_clusters: Option<u64>) -> Result<Measure> {
    CreateOptions {
        preallocation: Preallocation::Off,
        ..options.clone()
    }
    .validate()?;
    let geometry = options.geometry();
    let disk = geometry.clusters(options.size);
    let encryption = geometry.clusters(options.encryption_header_len());
    let metadata = metadata_clusters(geometry, options.size, disk, encryption);
    let everything = matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full)
        || options.backing.is_some() && data_clusters.is_some();
    let data = match data_clusters {
        _ if everything => disk,
        data => data.unwrap_or(0).min(disk),
    };
    let bytes = |clusters: u64| (metadata + clusters).saturating_mul(geometry.cluster_size());
    Ok(Measure {
        required: bytes(data),
        fully_allocated: bytes(disk),
    })
}

/// Bytes that `bitmaps`, of a disk of `size` bytes, take at most in an image with clusters of `1 << cluster_bits` bytes,
/// beside what [`measure`] says. Those that are inconsistent, and cannot be copied, are counted as if they could be.
pub fn measure_bitmaps(bitmaps: &[Bitmap], size: u64, cluster_bits: u32) -> u64 {
    let clusters = |bytes: u64| bytes.div_ceil(1 << cluster_bits);
    let contents = bitmaps.iter().map(|bitmap| {
        let data = clusters(bitmap::bits(size, bitmap.granularity_bits).div_ceil(8));
        data + clusters(data * ENTRY)
    });
    let entries = bitmaps
        .iter()
        .map(|bitmap| directory::entry_len(0, bitmap.name.len()));
    let directory = entries.sum();
    (contents.sum::<u64>() + clusters(directory)) << cluster_bits
}

/// Clusters of header, L1 table, L2 tables, refcount table and refcount blocks for a disk that is fully written, and of an
/// encryption header.
fn metadata_clusters(geometry: Geometry, size: u64, disk: u64, encryption: u64) -> u64 {
    let l2 = geometry.l1_entries(size);
    let fixed = 1 + encryption + geometry.clusters(l2 * ENTRY) + l2;
    let refcounts = refcount_clusters(geometry, fixed + disk);
    fixed + refcounts.table + refcounts.blocks
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use block::{BackingReference, Passphrase};
    use encryption::LuksOptions;

    use super::*;
    use crate::create::{EncryptionMethod, NewEncryption};
    use crate::header::Version;

    /// What `qemu-img measure -O qcow2` says.
    fn qemu_measure(size: u64, options: &str) -> Measure {
        let output = Command::new("qemu-img")
            .args([
                "measure",
                "--object",
                "secret,id=key,data=key",
                "-O",
                "qcow2",
                "--size",
                &size.to_string(),
                "-o",
                options,
            ])
            .output()
            .expect("qemu-img must be installed");
        assert!(output.status.success(), "{size} {options}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let number = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        Measure {
            required: number("required"),
            fully_allocated: number("fully allocated"),
        }
    }

    #[test]
    fn agrees_with_qemu_img() {
        for cluster_bits in [9, 12, 16, 21] {
            for refcount_order in [0, 4, 6] {
                for size in [
                    0,
                    512,
                    1 << 20,
                    (1 << 26) + 512,
                    1 << 30,
                    100 << 30,
                    1 << 40,
                    1 << 46,
                ] {
                    let options = CreateOptions {
                        size,
                        cluster_bits,
                        refcount_order,
                        ..CreateOptions::default()
                    };
                    if options.validate().is_err() {
                        continue;
                    }
                    let text = format!(
                        "cluster_size={},refcount_bits={}",
                        1 << cluster_bits,
                        1 << refcount_order
                    );
                    assert_eq!(
                        measure(&options, None).unwrap(),
                        qemu_measure(size, &text),
                        "{size} {text}"
                    );
                }
            }
        }
    }

    #[test]
    fn agrees_with_qemu_img_on_extended_l2_entries() {
        for cluster_bits in [14, 16, 21] {
            for size in [512, 1 << 30, 100 << 30, 1 << 40] {
                let options = CreateOptions {
                    size,
                    cluster_bits,
                    extended_l2: true,
                    ..CreateOptions::default()
                };
                let text = format!("cluster_size={},extended_l2=on", 1 << cluster_bits);
                assert_eq!(
                    measure(&options, None).unwrap(),
                    qemu_measure(size, &text),
                    "{size} {text}"
                );
            }
        }
    }

    #[test]
    fn agrees_with_qemu_img_on_encryption() {
        let luks = NewEncryption {
            method: EncryptionMethod::Luks(LuksOptions::default()),
            passphrase: Passphrase::new("key"),
        };
        for cluster_bits in [12, 16, 21] {
            for size in [512, 1 << 30] {
                let options = CreateOptions {
                    size,
                    cluster_bits,
                    encryption: Some(luks.clone()),
                    ..CreateOptions::default()
                };
                let text = format!(
                    "cluster_size={},encrypt.format=luks,encrypt.key-secret=key",
                    1 << cluster_bits
                );
                assert_eq!(
                    measure(&options, None).unwrap(),
                    qemu_measure(size, &text),
                    "{size} {text}"
                );
            }
        }
    }

    #[test]
    fn counts_data_where_there_is_some() {
        let options = CreateOptions {
            size: 10 << 20,
            version: Version::V2,
            ..CreateOptions::default()
        };
        let required = |options: &CreateOptions, data| measure(options, data).unwrap().required;
        // The numbers of `qemu-img measure` for a raw file of 10 MiB with data in three of its clusters.
        assert_eq!(required(&options, Some(3)), 524_288);
        assert_eq!(required(&options, None), 327_680);
        let preallocated = |preallocation| CreateOptions {
            preallocation,
            ..options.clone()
        };
        assert_eq!(required(&preallocated(Preallocation::Metadata), Some(3)), 524_288);
        assert_eq!(
            required(&preallocated(Preallocation::Falloc), Some(3)),
            10_813_440
        );
        let overlay = CreateOptions {
            backing: Some(BackingReference {
                name: "base".into(),
                format: None,
            }),
            ..options
        };
        assert_eq!(required(&overlay, Some(3)), 10_813_440);
        assert_eq!(required(&overlay, None), 327_680);
    }
}
