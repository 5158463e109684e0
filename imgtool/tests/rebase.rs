//! `imgtool rebase` and `imgtool stream`, beside `qemu-img rebase`.

use std::fs;

use crate::common::{Lab, assert_intact, chain, kill_and_finish};
use serde_json::Value;

fn backing(lab: &Lab, name: &str) -> (Option<String>, Option<String>) {
    let info: Value = serde_json::from_str(&lab.qemu_img(&format!("info --output=json {name}"))).unwrap();
    let field = |key: &str| info[key].as_str().map(ToOwned::to_owned);
    (field("backing-filename"), field("backing-filename-format"))
}

fn allocated(lab: &Lab, name: &str) -> u64 {
    let check: Value = serde_json::from_str(&lab.qemu_img(&format!("check --output=json {name}"))).unwrap();
    check["allocated-clusters"].as_u64().unwrap_or(0)
}

/// A chain, and images of other lengths to base it on: `short`, `long` and `copy`, which differs from `base` in one place.
fn lab(format: &str, options: &str) -> Lab {
    let lab = Lab::new();
    chain(&lab, format, options);
    lab.raw("short", 1 << 20, 7);
    lab.raw("long", 12 << 20, 8);
    lab.qemu_img(&format!("convert -f {format} -O qcow2 base copy"));
    lab.qemu_io("qcow2", "copy", &["write -q -P 99 4M 4k"]);
    lab
}

const ONTO: [(&str, &str); 6] = [
    ("-b base -F", "FORMAT"),
    ("-b short -F", "raw"),
    ("-b long -F", "raw"),
    ("-b copy -F", "qcow2"),
    ("-c -b copy -F", "qcow2"),
    ("-b", ""),
];

#[test]
fn leaves_what_qemu_img_leaves() {
    for (format, options) in [
        ("raw", "compat=1.1"),
        ("qcow2", "compat=0.10,cluster_size=4k"),
        ("raw", "cluster_size=512"),
    ] {
        let lab = lab(format, options);
        fs::copy(lab.path("top"), lab.path("before")).unwrap();
        for (onto, with) in ONTO {
            let with = if with == "FORMAT" { format } else { with };
            let what = format!("{format} {options} {onto} {with}");
            let rebase = |program, image| {
                fs::copy(lab.path("before"), lab.path(image)).unwrap();
                let mut words = vec![program, "rebase"];
                words.extend(onto.split(' '));
                words.extend([with, image]);
                assert_eq!(lab.run_words(&words).ok(), "", "{what}");
            };
            rebase("imgtool", "top");
            rebase("qemu-img", "theirs");
            assert_intact(&lab, &what);
            let clean = lab.run("qemu-img check -q -f qcow2 top");
            assert_eq!(clean.code(), 0, "{what}: {}", clean.stderr());
            assert_eq!(backing(&lab, "top"), backing(&lab, "theirs"), "{what}");
            // Only what differs takes room.
            assert!(allocated(&lab, "top") <= allocated(&lab, "theirs"), "{what}");
        }
    }
}

#[test]
fn unsafe_changes_the_name_alone() {
    let lab = lab("raw", "compat=1.1");
    fs::rename(lab.path("mid"), lab.path("moved")).unwrap();
    lab.run("imgtool rebase -b moved -F qcow2 top")
        .fails(1, &["mid", "-u"]);
    let before = fs::metadata(lab.path("top")).unwrap().len();
    lab.imgtool("rebase -u -b moved -F qcow2 top");
    assert_eq!(backing(&lab, "top"), (Some("moved".into()), Some("qcow2".into())));
    assert_eq!(fs::metadata(lab.path("top")).unwrap().len(), before);
    fs::copy(lab.path("moved"), lab.path("mid")).unwrap();
    assert_intact(&lab, "renamed");
    // The new one need not be there.
    lab.imgtool("rebase -u -b nowhere -F raw top");
    assert_eq!(backing(&lab, "top").0, Some("nowhere".into()));
    let long = "n".repeat(1023);
    lab.imgtool(&format!("rebase -u -b {long} -F raw top"));
    assert_eq!(backing(&lab, "top").0, Some(long));
    lab.imgtool("rebase -u -b mid -F qcow2 top");
    assert_intact(&lab, "and back");
}

#[test]
fn refuses_what_makes_no_sense_and_changes_nothing() {
    let lab = lab("raw", "compat=1.1");
    let before = fs::read(lab.path("top")).unwrap();
    lab.qemu_img("create -q -f qcow2 -b top -F qcow2 child");
    for (line, says) in [
        ("rebase top", ["not named", "-b"]),
        ("rebase -b nosuch -F raw top", ["nosuch", "No such file"]),
        ("rebase -b mid top", ["not stated", "-F qcow2"]),
        ("rebase -b mid -F vmdk top", ["vmdk", "known formats"]),
        ("rebase -b top -F qcow2 top", ["top", "this image"]),
        ("rebase -b child -F qcow2 top", ["child", "this image"]),
        ("rebase -u -b top -F qcow2 top", ["top", "this image"]),
        ("rebase -u -b child -F qcow2 top", ["child", "this image"]),
        ("rebase -U -b mid -F qcow2 top", ["-U", "not supported"]),
        (
            "rebase -f raw -u -b long -F raw base",
            ["raw image", "no backing file"],
        ),
        ("stream --base nosuch top", ["not based on", "mid, base"]),
        ("stream --base top top", ["not based on", "mid, base"]),
    ] {
        lab.run(&format!("imgtool {line}")).fails(1, &says);
    }
    let long = "n".repeat(1024);
    lab.run(&format!("imgtool rebase -u -b {long} -F raw top"))
        .fails(1, &["1023"]);
    assert!(fs::read(lab.path("top")).unwrap() == before);
}

#[test]
fn a_killed_run_does_no_harm_and_a_second_one_finishes() {
    for line in ["rebase -b long -F raw top", "rebase -c -b short -F raw top"] {
        let lab = lab("qcow2", "cluster_size=4k");
        kill_and_finish(&lab, line, "-r 40k");
        assert_eq!(backing(&lab, "top").1, Some("raw".into()), "{line}");
    }
    for (base, line) in [(None, "stream top"), (Some("base"), "stream --base base top")] {
        let lab = lab("qcow2", "cluster_size=4k");
        kill_and_finish(&lab, line, "-r 10k");
        assert_eq!(backing(&lab, "top").0.as_deref(), base, "{line}");
    }
}

#[test]
fn streams_any_part_of_a_chain() {
    let lab = lab("raw", "compat=1.1");
    let before = ["mid", "base"].map(|name| fs::read(lab.path(name)).unwrap());
    let text = lab.imgtool("stream --output json --base base top");
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["backing-filename"], "base");
    assert_eq!(backing(&lab, "top"), (Some("base".into()), Some("raw".into())));
    assert_intact(&lab, "streamed a part");
    // The other way: base over again, now that it is the next.
    lab.imgtool("stream -c top");
    assert_eq!(backing(&lab, "top"), (None, None));
    assert_intact(&lab, "streamed all");
    assert!(before == ["mid", "base"].map(|name| fs::read(lab.path(name)).unwrap()));
}

/// Names are relative to the image that has them.
#[test]
fn a_stream_finds_the_way_to_another_directory() {
    let lab = lab("raw", "compat=1.1");
    fs::create_dir_all(lab.path("a/b")).unwrap();
    fs::create_dir_all(lab.path("c")).unwrap();
    lab.qemu_img("create -q -f qcow2 -b ../top -F qcow2 c/one");
    lab.qemu_img("create -q -f qcow2 -b ../../c/one -F qcow2 a/b/two");
    lab.imgtool("stream --base top a/b/two");
    assert_eq!(
        backing(&lab, "a/b/two"),
        (Some("../../top".into()), Some("qcow2".into()))
    );
    lab.qemu_img("compare -f raw -F qcow2 flat a/b/two");
}
