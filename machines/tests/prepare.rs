//! Files in the form that launchers want, judged by others' tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use machines::launch::{Launcher, prepare};
use machines::{Accel, Architecture, Boot, Disk, Layer, Limits, Machine, Network};
use ops::Control;
use uuid::Uuid;

fn run(directory: &Path, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let mut command = Command::new(words[0]);
    let output = command.args(&words[1..]).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}: scripts/setup.sh test installs it"));
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The kernel of `scripts/setup.sh test`.
fn kernel() -> PathBuf {
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel/boot");
    let mut entries = fs::read_dir(boot).expect("scripts/setup.sh test fetches it");
    let kernel = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz");
    entries
        .find_map(|entry| Some(entry.unwrap().path()).filter(kernel))
        .unwrap()
}

/// A chain of three with something in each, and Debian's kernel.
fn machine(directory: &Path) -> Machine {
    run(directory, "qemu-img create -q -f raw base 8M");
    run(directory, "qemu-img create -q -f qcow2 -b base -F raw middle");
    run(
        directory,
        "qemu-img create -q -f qcow2 -b middle -F qcow2 top 10M",
    );
    for (image, format, offset) in [("base", "raw", 0), ("middle", "qcow2", 1), ("top", "qcow2", 9)] {
        let mut command = Command::new("qemu-io");
        let write = format!("write -P {} {offset}M 300k", offset + 5);
        let output = command
            .args(["-f", format, "-c", &write, image])
            .current_dir(directory)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let chain = [("top", "qcow2"), ("middle", "qcow2"), ("base", "raw")];
    let layer = |(name, format): (&str, &str)| Layer {
        path: directory.join(name),
        format: format.into(),
    };
    Machine {
        name: "web-1".into(),
        uuid: Uuid::from_u128(1),
        architecture: Architecture::X86_64,
        cpus: 1,
        memory: 256 << 20,
        boot: Boot::Direct {
            kernel: kernel(),
            initrd: None,
            command_line: "console=ttyS0".into(),
        },
        disks: vec![Disk {
            chain: chain.map(layer).into(),
            read_only: false,
            limits: Limits::default(),
        }],
        network: Network::None,
        mac: [0x52, 0x54, 0, 1, 2, 3],
        credentials: vec![],
    }
}

#[test]
fn firecracker_gets_a_raw_disk_and_an_elf_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let machine = machine(directory.path());
    let needs = Launcher::Firecracker.needs(&machine);
    assert!(needs.raw_disks && needs.elf_kernel);
    let prepared = prepare(&machine, needs, directory.path(), &Control::unwatched()).unwrap();
    assert!(Launcher::Firecracker.describe(&prepared, Accel::Kvm).is_ok());
    let layer = &prepared.disks[0].chain[0];
    assert_eq!(
        (layer.path.file_name().unwrap(), &*layer.format),
        ("web-1-disk0.raw".as_ref(), "raw")
    );
    run(
        directory.path(),
        "qemu-img compare -f qcow2 -F raw top web-1-disk0.raw",
    );

    let elf = run(directory.path(), "readelf -Wlhn web-1-vmlinux");
    assert!(
        elf.contains("Advanced Micro Devices X86-64") && elf.contains("EXEC"),
        "{elf}"
    );
    assert!(elf.contains("LOAD"), "{elf}");

    let error = prepare(&machine, needs, directory.path(), &Control::unwatched()).unwrap_err();
    assert!(
        error.to_string().contains("a file of that name already"),
        "{error}"
    );
    let names = fs::read_dir(directory.path()).unwrap();
    let names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 5, "nothing is left over: {names:?}");
}

#[test]
fn nothing_is_copied_for_launchers_that_take_it_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let machine = machine(directory.path());
    for launcher in [Launcher::Qemu, Launcher::Libvirt, Launcher::CloudHypervisor] {
        let needs = launcher.needs(&machine);
        let prepared = prepare(&machine, needs, directory.path(), &Control::unwatched()).unwrap();
        assert_eq!(prepared, machine, "{launcher}");
    }
}
