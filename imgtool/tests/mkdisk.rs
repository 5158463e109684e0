//! Disks that boot, judged by who reads partition tables, FAT and ext4. That they boot is in `boot.rs`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Done, Lab, Loop, interrupted_by};
use serde_json::Value;

const UUID: &str = "0a6d0b5c-9c5f-4d0a-8a6e-2f3b1c9d7e41";

/// What firmware takes for a program for x86-64, with something in it.
fn program(len: usize, machine: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3C..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
    bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
    bytes[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
    bytes
}

const X86_64: u16 = 0x8664;

/// A lab with a system in `tree` that has two kernels, one with an initrd, and a boot loader; and the system in an archive.
fn lab() -> Lab {
    let lab = Lab::new();
    let put = |path: &str, bytes: &[u8]| {
        let path = lab.path("tree").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put("boot/vmlinuz-6.1.0-test", &program(900_000, X86_64));
    put("boot/initrd.img-6.1.0-test", &vec![3; 1_500_000]);
    put("boot/vmlinuz-6.12.0-test", &program(500_000, X86_64));
    put("boot/System.map-6.1.0-test", b"map");
    put(
        "usr/lib/systemd/boot/efi/systemd-bootx64.efi",
        &program(90_000, X86_64),
    );
    put(
        "usr/lib/os-release",
        b"PRETTY_NAME=\"Test System 1\"\nID=testsys\n",
    );
    put("etc/hostname", b"guest\n");
    lab.run("ln -s ../usr/lib/os-release tree/etc/os-release").ok();
    lab.run("tar -C tree -cf tree.tar .").ok();
    lab
}

/// Runs with `PATH` as root has it.
fn tool(lab: &Lab, words: &[&str]) -> Done {
    let mut all = vec![
        "env",
        "PATH=/usr/sbin:/sbin:/usr/bin:/bin",
        "LC_ALL=C.UTF-8",
        "TZ=UTC",
    ];
    all.extend(words);
    lab.run_words(&all)
}

fn file_on_esp(lab: &Lab, path: &str) -> Vec<u8> {
    tool(
        lab,
        &["mcopy", "-n", "-o", "-i", "esp", &format!("::{path}"), "copied"],
    )
    .ok();
    fs::read(lab.path("copied")).unwrap()
}

/// Takes a raw disk apart into `esp` and `root`, after everybody has said that nothing is wrong with it.
fn take_apart(lab: &Lab, disk: &str) -> Value {
    let verified = tool(lab, &["sgdisk", "-v", disk]).ok();
    assert!(verified.contains("No problems found"), "{verified}");
    tool(lab, &["sfdisk", "--verify", disk]).ok();
    let table: Value = serde_json::from_str(&tool(lab, &["sfdisk", "-J", disk]).ok()).unwrap();
    let table = table["partitiontable"].clone();
    for (number, name) in ["esp", "root"].into_iter().enumerate() {
        let partition = &table["partitions"][number];
        let number = |key: &str| partition[key].as_u64().unwrap().to_string();
        let [skip, count] = [number("start"), number("size")];
        tool(
            lab,
            &[
                "dd",
                "bs=512",
                "conv=sparse",
                "status=none",
                &format!("if={disk}"),
                &format!("of={name}"),
                &format!("skip={skip}"),
                &format!("count={count}"),
            ],
        )
        .ok();
        let len = count.parse::<u64>().unwrap() * 512;
        File::options()
            .write(true)
            .open(lab.path(name))
            .unwrap()
            .set_len(len)
            .unwrap();
    }
    let fsck = tool(lab, &["fsck.fat", "-n", "esp"]).ok();
    assert_eq!(fsck.lines().count(), 2, "{fsck}");
    let fsck = tool(lab, &["e2fsck", "-fn", "root"]).ok();
    let strange = fsck
        .lines()
        .filter(|line| !line.starts_with("Pass ") && !line.contains("% non-contiguous), "));
    assert_eq!(strange.count(), 0, "{fsck}");
    table
}

fn assert_boots(lab: &Lab, append: &str) {
    let partuuid = tool(lab, &["sfdisk", "--part-uuid", "raw", "2"])
        .ok()
        .trim()
        .to_lowercase();
    let entry = |version: &str, initrd: &str| {
        format!(
            "title      Test System 1\nversion    {version}\nsort-key   testsys\nlinux      /testsys/{version}/linux\n\
             {initrd}options    root=PARTUUID={partuuid} rw{append}\n"
        )
    };
    let tree = |path: &str| fs::read(lab.path("tree").join(path)).unwrap();
    let loader = tree("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
    for (path, bytes) in [
        ("EFI/BOOT/BOOTX64.EFI", loader.clone()),
        ("EFI/systemd/systemd-bootx64.efi", loader),
        ("testsys/6.1.0-test/linux", tree("boot/vmlinuz-6.1.0-test")),
        ("testsys/6.1.0-test/initrd", tree("boot/initrd.img-6.1.0-test")),
        ("testsys/6.12.0-test/linux", tree("boot/vmlinuz-6.12.0-test")),
        (
            "loader/entries/testsys-6.1.0-test.conf",
            entry("6.1.0-test", "initrd     /testsys/6.1.0-test/initrd\n").into(),
        ),
        (
            "loader/entries/testsys-6.12.0-test.conf",
            entry("6.12.0-test", "").into(),
        ),
        ("loader/loader.conf", b"timeout 0\n".to_vec()),
        ("loader/entries.srel", b"type1\n".to_vec()),
    ] {
        assert!(file_on_esp(lab, path) == bytes, "{path}");
    }
    assert_eq!(
        tool(lab, &["mdir", "-b", "-/", "-a", "-i", "esp", "::"])
            .ok()
            .lines()
            .count(),
        9 + 8
    );
    assert_eq!(
        tool(lab, &["debugfs", "-R", "cat /etc/hostname", "root"]).ok(),
        "guest\n"
    );
}

#[test]
fn directories_and_archives_become_disks_in_images_of_both_formats() {
    let lab = lab();
    for (source, format, options) in [
        ("tree", "raw", ""),
        ("tree.tar", "raw", "--append console=ttyS0"),
        ("tree", "qcow2", "--cmdline quiet"),
        ("tree.tar", "qcow2", "-o cluster_size=4k --append -x"),
        ("tree", "qcow2", "--size 700M"),
    ] {
        lab.imgtool(&format!("mkdisk -q -O {format} {options} {source} disk"));
        lab.run(&format!("qemu-img convert -f {format} -O raw disk raw"))
            .ok();
        if format == "qcow2" {
            lab.qemu_img("check -q disk");
        }
        let table = take_apart(&lab, "raw");
        let partitions = table["partitions"].as_array().unwrap();
        let field = |key: &str| -> Vec<Value> {
            partitions
                .iter()
                .map(|partition| partition[key].clone())
                .collect()
        };
        assert_eq!(
            field("type"),
            [
                "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
                "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
            ]
        );
        assert_eq!(field("name"), ["ESP", "root"]);
        assert_eq!(partitions[0]["start"], 2048);
        assert_eq!(partitions[0]["size"], 512 * 2048);
        let append = match options.rsplit_once(' ') {
            Some((before, _)) if before.ends_with("--size") => String::new(),
            Some((_, words)) => format!(" {words}"),
            None => String::new(),
        };
        assert_boots(&lab, &append);
        lab.imgtool("partition verify disk");
    }
}

#[test]
fn sizes_are_what_was_asked_for() {
    let lab = lab();
    let mib = |bytes: u64| bytes >> 20;
    for (options, esp, range) in [
        ("--size 200M --esp-size 64M", 64, 200..=200),
        ("--size 209715700 --esp-size 33M", 33, 200..=200),
        ("--esp-size 40M --free 50M", 40, 95..=103),
        ("--esp-size 40M --free 50%", 40, 47..=64),
        ("--esp-size 35000000 --shrink --journal none", 34, 39..=42),
        ("--esp-size 300M", 300, 306..=312),
    ] {
        for format in ["raw", "qcow2"] {
            lab.imgtool(&format!("mkdisk -q -O {format} {options} tree disk"));
            lab.run(&format!("qemu-img convert -f {format} -O raw disk raw"))
                .ok();
            let table = take_apart(&lab, "raw");
            let partitions = &table["partitions"];
            let len = lab.path("raw").metadata().unwrap().len();
            assert!(range.contains(&mib(len)), "{options}: {len}");
            let disk = lab.path("disk").metadata().unwrap().len();
            assert!(disk.is_multiple_of(512), "{options}: {disk}");
            assert_eq!(partitions[0]["size"], esp * 2048, "{options}");
            let root = &partitions[1];
            assert_eq!(root["start"], (1 + esp) * 2048, "{options}");
            let end = root["start"].as_u64().unwrap() + root["size"].as_u64().unwrap();
            assert_eq!(
                end / 2048,
                mib(len) - 1,
                "{options}: a MiB is left for the backup of the table"
            );
            // As far as a filesystem with whole blocks can fill it.
            let blocks = tool(&lab, &["dumpe2fs", "-h", "root"]).ok();
            let blocks = blocks
                .lines()
                .find_map(|line| line.strip_prefix("Block count:"))
                .unwrap();
            let blocks: u64 = blocks.trim().parse().unwrap();
            let room = root["size"].as_u64().unwrap() * 512;
            assert!(
                room - blocks * 4096 < 1 << 20,
                "{options}: {blocks} blocks on {room} bytes"
            );
        }
    }
}

#[test]
fn the_same_source_makes_the_same_bytes() {
    let lab = lab();
    let make = |options: &str, source: &str| {
        let mut command = lab.command("imgtool");
        command
            .args(["mkdisk", "-q", "--esp-size", "34M"])
            .args(options.split_whitespace());
        let output = command
            .args([source, "disk"])
            .env("SOURCE_DATE_EPOCH", "1000000000")
            .output();
        assert!(output.as_ref().unwrap().status.success(), "{output:?}");
        fs::read(lab.path("disk")).unwrap()
    };
    let uuid = format!("--uuid {UUID}");
    let first = make(&uuid, "tree");
    assert!(first == make(&format!("{uuid} --threads 1"), "tree"));
    assert!(make(&uuid, "tree.tar") == make(&uuid, "tree.tar"));
    let table = take_apart(&lab, "disk");
    assert_eq!(table["id"], "07963B49-5121-49FC-BD26-F322B1A7DE34");
    let listing = tool(&lab, &["mdir", "-i", "esp", "::loader"]).ok();
    assert!(listing.contains("2001-09-09   1:46"), "{listing}");
    // Drawn ones differ, in every place that has one.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 {
        make("", "tree");
        let table = take_apart(&lab, "disk");
        let root = tool(&lab, &["blkid", "-p", "-s", "UUID", "-o", "value", "root"]).ok();
        let esp = tool(&lab, &["blkid", "-p", "-s", "UUID", "-o", "value", "esp"]).ok();
        let guids = [
            &table["id"],
            &table["partitions"][0]["uuid"],
            &table["partitions"][1]["uuid"],
        ];
        assert!(guids.iter().all(|guid| seen.insert(guid.to_string())));
        assert!(seen.insert(root) && seen.insert(esp));
    }
}

#[test]
fn the_summary_says_what_there_is() {
    let lab = lab();
    let output = lab.imgtool(&format!(
        "mkdisk --output json --uuid {UUID} --size 600M --append quiet -O qcow2 tree disk"
    ));
    let made: Value = serde_json::from_str(&output).unwrap();
    lab.qemu_img("convert -O raw disk raw");
    let table = take_apart(&lab, "raw");
    assert_eq!(
        (&made["filename"], &made["format"]),
        (&"disk".into(), &"qcow2".into())
    );
    assert_eq!(made["virtual-size"], 600 << 20);
    for (ours, theirs) in made["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .zip(table["partitions"].as_array().unwrap())
    {
        assert_eq!(ours["guid"], theirs["uuid"]);
        assert_eq!(
            ours["start"].as_u64(),
            theirs["start"].as_u64().map(|start| start * 512)
        );
        assert_eq!(
            ours["size"].as_u64(),
            theirs["size"].as_u64().map(|size| size * 512)
        );
    }
    for (number, (file, kind)) in [("esp", "vfat"), ("root", "ext4")].into_iter().enumerate() {
        let uuid = tool(&lab, &["blkid", "-p", "-s", "UUID", "-o", "value", file]).ok();
        let filesystem = &made["partitions"][number]["filesystem"];
        assert_eq!(
            (&filesystem["type"], &filesystem["uuid"]),
            (&kind.into(), &uuid.trim().into())
        );
    }
    let guid = made["partitions"][1]["guid"].as_str().unwrap().to_lowercase();
    assert_eq!(made["command-line"], format!("root=PARTUUID={guid} rw quiet"));
    assert_eq!(made["title"], "Test System 1");
    assert_eq!(
        made["boot-loader"],
        "/usr/lib/systemd/boot/efi/systemd-bootx64.efi of the source"
    );
    assert_eq!(made["kernels"][0]["initrd"], "/boot/initrd.img-6.1.0-test");
    assert_eq!(made["kernels"][1]["initrd"], Value::Null);
    assert_eq!(made["kernels"][1]["kernel"], "/boot/vmlinuz-6.12.0-test");

    let text = lab.imgtool(&format!("mkdisk --uuid {UUID} tree disk"));
    for says in [
        "disk: raw, ",
        "1 ESP: FAT32, 512 MiB, ",
        "2 root: ext4, ",
        UUID,
        "It boots Test System 1 (Linux 6.1.0-test, 6.12.0-test) by /usr/lib/systemd",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let done = lab.run("imgtool mkdisk --progress json tree.tar disk");
    let last: Value = serde_json::from_str(done.stderr().lines().last().unwrap()).unwrap();
    assert_eq!(last["total"], lab.path("tree.tar").metadata().unwrap().len());
}

#[test]
fn systems_of_other_layouts_boot() {
    let lab = lab();
    let tree = lab.path("tree");
    for name in [
        "vmlinuz-6.1.0-test",
        "vmlinuz-6.12.0-test",
        "initrd.img-6.1.0-test",
    ] {
        fs::remove_file(tree.join("boot").join(name)).unwrap();
    }
    fs::create_dir_all(tree.join("usr/lib/modules/6.9")).unwrap();
    fs::write(tree.join("usr/lib/modules/6.9/vmlinuz"), program(10_000, X86_64)).unwrap();
    fs::write(tree.join("boot/initramfs-6.9.img"), "initrd").unwrap();
    fs::remove_file(tree.join("usr/lib/os-release")).unwrap();
    fs::write(lab.path("given.efi"), program(5_000, X86_64)).unwrap();
    lab.imgtool("mkdisk -q --boot-efi given.efi tree raw");
    take_apart(&lab, "raw");
    assert!(file_on_esp(&lab, "EFI/BOOT/BOOTX64.EFI") == program(5_000, X86_64));
    assert!(file_on_esp(&lab, "linux/6.9/linux") == program(10_000, X86_64));
    assert_eq!(file_on_esp(&lab, "linux/6.9/initrd"), b"initrd");
    // The signed one counts.
    let directory = tree.join("usr/lib/systemd/boot/efi");
    fs::write(
        directory.join("systemd-bootx64.efi.signed"),
        program(6_000, X86_64),
    )
    .unwrap();
    lab.imgtool("mkdisk -q tree raw");
    take_apart(&lab, "raw");
    assert!(file_on_esp(&lab, "EFI/systemd/systemd-bootx64.efi") == program(6_000, X86_64));
    // Without any in the source, this machine's.
    fs::remove_dir_all(&directory).unwrap();
    lab.imgtool("mkdisk -q tree raw");
    take_apart(&lab, "raw");
    let host = Path::new("/usr/lib/systemd/boot/efi");
    let host = ["systemd-bootx64.efi.signed", "systemd-bootx64.efi"].map(|name| fs::read(host.join(name)));
    let host = host
        .into_iter()
        .find_map(Result::ok)
        .expect("scripts/setup.sh test installs it");
    assert!(file_on_esp(&lab, "EFI/BOOT/BOOTX64.EFI") == host);
}

#[test]
fn disks_for_arm64_boot_that() {
    let lab = lab();
    for (path, bytes) in [
        ("boot/vmlinuz-6.1.0-test", program(900_000, 0xAA64)),
        ("boot/vmlinuz-6.12.0-test", program(500_000, 0xAA64)),
        (
            "usr/lib/systemd/boot/efi/systemd-bootaa64.efi",
            program(70_000, 0xAA64),
        ),
    ] {
        fs::write(lab.path("tree").join(path), bytes).unwrap();
    }
    lab.run("imgtool mkdisk tree raw")
        .fails(1, &["is no kernel that firmware for x86-64 can start"]);
    lab.imgtool("mkdisk -q --arch arm64 tree raw");
    let table = take_apart(&lab, "raw");
    assert_eq!(
        table["partitions"][1]["type"],
        "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
    );
    for path in ["EFI/BOOT/BOOTAA64.EFI", "EFI/systemd/systemd-bootaa64.efi"] {
        assert!(file_on_esp(&lab, path) == program(70_000, 0xAA64), "{path}");
    }
    let kernel = file_on_esp(&lab, "testsys/6.12.0-test/linux");
    assert!(kernel == program(500_000, 0xAA64));
}

#[test]
fn what_cannot_be_made_is_one_line_and_leaves_nothing() {
    let lab = lab();
    fs::write(lab.path("old"), "precious").unwrap();
    fs::write(lab.path("text"), "no program").unwrap();
    fs::write(lab.path("arm.efi"), program(9_000, 0xAA64)).unwrap();
    lab.run("cp -r tree no-kernel").ok();
    fs::remove_dir_all(lab.path("no-kernel/boot")).unwrap();
    lab.run("cp -r tree bad-kernel").ok();
    fs::write(
        lab.path("bad-kernel/boot/vmlinuz-6.1.0-test"),
        program(9_000, 0xAA64),
    )
    .unwrap();
    lab.run("cp -r tree bad-loader").ok();
    fs::write(
        lab.path("bad-loader/usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
        "x",
    )
    .unwrap();
    lab.run("cp -r tree colon").ok();
    fs::write(lab.path("colon/boot/vmlinuz-6:1"), program(9_000, X86_64)).unwrap();
    lab.run("cp -r tree large").ok();
    fs::write(lab.path("large/boot/initrd.img-6.12.0-test"), vec![1; 50 << 20]).unwrap();
    let names = lab.names();
    for (line, words) in [
        ("missing", "missing: open: No such file"),
        ("no-kernel", "there is no kernel in the source"),
        (
            "bad-kernel",
            "/boot/vmlinuz-6.1.0-test is no kernel that firmware for x86-64 can start",
        ),
        (
            "bad-loader",
            "systemd-bootx64.efi of the source: this is no EFI program",
        ),
        ("--boot-efi text tree", "text: this is no EFI program"),
        (
            "--boot-efi arm.efi tree",
            "arm.efi: this is no EFI program for x86-64",
        ),
        ("--boot-efi missing tree", "missing: open: No such file"),
        ("colon", "FAT cannot hold the name \"6:1\""),
        (
            "--esp-size 40M large",
            "the EFI system partition is too small: the filesystem is full: \"initrd\" needs 52",
        ),
        (
            "--esp-size 16M tree",
            "the EFI system partition cannot be made: 16777216 bytes are too few",
        ),
        ("--esp-size 3T tree", "too many for FAT32"),
        ("--esp-size x tree", "esp-size: \"x\" is no size"),
        (
            "--size 500M tree",
            "a disk of 524288000 bytes has no room for a root partition",
        ),
        ("--size 516M tree", "the tree needs "),
        ("--size 0 tree", "no room for a root partition"),
        ("--uuid 1234 tree", "\"1234\" is no UUID"),
        ("-O vmdk tree", "vmdk"),
        ("-O qcow2 -o size=1G tree", "give --size"),
    ] {
        for target in ["new", "old"] {
            lab.run(&format!("imgtool mkdisk {line} {target}"))
                .fails(1, &[words]);
        }
    }
    for (line, words) in [
        (
            "tree tree/new",
            "tree: the filesystem is being written to a file in the tree",
        ),
        ("tree tree", "tree: "),
        ("tree.tar tree.tar", "the target is the archive that is read"),
        ("tree none/new", "make the directory none first"),
        ("tree -", "cannot be written to standard output"),
    ] {
        lab.run(&format!("imgtool mkdisk {line}")).fails(1, &[words]);
    }
    lab.run_words(&["imgtool", "mkdisk", "--append", "a\nb", "tree", "new"])
        .fails(1, &["--append"]);
    let long = "x".repeat(2000);
    lab.run(&format!("imgtool mkdisk --append {long} tree new"))
        .fails(1, &["kernels take 2047", "append 7 bytes less"]);
    // With what the loader says of the initrd.
    let long = "x".repeat(2047 - 7 - 46);
    lab.run(&format!("imgtool mkdisk --append {long} tree new"))
        .fails(1, &["kernels take 2047", "bytes less"]);
    lab.imgtool("create -q disk 700M");
    lab.imgtool("partition create -q disk name=root");
    lab.run("imgtool mkdisk tree disk#1")
        .fails(1, &["disk#1: a partition cannot have partitions"]);
    fs::remove_file(lab.path("disk")).unwrap();
    assert_eq!(lab.names(), names);
    assert_eq!(fs::read(lab.path("old")).unwrap(), b"precious");
}

#[test]
fn a_device_is_written_in_place_and_has_no_table_while_it_is() {
    let lab = lab();
    // A disk that was in use, with a table at either end.
    lab.imgtool("create -q device 100M");
    lab.imgtool("partition create -q device type=linux,name=old");
    let device = Loop::new(&lab, "device", &[]);
    let device = &device.0;
    let full = lab.run(&format!("imgtool mkdisk -q --esp-size 97M tree {device}"));
    let erased = lab.run(&format!("imgtool partition list {device}"));
    lab.imgtool(&format!("mkdisk -q --esp-size 36M tree {device}"));
    full.fails(1, &[device, "the tree needs "]);
    erased.fails(1, &["partition table"]);
    let table = take_apart(&lab, "device");
    assert_eq!(table["partitions"][1]["size"], (100 - 1 - 36 - 1) * 2048);
}

#[test]
fn a_source_that_is_none_does_not_cost_what_a_device_holds() {
    let lab = lab();
    lab.imgtool("create -q device 100M");
    lab.imgtool("partition create -q device type=linux,name=old");
    lab.imgtool("mkfs -q tree device#1");
    fs::write(lab.path("garbage"), vec![b'g'; 100_000]).unwrap();
    fs::write(lab.path("garbage.gz"), b"\x1f\x8b\x08 and no more of it").unwrap();
    fs::write(lab.path("empty"), "").unwrap();
    lab.run("tar -cf nothing.tar -T empty").ok();
    lab.run("tar -cf links.tar -C tree/etc os-release").ok();
    lab.run("cp -r tree no-kernel").ok();
    fs::remove_dir_all(lab.path("no-kernel/boot")).unwrap();
    lab.run("cp -r tree no-loader").ok();
    fs::remove_dir_all(lab.path("no-loader/usr/lib/systemd")).unwrap();
    fs::write(lab.path("bad.toml"), "[[entry]]\npath = 1\n").unwrap();
    let before = fs::read(lab.path("device")).unwrap();
    let device = Loop::new(&lab, "device", &[]);
    let device = &device.0;
    for (line, says) in [
        ("missing", "missing: open: No such file"),
        ("garbage", "tar"),
        ("garbage.gz", "garbage.gz"),
        ("empty", "ends early"),
        ("nothing.tar", "there is no kernel in the source"),
        ("links.tar", "there is no kernel in the source"),
        ("no-kernel", "no-kernel: there is no kernel in the source"),
        (
            "--arch arm64 no-loader",
            "no-loader: there is no boot loader systemd-bootaa64.efi",
        ),
        ("oci:missing", "missing"),
        ("docker-archive:garbage", "garbage"),
        ("--boot-efi garbage tree", "garbage: this is no EFI program"),
        ("--manifest bad.toml tree", "bad.toml"),
        (
            "--size 101M tree",
            "the disk has 104857600 bytes, and 105906176 are asked for",
        ),
        ("--block-size 8k tree", "8192"),
    ] {
        lab.run(&format!("imgtool mkdisk --esp-size 36M {line} {device}"))
            .fails(1, &[says]);
        assert!(fs::read(lab.path("device")).unwrap() == before, "{line}");
    }
    lab.imgtool(&format!("mkdisk -q --esp-size 36M tree {device}"));
    take_apart(&lab, "device");
}

/// Firmware and kernels count in the sectors that a disk has.
#[test]
fn disks_have_the_sectors_of_their_device() {
    let lab = lab();
    lab.imgtool("create -q device 400M");
    let device = Loop::new(&lab, "device", &["--sector-size", "4096"]);
    let device = &device.0;
    for (line, says) in [
        (
            "--esp-size 300M --block-size 1k tree",
            "blocks of 1024 bytes are smaller than the sectors of the disk (4096 bytes)",
        ),
        (
            "--esp-size 300M --sector-size 512 tree",
            "the device has sectors of 4096 bytes, and not of 512",
        ),
        (
            "--esp-size 100M tree",
            "too few for FAT32, which has at least 65541 clusters of 4096 bytes",
        ),
    ] {
        lab.run(&format!("imgtool mkdisk {line} {device}"))
            .fails(1, &[device, says]);
    }
    lab.run(&format!("imgtool mkfs --block-size 2k tree {device}"))
        .fails(
            1,
            &[
                device,
                "2048 bytes are smaller than the sectors",
                "--block-size 4096",
            ],
        );
    lab.imgtool(&format!("mkdisk -q --esp-size 300M tree {device}"));
    let verified = tool(&lab, &["sgdisk", "-v", device]).ok();
    assert!(verified.contains("No problems found"), "{verified}");
    tool(&lab, &["partx", "-a", device]).ok();
    let [esp, root] = [1, 2].map(|number| format!("{device}p{number}"));
    let fsck = tool(&lab, &["fsck.fat", "-n", &esp]);
    let text = tool(&lab, &["mtype", "-i", &esp, "::loader/loader.conf"]);
    let checked = tool(&lab, &["e2fsck", "-fn", &root]);
    fs::create_dir(lab.path("mounted")).unwrap();
    let mounted = lab.run(&format!("mount {root} mounted"));
    let hostname = fs::read_to_string(lab.path("mounted/etc/hostname"));
    lab.run("umount mounted").ok();
    tool(&lab, &["partx", "-d", device]).ok();
    let fsck = fsck.ok();
    assert_eq!(fsck.lines().count(), 2, "{fsck}");
    assert_eq!(text.ok(), "timeout 0\n");
    checked.ok();
    mounted.ok();
    assert_eq!(hostname.unwrap(), "guest\n");
    lab.run(&format!("imgtool mkfs --block-size 1k tree {device}#2"))
        .fails(1, &["1024 bytes are smaller than the sectors"]);
    // The same of an image, for such a disk.
    lab.imgtool(&format!(
        "mkdisk -q -O qcow2 --sector-size 4096 --size 400M --uuid {UUID} --esp-size 300M tree disk"
    ));
    lab.imgtool(&format!("mkdisk -q --uuid {UUID} --esp-size 300M tree {device}"));
    lab.imgtool(&format!("compare -f qcow2 -F raw disk {device}"));
}

/// The size that an error says would do is one of the disk, and does.
#[test]
fn the_size_that_is_said_to_do_does() {
    let lab = lab();
    fs::write(lab.path("tree/large"), vec![1; 30 << 20]).unwrap();
    for (options, size) in [("--esp-size 40M", "60M"), ("--esp-size 34M --journal 8M", "50M")] {
        let small = lab.run(&format!("imgtool mkdisk {options} --size {size} tree new"));
        small.fails(
            1,
            &["the filesystem is too small: the tree needs ", "hint: a disk of "],
        );
        let hint = small.stderr();
        let enough: u64 = hint
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .next_back()
            .unwrap();
        lab.imgtool(&format!("mkdisk -q {options} --size {enough} tree new"));
        take_apart(&lab, "new");
        assert_eq!(lab.path("new").metadata().unwrap().len(), enough);
        lab.run(&format!(
            "imgtool mkdisk {options} --size {} tree new",
            enough - (1 << 20)
        ))
        .fails(1, &["the tree needs "]);
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let (lab, _mounted) = Lab::on("ext4", 20);
    let other = Lab::new();
    lab.run_words(&["cp", "-r", small_system(&other).to_str().unwrap(), "tree"])
        .ok();
    fs::write(lab.path("tree/file"), vec![1; 7 << 20]).unwrap();
    let names = lab.names();
    for options in ["", "-O qcow2"] {
        lab.run(&format!("imgtool mkdisk {options} tree new"))
            .fails(1, &["new: ", "No space left on device", "make room"]);
        assert_eq!(lab.names(), names);
    }
}

/// A small system, in a lab of its own.
fn small_system(lab: &Lab) -> std::path::PathBuf {
    let tree = lab.path("tree");
    for directory in ["boot", "usr/lib/systemd/boot/efi"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::write(tree.join("boot/vmlinuz-1"), program(3 << 20, X86_64)).unwrap();
    fs::write(
        tree.join("usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
        program(9_000, X86_64),
    )
    .unwrap();
    tree
}

#[test]
fn an_interrupt_leaves_nothing() {
    let lab = lab();
    fs::write(lab.path("old"), "precious").unwrap();
    let names = lab.names();
    for (target, signal) in [("new", "INT"), ("old", "TERM")] {
        let mut command = lab.command("imgtool");
        command
            .args(["mkdisk", "-", target])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // An archive that does not end.
        let archive = fs::read(lab.path("tree.tar")).unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&archive[..1_000_000]).unwrap();
        let start = Instant::now();
        while lab.names() == names {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        lab.run(&format!("kill -{signal} {}", child.id())).ok();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(interrupted_by(signal)));
        assert_eq!(lab.names(), names);
    }
    assert_eq!(fs::read(lab.path("old")).unwrap(), b"precious");
}

/// What is killed leaves no disk by the name that was asked for, and what it leaves, the next run removes.
#[test]
fn a_kill_leaves_what_nobody_takes_for_a_disk() {
    let lab = lab();
    fs::write(lab.path("old"), "precious").unwrap();
    let names = lab.names();
    for target in ["new", "old", "-Oqcow2 new"] {
        let mut command = lab.command("imgtool");
        command
            .args(["mkdisk", "-"])
            .args(target.split(' '))
            .stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let archive = fs::read(lab.path("tree.tar")).unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&archive[..1_000_000]).unwrap();
        let start = Instant::now();
        while lab.names() == names {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let left: Vec<String> = lab
            .names()
            .into_iter()
            .filter(|name| !names.contains(name))
            .collect();
        assert_eq!(left, [format!(".imgtool-{}-0.partial", child.id())], "{target}");
        assert_eq!(fs::read(lab.path("old")).unwrap(), b"precious");
        lab.imgtool("mkdisk -q --esp-size 34M tree other");
        fs::remove_file(lab.path("other")).unwrap();
        assert_eq!(lab.names(), names);
    }
}
