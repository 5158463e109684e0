//! Keys of encrypted images, asked for where those are made and changed by `qemu-img amend`: by our link and by QEMU's own program, with
//! cryptsetup as a judge.

use std::fs;
use std::path::Path;

use crate::common::twins::{Twins, run, words};

/// Secrets by the names that the tests use.
const SECRETS: &str =
    "--object secret,id=s0,data=zero --object secret,id=s1,data=one --object secret,id=s2,data=two";

/// Where the LUKS header lies in a qcow2 image, offset and length: header extension 0x0537be77.
fn luks_place(image: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let mut at = word(100) as usize;
    while word(at) != 0x0537_be77 {
        assert_ne!(word(at), 0, "no pointer to a LUKS header");
        at += 8 + (word(at + 4) as usize).next_multiple_of(8);
    }
    (long(at + 8), long(at + 16))
}

/// Which of the passphrases open the image `name` in a directory, as cryptsetup finds it in its header: slot and passphrase.
fn opened_by_cryptsetup(directory: &Path, name: &str) -> Vec<(u32, String)> {
    let image = fs::read(directory.join(name)).unwrap();
    let (start, len) = luks_place(&image);
    // There is to be a payload behind it.
    let mut header = image[start..start + len].to_vec();
    header.extend([0; 4096]);
    fs::write(directory.join("header"), header).unwrap();
    let dump = run(Path::new("cryptsetup"), &words("luksDump header"), directory);
    assert_eq!(dump.code, Some(0), "{dump:?}");
    let enabled: Vec<u32> = (0..8)
        .filter(|slot| dump.out.contains(&format!("Key Slot {slot}: ENABLED")))
        .collect();
    let mut opened = Vec::new();
    for key in ["zero", "one", "two"] {
        fs::write(directory.join("key"), key).unwrap();
        for slot in enabled.clone() {
            let line = format!("open --test-passphrase --key-file key --key-slot {slot} header");
            if run(Path::new("cryptsetup"), &words(&line), directory).code == Some(0) {
                opened.push((slot, key.to_owned()));
            }
        }
    }
    opened
}

/// `amend` with the image opened by the secret `key`, in both directories, ending so.
fn amend(twins: &Twins, code: i32, key: &str, options: &str) {
    let image = format!("--image-opts driver=qcow2,file.filename=a,encrypt.key-secret={key}");
    let outcome = twins.both(&format!("amend {SECRETS} {image} {options}"));
    assert_eq!(outcome.code, Some(code), "{options}: {outcome:?}");
}

/// Both programs have the image in this state, and cryptsetup says so too.
fn assert_slots(twins: &Twins, expected: &[(u32, &str)]) {
    let mut expected: Vec<(u32, String)> = expected
        .iter()
        .map(|(slot, key)| (*slot, (*key).to_owned()))
        .collect();
    for directory in [twins.theirs(), twins.ours()] {
        let mut opened = opened_by_cryptsetup(directory, "a");
        expected.sort();
        opened.sort();
        assert_eq!(opened, expected, "{}", directory.display());
    }
}

fn encrypted() -> Twins {
    let twins = Twins::new();
    let options = "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10";
    twins.ok(&format!("create -q -f qcow2 {SECRETS} -o {options} a 1M"));
    twins.in_both(|directory| {
        let image = "driver=qcow2,file.filename=a,encrypt.key-secret=s0";
        let words: Vec<String> = words(&format!("--object secret,id=s0,data=zero --image-opts {image}"))
            .into_iter()
            .chain(["-c".to_owned(), "write -P 7 0 64k".to_owned()])
            .collect();
        assert_eq!(run(Path::new("qemu-io"), &words, directory).code, Some(0));
    });
    twins
}

#[test]
fn passphrases_come_and_go_in_both_programs_alike() {
    let twins = encrypted();
    let quick = "encrypt.iter-time=10";
    amend(
        &twins,
        0,
        "s0",
        &format!("-o encrypt.state=active,encrypt.new-secret=s1,{quick}"),
    );
    amend(
        &twins,
        0,
        "s1",
        &format!("-o encrypt.state=active,encrypt.new-secret=s2,encrypt.keyslot=5,{quick}"),
    );
    amend(
        &twins,
        0,
        "s1",
        &format!("-o encrypt.state=active,encrypt.new-secret=s2,{quick}"),
    );
    assert_slots(&twins, &[(0, "zero"), (1, "one"), (5, "two"), (2, "two")]);
    amend(&twins, 0, "s0", "-o encrypt.state=inactive,encrypt.old-secret=s2");
    amend(
        &twins,
        0,
        "s0",
        "-o encrypt.state=inactive,encrypt.old-secret=s0,encrypt.keyslot=0",
    );
    assert_slots(&twins, &[(1, "one")]);
    // By force a slot that is in use is given to another, and the passphrase that it had is gone.
    amend(
        &twins,
        0,
        "s1",
        &format!(
            "--force -o encrypt.state=active,encrypt.new-secret=s0,encrypt.keyslot=1,{quick},lazy_refcounts=on"
        ),
    );
    assert_slots(&twins, &[(1, "zero")]);
    twins.script(&format!(
        "1 convert {SECRETS} --image-opts -O raw driver=qcow2,file.filename=a,encrypt.key-secret=s1 raw
         0 convert {SECRETS} --image-opts -O raw driver=qcow2,file.filename=a,encrypt.key-secret=s0 raw
         file raw
         0 check {SECRETS} --image-opts driver=qcow2,file.filename=a,encrypt.key-secret=s0"
    ));
    // Each reads what the other has made.
    let theirs = twins.theirs().join("a");
    let image = format!(
        "driver=qcow2,file.filename={},encrypt.key-secret=s0",
        theirs.display()
    );
    let line = format!("convert {SECRETS} --image-opts -O raw {image} across");
    assert_eq!(run(&twins.link(), &words(&line), twins.ours()).code, Some(0));
    let ours = twins.ours().join("a");
    let line = line.replace(&*theirs.to_string_lossy(), &ours.to_string_lossy());
    assert_eq!(
        run(Path::new("qemu-img"), &words(&line), twins.theirs()).code,
        Some(0)
    );
    twins.script("file across");
}

#[test]
fn what_would_lose_the_data_is_done_by_force_only() {
    let twins = encrypted();
    amend(&twins, 1, "s0", "-o encrypt.state=inactive,encrypt.keyslot=0");
    amend(&twins, 1, "s0", "-o encrypt.state=inactive,encrypt.old-secret=s0");
    amend(
        &twins,
        1,
        "s0",
        "-o encrypt.state=active,encrypt.new-secret=s1,encrypt.keyslot=0",
    );
    assert_slots(&twins, &[(0, "zero")]);
    amend(
        &twins,
        0,
        "s0",
        "--force -o encrypt.state=inactive,encrypt.keyslot=4",
    );
    amend(
        &twins,
        0,
        "s0",
        "--force -o encrypt.state=inactive,encrypt.old-secret=s0",
    );
    assert_slots(&twins, &[]);
    amend(&twins, 1, "s0", "-o encrypt.state=active,encrypt.new-secret=s1");
}

#[test]
fn what_makes_no_sense_is_refused_in_the_same_words_and_changes_nothing() {
    let twins = encrypted();
    for options in [
        "encrypt.state=active",
        "encrypt.state=foo",
        "encrypt.new-secret=s2",
        "encrypt.keyslot=2",
        "encrypt.iter-time=10",
        "encrypt.state=active,encrypt.new-secret=s9",
        "encrypt.state=active,encrypt.new-secret=s1,encrypt.old-secret=s0",
        "encrypt.state=active,encrypt.new-secret=s1,encrypt.keyslot=8",
        "encrypt.state=active,encrypt.new-secret=s1,encrypt.keyslot=-1",
        "encrypt.state=inactive",
        "encrypt.state=inactive,encrypt.new-secret=s1",
        "encrypt.state=inactive,encrypt.iter-time=10",
        "encrypt.state=inactive,encrypt.keyslot=3",
        "encrypt.state=inactive,encrypt.keyslot=9",
        "encrypt.state=inactive,encrypt.old-secret=s1",
        "encrypt.state=inactive,encrypt.old-secret=s1,encrypt.keyslot=0",
        "encrypt.state=inactive,encrypt.old-secret=s9",
    ] {
        amend(&twins, 1, "s0", &format!("-o {options}"));
    }
    amend(&twins, 1, "s1", "-o encrypt.state=inactive,encrypt.keyslot=0");
    assert_slots(&twins, &[(0, "zero")]);
    for _ in 1..8 {
        amend(
            &twins,
            0,
            "s0",
            "-o encrypt.state=active,encrypt.new-secret=s1,encrypt.iter-time=10",
        );
    }
    amend(
        &twins,
        1,
        "s0",
        "-o encrypt.state=active,encrypt.new-secret=s1,encrypt.iter-time=10",
    );
    twins.script(&format!(
        "0 create -q -f qcow2 plain 1M
         1 amend plain -o encrypt.state=inactive
         1 amend a -o encrypt.state=inactive,encrypt.keyslot=0
         0 create -q -f qcow2 {SECRETS} -o encrypt.format=aes,encrypt.key-secret=s0 aes 1M
         1 amend {SECRETS} --image-opts driver=qcow2,file.filename=aes,encrypt.key-secret=s0 -o encrypt.state=active,encrypt.new-secret=s1"
    ));
}

/// A key that cryptsetup adds to the header of an image opens that image.
#[test]
fn slots_of_cryptsetup_are_seen() {
    let twins = encrypted();
    twins.in_both(|directory| {
        opened_by_cryptsetup(directory, "a");
        fs::write(directory.join("key"), "zero").unwrap();
        fs::write(directory.join("new"), "two").unwrap();
        for line in [
            "luksAddKey -q --pbkdf-force-iterations 1000 --key-file key --key-slot 3 header new",
            "luksKillSlot -q --key-file new header 0",
        ] {
            let done = run(Path::new("cryptsetup"), &words(line), directory);
            assert_eq!(done.code, Some(0), "{line}: {done:?}");
        }
        let mut image = fs::read(directory.join("a")).unwrap();
        let (start, len) = luks_place(&image);
        let header = fs::read(directory.join("header")).unwrap();
        image[start..start + len].copy_from_slice(&header[..len]);
        fs::write(directory.join("a"), image).unwrap();
    });
    amend(&twins, 1, "s0", "-o encrypt.state=inactive,encrypt.keyslot=3");
    amend(&twins, 1, "s2", "-o encrypt.state=inactive,encrypt.keyslot=3");
    amend(
        &twins,
        0,
        "s2",
        "-o encrypt.state=active,encrypt.new-secret=s1,encrypt.iter-time=10",
    );
    assert_slots(&twins, &[(0, "one"), (3, "two")]);
}

#[test]
fn nothing_is_left_in_the_clear_that_was_to_be_encrypted() {
    let twins = Twins::new();
    let secret = "--object secret,id=s,data=x";
    for options in [
        "encrypt.key-secret=s",
        "encrypt.cipher-alg=aes-256",
        "encryption=off,encrypt.key-secret=s",
        "encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-256",
        "encryption=on,encrypt.key-secret=s,encrypt.iter-time=10",
        "encryption=on,encrypt.format=luks,encrypt.key-secret=s",
        "encrypt.format=foo,encrypt.key-secret=s",
        "encrypt.format=luks",
        "encrypt.format=luks,encrypt.key-secret=gone",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo",
    ] {
        let line = format!("create -f qcow2 {secret} -o {options} x 1M");
        assert_eq!(twins.both(&line).code, Some(1), "{line}");
        twins.in_both(|directory| assert!(!directory.join("x").exists() || directory == twins.theirs()));
    }
    // What is to be changed is opened.
    twins.script(&format!(
        "0 create -q -f qcow2 {secret} -o encryption=on,encrypt.key-secret=s a 1M
         0 create -q -f qcow2 -b a -F qcow2 over 1M
         1 bitmap --add a b
         1 rebase -u -b over -F qcow2 a
         1 map a
         1 map over
         1 convert -O qcow2 over out
         0 info a"
    ));
}
