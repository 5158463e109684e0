//! `imgtool create` against `qemu-img create`.

use crate::common::Lab;

#[test]
fn images_are_described_and_made_as_by_qemu_img() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 base 10M");
    for options in [
        "-f raw {} 1000",
        "-f raw -o preallocation=full {} 1M",
        "-f raw -o preallocation=falloc {} 1M",
        "-f qcow2 {} 10G",
        "-f qcow2 {} 0",
        "-f qcow2 -o cluster_size=4k,refcount_bits=1 {} 1000",
        "-f qcow2 -o compat=0.10 {} 64M",
        "-f qcow2 -o compat=v3,lazy_refcounts=on,compression_type=zstd {} 1.5T",
        "-f qcow2 -o preallocation=metadata {} 64M",
        "-f qcow2 -o extended_l2=on {} 64M",
        "-f qcow2 -o extended_l2=on,preallocation=metadata {} 64M",
        "-f qcow2 -o extended_l2=on,preallocation=metadata -b base -F qcow2 {}",
        "-f qcow2 -o size=5M {}",
        "-f qcow2 -b base -F qcow2 {}",
        "-f qcow2 -b base -F qcow2 {} 20M",
        "-f qcow2 -o backing_file=base,backing_fmt=qcow2 {}",
        "-f qcow2 -u -b nowhere -F raw {} 1M",
        "-f qcow2 -o data_file=data {} 10M",
        "-f qcow2 -o data_file=data,data_file_raw=on {} 1M",
        "-f qcow2 -o data_file=data,data_file_raw=off,compat=1.1 -b base -F qcow2 {}",
        "-f qcow2 -o data_file=data,preallocation=full {} 1M",
    ] {
        let ours = lab.imgtool(&format!("create {}", options.replace("{}", "a")));
        let info = lab.both("info --output json a");
        let data = std::fs::read(lab.path("data")).ok();
        for name in ["a", "data"] {
            let _ = std::fs::remove_file(lab.path(name));
        }
        let theirs = lab.qemu_img(&format!("create {}", options.replace("{}", "a")));
        assert_eq!(ours, theirs, "{options}");
        let [_, mut theirs] = lab.both("info --output json a");
        for mut ours in info {
            // How a file system lays a file out is its own business.
            for info in [&mut ours, &mut theirs] {
                info.as_object_mut().unwrap().remove("actual-size");
                info["children"][0]["info"]
                    .as_object_mut()
                    .unwrap()
                    .remove("actual-size");
            }
            assert_eq!(ours, theirs, "{options}");
        }
        assert!(data == std::fs::read(lab.path("data")).ok(), "{options}");
        for name in ["a", "data"] {
            let _ = std::fs::remove_file(lab.path(name));
        }
    }
    assert_eq!(lab.names(), ["base"]);
}

#[test]
fn an_image_in_use_or_below_is_not_replaced() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 base 1M");
    lab.imgtool("create -q -f qcow2 -b base -F qcow2 top");
    let before = std::fs::read(lab.path("base")).unwrap();
    lab.run("imgtool create -f qcow2 -b top -F qcow2 base")
        .fails(1, &["base", "based on"]);

    let guest = lab.guest("base");
    lab.run("imgtool create -q -f qcow2 base 2M")
        .fails(1, &["base", "locked"]);
    assert_eq!(std::fs::read(lab.path("base")).unwrap(), before);
    drop(guest);
    assert_eq!(lab.names(), ["base", "top"]);
}

#[test]
fn option_lists_are_printed_and_checked() {
    let lab = Lab::new();
    assert!(lab.imgtool("create -f qcow2 -o help").contains("cluster_size"));
    assert!(lab.imgtool("create -f raw -o ? x").contains("preallocation"));
    for (line, what) in [
        ("create -f qcow2 -o foo=1 x 1M", "foo"),
        ("create -f qcow2 -o cluster_size=3k x 1M", "3k"),
        ("create -f qcow2 -o cluster_size=4M x 1M", "2 MiB"),
        ("create -f qcow2 -o refcount_bits=3 x 1M", "refcount_bits"),
        ("create -f qcow2 -o compat=2.0 x 1M", "2.0"),
        (
            "create -f qcow2 -o compat=0.10,compression_type=zstd x 1M",
            "version 2",
        ),
        ("create -f qcow2 -o lazy_refcounts=maybe x 1M", "maybe"),
        ("create -f qcow2 -o encrypt.format=luks x 1M", "--key FILE"),
        ("create -f qcow2 -o data_file_raw=on x 1M", "data_file=FILE"),
        ("create -f qcow2 -o data_file=x x 1M", "own data file"),
        ("create -f qcow2 -o data_file=nbd://y x 1M", "nbd"),
        ("create -f qcow2 -o compat=0.10,data_file=y x 1M", "version 2"),
        ("create -f qcow2 -o data_file= x 1M", "data file"),
        ("create -f qcow2 -o data_file=y/z x 1M", "y"),
        (
            "create -f qcow2 -o extended_l2=on,cluster_size=8k x 1M",
            "at least 16 KiB",
        ),
        (
            "create -f qcow2 -o extended_l2=on,compat=0.10 x 1M",
            "has no extended L2 entries",
        ),
        ("create -f qcow2 -o ,size=1M x", ",size=1M"),
        ("create -f raw -o preallocation=metadata x 1M", "metadata"),
        ("create -f raw -b base x 1M", "backing"),
        ("create -f vmdk x 1M", "vmdk"),
        ("create -f qcow2 x", "size"),
        ("create -f qcow2 -b nowhere -F qcow2 x", "nowhere"),
    ] {
        lab.run(&format!("imgtool {line}")).fails(1, &[what]);
    }
    assert!(lab.names().is_empty());
    lab.imgtool("create -q -f qcow2 base 1M");
    lab.run("imgtool create -f qcow2 -b base x")
        .fails(1, &["base", "-F qcow2"]);
}
