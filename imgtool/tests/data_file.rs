//! Images with an external data file: every command, beside qemu-img.

use crate::common::Lab;
use serde_json::Value;

/// A disk with data, zeros and holes, in an image with a data file.
fn lab(raw: &str) -> Lab {
    let lab = Lab::new();
    lab.raw("disk", 3_000_832, 7);
    lab.imgtool(&format!(
        "convert -O qcow2 -o data_file=data,data_file_raw={raw} disk image"
    ));
    lab
}

#[test]
fn a_disk_is_copied_in_and_out() {
    for raw in ["on", "off"] {
        let lab = lab(raw);
        lab.qemu_img("compare -f raw -F qcow2 disk image");
        lab.imgtool("compare -f raw -F qcow2 disk image");
        lab.qemu_img("check image");
        lab.imgtool("check image");
        if raw == "on" {
            assert!(std::fs::read(lab.path("data")).unwrap() == std::fs::read(lab.path("disk")).unwrap());
        }
        lab.imgtool("convert -O raw image out");
        assert!(std::fs::read(lab.path("out")).unwrap() == std::fs::read(lab.path("disk")).unwrap());
        lab.imgtool("convert -n -O qcow2 disk image");
        lab.qemu_img("compare -f raw -F qcow2 disk image");
        assert_eq!(lab.names(), ["data", "disk", "image", "out"]);
    }
}

/// The runs of a map, as (start, length, data, offset). QEMU does not ask the host for holes in a data file.
fn mapped(map: &Value) -> Vec<(u64, u64, bool, Option<u64>)> {
    let mut runs: Vec<(u64, u64, bool, Option<u64>)> = Vec::new();
    for run in map.as_array().unwrap() {
        let number = |key: &str| run[key].as_u64();
        let (start, len) = (number("start").unwrap(), number("length").unwrap());
        let (data, offset) = (run["data"] == true, number("offset"));
        match runs.last_mut() {
            Some(last) if last.2 == data && last.3.map(|at| at + last.1) == offset => last.1 += len,
            _ => runs.push((start, len, data, offset)),
        }
    }
    runs
}

#[test]
fn it_is_described_mapped_and_measured_as_by_qemu_img() {
    for raw in ["on", "off"] {
        let lab = lab(raw);
        lab.qemu_io(
            "qcow2",
            "image",
            &["write -z 0 64k", "discard 64k 128k", "write -P 5 1M 64k"],
        );
        lab.imgtool("create -q -f qcow2 -b image -F qcow2 top");
        lab.qemu_io("qcow2", "top", &["write -P 6 1M 64k"]);
        for image in ["image", "top"] {
            lab.assert_same_json(&format!("info --output json {image}"));
            let [ours, theirs] = lab.both(&format!("map --output json {image}"));
            assert_eq!(mapped(&ours), mapped(&theirs), "{image}, raw: {raw}");
        }
        assert!(lab.imgtool("map image").contains("data"));
    }
    let lab = Lab::new();
    for options in [
        "data_file=x",
        "data_file=x,data_file_raw=on",
        "data_file=x,preallocation=full",
    ] {
        lab.assert_same_json(&format!("measure --output json -O qcow2 -o {options} --size 1G"));
    }
}

#[test]
fn it_grows_and_shrinks_with_its_data() {
    for raw in ["on", "off"] {
        let lab = lab(raw);
        let len = || std::fs::metadata(lab.path("data")).unwrap().len();
        for (line, size) in [
            ("image 5M", 5 << 20),
            ("--preallocation full image 6M", 6 << 20),
            ("--shrink image 1000k", 1000 << 10),
        ] {
            lab.imgtool(&format!("resize {line}"));
            assert_eq!(len(), size, "{line}");
            lab.qemu_img("check image");
        }
        let disk = std::fs::read(lab.path("disk")).unwrap();
        lab.qemu_img("convert -O raw image out");
        assert!(std::fs::read(lab.path("out")).unwrap() == disk[..1000 << 10]);
    }
}

#[test]
fn a_data_file_that_holds_something_is_not_erased() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 3);
    let before = std::fs::read(lab.path("disk")).unwrap();
    for line in [
        "create -f qcow2 -o data_file=disk,data_file_raw=on image 1M",
        "convert -O qcow2 -o data_file=disk disk image",
    ] {
        lab.run(&format!("imgtool {line}"))
            .fails(1, &["disk", "data file"]);
        assert!(std::fs::read(lab.path("disk")).unwrap() == before);
        assert_eq!(lab.names(), ["disk"]);
    }
}

#[test]
fn a_data_file_that_cannot_be_is_one_clear_line() {
    let lab = lab("on");
    lab.run("imgtool convert -c -O qcow2 -o data_file=y disk x")
        .fails(1, &["compressed"]);
    lab.run("imgtool convert -c -n -O qcow2 disk image")
        .fails(1, &["compressed"]);
    let data = std::fs::OpenOptions::new()
        .write(true)
        .open(lab.path("data"))
        .unwrap();
    data.set_len(1 << 20).unwrap();
    for command in [
        "convert -O raw image x",
        "map image",
        "resize image 5M",
        "compare image disk",
    ] {
        let code = if command.starts_with("compare") { 2 } else { 1 };
        lab.run(&format!("imgtool {command}"))
            .fails(code, &["data", "3000832 bytes", "only 1048576"]);
    }
    std::fs::remove_file(lab.path("data")).unwrap();
    lab.run("imgtool map image")
        .fails(1, &["image", "data file \"data\""]);
    // What needs no data is told all the same.
    assert!(lab.imgtool("info image").contains("data file: data"));
    lab.imgtool("check image");

    // Beside the image only, unless it is allowed: it would be written to.
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("data");
    lab.imgtool(&format!(
        "create -q -f qcow2 -o data_file={} other 1M",
        elsewhere.display()
    ));
    lab.run("imgtool map other")
        .fails(1, &["outside", "--nested any"]);
    lab.imgtool("map --nested any other");
}
