//! `qemu-img` commands that change images, by our link and by QEMU's own program: the same arguments, output, exit codes and disks.

use std::fs;

use crate::common::twins::Twins;

#[test]
fn snapshots_are_taken_gone_back_to_and_deleted() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 1M");
    twins.ok("create -q -f raw r 1M");
    assert_eq!(twins.ok("snapshot a"), "");
    twins.qemu_io("a", &["write -P 1 0 64k"]);
    twins.ok("snapshot -c one a");
    twins.qemu_io("a", &["write -P 2 0 128k"]);
    twins.ok("snapshot -q -c two a");
    twins.ok("snapshot -a 1 a");
    twins.qemu_io("a", &["read -P 1 0 64k", "read -P 0 64k 64k"]);
    twins.ok("snapshot -a two a");
    twins.qemu_io("a", &["read -P 2 0 128k"]);
    twins.assert_same_disk("a");
    twins.ok("snapshot -d one a");
    twins.assert_same_disk("a");
    // What lies behind the disk comes along.
    twins.qemu_io("a", &["write -b -P 3 1T 4k"]);
    twins.ok("snapshot -c three a");
    twins.qemu_io("a", &["write -b -P 4 1T 4k"]);
    twins.ok("snapshot -a three a");
    twins.qemu_io("a", &["read -b -P 3 1T 4k", "read -P 2 0 128k"]);
    twins.assert_same_disk("a");
    twins.refused("snapshot -a one a", "No such file or directory");
    twins.refused("snapshot -d one a", "snapshot not found");
    twins.refused(
        "snapshot -c x r",
        "Could not create snapshot 'x': Operation not supported",
    );
    twins.refused(
        "snapshot -d x r",
        "Could not delete snapshot 'x': snapshot not found",
    );
    twins.refused("snapshot -c x nope", "Could not open 'nope'");
}

#[test]
fn sizes_change_as_far_as_that_is_allowed() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 a 1M");
    twins.ok("create -q -f raw r 1M");
    assert_eq!(twins.ok("resize a 3M"), "Image resized.\n");
    twins.ok("resize a +512k");
    twins.ok("resize -q --shrink a -1M");
    twins.ok("resize --preallocation=metadata a 5M");
    twins.ok("resize -f raw --preallocation=full r 2M");
    for name in ["a", "r"] {
        twins.ok(&format!("map --output=json {name}"));
    }
    twins.assert_same_disk("a");
    for (line, text) in [
        ("resize a 1M", "Use the --shrink option"),
        ("resize a -9M", "New image size must be positive"),
        ("resize a 0", "New image size must be positive"),
        (
            "resize a abc",
            "Parameter 'size' expects a non-negative number below 2^64",
        ),
        ("resize a +-3", "Value '-3' is out of range"),
        ("resize a 9000001", "multiple of 512"),
        (
            "resize --preallocation=foo a 9M",
            "Invalid preallocation mode 'foo'",
        ),
        (
            "resize --shrink --preallocation=full a 1M",
            "only be used for growing images",
        ),
    ] {
        twins.refused(line, text);
    }
    twins.ok("create -q -f qcow2 -o compat=0.10 old 1M");
    twins.ok("snapshot -c s old");
    twins.refused("resize old 2M", "Can't resize a v2 image which has snapshots");
}

#[test]
fn overlays_are_committed_and_based_on_others() {
    let twins = Twins::new();
    twins.ok("create -q -f qcow2 base 1M");
    twins.ok("create -q -f qcow2 -b base -F qcow2 mid");
    twins.ok("create -q -f qcow2 -b mid -F qcow2 top 2M");
    twins.ok("create -q -f qcow2 other 1M");
    twins.qemu_io("base", &["write -P 1 0 256k"]);
    twins.qemu_io("mid", &["write -P 2 64k 64k"]);
    twins.qemu_io("top", &["write -P 3 128k 64k", "write -P 4 1M 64k"]);
    twins.qemu_io("other", &["write -P 1 0 256k"]);
    twins.refused("commit base", "Image does not have a backing file");
    twins.refused(
        "commit -b other top",
        "Did not find 'other' in the backing chain of 'top'",
    );
    twins.refused("commit -t foo top", "Invalid cache option: foo");
    assert_eq!(twins.ok("commit top"), "Image committed.\n");
    twins.assert_same_disk("mid");
    twins.assert_same_layers("top");
    twins.qemu_io("top", &["write -P 5 0 64k"]);
    twins.ok("commit -b base top");
    twins.assert_same_disk("base");
    twins.assert_same_disk("top");

    twins.ok("rebase -b other -F qcow2 top");
    twins.assert_same_disk("top");
    twins.ok("rebase -u -b base -F qcow2 top");
    twins.assert_same_disk("top");
    twins.ok("rebase -b  '' top");
    twins.assert_same_disk("top");
    for (line, text) in [
        (
            "rebase -b nope -F raw top",
            "Could not open new backing file 'nope'",
        ),
        ("rebase -u -b nope top", "backing format must be specified"),
        ("rebase -u -b nope -F foo top", "Invalid format name: 'foo'"),
        (
            "rebase -b top -F qcow2 top",
            "Could not open new backing file 'top'",
        ),
    ] {
        twins.refused(line, text);
    }
}

/// Where there was no backing file, zeros are stated; where there was one, they are written.
#[test]
fn zeros_that_a_rebase_needs_are_of_the_same_kind() {
    let twins = Twins::new();
    for name in ["old", "new", "alone"] {
        twins.ok(&format!("create -q -f qcow2 {name} 512k"));
    }
    twins.qemu_io("new", &["write -P 1 0 512k"]);
    twins.qemu_io("alone", &["write -P 2 64k 64k"]);
    twins.ok("create -q -f qcow2 -b old -F qcow2 over-old");
    for name in ["alone", "over-old"] {
        twins.ok(&format!("rebase -b new -F qcow2 {name}"));
        twins.assert_same_layers(name);
        twins.assert_same_disk(name);
    }
}

#[test]
fn snapshots_with_damaged_entries_are_refused_in_the_same_words() {
    let twins = Twins::new();
    for (name, at, bytes) in [
        ("offset", 0, &[0, 0, 0, 0, 0, 0x40, 2, 0][..]),
        ("length", 8, &[0x10, 0, 0, 0]),
    ] {
        twins.ok(&format!("create -q -f qcow2 {name} 1M"));
        twins.qemu_io(name, &["write -P 1 0 64k"]);
        twins.ok(&format!("snapshot -c s {name}"));
        for directory in [twins.theirs(), twins.ours()] {
            let path = directory.join(name);
            let mut image = fs::read(&path).unwrap();
            // Where the header says that the table is.
            let table = u64::from_be_bytes(image[64..72].try_into().unwrap()) as usize;
            image[table + at..][..bytes.len()].copy_from_slice(bytes);
            fs::write(&path, image).unwrap();
        }
        for line in [
            "convert -O raw -l s",
            "snapshot -a s",
            "snapshot -d s",
            "amend -o compat=0.10",
        ] {
            let target = if line.starts_with("convert") { "x" } else { "" };
            twins.refused(&format!("{line} {name} {target}"), "L1 table");
        }
        let code = twins.both(&format!("check {name}")).code;
        assert_eq!(code, Some(2), "{name}");
    }
    // A snapshot more than there may be.
    twins.ok("create -q -f qcow2 full 1M");
    for directory in [twins.theirs(), twins.ours()] {
        let path = directory.join("full");
        let mut image = fs::read(&path).unwrap();
        image[60..72].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        fs::write(&path, image).unwrap();
    }
    twins.refused(
        "snapshot -c s full",
        "Could not create snapshot 's': File too large",
    );
}
