//! `imgtool resize` against `qemu-img resize`.

mod common;

use common::Lab;

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
