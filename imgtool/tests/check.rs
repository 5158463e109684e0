//! `imgtool check -r`: repairs, what they say, and taking them back.

use std::fs;

use crate::common::Lab;
use serde_json::Value;

/// The refcount block of a small image with clusters of 64 KiB is its third cluster; its entries have 16 bits.
const REFCOUNTS: usize = 2 * 65536;

/// An image with data, and as many clusters as it has.
fn image(lab: &Lab) -> (Vec<u8>, usize) {
    lab.raw("raw", 1 << 20, 3);
    lab.imgtool("convert -O qcow2 raw image");
    let bytes = fs::read(lab.path("image")).unwrap();
    let clusters = bytes.len().div_ceil(65536);
    (bytes, clusters)
}

/// A cluster that nobody uses is counted, and one in use counts as free.
fn damaged(lab: &Lab) -> Vec<u8> {
    let (mut bytes, clusters) = image(lab);
    bytes[REFCOUNTS + 2 * clusters + 1] = 1;
    bytes[REFCOUNTS + 2 * (clusters - 1) + 1] = 0;
    bytes.resize((clusters + 1) * 65536, 0);
    fs::write(lab.path("image"), &bytes).unwrap();
    bytes
}

#[test]
fn repairs_and_says_what() {
    let lab = Lab::new();
    damaged(&lab);
    assert_eq!(lab.run("imgtool check image").code(), 2);
    let done = lab.run("imgtool check -r all image");
    let (stdout, stderr) = (done.stdout(), done.stderr());
    assert_eq!(done.code(), 0, "{stdout}{stderr}");
    assert!(
        stdout.starts_with("The following inconsistencies were found and repaired:\n\n    1 leaked clusters\n    2 corruptions\n\nDouble checking the fixed image now...\nNo errors were found on the image.\n"),
        "{stdout}"
    );
    for line in ["Repairing cluster", "refcounts raised: 1", "refcounts lowered: 1"] {
        assert!(stderr.contains(line), "{stderr}");
    }
    lab.qemu_img("check image");
    lab.imgtool("compare raw image");
    assert_eq!(lab.imgtool("check -r all -q image"), "");
}

#[test]
fn json_has_what_was_fixed() {
    let lab = Lab::new();
    damaged(&lab);
    lab.qemu_img("convert -O qcow2 raw other");
    let json: Value = serde_json::from_str(&lab.imgtool("check -r all --output json image")).unwrap();
    assert_eq!(
        (&json["corruptions-fixed"], &json["leaks-fixed"]),
        (&2.into(), &1.into())
    );
    assert_eq!((json.get("corruptions"), json.get("leaks")), (None, None));
    let json: Value = serde_json::from_str(&lab.imgtool("check -r all --output json image")).unwrap();
    assert_eq!(json.get("corruptions-fixed"), None);
}

#[test]
fn leaks_alone_leave_corruptions() {
    let lab = Lab::new();
    damaged(&lab);
    let done = lab.run("imgtool check -r leaks image");
    assert_eq!(done.code(), 2, "{}", done.stderr());
    assert!(done.stdout().contains("    1 leaked clusters\n    0 corruptions"));
}

#[test]
fn a_dry_run_changes_nothing() {
    let lab = Lab::new();
    let bytes = damaged(&lab);
    let before = fs::metadata(lab.path("image")).unwrap().modified().unwrap();
    let done = lab.run("imgtool check -r all --dry-run image");
    assert_eq!(done.code(), 0, "{}", done.stderr());
    assert!(done.stdout().contains("would be repaired") && done.stdout().contains("Nothing was changed"));
    assert!(
        done.stderr().contains("Would repair cluster")
            && done.stderr().contains("(dry run) refcounts raised: 1")
    );
    assert!(fs::read(lab.path("image")).unwrap() == bytes);
    assert_eq!(
        fs::metadata(lab.path("image")).unwrap().modified().unwrap(),
        before
    );
    assert_eq!(lab.run("imgtool check --dry-run image").code(), 1);
}

#[test]
fn a_backup_takes_it_back() {
    let lab = Lab::new();
    let bytes = damaged(&lab);
    lab.imgtool("check -r all --backup old image");
    assert!(fs::read(lab.path("image")).unwrap() != bytes);
    lab.run("imgtool check -r all --backup old image")
        .fails(1, &["old", "new file"]);
    let text = lab.imgtool("check --restore old image");
    assert!(text.contains("bytes of metadata"), "{text}");
    assert!(fs::read(lab.path("image")).unwrap() == bytes);
    // Again is no harm.
    lab.imgtool("check --restore old image");

    lab.imgtool("check -r all image");
    lab.qemu_img("snapshot -c s image");
    let bytes = fs::read(lab.path("image")).unwrap();
    lab.run("imgtool check --restore old image")
        .fails(1, &["image", "written to", "nothing was put back"]);
    assert!(fs::read(lab.path("image")).unwrap() == bytes);
    lab.run("imgtool check --restore raw image")
        .fails(1, &["raw", "no backup"]);
}

#[test]
fn an_image_in_use_is_not_repaired() {
    let lab = Lab::new();
    image(&lab);
    let guest = lab.guest("image");
    lab.run("imgtool check -r all image").fails(1, &["image"]);
    drop(guest);
    assert_eq!(lab.run("imgtool check -r all -U image").code(), 1);
}

/// What no reader opens is checked as QEMU checks it, and repaired.
#[test]
fn a_refcount_table_past_the_end_is_made_anew() {
    let lab = Lab::new();
    let (mut bytes, _) = image(&lab);
    bytes[48..56].copy_from_slice(&0x1000_0000u64.to_be_bytes());
    fs::write(lab.path("image"), &bytes).unwrap();
    let [ours, theirs] =
        ["imgtool", "qemu-img"].map(|program| lab.run(&format!("{program} check --output json image")));
    assert_eq!((ours.code(), theirs.code()), (2, 2));
    let [ours, theirs] = [ours, theirs].map(|done| serde_json::from_str::<Value>(&done.stdout()).unwrap());
    assert_eq!(ours, theirs);
    lab.imgtool("check -r all image");
    lab.qemu_img("check image");
    lab.imgtool("compare raw image");
}

/// A killed writer that had postponed refcounts leaves the dirty bit.
#[test]
fn a_dirty_image_is_clean_again() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 -o lazy_refcounts=on image 8M");
    let aborted = lab.run_words(&[
        "qemu-io",
        "-f",
        "qcow2",
        "-c",
        "write -P 7 0 1M",
        "-c",
        "abort",
        "image",
    ]);
    let stopped = std::panic::catch_unwind(|| aborted.code());
    assert!(stopped.is_err() || lab.run("imgtool check image").code() != 0);
    lab.imgtool("check -r all image");
    lab.qemu_img("check image");
    let info: Value = serde_json::from_str(&lab.qemu_img("info --output json image")).unwrap();
    assert_eq!(info["dirty-flag"], false);
    lab.qemu_io("qcow2", "image", &["read -P 7 0 1M"]);
}

#[test]
fn what_a_lost_l1_entry_named_is_kept_until_leaks_are_to_be_repaired() {
    let lab = Lab::new();
    let (mut bytes, _) = image(&lab);
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let entry: [u8; 8] = bytes[l1..l1 + 8].try_into().unwrap();
    bytes[l1 + 3] = 0x55;
    fs::write(lab.path("image"), &bytes).unwrap();
    let done = lab.run("imgtool check -r all image");
    assert_eq!(done.code(), 2, "{}", done.stdout());
    assert!(
        done.stderr()
            .contains("Not freed, since they may be the only copy of the guest's data"),
        "{}",
        done.stderr()
    );
    // Whoever finds the table again has lost nothing.
    let mut found = fs::read(lab.path("image")).unwrap();
    found[l1..l1 + 8].copy_from_slice(&entry);
    fs::write(lab.path("found"), &found).unwrap();
    lab.imgtool("compare raw found");
    let json = lab.run("imgtool check -r leaks --output json image");
    let json: Value = serde_json::from_str(&json.stdout()).unwrap();
    assert_eq!(json["lost-tables"], 1, "{json}");
    assert!(
        json["leaks-fixed"].as_u64() > Some(0) && json["leaks"].is_null(),
        "{json}"
    );
}

/// A copy that broke off, and whose refcounts are lost too: new ones must not take the place of what is missing, nor hide it.
#[test]
fn what_a_cut_file_lacks_is_an_error_after_every_repair() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 whole 10M");
    lab.qemu_io("qcow2", "whole", &["write -P 5 1M 2M"]);
    let mut bytes = fs::read(lab.path("whole")).unwrap();
    let len = bytes.len();
    bytes.truncate(1 << 20);
    bytes[REFCOUNTS..REFCOUNTS + 65536].fill(0);
    for program in ["imgtool", "imgtool qemu-img"] {
        fs::write(lab.path("image"), &bytes).unwrap();
        let done = lab.run(&format!("{program} check -r all image"));
        assert_eq!(done.code(), 2, "{program}");
        assert!(
            done.stdout().contains("\n21 errors were found on the image.\n"),
            "{program}: {}",
            done.stdout()
        );
        if program == "imgtool" {
            assert!(
                done.stderr().contains("the file was cut") && done.stderr().contains("--salvage"),
                "{}",
                done.stderr()
            );
        }
        for again in ["imgtool", "imgtool qemu-img", "qemu-img"] {
            assert_eq!(
                lab.run(&format!("{again} check image")).code(),
                2,
                "{program}, {again}"
            );
        }
        lab.run("imgtool resize image 20M")
            .fails(1, &["image", "cut", "truncate"]);
        assert_eq!(fs::metadata(lab.path("image")).unwrap().len(), 1 << 20);
        // Somebody who accepts the loss has a sound image.
        let file = fs::OpenOptions::new()
            .write(true)
            .open(lab.path("image"))
            .unwrap();
        file.set_len(len as u64).unwrap();
        lab.run(&format!("{program} check -r all image")).ok();
        lab.qemu_img("check image");
        lab.qemu_io("qcow2", "image", &["read -P 5 1M 704k", "read -P 0 1728k 1M"]);
    }
    fs::write(lab.path("image"), &bytes).unwrap();
    let done = lab.run("imgtool check -r all --output json image");
    let json: Value = serde_json::from_str(&done.stdout()).unwrap();
    assert_eq!(
        (&json["reaches-past-end"], &json["corruptions"]),
        (&1.into(), &21.into())
    );
}
