//! `convert --salvage`: what can be read of a damaged image is copied, as by qemu-img, and the rest is told.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::common::Lab;

const CLUSTER: u64 = 64 << 10;

/// Bytes that do not compress well, and do nonetheless.
fn disk(lab: &Lab) {
    let mut x = 7u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b'a' + (x >> 60) as u8
    })
    .take(2 << 20)
    .collect();
    fs::write(lab.path("disk"), bytes).unwrap();
}

/// The offset in the file of what the image maps guest cluster `cluster` to, and of the entry that says so.
fn entry(lab: &Lab, image: &str, cluster: u64) -> (u64, u64) {
    let file = fs::File::open(lab.path(image)).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l2 = number(number(40)) & 0x00ff_ffff_ffff_fe00;
    (l2 + 8 * cluster, number(l2 + 8 * cluster))
}

fn write(lab: &Lab, image: &str, bytes: &[u8], at: u64) {
    let file = fs::OpenOptions::new().write(true).open(lab.path(image)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn what_can_be_read_is_what_qemu_img_reads() {
    let lab = Lab::new();
    disk(&lab);
    lab.qemu_img("convert -c -f raw -O qcow2 disk image");
    for cluster in [3, 4, 9, 31] {
        let host = entry(&lab, "image", cluster).1 & 0x0000_ffff_ffff_ffff;
        write(&lab, "image", &[0xff; 64], host + 20);
    }
    lab.run("imgtool convert -O raw image copy")
        .fails(1, &["image", "damaged"]);
    assert!(!lab.names().contains(&"copy".to_owned()));
    lab.qemu_img("convert --salvage -q -O raw image theirs");
    for options in [
        "-O raw",
        "-O raw -S 0",
        "-O qcow2",
        "-c -O qcow2",
        "-O raw --threads 1",
        "-O qcow2 -B base -F raw",
    ] {
        if options.contains("-B") {
            lab.raw("base", 2 << 20, 5);
        }
        let done = lab.run(&format!("imgtool convert --salvage {options} image copy"));
        let told = done.stderr();
        done.ok();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 4, "{told}");
        for (line, (offset, len)) in lines.iter().zip([(3, 2), (9, 1), (31, 1)]) {
            let says = format!(
                "image: {} bytes at offset {} cannot be read",
                len * CLUSTER,
                offset * CLUSTER
            );
            assert!(line.contains(&says), "{told}");
        }
        assert!(lines[3].contains("262144 bytes in 3 places"), "{told}");
        let format = if options.contains("qcow2") { "qcow2" } else { "raw" };
        lab.qemu_img(&format!("compare -f raw -F {format} theirs copy"));
        let quiet = lab.run(&format!("imgtool convert -q --salvage {options} image copy"));
        assert_eq!(quiet.stderr(), "");
        quiet.ok();
    }
    // Some of it goes on to a pipe.
    let line = "imgtool convert -q --salvage -O raw image - | cmp - theirs";
    lab.run_words(&[
        "bash",
        "-c",
        &line.replace("imgtool", env!("CARGO_BIN_EXE_imgtool")),
    ])
    .ok();
    lab.imgtool("convert --salvage -q -O raw disk sound");
    assert!(
        lab.run("imgtool convert --salvage -O raw disk sound")
            .stderr()
            .is_empty()
    );
    lab.run("cmp disk sound").ok();
}

/// Entries that make no sense, and clusters past the end of a file that was cut.
#[test]
fn clusters_that_cannot_be_found_are_lost_one_by_one() {
    let lab = Lab::new();
    disk(&lab);
    lab.qemu_img("convert -f raw -O qcow2 disk image");
    let mut expected = fs::read(lab.path("disk")).unwrap();
    let mut lose = |cluster: u64| expected[(cluster * CLUSTER) as usize..][..CLUSTER as usize].fill(0);
    let (at, old) = entry(&lab, "image", 5);
    write(&lab, "image", &(old | 0x200).to_be_bytes(), at);
    let (at, old) = entry(&lab, "image", 20);
    write(&lab, "image", &(old + (1 << 40)).to_be_bytes(), at);
    lose(5);
    lose(20);
    let last = entry(&lab, "image", 31).1 & 0x00ff_ffff_ffff_fe00;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(lab.path("image"))
        .unwrap();
    file.set_len(last).unwrap();
    lose(31);
    let done = lab.run("imgtool convert --salvage -O raw image copy");
    let told = done.stderr();
    done.ok();
    assert!(fs::read(lab.path("copy")).unwrap() == expected, "{told}");
    for cluster in [5, 20, 31] {
        let says = format!("65536 bytes at offset {} cannot be read", cluster * CLUSTER);
        assert!(told.contains(&says) && told.contains("in 3 places"), "{told}");
    }
}

/// The last quarter of the image is gone: nothing passes for zeros, whichever way it is read.
#[test]
fn what_a_cut_file_has_lost_is_told_and_not_taken_for_zeros() {
    let lab = Lab::new();
    disk(&lab);
    for (options, sparse) in [("", false), ("-c", false), ("-S 0", true)] {
        lab.qemu_img(&format!("convert {options} -f raw -O qcow2 disk image"));
        let len = fs::metadata(lab.path("image")).unwrap().len() * 3 / 4 / CLUSTER * CLUSTER;
        let file = fs::OpenOptions::new()
            .write(true)
            .open(lab.path("image"))
            .unwrap();
        file.set_len(len).unwrap();
        if sparse {
            // Holes in the file have the host asked what is in it.
            let (_, entry) = entry(&lab, "image", 2);
            let status = std::process::Command::new("fallocate")
                .args([
                    "-p",
                    "-o",
                    &(entry & 0x00ff_ffff_ffff_fe00).to_string(),
                    "-l",
                    "524288",
                ])
                .arg(lab.path("image"))
                .status();
            assert!(status.unwrap().success());
        }
        for command in [
            "convert -O raw image copy",
            "convert -O qcow2 image copy",
            "convert -c -O qcow2 image copy",
            "convert -O raw -C image copy",
            "dd -O raw bs=64k if=image of=copy",
        ] {
            let done = lab.run(&format!("imgtool {command}"));
            let told = done.stderr();
            let hints = told.lines().filter(|line| line.starts_with("hint: ")).count();
            assert_eq!(
                (told.lines().count(), hints),
                (2, 1),
                "{options} {command}: {told}"
            );
            assert!(
                told.contains("past the end of the file") && told.contains("cut"),
                "{told}"
            );
            done.fails(1, &["image"]);
            assert!(!lab.names().contains(&"copy".to_owned()), "{options} {command}");
        }
        if !sparse {
            lab.run("imgtool compare disk image")
                .fails(4, &["image", "past the end of the file"]);
        }
        let done = lab.run("imgtool convert --salvage -O raw image copy");
        let told = done.stderr();
        done.ok();
        let last = told.lines().last().unwrap();
        assert!(
            told.contains("cannot be read") && last.contains("in one place"),
            "{told}"
        );
        fs::remove_file(lab.path("copy")).unwrap();
    }
}
