//! Standard input and output as images, judged by qemu-img.

use std::fs;

use crate::common;
use crate::common::Lab;

impl Lab {
    /// Runs a line in a shell, `imgtool` as `$0`, and fails unless all of it succeeds.
    fn sh(&self, line: &str) -> String {
        self.sh_run(line).ok()
    }

    fn sh_run(&self, line: &str) -> common::Done {
        let line = format!("set -o pipefail; {line}");
        self.run_words(&["bash", "-c", &line, env!("CARGO_BIN_EXE_imgtool")])
    }

    fn assert_same(&self, raw: &str, image: &str) {
        self.qemu_img(&format!("compare -q -f raw -F qcow2 {raw} {image}"));
        self.qemu_img(&format!("check -q {image}"));
    }
}

/// Not a whole number of clusters, and more than the smallest step in which a growing target grows.
const LEN: usize = (70 << 20) + 4096 + 512;

#[test]
fn a_pipe_becomes_an_image_of_its_length() {
    let lab = Lab::new();
    lab.raw("disk", LEN, 1);
    for (options, image) in [
        ("", "plain"),
        ("-c -o compression_type=zstd", "small"),
        ("-o cluster_size=4k,compat=0.10", "old"),
        ("-S 0", "full"),
    ] {
        lab.sh(&format!("cat disk | $0 convert -O qcow2 {options} - {image}"));
        lab.assert_same("disk", image);
    }
    lab.sh("cat disk | $0 convert -f raw -O raw - copy");
    lab.sh("cmp disk copy");
    assert!(lab.path("small").metadata().unwrap().len() < lab.path("plain").metadata().unwrap().len());
}

#[test]
fn what_does_not_fill_a_sector_is_filled_with_zeros() {
    let lab = Lab::new();
    for (input, size) in [("", 0), ("x", 512), ("hello", 512)] {
        lab.sh(&format!("printf '%s' '{input}' | $0 convert - raw"));
        let mut expected = input.as_bytes().to_vec();
        expected.resize(size, 0);
        assert_eq!(fs::read(lab.path("raw")).unwrap(), expected);
        lab.sh(&format!("printf '%s' '{input}' | $0 convert -O qcow2 - image"));
        lab.assert_same("raw", "image");
    }
}

#[test]
fn a_file_on_standard_input_keeps_its_holes() {
    let lab = Lab::new();
    lab.sh("truncate -s 1T disk; printf data | dd of=disk bs=1 seek=700000000000 conv=notrunc status=none");
    lab.sh("$0 convert -O qcow2 - image < disk");
    let len = lab.path("image").metadata().unwrap().len();
    assert!(len < 2 << 20, "{len}");
    lab.sh("qemu-io -r -f qcow2 -c 'read -P 0x64 700000000000 1' image | grep -q 'read 1/1'");
}

#[test]
fn standard_output_gets_a_whole_image_without_being_sought_in() {
    let lab = Lab::new();
    lab.raw("disk", LEN, 2);
    for options in [
        "",
        "-o cluster_size=512",
        "-o cluster_size=2M,refcount_bits=1",
        "-o compat=0.10",
        "-S 0",
        "-o preallocation=full",
    ] {
        lab.sh(&format!("$0 convert -O qcow2 {options} disk - | cat > image"));
        lab.assert_same("disk", "image");
    }
    lab.qemu_img("convert -c -O qcow2 disk compressed");
    lab.qemu_img("create -q -f qcow2 -b compressed -F qcow2 overlay 80M");
    lab.qemu_io(
        "qcow2",
        "overlay",
        &["write -P 7 1M 3M", "write -z 10M 5M", "write -P 8 79M 1M"],
    );
    lab.sh("$0 convert -O qcow2 overlay - | cat > image");
    lab.qemu_img("compare -q overlay image");
    lab.sh("$0 convert overlay - | cat > flat");
    lab.qemu_img("compare -q overlay flat");
    lab.sh("$0 convert -O qcow2 -o size=100M disk - | cat > image");
    assert!(lab.qemu_img("info image").contains("100 MiB"));
    lab.assert_same("disk", "image");
}

#[test]
fn standard_output_is_that_by_the_kernels_names_too() {
    let lab = Lab::new();
    lab.raw("disk", LEN, 2);
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        lab.sh(&format!("$0 convert -p -O qcow2 disk {name} | cat > image"));
        lab.assert_same("disk", "image");
        lab.sh(&format!("$0 convert -O raw image {name} > file; cmp disk file"));
    }
    fs::create_dir(lab.path("tree")).unwrap();
    for line in ["mkfs -O raw tree /dev/stdout", "dd if=disk of=/dev/stdout"] {
        let script = format!("{} {line} | cat >piped", env!("CARGO_BIN_EXE_imgtool"));
        let done = lab.run_words(&["bash", "-o", "pipefail", "-c", &script]);
        done.fails(1, &["/dev/stdout", "imgtool convert -O raw FILE -"]);
        assert_eq!(fs::read(lab.path("piped")).unwrap(), b"");
    }
}

#[test]
fn from_pipe_to_pipe() {
    let lab = Lab::new();
    lab.raw("disk", LEN, 3);
    lab.sh("cat disk | $0 convert - - | cmp - disk");
    lab.sh(&format!(
        "cat disk | $0 convert -O qcow2 -o size={LEN} - - | cat > image"
    ));
    lab.assert_same("disk", "image");
    lab.sh_run("cat disk | $0 convert -O qcow2 - - | cat > image")
        .fails(1, &["size of the disk comes first", "-o size="]);
    lab.sh_run("cat disk | $0 convert -O qcow2 -o size=1M - - | cat > image")
        .fails(1, &["more than the target's 1048576 bytes"]);
}

#[test]
fn into_an_image_that_exists() {
    let lab = Lab::new();
    lab.raw("disk", LEN, 4);
    lab.qemu_img("create -q -f qcow2 image 80M");
    lab.qemu_io("qcow2", "image", &["write -P 9 0 80M"]);
    lab.sh("cat disk | $0 convert -n -O qcow2 - image");
    lab.sh(&format!("cp disk expected; truncate -s 80M expected; head -c {} /dev/zero | tr '\\0' '\\11' | dd of=expected bs=512 seek={} conv=notrunc status=none", (80 << 20) - LEN, LEN / 512));
    lab.assert_same("expected", "image");
    lab.qemu_img("create -q -f qcow2 small 1M");
    lab.sh_run("cat disk | $0 convert -n -O qcow2 - small")
        .fails(1, &["small", "more than the target's 1048576 bytes"]);
}

#[test]
fn a_pipe_over_a_backing_file_holds_only_what_differs() {
    let lab = Lab::new();
    lab.raw("disk", LEN, 5);
    lab.qemu_img("convert -O qcow2 disk base");
    lab.sh("cp disk changed; printf change | dd of=changed bs=1 seek=5000000 conv=notrunc status=none");
    lab.sh("cat changed | $0 convert -O qcow2 -B base -F qcow2 - image");
    lab.assert_same("changed", "image");
    let map = lab.qemu_img("map --output json image");
    let own = serde_json::from_str::<serde_json::Value>(&map).unwrap();
    let own: u64 = own
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["depth"] == 0)
        .map(|run| run["length"].as_u64().unwrap())
        .sum();
    assert!(own <= 2 << 16, "{own}");
}

#[test]
fn what_cannot_be_done_is_one_line_and_leaves_nothing() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 6);
    lab.qemu_img("create -q -f qcow2 image 1M");
    fs::write(lab.path("key"), "correct horse").unwrap();
    lab.imgtool("create -q -f luks -o iter-time=10 --key key luks 1M");
    for (line, words) in [
        ("$0 convert -c -O qcow2 disk - | cat", "leave out -c"),
        ("$0 convert -n -O qcow2 disk - | cat", "leave out -n"),
        (
            "$0 convert -O qcow2 -B image -F qcow2 disk - | cat",
            "cannot have a backing file",
        ),
        ("cat disk | $0 convert - disk new", "cannot be joined"),
        ("cat disk | $0 convert -f qcow2 - new", "as a raw image"),
        ("cat image | $0 convert - new", "holds a qcow2 image"),
        ("$0 convert - new < image", "holds a qcow2 image"),
        ("cat luks | $0 convert - new", "holds a luks image"),
        ("$0 convert -O qcow2 - new < luks", "holds a luks image"),
        (
            "cat disk | $0 convert -O qcow2 -o size=4k - new",
            "more than the target's 4096 bytes",
        ),
    ] {
        lab.sh_run(line).fails(1, &[words]);
        assert_eq!(lab.names(), ["disk", "image", "key", "luks"], "{line}");
    }
    for image in ["image", "luks"] {
        lab.sh(&format!(
            "cat {image} | $0 convert -f raw - new && head -c $(stat -c %s {image}) new | cmp {image} -"
        ));
    }
}
