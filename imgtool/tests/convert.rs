//! `imgtool convert` and `compare`, with qemu-img as the judge.

use crate::common::Lab;

/// Both compare an image with `raw` and find no difference; a qcow2 image checks clean.
fn assert_holds(lab: &Lab, image: &str, format: &str, raw: &str) {
    assert_eq!(
        lab.imgtool(&format!("compare -F raw -f {format} {image} {raw}"))
            .lines()
            .last(),
        Some("Images are identical.")
    );
    assert_eq!(
        lab.qemu_img(&format!("compare -F raw -f {format} {image} {raw}"))
            .lines()
            .last(),
        Some("Images are identical.")
    );
    if format == "qcow2" {
        let check = lab.qemu_img(&format!("check --output json {image}"));
        assert!(
            !check.contains("leaks") && !check.contains("corruptions"),
            "{image}: {check}"
        );
    }
}

#[test]
fn every_direction_and_option() {
    let lab = Lab::new();
    let len = (5 << 20) + 512;
    lab.raw("raw", len, 3);
    lab.qemu_img("convert -O qcow2 raw q");
    lab.qemu_img("convert -c -O qcow2 -o cluster_size=16k raw zlib");
    lab.qemu_img("convert -c -O qcow2 -o compression_type=zstd raw zstd");
    for (source, format) in [
        ("raw", "raw"),
        ("q", "qcow2"),
        ("zlib", "qcow2"),
        ("zstd", "qcow2"),
    ] {
        for (options, target) in [
            ("", "raw"),
            ("-S 0", "raw"),
            ("-S 64k", "raw"),
            ("--in-place", "raw"),
            ("-W --threads 4", "raw"),
            ("-t writeback", "raw"),
            ("-t none -T none", "qcow2"),
            ("", "qcow2"),
            ("-S 0", "qcow2"),
            ("-m 16", "qcow2"),
            ("--in-place --threads 1", "qcow2"),
            ("-o compat=0.10,cluster_size=512", "qcow2"),
            ("-o cluster_size=2M", "qcow2"),
            ("-o preallocation=metadata", "qcow2"),
            ("-c", "qcow2"),
            ("-c --level 9", "qcow2"),
            ("-c -o cluster_size=2M", "qcow2"),
            (
                "-c -o compression_type=zstd,cluster_size=4k --level 1 --threads 3",
                "qcow2",
            ),
        ] {
            lab.imgtool(&format!("convert -f {format} -O {target} {options} {source} out"));
            assert_holds(&lab, "out", target, "raw");
            let info = lab.both("info --output json out");
            assert_eq!(info[0]["virtual-size"], len as u64, "{options}");
            std::fs::remove_file(lab.path("out")).unwrap();
        }
    }
    assert_eq!(lab.names(), ["q", "raw", "zlib", "zstd"]);
}

#[test]
fn holes_and_zeros_take_no_room() {
    let lab = Lab::new();
    lab.raw("raw", 32 << 20, 4);
    lab.qemu_img("convert -O qcow2 raw q");
    for (source, target) in [("raw", "raw"), ("q", "raw"), ("raw", "qcow2"), ("q", "qcow2")] {
        lab.imgtool(&format!("convert -O {target} {source} ours"));
        lab.qemu_img(&format!("convert -O {target} {source} theirs"));
        let room = |name: &str| {
            let file = std::fs::File::open(lab.path(name)).unwrap();
            file.sync_all().unwrap();
            std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512
        };
        let (ours, theirs) = (room("ours"), room("theirs"));
        assert!(
            ours <= theirs + theirs / 50 + 65536,
            "{source} to {target}: {ours} bytes, and {theirs} by qemu-img"
        );
    }
}

#[test]
fn a_chain_is_flattened_or_its_base_kept() {
    let lab = Lab::new();
    lab.raw("base.raw", 4 << 20, 5);
    lab.qemu_img("convert -O qcow2 base.raw base");
    lab.qemu_img("create -q -f qcow2 -b base -F qcow2 -o cluster_size=4k middle 3M");
    lab.qemu_io("qcow2", "middle", &["write -P 1 100k 300k", "write -z 1M 200k"]);
    lab.qemu_img("create -q -f qcow2 -b middle -F qcow2 top 6M");
    lab.qemu_io(
        "qcow2",
        "top",
        &["write -P 2 200k 64k", "write -z 0 64k", "write -P 3 5M 100k"],
    );
    lab.qemu_img("convert -O raw top flat");

    lab.imgtool("convert -O qcow2 top out");
    assert_holds(&lab, "out", "qcow2", "flat");

    // The direct backing, the one below it (which a shorter layer hides in part), and one that only holds the same.
    std::fs::copy(lab.path("base"), lab.path("copy")).unwrap();
    for (backing, options) in [
        ("middle", ""),
        ("base", ""),
        ("copy", ""),
        ("base", "-c"),
        ("copy", "-o cluster_size=512"),
    ] {
        lab.imgtool(&format!(
            "convert -O qcow2 -B {backing} -F qcow2 {options} top out"
        ));
        assert_holds(&lab, "out", "qcow2", "flat");
        let [info, _] = lab.both("info --output json out");
        assert_eq!(info["backing-filename"], backing);
        let map = lab.imgtool("map --output json out");
        assert!(
            map.contains("\"depth\": 1"),
            "{backing}: nothing is shared: {map}"
        );
    }
    lab.imgtool("convert -O qcow2 -o backing_file=base,backing_fmt=qcow2 top out");
    assert_holds(&lab, "out", "qcow2", "flat");
    lab.run("imgtool convert -O qcow2 -B base top out")
        .fails(1, &["base", "-F qcow2"]);
}

#[test]
fn several_images_are_joined() {
    let lab = Lab::new();
    lab.raw("a", 1 << 20, 6);
    lab.raw("b", (1 << 20) + 512, 7);
    lab.imgtool("convert -O qcow2 a b joined");
    let whole = [
        std::fs::read(lab.path("a")).unwrap(),
        std::fs::read(lab.path("b")).unwrap(),
    ]
    .concat();
    std::fs::write(lab.path("whole"), whole).unwrap();
    assert_holds(&lab, "joined", "qcow2", "whole");
    lab.run("imgtool convert -O qcow2 -B a -F raw a b out")
        .fails(1, &["joined"]);
}

#[test]
fn an_existing_image_is_filled() {
    let lab = Lab::new();
    lab.raw("raw", 3 << 20, 8);
    for format in ["raw", "qcow2"] {
        lab.qemu_img(&format!("create -q -f {format} old 4M"));
        lab.qemu_io(format, "old", &["write -P 7 0 4M"]);
        lab.imgtool(&format!("convert -n -f raw -O {format} raw old"));
        lab.qemu_img(&format!("convert -f {format} -O raw old flat"));
        let flat = std::fs::read(lab.path("flat")).unwrap();
        let raw = std::fs::read(lab.path("raw")).unwrap();
        assert!(flat[..3 << 20] == raw, "{format}");
        assert!(flat[3 << 20..].iter().all(|byte| *byte == 7), "{format}");
    }
    lab.qemu_img("create -q -f raw small 1M");
    lab.run("imgtool convert -n -O raw raw small")
        .fails(1, &["small", "fewer"]);
    lab.run("imgtool convert -n -O raw raw nowhere")
        .fails(1, &["nowhere"]);
    lab.run("imgtool convert -n -o size=5M -O raw raw small")
        .fails(1, &["-n"]);
}

#[test]
fn a_failed_convert_leaves_nothing() {
    let lab = Lab::new();
    lab.raw("raw", 1 << 20, 9);
    std::fs::write(lab.path("old"), "precious").unwrap();
    lab.qemu_img("convert -O qcow2 raw bad");
    // The L1 table is the fourth cluster: its entry leads far past the end of the file.
    let mut image = std::fs::read(lab.path("bad")).unwrap();
    image[3 * 65536..][..8].copy_from_slice(&0x8000_7fff_0000_0000_u64.to_be_bytes());
    std::fs::write(lab.path("bad"), image).unwrap();
    for target in ["new", "old"] {
        let done = lab.run(&format!("imgtool convert -O raw bad {target}"));
        done.fails(1, &["bad"]);
    }
    assert_eq!(lab.names(), ["bad", "old", "raw"]);
    assert_eq!(std::fs::read(lab.path("old")).unwrap(), b"precious");
}

#[test]
fn the_target_is_never_read_from() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 base 1M");
    lab.imgtool("create -q -f qcow2 -b base -F qcow2 top");
    std::os::unix::fs::symlink("base", lab.path("link")).unwrap();
    for target in ["top", "base", "link", "./base"] {
        lab.run(&format!("imgtool convert -O qcow2 top {target}"))
            .fails(1, &[target, "read from"]);
    }
    lab.imgtool("create -q -f qcow2 other 1M");
    lab.run("imgtool convert -O qcow2 -B top -F qcow2 other base")
        .fails(1, &["base", "based on"]);
    lab.imgtool("check base");
}

#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    let lab = Lab::new();
    lab.raw("raw", 65536, 10);
    for (line, what) in [
        ("convert -c -O raw raw out", "compressed"),
        (
            "convert -c -O qcow2 -o preallocation=full raw out",
            "preallocated",
        ),
        ("convert -S 1000 raw out", "1000"),
        ("convert -S 17M raw out", "17M"),
        ("convert -c --level 13 -O qcow2 raw out", "zlib"),
        ("convert -l snap raw out", "no internal snapshots"),
        ("convert -r 0 raw out", "-r 0"),
        ("convert -r much raw out", "much"),
        ("convert -r 1M -C raw out", "-r"),
        ("convert --salvage -C raw out", "--salvage"),
        ("convert --salvage - out", "--salvage"),
        ("convert --bitmaps raw out", "--bitmaps"),
        ("convert --image-opts raw out", "--image-opts"),
        ("convert --object secret,id=a raw out", "--object"),
        ("convert -O raw -B raw -F raw raw out", "backing"),
        ("convert -O qcow2 -o size=512 raw out", "512"),
        ("convert -O vdi raw out", "vdi"),
        ("convert raw", "new image"),
    ] {
        lab.run(&format!("imgtool {line}")).fails(1, &[what]);
    }
    for line in [
        "convert -m 17 raw out",
        "convert -m 0 raw out",
        "convert --level 1 raw out",
        "convert",
        "convert -Z raw out",
    ] {
        assert_eq!(lab.run(&format!("imgtool {line}")).code(), 1, "{line}");
    }
    assert_eq!(lab.names(), ["raw"]);
}

#[test]
fn progress_is_shown_as_asked() {
    let lab = Lab::new();
    lab.raw("raw", 4 << 20, 11);
    let shown = lab.imgtool("convert -p -O qcow2 raw out");
    assert!(
        shown.starts_with("    (0.00/100%)\r") && shown.ends_with("    (100.00/100%)\r\n"),
        "{shown:?}"
    );
    assert_eq!(lab.imgtool("convert -p -q -O qcow2 raw out"), "");
    let done = lab.run("imgtool convert --progress json -O qcow2 raw out");
    let last: serde_json::Value = serde_json::from_str(done.stderr().lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["done"], &last["total"]),
        (&(4 << 20).into(), &(4 << 20).into())
    );
}

#[test]
fn compare_tells_by_text_and_exit_code() {
    let lab = Lab::new();
    lab.raw("a", 2 << 20, 12);
    lab.qemu_img("convert -O qcow2 a q");
    lab.qemu_img("convert -c -O qcow2 a z");
    std::fs::copy(lab.path("a"), lab.path("b")).unwrap();
    lab.qemu_io("raw", "b", &["write -P 77 1234567 3"]);
    std::fs::copy(lab.path("a"), lab.path("long")).unwrap();
    lab.qemu_img("resize -q -f raw long 3M");
    std::fs::copy(lab.path("long"), lab.path("longer")).unwrap();
    lab.qemu_io("raw", "longer", &["write -P 1 2999999 1"]);
    for images in [
        "a a",
        "a q",
        "q z",
        "a b",
        "b z",
        "a long",
        "long q",
        "a longer",
        "longer q",
        "long longer",
    ] {
        for options in ["", "-s", "-q"] {
            let line = format!("compare {options} {images}");
            let (ours, theirs) = (
                lab.run(&format!("imgtool {line}")),
                lab.run(&format!("qemu-img {line}")),
            );
            assert_eq!(ours.code(), theirs.code(), "{line}");
            // For qemu-img, data that reaches to the end of a file is in another state than data that does not.
            if options != "-s" {
                assert_eq!(ours.stdout(), theirs.stdout(), "{line}");
            }
        }
    }
    lab.run("imgtool compare a nowhere").fails(2, &["nowhere"]);
    lab.run("imgtool compare -f qcow2 a q").fails(2, &["a"]);
    assert_eq!(lab.run("imgtool compare a").code(), 2);
}

/// What was started by `nohup`, or by a script that ignores interrupts, goes on.
#[test]
fn signals_that_are_to_be_ignored_are() {
    let lab = Lab::new();
    lab.raw("disk", 4 << 20, 1);
    let program = env!("CARGO_BIN_EXE_imgtool");
    for (signal, verb) in [
        ("HUP", "convert"),
        ("INT", "qemu-img convert"),
        ("TERM", "convert"),
    ] {
        let command = format!("{verb} -f raw -O qcow2 -r 4M disk copy");
        let script = format!("trap '' {signal}; {program} {command} & sleep 0.3; kill -{signal} $!; wait $!");
        lab.run_words(&["sh", "-c", &script]).ok();
        lab.imgtool("compare disk copy");
        std::fs::remove_file(lab.path("copy")).unwrap();
    }
}
