//! `imgtool partition`, and partitions where other commands take an image.

use std::os::unix::fs::FileExt;

use crate::common::Lab;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A qcow2 image with a partitioned disk of 64 MiB: an ESP and a root of 20 MiB from 9 MiB on, with data in it.
fn partitioned(lab: &Lab) {
    lab.qemu_img("create -q -f qcow2 disk 64M");
    lab.imgtool(
        "partition create --seed 1 disk size=8M,type=efi,name=ESP size=20M,type=root-x86-64,name=root",
    );
    lab.qemu_io(
        "qcow2",
        "disk",
        &["write -P 7 9M 1M", "write -P 8 28M 512k", "write -P 9 40M 1M"],
    );
}

fn change(lab: &Lab, name: &str, bytes: &[u8], offset: u64) {
    let file = std::fs::File::options().write(true).open(lab.path(name)).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_table_in_an_image_is_one_that_others_read() {
    let lab = Lab::new();
    partitioned(&lab);
    lab.qemu_img("convert -O raw disk flat");
    let said = lab.run("sgdisk --verify flat").ok();
    assert!(said.contains("No problems found"), "{said}");
    let theirs: Value = serde_json::from_str(&lab.run("sfdisk --json flat").ok()).unwrap();
    let ours: Value = serde_json::from_str(&lab.imgtool("partition list --output json disk")).unwrap();
    assert_eq!(theirs["partitiontable"]["id"], ours["guid"]);
    let theirs = theirs["partitiontable"]["partitions"].as_array().unwrap().clone();
    assert_eq!(ours["partitions"].as_array().unwrap().len(), theirs.len());
    for (ours, theirs) in ours["partitions"].as_array().unwrap().iter().zip(theirs) {
        let sectors = |key: &str| ours[key].as_u64().unwrap() / 512;
        assert_eq!(
            (sectors("start"), sectors("size")),
            (
                theirs["start"].as_u64().unwrap(),
                theirs["size"].as_u64().unwrap()
            )
        );
        for (key, other) in [("type-guid", "type"), ("guid", "uuid"), ("name", "name")] {
            assert_eq!(ours[key], theirs[other], "{key}");
        }
    }
    assert_eq!(
        lab.imgtool("partition list disk"),
        format!(
            "table: gpt, sectors of 512 bytes, GUID {}\n\
             Number      Start       Size  Type            Name\n     \
             1      1 MiB      8 MiB  efi             ESP\n     \
             2      9 MiB     20 MiB  root-x86-64     root\n",
            ours["guid"].as_str().unwrap()
        )
    );
    assert_eq!(
        lab.imgtool("partition verify disk"),
        "No errors were found in the partition table.\n"
    );
    lab.qemu_img("check -q disk");
    // The same command makes the same table.
    lab.imgtool("create -q again 64M");
    lab.imgtool(
        "partition create -q --seed 1 again size=8M,type=efi,name=ESP size=20M,type=root-x86-64,name=root",
    );
    let head = |name: &str| std::fs::read(lab.path(name)).unwrap()[..17408].to_vec();
    assert!(head("flat") == head("again"));
}

#[test]
fn a_partition_is_an_image_wherever_one_is_read() {
    let lab = Lab::new();
    partitioned(&lab);
    lab.qemu_img("convert -O raw disk flat");
    lab.qemu_img("dd -f raw -O raw bs=1M skip=9 count=29 if=flat of=theirs");
    let json: Value = serde_json::from_str(&lab.imgtool("partition list --output json disk")).unwrap();
    let guid = json["partitions"][1]["guid"].as_str().unwrap();
    for name in ["disk#2", "disk#name:root", &format!("disk#uuid:{guid}"), "flat#2"] {
        lab.imgtool(&format!("convert -O raw {name} ours"));
        assert!(
            std::fs::read(lab.path("ours")).unwrap() == std::fs::read(lab.path("theirs")).unwrap(),
            "{name}"
        );
        lab.imgtool(&format!("compare {name} theirs"));
        lab.imgtool(&format!("dd -O raw if={name} of=dd bs=1M count=3"));
        assert_eq!(lab.path("dd").metadata().unwrap().len(), 3 * MIB);
        let map: Value = serde_json::from_str(&lab.imgtool(&format!("map --output json {name}"))).unwrap();
        let runs = map.as_array().unwrap();
        assert_eq!(
            (runs[0]["start"].as_u64(), runs[0]["length"].as_u64()),
            (Some(0), Some(MIB))
        );
        let last = runs.last().unwrap();
        assert_eq!(
            last["start"].as_u64().unwrap() + last["length"].as_u64().unwrap(),
            20 * MIB
        );
        let measured: Value =
            serde_json::from_str(&lab.imgtool(&format!("measure -O qcow2 --output json {name}"))).unwrap();
        let whole: Value =
            serde_json::from_str(&lab.qemu_img("measure -O qcow2 --output json ours")).unwrap();
        assert_eq!(measured["required"], whole["required"]);
    }
    lab.imgtool("convert -c -O qcow2 disk#2 small");
    lab.qemu_img("compare small theirs");
    let info = lab.imgtool("info disk#2");
    for line in [
        "partition: 2 of disk",
        "name: root",
        "type: root-x86-64 (4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709)",
        "start: 9 MiB (9437184 bytes)",
    ] {
        assert!(info.lines().any(|found| found == line), "{info}");
    }
    assert_eq!(lab.run("imgtool compare disk#1 disk#2").code(), 1);
}

#[test]
fn a_partition_is_written_to_and_nothing_beside_it() {
    let lab = Lab::new();
    partitioned(&lab);
    lab.qemu_img("convert -O raw disk before");
    lab.raw("new", 20 << 20, 5);
    lab.imgtool("convert -n -O qcow2 new disk#name:root");
    lab.imgtool("compare disk#2 new");
    lab.qemu_img("check -q disk");
    lab.qemu_img("convert -O raw disk after");
    let [before, after, new] = ["before", "after", "new"].map(|name| std::fs::read(lab.path(name)).unwrap());
    let (start, end) = (9 << 20, 29 << 20);
    assert!(before[..start] == after[..start] && before[end..] == after[end..]);
    assert!(after[start..end] == new[..]);
    // One that is too short, one from the same image, and a new image of that name.
    lab.run("imgtool convert -n -O qcow2 new disk#1")
        .fails(1, &["8388608"]);
    lab.run("imgtool convert -n -O qcow2 disk#1 disk#2")
        .fails(1, &["disk#2", "is read from"]);
    lab.run("imgtool convert -O raw new disk#2")
        .fails(1, &["disk#2", "no new image", "-n"]);
    lab.run("imgtool dd if=new of=disk#2")
        .fails(1, &["disk#2", "no new image"]);
    lab.qemu_img("convert -O raw disk unchanged");
    assert!(std::fs::read(lab.path("unchanged")).unwrap() == after);
    // A file that has such a name is meant itself.
    std::fs::write(lab.path("disk#1"), [1; 512]).unwrap();
    assert!(lab.imgtool("info disk#1").contains("virtual size: 512 B"));
}

#[test]
fn an_overlay_takes_a_copy_of_a_part_of_its_own_backing() {
    let lab = Lab::new();
    partitioned(&lab);
    // The offsets of a partition are not those of the chain that it is in.
    lab.qemu_img("create -q -f qcow2 -b disk -F qcow2 top");
    lab.qemu_io("qcow2", "top", &["write -P 5 20M 64k"]);
    lab.imgtool("convert -O qcow2 -B disk -F qcow2 top#2 part");
    lab.imgtool("convert -O raw top#2 ours");
    let whole = lab.run("qemu-img compare part ours");
    assert_eq!(whole.code(), 0, "{}", whole.stdout());
}

/// The table is that of the snapshot, and so is the disk.
#[test]
fn a_partition_of_a_snapshot_is_copied() {
    let lab = Lab::new();
    partitioned(&lab);
    lab.qemu_img("snapshot -c then disk");
    lab.imgtool("partition create -q --force --seed 2 disk size=4M,type=linux,name=new");
    lab.qemu_io("qcow2", "disk", &["write -q -P 77 1M 30M"]);
    lab.qemu_img("convert -l then -O raw disk whole");
    let whole = std::fs::read(lab.path("whole")).unwrap();
    let root = &whole[(9 * MIB) as usize..(29 * MIB) as usize];
    lab.imgtool("convert -l then disk#name:root out");
    assert!(std::fs::read(lab.path("out")).unwrap() == root);
    lab.imgtool("snapshot export -O qcow2 disk#2 then out");
    lab.qemu_img("convert -O raw out out.raw");
    assert!(std::fs::read(lab.path("out.raw")).unwrap() == root);
    let missing = lab.run("imgtool convert -l then disk#name:new out");
    missing.fails(1, &["no partition name:new", "root"]);
    lab.imgtool("convert disk#name:new out");
    assert_eq!(lab.path("out").metadata().unwrap().len(), 4 * MIB);
    for line in [
        "snapshot list disk#1",
        "snapshot create disk#1 x",
        "commit disk#1",
    ] {
        lab.run(&format!("imgtool {line}"))
            .fails(1, &["disk#1", "name the image alone"]);
    }
}

#[test]
fn repair_and_grow() {
    let lab = Lab::new();
    lab.imgtool("create -q disk 64M");
    lab.imgtool("partition create -q disk type=linux,size=10M type=linux");
    let whole = std::fs::read(lab.path("disk")).unwrap();
    for (offset, says, message) in [
        (
            520,
            "error: the primary table in sector 1 is damaged: ",
            "The primary table was restored.\n",
        ),
        (
            64 * MIB - 600,
            "error: the backup table in sector 131071 is damaged: the checksum of its entries is",
            "The backup table was restored.\n",
        ),
        (
            510,
            "error: there is no protective MBR",
            "The protective MBR was restored.\n",
        ),
    ] {
        change(&lab, "disk", b"?", offset);
        let found = lab.run("imgtool partition verify disk");
        assert_eq!(found.code(), 2);
        assert!(found.stderr().starts_with(says), "{}", found.stderr());
        let listed = lab.run("imgtool partition list disk");
        assert!(listed.stderr().contains("1 fault"), "{}", listed.stderr());
        if offset == 520 {
            lab.run("imgtool convert disk#1 x")
                .fails(1, &["disk:", "primary table", "partition verify disk"]);
            lab.run("imgtool partition grow disk")
                .fails(1, &["primary table", "partition repair"]);
        }
        assert_eq!(lab.imgtool("partition repair disk"), message);
        assert!(std::fs::read(lab.path("disk")).unwrap() == whole);
    }
    assert_eq!(
        lab.imgtool("partition repair disk"),
        "There is nothing to repair.\n"
    );
    lab.imgtool("resize -q disk 100M");
    let found = lab.run("imgtool partition verify disk");
    assert_eq!(found.code(), 3, "{}", found.stderr());
    assert_eq!(
        lab.imgtool("partition grow --last disk"),
        "The backup table was moved from sector 131071 to sector 204799.\nPartition 2 has grown from 52 MiB to 88 MiB.\n"
    );
    assert_eq!(
        lab.imgtool("partition grow --last disk"),
        "The table fits the disk.\n"
    );
    assert!(lab.run("sgdisk --verify disk").ok().contains("No problems found"));
    let json: Value = serde_json::from_str(&lab.imgtool("partition repair --output json disk")).unwrap();
    assert_eq!(json["restored"], Value::Null);
}

#[test]
fn a_repair_says_what_it_leaves_wrong() {
    let lab = Lab::new();
    lab.imgtool("create -q disk 64M");
    lab.imgtool("partition create -q disk size=10M,type=linux size=10M,type=linux");
    // The second partition begins where the first one does, in both copies.
    for entries in [2 * 512, 64 * MIB - 33 * 512] {
        change(&lab, "disk", &2048u64.to_le_bytes(), entries + 128 + 32);
    }
    mend_checksums(&lab.path("disk"));
    let before = std::fs::read(lab.path("disk")).unwrap();
    let found = lab.run("imgtool partition repair disk");
    assert_eq!(found.code(), 2);
    assert_eq!(
        found.stderr(),
        "error: partitions 1 and 2 overlap, from sector 2048 on\n"
    );
    assert_eq!(found.stdout(), "1 error is left, which no other copy can mend.\n");
    let found = lab.run("imgtool partition repair -q --output json disk");
    assert_eq!(found.code(), 2);
    let json: Value = serde_json::from_str(&found.stdout()).unwrap();
    assert_eq!(json["findings"][0]["severity"], "error");
    assert!(std::fs::read(lab.path("disk")).unwrap() == before);
}

/// Makes the checksums of both copies of a GPT right, whatever the entries are.
fn mend_checksums(disk: &std::path::Path) {
    let mut bytes = std::fs::read(disk).unwrap();
    let number = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    for header in [512, bytes.len() - 512] {
        let entries = number(&bytes, header + 72) * 512;
        let sum = crc32fast::hash(&bytes[entries..entries + 128 * 128]);
        bytes[header + 88..header + 92].copy_from_slice(&sum.to_le_bytes());
        bytes[header + 16..header + 20].fill(0);
        let sum = crc32fast::hash(&bytes[header..header + 92]);
        bytes[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
    }
    std::fs::write(disk, bytes).unwrap();
}

#[test]
fn large_sectors_are_found_out() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 disk 64M");
    lab.imgtool("partition create -q --sector-size 4096 disk type=linux,name=x");
    assert!(
        lab.imgtool("partition list disk")
            .contains("sectors of 4096 bytes")
    );
    lab.imgtool("convert -O raw disk#name:x part");
    assert_eq!(lab.path("part").metadata().unwrap().len(), 62 * MIB);
}

#[test]
fn bad_input_is_one_line_and_changes_nothing() {
    let lab = Lab::new();
    partitioned(&lab);
    lab.imgtool("create -q empty 64M");
    lab.imgtool("create -q fs 64M");
    change(&lab, "fs", b"something", 1080);
    lab.run("sgdisk -n 1:2048:+1M mbr").code();
    lab.imgtool("convert -O raw disk bad");
    // Both checksums of the entries are wrong.
    change(&lab, "bad", b"?", 1200);
    change(&lab, "bad", b"?", 64 * MIB - 33 * 512 + 200);
    let before: Vec<_> = ["disk", "empty", "fs", "bad"]
        .map(|name| std::fs::read(lab.path(name)).unwrap())
        .into();
    for (line, what) in [
        (
            "partition list empty",
            &["empty: there is no partition table", "imgtool partition create"][..],
        ),
        ("partition verify empty", &["no partition table"]),
        ("partition repair empty", &["no partition table"]),
        ("partition grow empty", &["no partition table"]),
        ("convert empty#1 x", &["empty: there is no partition table"]),
        (
            "partition list bad",
            &["bad: both copies", "checksum of its entries"],
        ),
        ("partition repair bad", &["both copies"]),
        ("convert bad#1 x", &["both copies", "partition verify bad"]),
        (
            "convert disk#3 x",
            &["disk: there is no partition 3", "there are 1 (ESP) and 2 (root)"],
        ),
        ("map disk#name:Root", &["no partition name:Root", "2 (root)"]),
        ("convert disk#0 x", &["disk#0", "names no partition"]),
        ("convert disk#uuid:12 x", &["\"12\" is no GUID"]),
        ("check disk#1", &["disk#1", "No such file"]),
        ("resize disk#1 +1M", &["disk#1", "only compare, convert"]),
        ("convert gone#1 x", &["gone#1", "No such file"]),
        (
            "partition create disk type=linux",
            &["disk: the disk has a partition table (gpt) already", "--force"],
        ),
        (
            "partition create fs type=linux",
            &["fs: the disk is not empty", "0x438", "--force"],
        ),
        (
            "partition create empty size=65M",
            &["empty: partition 1 has sectors 2048 to 135167", "34 to 131038"],
        ),
        (
            "partition create empty size=5M,start=4M size=1M,start=6M",
            &["partitions 1 and 2 overlap"],
        ),
        (
            "partition create empty type=linus",
            &["no partition type \"linus\"", "root-x86-64"],
        ),
        ("partition create empty label=x", &["no \"label\"", "attributes"]),
        (
            "partition create --sector-size 1024 empty",
            &["1024", "512 and 4096"],
        ),
        ("partition create --guid x empty", &["\"x\" is no GUID"]),
        ("partition list gone", &["gone", "No such file"]),
    ] {
        let words = format!("imgtool {line}");
        let code = if line.starts_with("check") {
            1
        } else {
            lab.run(&words).code()
        };
        assert_eq!(code, 1, "{line}");
        lab.run(&words).fails(1, what);
    }
    let after: Vec<_> = ["disk", "empty", "fs", "bad"]
        .map(|name| std::fs::read(lab.path(name)).unwrap())
        .into();
    assert!(before == after);
    assert!(!lab.path("x").exists());
    lab.run("imgtool compare disk#7 empty")
        .fails(2, &["no partition 7"]);
}

#[test]
fn overlapping_and_misplaced_partitions_are_named_and_not_used() {
    let lab = Lab::new();
    lab.imgtool("create -q disk 64M");
    // sfdisk refuses to make such a table; sgdisk does not see that another follows.
    lab.imgtool("partition create -q disk size=4M size=4M size=4M");
    let mut bytes = std::fs::read(lab.path("disk")).unwrap();
    // Partition 2 starts in partition 1, and 3 ends where no partition may be.
    bytes[1024 + 128 + 32..][..8].copy_from_slice(&4096u64.to_le_bytes());
    bytes[1024 + 256 + 40..][..8].copy_from_slice(&131_039u64.to_le_bytes());
    let array = crc32(&bytes[1024..1024 + 16384]);
    bytes[512 + 88..][..4].copy_from_slice(&array.to_le_bytes());
    bytes[512 + 16..][..4].fill(0);
    let header = crc32(&bytes[512..512 + 92]);
    bytes[512 + 16..][..4].copy_from_slice(&header.to_le_bytes());
    std::fs::write(lab.path("disk"), &bytes).unwrap();
    let found = lab.run("imgtool partition verify disk");
    assert_eq!(found.code(), 2);
    for what in [
        "partitions 1 and 2 overlap, from sector 4096 on",
        "partition 3 has sectors 18432 to 131039, and partitions may have 34 to 131038",
    ] {
        assert!(found.stderr().contains(what), "{}", found.stderr());
    }
    for number in 1..=3 {
        lab.run(&format!("imgtool convert -O raw disk#{number} x"))
            .fails(1, &["cannot be said where", "partition verify disk"]);
    }
    lab.run("imgtool partition grow disk")
        .fails(1, &["have different partitions"]);
    lab.run("imgtool partition repair disk").fails(
        1,
        &["have different partitions", "--from primary or --from backup"],
    );
    assert!(std::fs::read(lab.path("disk")).unwrap() == bytes);
    lab.imgtool("partition repair --from backup disk");
    lab.imgtool("partition verify disk");
}

/// The CRC-32 of zlib and of GPT, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
