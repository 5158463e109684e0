//! `imgtool commit`, beside `qemu-img commit`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;

use crate::common::{Lab, assert_intact, chain, kill_and_finish};
use serde_json::Value;

/// The same chain twice: for both programs.
fn twins(origin: &Lab) -> [Lab; 2] {
    [(); 2].map(|()| {
        let twin = Lab::new();
        for name in origin.names() {
            fs::copy(origin.path(&name), twin.path(&name)).unwrap();
        }
        twin
    })
}

fn info(lab: &Lab, name: &str) -> Value {
    serde_json::from_str(&lab.qemu_img(&format!("info --output=json {name}"))).unwrap()
}

/// Both say the same of `name`, whose contents are the same too.
fn assert_same(labs: &[Lab; 2], format: &str, name: &str, what: &str) {
    let [ours, theirs] = labs;
    for field in ["virtual-size", "backing-filename", "backing-filename-format"] {
        assert_eq!(
            info(ours, name)[field],
            info(theirs, name)[field],
            "{what}: {name}, {field}"
        );
    }
    let other = theirs.path(name);
    let line = format!(
        "qemu-img compare -f {format} -F {format} {name} {}",
        other.display()
    );
    let compared = ours.run(&line);
    assert_eq!(compared.code(), 0, "{what}: {name}: {}", compared.stdout());
    if format == "qcow2" {
        let check = ours.run(&format!("qemu-img check -q -f qcow2 {name}"));
        assert_eq!(check.code(), 0, "{what}: {name}: {}", check.stderr());
    }
}

#[test]
fn leaves_what_qemu_img_leaves() {
    for (format, options) in [
        ("raw", "compat=1.1"),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "cluster_size=512"),
    ] {
        let origin = Lab::new();
        chain(&origin, format, options);
        for how in ["", "-d", "-b base", "-b mid"] {
            let what = format!("{format} {options} {how}");
            let labs = twins(&origin);
            assert_eq!(
                labs[0].imgtool(&format!("commit {how} top")),
                "Image committed.\n"
            );
            labs[1].qemu_img(&format!("commit {how} top"));
            assert_intact(&labs[0], &what);
            for (name, format) in [("top", "qcow2"), ("mid", "qcow2"), ("base", format)] {
                // What is in between is undefined.
                if !(how == "-b base" && name == "mid") {
                    assert_same(&labs, format, name, &what);
                }
            }
            let mapped = |lab: &Lab| {
                lab.imgtool("map --output json top")
                    .contains("\"depth\": 0, \"present\": true")
            };
            assert_eq!(mapped(&labs[0]), mapped(&labs[1]), "{what}");
            assert_eq!(mapped(&labs[0]), !how.is_empty(), "{what}");
        }
    }
}

#[test]
fn a_killed_run_does_no_harm_and_a_second_one_finishes() {
    for (format, how) in [("raw", "top"), ("qcow2", "-b base top")] {
        let lab = Lab::new();
        chain(&lab, format, "cluster_size=4k");
        kill_and_finish(&lab, &format!("commit {how}"), "-r 40k");
    }
}

#[test]
fn an_interrupt_stops_it() {
    let lab = Lab::new();
    chain(&lab, "qcow2", "compat=1.1");
    let mut child = lab
        .command("imgtool")
        .args(["commit", "-r", "100k", "--progress", "json", "top"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Once it says how far it is, there is something to interrupt.
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    lines.read_line(&mut said).unwrap();
    assert!(said.starts_with('{'), "{said}");
    lab.run(&format!("kill -INT {}", child.id())).ok();
    let mut stderr = String::new();
    lines.read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        stderr.contains("interrupted; the image reads as before"),
        "{stderr}"
    );
    assert_intact(&lab, "interrupted");
}

#[test]
fn a_base_that_others_use_is_left_alone_unless_forced() {
    let lab = Lab::new();
    chain(&lab, "qcow2", "compat=1.1");
    lab.qemu_img("create -q -f qcow2 -b mid -F qcow2 sibling");
    let before = fs::read(lab.path("mid")).unwrap();
    lab.run("imgtool commit top")
        .fails(1, &["mid: other images", "sibling", "--force"]);
    // Of a base further down everything in between changes too.
    lab.run("imgtool commit -b base top")
        .fails(1, &["base: other images", "sibling"]);
    assert!(before == fs::read(lab.path("mid")).unwrap());
    lab.imgtool("commit --force top");
    assert_intact(&lab, "forced");
    // One that is locked stays as it is even then.
    let _guest = lab.guest("mid");
    lab.run("imgtool commit --force top").fails(1, &["mid", "lock"]);
}

#[test]
fn refuses_what_makes_no_sense() {
    let lab = Lab::new();
    chain(&lab, "raw", "compat=1.1");
    lab.run("imgtool commit base")
        .fails(1, &["base", "no backing file"]);
    lab.run("imgtool commit -b top top")
        .fails(1, &["top", "not based on", "mid, base"]);
    lab.run("imgtool commit -r 0 top").fails(1, &["-r 0"]);
    fs::rename(lab.path("base"), lab.path("gone")).unwrap();
    lab.run("imgtool commit top").fails(1, &["base"]);
    fs::rename(lab.path("gone"), lab.path("base")).unwrap();
    assert_intact(&lab, "refused");
}

/// What the tables of an overlay call data may be a hole of its file: it becomes one of the base too.
#[test]
fn holes_under_mapped_clusters_are_holes_of_the_base() {
    let lab = Lab::new();
    lab.raw("base", 8 << 20, 1);
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata,cluster_size=2M top 1T");
    lab.qemu_io("qcow2", "top", &["write -q -P 5 3M 1M", "write -q -P 6 700G 64k"]);
    lab.qemu_img("convert -f qcow2 -O raw top flat");
    lab.qemu_img("rebase -u -b base -F raw top");
    let text = lab.imgtool("commit --output json top");
    let summary: Value = serde_json::from_str(&text).unwrap();
    let data = (1 << 20) + (64 << 10);
    assert_eq!(summary["data-bytes"].as_u64().unwrap(), data, "{summary}");
    lab.qemu_img("compare -f raw -F raw flat base");
    lab.qemu_img("compare -f raw -F qcow2 flat top");
    let taken = fs::metadata(lab.path("base")).unwrap().blocks() * 512;
    assert!(taken <= data + (64 << 10), "{taken} bytes are taken");
}

#[test]
fn tells_programs_what_it_did() {
    let lab = Lab::new();
    chain(&lab, "raw", "compat=1.1");
    let text = lab.imgtool("commit -p --output json top");
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["base"], "mid");
    assert_eq!(summary["emptied"], true);
    assert!(summary["data-bytes"].as_u64().unwrap() >= 764 << 10, "{summary}");
    assert!(summary["zero-bytes"].as_u64().unwrap() >= 64 << 10, "{summary}");
}
