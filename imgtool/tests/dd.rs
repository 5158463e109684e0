//! `imgtool dd`, judged by dd.

use crate::common::Lab;

#[test]
fn copies_the_blocks_that_dd_copies() {
    let lab = Lab::new();
    lab.raw("disk", 5_000_192, 1);
    lab.qemu_img("convert -f raw -O qcow2 disk image");
    for operands in [
        "",
        "bs=1M",
        "bs=1M count=2",
        "bs=64k skip=7 count=9",
        "bs=64k skip=70 count=90",
        "bs=512 skip=9766",
        "bs=4k count=0",
    ] {
        lab.run(&format!("dd status=none if=disk of=expected {operands}"))
            .ok();
        lab.imgtool(&format!("dd {operands} if=image of=raw"));
        lab.run("cmp raw expected").ok();
        lab.imgtool(&format!("dd -f raw -O qcow2 {operands} if=disk of=new"));
        lab.qemu_img("compare -q -f raw -F qcow2 expected new");
        lab.qemu_img("check -q new");
        let size = std::fs::metadata(lab.path("expected")).unwrap().len();
        let info: serde_json::Value = serde_json::from_str(&lab.qemu_img("info --output json new")).unwrap();
        assert_eq!(info["virtual-size"], size, "{operands}");
    }
}

#[test]
fn what_does_not_fill_a_sector_is_filled_with_zeros() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 2);
    lab.imgtool("dd bs=1000 skip=1 count=3 if=disk of=part");
    let (disk, part) = (
        std::fs::read(lab.path("disk")).unwrap(),
        std::fs::read(lab.path("part")).unwrap(),
    );
    assert_eq!(part.len(), 3072);
    assert_eq!(part[..3000], disk[1000..4000]);
    assert!(part[3000..].iter().all(|byte| *byte == 0));
}

#[test]
fn bad_input_is_one_line_and_changes_nothing() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 3);
    for (operands, words) in [
        (
            "if=disk of=new bs=1M skip=2",
            &["disk", "past the end", "1048576 bytes"][..],
        ),
        ("if=missing of=new", &["missing"]),
        ("if=disk of=disk", &["read from"]),
        ("if=disk of=new seek=1", &["seek=", "skip=N"]),
        ("if=disk", &["have to be named"]),
        ("if=disk of=none/new", &["none"]),
        ("-O vdi if=disk of=new", &["vdi"]),
    ] {
        lab.run(&format!("imgtool dd {operands}")).fails(1, words);
        assert_eq!(lab.names(), ["disk"], "{operands}");
    }
}
