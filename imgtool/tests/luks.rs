//! Disks in LUKS's own form at the command line, beside qemu-img and cryptsetup.

use std::fs;

use crate::common::Lab;

/// A place with a disk, two passphrases, and files that hold them.
fn lab() -> Lab {
    let lab = Lab::new();
    fs::write(lab.path("one.key"), "correct horse").unwrap();
    fs::write(lab.path("two.key"), "battery staple").unwrap();
    lab.raw("raw", 3 << 20, 1);
    lab
}

/// Words that name a disk to QEMU, with the key in a file.
fn named(image: &str, key: &str) -> String {
    format!("--object secret,id=s,file={key} --image-opts driver=luks,key-secret=s,file.filename={image}")
}

fn assert_same(lab: &Lab, one: &str, other: &str) {
    assert!(
        fs::read(lab.path(one)).unwrap() == fs::read(lab.path(other)).unwrap(),
        "{one} and {other} differ"
    );
}

#[test]
fn disks_are_converted_to_and_from_luks_and_qemu_reads_what_we_write() {
    let lab = lab();
    for (name, options) in [
        ("usual", "iter-time=10"),
        ("full", "iter-time=10,preallocation=full"),
        (
            "other",
            "iter-time=10,cipher-alg=twofish-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512",
        ),
    ] {
        lab.imgtool(&format!("convert -O luks -o {options} --key one.key raw {name}"));
        lab.qemu_img(&format!("convert {} -O raw theirs", named(name, "one.key")));
        assert_same(&lab, "raw", "theirs");
        lab.imgtool(&format!("convert -O qcow2 --key one.key {name} image"));
        lab.imgtool("compare raw image");
        lab.imgtool(&format!("compare --key one.key raw {name}"));
        let dump = lab.run(&format!("cryptsetup luksDump {name}")).ok();
        assert!(dump.contains("Key Slot 0: ENABLED"), "{dump}");
    }
    lab.run("cryptsetup open --test-passphrase --key-file one.key usual")
        .ok();
    lab.imgtool("dd -O luks --key one.key if=raw of=part bs=1M count=1");
    lab.imgtool("dd --key one.key if=part of=back");
    assert!(fs::read(lab.path("back")).unwrap() == fs::read(lab.path("raw")).unwrap()[..1 << 20]);
    // From one key to another, and into a disk that is there.
    lab.imgtool("convert -O luks -o iter-time=10,key=two.key --key one.key usual second");
    lab.imgtool("compare --key two.key second raw");
    lab.raw("new", 3 << 20, 9);
    lab.imgtool("convert -n -O luks --key two.key new second");
    lab.qemu_img(&format!("convert {} -O raw theirs", named("second", "two.key")));
    assert_same(&lab, "new", "theirs");
}

#[test]
fn what_qemu_and_cryptsetup_make_is_read_and_written_to() {
    let lab = lab();
    lab.qemu_img("convert --object secret,id=s,file=one.key -O luks -o iter-time=10,key-secret=s raw theirs");
    lab.imgtool("compare --key one.key raw theirs");
    fs::write(lab.path("made"), vec![0; 6 << 20]).unwrap();
    lab.run("cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --key-file one.key made")
        .ok();
    lab.imgtool("convert -n -O luks --key one.key raw made");
    lab.qemu_img(&format!("convert {} -O raw out", named("made", "one.key")));
    let (out, raw) = (
        fs::read(lab.path("out")).unwrap(),
        fs::read(lab.path("raw")).unwrap(),
    );
    assert!(out[..raw.len()] == raw);
}

#[test]
fn what_a_disk_says_of_itself_takes_no_key_and_is_what_qemu_says() {
    let lab = lab();
    lab.imgtool("create -q -f luks -o iter-time=10 --key one.key disk 5M");
    let [ours, theirs] = lab.both("info --output json disk");
    assert_eq!(ours, theirs);
    assert_eq!(ours["format"], "luks");
    assert_eq!(lab.imgtool("info disk"), lab.qemu_img("info disk"));
    // As raw it is what it is.
    lab.imgtool("convert -f raw -O raw disk copy");
    assert_same(&lab, "disk", "copy");
    lab.run("imgtool map disk").fails(1, &["--key FILE", "-f raw"]);
    lab.run("imgtool map --key two.key disk")
        .fails(1, &["opens none"]);
    lab.run("imgtool check disk").fails(63, &["luks images"]);
    let measured = lab.imgtool("measure -O luks --size 5M");
    let len = fs::metadata(lab.path("disk")).unwrap().len();
    assert!(measured.contains(&len.to_string()), "{measured}");
}

#[test]
fn passphrases_come_and_go_and_disks_grow() {
    let lab = lab();
    lab.imgtool("convert -O luks -o iter-time=10 --key one.key raw disk");
    lab.imgtool("amend --key one.key -o new-key=two.key,iter-time=10 disk");
    lab.imgtool("compare --key two.key disk raw");
    lab.run("cryptsetup open --test-passphrase --key-file two.key --key-slot 1 disk")
        .ok();
    lab.imgtool("amend --key two.key -o old-key=one.key disk");
    lab.run("imgtool compare --key one.key disk raw")
        .fails(2, &["opens none"]);
    lab.run("imgtool amend --key two.key -o old-key=two.key disk")
        .fails(1, &["last key"]);
    lab.run("imgtool amend --key two.key -o cipher-alg=aes-128 disk")
        .fails(1, &["new images only"]);
    // Two ways to say which key goes are one too many, and none goes.
    lab.imgtool("amend --key two.key -o new-key=one.key,iter-time=10 disk");
    let before = fs::read(lab.path("disk")).unwrap();
    for slot in [0, 1, 5] {
        lab.run(&format!(
            "imgtool amend -f luks --key two.key -o old-key=one.key,keyslot={slot},state=inactive disk"
        ))
        .fails(1, &["old-key", "keyslot", "one after the other"]);
        assert!(fs::read(lab.path("disk")).unwrap() == before, "slot {slot}");
    }
    lab.imgtool("resize --key two.key --preallocation full disk +1M");
    lab.qemu_img(&format!("resize --shrink -q {} 3M", named("disk", "two.key")));
    lab.imgtool("compare --key two.key disk raw");
    lab.imgtool("resize --key two.key disk 1G");
    assert!(lab.imgtool("info disk").contains("1 GiB"));
}

#[test]
fn what_there_cannot_be_is_refused_and_makes_no_file() {
    let lab = lab();
    for (line, words) in [
        ("create -f luks disk 1M", &["--key FILE"][..]),
        (
            "create -f luks --key one.key -o cipher-mode=ecb disk 1M",
            &["cipher-mode"],
        ),
        (
            "create -f luks --key one.key -b raw -F raw disk",
            &["backing file"],
        ),
        (
            "create -f luks --key one.key -o preallocation=metadata disk 1M",
            &["metadata"],
        ),
        (
            "create -f luks --key one.key -o encrypt.format=luks disk 1M",
            &["encrypt.format"],
        ),
        ("convert -O luks raw disk", &["--key FILE"]),
        ("convert -c -O luks --key one.key raw disk", &["compress"]),
        ("convert -O luks --key one.key raw -", &["standard output"]),
        ("mkfs --size 8M --from . -O luks disk", &[]),
    ] {
        let done = lab.run(&format!("imgtool {line}"));
        let said = done.stderr();
        assert!(
            done.code() != 0 && words.iter().all(|word| said.contains(word)),
            "{line}: {said}"
        );
        assert!(!lab.path("disk").exists(), "{line}");
    }
}

#[test]
fn a_header_that_asks_for_days_is_refused_before_they_begin() {
    let lab = lab();
    lab.imgtool("create -q -f luks -o iter-time=10 --key one.key disk 1M");
    let mut bytes = fs::read(lab.path("disk")).unwrap();
    bytes[212..216].fill(0xff);
    fs::write(lab.path("disk"), bytes).unwrap();
    lab.run("imgtool map --key one.key disk")
        .fails(1, &["hashes", "cryptsetup"]);
    assert!(lab.imgtool("info disk").contains("4294967295"));
}
