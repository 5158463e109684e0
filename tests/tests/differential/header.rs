//! What a header holds and we do not know survives what we write, byte for byte.

use std::collections::BTreeMap;
use std::fs;

use block::test_utils::Rng;
use block::{Access, BlockDevice, Resize};
use byteorder::{BE, ByteOrder};
use tests::{Fill, Lab, Model, Request, Shape};

const COMPATIBLE: usize = 80;
const AUTOCLEAR: usize = 88;
const HEADER_LENGTH: usize = 100;
/// Bytes of the header that QEMU makes; what follows here is longer.
const KNOWN: usize = 112;
const LONGER: usize = 144;
/// A compatible feature and an autoclear one that nobody knows.
const FEATURE: u64 = 1 << 44;

const SHAPE: Shape = Shape {
    cluster_bits: 12,
    refcount_order: 4,
    v2: false,
    zstd: false,
    extended_l2: false,
    lazy: false,
};

/// The extensions from `at` on, by type.
fn extensions(header: &[u8], mut at: usize) -> BTreeMap<u32, Vec<u8>> {
    let mut found = BTreeMap::new();
    loop {
        let (kind, len) = (
            BE::read_u32(&header[at..]),
            BE::read_u32(&header[at + 4..]) as usize,
        );
        if kind == 0 {
            return found;
        }
        found.insert(kind, header[at + 8..at + 8 + len].to_vec());
        at += 8 + len.next_multiple_of(8);
    }
}

fn push(header: &mut Vec<u8>, kind: u32, data: &[u8]) {
    header.extend_from_slice(&kind.to_be_bytes());
    header.extend_from_slice(&(data.len() as u32).to_be_bytes());
    header.extend_from_slice(data);
    header.resize(header.len().next_multiple_of(8), 0);
}

fn backing_name(header: &[u8]) -> &[u8] {
    let (at, len) = (
        BE::read_u64(&header[8..]) as usize,
        BE::read_u32(&header[16..]) as usize,
    );
    &header[at..at + len]
}

/// An overlay with a longer header, unknown extensions between known ones, and unknown feature bits.
fn strange_image(lab: &Lab, shape: Shape) -> Vec<u8> {
    lab.qemu_create("base", shape, 1 << 20, None);
    lab.qemu_create("image", shape, 1 << 20, Some(("base", "qcow2")));
    let mut bytes = lab.bytes("image");
    let (known, name) = (extensions(&bytes, KNOWN), backing_name(&bytes).to_vec());
    let mut header = bytes[..KNOWN].to_vec();
    header.resize(LONGER, 0x5c);
    push(&mut header, 0x1234_5678, b"an odd length");
    for (kind, data) in &known {
        push(&mut header, *kind, data);
    }
    push(&mut header, 0x0bad_cafe, b"");
    push(&mut header, 0x7fff_ffff, &[0xee; 99]);
    push(&mut header, 0, b"");
    let name_at = header.len();
    header.extend_from_slice(&name);
    BE::write_u64(&mut header[8..], name_at as u64);
    BE::write_u32(&mut header[HEADER_LENGTH..], LONGER as u32);
    BE::write_u64(&mut header[COMPATIBLE..], FEATURE);
    BE::write_u64(&mut header[AUTOCLEAR..], FEATURE);
    header.resize(shape.cluster_size() as usize, 0);
    bytes[..header.len()].copy_from_slice(&header);
    fs::write(lab.path("image"), &bytes).expect("room for the image");
    header
}

/// Everything unknown, and known, that must be as it was.
fn assert_kept(header: &[u8], before: &[u8]) {
    assert_eq!(BE::read_u64(&header[COMPATIBLE..]), FEATURE);
    assert_eq!(BE::read_u32(&header[HEADER_LENGTH..]) as usize, LONGER);
    assert_eq!(header[KNOWN..LONGER], before[KNOWN..LONGER]);
    assert_eq!(extensions(header, LONGER), extensions(before, LONGER));
    assert_eq!(backing_name(header), backing_name(before));
}

#[test]
fn what_is_unknown_survives_writes_and_growth() {
    let lab = Lab::new();
    let before = strange_image(&lab, SHAPE);
    let model = Model::new(1 << 20);

    // Reading, and asking to write, changes nothing.
    drop(lab.open("image", "qcow2", Access::WRITE));
    assert!(
        lab.bytes("image")[..before.len()] == before[..],
        "the header has changed"
    );

    let chain = lab.open("image", "qcow2", Access::WRITE);
    let device: &dyn BlockDevice = &**chain.active();
    let request = Request::Write {
        offset: 12_345,
        len: 50_000,
        fill: Fill::Noise,
    };
    request.apply(device).expect("write");
    request.model(&model, SHAPE, true);
    device.flush().expect("flush");
    let written = lab.bytes("image");
    assert_eq!(
        BE::read_u64(&written[AUTOCLEAR..]),
        0,
        "what we do not keep up, we clear"
    );
    assert_kept(&written, &before);

    // The L1 table moves, so most of the fixed header changes.
    device.resize(1 << 32, Resize::default()).expect("resize");
    model.resize(1 << 32);
    let request = Request::Write {
        offset: (1 << 32) - 5000,
        len: 5000,
        fill: Fill::Byte(9),
    };
    request.apply(device).expect("write");
    request.model(&model, SHAPE, true);
    device.flush().expect("flush");
    drop(chain);
    let grown = lab.bytes("image");
    assert_ne!(grown[36..48], before[36..48], "the L1 table");
    assert_kept(&grown, &before);

    lab.assert_clean("image");
    lab.assert_holds("image", "qcow2", &model, &mut Rng::new(1));
}

/// The refcount table of one small cluster counts 8 MiB: past that it moves, and the header says where to.
#[test]
fn what_is_unknown_survives_a_longer_refcount_table() {
    let lab = Lab::new();
    let shape = Shape {
        cluster_bits: 9,
        ..SHAPE
    };
    let before = strange_image(&lab, shape);
    let chain = lab.open("image", "qcow2", Access::WRITE);
    let size = 12 << 20;
    chain.resize(size, Resize::default()).expect("resize");
    let model = Model::new(size);
    for offset in (0..size).step_by(1 << 20) {
        let request = Request::Write {
            offset,
            len: 1 << 20,
            fill: Fill::Noise,
        };
        request.apply(&**chain.active()).expect("write");
        request.model(&model, shape, true);
    }
    chain.flush().expect("flush");
    drop(chain);
    let grown = lab.bytes("image");
    assert_ne!(grown[48..60], before[48..60], "the refcount table");
    assert_kept(&grown, &before);
    lab.assert_clean("image");
    lab.assert_holds("image", "qcow2", &model, &mut Rng::new(1));
}
