//! `imgtool snapshot` and `convert -l`, judged by qemu-img.

mod common;

use common::Lab;
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
fn what_either_made_the_other_handles() {
    let lab = Lab::new();
    lab.image_with("disk", "", &["ours"]);
    lab.qemu_img("snapshot -c theirs disk");
    let rows = |text: String| -> Vec<Vec<String>> {
        let rows = text
            .lines()
            .skip(2)
            .map(|row| row.split_whitespace().map(str::to_owned).collect());
        rows.collect()
    };
    let (our, their) = (
        rows(lab.imgtool("snapshot -l disk")),
        rows(lab.qemu_img("snapshot -l disk")),
    );
    for (our, their) in our.iter().zip(&their) {
        // Dates are in UTC here and of the local time there; the machine may be anywhere.
        assert_eq!((&our[..4], our.len()), (&their[..4], their.len()));
    }
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
    let name = std::ffi::OsStr::from_bytes(b"\xff");
    let output = lab
        .command("imgtool")
        .args(["snapshot", "create", "disk"])
        .arg(name)
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("UTF-8"),
        "{output:?}"
    );
    assert!(lab.list("disk").is_empty());
}

/// Killed at any moment, the image is as before or after; a second run finishes the job.
#[test]
fn killed_in_the_middle() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 -o cluster_size=512 disk 64M");
    lab.qemu_io("qcow2", "disk", &["write -q -P 7 0 24M"]);
    for (delay, line) in [
        (1, "snapshot create disk a"),
        (3, "snapshot create disk b"),
        (6, "snapshot create disk c"),
        (2, "snapshot apply disk a"),
        (4, "snapshot delete disk b"),
        (8, "snapshot delete disk c"),
    ] {
        let mut child = lab
            .command("imgtool")
            .args(line.split_whitespace())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().unwrap();
        lab.qemu_io("qcow2", "disk", &["read -q -P 7 0 24M"]);
        let report = lab.run("qemu-img check disk");
        assert!(
            !report.stderr().contains("refcount=0"),
            "{line}: {}",
            report.stderr()
        );
        // Already done, or done now.
        let _ = lab.run(&format!("imgtool {line}"));
        let name = line.rsplit(' ').next().unwrap();
        let there = lab.list("disk").iter().any(|(_, there)| there == name);
        assert_eq!(there, !line.contains("delete"), "{line}");
        lab.imgtool("check -q -r all disk");
        lab.qemu_img("check -q disk");
        lab.qemu_io("qcow2", "disk", &["read -q -P 7 0 24M"]);
    }
}
