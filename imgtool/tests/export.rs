//! Templates as files: archives that GNU tar, bsdtar and mkfs read, and images that qemu-img finds the same.

use std::fs;
use std::process::Command;

use crate::common::Lab;

/// A lab with a template `tiny` of all kinds of files, and its filesystem mounted at `mnt`.
struct Mounted(Lab);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.0.command("umount").arg("mnt").status();
    }
}

fn shell(lab: &Lab, script: &str) -> String {
    let done = lab.command("bash").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn lab() -> Mounted {
    let lab = Lab::new();
    shell(
        &lab,
        "mkdir -p root/etc root/dev mnt; cd root; echo 'PRETTY_NAME=Tiny' >etc/os-release; echo text >etc/file; ln etc/file etc/hard
         ln -s file etc/link; ln -s $(printf 'x%.0s' {1..150}) etc/long-link; mkfifo fifo; mknod dev/null c 1 3; mknod dev/sda b 8 70
         echo long >etc/$(printf 'n%.0s' {1..200}); echo utf8 >etc/$(printf 'gr\\303\\274n'); chown 70000:4000000 etc/file; chmod 6751 etc/file
         setfattr -n user.comment -v 'a value' etc/file; setfattr -n user.other -v '=x' etc; touch -d '2001-02-03 04:05:06.123456789' etc/os-release
         truncate -s 3M sparse; printf end >>sparse; printf start >tail; truncate -s 1M tail; truncate -s 2M none
         for at in 1 3 5 250 251; do printf $at | dd of=etc/pieces-$(printf 'p%.0s' {1..180}) bs=4k seek=$at conv=notrunc status=none; done; head -c 100000 /dev/urandom >data; : >empty
         python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'",
    );
    lab.imgtool("mkfs -q --size 32M root root.img");
    lab.imgtool("template import -q --store store root.img --alias tiny");
    lab.run("mount -o loop,ro root.img mnt").ok();
    Mounted(lab)
}

const LIST: &str = "find . -mindepth 1 ! -type s ! -name lost+found -printf '%p %y %m %U %G %T@ %n %l' \\( -type f -printf ' %s' -o -true \\) -printf '\\n' | sort; \
    find . -type f ! -path ./lost+found | sort | xargs -d '\\n' sha256sum; getfattr -Rdhm - . | sort; stat -c '%n %t %T' dev/*";

/// Fails with the lines that differ.
fn assert_same(found: &str, wanted: &str) {
    let only = |one: &str, other: &str| -> Vec<String> {
        let lines = one
            .lines()
            .filter(|line| !other.lines().any(|same| same == *line));
        lines.map(ToOwned::to_owned).collect()
    };
    assert_eq!(only(found, wanted), only(wanted, found));
}

#[test]
fn an_archive_has_what_the_kernel_sees() {
    let mounted = lab();
    let lab = &mounted.0;
    let done = lab.run("imgtool template export tiny --store store --format tar -o out.tar");
    assert!(done.stderr().contains("left out 1 socket,"), "{}", done.stderr());
    assert_eq!(done.code(), 0);
    let wanted = shell(lab, &format!("cd mnt; {LIST}"));
    assert!(wanted.contains("123456789") && wanted.contains("4000000") && wanted.contains("user.comment"));
    shell(
        lab,
        "mkdir gnu bsd again; tar -C gnu --xattrs --xattrs-include='*' --numeric-owner -xpf out.tar; bsdtar --numeric-owner -C bsd -xpf out.tar",
    );
    for unpacked in ["gnu", "bsd"] {
        assert_same(&shell(lab, &format!("cd {unpacked}; {LIST}")), &wanted);
    }
    assert_eq!(shell(lab, "tar -C mnt --compare -f out.tar"), "");
    assert_eq!(shell(lab, "stat -c %a out.tar"), "600\n");
    lab.imgtool("mkfs -q --size 32M out.tar again.img");
    lab.run("mount -o loop,ro again.img again").ok();
    let again = shell(lab, &format!("cd again; {LIST}"));
    lab.run("umount again").ok();
    assert_same(&again, &wanted);
}

#[test]
fn holes_stay_holes_in_every_archiver() {
    let lab = Lab::new();
    shell(
        &lab,
        "mkdir -p root/etc gnu bsd mnt; truncate -s 10G root/huge; printf middle | dd of=root/huge bs=1M seek=5000 conv=notrunc status=none
         : >root/etc/os-release",
    );
    lab.imgtool("mkfs -q --size 32M root root.img");
    lab.imgtool("template import -q --store store root.img --alias huge");
    lab.imgtool("template export huge --store store --format tar -o out.tar");
    assert!(fs::metadata(lab.path("out.tar")).unwrap().len() < 1 << 20);
    shell(&lab, "tar -C gnu -xpf out.tar; bsdtar -C bsd -xpf out.tar");
    lab.imgtool("mkfs -q --size 32M out.tar again.img");
    lab.run("mount -o loop,ro again.img mnt").ok();
    let look = |place: &str| {
        shell(
            &lab,
            &format!(
                "stat -c '%s' {place}/huge; test $(stat -c %b {place}/huge) -lt 100; tail -c +$((5000 * 1048576 + 1)) {place}/huge | head -c 8 | od -c"
            ),
        )
    };
    let wanted = look("root");
    assert!(
        wanted.contains("10737418240") && wanted.contains("m   i   d   d   l   e  \\0  \\0"),
        "{wanted}"
    );
    let found = ["gnu", "bsd", "mnt"].map(look);
    lab.run("umount mnt").ok();
    assert_eq!(found, [wanted.clone(), wanted.clone(), wanted]);
}

#[test]
fn images_are_the_same_disk_and_what_is_there_stays_until_they_are_whole() {
    let mounted = lab();
    let lab = &mounted.0;
    lab.imgtool("template export tiny --store store -o out.qcow2");
    lab.imgtool("template export tiny --store store --format raw -o out.raw");
    shell(
        lab,
        "cmp out.qcow2 store/templates/*.qcow2; test $(stat -c %b out.qcow2) -le $(stat -c %b store/templates/*.qcow2)",
    );
    let sum = lab.run("sha256sum out.qcow2").ok();
    let shown = lab.imgtool("template show --store store tiny");
    assert!(shown.contains(&sum[..64]), "{shown}");
    lab.qemu_img("compare -f raw -F raw out.raw root.img");
    fs::write(lab.path("kept"), "before").unwrap();
    let program = env!("CARGO_BIN_EXE_imgtool");
    let killed = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "trace",
            "-e",
            "trace=rename",
            "-e",
            "inject=rename:signal=KILL",
            program,
        ])
        .args([
            "template", "export", "tiny", "--store", "store", "--format", "tar", "-o", "kept",
        ])
        .current_dir(lab.dir())
        .output()
        .unwrap();
    assert!(!killed.status.success());
    assert_eq!(fs::read(lab.path("kept")).unwrap(), b"before");
    lab.imgtool("create -q -f raw none.img 1M");
    lab.imgtool("template import -q --store store none.img --alias none");
    lab.run("imgtool template export none --store store --format tar -o none.tar")
        .fails(1, &["no root filesystem"]);
    assert!(!lab.path("none.tar").exists());
}
