//! Images that are served by NBD, judged by qemu-img on the same exports.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::Lab;
use serde_json::Value;

/// A server in the background, ended with the test.
pub(crate) struct Served {
    uri: String,
    pid: PathBuf,
}

impl Served {
    /// qemu-nbd of an image of the lab, for as many clients as come.
    pub(crate) fn qemu(lab: &Lab, format: &str, image: &str, options: &str) -> Self {
        let (uri, socket, pid) = Self::names(lab, &format!("{image}-{format}"));
        lab.run(&format!(
            "qemu-nbd --fork -t -e 8 {options} -k {socket} --pid-file {} -f {format} {image}",
            pid.display()
        ))
        .ok();
        Self { uri, pid }
    }

    fn nbdkit(lab: &Lab, name: &str, arguments: &str) -> Self {
        let (uri, socket, pid) = Self::names(lab, name);
        lab.run(&format!("nbdkit -U {socket} -P {} {arguments}", pid.display()))
            .ok();
        Self { uri, pid }
    }

    fn names(lab: &Lab, name: &str) -> (String, String, PathBuf) {
        let socket = lab.path(&format!("{name}.socket")).to_str().unwrap().to_owned();
        (
            format!("nbd+unix:///?socket={socket}"),
            socket,
            lab.path(&format!("{name}.pid")),
        )
    }

    /// Ends it, and waits until it has let go of its image.
    pub(crate) fn stop(&self) {
        let pid = fs::read_to_string(&self.pid).unwrap();
        let ended = "kill $0; for n in $(seq 600); do [ -e /proc/$0 ] || exit 0; sleep 0.05; done; exit 1";
        let ended = Command::new("sh")
            .args(["-c", ended, pid.trim()])
            .output()
            .unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The test may have stopped it.
        if let Ok(pid) = fs::read_to_string(&self.pid) {
            let _ = Command::new("kill").arg(pid.trim()).output();
        }
    }
}

/// A raw image, and the same as qcow2 with holes.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.raw("raw", 9 << 20, 1);
    lab.qemu_img("convert -f raw -O qcow2 raw qcow2");
    lab.qemu_img("resize -q -f qcow2 qcow2 64M");
    lab.qemu_img("convert -f qcow2 -O raw qcow2 expected");
    lab
}

#[test]
fn a_served_disk_is_copied_compared_and_mapped() {
    let lab = lab();
    let served = Served::qemu(&lab, "qcow2", "qcow2", "-r");
    let uri = &served.uri;
    for format in ["raw", "qcow2"] {
        lab.imgtool(&format!("convert -f raw -O {format} {uri} copy"));
        lab.qemu_img(&format!("compare -q -f raw -F {format} expected copy"));
    }
    // What is known as a hole is not fetched.
    assert!(fs::metadata(lab.path("copy")).unwrap().len() < 16 << 20);
    lab.imgtool(&format!("compare {uri} qcow2"));
    lab.imgtool(&format!("dd bs=1M skip=2 count=3 if={uri} of=part"));
    lab.run("dd status=none bs=1M skip=2 count=3 if=expected of=expected-part")
        .ok();
    lab.run("cmp part expected-part").ok();
    let [ours, theirs] = lab.both(&format!("map -f raw --output json {uri}"));
    let zero_bytes = |map: &Value| -> u64 {
        let zeros = map.as_array().unwrap().iter().filter(|run| run["zero"] == true);
        zeros.map(|run| run["length"].as_u64().unwrap()).sum()
    };
    assert_eq!(zero_bytes(&ours), zero_bytes(&theirs));
    assert!(zero_bytes(&ours) > 50 << 20);
    let [ours, theirs] = lab.both(&format!("measure -f raw -O qcow2 --output json {uri}"));
    assert_eq!(ours, theirs);
}

#[test]
fn what_is_said_of_a_served_image_is_what_qemu_says() {
    let lab = lab();
    let raw = Served::qemu(&lab, "qcow2", "qcow2", "-r");
    // The image's own bytes, with the format in them.
    let file = Served::qemu(&lab, "raw", "qcow2", "-r");
    for (uri, format) in [(&raw.uri, "raw"), (&file.uri, "qcow2")] {
        let [mut ours, mut theirs] = lab.both(&format!("info -f {format} --output json {uri}"));
        for info in [&mut ours, &mut theirs] {
            // QEMU writes the address in its own way.
            info["filename"].take();
            info["children"][0]["info"]["filename"].take();
        }
        assert_eq!(ours, theirs);
        let human = lab.imgtool(&format!("info -f {format} {uri}"));
        assert!(
            human.contains("protocol type: nbd") && human.contains("disk size: unavailable"),
            "{human}"
        );
    }
    lab.imgtool(&format!("convert -f qcow2 -O raw {} copy", file.uri));
    lab.run("cmp copy expected").ok();
    let check = lab.imgtool(&format!("check -f qcow2 {}", file.uri));
    assert!(check.contains("No errors"), "{check}");
}

#[test]
fn an_export_is_written_to_in_place() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 target 64M");
    lab.qemu_io("qcow2", "target", &["write -P 7 0 64M"]);
    let served = Served::qemu(&lab, "qcow2", "target", "--discard=unmap");
    for how in ["", "-n "] {
        lab.qemu_io("raw", &served.uri, &["write -P 9 30M 1M"]);
        lab.imgtool(&format!("convert {how}-f qcow2 -O raw qcow2 {}", served.uri));
        lab.qemu_img(&format!("compare -q -f raw -F raw expected {}", served.uri));
    }
    lab.imgtool(&format!("dd bs=1M count=2 if=raw of={}", served.uri));
    served.stop();
    let info: Value = serde_json::from_str(&lab.qemu_img("info --output json target")).unwrap();
    assert!(
        info["actual-size"].as_u64().unwrap() < 16 << 20,
        "zeros took room: {info}"
    );
    lab.qemu_img("check -q target");
}

#[test]
fn an_image_is_made_in_an_export() {
    let lab = lab();
    let served = Served::nbdkit(&lab, "memory", "memory 80M");
    lab.imgtool(&format!("convert -f qcow2 -O qcow2 qcow2 {}", served.uri));
    lab.qemu_img(&format!("check -q -f qcow2 {}", served.uri));
    lab.qemu_img(&format!("compare -q -f raw -F qcow2 expected {}", served.uri));
    lab.imgtool(&format!("snapshot -c clean {}", served.uri));
    lab.qemu_io("qcow2", &served.uri, &["write -P 5 0 1M"]);
    lab.imgtool(&format!("snapshot -a clean {}", served.uri));
    lab.imgtool(&format!("compare -f raw -F qcow2 expected {}", served.uri));
}

#[test]
fn a_partition_of_a_served_disk_has_a_name() {
    let lab = Lab::new();
    lab.run("truncate -s 32M disk").ok();
    lab.run_words(&[
        "sh",
        "-c",
        "printf 'label: gpt\\nstart=2048,size=4096,name=one\\n' | sfdisk -q disk",
    ])
    .ok();
    lab.run_words(&[
        "sh",
        "-c",
        "yes content | dd of=disk bs=512 seek=2048 count=4096 conv=notrunc iflag=fullblock status=none",
    ])
    .ok();
    let served = Served::qemu(&lab, "raw", "disk", "-r");
    lab.imgtool(&format!("convert -f raw -O raw {}#name:one part", served.uri));
    lab.run("dd if=disk of=expected bs=512 skip=2048 count=4096 status=none")
        .ok();
    lab.run("cmp part expected").ok();
}

#[test]
fn bad_input_is_one_line_that_says_what_to_do() {
    let lab = lab();
    let small = Served::nbdkit(&lab, "small", "memory 1M");
    let read_only = Served::nbdkit(&lab, "ro", "-r memory 80M");
    let named = Served::qemu(&lab, "raw", "expected", "-r -x disk");
    let none = lab.path("nowhere").display().to_string();
    let cases = [
        (format!("info nbd+unix:///?socket={none}"), "No such file"),
        (format!("info {}", named.uri), "does not have its default export"),
        ("info nbd+unix:///x".to_owned(), "names no socket"),
        ("info nbds://localhost/x".to_owned(), "TLS"),
        (
            format!("convert -f raw -O raw raw {}", small.uri),
            "has 1048576 bytes, too few",
        ),
        (
            format!("convert -f raw -O raw raw {}", read_only.uri),
            "for reading only",
        ),
        (
            format!("convert -n -f raw -O raw raw {}", read_only.uri),
            "for reading only",
        ),
    ];
    for (line, words) in cases {
        let failed = lab.run(&format!("imgtool {line}"));
        failed.fails(1, &[words]);
    }
    // In QEMU's words, with those of the server.
    let said = |program: &str| {
        let failed = lab.run(&format!("{program} info {}", named.uri));
        assert_eq!(failed.code(), 1);
        failed.stderr()
    };
    assert_eq!(said("imgtool qemu-img"), said("qemu-img"));
}

#[test]
fn an_image_in_an_export_may_not_name_files_of_this_host() {
    let lab = lab();
    lab.qemu_img("create -q -f qcow2 -b qcow2 -F qcow2 overlay");
    let served = Served::qemu(&lab, "raw", "overlay", "-r");
    lab.run(&format!("imgtool map -f qcow2 {}", served.uri))
        .fails(1, &["qcow2"]);
    // What it says of itself can be seen.
    assert!(
        lab.imgtool(&format!("info -f qcow2 {}", served.uri))
            .contains("backing file: qcow2")
    );
}

#[test]
fn a_server_that_goes_away_fails_the_copy() {
    let lab = lab();
    let served = Served::nbdkit(
        &lab,
        "dying",
        "--filter=error pattern 64M error=EIO error-pread-rate=100%",
    );
    lab.run(&format!("imgtool convert -f raw -O raw {} copy", served.uri))
        .fails(1, &["refused by the server"]);
    assert!(!lab.path("copy").exists());
}
