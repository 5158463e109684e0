//! Bad input: one clear line that names the file and the value, an exit code, and nothing changed.

use crate::common::{Lab, Mount};

#[test]
fn files_that_are_no_images() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("directory")).unwrap();
    lab.run("mkfifo fifo").ok();
    std::fs::write(lab.path("text"), "this is no qcow2 image").unwrap();
    lab.imgtool("create -q -f qcow2 image 64M");
    let image = std::fs::read(lab.path("image")).unwrap();
    std::fs::write(lab.path("short"), &image[..100]).unwrap();
    let mut unknown = image.clone();
    unknown[72..80].copy_from_slice(&(1u64 << 40).to_be_bytes());
    std::fs::write(lab.path("unknown"), unknown).unwrap();
    let names = lab.names();
    for command in [
        "info {}",
        "map {}",
        "convert -O raw {} out",
        "measure -O qcow2 {}",
        "resize {} +1M",
    ] {
        let run = |name: &str| lab.run(&format!("imgtool {}", command.replace("{}", name)));
        run("missing").fails(1, &["missing", "No such file"]);
        run("directory").fails(1, &["directory", "a directory"]);
        run("fifo").fails(1, &["fifo", "a FIFO"]);
        run("/dev/null").fails(1, &["/dev/null", "a character device"]);
        run("short").fails(1, &["short"]);
        run("unknown").fails(1, &["unknown", "40"]);
        run("-f qcow2 text").fails(1, &["text"]);
        run("-f vmdk image").fails(1, &["image", "vmdk", "qcow2"]);
    }
    lab.run("imgtool check -f qcow2 text").fails(1, &["text"]);
    lab.run("imgtool check short").fails(1, &["short"]);
    assert_eq!(lab.names(), names);
}

#[test]
fn sizes_that_are_none() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 image 1M");
    for size in ["-1", "1e9", "10GB", "abc", "8E", "0x", "1.5"] {
        lab.run(&format!("imgtool create -f qcow2 new {size}"))
            .fails(1, &["new", &format!("\"{size}\"")]);
        lab.run(&format!("imgtool measure --size={size}"))
            .fails(1, &[size]);
        if size != "-1" {
            lab.run(&format!("imgtool resize image {size}"))
                .fails(1, &["image", &format!("\"{size}\"")]);
        }
    }
    lab.run("imgtool create -f qcow2 new 7E").fails(1, &["new"]);
    lab.run("imgtool resize image -2M")
        .fails(1, &["image", "1048576"]);
    assert_eq!(lab.names(), ["image"]);
    for (size, bytes) in [("0", 0u64), ("1000", 1024), ("10G", 10 << 30), ("1.5T", 3 << 39)] {
        for format in ["raw", "qcow2"] {
            lab.imgtool(&format!("create -q -f {format} new {size}"));
            let [_, info] = lab.both(&format!("info --output json -f {format} new"));
            assert_eq!(info["virtual-size"], bytes);
            lab.imgtool(&format!("convert -f {format} -O qcow2 new copy"));
            lab.qemu_img("check copy");
        }
    }
}

#[test]
fn places_that_cannot_be_written_to() {
    let lab = Lab::new();
    lab.raw("raw", 8 << 20, 1);
    lab.run("imgtool create -f raw none/new 1M")
        .fails(1, &["none/new", "directory none"]);
    lab.run("imgtool convert raw none/new")
        .fails(1, &["none/new", "directory none"]);

    // A small file system: full, and then read-only.
    let mounted = Mount::tmpfs(&lab, "small", "2m");
    for target in ["raw", "qcow2"] {
        lab.run(&format!("imgtool convert -O {target} raw small/new"))
            .fails(1, &["small/new", "No space left"]);
        lab.run(&format!(
            "imgtool create -q -f {target} -o preallocation=full small/new 4M"
        ))
        .fails(1, &["small/new", "No space left"]);
    }
    assert_eq!(std::fs::read_dir(lab.path("small")).unwrap().count(), 0);
    lab.run("mount -o remount,ro small").ok();
    lab.run("imgtool create -f raw small/new 1M")
        .fails(1, &["small/new", "Read-only file system"]);
    drop(mounted);
}

#[test]
fn an_image_that_somebody_else_writes_to() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 image 1M");
    let guest = lab.guest("image");
    for command in [
        "info image",
        "check image",
        "map image",
        "convert -O raw image out",
        "resize image +1M",
    ] {
        lab.run(&format!("imgtool {command}")).fails(1, &["image"]);
    }
    lab.run("imgtool info image").fails(1, &["-U"]);
    for command in [
        "info -U image",
        "check -U image",
        "map -U image",
        "convert -U -O raw image out",
    ] {
        lab.imgtool(command);
    }
    drop(guest);
    lab.imgtool("resize -q image +1M");
}

#[test]
fn a_name_cannot_steer_a_terminal() {
    let lab = Lab::new();
    lab.run_words(&[
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "\x1b[31mred\nline",
        "-F",
        "raw",
        "top",
        "1M",
    ])
    .ok();
    let info = lab.imgtool("info top");
    assert!(
        !info.contains('\x1b') && info.contains("\\u{1b}[31mred\\nline"),
        "{info}"
    );
    let map = lab.run("imgtool map top");
    map.fails(1, &["\\u{1b}[31mred\\nline"]);
    assert!(!map.stderr().contains('\x1b'));
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_tell() {
    let lab = Lab::new();
    lab.raw("raw", 64 << 20, 1);
    let mut child = lab.command("imgtool");
    let child = child
        .args(["map", "--output", "json", "raw"])
        .stdout(std::process::Stdio::piped());
    let mut child = child.stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
