//! `imgtool bitmap` against `qemu-img bitmap`.

use crate::common::Lab;
use serde_json::{Value, json};

/// A qcow2 image of 8 MiB, and a copy of it.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 ours 8M");
    lab.qemu_img("create -q -f qcow2 theirs 8M");
    lab
}

/// Both do the same to an image of their own.
fn both_do(lab: &Lab, line: &str) {
    assert_eq!(
        lab.imgtool(&format!("bitmap {}", line.replace("IMG", "ours"))),
        ""
    );
    assert_eq!(
        lab.qemu_img(&format!("bitmap {}", line.replace("IMG", "theirs"))),
        ""
    );
}

fn bitmaps(lab: &Lab, image: &str) -> Value {
    let info = lab.qemu_img(&format!("info --output json {image}"));
    let info: Value = serde_json::from_str(&info).unwrap();
    info["format-specific"]["data"]["bitmaps"].clone()
}

fn ranges(lab: &Lab, image: &str, bitmap: &str) -> Value {
    serde_json::from_str(&lab.imgtool(&format!("bitmap --ranges --output json {image} {bitmap}"))).unwrap()
}

#[test]
fn actions_are_qemu_imgs() {
    let lab = lab();
    let same = |step: &str| {
        let [ours, theirs] = ["ours", "theirs"].map(|image| bitmaps(&lab, image));
        assert_eq!(ours, theirs, "{step}");
        for bitmap in ours.as_array().into_iter().flatten() {
            let name = bitmap["name"].as_str().unwrap();
            let [ours, theirs] = ["ours", "theirs"].map(|image| ranges(&lab, image, name));
            assert_eq!(ours, theirs, "{step}: {name}");
        }
        lab.qemu_img("check ours");
    };
    for (step, line) in [
        "--add IMG a",
        "--add -g 512 -f qcow2 IMG b",
        "--add --disable -g 1M IMG c",
        "--add --disable --enable --clear IMG d",
        "--disable IMG b",
        "--merge a --merge b IMG c",
        "--clear --merge c --merge b IMG a",
        "--merge b --clear IMG d",
        "--add --remove IMG e",
        "--remove IMG b",
        "--merge c -b IMG -F qcow2 IMG d",
        "--remove IMG a",
        "--remove IMG c",
        "--remove IMG d",
    ]
    .iter()
    .enumerate()
    {
        // QEMU cannot merge from the file that it is merging into.
        let theirs = line.replace("-b IMG -F qcow2 ", "");
        lab.imgtool(&format!("bitmap {}", line.replace("IMG", "ours")));
        lab.qemu_img(&format!("bitmap {}", theirs.replace("IMG", "theirs")));
        let write = format!("write {}k 5k", 600 * step);
        lab.qemu_io("qcow2", "ours", &[&write]);
        lab.qemu_io("qcow2", "theirs", &[&write]);
        same(line);
    }
    assert!(bitmaps(&lab, "ours").is_null());
}

#[test]
fn merges_from_another_image() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 other 8M");
    lab.qemu_img("bitmap --add -g 512 other x");
    lab.qemu_img("bitmap --add -g 64k other y");
    lab.qemu_io("qcow2", "other", &["write 1M 700", "discard 5M 64k"]);
    both_do(&lab, "--add -g 4k IMG x");
    both_do(&lab, "--merge x --merge y -b other -F qcow2 IMG x");
    assert_eq!(bitmaps(&lab, "ours"), bitmaps(&lab, "theirs"));
    assert_eq!(ranges(&lab, "ours", "x"), ranges(&lab, "theirs", "x"));
    assert_eq!(
        ranges(&lab, "ours", "x"),
        json!([{ "start": 1 << 20, "length": 65_536 }, { "start": 5 << 20, "length": 65_536 }])
    );
}

#[test]
fn lists_for_people_and_programs() {
    let lab = lab();
    lab.imgtool("bitmap --add ours on");
    lab.imgtool("bitmap --add --disable -g 1M ours stopped");
    lab.qemu_io("qcow2", "ours", &["write 1M 100k"]);
    assert_eq!(
        lab.imgtool("bitmap --list ours"),
        "NAME     GRANULARITY  STATE         DIRTY\n\
         on            64 KiB  enabled       128 KiB\n\
         stopped        1 MiB  disabled      0 B\n"
    );
    let listed: Value = serde_json::from_str(&lab.imgtool("bitmap --list --output json ours")).unwrap();
    assert_eq!(
        listed,
        json!([
            { "name": "on", "granularity": 65_536, "flags": ["auto"], "count": 131_072 },
            { "name": "stopped", "granularity": 1 << 20, "flags": [], "count": 0 },
        ])
    );
    assert_eq!(
        lab.imgtool("bitmap --ranges ours on"),
        "Offset          Length\n0x100000        0x20000\n"
    );
    // Of an image that somebody is writing to, it is known that they are in use.
    let mut bytes = std::fs::read(lab.path("ours")).unwrap();
    let at = bytes.windows(2).rposition(|word| word == b"on").unwrap() - 24;
    bytes[at + 15] |= 1;
    std::fs::write(lab.path("ours"), bytes).unwrap();
    assert!(lab.imgtool("bitmap --list ours").contains("inconsistent  -"));
    lab.assert_same_json("info --output json ours");
}

#[test]
fn bad_input_is_one_line_and_changes_nothing() {
    let lab = lab();
    lab.imgtool("bitmap --add ours there");
    lab.qemu_img("create -q -f qcow2 small 1M");
    lab.qemu_img("bitmap --add small x");
    lab.qemu_img("create -q -f qcow2 -o compat=0.10 old 1M");
    lab.qemu_img("create -q -f raw raw 1M");
    let before = std::fs::read(lab.path("ours")).unwrap();
    let long = "n".repeat(1024);
    for (line, words) in [
        ("--add ours there", "'there' already"),
        ("--add --clear --merge gone ours new", "no bitmap 'gone'"),
        ("--remove ours gone", "no bitmap 'gone'"),
        ("--ranges ours gone", "no bitmap 'gone'"),
        (&format!("--add ours {long}"), "1023 bytes"),
        ("--add -g 1000 ours new", "1000 bytes"),
        ("--add -g 4G ours new", "4294967296 bytes"),
        ("--add -g nonsense ours new", "nonsense"),
        ("--clear -g 64k ours there", "-g is for --add"),
        ("--clear -b small ours there", "-b is for --merge"),
        ("--merge x -b small ours there", "1048576 bytes"),
        ("--merge x -b none ours there", "none"),
        ("ours there", "--add"),
        ("--list --clear ours", "change nothing"),
        ("--add old x", "version 2"),
        ("--add -f raw raw x", "a raw image has no bitmaps"),
    ] {
        lab.run(&format!("imgtool bitmap {line}")).fails(1, &[words]);
        assert!(std::fs::read(lab.path("ours")).unwrap() == before, "{line}");
    }
    lab.run_words(&["imgtool", "bitmap", "--add", "ours", ""])
        .fails(1, &["cannot be empty"]);
    assert!(std::fs::read(lab.path("ours")).unwrap() == before);
}

/// The data file is opened, and what lies below is not.
#[test]
fn of_an_image_that_is_not_alone() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 -o data_file=data,data_file_raw=on image 1M");
    lab.imgtool("bitmap --add image x");
    lab.raw("raw", 1 << 20, 1);
    lab.imgtool("convert -n -O qcow2 raw image");
    assert_eq!(
        ranges(&lab, "image", "x"),
        json!([{ "start": 0, "length": 1 << 20 }])
    );
    lab.qemu_img("check image");
    lab.qemu_img("create -q -f qcow2 -u -b gone -F raw overlay 1M");
    lab.imgtool("bitmap --add overlay x");
    assert_eq!(ranges(&lab, "overlay", "x"), json!([]));
}

/// An image with a bitmap that is enabled, one that is not, and one that was not saved.
fn with_bitmaps(lab: &Lab) {
    lab.qemu_img("create -q -f qcow2 image 8M");
    for line in [
        "--add -g 64k image on",
        "--add -g 512 image off",
        "--add image lost",
    ] {
        lab.qemu_img(&format!("bitmap {line}"));
    }
    lab.qemu_io("qcow2", "image", &["write 100k 3M", "write 7M 512"]);
    lab.qemu_img("bitmap --disable image off");
    let mut bytes = std::fs::read(lab.path("image")).unwrap();
    let at = bytes.windows(4).rposition(|word| word == b"lost").unwrap() - 24;
    bytes[at + 15] |= 1;
    std::fs::write(lab.path("image"), bytes).unwrap();
}

#[test]
fn convert_copies_bitmaps() {
    let lab = Lab::new();
    with_bitmaps(&lab);
    let refused = lab.run("imgtool convert --bitmaps -O qcow2 image out");
    refused.fails(1, &["'lost' is inconsistent", "--skip-broken-bitmaps"]);
    assert_eq!(lab.names(), ["image"]);
    for options in ["", "-c", "-o cluster_size=512", "-o size=20M"] {
        let line = format!("convert --bitmaps --skip-broken-bitmaps {options} -O qcow2 image");
        let done = lab.run(&format!("imgtool {line} ours"));
        let warning = done.stderr();
        assert!(
            warning.contains("warning") && warning.contains("'lost'"),
            "{warning}"
        );
        done.ok();
        lab.qemu_img(&format!("{line} theirs"));
        assert_eq!(bitmaps(&lab, "ours"), bitmaps(&lab, "theirs"), "{options}");
        for name in ["on", "off"] {
            let [ours, theirs] = ["ours", "theirs"].map(|image| ranges(&lab, image, name));
            assert_eq!(ours, theirs, "{options} {name}");
        }
        lab.qemu_img("check ours");
        lab.qemu_img("compare image ours");
    }
}

#[test]
fn convert_into_an_image_that_has_bitmaps() {
    let lab = Lab::new();
    with_bitmaps(&lab);
    lab.imgtool("bitmap --remove image lost");
    lab.imgtool("create -q -f qcow2 target 8M");
    lab.imgtool("bitmap --add target own");
    lab.imgtool("convert -n --bitmaps -O qcow2 image target");
    assert_eq!(ranges(&lab, "target", "off"), ranges(&lab, "image", "off"));
    // The copy itself is a change of the disk.
    assert_eq!(ranges(&lab, "target", "own")[0]["length"], 8 << 20);
    lab.qemu_img("check target");
    let before = std::fs::read(lab.path("target")).unwrap();
    lab.run("imgtool convert -n --bitmaps -O qcow2 image target")
        .fails(1, &["a bitmap 'on' already"]);
    assert!(std::fs::read(lab.path("target")).unwrap() == before);
}

#[test]
fn bitmaps_that_cannot_be_copied() {
    let lab = Lab::new();
    with_bitmaps(&lab);
    lab.raw("raw", 1 << 20, 1);
    let names = lab.names();
    for (line, words) in [
        ("--bitmaps -O raw image out", "raw image"),
        ("--bitmaps -O qcow2 -o compat=0.10 image out", "version 2"),
        ("--bitmaps -O qcow2 raw out", "a raw image has no bitmaps"),
        ("--bitmaps -O qcow2 image image out", "one image only"),
        ("--bitmaps -O qcow2 image -", "standard output"),
    ] {
        lab.run(&format!("imgtool convert {line}")).fails(1, &[words]);
        assert_eq!(lab.names(), names, "{line}");
    }
}

#[test]
fn bitmaps_are_measured() {
    let lab = Lab::new();
    with_bitmaps(&lab);
    for options in [
        "-O qcow2",
        "-O qcow2 -o cluster_size=512",
        "-O qcow2 -o cluster_size=2M",
        "-O qcow2 -o compat=0.10",
        "-O raw",
    ] {
        lab.assert_same_json(&format!("measure --output json {options} image"));
        let line = format!("measure {options} image");
        assert_eq!(lab.imgtool(&line), lab.qemu_img(&line));
    }
}

/// Bitmaps are of the disk as it is now, and asking for them does not switch off what else is looked at.
#[test]
fn bitmaps_are_not_copied_onto_something_else() {
    let lab = lab();
    lab.qemu_img("bitmap --add ours a");
    lab.qemu_img("snapshot -c then ours");
    for (line, says) in [
        ("-l then -O qcow2 ours new", "--bitmaps and -l"),
        ("-n -l then -O qcow2 ours theirs", "--bitmaps and -l"),
        ("-c -O raw ours new", "compressed"),
        ("-c -O qcow2 -o preallocation=full ours new", "preallocated"),
        ("-c --level 20 -O qcow2 ours new", "no such level"),
        ("-O raw ours new", "raw image cannot have bitmaps"),
    ] {
        lab.run(&format!("imgtool convert --bitmaps {line}"))
            .fails(1, &[says]);
        assert_eq!(lab.names(), ["ours", "theirs"], "{line}");
        assert!(bitmaps(&lab, "theirs").is_null(), "{line}");
    }
}
