//! Targets that held something before: where the source reads as zeros, so does the target.

use std::fs;
use std::process::Command;

use crate::common::{Lab, Loop};

/// A disk of 4 MiB in `disk.qcow2`, nearly all of it zeros, and a file of 6 MiB called `old` that holds none.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 disk.qcow2 4M");
    lab.run_words(&["qemu-io", "-c", "write -P 1 1M 64k", "disk.qcow2"])
        .ok();
    fs::write(lab.path("old"), vec![0xaa; 6 << 20]).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imgtool"), lab.path("qemu-img")).unwrap();
    lab
}

/// The two programs' ways to copy the disk to a target in a format.
const COPIES: [&str; 4] = [
    "imgtool convert -q -f qcow2 -O raw disk.qcow2",
    "imgtool dd -q bs=64k -f qcow2 -O raw if=disk.qcow2 of=",
    "./qemu-img convert -f qcow2 -O raw disk.qcow2",
    "./qemu-img dd bs=64k -f qcow2 -O raw if=disk.qcow2 of=",
];

/// Copies in each of these ways, each time over what `soil` has put there.
fn copies_over(lab: &Lab, target: &str, soil: impl Fn()) {
    for copy in COPIES {
        soil();
        let space = if copy.ends_with('=') { "" } else { " " };
        lab.run(&format!("{copy}{space}{target}")).ok();
        // It is longer than the disk, and what lies behind that is not the disk's.
        let shown = lab.run(&format!("qemu-img compare -f qcow2 -F raw disk.qcow2 {target}"));
        let said = format!("{}{}", shown.stdout(), shown.stderr());
        assert!(
            said.contains("Content mismatch at offset 4194304!"),
            "{copy}: {said}"
        );
    }
}

#[test]
fn a_device_keeps_nothing_where_the_disk_is_empty() {
    let lab = lab();
    fs::copy(lab.path("old"), lab.path("device")).unwrap();
    let device = Loop::new(&lab, "device", &[]);
    copies_over(&lab, &device.0, || {
        fs::copy(lab.path("old"), &device.0).unwrap();
    });
}

#[test]
fn an_export_keeps_nothing_where_the_disk_is_empty() {
    let lab = lab();
    let socket = lab.path("socket");
    let name = format!("nbd+unix:///?socket={}", socket.display());
    let pid = lab.path("pid");
    let served = [
        "qemu-nbd",
        "--fork",
        "-t",
        "-e",
        "8",
        "-f",
        "raw",
        "-k",
        socket.to_str().unwrap(),
        "--pid-file",
        pid.to_str().unwrap(),
        "old",
    ];
    lab.run_words(&served).ok();
    copies_over(&lab, &name, || {
        lab.run_words(&["qemu-io", "-f", "raw", "-c", "write -P 0xaa 0 6M", &name])
            .ok();
    });
    let server = fs::read_to_string(pid).unwrap();
    Command::new("kill").arg(server.trim()).status().unwrap();
}

#[test]
fn a_device_that_is_a_raw_data_file_keeps_nothing_either() {
    let lab = lab();
    fs::copy(lab.path("old"), lab.path("device")).unwrap();
    let device = Loop::new(&lab, "device", &[]);
    let copies = [
        "imgtool convert -q -f qcow2 -O qcow2 -o OPTIONS disk.qcow2 new",
        "./qemu-img convert -f qcow2 -O qcow2 -o OPTIONS disk.qcow2 new",
    ];
    for copy in copies {
        for more in ["", ",preallocation=metadata", ",preallocation=full"] {
            fs::copy(lab.path("old"), &device.0).unwrap();
            let options = format!("data_file={},data_file_raw=on{more}", device.0);
            lab.run(&copy.replace("OPTIONS", &options)).ok();
            lab.qemu_img("compare disk.qcow2 new");
            lab.qemu_img("check -q new");
            let held = fs::read(&device.0).unwrap();
            assert!(held[..1 << 20].iter().all(|byte| *byte == 0), "{copy} {more}");
        }
    }
    fs::create_dir(lab.path("tree")).unwrap();
    let options = format!("data_file={},data_file_raw=on", device.0);
    lab.run(&format!("imgtool mkfs -O qcow2 -o {options} tree made"))
        .fails(1, &["old contents", "leave out data_file_raw"]);
}
