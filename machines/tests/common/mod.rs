//! Machines small enough to boot in a test: Debian's kernel, busybox, and a script.

// Every test program uses some of it.
#![allow(dead_code)]

pub(crate) mod libvirt;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use machines::{Architecture, Boot, Credentials, Disk, Layer, Limits, Machine, Network};
use uuid::Uuid;

/// Modules that the kernel needs for disks, each after those that it needs.
const MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

/// Runs a line of words in a directory, which must succeed; gives its standard output.
pub(crate) fn run(directory: &Path, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let mut command = Command::new(words[0]);
    let output = command.args(&words[1..]).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}: scripts/setup.sh test installs it"));
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Where `scripts/setup.sh test` has a guest's kernel.
fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel")
}

/// A guest's kernel.
pub(crate) fn kernel() -> PathBuf {
    let mut entries = fs::read_dir(unpacked().join("boot")).expect("scripts/setup.sh test fetches it");
    let kernel = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz");
    entries
        .find_map(|entry| Some(entry.unwrap().path()).filter(kernel))
        .unwrap()
}

/// Makes `initrd`, which loads the modules and runs a script.
pub(crate) fn make_initrd(directory: &Path, script: &str) -> PathBuf {
    let tree = directory.join("initrd.tree");
    for below in ["bin", "modules", "dev", "proc", "sys"] {
        fs::create_dir_all(tree.join(below)).unwrap();
    }
    for module in MODULES {
        let line = format!(
            "find {} -name {module}.ko",
            unpacked().join("lib/modules").display()
        );
        fs::copy(
            run(directory, &line).trim(),
            tree.join(format!("modules/{module}.ko")),
        )
        .unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("scripts/setup.sh test installs it");
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n\
         mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n\
         for module in {}; do insmod /modules/$module.ko; done\n{script}\n",
        MODULES.join(" ")
    );
    fs::write(tree.join("init"), init).unwrap();
    run(&tree, "chmod 755 init bin/busybox");
    let path = directory.join("initrd");
    let mut command = Command::new("sh");
    let pack = "find . | cpio -o -H newc --quiet >../initrd";
    let status = command.args(["-ec", pack]).current_dir(&tree).status();
    assert!(status.unwrap().success());
    fs::remove_dir_all(tree).unwrap();
    path
}

/// A machine that runs a script, with a chain of `images` as its disk, the base last.
pub(crate) fn machine(directory: &Path, script: &str, images: &[(&str, &str)]) -> Machine {
    let layer = |(name, format): &(&str, &str)| Layer {
        path: directory.join(name),
        format: (*format).to_owned(),
    };
    Machine {
        name: "web-1".into(),
        uuid: Uuid::new_v4(),
        architecture: Architecture::X86_64,
        cpus: 1,
        memory: 256 << 20,
        boot: Boot::Direct {
            kernel: kernel(),
            initrd: Some(make_initrd(directory, script)),
            command_line: "console=ttyS0 quiet panic=-1".into(),
        },
        disks: vec![Disk {
            chain: images.iter().map(layer).collect(),
            read_only: false,
            limits: Limits::default(),
        }],
        network: Network::None,
        mac: [0x52, 0x54, 0, 1, 2, 3],
        credentials: Credentials::new(),
    }
}

/// Makes a chain of three with a byte of its own in each.
pub(crate) fn make_chain(directory: &Path) -> [(&'static str, &'static str); 3] {
    run(directory, "qemu-img create -q -f raw base, 8M");
    run(directory, "qemu-img create -q -f qcow2 -b base, -F raw middle 8M");
    run(
        directory,
        "qemu-img create -q -f qcow2 -b middle -F qcow2 top 10M",
    );
    let chain = [("top", "qcow2"), ("middle", "qcow2"), ("base,", "raw")];
    for (depth, (image, format)) in chain.into_iter().enumerate() {
        let write = format!("write -q -P {} {depth}M 64k", b'a' + depth as u8);
        let mut command = Command::new("qemu-io");
        command.args(["-f", format, "-c", &write, image]);
        let output = command.current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    chain
}

/// Makes a machine of another architecture, whose kernel is a few dozen instructions: it writes the start of each file of the
/// firmware and `guest: up` to its console, and some seconds later turns itself off.
pub(crate) fn arm_machine(directory: &Path, images: &[(&str, &str)]) -> Machine {
    // movz x1, #0x0900, lsl #16: where the `virt` machine has its console
    let mut words = vec![0xd2a1_2001_u32];
    let back = |words: i32| 0x5400_0001 | (words.cast_unsigned() & 0x7_ffff) << 5;
    words.extend([
        // movz x3, #0x0902, lsl #16: where it has the files; movz w4, #0x20: the first of them
        0xd2a1_2043,
        0x5280_0404,
        // rev16 w5, w4; strh w5, [x3, #8]; movz w6, #32
        0x5ac0_0485,
        0x7900_1065,
        0x5280_0406,
        // ldrb w2, [x3]; str w2, [x1]; subs w6, w6, #1; b.ne, so that 32 bytes are read
        0x3940_0062,
        0xb900_0022,
        0x7100_04c6,
        back(-3),
        // add w4, w4, #1; cmp w4, #0x40; b.ne, so that 32 files are
        0x1100_0484,
        0x7101_009f,
        back(-9),
    ]);
    for byte in b"\nguest: up\n" {
        // movz w2, #byte; str w2, [x1]
        words.extend([0x5280_0002 | u32::from(*byte) << 5, 0xb900_0022]);
    }
    // movz w7, #0x4000, lsl #16; subs w7, w7, #1; b.ne: seconds in which whoever looks at it finds it running
    words.extend([0x52a8_0007, 0x7100_04e7, back(-1)]);
    // movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0: SYSTEM_OFF of PSCI
    words.extend([0x5280_0100, 0x72b0_8000, 0xd400_0002]);
    let kernel = directory.join("arm-kernel");
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    fs::write(&kernel, bytes).unwrap();
    let mut machine = machine(directory, "", images);
    machine.architecture = Architecture::Aarch64;
    machine.boot = Boot::Direct {
        kernel,
        initrd: None,
        command_line: "console=ttyAMA0".into(),
    };
    machine
}
