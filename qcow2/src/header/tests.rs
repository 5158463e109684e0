use std::path::Path;
use std::process::Command;

use block::{BackingReference, ErrorKind};
use byteorder::{BE, ByteOrder};
use proptest::prelude::*;

use super::*;
use crate::extension::UnknownExtension;

/// What qemu-img makes with `options`, named `name`, in a directory with a file `base.qcow2`.
fn qemu_create(directory: &Path, options: &[&str]) -> Vec<u8> {
    let run = |args: &[&str]| {
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args(args)
            .current_dir(directory)
            .output()
            .expect("qemu-img must be installed");
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    if !directory.join("base.qcow2").exists() {
        run(&["base.qcow2", "1M"]);
    }
    run(&[options, &["image.qcow2", "64M"]].concat());
    std::fs::read(directory.join("image.qcow2")).unwrap()
}

fn parse(image: &[u8]) -> Result<Header> {
    Header::parse(image, image.len() as u64)
}

/// A small valid image: the header of `qemu-img create`, and as much of the file as it refers to.
fn image() -> Vec<u8> {
    let mut header = vec![0; 0x3_0008];
    header[..4].copy_from_slice(&MAGIC);
    BE::write_u32(&mut header[4..], 3);
    BE::write_u32(&mut header[20..], 16);
    BE::write_u64(&mut header[24..], 64 << 20);
    BE::write_u32(&mut header[36..], 1);
    BE::write_u64(&mut header[40..], 0x3_0000);
    BE::write_u64(&mut header[48..], 0x1_0000);
    BE::write_u32(&mut header[56..], 1);
    BE::write_u32(&mut header[96..], 4);
    BE::write_u32(&mut header[100..], 112);
    header
}

#[test]
fn headers_of_qemu_img_survive_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let long = format!("./{}base.qcow2", "././".repeat(60));
    let mut variants: Vec<Vec<String>> = vec![];
    for compat in ["0.10", "1.1"] {
        for cluster_bits in MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS {
            let options = format!("compat={compat},cluster_size={}", 1u64 << cluster_bits);
            variants.push(vec!["-o".into(), options.clone()]);
            for name in ["base.qcow2", &long] {
                let backing = ["-b", name, "-F", "qcow2", "-o", &options];
                variants.push(backing.map(String::from).to_vec());
            }
        }
    }
    for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
        variants.push(vec!["-o".into(), format!("refcount_bits={refcount_bits}")]);
    }
    for options in [
        "lazy_refcounts=on",
        "compression_type=zstd",
        "extended_l2=on",
        "data_file=data.raw",
        "data_file=data.raw,data_file_raw=on",
    ] {
        variants.push(vec!["-o".into(), options.into()]);
    }
    for variant in variants {
        let options: Vec<&str> = variant.iter().map(String::as_str).collect();
        let bytes = qemu_create(directory.path(), &options);
        let header = parse(&bytes).unwrap_or_else(|error| panic!("{variant:?}: {error}"));
        let encoded = header.encode().unwrap();
        assert!(bytes.starts_with(&encoded), "{variant:?}");
        let rest = &bytes[encoded.len()..header.geometry.cluster_size() as usize];
        assert!(rest.iter().all(|byte| *byte == 0), "{variant:?}");
        assert_eq!(parse(&encoded_image(&encoded, bytes.len())).unwrap(), header);
    }
}

fn encoded_image(encoded: &[u8], len: usize) -> Vec<u8> {
    let mut image = encoded.to_vec();
    image.resize(len, 0);
    image
}

#[test]
fn reads_what_qemu_img_was_told() {
    let directory = tempfile::tempdir().unwrap();
    let options = "lazy_refcounts=on,compression_type=zstd,refcount_bits=8,cluster_size=2M";
    let args = ["-b", "base.qcow2", "-F", "qcow2", "-o", options];
    let header = parse(&qemu_create(directory.path(), &args)).unwrap();
    assert_eq!(header.version, Version::V3);
    assert_eq!(header.size, 64 << 20);
    assert_eq!(
        (header.geometry.cluster_bits, header.geometry.refcount_order),
        (21, 3)
    );
    assert_eq!(header.compatible, CompatibleFeatures::LAZY_REFCOUNTS);
    assert_eq!(header.compression, CompressionType::Zstd);
    assert_eq!(
        header.backing(),
        Some(BackingReference {
            name: "base.qcow2".into(),
            format: Some("qcow2".into())
        })
    );
    assert!(header.unsupported(true).is_none());
}

#[test]
fn keeps_what_it_does_not_know() {
    let mut bytes = image();
    BE::write_u32(&mut bytes[100..], 128);
    bytes[112..128].copy_from_slice(b"fields of future");
    BE::write_u64(&mut bytes[80..], 1 << 40);
    BE::write_u64(&mut bytes[88..], 1 << 41);
    BE::write_u32(&mut bytes[128..], 0xdead_beef);
    BE::write_u32(&mut bytes[132..], 3);
    bytes[136..139].copy_from_slice(b"odd");
    let mut header = parse(&bytes).unwrap();
    let unknown = UnknownExtension {
        kind: 0xdead_beef,
        data: b"odd".to_vec(),
    };
    assert_eq!(header.extensions.unknown, [unknown]);
    assert_eq!(header.encode().unwrap(), bytes[..512]);
    assert!(header.clear_autoclear());
    assert!(!header.clear_autoclear());
    assert_eq!(header.encode().unwrap()[112..], bytes[112..512]);
}

#[test]
fn a_backing_name_that_does_not_fit_is_refused_and_one_that_does_is_found_again() {
    let mut bytes = image();
    BE::write_u32(&mut bytes[20..], 9);
    BE::write_u64(&mut bytes[24..], 0);
    let mut header = parse(&bytes).unwrap();
    let reference = |len| BackingReference {
        name: "n".repeat(len),
        format: Some("raw".into()),
    };
    let room = 512 - 112 - 16 - 8;
    header.set_backing(Some(reference(room)));
    let encoded = header.encode().unwrap();
    assert_eq!(encoded.len(), 512);
    let read = Header::parse(&encoded, bytes.len() as u64).unwrap();
    assert_eq!(read.backing(), Some(reference(room)));
    header.set_backing(Some(reference(room + 1)));
    assert_eq!(header.encode().unwrap_err().kind(), ErrorKind::InvalidInput);

    let mut header = parse(&image()).unwrap();
    header.set_backing(Some(reference(MAX_BACKING_NAME + 1)));
    assert_eq!(header.encode().unwrap_err().kind(), ErrorKind::InvalidInput);
    header.set_backing(None);
    assert_eq!(header.encode().unwrap(), image()[..512]);
}

#[test]
fn never_writes_a_header_it_would_not_read() {
    let change = |change: fn(&mut Header)| {
        let mut header = parse(&image()).unwrap();
        change(&mut header);
        header.encode().unwrap_err()
    };
    for error in [
        change(|header| header.compression = CompressionType::Zstd),
        change(|header| header.geometry.extended_l2 = true),
        change(|header| header.version = Version::V2),
        change(|header| header.size = 1 << 40),
        change(|header| header.refcount_table_offset = header.l1_offset),
        change(|header| header.backing_name = Some(String::new())),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}

/// Each hazard: where to write what, and the words that the message must have.
#[test]
fn refuses_each_contradiction_by_name() {
    let u32s: &[(usize, u32, &str)] = &[
        (20, 8, "cluster_bits is 8"),
        (20, 22, "cluster_bits is 22"),
        (16, 0, ""),
        (36, 0, "needs more L1 entries"),
        (36, (4 << 20) + 1, "32 MiB"),
        (36, 1 << 20, "past the end of the file"),
        (56, 0, "every image has a refcount table"),
        (56, 129, "8 MiB"),
        (56, 3, "past the end of the file"),
        (60, 65_537, "nb_snapshots is 65537"),
        (60, 1, "snapshots_offset is 0x0"),
        (96, 7, "refcount_order is 7"),
        (100, 96, "header_length is 96"),
        (100, 105, "header_length is 105"),
        (100, 0x1_0008, "header_length is 65544"),
        (32, 2, "crypt_method is 2"),
    ];
    let u64s: &[(usize, u64, &str)] = &[
        (8, 0x1_0001, "backing_file_offset is 0x10001"),
        (8, 100, "backing_file_offset is 0x64"),
        (24, 1 << 40, "needs more L1 entries"),
        (24, u64::MAX, "needs more L1 entries"),
        (40, 0, "l1_table_offset is 0x0"),
        (40, 0x3_0200, "multiple of the cluster size"),
        (40, 0x4_0000, "past the end of the file"),
        (40, 0xffff_ffff_ffff_0000, "past the end of the file"),
        (40, 0x1_0000, "overlap at 0x10000"),
        (48, 0, "refcount_table_offset is 0x0"),
        (48, 0x1_0001, "multiple of the cluster size"),
        (88, 1, "needs the bitmaps extension"),
        (88, 2, "needs an external data file"),
        (72, 8, "compression_type is 0"),
    ];
    let check = |bytes: &[u8], words: &str| match parse(bytes) {
        Ok(_) => assert_eq!(words, ""),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(!words.is_empty() && error.to_string().contains(words), "{error}");
        }
    };
    for (at, value, words) in u32s {
        let mut bytes = image();
        BE::write_u32(&mut bytes[*at..], *value);
        check(&bytes, words);
    }
    for (at, value, words) in u64s {
        let mut bytes = image();
        BE::write_u64(&mut bytes[*at..], *value);
        check(&bytes, words);
    }
    let mut name = image();
    BE::write_u64(&mut name[8..], 200);
    BE::write_u32(&mut name[16..], 1024);
    check(&name, "backing_file_size is 1024");
    let mut compression = image();
    compression[104] = 1;
    check(&compression, "compression_type is 1");
    for len in [4, 7, 20, 71, 103] {
        check(&image()[..len], "the header is cut off");
    }
}

#[test]
fn refuses_by_name_what_it_cannot_do() {
    let mut version = image();
    let refuse = |bytes: &[u8], kind: ErrorKind, words: &str| {
        let error = parse(bytes).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    for number in [0, 1, 4] {
        BE::write_u32(&mut version[4..], number);
        refuse(&version, ErrorKind::Unsupported, &format!("version {number}"));
    }
    refuse(b"", ErrorKind::InvalidInput, "empty");
    refuse(b"\0\0", ErrorKind::InvalidInput, "not a qcow2 image");
    refuse(&[0; 4096], ErrorKind::InvalidInput, "not a qcow2 image");

    let mut feature = image();
    BE::write_u64(&mut feature[72..], 1 << 9 | 1 << 50);
    BE::write_u32(&mut feature[112..], 0x6803_f857);
    BE::write_u32(&mut feature[116..], 48);
    feature[120..130].copy_from_slice(b"\0\x09time\x1bwar");
    let words = "\"time\\u{1b}war\" (incompatible bit 9), incompatible bit 50";
    refuse(&feature, ErrorKind::Unsupported, words);

    let mut encryption = image();
    BE::write_u32(&mut encryption[32..], 3);
    refuse(&encryption, ErrorKind::Unsupported, "method 3");
    BE::write_u32(&mut encryption[32..], 1);
    assert!(parse(&encryption).unwrap().unsupported(true).is_none());
    BE::write_u64(&mut encryption[24..], 513);
    let error = parse(&encryption).unwrap().unsupported(false).unwrap();
    assert!(error.to_string().contains("whole sector"), "{error}");

    let mut corrupt = image();
    BE::write_u64(&mut corrupt[72..], 1 << 1);
    let header = parse(&corrupt).unwrap();
    assert!(header.unsupported(false).is_none());
    assert!(header.unsupported(true).unwrap().to_string().contains("corrupt"));
}

#[test]
fn reads_a_first_cluster_that_is_longer_than_the_first_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = qemu_create(directory.path(), &["-o", "cluster_size=2M"]);
    let at = (1 << 21) - 4;
    bytes[at..1 << 21].copy_from_slice(b"base");
    BE::write_u64(&mut bytes[8..], at as u64);
    BE::write_u32(&mut bytes[16..], 4);
    let storage = block::MemStorage::from(bytes);
    assert_eq!(
        Header::read(&storage).unwrap().backing_name.as_deref(),
        Some("base")
    );
}

proptest! {
    #[test]
    fn parsing_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..2048), len: u64, valid: bool) {
        if valid && bytes.len() >= 104 {
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            let cluster_bits = 9 + u32::from(bytes[20]) % 13;
            BE::write_u32(&mut bytes[20..], cluster_bits);
            BE::write_u64(&mut bytes[72..], 0);
            BE::write_u32(&mut bytes[100..], 104);
        }
        let _ = Header::parse(&bytes, len);
    }

    #[test]
    fn what_parses_survives_a_round_trip(changes in prop::collection::vec((0usize..200, any::<u8>()), 0..6)) {
        let mut bytes = image();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(header) = parse(&bytes) {
            let encoded = header.encode().unwrap();
            prop_assert_eq!(parse(&encoded_image(&encoded, bytes.len())).unwrap(), header);
        }
    }
}
