//! What guests ask of disks.

use std::sync::OnceLock;

use block::test_utils::Rng;
use block::{BlockDevice, Result, ZeroMode};

use crate::{Model, Shape};

/// Bytes of [`Fill::Noise`] before it repeats.
const NOISE: usize = 64 << 10;

/// Most bytes of one request, unless a cluster is longer.
const MOST: u64 = 256 << 10;

/// What a write writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// One byte throughout; 0 is data that happens to be zeros.
    Byte(u8),
    /// Bytes that do not compress, the same for every write.
    Noise,
}

impl Fill {
    fn random(rng: &mut Rng) -> Self {
        match rng.below(8) {
            0 => Self::Byte(0),
            1 | 2 => Self::Noise,
            _ => Self::Byte(rng.below(255) as u8 + 1),
        }
    }

    /// `len` bytes.
    pub fn bytes(self, len: u64) -> Vec<u8> {
        match self {
            Self::Byte(byte) => vec![byte; len as usize],
            Self::Noise => Self::noise().iter().copied().cycle().take(len as usize).collect(),
        }
    }

    /// What [`Noise`](Self::Noise) repeats.
    pub fn noise() -> &'static [u8] {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        BYTES.get_or_init(|| {
            let mut rng = Rng::new(0x6e6f_6973);
            (0..NOISE / 8)
                .flat_map(|_| rng.next_u64().to_le_bytes())
                .collect()
        })
    }
}

/// One request to a disk. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of a range are named as ever")]
pub enum Request {
    /// Write data.
    Write { offset: u64, len: u64, fill: Fill },
    /// Write a cluster, compressed if that saves room. The cluster lies whole on the disk, or is its last.
    Compressed { offset: u64, len: u64, fill: Fill },
    /// Write zeroes, giving room back if `unmap`.
    Zero { offset: u64, len: u64, unmap: bool },
    /// Discard.
    Discard { offset: u64, len: u64 },
}

impl Request {
    /// A request to a disk of `size` bytes, not 0.
    pub fn random(shape: Shape, size: u64, rng: &mut Rng) -> Self {
        let (offset, len) = range(shape, size, rng);
        match rng.below(12) {
            0 | 1 => Self::Zero {
                offset,
                len,
                unmap: rng.coin(),
            },
            2 | 3 => Self::random_discard(shape, offset, len),
            4 | 5 => {
                let start = offset / shape.cluster_size() * shape.cluster_size();
                Self::Compressed {
                    offset: start,
                    len: shape.cluster_size().min(size - start),
                    fill: Fill::random(rng),
                }
            }
            _ => Self::Write {
                offset,
                len,
                fill: Fill::random(rng),
            },
        }
    }

    /// Where there are subclusters, of whole clusters: parts of them QEMU leaves as they are, and we do not.
    fn random_discard(shape: Shape, offset: u64, len: u64) -> Self {
        if !shape.extended_l2 {
            return Self::Discard { offset, len };
        }
        let cluster = shape.cluster_size();
        let start = offset.next_multiple_of(cluster);
        match (offset + len) / cluster * cluster {
            end if start < end => Self::Discard {
                offset: start,
                len: end - start,
            },
            _ => Self::Zero {
                offset,
                len,
                unmap: true,
            },
        }
    }

    /// As a command of `qemu-io`, run where a file `noise` lies.
    pub fn qemu_io(self) -> String {
        let filled = |fill| match fill {
            Fill::Byte(byte) => format!("-P {byte}"),
            Fill::Noise => "-s noise".to_owned(),
        };
        match self {
            Self::Write { offset, len, fill } => format!("write {} {offset} {len}", filled(fill)),
            Self::Compressed { offset, len, fill } => format!("write -c {} {offset} {len}", filled(fill)),
            Self::Zero { offset, len, unmap } => {
                format!("write -z {} {offset} {len}", if unmap { "-u" } else { "" })
            }
            Self::Discard { offset, len } => format!("discard {offset} {len}"),
        }
    }

    /// Makes the request of `device`.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn apply(self, device: &dyn BlockDevice) -> Result<()> {
        match self {
            Self::Write { offset, len, fill } => device.write_at(&fill.bytes(len), offset),
            Self::Compressed { offset, len, fill } => {
                let bytes = fill.bytes(len);
                let (Some(writer), Some(size)) = (device.compressed(), device.info().cluster_size) else {
                    return device.write_at(&bytes, offset);
                };
                let mut cluster = bytes.clone();
                cluster.resize(size as usize, 0);
                match writer.compress(&cluster)? {
                    Some(compressed) => writer.write_compressed_at(&compressed, offset),
                    None => device.write_at(&bytes, offset),
                }
            }
            Self::Zero { offset, len, unmap } => {
                let mode = if unmap {
                    ZeroMode::Unmap
                } else {
                    ZeroMode::Allocate
                };
                device.zero_at(offset, len, mode)
            }
            Self::Discard { offset, len } => device.discard_at(offset, len),
        }
    }

    /// Does the same to a model of a disk in an image of `shape`. In version 2, over a backing file, a discard
    /// changes nothing: it could only bring back what lies below.
    pub fn model(self, model: &Model, shape: Shape, over_backing: bool) {
        match self {
            Self::Write { offset, len, fill } | Self::Compressed { offset, len, fill } => {
                model.write(&fill.bytes(len), offset);
            }
            Self::Zero { offset, len, .. } => model.zero(offset, len),
            Self::Discard { .. } if shape.v2 && over_backing => {}
            Self::Discard { offset, len } => model.discard(offset, len, shape.cluster_size()),
        }
    }
}

/// A range of a disk: anywhere, often aligned to clusters, and often close to where an L2 table ends.
fn range(shape: Shape, size: u64, rng: &mut Rng) -> (u64, u64) {
    let cluster = shape.cluster_size();
    let mut start = rng.below(size);
    let border = start / shape.l2_coverage() * shape.l2_coverage();
    match rng.below(4) {
        0 => start = start / cluster * cluster,
        1 if border > 2 * cluster => start = border - cluster - rng.below(cluster),
        // Near the front and near each other, on disks that are mostly empty.
        2 => start %= MOST.max(4 * cluster),
        _ => {}
    }
    let len = match rng.below(4) {
        0 => 1 + rng.below(2000),
        1 => cluster * (1 + rng.below(3)),
        _ => 1 + rng.below(MOST.max(2 * cluster)),
    };
    (start, len.min(size - start))
}
