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

#[cfg(test)]
mod tests;

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

/// Clusters under this many bytes have so few matches that deflate must look for them harder.
const SMALL_CLUSTER: usize = 16 << 10;

impl CompressionType {
    /// The name on command lines and in `info`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// Levels that [`compress`](Self::compress) tells apart, from fast to small; deflate's are libdeflate's.
    pub fn levels(self) -> RangeInclusive<i32> {
        match self {
            Self::Zlib => 1..=12,
            Self::Zstd => 1..=22,
        }
    }

    /// The level for clusters of `cluster_size` bytes where none is asked for: the fastest one that makes files of
    /// programs and libraries no larger than QEMU makes them. In clusters of 64 KiB, deflate 1 missed that by 2 %,
    /// deflate 2 is 3 % smaller, and Zstandard 3 is equal.
    pub fn default_level(self, cluster_size: usize) -> i32 {
        match self {
            Self::Zlib if cluster_size < SMALL_CLUSTER => 5,
            Self::Zlib => 2,
            Self::Zstd => 3,
        }
    }

    /// Compresses a cluster at a level (clamped to [`levels`](Self::levels)) or the default one. `None` unless
    /// that makes it smaller.
    pub fn compress(self, level: Option<i32>, cluster: &[u8]) -> Option<Vec<u8>> {
        let levels = self.levels();
        let level = level
            .unwrap_or(self.default_level(cluster.len()))
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
