//! `imgtool info`, `map`, `measure` and `check` say what qemu-img says, over images that QEMU made.

use crate::common::Lab;

/// Chains and images of all kinds.
fn images(lab: &Lab) -> Vec<&'static str> {
    lab.raw("raw", 3 << 20, 1);
    std::fs::write(lab.path("odd"), vec![7; 1000]).unwrap();
    lab.qemu_img("create -q -f qcow2 empty 64M");
    lab.qemu_img("create -q -f qcow2 -o compat=0.10 v2 10M");
    lab.qemu_io("qcow2", "v2", &["write -P 5 1M 3M"]);
    lab.qemu_img("convert -O qcow2 raw plain");
    lab.qemu_img("convert -c -O qcow2 raw zlib");
    lab.qemu_img("convert -c -O qcow2 -o compression_type=zstd,cluster_size=4k raw zstd");
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata,lazy_refcounts=on prealloc 20M");
    lab.qemu_io("qcow2", "prealloc", &["write -z 1M 2M", "write -P 1 5M 64k"]);
    lab.qemu_img("create -q -f qcow2 -b plain -F qcow2 middle 2M");
    lab.qemu_io(
        "qcow2",
        "middle",
        &["write -P 9 192k 100k", "write -z 1M 128k", "discard 1M 64k"],
    );
    lab.qemu_img("create -q -f qcow2 -o cluster_size=512 -b middle -F qcow2 top 5M");
    lab.qemu_io("qcow2", "top", &["write -P 8 4095k 5k", "write -P 3 0 512"]);
    lab.qemu_img("create -q -f qcow2 -b raw -F raw over 4M");
    lab.qemu_io("qcow2", "over", &["write -P 1 3M 1k"]);
    vec![
        "raw", "odd", "empty", "v2", "plain", "zlib", "zstd", "prealloc", "middle", "top", "over",
    ]
}

#[test]
fn json_is_the_same() {
    let lab = Lab::new();
    for image in images(&lab) {
        lab.assert_same_json(&format!("info --output json {image}"));
        lab.assert_same_json(&format!("info --output json --backing-chain {image}"));
        lab.assert_same_json(&format!("map --output json {image}"));
        // Past the end of the disk qemu-img lists a run of no bytes.
        if image != "odd" {
            lab.assert_same_json(&format!(
                "map --output json --start-offset 100k --max-length 1500k {image}"
            ));
        }
        lab.assert_same_json(&format!("measure --output json -O raw {image}"));
        lab.assert_same_json(&format!("measure --output json -O qcow2 {image}"));
        lab.assert_same_json(&format!(
            "measure --output json -O qcow2 -o cluster_size=4k,refcount_bits=64 {image}"
        ));
        if !["raw", "odd"].contains(&image) {
            lab.assert_same_json(&format!("check --output json {image}"));
        }
    }
    lab.assert_same_json("measure --output json -O qcow2 --size 1.5T");
    lab.assert_same_json("measure --output json -O raw --size 1000");
}

#[test]
fn text_is_the_same() {
    let lab = Lab::new();
    for image in images(&lab) {
        let same = |line: &str| assert_eq!(lab.imgtool(line), lab.qemu_img(line), "{line}");
        if !["zlib", "zstd"].contains(&image) {
            same(&format!("map {image}"));
        }
        if !["raw", "odd"].contains(&image) {
            same(&format!("check {image}"));
        }
        same(&format!("measure -O qcow2 {image}"));
        // File lengths are the host's, and its file systems may still be allocating.
        let stable = |text: String| {
            // Here the chain is drawn at the end.
            text.split("\nchain:\n")
                .next()
                .unwrap()
                .lines()
                .filter(|line| !line.contains("disk size"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for line in [format!("info {image}"), format!("info --backing-chain {image}")] {
            assert_eq!(stable(lab.imgtool(&line)), stable(lab.qemu_img(&line)), "{line}");
        }
    }
    lab.run("imgtool map zlib")
        .fails(1, &["zlib", "compressed", "--output json"]);
}

#[test]
fn snapshots_and_bitmaps_are_listed() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 image 10M");
    lab.qemu_img("snapshot -c first image");
    lab.qemu_img("snapshot -c second image");
    lab.qemu_img("bitmap --add image one");
    lab.qemu_img("bitmap --add -g 128k --disable image two");
    lab.assert_same_json("info --output json image");
    // Times of day are those of the place, in summer and in winter.
    for zone in [
        "",
        "UTC",
        "Asia/Kolkata",
        "America/New_York",
        "EST5EDT,M3.2.0,M11.1.0",
        "XYZ-11:30",
    ] {
        let [ours, theirs] = ["imgtool", "qemu-img"].map(|program| {
            let mut command = lab.command(program);
            let output = command.env("TZ", zone).args(["info", "image"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        });
        assert_eq!(ours, theirs, "{zone}");
    }
    assert_eq!(lab.imgtool("info image"), lab.qemu_img("info image"));
}

#[test]
fn names_lead_from_the_image() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("d")).unwrap();
    lab.qemu_img("create -q -f qcow2 base 1M");
    lab.qemu_img("create -q -f qcow2 -b ../base -F qcow2 d/top");
    lab.assert_same_json("info --output json d/top");
    lab.assert_same_json("info --output json --backing-chain d/top");
    assert!(
        lab.imgtool("info d/top")
            .contains("backing file: ../base (actual path: d/../base)")
    );
}

#[test]
fn check_tells_by_its_exit_code() {
    let lab = Lab::new();
    lab.raw("raw", 1 << 20, 2);
    lab.imgtool("convert -O qcow2 raw image");
    assert_eq!(lab.run("imgtool check image").code(), 0);
    lab.run("imgtool check raw").fails(63, &["raw"]);
    lab.run("imgtool check nowhere")
        .fails(1, &["nowhere", "No such file"]);

    // The refcount block is the third cluster; entries have 16 bits. A cluster that nobody refers to leaks, and one in
    // use that counts as free is a corruption.
    let sound = std::fs::read(lab.path("image")).unwrap();
    for (after_last, refcount, code) in [(1, 1u8, 3), (0, 0, 2)] {
        let mut image = sound.clone();
        let last_used = (sound.len() as u64).div_ceil(65536) - 1;
        image[2 * 65536 + 2 * (last_used + after_last) as usize + 1] = refcount;
        image.resize((last_used + 1 + after_last) as usize * 65536, 0);
        std::fs::write(lab.path("image"), image).unwrap();
        assert_eq!(lab.run("imgtool check image").code(), code);
        let theirs = lab.run("qemu-img check --output json image");
        let ours = lab.run("imgtool check --output json image");
        assert_eq!((ours.code(), theirs.code()), (code, code));
        let values =
            [ours, theirs].map(|done| serde_json::from_str::<serde_json::Value>(&done.stdout()).unwrap());
        assert_eq!(values[0], values[1]);
    }
}

#[test]
fn nested_files_are_opened_as_allowed() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("a")).unwrap();
    std::fs::create_dir(lab.path("b")).unwrap();
    lab.qemu_img("create -q -f raw b/base 1M");
    lab.qemu_img("create -q -f qcow2 -b ../b/base -F raw a/top");
    lab.imgtool("map a/top");
    lab.imgtool("map --nested any a/top");
    for policy in ["deny", "beside"] {
        lab.run(&format!("imgtool map --nested {policy} a/top"))
            .fails(1, &["a/top", "../b/base", "--nested any"]);
        lab.imgtool(&format!("info --nested {policy} a/top"));
    }
    // What an image names must have a stated format, and be a plain file.
    lab.qemu_img("create -q -f qcow2 -u -b json:{} -F raw a/json 1M");
    lab.run("imgtool map a/json").fails(1, &["a/json", "json:{}"]);
    lab.imgtool("info a/json");
    lab.qemu_img("rebase -u -b base -F raw a/top");
    lab.run("imgtool map a/top")
        .fails(1, &["a/top", "base", "No such file"]);
}
