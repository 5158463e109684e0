//! What targets the command takes, and what it refuses.

use std::fs;

use crate::common::filesystems::{assert_good, field, lab, tool};

/// What is mounted is not written to, whatever names it.
#[test]
fn a_device_that_is_in_use_is_refused_with_where_it_is_mounted() {
    let lab = lab();
    lab.imgtool("create -q device 64M");
    lab.imgtool("partition create -q device name=root");
    lab.imgtool("mkfs -q tree device#1");
    let device = tool(&lab, &["losetup", "--show", "-f", "device"]).ok();
    let device = device.trim();
    let partition = format!("{device}p1");
    tool(&lab, &["partx", "-a", device]).ok();
    fs::create_dir(lab.path("mounted")).unwrap();
    lab.run(&format!("mount {partition} mounted")).ok();
    let runs = [
        format!("mkfs tree {partition}"),
        format!("mkfs tree {device}"),
        format!("mkfs tree {device}#1"),
        format!("mkfs -O qcow2 tree {device}"),
        format!("mkdisk tree.tar {device}"),
        format!("convert -O raw tree.tar {device}"),
    ]
    .map(|line| lab.run(&format!("imgtool {line}")));
    let read = fs::read_to_string(lab.path("mounted/etc/hostname"));
    lab.run("umount mounted").ok();
    let made = lab.run(&format!("imgtool mkfs -q --label new tree {partition}"));
    let whole = lab.run(&format!("imgtool mkfs -q --label newer tree {device}#1"));
    tool(&lab, &["partx", "-d", device]).ok();
    tool(&lab, &["losetup", "-d", device]).ok();
    let place = lab.path("mounted");
    let says = format!("is in use: it is mounted on {}", place.to_str().unwrap());
    for run in runs {
        run.fails(1, &[device, &says, "umount"]);
    }
    assert_eq!(read.unwrap(), "guest\n");
    made.ok();
    whole.ok();
    lab.imgtool("convert -O raw device#1 part");
    assert_good(&lab, "part");
    assert_eq!(field(&lab, "part", "Filesystem volume name"), "newer");
}

/// A kernel does not see what is changed behind its back, and writes over it what it knows.
#[test]
fn what_is_mounted_is_not_changed_by_any_name() {
    let lab = lab();
    lab.imgtool("create -q device 64M");
    lab.imgtool("create -q small 16M");
    lab.imgtool("partition create -q device name=root");
    lab.imgtool("mkfs -q tree device#1");
    let device = tool(&lab, &["losetup", "--show", "-f", "device"]).ok();
    let device = device.trim();
    let partition = format!("{device}p1");
    tool(&lab, &["partx", "-a", device]).ok();
    fs::create_dir(lab.path("mounted")).unwrap();
    lab.run(&format!("mount -o ro {partition} mounted")).ok();
    let before = fs::read(lab.path("device")).unwrap();
    let by_device = [
        format!("fs put {partition} tree.tar /new"),
        format!("fs rm {device}#1 /etc/hostname"),
        format!("fs grow {partition}"),
        format!("convert -n -O raw small {partition}"),
        format!("convert -n -O raw small {device}"),
        format!("template seal {device}"),
        format!("partition create --force {device} name=other"),
    ];
    let by_file = [
        "fs put device#1 tree.tar /new",
        "fs grow device#1",
        "mkfs tree device#1",
        "template seal device",
        "partition create --force device name=other",
    ];
    let by_device = by_device.map(|line| lab.run(&format!("imgtool {line}")));
    let by_file = by_file.map(|line| lab.run(&format!("imgtool {line}")));
    let read = lab.run("imgtool fs cat device#1 /etc/hostname");
    let after = fs::read(lab.path("device")).unwrap();
    lab.run("umount mounted").ok();
    let unmounted = lab.run("imgtool fs put device#1 tree.tar /new");
    let by_name = lab.run(&format!("imgtool fs put {partition} tree.tar /newer"));
    tool(&lab, &["partx", "-d", device]).ok();
    tool(&lab, &["losetup", "-d", device]).ok();
    let place = lab.path("mounted");
    let says = format!("is in use: it is mounted on {}", place.to_str().unwrap());
    for run in by_device {
        run.fails(1, &[device, &says, "umount"]);
    }
    for run in by_file {
        run.fails(1, &["device", device, &says, "umount"]);
    }
    read.ok();
    assert!(before == after);
    unmounted.ok();
    by_name.ok();
    lab.imgtool("convert -O raw device#1 part");
    assert_good(&lab, "part");
}

/// A table's copy is at the end, where no filesystem starts.
#[test]
fn a_disk_that_was_partitioned_and_becomes_one_filesystem_has_no_table_any_more() {
    let lab = lab();
    for (sector, image) in [("512", "device"), ("4096", "large")] {
        lab.imgtool(&format!("create -q {image} 64M"));
        let device = tool(&lab, &["losetup", "--show", "-f", "-b", sector, image]).ok();
        let device = device.trim();
        let table = lab.run_words(&["sh", "-c", &format!("echo 'label: gpt' | sfdisk -q {device}")]);
        let before = tool(&lab, &["wipefs", "-n", device]);
        let made = lab.run(&format!("imgtool mkfs -q tree {device}"));
        let after = tool(&lab, &["wipefs", "-n", "-i", "-O", "TYPE", device]);
        tool(&lab, &["losetup", "-d", device]).ok();
        table.ok();
        assert_eq!(before.ok().matches("gpt").count(), 2);
        made.ok();
        let after = after.ok();
        let found: Vec<&str> = after.split_whitespace().collect();
        assert_eq!(found, ["ext4"]);
        assert_good(&lab, image);
    }
}

#[test]
fn a_name_that_says_another_format_is_no_raw_image_by_accident() {
    let lab = lab();
    for command in ["mkfs", "mkdisk"] {
        for (name, hint) in [
            ("new.qcow2", "make one with -O qcow2, or insist with -O raw"),
            ("NEW.QCOW2", "make one with -O qcow2"),
            ("new.vmdk", "name it otherwise, or insist with -O raw"),
        ] {
            lab.run(&format!("imgtool {command} tree {name}"))
                .fails(1, &[name, "and a raw one would be made", hint]);
            assert!(!lab.path(name).exists());
        }
    }
    lab.imgtool("mkfs -q -O raw tree new.qcow2");
    assert_good(&lab, "new.qcow2");
    lab.imgtool("mkfs -q -O qcow2 tree new.raw");
    lab.qemu_img("check -q -f qcow2 new.raw");
}

#[test]
fn the_largest_size_is_named_and_can_be_made() {
    let lab = lab();
    for (options, largest) in [
        ("", 1_u64 << 47),
        ("--block-size 2k", 1 << 43),
        ("--block-size 1k", 1 << 39),
    ] {
        let hint = format!("choose a size of {largest} bytes at most");
        for size in ["17P", "2E"] {
            lab.run(&format!("imgtool mkfs {options} --size {size} tree new"))
                .fails(1, &["allow for no filesystem as large as this", &hint]);
        }
        lab.run(&format!(
            "imgtool mkfs {options} --size {} tree new",
            largest + 4096
        ))
        .fails(1, &[&hint]);
    }
    lab.run("imgtool mkdisk --size 17P tree.tar new")
        .fails(1, &["140737488355328 bytes at most"]);
    lab.imgtool(&format!(
        "mkfs -q --block-size 1k --size {} --inodes 10000 tree new",
        1_u64 << 39
    ));
    assert_good(&lab, "new");
}
