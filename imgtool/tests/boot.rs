//! A disk that `mkdisk` made boots: firmware (OVMF), systemd-boot, Debian's kernel, and an initrd that finds the root by what
//! it was told, in QEMU without any acceleration. In there the kernel is the judge of both filesystems, and writes to them;
//! and of a FAT volume beside them that has all that is hard about names, and of an ext4 filesystem that grows while it is
//! mounted.
//!
//! `scripts/setup.sh test` fetches the kernel, which is not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Lab;
use fat_builder::{Builder, Options, Time};

/// Far more than it takes: about 20 seconds, and more on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(400);

/// Modules that the kernel needs for the disk and for FAT, each after those that it needs.
const MODULES: [&str; 11] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
    "fat",
    "vfat",
];

/// Runs in the guest: finds the root among the partitions by their GUIDs, as they are in the table, mounts both, says what
/// it sees, writes, and ends. Every line that starts with `guest:` is looked at.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in MODULES; do insmod /modules/$module.ko || echo "guest: no $module"; done
guid() {
    set -- $(dd if=/dev/vda bs=16 skip=$((64 + 8 * ($1 - 1) + 1)) count=1 2>/dev/null | od -An -tx1)
    echo "$4$3$2$1-$6$5-$8$7-$9${10}-${11}${12}${13}${14}${15}${16}"
}
for word in $(cat /proc/cmdline); do
    case $word in root=PARTUUID=*) wanted=${word#root=PARTUUID=} ;; esac
done
for number in 1 2; do
    [ "$(guid $number)" != "$wanted" ] || root=/dev/vda$number
done
mount -t ext4 -o rw "$root" /root && echo "guest: root on $root says $(cat /root/etc/greeting)"
mount -t vfat -o rw,check=strict,utf8,tz=UTC /dev/vda1 /esp || echo "guest: no vfat"
cmp /esp/debian-test/*/linux /root/boot/vmlinuz-* && echo "guest: the kernel is on both"
cmp /esp/debian-test/*/initrd /root/boot/initrd.img-* && echo "guest: the initrd is on both"
echo "guest: $(cd /esp; find . -type f | wc -l) files on the ESP"
cp /esp/loader/entries/*.conf "/esp/loader/entries/another entry with a long name.conf"
mkdir /esp/many
for number in $(seq 200); do echo $number >"/esp/many/the file with the number $number"; done
rm /esp/loader/entries.srel
echo written by the kernel >/root/etc/answer
mount -t ext4 -o rw /dev/vdc /grown || echo "guest: no ext4"
for size in 300M ""; do resize2fs /dev/vdc $size 2>&1 | grep ' now ' | sed 's/^/guest: /'; done
dd if=/dev/zero of=/grown/large bs=1M count=100 2>/dev/null
cp /root/boot/vmlinuz-* /grown/kernel
cmp /grown/small /root/etc/greeting || echo "guest: it is another"
dmesg | grep -i -e 'fat-fs' -e 'ext4-fs.*\(error\|warning\)' | sed 's/^/guest: /'
mount -t vfat -o rw,check=strict,utf8,tz=UTC /dev/vdb /fat || echo "guest: no vfat"
cd /fat
find . -type f -exec md5sum {} + | sed 's/^/guest: sum /'
echo "guest: times $(find . -mindepth 1 -exec stat -c %Y {} + | sort -u)"
for number in $(seq 300); do cp "A directory/The quick brown.fox" "a copy of a file, number $number"; done
find . -name 'number *' -exec rm {} +
cd /
umount /esp /root /fat /grown && echo "guest: done"
poweroff -f
"#;

/// The one file in a directory whose name starts so.
fn only(directory: &Path, start: &str) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: scripts/setup.sh test fetches it",
            directory.display()
        )
    });
    let mut found = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start));
    found
        .next()
        .unwrap_or_else(|| panic!("no {start} in {}", directory.display()))
}

/// Makes `tree`: a system of a kernel, an initrd and a greeting. Gives the kernel's version.
fn make_system(lab: &Lab, greeting: &str) -> String {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel");
    let kernel = only(&unpacked.join("boot"), "vmlinuz-");
    let version = kernel.file_name().unwrap().to_str().unwrap()["vmlinuz-".len()..].to_owned();
    for directory in [
        "initrd/bin",
        "initrd/modules",
        "initrd/dev",
        "initrd/proc",
        "initrd/root",
        "initrd/esp",
        "initrd/fat",
        "initrd/grown",
    ] {
        fs::create_dir_all(lab.path(directory)).unwrap();
    }
    for directory in ["tree/boot", "tree/etc"] {
        fs::create_dir_all(lab.path(directory)).unwrap();
    }
    for module in MODULES {
        let modules = unpacked.join("lib/modules").join(&version);
        let found = lab
            .run_words(&[
                "find",
                modules.to_str().unwrap(),
                "-name",
                &format!("{module}.ko"),
            ])
            .ok();
        fs::copy(found.trim(), lab.path(&format!("initrd/modules/{module}.ko"))).unwrap();
    }
    fs::copy("/bin/busybox", lab.path("initrd/bin/busybox")).unwrap();
    let copy = "PATH=$PATH:/usr/sbin:/sbin; program=$(command -v resize2fs); cp -L $program initrd/bin; \
                cp -L --parents $(ldd $program | grep -o '/[^ ]*') initrd";
    lab.run_words(&["sh", "-ec", copy]).ok();
    fs::write(
        lab.path("initrd/init"),
        INIT.replace("MODULES", &MODULES.join(" ")),
    )
    .unwrap();
    lab.run("chmod 755 initrd/init initrd/bin/busybox").ok();
    let pack =
        format!("cd initrd; find . | cpio -o -H newc --quiet | gzip -1 >../tree/boot/initrd.img-{version}");
    lab.run_words(&["sh", "-ec", &pack]).ok();
    fs::copy(&kernel, lab.path(&format!("tree/boot/vmlinuz-{version}"))).unwrap();
    fs::write(lab.path("tree/etc/greeting"), greeting).unwrap();
    fs::write(
        lab.path("tree/etc/os-release"),
        "ID=debian-test\nPRETTY_NAME='A test'\n",
    )
    .unwrap();
    version
}

/// Boots the disk and gives what the guest says on its serial port, after it has turned itself off.
fn boot(lab: &Lab, disk: &str) -> String {
    fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", lab.path("vars")).expect("scripts/setup.sh test installs it");
    let mut command = lab.command("qemu-system-x86_64");
    // In the past, so that e2fsck finds no time in the future, however the clocks of both go.
    command
        .args(["-rtc", "base=2020-01-01T00:00:00"])
        .args(
            "-machine q35 -accel tcg -cpu max -m 512 -nic none -display none -monitor none -no-reboot"
                .split(' '),
        )
        .args([
            "-drive",
            "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
        ])
        .args(["-drive", "if=pflash,format=raw,file=vars"])
        .args(["-drive", &format!("if=none,id=disk,format=qcow2,file={disk}")])
        .args(["-drive", "if=none,id=fat,format=raw,file=fat"])
        .args(["-drive", "if=none,id=grown,format=raw,file=grown"])
        .args(["-device", "virtio-blk-pci,drive=grown,addr=6"])
        .args(["-device", "virtio-blk-pci,drive=fat,addr=5"])
        .args([
            "-device",
            "virtio-blk-pci,drive=disk,bootindex=0,addr=4",
            "-serial",
            "file:console",
        ])
        .stdin(Stdio::null());
    let mut guest = command.spawn().expect("scripts/setup.sh test installs it");
    let start = Instant::now();
    let console = || String::from_utf8_lossy(&fs::read(lab.path("console")).unwrap_or_default()).into_owned();
    loop {
        if let Some(status) = guest.try_wait().unwrap() {
            assert!(status.success(), "{status}: {}", console());
            return console();
        }
        if start.elapsed() > LIMIT {
            guest.kill().unwrap();
            guest.wait().unwrap();
            panic!("it does not end: {}", console());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Names with all that is hard about them; the last is as long as can be.
fn names() -> Vec<String> {
    let names = [
        "BOOTX64.EFI",
        "bootx64.bak",
        "The quick brown.fox",
        "THEQUI~1.FOX",
        " leading space",
        ".profile",
        "..two",
        "[+,;=]",
        "grüße aus köln.txt",
        "日本語のとても長いファイル名.conf",
        "\u{1F600} face",
        "exactly 13 ch",
    ];
    let many = (0..300).map(|number| format!("number {number} of many"));
    let long = "long ".repeat(51).replace(' ', "_");
    names
        .map(str::to_owned)
        .into_iter()
        .chain(many)
        .chain([long])
        .collect()
}

/// Makes the volume `fat`, and the same files in the directory `expected`.
fn make_volume(lab: &Lab) {
    let storage = raw::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(lab.path("fat"))
        .unwrap();
    let time = Time { secs: 1_700_000_000 };
    let options = Options {
        time,
        ..Options::new(48 << 20, 0x1234_5678)
    };
    let mut builder = Builder::new(&storage, options).unwrap();
    let mut directory = builder.root();
    let mut path = lab.path("expected");
    for below in ["A directory", "日本語", "DEEPER"] {
        directory = builder.directory(directory, below.as_bytes(), time).unwrap();
        path.push(below);
        fs::create_dir_all(&path).unwrap();
        for (number, name) in names().iter().enumerate() {
            let len = [0, 1, 511, 512, 513, 700_000][number % 6] >> (number / 60);
            let bytes: Vec<u8> = (0..len).map(|i: usize| (i * (number + 3) / 5) as u8).collect();
            builder
                .file(directory, name.as_bytes(), time, len as u64, &mut &bytes[..])
                .unwrap();
            fs::write(path.join(name), bytes).unwrap();
        }
    }
    builder.finish().unwrap();
}

/// Makes `grown`: a filesystem of 64 MiB in an image of 2 GiB.
fn make_small(lab: &Lab, greeting: &str) {
    fs::create_dir(lab.path("small")).unwrap();
    fs::write(lab.path("small/small"), greeting).unwrap();
    lab.imgtool("mkfs -q --size 64M small grown");
    let image = fs::File::options().write(true).open(lab.path("grown")).unwrap();
    image.set_len(2 << 30).unwrap();
}

#[test]
fn a_disk_boots_from_firmware_to_its_root_and_the_kernel_writes_to_both_filesystems() {
    let lab = Lab::new();
    let greeting = "hello from the root";
    let version = make_system(&lab, greeting);
    make_volume(&lab);
    make_small(&lab, greeting);
    let line = "imgtool mkdisk -q -O qcow2 --size 700M tree disk --append";
    let words: Vec<&str> = line.split(' ').chain(["console=ttyS0 quiet panic=-1"]).collect();
    lab.run_words(&words).ok();
    let console = boot(&lab, "disk");
    let said = console
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("guest: "));
    let (mut sums, said): (Vec<&str>, Vec<&str>) = said.partition(|line| line.starts_with("sum "));
    let expected = [
        "root on /dev/vda2 says hello from the root",
        "the kernel is on both",
        "the initrd is on both",
        "7 files on the ESP",
        "The filesystem on /dev/vdc is now 76800 (4k) blocks long.",
        "The filesystem on /dev/vdc is now 524288 (4k) blocks long.",
        "times 1700000000",
        "done",
    ];
    assert_eq!(said, expected, "{console}");

    let script = "cd expected; find . -type f -exec md5sum {} + | sed 's/^/sum /'";
    let theirs = lab.run_words(&["sh", "-ec", script]).ok();
    let mut theirs: Vec<&str> = theirs.lines().collect();
    sums.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(theirs.len(), 3 * names().len());
    assert!(sums == theirs, "{sums:#?}\n{theirs:#?}");

    lab.qemu_img("check -q disk");
    for name in ["ESP", "root"] {
        lab.imgtool(&format!("convert -O raw disk#name:{name} {name}"));
    }
    let path = "PATH=/usr/sbin:/sbin:/usr/bin:/bin";
    for volume in ["ESP", "fat"] {
        let fsck = lab.run_words(&["env", path, "fsck.fat", "-n", volume]).ok();
        assert_eq!(
            fsck.lines().count(),
            2,
            "after the kernel wrote to {volume}: {fsck}"
        );
    }
    let listing = lab.run_words(&["mdir", "-b", "-/", "-i", "ESP", "::"]).ok();
    for name in [
        "::/loader/entries/another entry with a long name.conf",
        "::/many/the file with the number 200",
        &format!("::/debian-test/{version}/linux"),
    ] {
        assert!(listing.contains(&format!("{name}\n")), "{name}: {listing}");
    }
    for filesystem in ["root", "grown"] {
        let fsck = lab.run_words(&["env", path, "e2fsck", "-fn", filesystem]).ok();
        assert!(fsck.contains("Pass 5") && fsck.lines().count() == 6, "{fsck}");
    }
    let fields = lab.run_words(&["env", path, "dumpe2fs", "-h", "grown"]).ok();
    assert!(
        fields.contains("\nBlock count:              524288\n"),
        "{fields}"
    );
    assert_eq!(lab.imgtool("fs cat grown /small"), greeting);
    lab.imgtool("fs cp grown /kernel kernel");
    lab.run(&format!("cmp kernel tree/boot/vmlinuz-{version}")).ok();
    assert_eq!(
        lab.imgtool("fs cat disk#2 /etc/answer"),
        "written by the kernel\n"
    );
}
