//! Conversions in which the host shares or copies the data.

use std::os::unix::fs::MetadataExt;

use crate::common::Lab;

/// Extents of a file that the file system calls shared with another.
fn shared(lab: &Lab, name: &str) -> usize {
    lab.run(&format!("sync {name}")).ok();
    lab.run(&format!("filefrag -v {name}"))
        .ok()
        .matches("shared")
        .count()
}

/// A qcow2 image of 40 MiB over a raw one, with data, zeros and compressed clusters.
fn chain(lab: &Lab) {
    lab.raw("base.raw", 30 << 20, 5);
    lab.raw("other.raw", 1 << 20, 6);
    lab.qemu_img("convert -c -O qcow2 other.raw top.qcow2");
    lab.qemu_img("rebase -u -b base.raw -F raw top.qcow2");
    lab.qemu_img("resize -q top.qcow2 40M");
    lab.qemu_io(
        "qcow2",
        "top.qcow2",
        &["write -P 7 2M 300k", "write -z 3M 64k", "write -P 9 35M 3M"],
    );
}

fn taken(lab: &Lab, name: &str) -> u64 {
    lab.path(name).metadata().unwrap().blocks() * 512
}

#[test]
fn file_systems_with_reflinks_share_with_raw_images() {
    for kind in ["xfs", "btrfs"] {
        let (lab, _mounted) = Lab::on(kind, 512);
        chain(&lab);
        // A length that is no multiple of any block.
        lab.raw("odd.raw", (8 << 20) + 1000, 7);
        for (source, format) in [("base.raw", "raw"), ("top.qcow2", "qcow2"), ("odd.raw", "raw")] {
            for options in ["", "-t none -T none", "--in-place", "-C", "--io sync"] {
                lab.imgtool(&format!("convert {options} -f {format} {source} new.raw"));
                lab.qemu_img(&format!("compare -f {format} -F raw {source} new.raw"));
                assert!(shared(&lab, "new.raw") > 0, "{kind}: {source} {options}");
            }
        }
        // What is written to a copy is not seen in the image that it was made from.
        lab.qemu_img("convert -S 0 -f raw -O raw base.raw kept.raw");
        lab.imgtool("convert -f raw base.raw new.raw");
        lab.qemu_io("raw", "new.raw", &["write -P 1 0 30M"]);
        lab.qemu_img("compare -f raw -F raw base.raw kept.raw");
    }
}

/// Blocks of the host that a file has to itself, in bytes.
fn own(lab: &Lab, name: &str) -> u64 {
    // Btrfs knows of all that is shared when what was shared is in its trees.
    lab.run("sync -f .").ok();
    let listed = lab.run(&format!("filefrag -v -b4096 {name}")).ok();
    let extents = listed.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let len: u64 = fields.get(3)?.trim().parse().ok()?;
        Some((len * 4096, fields.get(4..)?.concat()))
    });
    let own = extents.filter(|(_, flags)| !flags.contains("shared"));
    own.map(|(len, _)| len).sum()
}

#[test]
fn file_systems_with_reflinks_share_with_qcow2_images() {
    for kind in ["xfs", "btrfs"] {
        let (lab, _mounted) = Lab::on(kind, 512);
        chain(&lab);
        // A length that is no multiple of any block.
        lab.raw("odd.raw", (8 << 20) + 1000, 7);
        lab.qemu_img("convert -O qcow2 -o cluster_size=4k base.raw small.qcow2");
        lab.qemu_img("create -q -f qcow2 -o cluster_size=2M snapped.qcow2 16M");
        lab.qemu_io("qcow2", "snapped.qcow2", &["write -q -P 3 1M 5M"]);
        lab.qemu_img("snapshot -c then snapped.qcow2");
        lab.qemu_io("qcow2", "snapped.qcow2", &["write -q -P 4 2M 300k"]);
        for (source, format) in [
            ("base.raw", "raw"),
            ("top.qcow2", "qcow2"),
            ("odd.raw", "raw"),
            ("small.qcow2", "qcow2"),
            ("snapped.qcow2", "qcow2"),
        ] {
            for options in [
                "",
                "-t none -T none",
                "--in-place",
                "-C",
                "-W",
                "--threads 1",
                "-o cluster_size=4k",
                "-o extended_l2=on",
                "-o cluster_size=2M,compat=0.10",
                "-o data_file=new.data",
            ] {
                let what = format!("{kind}: {source} {options}");
                let _ = std::fs::remove_file(lab.path("new.data"));
                lab.imgtool(&format!("convert {options} -f {format} -O qcow2 {source} new"));
                lab.qemu_img(&format!("compare -f {format} -F qcow2 {source} new"));
                lab.qemu_img("check -q -f qcow2 new");
                let file = if options.contains("data_file") {
                    "new.data"
                } else {
                    "new"
                };
                assert!(shared(&lab, file) > 0, "{what}");
                // Five clusters of tables, zeros around data in a cluster of a data file, and what was compressed.
                let own = own(&lab, file);
                let most = match options {
                    "-o cluster_size=2M,compat=0.10" => 12 << 20,
                    "-o data_file=new.data" => 5 << 20,
                    // The file system reserves room in front of what comes early.
                    "-W" => 20 << 20,
                    _ => 2 << 20,
                };
                assert!(own < most, "{what}: {own} bytes are its own");
            }
        }
        // What is written to a copy is not seen in the image that it was made from.
        lab.qemu_img("convert -S 0 -f raw -O raw base.raw kept.raw");
        lab.imgtool("convert -f raw -O qcow2 base.raw new");
        lab.qemu_io("qcow2", "new", &["write -q -P 1 0 30M"]);
        lab.qemu_img("compare -f raw -F raw base.raw kept.raw");
        lab.qemu_img("check -q -f qcow2 new");
        // Over a layer of its own chain only what is above it is copied; what has to be compared with a backing file is read.
        lab.imgtool("convert -O qcow2 -B base.raw -F raw top.qcow2 new");
        lab.qemu_img("compare top.qcow2 new");
        lab.imgtool("convert -O qcow2 -B kept.raw -F raw top.qcow2 new");
        lab.qemu_img("compare top.qcow2 new");
        assert_eq!(shared(&lab, "new"), 0);
        // Into an image that is there, with clusters of its own and others that a snapshot has too.
        lab.qemu_img("create -q -f qcow2 there 40M");
        lab.qemu_io("qcow2", "there", &["write -q -P 8 3M 9M"]);
        lab.qemu_img("snapshot -c then there");
        lab.qemu_io("qcow2", "there", &["write -q -P 9 0 7M"]);
        lab.imgtool("convert -n -C -O qcow2 top.qcow2 there");
        lab.qemu_img("compare top.qcow2 there");
        lab.qemu_img("check -q there");
        assert!(shared(&lab, "there") > 0);
        lab.imgtool("snapshot export -O raw there then then.raw");
        let then = std::fs::read(lab.path("then.raw")).unwrap();
        assert!(then[3 << 20..12 << 20].iter().all(|byte| *byte == 8), "{kind}");
    }
}

#[test]
fn room_is_not_shared_where_it_was_asked_for() {
    let (lab, _mounted) = Lab::on("xfs", 512);
    chain(&lab);
    for options in [
        "-S 4k",
        "-S 0",
        "-o preallocation=falloc",
        "-o preallocation=full",
    ] {
        lab.imgtool(&format!("convert {options} -f raw base.raw new.raw"));
        lab.qemu_img("compare -f raw -F raw base.raw new.raw");
        assert_eq!(shared(&lab, "new.raw"), 0, "{options}");
    }
    for options in [
        "-S 4k",
        "-c",
        "-o preallocation=metadata",
        "-o preallocation=falloc",
    ] {
        lab.imgtool(&format!("convert {options} -f raw -O qcow2 base.raw new.qcow2"));
        lab.qemu_img("compare -f raw -F qcow2 base.raw new.qcow2");
        assert_eq!(shared(&lab, "new.qcow2"), 0, "{options}");
    }
    // An image that is there may have its room for a reason.
    lab.imgtool("convert -n -f raw base.raw new.raw");
    assert_eq!(shared(&lab, "new.raw"), 0);
    lab.imgtool("convert -n -C -f raw base.raw new.raw");
    assert!(shared(&lab, "new.raw") > 0);
    lab.qemu_img("compare -f raw -F raw base.raw new.raw");
}

#[test]
fn where_nothing_can_be_shared_the_copy_is_as_ever() {
    let (lab, _mounted) = Lab::on("ext4", 256);
    chain(&lab);
    for (source, format) in [("base.raw", "raw"), ("top.qcow2", "qcow2")] {
        lab.imgtool(&format!("convert -f {format} {source} new.raw"));
        lab.imgtool(&format!("convert -C -f {format} {source} copied.raw"));
        lab.qemu_img(&format!("compare -f {format} -F raw {source} new.raw"));
        lab.qemu_img(&format!("compare -f {format} -F raw {source} copied.raw"));
        // Zeros were found, but for -C, which does not look for them; holes stay holes in any case.
        let [new, copied] = ["new.raw", "copied.raw"].map(|name| taken(&lab, name));
        assert!(new < copied && copied < 40 << 20, "{new} {copied}");
        lab.imgtool(&format!("convert -f {format} -O qcow2 {source} new"));
        lab.imgtool(&format!("convert -C -f {format} -O qcow2 {source} copied"));
        for name in ["new", "copied"] {
            lab.qemu_img(&format!("compare -f {format} -F qcow2 {source} {name}"));
            lab.qemu_img(&format!("check -q {name}"));
        }
        let [new, copied] = ["new", "copied"].map(|name| taken(&lab, name));
        assert!(new < copied && copied < 40 << 20, "{new} {copied}");
    }
}

#[test]
fn a_host_that_copies_does_nothing_else() {
    let lab = Lab::new();
    chain(&lab);
    for (line, why) in [
        ("convert -C -S 64k base.raw new.raw", "(-S)"),
        ("convert -C -c -O qcow2 base.raw new.qcow2", "(-c)"),
    ] {
        let done = lab.run(&format!("imgtool {line}"));
        assert_eq!(done.code(), 1);
        assert!(done.stderr().contains(why), "{}", done.stderr());
    }
    assert!(!lab.names().iter().any(|name| name.starts_with("new")));
}

/// MiB of a file system for files of 200 MiB. XFS keeps more than as much again ready behind a file that grows, and shares
/// nothing of what is in an allocation group (one of four) that this has filled.
const ROOMY: u64 = 4096;

#[test]
fn a_filesystem_shares_large_files_with_the_tree_that_it_is_made_of() {
    const UUID: &str = "d0e72f7a-1f4b-4f0e-9a7a-1b8f0a1d2c3e";
    let elsewhere = Lab::new();
    for kind in ["xfs", "btrfs"] {
        let (lab, _mounted) = Lab::on(kind, ROOMY);
        std::fs::create_dir(lab.path("tree")).unwrap();
        // One that no block group has room for, whose end is in the middle of a block; one with holes; and small ones.
        lab.run("dd if=/dev/urandom of=tree/large bs=1M count=200 status=none")
            .ok();
        lab.run("dd if=/dev/zero of=tree/large bs=1000 count=1 oflag=append conv=notrunc status=none")
            .ok();
        lab.raw("tree/holes", 8 << 20, 3);
        lab.raw("tree/small", 100_000, 4);
        std::fs::write(lab.path("tree/last"), "contents").unwrap();
        for options in ["", "--size 700M --block-size 1024", "--shrink"] {
            let what = format!("{kind}: {options}");
            let _ = std::fs::remove_file(lab.path("fs.img"));
            lab.imgtool(&format!("mkfs -q --uuid {UUID} {options} tree fs.img"));
            lab.run("e2fsck -fn fs.img").ok();
            let (taken, own) = (taken(&lab, "fs.img"), own(&lab, "fs.img"));
            // Files in smaller blocks than those of the host are not at its blocks' starts; no more is its own otherwise
            // than what the file system puts in front of what comes early.
            if !options.contains("1024") {
                assert!(taken > 200 << 20 && own < 32 << 20, "{what}: {own} of {taken}");
            }
            // The bytes are those of an image that can share nothing.
            let (tree, copied) = (lab.path("tree"), elsewhere.path("fs.img"));
            elsewhere.imgtool(&format!(
                "mkfs -q -x --uuid {UUID} {options} {} fs.img",
                tree.display()
            ));
            lab.run(&format!("cmp fs.img {}", copied.display())).ok();
            let seen = tempfile::tempdir().unwrap();
            let path = seen.path().to_str().unwrap();
            lab.run(&format!("mount -o ro,loop fs.img {path}")).ok();
            let compared = lab.run(&format!("diff -r --exclude=lost+found tree {path}"));
            lab.run(&format!("umount {path}")).ok();
            compared.ok();
        }
        // What is written to the filesystem is not seen in the file.
        let sum = lab.run("md5sum tree/large").ok();
        lab.run("dd if=/dev/zero of=fs.img bs=1M count=250 conv=notrunc status=none")
            .ok();
        assert_eq!(lab.run("md5sum tree/large").ok(), sum);
    }
}

#[test]
fn disks_and_qcow2_images_share_large_files_with_the_tree_that_they_are_made_of() {
    const UUID: &str = "d0e72f7a-1f4b-4f0e-9a7a-1b8f0a1d2c3e";
    let program = {
        let mut bytes = vec![1; 8192];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3C..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
        bytes[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
        bytes
    };
    for kind in ["xfs", "btrfs"] {
        let (lab, _mounted) = Lab::on(kind, ROOMY);
        for (path, bytes) in [
            ("tree/boot/vmlinuz-1", &program),
            ("tree/usr/lib/systemd/boot/efi/systemd-bootx64.efi", &program),
        ] {
            let path = lab.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        lab.run("dd if=/dev/urandom of=tree/large bs=1M count=200 status=none")
            .ok();
        // The same is made where nothing can be shared.
        let elsewhere = Lab::new();
        let tree = lab.path("tree");
        for line in [
            "mkdisk --esp-size 40M",
            "mkdisk --esp-size 40M --size 400M",
            "mkdisk --esp-size 40M -O qcow2",
            "mkfs -O qcow2",
        ] {
            let _ = std::fs::remove_file(lab.path("new"));
            let line = format!("{line} -q --uuid {UUID} {} new", tree.display());
            lab.imgtool(&line);
            let (taken, own) = (taken(&lab, "new"), own(&lab, "new"));
            // What the file system keeps ready behind a file that grew is its own too.
            let shared = taken - own;
            assert!(shared > 190 << 20, "{kind}: {line}: {shared} of {taken}");
            elsewhere.imgtool(&line);
            let other = elsewhere.path("new");
            lab.run_words(&["qemu-img", "compare", "new", other.to_str().unwrap()])
                .ok();
        }
    }
}
