//! Compressed clusters: one cluster of guest data each, as a raw deflate stream or a Zstandard frame (header field
//! `compression_type`; "Compressed Clusters Descriptor").
//!
//! A stored length is known in sectors only, so that what is decoded may be followed by anything: decoding stops
//! with the stream or the frame, and must have produced exactly one cluster. Lengths inside a stream allocate
//! nothing, since the output is always a buffer of one cluster.
//!
//! Deflate streams made here may look back 32 KiB, as the format allows, and not only 4 KiB as those that QEMU
//! makes: readers decode a cluster in one call, where the output is the window.
//!
//! Compressors and decompressors take long to make, compared with a cluster, so that each thread keeps its own.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use flate2::{Decompress, FlushDecompress};
use libdeflater::{CompressionLvl, Compressor, Decompressor};
use zstd::{bulk, zstd_safe};

use crate::corruption::Corruption;

/// How the compressed clusters of an image are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CompressionType {
    /// Deflate without a zlib header, whatever QEMU's name for it says. Every reader knows it.
    #[default]
    Zlib,
    /// Zstandard. Version 3 only, and QEMU 5.1 or later.
    Zstd,
}

/// Level for deflate (libdeflate's scale) where none is asked for.
const DEFAULT_DEFLATE_LEVEL: i32 = 1;
/// Level for Zstandard where none is asked for.
const DEFAULT_ZSTD_LEVEL: i32 = 3;

impl CompressionType {
    /// The name on command lines and in `info`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// Levels that [`compress`](Self::compress) tells apart, from fast to small.
    pub fn levels(self) -> RangeInclusive<i32> {
        match self {
            Self::Zlib => 1..=12,
            Self::Zstd => 1..=22,
        }
    }

    /// The level where none is asked for: files no larger than QEMU's, and as fast as that can be.
    pub fn default_level(self) -> i32 {
        match self {
            Self::Zlib => DEFAULT_DEFLATE_LEVEL,
            Self::Zstd => DEFAULT_ZSTD_LEVEL,
        }
    }

    /// Compresses a cluster at a level (clamped to [`levels`](Self::levels)) or the default one. `None` unless
    /// that makes it smaller.
    pub fn compress(self, level: Option<i32>, cluster: &[u8]) -> Option<Vec<u8>> {
        let levels = self.levels();
        let level = level
            .unwrap_or(self.default_level())
            .clamp(*levels.start(), *levels.end());
        let mut out = vec![0; cluster.len().checked_sub(1)?];
        let len = match self {
            Self::Zlib => deflate(level, cluster, &mut out),
            Self::Zstd => zstd_compress(level, cluster, &mut out),
        }?;
        out.truncate(len);
        Some(out)
    }

    /// Decompresses a cluster: fills `out`, which is exactly one cluster long, from the start of `compressed`.
    /// What follows the stream there is ignored.
    ///
    /// # Errors
    /// `Corrupt` for a stream that is damaged, cut off, or too short for a cluster.
    pub fn decompress(self, compressed: &[u8], out: &mut [u8]) -> block::Result<()> {
        let filled = match self {
            Self::Zlib => inflate(compressed, out),
            Self::Zstd => zstd_decompress(compressed, out),
        };
        match filled {
            Some(len) if len == out.len() => Ok(()),
            filled => Err(block::Error::from(Corruption::CompressedData {
                compression: self.name(),
                compressed: compressed.len() as u64,
                cluster_size: out.len() as u64,
                problem: match filled {
                    Some(_) => "the stream ends too early",
                    None => "the stream is damaged or cut off",
                },
            })),
        }
    }

    /// Byte 104 of the header.
    pub(crate) fn decode(compression_type: u8) -> Option<Self> {
        match compression_type {
            0 => Some(Self::Zlib),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Byte 104 of the header.
    pub(crate) fn encode(self) -> u8 {
        match self {
            Self::Zlib => 0,
            Self::Zstd => 1,
        }
    }
}

thread_local! {
    static DEFLATE: RefCell<Option<(i32, Compressor)>> = const { RefCell::new(None) };
    static INFLATE: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
    static INFLATE_UNTERMINATED: RefCell<Option<Decompress>> = const { RefCell::new(None) };
    static ZSTD_COMPRESS: RefCell<Option<(i32, bulk::Compressor<'static>)>> = const { RefCell::new(None) };
    static ZSTD_DECOMPRESS: RefCell<Option<bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Length of the stream, or `None` if it does not fit `out`.
fn deflate(level: i32, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
    DEFLATE.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|(of, _)| *of != level) {
            *kept = Some((level, Compressor::new(CompressionLvl::new(level).ok()?)));
        }
        let (_, compressor) = kept.as_mut()?;
        compressor.deflate_compress(cluster, out).ok()
    })
}

/// Bytes of `out` that the stream fills, or `None` if it is damaged.
fn inflate(compressed: &[u8], out: &mut [u8]) -> Option<usize> {
    let whole = INFLATE.with_borrow_mut(|kept| {
        kept.get_or_insert_with(Decompressor::new)
            .deflate_decompress(compressed, out)
            .ok()
    });
    whole.or_else(|| inflate_unterminated(compressed, out))
}

/// For streams that have no last block, or go on after a cluster: valid, since "decompression stops when it has
/// produced a cluster of data", and refused by libdeflate, which wants to see a stream's end.
fn inflate_unterminated(compressed: &[u8], out: &mut [u8]) -> Option<usize> {
    INFLATE_UNTERMINATED.with_borrow_mut(|kept| {
        let inflater = kept.get_or_insert_with(|| Decompress::new(false));
        inflater.reset(false);
        // An error after the last byte that is wanted is none: those bytes may be another cluster's.
        let result = inflater.decompress(compressed, out, FlushDecompress::None);
        let filled = inflater.total_out() as usize;
        (result.is_ok() || filled == out.len()).then_some(filled)
    })
}

/// Length of the frame, or `None` if it does not fit `out`.
fn zstd_compress(level: i32, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
    ZSTD_COMPRESS.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|(of, _)| *of != level) {
            *kept = Some((level, bulk::Compressor::new(level).ok()?));
        }
        let (_, compressor) = kept.as_mut()?;
        compressor.compress_to_buffer(cluster, out).ok()
    })
}

/// Bytes of `out` that the frame fills, or `None` if it is damaged.
fn zstd_decompress(compressed: &[u8], out: &mut [u8]) -> Option<usize> {
    let frame = zstd_safe::find_frame_compressed_size(compressed).ok()?;
    ZSTD_DECOMPRESS.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = Some(bulk::Decompressor::new().ok()?);
        }
        let decompressor = kept.as_mut()?;
        decompressor
            .decompress_to_buffer(compressed.get(..frame)?, out)
            .ok()
    })
}

#[cfg(test)]
mod tests {
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
            for bits in [9, 12, 16, 21] {
                let cluster = cluster(1 << bits);
                for level in kind
                    .levels()
                    .step_by(4)
                    .map(Some)
                    .chain([None, Some(-1), Some(99)])
                {
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
            let compressed = kind.compress(None, &[1; 65_536]).unwrap();
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

    /// 30 clusters, each different.
    fn disk(cluster_size: usize) -> Vec<u8> {
        let mut disk = Vec::new();
        for number in 0..30 {
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
                    compressed > 20,
                    "{options}: only {compressed} clusters are compressed"
                );
            }
        }
    }

    #[test]
    fn qemu_img_reads_the_clusters_compressed_here() {
        let directory = tempfile::tempdir().unwrap();
        for (kind, level) in BOTH.into_iter().flat_map(|kind| [(kind, None), (kind, Some(12))]) {
            for cluster_bits in [9, 16, 21] {
                let options = CreateOptions {
                    size: 30 << cluster_bits,
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
                for (index, (mapping, cluster)) in
                    mappings.iter().zip(disk.chunks(1 << cluster_bits)).enumerate()
                {
                    let &L2Mapping::Standard { host, .. } = mapping else {
                        panic!("{mapping:?}")
                    };
                    let compressed = kind.compress(level, cluster).unwrap();
                    storage.write_all_at(&compressed, host.0).unwrap();
                    let len = compressed.len() as u64;
                    let entry =
                        L2Mapping::Compressed(CompressedCluster { host, len }).encode(options.geometry());
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
}
