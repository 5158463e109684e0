//! Commit, rebase and stream where somebody else depends on what they change, and where files lead back to themselves.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::{Lab, assert_intact, chain};
use serde_json::Value;

fn info(lab: &Lab, name: &str) -> Value {
    serde_json::from_str(&lab.qemu_img(&format!("info --output=json {name}"))).unwrap()
}

/// The usual chain, in which `image` has two snapshots that hold less than it does now.
fn with_snapshots(image: &str) -> Lab {
    let lab = Lab::new();
    chain(&lab, "qcow2", "compat=1.1");
    lab.qemu_img(&format!("snapshot -c one {image}"));
    lab.qemu_img(&format!("snapshot -c two {image}"));
    lab.qemu_io("qcow2", image, &["write -q -P 77 4M 1M"]);
    lab.qemu_img("convert -f qcow2 -O raw top flat");
    lab.qemu_img(&format!("convert -f qcow2 -O raw -l one {image} then"));
    lab
}

fn snapshot_changed(lab: &Lab, image: &str) -> bool {
    lab.qemu_img(&format!("convert -f qcow2 -O raw -l one {image} now"));
    let [now, then] = ["now", "then"].map(|name| fs::read(lab.path(name)).unwrap());
    // QEMU's copy is as long as the image has become.
    !now.starts_with(&then)
}

#[test]
fn snapshots_that_would_change_are_named() {
    let onto = "-b other -F raw";
    for (image, line) in [
        ("top", "commit top"),
        ("top", "commit -d top"),
        ("top", "commit -b base top"),
        ("mid", "commit -b base top"),
        ("top", "stream top"),
        ("top", "stream --base base top"),
        ("top", &format!("rebase {onto} top")),
        ("top", &format!("rebase -u {onto} top")),
        ("top", "rebase -u -b  top"),
    ] {
        let lab = with_snapshots(image);
        lab.raw("other", 9 << 20, 5);
        let before = ["top", "mid", "base"].map(|name| fs::read(lab.path(name)).unwrap());
        let words: Vec<&str> = ["imgtool"].into_iter().chain(line.split(' ')).collect();
        lab.run_words(&words)
            .fails(1, &[image, "internal snapshots", "one, two", "--force"]);
        assert!(
            before == ["top", "mid", "base"].map(|name| fs::read(lab.path(name)).unwrap()),
            "{line}"
        );
        assert!(!snapshot_changed(&lab, image), "{line}");
        let forced: Vec<&str> = words.iter().copied().chain(["--force"]).collect();
        lab.run_words(&forced).ok();
        // It was right to warn.
        assert!(snapshot_changed(&lab, image), "{line}");
        if !line.contains("-u") {
            assert_intact(&lab, line);
        }
    }
}

#[test]
fn snapshots_that_stay_what_they_are_are_no_reason_to_refuse() {
    // The base's own do not depend on what is above it.
    let lab = with_snapshots("base");
    lab.imgtool("commit -b base top");
    assert!(!snapshot_changed(&lab, "base"));
    assert_intact(&lab, "commit");
    // The new backing file is the old one, whatever it is called.
    let lab = with_snapshots("top");
    symlink(lab.path("mid"), lab.path("link")).unwrap();
    for line in [
        "rebase -b link -F qcow2 top",
        "rebase -u -b mid -F qcow2 top",
        "rebase -u -b ./link -F qcow2 top",
        "stream --base mid top",
    ] {
        lab.imgtool(line);
        assert!(!snapshot_changed(&lab, "top"), "{line}");
        assert_intact(&lab, line);
    }
    // Nor do those of an image in between that is written to itself.
    let lab = with_snapshots("mid");
    lab.imgtool("commit -d top");
    assert!(!snapshot_changed(&lab, "mid"));
    assert_intact(&lab, "commit");
}

/// Images that are based on the same are found by whatever name, and what is no image does no harm.
#[test]
fn others_are_found_behind_links() {
    let lab = Lab::new();
    chain(&lab, "qcow2", "compat=1.1");
    fs::create_dir(lab.path("elsewhere")).unwrap();
    lab.run("mkfifo fifo elsewhere/fifo").ok();
    symlink("nowhere", lab.path("dangling")).unwrap();
    symlink("/dev/zero", lab.path("zero")).unwrap();
    symlink("fifo", lab.path("fifo-too")).unwrap();
    symlink("elsewhere", lab.path("directory")).unwrap();
    symlink("top", lab.path("top-too")).unwrap();
    // It is based on something that cannot be opened without waiting.
    lab.qemu_img("create -q -u -f qcow2 -b fifo -F raw waits 1M");
    lab.imgtool("commit -d top");

    lab.qemu_img("create -q -f qcow2 -b ../mid -F qcow2 elsewhere/sibling");
    lab.imgtool("commit -d top");
    symlink("elsewhere/sibling", lab.path("link")).unwrap();
    // Wherever they lie, they are named so that they are found.
    let link = fs::canonicalize(lab.dir()).unwrap().join("link");
    let named = format!(": {}\n", link.display());
    lab.run("imgtool commit top")
        .fails(1, &["mid: other images", &named]);
    // One that only makes sense by the name of the link.
    lab.qemu_img("create -q -u -f qcow2 -b mid -F qcow2 elsewhere/sibling 1M");
    lab.run("imgtool commit top")
        .fails(1, &["mid: other images", &named]);
    fs::remove_file(lab.path("link")).unwrap();
    lab.imgtool("commit top");
    assert_intact(&lab, "committed");
}

#[test]
fn an_image_is_not_based_on_its_own_files() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 3);
    lab.qemu_img("create -q -f raw data 1M");
    lab.imgtool("convert -O qcow2 -o data_file=own disk image");
    // It names the image as the file with its data.
    lab.qemu_img("create -q -f qcow2 -o data_file=data taken 64k");
    lab.qemu_img("amend -q -o data_file=image taken");
    lab.imgtool("create -q -f qcow2 -b own -F raw over");
    let before = fs::read(lab.path("image")).unwrap();
    for how in ["", "-u "] {
        for onto in ["own -F raw", "./own -F raw", "taken -F qcow2", "over -F qcow2"] {
            let line = format!("imgtool rebase {how}-b {onto} image");
            lab.run(&line)
                .fails(1, &["image: it cannot be based on", "this image"]);
        }
    }
    assert!(before == fs::read(lab.path("image")).unwrap());
    lab.imgtool("rebase -b disk -F raw image");
    assert_eq!(info(&lab, "image")["backing-filename"], "disk");
    lab.qemu_img("compare -f raw -F qcow2 disk image");
}

/// What is based on an image is raw data to who says so, but it could never be opened as what it is again.
#[test]
fn a_loop_is_found_behind_another_format() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 sm 1M");
    lab.imgtool("create -q -f qcow2 -b sm -F qcow2 lo");
    lab.imgtool("create -q -f qcow2 -b lo -F qcow2 lower");
    let files = ["sm", "lo", "lower"];
    let before = files.map(|name| fs::read(lab.path(name)).unwrap());
    for onto in ["lo", "lower"] {
        for line in [
            format!("rebase -u -b {onto} -F raw sm"),
            format!("rebase -b {onto} -F raw sm"),
            format!("amend -o backing_file={onto},backing_fmt=raw sm"),
        ] {
            lab.run(&format!("imgtool {line}")).fails(
                1,
                &[
                    &format!("sm: it cannot be based on {onto}"),
                    "based on it",
                    "--force",
                ],
            );
        }
    }
    assert!(before == files.map(|name| fs::read(lab.path(name)).unwrap()));
    // Also where the chain is broken, which is what -u is there for.
    lab.imgtool("rebase -u -b gone -F raw sm");
    for format in ["qcow2", "raw"] {
        lab.run(&format!("imgtool rebase -u -b lower -F {format} sm"))
            .fails(1, &["sm: it cannot be based on lower"]);
    }
    // An image that is not based on it is data like any other.
    lab.imgtool("create -q -f qcow2 other 1M");
    lab.imgtool("rebase -u -b other -F raw sm");
    lab.imgtool("rebase -u -b lo -F raw --force sm");
    lab.qemu_img("info --backing-chain sm");
    lab.run("imgtool info --backing-chain lo").fails(1, &["loops"]);
}

#[test]
fn a_raw_data_file_and_a_backing_file_exclude_each_other() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 3);
    lab.imgtool("convert -O qcow2 -o data_file=own,data_file_raw=on disk image");
    lab.qemu_img("create -q -f qcow2 other 1M");
    let before = fs::read(lab.path("image")).unwrap();
    for how in ["", "-u "] {
        let line = format!("imgtool rebase {how}-b other -F qcow2 image");
        lab.run(&line)
            .fails(1, &["image", "data file is raw", "backing file"]);
    }
    lab.imgtool("rebase -u -b= image");
    assert!(before == fs::read(lab.path("image")).unwrap());
    lab.qemu_img("compare -f raw -F qcow2 disk image");
}

/// What an image reads as is the same when what it held has moved to what it is based on.
#[test]
fn emptying_an_image_dirties_nothing() {
    let mut dirty = Vec::new();
    for program in ["imgtool", "qemu-img"] {
        let lab = Lab::new();
        chain(&lab, "qcow2", "compat=1.1");
        for image in ["top", "mid"] {
            lab.qemu_img(&format!("bitmap --add {image} changed"));
        }
        lab.qemu_io("qcow2", "top", &["write -q -P 3 128k 200k"]);
        lab.qemu_img("convert -f qcow2 -O raw top flat");
        lab.run(&format!("{program} commit top")).ok();
        assert_intact(&lab, program);
        let ranges = |image: &str| lab.imgtool(&format!("bitmap --ranges --output json {image} changed"));
        dirty.push((
            ranges("top"),
            info(&lab, "top")["format-specific"]["data"]["bitmaps"].clone(),
        ));
        assert!(ranges("mid").contains("start"), "{program}");
    }
    assert_eq!(dirty[0], dirty[1]);
}
