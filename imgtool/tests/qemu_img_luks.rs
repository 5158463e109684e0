//! Disks in LUKS's own form (`-f luks`) by our link and by QEMU's own program: each says the same, and reads what the other made.

use std::fs;
use std::path::Path;

use crate::common::twins::{Twins, run, words};

/// Secrets by the names that the tests use.
const SECRETS: &str =
    "--object secret,id=s0,data=zero --object secret,id=s1,data=one --object secret,id=s2,data=two";

/// The disk `a`, opened by the secret `s0`.
const DISK: &str = "--image-opts driver=luks,file.filename=a,key-secret=s0";

/// Zeros with two runs of data, as a raw image.
fn raw(twins: &Twins, name: &str) {
    twins.in_both(|directory| {
        let mut bytes = vec![0; 1 << 20];
        bytes[5000..70_000].fill(7);
        bytes[(1 << 20) - 512..].fill(9);
        fs::write(directory.join(name), bytes).unwrap();
    });
}

/// The same disk in both directories, byte for byte: what keys and salts are is chance.
fn with_disk() -> Twins {
    let twins = Twins::new();
    raw(&twins, "raw");
    twins.ok(&format!(
        "convert {SECRETS} -O luks -o key-secret=s0,iter-time=10 raw a"
    ));
    fs::copy(twins.theirs().join("a"), twins.ours().join("a")).unwrap();
    twins
}

#[test]
fn each_reads_what_the_other_has_made() {
    let twins = Twins::new();
    raw(&twins, "raw");
    for options in [
        "",
        ",cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
        ",cipher-mode=ctr",
        ",cipher-mode=ecb,hash-alg=sha512",
        ",cipher-alg=serpent-256,ivgen-alg=plain",
    ] {
        twins.script(&format!(
            "0 convert {SECRETS} -O luks -o key-secret=s0,iter-time=10{options} raw a
             0 compare {SECRETS} --image-opts driver=luks,file.filename=a,key-secret=s0 driver=raw,file.filename=raw
             0 convert {SECRETS} {DISK} -O raw back
             file back"
        ));
        let across = |program: &Path, at: &Path, other: &Path| {
            let image = format!(
                "driver=luks,file.filename={},key-secret=s0",
                other.join("a").display()
            );
            let line = format!("convert {SECRETS} --image-opts -O raw {image} across");
            let done = run(program, &words(&line), at);
            assert_eq!(done.code, Some(0), "{options}: {done:?}");
            assert!(fs::read(at.join("across")).unwrap() == fs::read(at.join("raw")).unwrap());
        };
        across(&twins.link(), twins.ours(), twins.theirs());
        across(Path::new("qemu-img"), twins.theirs(), twins.ours());
    }
}

#[test]
fn secrets_may_be_encrypted_with_others() {
    let twins = with_disk();
    let key = "--object secret,id=k,data=01234567890123456789012345678901";
    // By openssl, with that key.
    let secret = "--object secret,id=s0,keyid=k,iv=AAAAAAAAAAAAAAAAAAAAAA==,format=base64,data=Z0Ds0XIUnks3ip4hpNaPsw==";
    twins.script(&format!(
        "0 compare {key} {secret} --image-opts driver=luks,file.filename=a,key-secret=s0 driver=raw,file.filename=raw"
    ));
}

#[test]
fn what_is_said_of_a_disk_is_the_same() {
    let twins = with_disk();
    for line in [
        "info a",
        "info --output=json a",
        "info -f luks a",
        "map a",
        "check a",
        "check -f luks a",
        "compare a a",
        "convert -O raw a b",
        "convert -f luks -O raw a b",
        "measure -O qcow2 a",
        "resize a 2M",
        "snapshot -l a",
        "dd -f luks -O raw if=a of=b",
        "rebase -u -b raw -F raw a",
        "commit a",
        "bitmap --add a x",
        "bench -c 1 a",
        "info -f luks raw",
        "amend -f luks -o help",
        "amend a -o help",
        "create -f luks -o help",
        "create -f luks -o help x",
    ] {
        twins.both(line);
    }
    for line in [
        "info --image-opts",
        "info --output=json --image-opts",
        "map --image-opts",
        "map --output=json --image-opts",
        "check --image-opts",
        "convert -O qcow2 --image-opts",
        "measure -O qcow2 --image-opts",
        "snapshot -l --image-opts",
        "snapshot -c x --image-opts",
        "commit --image-opts",
        "rebase -u -b raw -F raw --image-opts",
        "amend -o help --image-opts",
    ] {
        let (verb, options) = line.split_once(' ').unwrap();
        let target = if verb == "convert" { "b" } else { "" };
        for disk in [
            "driver=luks,file.filename=a,key-secret=s0",
            "driver=luks,file.filename=a,key-secret=s1",
            "driver=luks,file.filename=a,key-secret=s9",
            "driver=luks,file.filename=a",
        ] {
            twins.both(&format!("{verb} {SECRETS} {options} {disk} {target}"));
        }
    }
    twins.both(&format!(
        "convert {SECRETS} -O raw 'json:{{\"driver\":\"luks\",\"key-secret\":\"s0\",\"file\":{{\"driver\":\"file\",\"filename\":\"a\"}}}}' b"
    ));
    twins.script("file b");
}

#[test]
fn disks_are_made_measured_and_copied_alike() {
    let twins = Twins::new();
    raw(&twins, "raw");
    for line in [
        "create -f luks a2 1M",
        "create -f luks -o key-secret=s0 a2 1M",
        "measure -O luks raw",
        "measure -O luks --size 1M",
        "measure -O luks -o key-secret=s9 --size 1M",
        "convert -O luks raw c",
        "convert -c -O luks raw c",
        "dd -O luks if=raw of=d",
    ] {
        twins.both(line);
    }
    for line in [
        "-o key-secret=s0,iter-time=10 a 1M",
        "-o key-secret=s0,iter-time=10 a 1536",
        "-o key-secret=s0,iter-time=10,size=3M a",
        "-o key-secret=s0,iter-time=10,preallocation=falloc a 1M",
        "-o key-secret=s0,iter-time=10,detached-header=on a3 1M",
        "-o key-secret=s0,cipher-alg=rot13 a3 1M",
        "-o key-secret=s0,hash-alg=crc32 a3 1M",
        "-o key-secret=s0 -b raw -F raw a3 1M",
        "-o foo=1 a3 1M",
    ] {
        twins.both(&format!("create -f luks {SECRETS} {line}"));
        if fs::exists(twins.theirs().join("a")).unwrap() {
            let lens = [twins.theirs(), twins.ours()].map(|at| fs::metadata(at.join("a")).unwrap().len());
            assert_eq!(lens[0], lens[1], "{line}");
        }
    }
    for options in [
        "--size 1M -o key-secret=s0",
        "--size 1000 -o key-secret=s0",
        "--size 1M -o key-secret=s0,cipher-alg=aes-128",
        "--size 1M --output=json -o key-secret=s0",
        "-o key-secret=s0 raw",
    ] {
        twins.ok(&format!("measure -O luks {SECRETS} {options}"));
    }
    twins.script(&format!(
        "0 create -q -f luks {SECRETS} -o key-secret=s0,iter-time=10 a 1M
         0 convert -n {SECRETS} --target-image-opts raw driver=luks,file.filename=a,key-secret=s0
         0 convert {SECRETS} {DISK} -O raw back
         file back
         0 resize {SECRETS} {DISK} 2M
         0 resize --shrink {SECRETS} {DISK} 1M
         1 resize --preallocation=metadata {SECRETS} {DISK} 3M
         0 resize --preallocation=full {SECRETS} {DISK} 3M
         0 resize --shrink {SECRETS} {DISK} 1048000
         0 dd --image-opts {SECRETS} -O raw bs=64k count=3 if=driver=luks,file.filename=a,key-secret=s0 of=part
         file part
         # A guest may find anything in what was never written to.
         0 create -q -f qcow2 -b 'json:{{\"driver\":\"luks\",\"key-secret\":\"s0\",\"file\":{{\"driver\":\"file\",\"filename\":\"a\"}}}}' -F luks {SECRETS} top 1000k
         0 convert {SECRETS} -O raw top over
         file over"
    ));
}

/// `amend` with the disk opened by the secret `key`, in both directories, ending so.
fn amend(twins: &Twins, code: i32, key: &str, options: &str) {
    let image = format!("--image-opts driver=luks,file.filename=a,key-secret={key}");
    let outcome = twins.both(&format!("amend {SECRETS} {image} {options}"));
    assert_eq!(outcome.code, Some(code), "{options}: {outcome:?}");
}

/// Both programs have the disk in this state, as cryptsetup finds it.
fn assert_slots(twins: &Twins, expected: &[(u32, &str)]) {
    for directory in [twins.theirs(), twins.ours()] {
        let mut opened = Vec::new();
        for key in ["zero", "one", "two"] {
            fs::write(directory.join("key"), key).unwrap();
            for slot in 0..8 {
                let line = format!("open --test-passphrase --key-file key --key-slot {slot} a");
                if run(Path::new("cryptsetup"), &words(&line), directory).code == Some(0) {
                    opened.push((slot, key));
                }
            }
        }
        opened.sort_unstable();
        assert_eq!(opened, expected, "{}", directory.display());
    }
}

#[test]
fn passphrases_come_and_go_in_both_programs_alike() {
    let twins = with_disk();
    let quick = "iter-time=10";
    amend(&twins, 0, "s0", &format!("-o state=active,new-secret=s1,{quick}"));
    amend(
        &twins,
        0,
        "s1",
        &format!("-o state=active,new-secret=s2,keyslot=6,{quick}"),
    );
    assert_slots(&twins, &[(0, "zero"), (1, "one"), (6, "two")]);
    amend(&twins, 0, "s2", "-o state=inactive,old-secret=s0");
    amend(&twins, 0, "s2", "-o state=inactive,keyslot=1");
    assert_slots(&twins, &[(6, "two")]);
    for options in [
        "-o state=inactive,keyslot=6",
        "-o state=inactive,old-secret=s2",
        "-o state=active",
        "-o state=active,new-secret=s1,keyslot=6",
        "-o state=foo",
        "-o new-secret=s1",
        "-o size=1M",
        "-o key-secret=s2",
        "-o foo=1",
        "-o encrypt.state=active",
    ] {
        amend(&twins, 1, "s2", options);
    }
    assert_slots(&twins, &[(6, "two")]);
    amend(
        &twins,
        0,
        "s2",
        &format!("--force -o state=active,new-secret=s0,keyslot=6,{quick}"),
    );
    assert_slots(&twins, &[(6, "zero")]);
    twins.script(&format!(
        "0 convert {SECRETS} {DISK} -O raw back
         file back"
    ));
}
