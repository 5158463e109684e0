//! `imgtool snapshot` and `convert -l`, judged by qemu-img.

use std::time::Duration;

use crate::common::{Lab, killed_inside};
use serde_json::Value;

impl Lab {
    /// An image with a 1 MiB pattern and a snapshot of it for each of `names`, and something else on its disk now.
    fn image_with(&self, name: &str, options: &str, snapshots: &[&str]) {
        self.qemu_img(&format!("create -q -f qcow2 {options} {name} 8M"));
        for (number, snapshot) in (1..).zip(snapshots) {
            self.qemu_io("qcow2", name, &[&format!("write -q -P {number} 1M 1M")]);
            self.run_words(&["imgtool", "snapshot", "create", name, snapshot])
                .ok();
        }
        self.qemu_io("qcow2", name, &["write -q -P 99 1M 2M"]);
    }

    /// Both agree that 1 MiB of a snapshot, or of the disk, is `pattern`.
    fn assert_holds(&self, image: &str, snapshot: Option<&str>, pattern: u8) {
        let mut words = vec!["convert", "-O", "raw"];
        words.extend(snapshot.iter().flat_map(|snapshot| ["-l", snapshot]));
        words.extend([image, "held"]);
        for program in ["imgtool", "qemu-img"] {
            self.run_words(&[&[program][..], &words].concat()).ok();
            let held = std::fs::read(self.path("held")).unwrap();
            assert!(
                held[1 << 20..2 << 20].iter().all(|byte| *byte == pattern),
                "{program} {words:?}"
            );
        }
    }

    fn list(&self, image: &str) -> Vec<(String, String)> {
        let text = self.imgtool(&format!("snapshot list --output json {image}"));
        let list: Vec<Value> = serde_json::from_str(&text).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        list.iter()
            .map(|snapshot| (text(&snapshot["id"]), text(&snapshot["name"])))
            .collect()
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(id, name)| ((*id).to_owned(), (*name).to_owned()))
        .collect()
}

#[test]
fn a_life_with_snapshots() {
    for options in [
        "",
        "-o compat=0.10",
        "-o extended_l2=on,cluster_size=128k",
        "-o cluster_size=512,refcount_bits=4",
    ] {
        let lab = Lab::new();
        lab.image_with("disk", options, &["one", "two"]);
        assert_eq!(
            lab.list("disk"),
            pairs(&[("1", "one"), ("2", "two")]),
            "{options}"
        );
        lab.assert_holds("disk", Some("one"), 1);
        lab.assert_holds("disk", Some("snapshot.id=2,snapshot.name=two"), 2);
        lab.assert_holds("disk", None, 99);
        lab.qemu_img("check -q disk");

        lab.imgtool("snapshot apply disk one");
        lab.assert_holds("disk", None, 1);
        lab.imgtool("snapshot rename disk one first");
        lab.imgtool("snapshot -c three disk");
        assert_eq!(
            lab.list("disk"),
            pairs(&[("1", "first"), ("2", "two"), ("3", "three")])
        );
        lab.imgtool("snapshot delete disk two");
        lab.qemu_img("check -q disk");
        lab.imgtool("snapshot -a snapshot.id=3 disk");
        lab.imgtool("snapshot -d first disk");
        lab.imgtool("snapshot -q -d three disk");
        assert!(lab.list("disk").is_empty());
        assert_eq!(lab.imgtool("snapshot disk"), "");
        lab.assert_holds("disk", None, 1);
        lab.qemu_img("check -q disk");
    }
}

#[test]
fn programs_are_told_what_snapshots_there_are_after_a_change() {
    let lab = Lab::new();
    lab.image_with("disk", "", &["one"]);
    for (line, names) in [
        ("create --output json disk two", &["one", "two"][..]),
        ("--output json -c three disk", &["one", "two", "three"]),
        ("rename --output json disk one first", &["first", "two", "three"]),
        ("apply --output json disk two", &["first", "two", "three"]),
        ("delete --output json disk two", &["first", "three"]),
        ("--output json -d first disk", &["three"]),
        ("--output json -d three disk", &[]),
    ] {
        let said: Value = serde_json::from_str(&lab.imgtool(&format!("snapshot {line}"))).unwrap();
        let listed: Value = serde_json::from_str(&lab.imgtool("snapshot list --output json disk")).unwrap();
        assert_eq!(said, listed, "{line}");
        let said = said.as_array().unwrap().iter();
        assert_eq!(said.map(|snapshot| &snapshot["name"]).collect::<Vec<_>>(), names);
    }
}

#[test]
fn what_either_made_the_other_handles() {
    let lab = Lab::new();
    lab.image_with("disk", "", &["ours"]);
    lab.qemu_img("snapshot -c theirs disk");
    assert_eq!(lab.imgtool("snapshot -l disk"), lab.qemu_img("snapshot -l disk"));
    lab.qemu_img("snapshot -a ours disk");
    lab.assert_holds("disk", None, 1);
    lab.imgtool("snapshot apply disk theirs");
    lab.assert_holds("disk", None, 99);
    lab.qemu_img("snapshot -d ours disk");
    lab.imgtool("snapshot delete disk theirs");
    lab.qemu_img("check -q disk");
}

#[test]
fn a_snapshot_is_exported_with_what_it_is_based_on() {
    let lab = Lab::new();
    lab.raw("base", 8 << 20, 1);
    lab.image_with("disk", "-b base -F raw", &["one"]);
    lab.imgtool("snapshot export -O qcow2 disk one new");
    lab.qemu_img("convert -l one -O raw disk expected");
    lab.qemu_img("compare -q -f raw -F qcow2 expected new");
    lab.qemu_img("check -q new");
    lab.imgtool("resize -q disk 16M");
    lab.imgtool("convert -l one disk shorter");
    assert_eq!(lab.path("shorter").metadata().unwrap().len(), 8 << 20);
    lab.imgtool("snapshot apply disk one");
    let info: Value = serde_json::from_str(&lab.qemu_img("info --output json disk")).unwrap();
    assert_eq!(info["virtual-size"], 8 << 20);
}

#[test]
fn bad_input_is_one_line_and_changes_nothing() {
    let lab = Lab::new();
    lab.image_with("disk", "", &["one", "two"]);
    lab.imgtool("snapshot rename disk two 1");
    lab.raw("raw", 1 << 20, 1);
    let before = std::fs::read(lab.path("disk")).unwrap();
    let long = "x".repeat(70_000);
    for (words, says) in [
        (&["create", "disk", "one"][..], &["disk", "one"][..]),
        (&["create", "disk", ""], &["disk"]),
        (&["create", "disk", &long], &["disk"]),
        (&["apply", "disk", "three"], &["disk", "three"]),
        (&["delete", "disk", ""], &["disk"]),
        (&["delete", "disk", "snapshot.id=7"], &["disk", "7"]),
        (&["rename", "disk", "one", "1"], &["disk", "1"]),
        (&["rename", "disk", "one", ""], &["disk"]),
        (&["create", "raw", "one"], &["raw", "no internal snapshots"]),
        (&["list", "missing"], &["missing"]),
        (&["-U", "-d", "one", "disk"], &["disk", "-U"]),
        (&["export", "disk", "one"], &["have to be named"]),
        (&["export", "disk", "three", "new"], &["disk", "three"]),
    ] {
        lab.run_words(&[&["imgtool", "snapshot"], words].concat())
            .fails(1, says);
        assert!(std::fs::read(lab.path("disk")).unwrap() == before, "{words:?}");
        assert_eq!(lab.names(), ["disk", "raw"], "{words:?}");
    }
    lab.run("imgtool convert -l three disk new")
        .fails(1, &["disk", "three"]);
    lab.run("imgtool convert -l one raw new").fails(1, &["raw"]);
    lab.run("imgtool convert -l one disk disk new")
        .fails(1, &["-l is for one image"]);
}

#[test]
fn a_name_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let lab = Lab::new();
    lab.image_with("disk", "", &[]);
    lab.qemu_img("bitmap --add disk kept");
    let name = std::ffi::OsStr::from_bytes(b"\xff");
    for line in [
        "snapshot create disk NAME",
        "snapshot apply disk NAME",
        "snapshot delete disk NAME",
        "snapshot rename disk kept NAME",
        "snapshot export disk NAME new",
        "snapshot -c NAME disk",
        "convert -l NAME -O raw disk new",
        "bitmap --add disk NAME",
        "bitmap --remove disk NAME",
        "bitmap --merge NAME disk kept",
    ] {
        let mut command = lab.command("imgtool");
        command.args(
            line.split(' ')
                .map(|word| if word == "NAME" { name } else { word.as_ref() }),
        );
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(
            stderr.contains("UTF-8") && stderr.lines().count() == 1,
            "{line}: {stderr}"
        );
    }
    assert!(lab.list("disk").is_empty());
    assert!(lab.qemu_img("info disk").contains("kept"));
}

/// Killed in the middle, the image is as before or as after, and a second run finishes the job.
#[test]
fn killed_in_the_middle() {
    const SIZE: usize = 32 << 20;
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 -o cluster_size=512 origin 32M");
    lab.qemu_io("qcow2", "origin", &["write -q -P 7 0 24M"]);
    lab.qemu_img("snapshot -c a origin");
    lab.qemu_io("qcow2", "origin", &["write -q -P 8 3M 12M"]);
    let mut then = vec![7; SIZE];
    then[24 << 20..].fill(0);
    let mut now = then.clone();
    now[3 << 20..15 << 20].fill(8);
    let reads = |which: &str| {
        lab.qemu_img(&format!("convert -f qcow2 -O raw {which} disk seen"));
        std::fs::read(lab.path("seen")).unwrap()
    };
    let sound = |line: &str| lab.assert_harmless("qcow2", "disk", line);
    for line in [
        "snapshot create disk b",
        "snapshot apply disk a",
        "snapshot delete disk a",
    ] {
        let mut hits = 0;
        // A run that is too fast for the machine is no kill, and is tried again.
        for attempt in 0..200 {
            std::fs::copy(lab.path("origin"), lab.path("disk")).unwrap();
            if !killed_inside(&lab, line, Duration::from_micros(attempt % 8 * 700)) {
                continue;
            }
            hits += 1;
            sound(line);
            let disk = reads("");
            let applied = line.contains("apply") && disk == then;
            assert!(disk == now || applied, "{line}: the disk is neither old nor new");
            let names: Vec<String> = lab.list("disk").into_iter().map(|(_, name)| name).collect();
            for name in &names {
                let expected = if name == "a" { &then } else { &now };
                assert!(reads(&format!("-l {name}")) == *expected, "{line}: {name}");
            }
            // Done already, or done now.
            let done = match line {
                _ if line.contains("create") => names.iter().any(|name| name == "b"),
                _ if line.contains("delete") => names.is_empty(),
                _ => false,
            };
            if !done {
                lab.imgtool(line);
            }
            sound(line);
            assert!(reads("") == if line.contains("apply") { &then[..] } else { &now });
            assert_eq!(
                lab.list("disk").len(),
                if line.contains("create") {
                    2
                } else {
                    usize::from(line.contains("apply"))
                }
            );
            lab.imgtool("check -q -r all disk");
            lab.qemu_img("check -q disk");
            if hits == 4 {
                break;
            }
        }
        assert_eq!(hits, 4, "{line}: it was never killed in the middle often enough");
    }
}
