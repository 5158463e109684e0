//! `imgtool inspect`: what it says of images that other programs made, and of what no program makes.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::common::Lab;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// The report about a file, and the exit code.
fn report(lab: &Lab, arguments: &str) -> (Value, i32) {
    let done = lab.run(&format!("imgtool inspect --safe --output json {arguments}"));
    let report = serde_json::from_str(&done.stdout()).unwrap_or_else(|_| panic!("{}", done.stderr()));
    (report, done.code())
}

fn assert_safe(lab: &Lab, name: &str, format: &str) -> Value {
    let (report, code) = report(lab, name);
    assert_eq!(
        (&report["verdict"], code),
        (&"safe".into(), 0),
        "{name}: {report:#}"
    );
    assert_eq!(report["format"], format, "{name}");
    report
}

/// It is unsafe, and a problem of that check says all of `words`.
fn assert_unsafe(lab: &Lab, arguments: &str, check: &str, words: &str) {
    let (report, code) = report(lab, arguments);
    assert_eq!(
        (&report["verdict"], code),
        (&"unsafe".into(), 2),
        "{arguments}: {report:#}"
    );
    let problems = report["problems"][check].as_array().unwrap();
    let said = problems
        .iter()
        .any(|problem| problem.as_str().unwrap().contains(words));
    assert!(said, "{arguments}: {report:#} does not say {words}");
}

/// A raw disk with a partition table, and data.
fn disk(lab: &Lab) {
    lab.raw("disk", 8 * MIB, 5);
    lab.run("sgdisk -n 1:2048:8191 disk").ok();
}

fn patch(lab: &Lab, name: &str, offset: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(lab.path(name)).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn append(lab: &Lab, name: &str, bytes: &[u8]) {
    let len = fs::metadata(lab.path(name)).unwrap().len();
    patch(lab, name, len, bytes);
}

#[test]
fn images_that_qemu_makes_are_safe_and_as_large_as_it_says() {
    let lab = Lab::new();
    disk(&lab);
    for (name, format, options) in [
        ("a", "qcow2", "compat=1.1"),
        ("b", "qcow2", "compat=0.10"),
        ("c", "qcow2", "extended_l2=on,cluster_size=16k"),
        ("d", "qcow2", "cluster_size=512,refcount_bits=1"),
        ("e", "qcow2", "preallocation=full,lazy_refcounts=on"),
        ("f", "qed", "cluster_size=65536"),
        ("g", "vmdk", "subformat=monolithicSparse"),
        ("h", "vmdk", "subformat=streamOptimized"),
        ("i", "vdi", "static=off"),
        ("j", "vdi", "static=on"),
        ("k", "vhdx", "subformat=dynamic"),
        ("l", "vhdx", "subformat=fixed"),
        ("m", "vpc", "subformat=dynamic,force_size=on"),
        ("n", "vpc", "subformat=fixed,force_size=on"),
        ("o", "raw", "preallocation=off"),
    ] {
        lab.qemu_img(&format!("convert -f raw -O {format} -o {options} disk {name}"));
        let name_here = if format == "vpc" { "vhd" } else { format };
        let report = assert_safe(&lab, name, name_here);
        let theirs: Value =
            serde_json::from_str(&lab.qemu_img(&format!("info --output json -f {format} {name}"))).unwrap();
        assert_eq!(
            report["virtual-size"], theirs["virtual-size"],
            "{format} {options}"
        );
        assert_safe(&lab, &format!("-f {format} {name}"), name_here);
    }
    lab.qemu_img("convert -c -O qcow2 -o compression_type=zstd disk zstd");
    let report = assert_safe(&lab, "zstd", "qcow2");
    assert_eq!(report["features"], json!(["version-3", "compression-zstd"]));
}

#[test]
fn features_are_named() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 a 10M");
    lab.qemu_img("bitmap --add a b0");
    lab.qemu_img("snapshot -c s a");
    let features = assert_safe(&lab, "a", "qcow2")["features"].clone();
    assert_eq!(features, json!(["version-3", "snapshots", "bitmaps"]));
    let luks = "--object secret,id=s,data=x";
    lab.qemu_img(&format!(
        "create -q -f luks {luks} -o key-secret=s,iter-time=10 l 1M"
    ));
    assert_eq!(assert_safe(&lab, "l", "luks")["virtual-size"], 1 << 20);
    lab.qemu_img(&format!(
        "create -q -f qcow2 {luks} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 e 1M"
    ));
    let features = assert_safe(&lab, "e", "qcow2")["features"].clone();
    assert_eq!(features, json!(["version-3", "encryption-luks"]));
    lab.run_words(&["sh", "-c", "truncate -s 20M l2 && echo key > k && cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 l2 k"])
        .ok();
    assert_unsafe(&lab, "l2", "features", "LUKS version 2");
}

#[test]
fn discs_are_told_with_the_tables_that_make_them_boot() {
    let lab = Lab::new();
    fs::create_dir(lab.path("tree")).unwrap();
    fs::write(lab.path("tree/file"), "content").unwrap();
    lab.raw("esp", MIB, 1);
    lab.run("xorriso -as mkisofs -quiet -R -o plain.iso tree").ok();
    let hybrid = "xorriso -as mkisofs -quiet -R -partition_offset 16 -append_partition 2 0xef esp";
    lab.run(&format!("{hybrid} -o mbr.iso tree")).ok();
    lab.run(&format!("{hybrid} -appended_part_as_gpt -o gpt.iso tree"))
        .ok();
    for (name, features) in [
        ("plain.iso", json!([])),
        ("mbr.iso", json!(["partition-table-mbr"])),
        ("gpt.iso", json!(["partition-table-gpt"])),
    ] {
        assert_eq!(assert_safe(&lab, name, "iso")["features"], features, "{name}");
    }
    fs::copy(lab.path("plain.iso"), lab.path("long")).unwrap();
    append(&lab, "long", &[1; 4096]);
    assert_unsafe(&lab, "long", "end", "there is data at");
    let disc = fs::read(lab.path("plain.iso")).unwrap();
    fs::write(lab.path("cut"), &disc[..64 << 10]).unwrap();
    assert_unsafe(&lab, "cut", "structure", "the volume takes");

    // A qcow2 image with the disc's descriptors in its header cluster, where nothing of it lies.
    lab.qemu_img("create -q -f qcow2 both 1M");
    patch(&lab, "both", 0x8000, &disc[0x8000..0xa000]);
    lab.qemu_img("check -q both");
    assert_unsafe(
        &lab,
        "both",
        "format",
        "qcow2 (by what is at 0), iso (by what is at 32769)",
    );
}

#[test]
fn a_text_that_became_shorter_has_its_old_end_behind_it() {
    let lab = Lab::new();
    disk(&lab);
    lab.qemu_img("convert -f raw -O vmdk -o subformat=streamOptimized disk image");
    let bytes = fs::read(lab.path("image")).unwrap();
    let old = bytes[512..].split(|byte| *byte == 0).next().unwrap();
    let text = str::from_utf8(old).unwrap();
    // As QEMU does it when one number of 268 million has so few digits.
    let (before, number) = text.split_once("CID=").unwrap();
    let (_, after) = number.split_once('\n').unwrap();
    let shorter = format!("{before}CID=5\n{after}");
    patch(&lab, "image", 512, &[shorter.as_bytes(), b"\0"].concat());
    assert!(shorter.len() + 2 < old.len());
    assert_safe(&lab, "image", "vmdk");
    lab.qemu_img("check image");
    // Not what was there before.
    patch(&lab, "image", 512 + old.len() as u64 - 1, b"x");
    assert_unsafe(&lab, "image", "structure", "something is behind it");
}

#[test]
fn a_file_of_two_formats_is_named_as_both() {
    let lab = Lab::new();
    disk(&lab);
    lab.qemu_img("convert -f raw -O qcow2 disk image");
    lab.qemu_img("convert -f raw -O vpc -o subformat=fixed,force_size=on disk vhd");
    let disk = fs::read(lab.path("disk")).unwrap();
    let vhd = fs::read(lab.path("vhd")).unwrap();
    let footer = &vhd[vhd.len() - 512..];
    let with = |name: &str, offset: u64, bytes: &[u8]| {
        fs::copy(lab.path("image"), lab.path(name)).unwrap();
        patch(&lab, name, offset, bytes);
    };
    let mut descriptor = [0; 4];
    descriptor.copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
    with("mbr", 446, &disk[446..512]);
    with("gpt", 512, &disk[512..1024]);
    with("vdi", 64, &descriptor);
    with("vhd2", fs::metadata(lab.path("image")).unwrap().len(), footer);
    for (name, other) in [("mbr", "mbr"), ("gpt", "gpt"), ("vdi", "vdi"), ("vhd2", "vhd")] {
        assert_unsafe(&lab, name, "format", &format!(", {other} (by what is at "));
        let (report, _) = report(&lab, name);
        assert_eq!(report["format"], Value::Null);
        assert_eq!(report["signatures"].as_array().unwrap().len(), 2, "{report:#}");
    }
    // What QEMU's own tools make of other formats, and nothing here reads.
    for (format, name) in [("qcow", "qcow"), ("parallels", "parallels")] {
        lab.qemu_img(&format!("convert -f raw -O {format} disk {name}"));
        assert_unsafe(
            &lab,
            name,
            "format",
            &format!("nothing is known here of what {format} images"),
        );
    }
    assert_unsafe(&lab, "-f raw image", "format", "it should be raw, and is qcow2");
}

#[test]
fn what_qemu_takes_for_another_format_by_its_name_is_unsafe() {
    let lab = Lab::new();
    disk(&lab);
    lab.qemu_img("convert -f raw -O vpc -o subformat=fixed,force_size=on disk fixed.dmg");
    lab.qemu_img("convert -f raw -O qcow2 disk image.dmg");
    lab.run("cp disk disk.dmg").ok();
    lab.run("cp disk disk.dmg.raw").ok();
    for name in ["disk.dmg", "fixed.dmg"] {
        assert_unsafe(&lab, name, "format", ".dmg");
        let done = lab.run(&format!("qemu-img info {name}"));
        assert!(
            done.code() != 0 || done.stdout().contains("dmg"),
            "{}",
            done.stdout()
        );
    }
    for (name, format) in [("image.dmg", "qcow2"), ("disk.dmg.raw", "raw")] {
        assert_safe(&lab, name, format);
        let told = lab.qemu_img(&format!("info {name}"));
        assert!(told.contains(&format!("file format: {format}")), "{told}");
    }
}

#[test]
fn images_that_lead_to_other_files_are_unsafe() {
    let lab = Lab::new();
    disk(&lab);
    for format in ["qcow2", "qed"] {
        lab.qemu_img(&format!("create -q -f {format} -b disk -F raw over.{format}"));
        assert_unsafe(&lab, &format!("over.{format}"), "references", "backing file");
    }
    lab.qemu_img("create -q -f qcow2 -o data_file=data image 1M");
    assert_unsafe(&lab, "image", "references", "its data lies in another file");
    // The name without the feature: whoever knows only one of them must not be led astray.
    patch(&lab, "image", 72, &0u64.to_be_bytes());
    assert_unsafe(&lab, "image", "references", "it names a data file");
    patch(&lab, "image", 72, &(1u64 << 40).to_be_bytes());
    assert_unsafe(&lab, "image", "features", "0x10000000000");

    for kind in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        lab.qemu_img(&format!(
            "convert -f raw -O vmdk -o subformat={kind} disk {kind}.vmdk"
        ));
        assert_unsafe(&lab, &format!("{kind}.vmdk"), "references", "in other files");
    }
    lab.qemu_img("convert -f raw -O vmdk disk sparse");
    lab.qemu_img("create -q -f vmdk -b sparse -F vmdk over.vmdk");
    assert_unsafe(&lab, "over.vmdk", "references", "parent image");
    // Without a capacity QEMU goes by the text, whatever that names.
    patch(&lab, "sparse", 12, &[0; 8]);
    assert_unsafe(&lab, "sparse", "references", "leaves it to a text");

    lab.qemu_img("convert -f raw -O vdi disk vdi");
    patch(&lab, "vdi", 440, &[7; 16]);
    assert_unsafe(&lab, "vdi", "references", "parent image");

    lab.qemu_img("convert -f raw -O vpc -o force_size=on disk vhd");
    let mut bytes = fs::read(lab.path("vhd")).unwrap();
    let end = bytes.len() - 512;
    let sum = u32::from_be_bytes(bytes[end + 64..end + 68].try_into().unwrap());
    bytes[end + 63] = 4;
    bytes[end + 64..end + 68].copy_from_slice(&(sum - 1).to_be_bytes());
    let footer: Vec<u8> = bytes[end..].to_vec();
    bytes[..512].copy_from_slice(&footer);
    fs::write(lab.path("vhd"), bytes).unwrap();
    assert_unsafe(&lab, "vhd", "references", "a difference to a parent image");

    lab.qemu_img("convert -f raw -O vhdx disk vhdx");
    let mut bytes = fs::read(lab.path("vhdx")).unwrap();
    let id = [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d];
    let entry = bytes.windows(8).position(|window| window == id).unwrap();
    let item = u32::from_le_bytes(bytes[entry + 16..entry + 20].try_into().unwrap()) as usize;
    let table = bytes.windows(8).position(|window| window == b"metadata").unwrap();
    bytes[table + item + 4] |= 2;
    fs::write(lab.path("vhdx"), bytes).unwrap();
    assert_unsafe(&lab, "vhdx", "references", "a difference to a parent image");
}

#[test]
fn a_cluster_that_is_mapped_twice_is_found_although_refcounts_agree() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 image 1M");
    lab.qemu_io("qcow2", "image", &["write -q -P 1 0 128k"]);
    assert_safe(&lab, "image", "qcow2");
    let bytes = fs::read(lab.path("image")).unwrap();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let place = |entry: u64| (entry & 0x00ff_ffff_ffff_fe00) as usize;
    let l1 = word(40) as usize;
    let l2 = place(word(l1));
    let refcounts = place(word(word(48) as usize));
    let (first, second) = (place(word(l2)) / 65536, place(word(l2 + 8)) / 65536);
    let counted = |name: &str, entry: u64, cluster: usize| {
        fs::write(lab.path(name), &bytes).unwrap();
        patch(&lab, name, l2 as u64 + 8, &entry.to_be_bytes());
        patch(&lab, name, (refcounts + 2 * cluster) as u64, &2u16.to_be_bytes());
        patch(&lab, name, (refcounts + 2 * second) as u64, &0u16.to_be_bytes());
    };
    // The second cluster of the disk is the first one.
    counted("twice", (first * 65536) as u64, first);
    patch(&lab, "twice", l2 as u64, &((first * 65536) as u64).to_be_bytes());
    // It is the table that says so.
    counted("table", l2 as u64, l2 / 65536);
    patch(&lab, "table", l1 as u64, &(l2 as u64).to_be_bytes());
    for name in ["twice", "table"] {
        lab.qemu_img(&format!("check -q {name}"));
        assert_eq!(lab.run(&format!("imgtool check -q {name}")).code(), 0);
        assert_unsafe(&lab, name, "structure", "which is in use for something else");
    }
}

#[test]
fn nothing_lies_past_the_end_or_is_missing_from_it() {
    let lab = Lab::new();
    disk(&lab);
    for (format, options, counted) in [
        // 256 refcounts of clusters of 512 bytes are in a block.
        ("qcow2", "cluster_size=512", 128 << 10),
        ("vdi", "static=off", 1),
        ("vmdk", "subformat=monolithicSparse", 1),
        ("qed", "cluster_size=65536", 1),
    ] {
        lab.qemu_img(&format!("convert -f raw -O {format} -o {options} disk image"));
        let len = fs::metadata(lab.path("image")).unwrap().len();
        if format != "qed" {
            let len = len.next_multiple_of(counted) + 8192;
            fs::File::options()
                .write(true)
                .open(lab.path("image"))
                .unwrap()
                .set_len(len)
                .unwrap();
            assert_safe(&lab, "image", format);
            append(&lab, "image", b"PK\x05\x06 and so on");
            assert_unsafe(&lab, "image", "end", &format!("there is data at {len}"));
        }
        fs::File::options()
            .write(true)
            .open(lab.path("image"))
            .unwrap()
            .set_len(40_000)
            .unwrap();
        assert_eq!(report(&lab, "image").1, 2, "{format}");
    }
    fs::write(lab.path("empty"), "").unwrap();
    assert_unsafe(&lab, "empty", "sizes", "empty");
}

#[test]
fn clusters_that_were_freed_at_the_end_keep_their_bytes() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 image 4M");
    lab.qemu_io("qcow2", "image", &["write -q -P 1 0 64k"]);
    lab.qemu_img("bitmap --add -g 512 image b");
    lab.qemu_io("qcow2", "image", &["write -q -P 2 0 1M"]);
    lab.qemu_img("bitmap --remove image b");
    lab.qemu_io("qcow2", "image", &["discard -q 64k 960k"]);
    let len = fs::metadata(lab.path("image")).unwrap().len();
    let check: Value = serde_json::from_str(&lab.qemu_img("check --output json image")).unwrap();
    let end = check["image-end-offset"].as_u64().unwrap();
    assert!(end < len, "{check:#}");
    // The bitmap's bits, and its entry in the directory.
    let tail = &fs::read(lab.path("image")).unwrap()[end as usize..];
    assert!(tail.iter().any(|byte| *byte != 0));
    let features = assert_safe(&lab, "image", "qcow2")["features"].clone();
    assert_eq!(features, json!(["version-3", "data-in-free-clusters"]));
}

#[test]
fn sizes_have_limits() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 image 65T");
    assert_unsafe(&lab, "image", "sizes", "are the limit");
    assert_eq!(report(&lab, "--max-size 65T image").1, 0);
    lab.qemu_img("create -q -f qcow2 small 2G");
    assert_unsafe(&lab, "--max-size 1G small", "sizes", "2147483648 bytes");
    // Half a gibibyte of one byte, which zstd takes very little room for.
    lab.qemu_img("create -q -f qcow2 -o cluster_size=2M,compression_type=zstd bomb 512M");
    lab.qemu_io("qcow2", "bomb", &["write -q -c -P 1 0 512M"]);
    assert_unsafe(
        &lab,
        "--max-ratio 40 bomb",
        "sizes",
        "of data, and 40 are the limit",
    );
    // What one field says, and what the tables have room for.
    patch(&lab, "small", 24, &(1u64 << 50).to_be_bytes());
    assert_unsafe(
        &lab,
        "small",
        "structure",
        "the virtual size needs more L1 entries",
    );
}

#[test]
fn nothing_else_is_opened() {
    let lab = Lab::new();
    lab.run("mkfifo fifo").ok();
    let overlay = |name: &str, backing: &str| {
        lab.qemu_img(&format!("create -q -u -f qcow2 -b {backing} -F raw {name} 1M"));
    };
    overlay("over", "fifo");
    overlay("absolute", "/etc/hostname");
    lab.qemu_img("create -q -f qcow2 -o data_file=data image 1M");
    for name in ["over", "absolute", "image"] {
        let line =
            format!("strace -f -qq -e trace=%file,%network,%process -o trace imgtool inspect --safe {name}");
        let line = line.replace("imgtool", env!("CARGO_BIN_EXE_imgtool"));
        assert_eq!(lab.run(&line).code(), 2);
        let trace = fs::read_to_string(lab.path("trace")).unwrap();
        assert!(trace.contains(&format!("\"{name}\"")), "{trace}");
        // After the image itself is found, nothing has a name any more.
        let after = trace.split(&format!("\"{name}\"")).last().unwrap();
        for call in [
            "open", "stat(\"/", "readlink", "connect", "socket", "execve", "clone", "fork",
        ] {
            assert!(!after.contains(call), "{name}: {after}");
        }
        for other in ["fifo", "hostname", "\"data\""] {
            assert!(!trace.contains(other), "{trace}");
        }
    }
}

#[test]
fn memory_does_not_follow_what_a_file_says() {
    let lab = Lab::new();
    lab.run("truncate -s 8T raw").ok();
    lab.qemu_img("create -q -f qcow2 -o cluster_size=2M image 64T");
    // As many snapshots as there may be, all over the file's holes.
    patch(&lab, "image", 60, &65536u32.to_be_bytes());
    patch(&lab, "image", 64, &(1u64 << 40).to_be_bytes());
    fs::File::options()
        .write(true)
        .open(lab.path("image"))
        .unwrap()
        .set_len(8 << 40)
        .unwrap();
    // Others as long as they can be, all holes but for their tables.
    disk(&lab);
    for (format, len) in [
        ("vmdk", 2 << 40),
        ("vhdx", 8 << 40),
        ("qed", 8 << 40),
        ("vdi", 8 << 40),
    ] {
        lab.qemu_img(&format!("convert -f raw -O {format} disk {format}"));
        fs::File::options()
            .write(true)
            .open(lab.path(format))
            .unwrap()
            .set_len(len)
            .unwrap();
    }
    for (name, code) in [
        ("raw", 0),
        ("image", 2),
        ("vmdk", 0),
        ("vhdx", 0),
        ("qed", 0),
        ("vdi", 0),
    ] {
        let line = format!(
            "ulimit -v 300000; exec {} inspect --safe {name}",
            env!("CARGO_BIN_EXE_imgtool")
        );
        let done = lab.run_words(&["sh", "-c", &line]);
        assert_eq!(done.code(), code, "{}{}", done.stdout(), done.stderr());
    }
}

#[test]
fn reports_read_as_documented() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 image 1M");
    let (mut report, _) = report(&lab, "image");
    let len = report["file-length"].take();
    assert_eq!(len, fs::metadata(lab.path("image")).unwrap().len());
    let none: [&str; 0] = [];
    assert_eq!(
        report,
        json!({
            "filename": "image",
            "format": "qcow2",
            "signatures": [{ "format": "qcow2", "offset": 0 }],
            "virtual-size": 1 << 20,
            "file-length": null,
            "features": ["version-3"],
            "problems": {
                "format": none, "references": none, "features": none, "sizes": none, "structure": none, "end": none,
            },
            "verdict": "safe",
        })
    );
    lab.qemu_img("create -q -u -f qcow2 -b /etc/shadow -F raw image 1M");
    let done = lab.run("imgtool inspect image");
    assert_eq!(done.code(), 0);
    assert!(!done.stdout().contains("verdict"), "{}", done.stdout());
    let done = lab.run("imgtool inspect --safe image");
    assert_eq!(done.code(), 2);
    assert!(
        done.stdout()
            .ends_with("verdict: unsafe\n    references: it has a backing file: \"/etc/shadow\"\n"),
        "{}",
        done.stdout()
    );
    lab.run("imgtool inspect --safe missing")
        .fails(1, &["missing: open: No such file"]);
    lab.run("imgtool inspect --safe -f gpt image")
        .fails(1, &["no format is called \"gpt\""]);
}
