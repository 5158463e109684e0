//! `imgtool resize` against `qemu-img resize`.

use crate::common::Lab;

#[test]
fn sizes_change_as_with_qemu_img() {
    let lab = Lab::new();
    lab.raw("raw", 4 << 20, 1);
    for format in ["raw", "qcow2"] {
        for (how, bytes) in [
            ("IMG 10M", 10u64 << 20),
            ("IMG +1M", 5 << 20),
            ("--shrink IMG -1M", 3 << 20),
            ("--shrink IMG 1000k", 1000 << 10),
            ("IMG 4195000", 4_195_328),
            ("--preallocation=falloc IMG 6M", 6 << 20),
            ("--preallocation=full IMG 6M", 6 << 20),
        ] {
            lab.imgtool(&format!("convert -O {format} raw image"));
            let out = lab.imgtool(&format!("resize -f {format} {}", how.replace("IMG", "image")));
            assert_eq!(out, "Image resized.\n");
            let [_, info] = lab.both("info --output json image");
            assert_eq!(info["virtual-size"], bytes, "{format} {how}");
            let mut expected = std::fs::read(lab.path("raw")).unwrap();
            expected.resize(bytes as usize, 0);
            lab.qemu_img(&format!("convert -f {format} -O raw image flat"));
            assert!(
                std::fs::read(lab.path("flat")).unwrap() == expected,
                "{format} {how}"
            );
            if format == "qcow2" {
                let check = lab.qemu_img("check --output json image");
                assert!(!check.contains("leaks"), "{how}: {check}");
            }
        }
        lab.imgtool(&format!("convert -O {format} raw image"));
        lab.run(&format!("imgtool resize -f {format} image -1M"))
            .fails(1, &["image", "--shrink"]);
        lab.run(&format!("imgtool resize -f {format} image 1M"))
            .fails(1, &["image", "--shrink"]);
    }
}

/// All of the disk in an image, as QEMU reads it, which is left in a file for others to look at.
fn flat(lab: &Lab, image: &str) -> Vec<u8> {
    lab.qemu_img(&format!("convert -O raw {image} flat"));
    std::fs::read(lab.path("flat")).unwrap()
}

#[test]
fn a_filesystem_is_not_cut_through_unless_that_is_forced() {
    let lab = Lab::new();
    for (kind, size) in [("ext4", "97M"), ("ext2", "33M")] {
        lab.run("truncate -s 128M disk.raw").ok();
        lab.run(&format!("mke2fs -q -F -t {kind} disk.raw {size}")).ok();
        for format in ["raw", "qcow2"] {
            lab.imgtool(&format!("convert -f raw -O {format} disk.raw disk"));
            let before = flat(&lab, "disk");
            let end = size.trim_end_matches('M').parse::<u64>().unwrap() << 20;
            for size in ["1M", "20M", &(end - 512).to_string()] {
                let told = [
                    "disk:",
                    "ext filesystem",
                    &end.to_string(),
                    "resize2fs",
                    "--shrink --force",
                ];
                lab.run(&format!("imgtool resize --shrink disk {size}"))
                    .fails(1, &told);
            }
            assert!(flat(&lab, "disk") == before);
            lab.imgtool(&format!("resize -q --shrink disk {end}"));
            flat(&lab, "disk");
            lab.run("e2fsck -fn flat").ok();
            // Made smaller by someone else, it may be cut again.
            lab.run("resize2fs flat 16M").ok();
            lab.imgtool(&format!("convert -f raw -O {format} flat disk"));
            lab.imgtool("resize -q --shrink disk 16M");
            flat(&lab, "disk");
            lab.run("e2fsck -fn flat").ok();
            assert_eq!(lab.imgtool("resize --shrink --force disk 8M"), "Image resized.\n");
            flat(&lab, "disk");
            let found = lab.run("e2fsck -fn flat");
            let found = found.stdout() + &found.stderr();
            assert!(found.contains("physical size of the device is"), "{found}");
            // What is cut already does not say where it may be cut.
            lab.run("imgtool resize --shrink disk 4M")
                .fails(1, &["nobody can tell", "--force"]);
        }
        lab.run("rm disk.raw").ok();
    }
}

#[test]
fn partitions_are_not_cut_off_unless_that_is_forced() {
    let lab = Lab::new();
    let tables = [
        (
            "gpt",
            "label: gpt\nstart=2048,size=20480\nstart=40960,size=20480\n",
            "partition 2",
        ),
        (
            "mbr",
            "label: dos\nstart=40960,size=20480\nstart=2048,size=20480\n",
            "partition 1",
        ),
        (
            "logical",
            "label: dos\nstart=2048,size=59392,type=5\nstart=40960,size=20480\n",
            "partition 5",
        ),
    ];
    for (kind, script, last) in tables {
        std::fs::write(lab.path("script"), script).unwrap();
        lab.run("truncate -s 64M disk.raw").ok();
        lab.run_words(&["sh", "-ec", "sfdisk -q disk.raw <script"]).ok();
        for format in ["raw", "qcow2"] {
            lab.imgtool(&format!("convert -f raw -O {format} disk.raw disk"));
            let before = flat(&lab, "disk");
            for size in ["8M", "25M", &(31_457_280 - 512).to_string()] {
                lab.run(&format!("imgtool resize --shrink disk {size}")).fails(
                    1,
                    &["disk:", last, "31457280", "30 MiB", "parted", "--shrink --force"],
                );
            }
            assert!(flat(&lab, "disk") == before, "{kind} {format}");
            lab.imgtool("resize -q --shrink disk 32M");
            if kind == "gpt" {
                lab.imgtool("partition grow disk");
                flat(&lab, "disk");
                assert!(lab.run("sgdisk --verify flat").ok().contains("No problems found"));
            }
            flat(&lab, "disk");
            lab.run("sfdisk --verify flat").ok();
            assert_eq!(lab.imgtool("resize --shrink --force disk 8M"), "Image resized.\n");
        }
        lab.run("rm disk.raw").ok();
    }
}

/// As the tools of each format make it.
#[test]
fn what_is_all_of_a_disk_is_not_cut_through_unless_that_is_forced() {
    const MIB: u64 = 1 << 20;
    let lab = Lab::new();
    lab.run_words(&["sh", "-ec", "mkdir tree; head -c 3000000 /dev/urandom >tree/file"])
        .ok();
    for (make, name, len, end) in [
        ("mkfs.xfs -q -d size=320M disk", "XFS", 400 * MIB, 320 * MIB),
        ("mkfs.btrfs -q -b 128M disk", "Btrfs", 200 * MIB, 128 * MIB),
        ("mkfs.ntfs -q -F -s 512 disk 40960", "NTFS", 30 * MIB, 20 * MIB),
        ("mkfs.vfat -F 12 disk 4096", "FAT", 6 * MIB, 4 * MIB),
        ("mkfs.vfat -F 16 disk 16384", "FAT", 20 * MIB, 16 * MIB),
        ("mkfs.vfat -F 32 disk 65536", "FAT", 80 * MIB, 64 * MIB),
        ("mkswap -q disk 8192", "swap", 10 * MIB, 8 * MIB),
        (
            "mksquashfs tree disk -quiet -no-progress -noappend",
            "squashfs",
            4 * MIB,
            0,
        ),
        ("xorriso -as mkisofs -quiet -o disk tree", "ISO 9660", 8 * MIB, 0),
    ] {
        lab.run_words(&["rm", "-f", "disk"]).ok();
        if end > 0 {
            lab.run_words(&["truncate", "-s", &len.to_string(), "disk"]).ok();
        }
        let made = format!("PATH=$PATH:/usr/sbin:/sbin; {make} >&2");
        lab.run_words(&["sh", "-ec", &made]).ok();
        // These are as long as what is in them; their files may be a little longer.
        let end = match end {
            0 => size_of_archive(&lab, name),
            end => end,
        };
        let file = lab.path("disk");
        let len = len.max(file.metadata().unwrap().len().next_multiple_of(512));
        std::fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(len)
            .unwrap();
        let least = end.next_multiple_of(512);
        let cut = least - 512;
        lab.run(&format!("imgtool resize -f raw --shrink disk {cut}"))
            .fails(1, &["disk: ", name, &end.to_string(), "--shrink --force"]);
        assert_eq!(lab.path("disk").metadata().unwrap().len(), len, "{name}");
        lab.imgtool(&format!("resize -f raw -q --shrink disk {least}"));
        lab.imgtool(&format!("resize -f raw -q --shrink --force disk {cut}"));
    }
}

/// Bytes that a squashfs or an ISO 9660 filesystem in `disk` has, as its own tool says.
fn size_of_archive(lab: &Lab, name: &str) -> u64 {
    if name == "squashfs" {
        let said = lab.run_words(&["unsquashfs", "-s", "disk"]).ok();
        let line = said
            .lines()
            .find(|line| line.starts_with("Filesystem size "))
            .unwrap();
        return line.split(' ').nth(2).unwrap().parse().unwrap();
    }
    let said = lab
        .run_words(&["sh", "-ec", "xorriso -indev disk -toc 2>&1"])
        .ok();
    let blocks = said
        .split(" data blocks")
        .next()
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap();
    blocks.parse::<u64>().unwrap() * 2048
}

#[test]
fn a_volume_that_does_not_say_where_it_ends_is_not_cut_unless_that_is_forced() {
    let lab = Lab::new();
    std::fs::write(lab.path("key"), "a passphrase").unwrap();
    for version in ["luks1", "luks2"] {
        lab.run("truncate -s 32M disk").ok();
        lab.run(&format!(
            "cryptsetup luksFormat -q --type {version} --pbkdf pbkdf2 --pbkdf-force-iterations 1000 disk key"
        ))
        .ok();
        lab.run("imgtool resize -f raw --shrink disk 31M")
            .fails(1, &["disk: ", "LUKS", "does not say where it ends"]);
        lab.imgtool("resize -f raw -q --shrink --force disk 31M");
        lab.run("rm disk").ok();
    }
}

#[test]
fn a_physical_volume_is_not_cut_through_unless_that_is_forced() {
    let lab = Lab::new();
    for sector in 0..3 {
        let make = format!(
            "PATH=$PATH:/usr/sbin:/sbin; rm -f disk; truncate -s 16M disk; device=$(losetup -f --show disk); trap 'losetup -d $device' EXIT
             pvcreate -q -y --setphysicalvolumesize 12m --labelsector {sector} \
                 --config 'devices {{ use_devicesfile=0 }} activation {{ udev_sync=0 udev_rules=0 }}' $device >&2"
        );
        lab.run_words(&["sh", "-ec", &make]).ok();
        lab.run("imgtool resize -f raw --shrink disk 11M")
            .fails(1, &["LVM", "12582912", "pvresize"]);
        lab.imgtool("resize -f raw -q --shrink disk 12M");
    }
}

#[test]
fn a_cut_is_forced_only_where_one_is_allowed() {
    let lab = Lab::new();
    lab.raw("disk", 4 << 20, 1);
    lab.run("imgtool resize --force disk 1M").fails(1, &["--shrink"]);
}

#[test]
fn what_has_to_grow_with_a_disk_is_said_and_then_can_be_done() {
    let lab = Lab::new();
    let resized = |line: &str| {
        let done = lab.run(&format!("imgtool resize {line}"));
        let told = done.stderr();
        assert_eq!(done.ok(), "Image resized.\n");
        told
    };
    // Runs what a note names.
    let follow = |told: &str| {
        let (_, steps) = told.trim_end().split_once("next: ").unwrap();
        for step in steps.split(", then ") {
            lab.run(step).ok();
        }
    };
    let size_of = |text: &str| -> u64 {
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        field("Block count:") * field("Block size:")
    };
    lab.run("truncate -s 32M disk").ok();
    assert_eq!(resized("-f raw disk 33M"), "");
    lab.run("mke2fs -q -F -t ext4 disk").ok();
    follow(&resized("disk 64M"));
    assert_eq!(size_of(&lab.run("dumpe2fs -h disk").ok()), 64 << 20);
    assert_eq!(lab.run("imgtool resize -q disk 65M").stderr(), "");
    lab.run("truncate -s 0 disk").ok();
    lab.run("truncate -s 64M disk").ok();
    lab.run_words(&[
        "sh",
        "-ec",
        "printf 'label: gpt\nstart=2048,size=65536\n' | sfdisk -q disk",
    ])
    .ok();
    assert!(resized("disk 65M").ends_with("next: imgtool partition grow --last disk\n"));
    lab.run("mke2fs -q -F -t ext4 -E offset=1048576 disk 32M").ok();
    follow(&resized("disk 128M"));
    assert!(lab.run("sgdisk --verify disk").ok().contains("No problems found"));
    lab.run("dd if=disk of=part bs=1M skip=1 status=none").ok();
    let grown = size_of(&lab.run("dumpe2fs -h part").ok());
    assert!(grown > 120 << 20, "{grown}");
    lab.run("e2fsck -fn part").ok();
    lab.run("truncate -s 8M mbr").ok();
    lab.run_words(&["sh", "-ec", "printf 'label: dos\nstart=2048\n' | sfdisk -q mbr"])
        .ok();
    assert!(resized("mbr 9M").contains("for the guest to grow"));
}
