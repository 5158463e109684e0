use std::path::Path;
use std::process::Command;

use block::{ErrorKind, MemStorage, Preallocation, Storage};
use byteorder::{BE, ByteOrder};
use proptest::prelude::*;

use super::*;
use crate::entry::{CompressedCluster, L1Entry, L2Mapping};
use crate::{CreateOptions, Header, create};

const BOTH: [CompressionType; 2] = [CompressionType::Zlib, CompressionType::Zstd];

/// Something that compresses, with matches that reach far back.
fn cluster(len: usize) -> Vec<u8> {
    let words: Vec<u8> = (0..len as u64 / 8)
        .flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & 0xff_ff0f).to_le_bytes())
        .collect();
    let half: Vec<u8> = words.iter().copied().take(len / 2).collect();
    half.iter()
        .chain(&half)
        .copied()
        .chain(std::iter::repeat(7))
        .take(len)
        .collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut x = 1u64;
    std::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 56) as u8
    })
    .take(len)
    .collect()
}

fn error(kind: CompressionType, compressed: &[u8], len: usize) -> block::Error {
    kind.decompress(compressed, &mut vec![0; len]).unwrap_err()
}

#[test]
fn every_level_and_cluster_size_survives_a_round_trip_with_a_tail() {
    for kind in BOTH {
        for (bits, step) in [(9, 1), (12, 4), (16, 4), (21, 99)] {
            let cluster = cluster(1 << bits);
            let levels = kind.levels().step_by(step).map(Some);
            for level in levels.chain([None, Some(-1)]) {
                let mut compressed = kind.compress(level, &cluster).unwrap();
                assert!(compressed.len() < cluster.len());
                compressed.extend(noise(511));
                let mut out = vec![0xff; cluster.len()];
                kind.decompress(&compressed, &mut out).unwrap();
                assert!(out == cluster, "{kind:?} {bits} {level:?}");
            }
        }
    }
}

#[test]
fn what_does_not_get_smaller_is_not_compressed() {
    for kind in BOTH {
        assert_eq!(kind.compress(None, &noise(65_536)), None);
        assert_eq!(kind.compress(None, &[]), None);
    }
}

#[test]
fn a_stream_that_is_too_short_for_a_cluster_is_an_error() {
    for kind in BOTH {
        let compressed = kind.compress(None, &vec![1; 65_536]).unwrap();
        let error = error(kind, &compressed, 131_072);
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("ends too early"), "{error}");
    }
}

#[test]
fn a_stream_that_is_cut_off_is_an_error() {
    for kind in BOTH {
        let compressed = kind.compress(None, &cluster(65_536)).unwrap();
        for len in [0, 1, 5, compressed.len() / 2, compressed.len() - 8] {
            assert_eq!(error(kind, &compressed[..len], 65_536).kind(), ErrorKind::Corrupt);
        }
    }
}

#[test]
fn a_bomb_writes_no_more_than_a_cluster() {
    let big = vec![0; 64 << 20];
    let zstd = bulk::compress(&big, 19).unwrap();
    assert_eq!(
        error(CompressionType::Zstd, &zstd, 65_536).kind(),
        ErrorKind::Corrupt
    );
    // A frame header that announces 2^62 bytes, and a block of one byte repeated.
    let announced = [
        0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40, 3, 0, 0x10, 0,
    ];
    assert_eq!(
        error(CompressionType::Zstd, &announced, 65_536).kind(),
        ErrorKind::Corrupt
    );
    // Deflate ends with the cluster, as the format has it.
    let deflate = CompressionType::Zlib.compress(None, &big).unwrap();
    let mut out = vec![1; 65_536];
    CompressionType::Zlib.decompress(&deflate, &mut out).unwrap();
    assert!(out.iter().all(|byte| *byte == 0));
}

#[test]
fn a_deflate_stream_without_an_end_is_read() {
    let cluster = cluster(65_536);
    let mut compressor = flate2::Compress::new(flate2::Compression::default(), false);
    let mut stream = vec![0; 65_536];
    compressor
        .compress(&cluster, &mut stream, flate2::FlushCompress::Sync)
        .unwrap();
    stream.truncate(compressor.total_out() as usize);
    for tail in [vec![], vec![0xff; 300], noise(300)] {
        let stored = [stream.clone(), tail].concat();
        let mut out = vec![0; cluster.len()];
        CompressionType::Zlib.decompress(&stored, &mut out).unwrap();
        assert!(out == cluster);
    }
}

fn qemu_img(directory: &Path, args: &[&str]) {
    let output = Command::new("qemu-img")
        .args(args)
        .current_dir(directory)
        .output()
        .expect("qemu-img must be installed");
    assert!(output.status.success(), "{args:?}: {output:?}");
}

/// The L2 mappings of an image whose only L2 table is full or followed by unallocated clusters.
fn mappings(image: &[u8]) -> Vec<L2Mapping> {
    let header = Header::parse(image, image.len() as u64).unwrap();
    let l1 = BE::read_u64(&image[header.l1_offset.0 as usize..]);
    let Ok(L1Entry::Table { host, .. }) = L1Entry::decode(l1, 0, header.geometry) else {
        panic!("no L2 table")
    };
    let clusters = header.geometry.clusters(header.size) as usize;
    let decode = |index: usize| {
        let entry = BE::read_u64(&image[host.0 as usize + index * 8..]);
        L2Mapping::decode(entry, index as u64, header.geometry, header.has_zero_flag()).unwrap()
    };
    (0..clusters).map(decode).collect()
}

/// 12 clusters, each different.
fn disk(cluster_size: usize) -> Vec<u8> {
    let mut disk = Vec::new();
    for number in 0..12 {
        disk.extend(cluster(cluster_size));
        let at = disk.len() - cluster_size;
        disk[at..at + number].fill(number as u8);
    }
    disk
}

#[test]
fn reads_the_clusters_that_qemu_img_compressed() {
    let directory = tempfile::tempdir().unwrap();
    for kind in BOTH {
        for cluster_size in [512, 65_536, 2 << 20] {
            let disk = disk(cluster_size);
            std::fs::write(directory.path().join("disk"), &disk).unwrap();
            let options = format!("cluster_size={cluster_size},compression_type={}", kind.name());
            let convert = [
                "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", &options, "disk", "image",
            ];
            qemu_img(directory.path(), &convert);
            let image = std::fs::read(directory.path().join("image")).unwrap();
            let mut compressed = 0;
            for (mapping, expected) in mappings(&image).into_iter().zip(disk.chunks(cluster_size)) {
                let L2Mapping::Compressed(CompressedCluster { host, len }) = mapping else {
                    continue;
                };
                let start = host.0 as usize;
                let end = image.len().min(start + len as usize);
                let mut out = vec![0; cluster_size];
                kind.decompress(&image[start..end], &mut out).unwrap();
                assert!(out == expected, "{options}");
                compressed += 1;
            }
            assert!(
                compressed > 8,
                "{options}: only {compressed} clusters are compressed"
            );
        }
    }
}

#[test]
fn qemu_img_reads_the_clusters_compressed_here() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, level) in BOTH.into_iter().flat_map(|kind| [(kind, None), (kind, Some(9))]) {
        for cluster_bits in [9, 16, 21] {
            let options = CreateOptions {
                size: 12 << cluster_bits,
                cluster_bits,
                compression: kind,
                preallocation: Preallocation::Metadata,
                ..CreateOptions::default()
            };
            let storage = MemStorage::new();
            create(&storage, &options).unwrap();
            let mappings = mappings(&storage.to_vec());
            let L2Mapping::Standard { host: first, .. } = mappings[0] else {
                panic!("{:?}", mappings[0])
            };
            // The table lies in front of the clusters that it maps.
            let table = first.0 - (1 << cluster_bits);
            let disk = disk(1 << cluster_bits);
            // Each cluster's data is where its uncompressed data would have been.
            for (index, (mapping, cluster)) in mappings.iter().zip(disk.chunks(1 << cluster_bits)).enumerate()
            {
                let &L2Mapping::Standard { host, .. } = mapping else {
                    panic!("{mapping:?}")
                };
                let compressed = kind.compress(level, cluster).unwrap();
                storage.write_all_at(&compressed, host.0).unwrap();
                let len = compressed.len() as u64;
                let entry = L2Mapping::Compressed(CompressedCluster { host, len }).encode(options.geometry());
                storage
                    .write_all_at(&entry.to_be_bytes(), table + index as u64 * 8)
                    .unwrap();
            }
            std::fs::write(directory.path().join("image"), storage.to_vec()).unwrap();
            std::fs::write(directory.path().join("disk"), disk).unwrap();
            qemu_img(
                directory.path(),
                &["compare", "-f", "qcow2", "-F", "raw", "image", "disk"],
            );
        }
    }
}

proptest! {
    #[test]
    fn garbage_is_never_more_than_an_error(
        zstd: bool,
        magic: bool,
        mut bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let kind = if zstd { CompressionType::Zstd } else { CompressionType::Zlib };
        if magic && bytes.len() > 4 {
            bytes[..4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
        }
        let _ = kind.decompress(&bytes, &mut [0; 4096]);
    }

    #[test]
    fn a_damaged_stream_is_never_more_than_an_error(zstd: bool, at: prop::sample::Index, bit in 0..8) {
        let kind = if zstd { CompressionType::Zstd } else { CompressionType::Zlib };
        let mut compressed = kind.compress(None, &cluster(4096)).unwrap();
        let at = at.index(compressed.len());
        compressed[at] ^= 1u8 << bit;
        let _ = kind.decompress(&compressed, &mut [0; 4096]);
    }
}
