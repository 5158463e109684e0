//! Sequences of requests against a vector of bytes, over every cluster size and refcount width, judged by QEMU.

mod common;

use std::ops::Range;
use std::sync::Arc;

use block::{BackingReference, BlockDevice, ExtentState, MemStorage, Overlay, Resize, ZeroMode};
use common::Bytes;
use encryption::CipherSpec;
use proptest::prelude::*;
use proptest::sample::Index;
use qcow2::{CreateOptions, NewEncryption, Version};

/// What an image is like.
#[derive(Clone, Debug)]
struct Shape {
    cluster_bits: u32,
    refcount_order: u32,
    v2: bool,
    zstd: bool,
    extended_l2: bool,
    encryption: Option<NewEncryption>,
    /// Length of the disk, in sectors.
    sectors: u64,
    /// Length of the backing file, in bytes.
    backing: Option<u64>,
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: Index, len: Index, byte: u8 },
    Zero { at: Index, len: Index, unmap: bool },
    Discard { at: Index, len: Index },
    Compressed { at: Index, byte: u8 },
    Resize { sectors: Index, near: bool },
    Read { at: Index, len: Index },
    Flush,
    Reopen,
}

/// Clusters of the largest disk, by cluster size: enough for several L2 tables where those are small.
fn most_sectors(cluster_bits: u32) -> u64 {
    let clusters = if cluster_bits < 12 {
        200
    } else if cluster_bits < 18 {
        40
    } else {
        5
    };
    (clusters << cluster_bits) / 512
}

fn shape(extended_l2: bool) -> impl Strategy<Value = Shape> {
    (
        if extended_l2 { 14u32 } else { 9 }..=21,
        0u32..=6,
        any::<bool>(),
        any::<bool>(),
        any::<Index>(),
        any::<Option<Index>>(),
    )
        .prop_map(
            move |(cluster_bits, refcount_order, v2, zstd, sectors, backing)| {
                let most = most_sectors(cluster_bits);
                let v2 = v2 && !extended_l2;
                Shape {
                    cluster_bits,
                    refcount_order: if v2 { 4 } else { refcount_order },
                    v2,
                    zstd: zstd && !v2,
                    extended_l2,
                    encryption: None,
                    sectors: sectors.index(most as usize) as u64 + 1,
                    backing: backing.map(|index| index.index(most as usize * 512 * 5 / 4) as u64 + 1),
                }
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<Index>(), any::<Index>(), 1u8..).prop_map(|(at, len, byte)| Op::Write { at, len, byte }),
        2 => (any::<Index>(), any::<Index>(), any::<bool>()).prop_map(|(at, len, unmap)| Op::Zero { at, len, unmap }),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(at, len)| Op::Discard { at, len }),
        2 => (any::<Index>(), 1u8..).prop_map(|(at, byte)| Op::Compressed { at, byte }),
        2 => (any::<Index>(), any::<bool>()).prop_map(|(sectors, near)| Op::Resize { sectors, near }),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(at, len)| Op::Read { at, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

/// A range of a disk; lengths from one byte to half of it, short ones more often.
fn range(disk: &[u8], at: Index, len: Index, cluster: usize) -> Range<usize> {
    let start = at.index(disk.len());
    let longest = if len.index(3) == 0 {
        disk.len() / 2
    } else {
        3 * cluster
    };
    start..disk.len().min(start + 1 + len.index(longest.max(1)))
}

/// What an image and its model have in common.
struct Run {
    shape: Shape,
    storage: Arc<MemStorage>,
    backing: Option<Arc<dyn BlockDevice>>,
    backing_bytes: Option<Vec<u8>>,
    /// Closed and opened again now and then.
    image: Option<qcow2::Image>,
    model: Vec<u8>,
}

impl Run {
    fn new(shape: Shape) -> Self {
        let options = format!(
            "cluster_size={},refcount_bits={},compat={},compression_type={},extended_l2={}",
            1u64 << shape.cluster_bits,
            1u64 << shape.refcount_order,
            if shape.v2 { "0.10" } else { "1.1" },
            if shape.zstd { "zstd" } else { "zlib" },
            if shape.extended_l2 { "on" } else { "off" },
        );
        let size = shape.sectors * 512;
        let storage = Arc::new(match &shape.encryption {
            None => common::create(&options, size, shape.backing),
            Some(encryption) => common::created(&CreateOptions {
                size,
                version: if shape.v2 { Version::V2 } else { Version::V3 },
                cluster_bits: shape.cluster_bits,
                refcount_order: shape.refcount_order,
                extended_l2: shape.extended_l2,
                encryption: Some(encryption.clone()),
                backing: shape.backing.map(|_| BackingReference {
                    name: "base.raw".into(),
                    format: Some("raw".into()),
                }),
                ..CreateOptions::default()
            }),
        });
        let backing_bytes = shape.backing.map(|len| Bytes::pattern(len, 1).0);
        let backing = backing_bytes
            .clone()
            .map(|bytes| Arc::new(Bytes(bytes)) as Arc<dyn BlockDevice>);
        let mut model = backing_bytes.clone().unwrap_or_default();
        model.resize(size as usize, 0);
        let image = Some(common::open(storage.clone(), backing.as_ref()));
        Self {
            shape,
            storage,
            backing,
            backing_bytes,
            image,
            model,
        }
    }

    fn apply(&mut self, op: &Op) {
        let cluster = 1usize << self.shape.cluster_bits;
        match op {
            Op::Write { at, len, byte } => {
                let range = range(&self.model, *at, *len, cluster);
                let data: Vec<u8> = range.clone().map(|i| byte.wrapping_add((i / 3) as u8)).collect();
                self.image().write_at(&data, range.start as u64).expect("write");
                self.model[range].copy_from_slice(&data);
            }
            Op::Zero { at, len, unmap } => {
                let range = range(&self.model, *at, *len, cluster);
                let mode = if *unmap {
                    ZeroMode::Unmap
                } else {
                    ZeroMode::Allocate
                };
                self.image()
                    .zero_at(range.start as u64, range.len() as u64, mode)
                    .expect("zero");
                self.model[range].fill(0);
            }
            Op::Discard { at, len } => {
                let range = range(&self.model, *at, *len, cluster);
                self.discard(range);
            }
            Op::Compressed { at, byte } => self.write_compressed(*at, *byte),
            Op::Resize { sectors, near } => {
                let most = most_sectors(self.shape.cluster_bits);
                let sectors = if *near {
                    // Inside a cluster, or just over its edge.
                    (self.model.len() as u64 / 512 + sectors.index(9) as u64)
                        .saturating_sub(4)
                        .max(1)
                } else {
                    sectors.index(most as usize) as u64 + 1
                };
                let how = Resize {
                    shrink: true,
                    ..Resize::default()
                };
                self.image().resize(sectors * 512, how).expect("resize");
                self.model.resize(sectors as usize * 512, 0);
            }
            Op::Read { at, len } => {
                let range = range(&self.model, *at, *len, cluster);
                let mut buf = vec![0xaa; range.len()];
                self.image().read_at(&mut buf, range.start as u64).expect("read");
                assert!(buf == self.model[range.clone()], "read of {range:?} differs");
            }
            Op::Flush => self.image().flush().expect("flush"),
            Op::Reopen => self.reopen(),
        }
    }

    /// Whole subclusters read as zeros afterwards, but for those of a compressed cluster that stays.
    fn discard(&mut self, range: Range<usize>) {
        let cluster = 1usize << self.shape.cluster_bits;
        let unit = if self.shape.extended_l2 {
            cluster / 32
        } else {
            cluster
        };
        let start = range.start.next_multiple_of(unit);
        let end = if range.end == self.model.len() {
            range.end.next_multiple_of(cluster)
        } else {
            range.end / unit * unit
        };
        let mut zeroed = Vec::new();
        let clusters = (start / cluster * cluster..end).step_by(cluster);
        for at in clusters.filter(|_| start < end && !(self.shape.v2 && self.backing.is_some())) {
            let extent = self.image().own_extent_at(at as u64, 1).expect("extent");
            let part = start.max(at)..end.min(at + cluster);
            if extent.state != ExtentState::Compressed || part.len() == cluster {
                zeroed.push(part.start.min(self.model.len())..part.end.min(self.model.len()));
            }
        }
        self.image()
            .discard_at(range.start as u64, range.len() as u64)
            .expect("discard");
        for part in zeroed {
            self.model[part].fill(0);
        }
    }

    fn write_compressed(&mut self, at: Index, byte: u8) {
        let cluster = 1usize << self.shape.cluster_bits;
        let start = at.index(self.model.len()) / cluster * cluster;
        let end = self.model.len().min(start + cluster);
        let mut data: Vec<u8> = (0..cluster).map(|i| byte.wrapping_add((i / 100) as u8)).collect();
        data[end - start..].fill(0);
        let compressed = match self.image().compressed() {
            Some(writer) => writer
                .compress(&data)
                .expect("compress")
                .map(|data| (writer, data)),
            None => None,
        };
        assert_eq!(
            self.image().compressed().is_none(),
            self.shape.encryption.is_some()
        );
        match compressed {
            Some((writer, compressed)) => writer
                .write_compressed_at(&compressed, start as u64)
                .expect("write compressed"),
            None => self
                .image()
                .write_at(&data[..end - start], start as u64)
                .expect("write"),
        }
        self.model[start..end].copy_from_slice(&data[..end - start]);
    }

    fn image(&self) -> &qcow2::Image {
        self.image.as_ref().expect("open")
    }

    fn close(&mut self) {
        self.image.take().expect("open").close().expect("close");
    }

    fn reopen(&mut self) {
        self.close();
        self.image = Some(common::open(self.storage.clone(), self.backing.as_ref()));
    }

    fn finish(mut self) {
        self.reopen();
        let mut disk = vec![0xaa; self.model.len()];
        self.image().read_at(&mut disk, 0).expect("read");
        assert!(disk == self.model, "the disk differs from the model");
        self.close();
        let file = self.storage.to_vec();
        let (code, words) = common::qemu_check(&file);
        assert_eq!(code, 0, "{words}");
        let seen = common::qemu_read(&file, self.backing_bytes.as_deref());
        assert!(seen == self.model, "QEMU reads something else");
    }
}

fn run(shape: Shape, ops: &[Op]) {
    let mut run = Run::new(shape);
    for op in ops {
        run.apply(op);
    }
    run.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_requests_leaves_what_a_vector_would_hold(
        shape in shape(false),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        run(shape, &ops);
    }

    #[test]
    fn so_does_any_sequence_of_requests_with_subclusters(
        shape in shape(true),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        run(shape, &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn so_does_any_sequence_of_requests_on_an_encrypted_image(
        shape in any::<bool>().prop_flat_map(shape),
        luks in any::<bool>(),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let encryption = if luks { common::luks(CipherSpec::default()) } else { common::aes() };
        run(Shape { encryption: Some(encryption), ..shape }, &ops);
    }
}
