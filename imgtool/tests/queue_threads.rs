//! The example of queue threads that do their own I/O, judged by qemu-img.

#[path = "../examples/queue_threads.rs"]
mod example;

use crate::common::Lab;
use example::{REQUEST, contents};

#[test]
fn what_queue_threads_write_is_the_disk() {
    let lab = Lab::new();
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=2M",
        "preallocation=metadata",
    ] {
        let size = 16 << 20;
        lab.imgtool(&format!("create -q -f qcow2 -o {options} disk.qcow2 {size}"));
        let requests = example::run(&lab.path("disk.qcow2"), 4).unwrap();
        assert_eq!(requests, size / REQUEST);
        lab.qemu_img("check disk.qcow2");
        let mut expected: Vec<u8> = (0..requests).flat_map(contents).collect();
        expected.resize(size as usize, 0);
        std::fs::write(lab.path("disk.raw"), &expected).unwrap();
        lab.qemu_img("compare -f qcow2 -F raw disk.qcow2 disk.raw");
    }
}
