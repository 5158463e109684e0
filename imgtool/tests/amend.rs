//! `imgtool amend` against `qemu-img amend`.

use crate::common::{Lab, Mount};
use serde_json::Value;

/// A disk with data, zeros and holes, a part of it compressed if the options allow it, and two snapshots of it.
fn image(lab: &Lab, options: &str, extra: &str) {
    lab.qemu_img(&format!("create -q -f qcow2 -o {options} {extra} image 4M"));
    lab.qemu_io(
        "qcow2",
        "image",
        &[
            "write -q -P 1 0 300k",
            "write -q -P 2 1M 200k",
            "write -q -P 3 3000k 90k",
        ],
    );
    if !options.contains("0.10") {
        lab.qemu_io(
            "qcow2",
            "image",
            &["write -q -z -u 100k 70k", "write -q -z -u 2M 130k"],
        );
    }
    if !options.contains("data_file") && !options.contains("refcount_bits=1,") {
        lab.qemu_img("snapshot -c one image");
        lab.qemu_io("qcow2", "image", &["write -q -P 4 40k 200k"]);
        lab.qemu_img("snapshot -c two image");
        lab.qemu_io("qcow2", "image", &["write -q -P 5 1100k 10k"]);
    }
}

/// What QEMU says of an image, but for what the files on the host are like.
fn info(lab: &Lab, name: &str) -> Value {
    let mut info: Value = serde_json::from_str(&lab.qemu_img(&format!("info --output json {name}"))).unwrap();
    for key in ["filename", "actual-size", "children"] {
        info.as_object_mut().unwrap().remove(key);
    }
    info
}

/// The runs of a disk: where each ends, in which layer it lies, and whether it is known to read as zeros. Where QEMU looks
/// for holes in host clusters, that says nothing of the image.
fn map(lab: &Lab, name: &str) -> Vec<(u64, u64, bool, bool)> {
    let map: Value = serde_json::from_str(&lab.qemu_img(&format!("map --output json {name}"))).unwrap();
    let mut runs: Vec<(u64, u64, bool, bool)> = Vec::new();
    for run in map.as_array().unwrap() {
        let end = run["start"].as_u64().unwrap() + run["length"].as_u64().unwrap();
        let depth = run["depth"].as_u64().unwrap();
        let data = run["data"] == true;
        let run = (end, depth, run["present"] == true, run["zero"] == true && !data);
        match runs.last_mut() {
            Some(last) if (last.1, last.2, last.3) == (run.1, run.2, run.3) => *last = run,
            _ => runs.push(run),
        }
    }
    runs
}

/// The header with extensions and names, without the places of L1, refcount and snapshot tables.
fn header(lab: &Lab, name: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(lab.path(name)).unwrap();
    // The first cluster has it all.
    bytes.truncate(1024.min(1 << bytes[23]));
    for range in [40..60, 64..72] {
        bytes[range].fill(0);
    }
    bytes
}

/// Has both programs amend a copy of `image`, and compares what becomes of them.
fn both_amend(lab: &Lab, options: &str) {
    lab.run("cp --sparse=always image ours").ok();
    lab.run("cp --sparse=always image theirs").ok();
    assert_eq!(lab.imgtool(&format!("amend -f qcow2 -o {options} ours")), "");
    lab.qemu_img(&format!("amend -t unsafe -f qcow2 -o {options} theirs"));
    assert!(header(lab, "ours") == header(lab, "theirs"), "{options}: headers");
    assert_eq!(info(lab, "ours"), info(lab, "theirs"), "{options}");
    assert_eq!(map(lab, "ours"), map(lab, "theirs"), "{options}");
    lab.qemu_img("check -q -f qcow2 ours");
    let check: Value = serde_json::from_str(&lab.qemu_img("check --output json ours")).unwrap();
    assert!(check["leaks"].is_null(), "{options}: {check}");
    assert_eq!(
        lab.imgtool("check -q --output json ours")
            .matches("leaks")
            .count(),
        0
    );
    lab.qemu_img("compare -q -f qcow2 -F qcow2 ours theirs");
    for snapshot in ["one", "two"] {
        if !lab.qemu_img("snapshot -l image").contains(snapshot) {
            continue;
        }
        for name in ["image", "ours"] {
            lab.qemu_img(&format!("convert -l {snapshot} -O raw {name} {name}.{snapshot}"));
        }
        lab.run(&format!("cmp image.{snapshot} ours.{snapshot}")).ok();
    }
    // It goes on as an image should.
    lab.qemu_io("qcow2", "ours", &["write -q -P 9 90k 2M", "discard -q 0 1M"]);
    lab.qemu_img("check -q ours");
}

/// (QEMU takes long to change the width of refcounts where clusters are large.)
#[test]
fn the_same_becomes_of_an_image() {
    let usual = [
        "compat=0.10",
        "refcount_bits=2",
        "refcount_bits=8,lazy_refcounts=on",
    ];
    let no_change = ["compat=v3", "size=4M", "lazy_refcounts=off"];
    for (options, backed, amendments) in [
        ("cluster_size=16k", false, &usual[..]),
        ("cluster_size=4k", true, &usual),
        ("cluster_size=512", false, &usual[..2]),
        ("cluster_size=64k", true, &no_change),
        ("cluster_size=8k", false, &["refcount_bits=64"]),
    ] {
        let lab = Lab::new();
        lab.raw("base", 4 << 20, 1);
        image(&lab, options, if backed { "-b base -F raw" } else { "" });
        for amendment in amendments {
            both_amend(&lab, amendment);
        }
    }
}

#[test]
fn up_and_down_with_everything_at_once() {
    for backed in ["", "-b base -F raw"] {
        let lab = Lab::new();
        lab.raw("base", 3 << 20, 1);
        image(&lab, "compat=0.10,cluster_size=16k", backed);
        both_amend(&lab, "compat=1.1");
        both_amend(&lab, "compat=v3,lazy_refcounts=on,refcount_bits=32");
        let lab = Lab::new();
        lab.raw("base", 3 << 20, 1);
        image(&lab, "refcount_bits=64,lazy_refcounts=on,cluster_size=8k", backed);
        both_amend(&lab, "compat=0.10,refcount_bits=16,lazy_refcounts=off");
        let lab = Lab::new();
        lab.raw("base", 3 << 20, 1);
        image(&lab, "refcount_bits=1,cluster_size=4k", backed);
        both_amend(&lab, "compat=v2,refcount_bits=16");
    }
}

#[test]
fn a_disk_grows_as_with_qemu_img() {
    for options in ["cluster_size=64k", "cluster_size=4k"] {
        let lab = Lab::new();
        lab.raw("base", 6 << 20, 1);
        lab.qemu_img(&format!(
            "create -q -f qcow2 -o {options} -b base -F raw image 4M"
        ));
        both_amend(&lab, "size=6M");
        both_amend(&lab, "size=5M,lazy_refcounts=on");
    }
}

/// A preallocated cluster that reads as zeros keeps its place; QEMU's way with one that a snapshot holds data in is not
/// compared, since it overwrites that.
#[test]
fn preallocated_zeros_stay_where_they_are() {
    for backed in ["", "-b base -F raw"] {
        let lab = Lab::new();
        lab.raw("base", 4 << 20, 1);
        lab.qemu_img(&format!("create -q -f qcow2 {backed} image 4M"));
        lab.qemu_io(
            "qcow2",
            "image",
            &[
                "write -q -P 1 0 1M",
                "write -q -z 100k 500k",
                "write -q -z -u 2M 1M",
            ],
        );
        both_amend(&lab, "compat=0.10");
        lab.qemu_img("snapshot -c one image");
        lab.qemu_io("qcow2", "image", &["write -q -z 0 800k"]);
        lab.qemu_img("convert -O raw image disk");
        lab.qemu_img("convert -l one -O raw image one");
        lab.imgtool("amend -o compat=0.10 image");
        lab.qemu_img("check -q image");
        lab.qemu_img("compare -f raw -F qcow2 disk image");
        lab.qemu_img("convert -l one -O raw image one.now");
        lab.run("cmp one one.now").ok();
    }
}

#[test]
fn data_files() {
    let lab = Lab::new();
    image(&lab, "data_file=data,data_file_raw=on", "");
    both_amend(&lab, "data_file_raw=off");
    std::fs::copy(lab.path("data"), lab.path("moved")).unwrap();
    both_amend(&lab, "data_file=moved");
    lab.qemu_img("convert -O raw image disk");
    // The one that it names is gone, which does not matter.
    std::fs::remove_file(lab.path("data")).unwrap();
    let line = "amend -o data_file=moved,lazy_refcounts=on --output json image";
    let said: Value = serde_json::from_str(&lab.imgtool(line)).unwrap();
    assert_eq!(
        (&said["changed"], &said["data-file"]),
        (&true.into(), &"moved".into())
    );
    lab.qemu_img("compare -f raw -F qcow2 disk image");
    lab.run("imgtool amend -o data_file=nowhere image")
        .fails(1, &["nowhere", "before the image names it"]);
    lab.run("imgtool amend -o data_file=image image")
        .fails(1, &["its own data file"]);
    lab.run("imgtool amend -o compat=0.10 image")
        .fails(1, &["external data files"]);
    lab.run("imgtool amend -o data_file_raw=off,backing_file=x,backing_fmt=raw,data_file= image")
        .fails(1, &["image"]);
}

#[test]
fn backing_files_change_as_with_rebase_u() {
    let lab = Lab::new();
    lab.raw("base", 1 << 20, 1);
    lab.raw("other", 1 << 20, 2);
    lab.qemu_img("create -q -f qcow2 -b base -F raw image 1M");
    let backing = || {
        let info: Value = serde_json::from_str(&lab.imgtool("info --output json image")).unwrap();
        (
            info["backing-filename"].as_str().map(str::to_owned),
            info["backing-filename-format"].as_str().map(str::to_owned),
        )
    };
    let named = |name: &str, format: &str| (Some(name.to_owned()), Some(format.to_owned()));
    lab.imgtool("amend -o backing_file=other,backing_fmt=raw image");
    assert_eq!(backing(), named("other", "raw"));
    lab.qemu_img("compare -F raw image other");
    lab.imgtool("amend -o backing_fmt=qcow2 image");
    assert_eq!(backing(), named("other", "qcow2"));
    lab.imgtool("amend -o backing_fmt=raw,backing_file=other,compat=0.10 image");
    assert_eq!(backing(), named("other", "raw"));
    lab.imgtool("amend -o backing_file=other image");
    lab.imgtool("amend -o backing_file= image");
    assert_eq!(backing(), (None, None));
    lab.run("imgtool amend -o backing_file=base image")
        .fails(1, &["\"base\" is not stated", "backing_fmt=FORMAT"]);
    lab.run("imgtool amend -o backing_file=base,backing_fmt=vmdk image")
        .fails(1, &["vmdk"]);
    lab.run("imgtool amend -o backing_file=./image,backing_fmt=qcow2 image")
        .fails(1, &["cannot be based on ./image"]);
    lab.qemu_img("create -q -f qcow2 -b image -F qcow2 clone");
    lab.run("imgtool amend -o backing_file=clone,backing_fmt=qcow2 image")
        .fails(1, &["cannot be based on clone"]);
    lab.imgtool("amend -o backing_file=base,backing_fmt=raw image");
    lab.qemu_img("snapshot -c one image");
    lab.run("imgtool amend -o backing_file=other,backing_fmt=raw image")
        .fails(1, &["internal snapshots", "one", "--force"]);
    lab.run("imgtool amend -o backing_file= image")
        .fails(1, &["--force"]);
    lab.imgtool("amend --force -o backing_file=other,backing_fmt=raw image");
    assert_eq!(backing(), named("other", "raw"));
}

/// What is refused, in which words; nothing has changed then.
#[test]
fn refused_with_nothing_changed() {
    let lab = Lab::new();
    image(&lab, "refcount_bits=16", "");
    lab.qemu_img("create -q -f qcow2 -o extended_l2=on,cluster_size=64k wide 1M");
    lab.qemu_img("create -q -f qcow2 bitmaps 1M");
    lab.qemu_img("bitmap --add bitmaps b");
    lab.raw("raw", 1 << 20, 1);
    lab.qemu_img("convert -c -O qcow2 raw packed");
    lab.qemu_img("snapshot -c first packed");
    lab.qemu_io("qcow2", "packed", &["write -q -P 7 0 1M"]);
    lab.qemu_img("convert -O qcow2 -o compression_type=zstd raw zstd");
    lab.qemu_img("create -q -f qcow2 sizes 1M");
    lab.qemu_img("snapshot -c small sizes");
    lab.qemu_img("resize sizes 2M");
    std::fs::write(lab.path("text"), "text").unwrap();
    for (name, options, says) in [
        (
            "image",
            "cluster_size=4k",
            &["cluster_size", "new images only"][..],
        ),
        ("image", "extended_l2=on", &["extended_l2"]),
        ("image", "preallocation=full", &["preallocation"]),
        ("image", "encryption=on", &["encryption"]),
        ("image", "encrypt.state=active", &["encrypt.new-key=FILE"]),
        ("image", "nonsense=1", &["nonsense", "-o help"]),
        ("image", "compat=0.9", &["0.9", "0.10"]),
        ("image", "refcount_bits=3", &["\"3\"", "64"]),
        ("image", "lazy_refcounts=maybe", &["maybe"]),
        ("image", "size=1M", &["4194304", "--shrink"]),
        ("image", "size=9E", &["9"]),
        (
            "image",
            "size=5M,refcount_bits=1",
            &["references", "refcount_bits=2"],
        ),
        (
            "image",
            "refcount_bits=1",
            &["the cluster at offset", "references", "1 bits can count 1"],
        ),
        (
            "image",
            "compat=0.10,refcount_bits=8",
            &["16", "refcount_bits=16"],
        ),
        (
            "image",
            "compat=0.10,lazy_refcounts=on",
            &["lazy refcounts", "compat=1.1"],
        ),
        ("image", "compat=0.10,compression_type=zstd", &["zstd"]),
        ("image", "compression_type=lzma", &["lzma"]),
        ("image", "data_file=x", &["no external data file"]),
        ("image", "data_file_raw=on", &["data_file_raw"]),
        ("image", "lazy_refcounts=on,backing_fmt=raw", &["backing_fmt"]),
        ("wide", "compat=0.10", &["extended L2 entries", "convert"]),
        ("bitmaps", "compat=0.10", &["1", "bitmap --remove"]),
        (
            "packed",
            "compression_type=zstd",
            &[
                "clusters are compressed with zlib",
                "of the snapshot 'first'",
                "convert -c",
            ],
        ),
        ("zstd", "compat=0.10", &["zstd", "compression_type=zlib"]),
        ("sizes", "compat=0.10", &["'small'", "1048576", "2097152"]),
        ("sizes", "size=3M,compat=0.10", &["'small'"]),
        ("text", "compat=0.10", &["raw image"]),
        ("missing", "compat=0.10", &["missing"]),
    ] {
        let before = std::fs::read(lab.path(name)).ok();
        lab.run(&format!("imgtool amend -o {options} {name}"))
            .fails(1, says);
        assert!(std::fs::read(lab.path(name)).ok() == before, "{options}");
    }
    lab.run("imgtool amend -f raw -o compat=1.1 image")
        .fails(1, &["raw image"]);
    lab.run("imgtool amend --image-opts -o compat=1.1 image")
        .fails(1, &["--image-opts"]);
    lab.run("imgtool amend -o compat=1.1").fails(1, &["no image"]);
    // With the zlib that is meant, nothing compressed is in the way.
    lab.imgtool("amend -o compat=0.10,compression_type=zlib zstd");
    lab.qemu_img("compare raw zstd");
}

#[test]
fn a_damaged_image_is_to_be_repaired_first() {
    let lab = Lab::new();
    image(&lab, "cluster_size=64k", "");
    let mut bytes = std::fs::read(lab.path("image")).unwrap();
    // A data cluster that is said to be free.
    let block = 2 << 16;
    bytes[block + 2 * 8..][..2].fill(0);
    std::fs::write(lab.path("image"), &bytes).unwrap();
    for options in ["refcount_bits=32", "compat=0.10"] {
        lab.run(&format!("imgtool amend -o {options} image"))
            .fails(1, &["damaged", "check -r all"]);
    }
    lab.imgtool("amend -o lazy_refcounts=on image");
}

/// A dirty image is recovered on the way.
#[test]
fn dirty_images() {
    for options in ["lazy_refcounts=off", "compat=0.10", "refcount_bits=8"] {
        let lab = Lab::new();
        lab.qemu_img("create -q -f qcow2 -o lazy_refcounts=on image 4M");
        let mut io = lab.command("qemu-io");
        let kill = "write -q -P 1 0 1M";
        io.args(["-f", "qcow2", "-c", kill, "-c", "flush", "-c", "abort", "image"]);
        assert!(!io.output().unwrap().status.success());
        let bytes = std::fs::read(lab.path("image")).unwrap();
        assert_eq!(bytes[79] & 1, 1, "QEMU leaves it dirty");
        lab.imgtool(&format!("amend -o {options} image"));
        lab.qemu_img("check -q image");
        lab.qemu_io("qcow2", "image", &["read -q -P 1 0 1M"]);
        let info = lab.imgtool("info image");
        assert!(
            info.contains("lazy refcounts: true") == (options == "refcount_bits=8"),
            "{info}"
        );
    }
}

#[test]
fn help_and_progress() {
    let lab = Lab::new();
    for line in [
        "amend -o help",
        "amend -f qcow2 -o help image",
        "amend -o ? image",
    ] {
        let help = lab.imgtool(line);
        for option in ["compat=", "refcount_bits=", "data_file=", "size="] {
            assert!(help.contains(option), "{line}: {help}");
        }
    }
    lab.run("imgtool amend -f raw -o help").fails(1, &["raw image"]);
    image(&lab, "cluster_size=4k", "");
    let shown = lab.imgtool("amend -p -o compat=0.10 image");
    assert!(shown.starts_with("    (0.00/100%)") && shown.ends_with("(100.00/100%)\r\n"));
    let done = lab.run("imgtool amend --progress json --output json -o refcount_bits=32,compat=1.1 image");
    assert!(
        done.stderr()
            .lines()
            .last()
            .unwrap()
            .contains("\"percent\":100.0")
    );
    let said: Value = serde_json::from_str(&done.ok()).unwrap();
    assert_eq!(
        (&said["refcount-bits"], &said["compat"]),
        (&32.into(), &"1.1".into())
    );
    let again = lab.imgtool("amend --output json -o refcount_bits=32,compat=1.1 image");
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap()["changed"], false);
}

/// The host's words, and what to do.
#[test]
fn on_a_full_file_system_nothing_is_changed() {
    let lab = Lab::new();
    let _mounted = Mount::tmpfs(&lab, "small", "3m");
    lab.imgtool("create -q -f qcow2 -o cluster_size=512,preallocation=metadata small/image 60M");
    lab.run("dd if=/dev/zero of=small/filler bs=4k");
    let before = std::fs::read(lab.path("small/image")).unwrap();
    for (command, hint) in [
        ("amend -o refcount_bits=64", "run it again"),
        ("snapshot -c s", "try again"),
    ] {
        lab.run(&format!("imgtool {command} small/image"))
            .fails(1, &["small/image", "No space left", "hint: ", hint]);
        lab.imgtool("check small/image");
        let now = std::fs::read(lab.path("small/image")).unwrap();
        assert!(now == before || command.starts_with("snapshot"), "{command}");
    }
    std::fs::remove_file(lab.path("small/filler")).unwrap();
    lab.imgtool("amend -o refcount_bits=8 small/image");
    lab.imgtool("check small/image");
}
