//! Images that must not be opened, or not for writing: refused by name, and left as they are.

use std::fs;

use block::test_utils::Rng;
use block::{Access, ErrorKind};
use byteorder::{BE, ByteOrder};
use tests::{Lab, assert_reads_as};

/// Where the incompatible features are in the header.
const INCOMPATIBLE: usize = 72;

/// Sets bits of the incompatible features of the file `image`.
fn set_incompatible(lab: &Lab, bits: u64) {
    let mut bytes = lab.bytes("image");
    let set = BE::read_u64(&bytes[INCOMPATIBLE..]) | bits;
    BE::write_u64(&mut bytes[INCOMPATIBLE..], set);
    fs::write(lab.path("image"), bytes).expect("room for the image");
}

fn created(args: &[&str]) -> Lab {
    let lab = Lab::new();
    let mut all = vec![
        "create",
        "-q",
        "--object",
        "secret,id=key,data=secret",
        "-f",
        "qcow2",
    ];
    all.extend(args);
    all.extend(["image", "2M"]);
    lab.qemu_img(&all);
    lab
}

fn refuse(lab: &Lab, access: Access, kind: ErrorKind, words: &[&str]) {
    let before = lab.bytes("image");
    let error = lab.try_open("image", "qcow2", access).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    let path = lab.path("image");
    assert!(text.starts_with(path.to_str().expect("UTF-8")), "{text}");
    for word in words {
        assert!(text.contains(word), "{text}");
    }
    assert!(error.hint().is_some(), "{text}");
    assert!(lab.bytes("image") == before, "the file has changed");
}

fn refuse_both(lab: &Lab, words: &[&str]) {
    refuse(lab, Access::READ, ErrorKind::Unsupported, words);
    refuse(lab, Access::WRITE, ErrorKind::Unsupported, words);
}

/// Opened for reading it stays as it is; opened for writing, its refcounts are rebuilt.
#[test]
fn a_dirty_image_is_read_as_it_is_and_recovered_for_writing() {
    let lab = created(&["-o", "lazy_refcounts=on"]);
    lab.run("qemu-io", &["-c", "write -P 7 1M 64k", "image"]);
    set_incompatible(&lab, 1 << 0);
    let before = lab.bytes("image");
    let chain = lab.open("image", "qcow2", Access::READ);
    let expected = lab.qemu_reads("image", "qcow2", &["-U"]);
    assert_reads_as(&**chain.active(), &*expected, &mut Rng::new(1));
    drop(chain);
    assert!(lab.bytes("image") == before, "the file has changed");
    drop(lab.open("image", "qcow2", Access::WRITE));
    lab.assert_clean("image");
    assert_eq!(lab.bytes("image")[INCOMPATIBLE + 7] & 1, 0, "still marked dirty");
}

/// QEMU leaves the bit behind when it is killed, and refcounts that were never written.
#[test]
fn what_a_killed_qemu_leaves_is_recovered() {
    let lab = created(&["-o", "lazy_refcounts=on"]);
    lab.run(
        "qemu-io",
        &["-c", "write -P 7 1M 64k", "-c", "sigraise 9", "image"],
    );
    assert_eq!(lab.bytes("image")[INCOMPATIBLE + 7] & 1, 1, "not dirty");
    let chain = lab.open("image", "qcow2", Access::WRITE);
    let mut seen = [0; 512];
    chain.read_at(&mut seen, 1 << 20).expect("a read");
    assert_eq!(seen, [7; 512]);
    chain.write_at(&[8; 512], 0).expect("a write");
    chain.flush().expect("a flush");
    chain.read_at(&mut seen, 1 << 20).expect("a read");
    assert_eq!(seen, [7; 512], "the old cluster was given out again");
    drop(chain);
    lab.assert_clean("image");
}

#[test]
fn a_corrupt_image_is_read_and_not_written_to() {
    let lab = created(&[]);
    lab.run("qemu-io", &["-c", "write -P 7 1M 64k", "image"]);
    set_incompatible(&lab, 1 << 1);
    refuse(&lab, Access::WRITE, ErrorKind::Corrupt, &["marked corrupt"]);
    let chain = lab.open("image", "qcow2", Access::READ);
    let mut seen = [0; 512];
    chain.read_at(&mut seen, 1 << 20).expect("a read");
    assert_eq!(seen, [7; 512]);
}

#[test]
fn unknown_features_are_named_by_number() {
    let lab = created(&[]);
    set_incompatible(&lab, 1 << 17 | 1 << 63);
    refuse_both(&lab, &["incompatible bit 17", "incompatible bit 63"]);
}

#[test]
fn unknown_features_are_named_as_the_image_names_them() {
    let lab = created(&[]);
    // The name of a known feature becomes that of an unknown one.
    let mut bytes = lab.bytes("image");
    let at = bytes
        .windows(9)
        .position(|window| window == b"dirty bit")
        .expect("a feature name");
    bytes[at - 1] = 20;
    fs::write(lab.path("image"), bytes).expect("room for the image");
    set_incompatible(&lab, 1 << 20);
    refuse_both(&lab, &["\"dirty bit\"", "incompatible bit 20"]);
}

#[test]
fn encryption_is_named_where_there_is_no_key() {
    let luks = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    let aes = "encrypt.format=aes,encrypt.key-secret=key";
    for (options, words) in [(luks, "encrypted with LUKS"), (aes, "encrypted with AES")] {
        let lab = created(&["-o", options]);
        refuse(&lab, Access::READ, ErrorKind::Key, &[words, "no passphrase"]);
        refuse(&lab, Access::WRITE, ErrorKind::Key, &[words, "no passphrase"]);
    }
}

#[test]
fn a_missing_data_file_is_named() {
    let lab = created(&["-o", "data_file=data"]);
    fs::remove_file(lab.path("data")).expect("QEMU has made it");
    for access in [Access::READ, Access::WRITE] {
        let error = lab.try_open("image", "qcow2", access).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("image: cannot open the data file \"data\""),
            "{text}"
        );
    }
}
