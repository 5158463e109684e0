//! `--io`: the ways to reach the bytes of image files.

use crate::common::Lab;

const WAYS: [&str; 4] = ["auto", "sync", "uring", "mmap"];

/// A qcow2 image with compressed clusters over a raw one, with data in both.
fn chain(lab: &Lab) {
    lab.raw("base.raw", 5 << 20, 3);
    lab.raw("other.raw", 1 << 20, 4);
    lab.qemu_img("convert -c -O qcow2 other.raw top.qcow2");
    lab.qemu_img("rebase -u -b base.raw -F raw top.qcow2");
    lab.qemu_img("resize -q top.qcow2 5M");
    lab.qemu_io("qcow2", "top.qcow2", &["write -P 7 2M 300k", "write -z 3M 64k"]);
}

#[test]
fn every_way_reads_and_writes_the_same() {
    let lab = Lab::new();
    chain(&lab);
    lab.qemu_img("convert -O raw top.qcow2 flat.raw");
    for io in WAYS {
        for format in ["raw", "qcow2"] {
            lab.imgtool(&format!("convert --io {io} -O {format} top.qcow2 new.{format}"));
            lab.qemu_img(&format!("compare -f raw -F {format} flat.raw new.{format}"));
            lab.imgtool(&format!("compare --io {io} top.qcow2 new.{format}"));
            lab.imgtool(&format!("convert --io {io} -n -O {format} base.raw new.{format}"));
            lab.qemu_img(&format!("compare -f raw -F {format} base.raw new.{format}"));
        }
        lab.imgtool(&format!("check --io {io} new.qcow2"));
        lab.qemu_img("check -q new.qcow2");
        assert_eq!(
            lab.imgtool(&format!("map --io {io} --output json top.qcow2")),
            lab.imgtool("map --output json top.qcow2")
        );
    }
}

#[test]
fn a_map_is_made_of_what_is_read_and_not_of_what_is_written() {
    let lab = Lab::new();
    chain(&lab);
    // Written to: reached by system calls.
    lab.imgtool("resize --io mmap top.qcow2 6M");
    lab.imgtool("convert --io mmap -t none -O raw top.qcow2 new.raw");
    // Read, but maybe written to by others: by system calls too.
    lab.imgtool("compare --io mmap -U top.qcow2 new.raw");
    let done = lab.run("imgtool compare --io mmap -T none top.qcow2 new.raw");
    assert_eq!(done.code(), 2);
    assert!(
        done.stderr().contains("page cache") && done.stderr().contains("--io sync"),
        "{}",
        done.stderr()
    );
}
