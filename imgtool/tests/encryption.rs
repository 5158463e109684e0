//! Encrypted images at the command line, beside qemu-img.

use std::fs;

use crate::common::Lab;
use serde_json::Value;

const LUKS: &str = "encrypt.format=luks,encrypt.iter-time=10";

/// A place with two passphrases, and files that hold them.
fn lab() -> Lab {
    let lab = Lab::new();
    fs::write(lab.path("one.key"), "correct horse").unwrap();
    fs::write(lab.path("two.key"), "battery staple").unwrap();
    lab
}

/// Words that name an encrypted image to QEMU, with the key in a file.
fn named(image: &str, key: &str) -> String {
    format!(
        "--object secret,id=s,file={key} --image-opts driver=qcow2,encrypt.key-secret=s,file.filename={image}"
    )
}

/// QEMU reads what is in `raw`.
fn assert_reads(lab: &Lab, image: &str, key: &str, raw: &str) {
    lab.qemu_img(&format!("convert {} -O raw theirs", named(image, key)));
    assert!(
        fs::read(lab.path("theirs")).unwrap() == fs::read(lab.path(raw)).unwrap(),
        "{image}"
    );
}

#[test]
fn images_are_converted_to_and_from_encrypted_ones() {
    let lab = lab();
    lab.raw("raw", 3 << 20, 1);
    for (name, options) in [
        ("luks", LUKS),
        (
            "small",
            "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=serpent-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1,cluster_size=4k",
        ),
        ("aes", "encrypt.format=aes,compat=0.10"),
        ("old", "encryption=on"),
        (
            "full",
            "encrypt.format=luks,encrypt.iter-time=10,preallocation=falloc",
        ),
    ] {
        lab.imgtool(&format!("convert -O qcow2 -o {options} --key one.key raw {name}"));
        assert_reads(&lab, name, "one.key", "raw");
        lab.imgtool(&format!("convert -O raw --key one.key {name} back"));
        assert!(fs::read(lab.path("back")).unwrap() == fs::read(lab.path("raw")).unwrap());
        lab.imgtool(&format!("compare --key one.key {name} raw"));
        lab.imgtool(&format!("check {name}"));
    }
    // From one key to another, and theirs to ours.
    lab.imgtool(&format!(
        "convert -O qcow2 -o {LUKS},encrypt.key=two.key --key one.key luks other"
    ));
    assert_reads(&lab, "other", "two.key", "raw");
    lab.qemu_img(&format!(
        "convert --object secret,id=s,file=two.key -O qcow2 -o {LUKS},encrypt.key-secret=s raw made"
    ));
    lab.imgtool("compare --key two.key made raw");
    lab.imgtool("compare --key one.key --key two.key luks other");
    lab.imgtool("dd --key one.key if=luks of=part bs=1M count=1");
    assert!(fs::read(lab.path("part")).unwrap() == fs::read(lab.path("raw")).unwrap()[..1 << 20]);
}

#[test]
fn each_layer_of_a_chain_may_have_a_key_of_its_own() {
    let lab = lab();
    lab.raw("raw", 3 << 20, 2);
    lab.imgtool(&format!("convert -O qcow2 -o {LUKS} --key one.key raw base"));
    lab.imgtool(&format!(
        "create -f qcow2 -b base -F qcow2 -o {LUKS},encrypt.key=two.key --key one.key top"
    ));
    lab.imgtool("compare --key one.key --key two.key top raw");
    lab.run("imgtool compare --key two.key top raw")
        .fails(2, &["base", "opens none"]);
    lab.run_words(&[
        "imgtool", "rebase", "--key", "one.key", "--key", "two.key", "-b", "", "top",
    ])
    .ok();
    lab.imgtool("compare --key two.key top raw");
}

#[test]
fn what_an_image_says_of_its_encryption_takes_no_key_and_is_what_qemu_says() {
    let lab = lab();
    for options in [
        LUKS,
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=twofish-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=cast5-128,encrypt.cipher-mode=cbc",
        "encrypt.format=aes",
    ] {
        let create = format!(
            "create -q -f qcow2 --object secret,id=s,file=one.key -o encrypt.key-secret=s,{options} x 1M"
        );
        lab.qemu_img(&create);
        let [mut ours, mut theirs] = lab.both("info --output json x");
        if options.contains("cast5") {
            for info in [&mut ours, &mut theirs] {
                info["format-specific"]["data"]["encrypt"]["cipher-alg"] = Value::Null;
            }
        } else {
            assert_eq!(lab.imgtool("info x"), lab.qemu_img("info x"));
        }
        assert_eq!(ours, theirs, "{options}");
        lab.imgtool("info --backing-chain x");
        lab.imgtool("check x");
        lab.imgtool("check -r all x");
    }
    let measure = format!("measure -O qcow2 -o {LUKS}");
    let theirs = lab.qemu_img(&format!(
        "{measure},encrypt.key-secret=s --object secret,id=s,file=one.key --size 1G"
    ));
    assert_eq!(lab.imgtool(&format!("{measure} --size 1G")), theirs);
}

#[test]
fn without_the_right_key_it_is_said_how_to_give_one() {
    let lab = lab();
    lab.raw("raw", 1 << 20, 3);
    lab.imgtool(&format!("convert -O qcow2 -o {LUKS} --key one.key raw x"));
    lab.imgtool("convert -O qcow2 -o encrypt.format=aes --key one.key raw aes");
    fs::write(lab.path("empty"), "").unwrap();
    let before = fs::read(lab.path("x")).unwrap();
    for (line, what) in [
        (
            "convert -O raw x y",
            &["x: the image is encrypted with LUKS", "--key FILE"][..],
        ),
        (
            "convert -O raw aes y",
            &["aes: the image is encrypted with AES", "--key FILE"],
        ),
        ("convert --key two.key -O raw x y", &["opens none", "newline"]),
        (
            "convert --key one.key --key two.key -O raw aes y",
            &["several passphrases", "give one"],
        ),
        ("convert --key none -O raw x y", &["none"]),
        ("convert --key empty -O raw x y", &["empty"]),
        ("map x", &["--key FILE"]),
        ("map --key one.key x", &["encrypted", "--output json"]),
        ("resize x 2M", &["--key FILE"]),
        ("amend -o lazy_refcounts=on x", &["--key FILE"]),
        ("amend --key one.key -o compat=0.10 x", &["encrypted"]),
        ("create -f qcow2 -o encrypt.format=luks y 1M", &["--key FILE"]),
        (
            "create -f qcow2 -o encrypt.format=luks --key one.key --key two.key y 1M",
            &["encrypt.key=FILE"],
        ),
        (
            "create -f qcow2 -o encrypt.format=luks2 --key one.key y 1M",
            &["luks2", "aes"],
        ),
        (
            "create -f qcow2 -o encrypt.cipher-alg=aes-256 --key one.key y 1M",
            &["encrypt.format=luks"],
        ),
        (
            "create -f qcow2 -o encrypt.format=luks,encrypt.cipher-alg=rot13 --key one.key y 1M",
            &["rot13", "aes-256"],
        ),
        (
            "create -f qcow2 -o encrypt.format=luks,encrypt.cipher-mode=ecb --key one.key y 1M",
            &["ecb", "xts and cbc"],
        ),
        (
            "create -f qcow2 -o encrypt.format=luks,encrypt.hash-alg=md5 --key one.key y 1M",
            &["md5", "sha256"],
        ),
        (
            "create -f qcow2 -o encrypt.format=luks,encrypt.iter-time=0 --key one.key y 1M",
            &["iter-time"],
        ),
        (
            "create -f qcow2 -o encrypt.format=luks,data_file=d,data_file_raw=on --key one.key y 1M",
            &["raw data file"],
        ),
        (
            "create -f qcow2 -o encrypt.format=aes,compat=0.10,preallocation=full --key one.key y 1M",
            &["zero clusters"],
        ),
        (
            "convert -c -O qcow2 -o encrypt.format=luks --key one.key raw y",
            &["encrypted", "compressed"],
        ),
        (
            "convert -O qcow2 -o encrypt.format=luks --key one.key raw -",
            &["one pass", "file"],
        ),
    ] {
        lab.run(&format!("imgtool {line}")).fails(1, what);
    }
    assert!(fs::read(lab.path("x")).unwrap() == before);
    assert_eq!(lab.names(), ["aes", "empty", "one.key", "raw", "two.key", "x"]);
}

#[test]
fn keys_are_added_changed_and_removed() {
    let lab = lab();
    lab.raw("raw", 1 << 20, 4);
    lab.imgtool(&format!("convert -O qcow2 -o {LUKS} --key one.key raw x"));
    lab.imgtool("amend --key one.key -o encrypt.new-key=two.key,encrypt.keyslot=5,encrypt.iter-time=10 x");
    assert_reads(&lab, "x", "two.key", "raw");
    assert_reads(&lab, "x", "one.key", "raw");
    lab.imgtool("amend --key two.key -o encrypt.old-key=one.key x");
    lab.run("imgtool convert -O raw --key one.key x y")
        .fails(1, &["opens none"]);
    assert_reads(&lab, "x", "two.key", "raw");
    // Theirs to ours: a key that QEMU adds, and one passphrase for another.
    lab.qemu_img(&format!(
        "amend --object secret,id=n,file=one.key {} -o encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10",
        named("x", "two.key")
    ));
    lab.imgtool("compare --key one.key x raw");
    lab.imgtool("amend --key two.key -o encrypt.state=inactive,encrypt.keyslot=5 x");
    fs::write(lab.path("three.key"), "third").unwrap();
    lab.imgtool(
        "amend --key one.key -o encrypt.old-key=one.key,encrypt.new-key=three.key,encrypt.iter-time=10 x",
    );
    assert_reads(&lab, "x", "three.key", "raw");
    let before = fs::read(lab.path("x")).unwrap();
    for (options, what) in [
        ("encrypt.old-key=three.key", &["the last key"][..]),
        ("encrypt.old-key=one.key", &["opens none"]),
        ("encrypt.state=inactive,encrypt.keyslot=3", &["slot 3"]),
        ("encrypt.state=inactive", &["keyslot=N"]),
        ("encrypt.keyslot=9,encrypt.new-key=one.key", &["0 to 7"]),
        ("encrypt.cipher-alg=aes-128", &["new images only"]),
    ] {
        let line = format!("imgtool amend --key three.key -o {options} x");
        lab.run(&line).fails(1, what);
    }
    assert!(fs::read(lab.path("x")).unwrap() == before);
}
