//! Files that take the place of others: what they keep of them, and where there is no place for them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use crate::common::{Lab, copy_program};

/// Commands that make `target` anew.
const MAKERS: [&str; 4] = [
    "imgtool convert -O qcow2 disk target",
    "imgtool create -q -f qcow2 target 1M",
    "imgtool qemu-img convert -O raw disk target",
    "imgtool qemu-img create -q -f qcow2 target 1M",
];

#[test]
fn owner_mode_access_list_and_attributes_stay() {
    let (lab, _mounted) = Lab::on("ext4", 64);
    lab.raw("disk", 1 << 20, 1);
    for maker in MAKERS {
        let target = lab.path("target");
        fs::write(&target, "old").unwrap();
        chown(&target, Some(1234), Some(4321)).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
        lab.run("setfacl -m u:777:rw,g:888:r target").ok();
        lab.run("setfattr -n user.note -v mine target").ok();
        lab.run("setfattr -n trusted.tag -v yours target").ok();
        let kept = |lab: &Lab| {
            let file = fs::metadata(lab.path("target")).unwrap();
            let mode = format!("{} {} {:o}", file.uid(), file.gid(), file.mode());
            let lists = lab.run("getfacl -n target").ok();
            mode + &lists + &lab.run("getfattr -d -m - target").ok()
        };
        let (before, inode) = (kept(&lab), fs::metadata(&target).unwrap().ino());
        assert!(
            before.contains("user:777:rw-") && before.contains("trusted.tag"),
            "{before}"
        );
        lab.run(maker).ok();
        let file = fs::metadata(&target).unwrap();
        assert!(
            file.ino() != inode && file.len() > 3,
            "{maker} has not replaced it"
        );
        assert_eq!(kept(&lab), before, "{maker}");
        fs::remove_file(&target).unwrap();
    }
}

/// A directory that takes no new files, until it is dropped.
struct Closed<'a>(&'a Lab);

impl<'a> Closed<'a> {
    fn new(lab: &'a Lab) -> Self {
        lab.run("chattr +i .").ok();
        Self(lab)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let done = Command::new("chattr").arg("-i").arg(self.0.dir()).status();
        assert!(done.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_file_in_a_directory_that_takes_no_other_is_written_to_as_qemu_img_does_and_not_otherwise() {
    let (lab, _mounted) = Lab::on("ext4", 64);
    lab.raw("disk", 1 << 20, 1);
    fs::write(lab.path("target"), "old").unwrap();
    let closed = Closed::new(&lab);
    let names = lab.names();
    for maker in &MAKERS[..2] {
        lab.run(maker).fails(1, &["target", "directory", "--in-place"]);
        assert_eq!(fs::read(lab.path("target")).unwrap(), b"old", "{maker}");
    }
    lab.imgtool("convert --in-place -O qcow2 disk target");
    lab.imgtool("compare disk target");
    for program in ["qemu-img", "imgtool qemu-img"] {
        for format in ["raw", "qcow2"] {
            lab.run(&format!("{program} convert -O {format} disk target"))
                .ok();
            lab.qemu_img(&format!("compare -f raw -F {format} disk target"));
            lab.run(&format!("{program} create -q -f {format} target 2M"))
                .ok();
            let info = lab.qemu_img("info target");
            assert!(info.contains("virtual size: 2 MiB"), "{program}: {info}");
        }
        let refused = lab.run(&format!("{program} create -q -f raw new 2M"));
        assert_eq!(refused.code(), 1, "{program}");
        assert!(refused.stderr().contains("Could not create 'new': "), "{program}");
    }
    assert_eq!(lab.names(), names);
    drop(closed);
}

/// What `docker run -v disk.img:/disk.img` makes.
#[test]
fn a_file_on_which_something_is_mounted_is_written_to_as_qemu_img_does_and_not_otherwise() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 1);
    for name in ["target", "below"] {
        fs::write(lab.path(name), "old").unwrap();
    }
    lab.run("mount --bind below target").ok();
    let native = MAKERS[..2].iter().map(|maker| lab.run(maker)).collect::<Vec<_>>();
    let unchanged = fs::read(lab.path("below")).unwrap();
    let converted = lab.run("imgtool qemu-img convert -O qcow2 disk target");
    lab.run("umount target").ok();
    for done in native {
        done.fails(1, &["target", "--in-place"]);
    }
    assert_eq!(unchanged, b"old");
    converted.ok();
    assert_eq!(fs::read(lab.path("target")).unwrap(), b"old");
    lab.qemu_img("compare -f raw -F qcow2 disk below");
    assert_eq!(lab.names(), ["below", "disk", "target"]);
}

/// What somebody else may be allowed to write to and not to replace.
#[test]
fn a_file_of_another_in_a_directory_like_tmp_is_written_to_as_qemu_img_does() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 1);
    copy_program(&lab.path("qemu-img"));
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(lab.path("target"), "old").unwrap();
    fs::set_permissions(lab.path("target"), fs::Permissions::from_mode(0o666)).unwrap();
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    lab.run(&format!("{nobody} ./qemu-img convert -O qcow2 disk target"))
        .ok();
    assert_eq!(fs::metadata(lab.path("target")).unwrap().uid(), 0);
    lab.qemu_img("compare -f raw -F qcow2 disk target");
    assert_eq!(lab.names(), ["disk", "qemu-img", "target"]);
}

/// What a group of people writes to, and one of them owns.
#[test]
fn a_file_of_another_keeps_its_owner_as_with_qemu_img() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 1);
    copy_program(&lab.path("qemu-img"));
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    for (owner, stays) in [(1234, true), (65534, false)] {
        for program in ["qemu-img", "./qemu-img"] {
            let target = lab.path("target");
            fs::write(&target, "old").unwrap();
            chown(&target, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&target, fs::Permissions::from_mode(0o666)).unwrap();
            let inode = fs::metadata(&target).unwrap().ino();
            lab.run(&format!("{nobody} {program} convert -O qcow2 disk target"))
                .ok();
            let file = fs::metadata(&target).unwrap();
            assert_eq!(
                (file.uid(), file.gid(), file.mode() & 0o777),
                (owner, owner, 0o666)
            );
            let in_place = stays || program == "qemu-img";
            assert_eq!(file.ino() == inode, in_place, "{program} {owner}");
            lab.qemu_img("compare -f raw -F qcow2 disk target");
            fs::remove_file(&target).unwrap();
        }
    }
    assert_eq!(lab.names(), ["disk", "qemu-img"]);
}

#[test]
fn open_files_are_written_to_by_the_names_of_their_descriptors() {
    let lab = Lab::new();
    lab.raw("disk", 1 << 20, 1);
    let program = env!("CARGO_BIN_EXE_imgtool");
    for convert in ["convert --in-place", "qemu-img convert"] {
        for name in ["/dev/fd/3", "/proc/self/fd/3"] {
            let script = format!(
                "exec 3<>gone; rm gone; {program} {convert} -f raw -O qcow2 disk {name} && cat /proc/self/fd/3 >read"
            );
            lab.run_words(&["bash", "-c", &script]).ok();
            lab.qemu_img("compare -f raw -F qcow2 disk read");
            assert_eq!(lab.names(), ["disk", "read"], "{convert} {name}");
        }
    }
    fs::write(lab.path("read"), "old").unwrap();
    for maker in [
        "convert -f raw -O raw disk /dev/fd/3",
        "create -q -f raw /dev/fd/3 1M",
    ] {
        let script = format!("exec 3<>read; {program} {maker}");
        let refused = lab.run_words(&["bash", "-c", &script]);
        assert_eq!(refused.code(), 1, "{maker}");
        assert!(refused.stderr().contains("--in-place"), "{}", refused.stderr());
        assert_eq!(fs::read(lab.path("read")).unwrap(), b"old", "{maker}");
    }
}

/// A new file that cannot be all that the old one was is open to fewer, and never to others.
#[test]
fn nobody_gets_rights_that_they_did_not_have() {
    let (lab, _mounted) = Lab::on("ext4", 600);
    copy_program(&lab.path("program"));
    let owned = |uid, gid, mode: u32| {
        let target = lab.path("target");
        fs::write(&target, "old").unwrap();
        chown(&target, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
    };
    let rights = || {
        let file = fs::metadata(lab.path("target")).unwrap();
        assert!(file.len() > 3, "it was not replaced");
        (file.uid(), file.gid(), file.mode() & 0o7777)
    };
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    for (groups, then) in [("3000", (2002, 3000, 0o660)), ("3001", (2002, 100, 0o606))] {
        owned(2001, 3000, if groups == "3000" { 0o660 } else { 0o666 });
        let caller = format!("setpriv --reuid 2002 --regid 100 --groups {groups}");
        lab.run(&format!("{caller} ./program create -q -f raw target 1M"))
            .ok();
        assert_eq!(rights(), then);
    }

    lab.run("setfacl -d -m u:65534:rwx .").ok();
    owned(0, 0, 0o640);
    lab.run("setfacl -b target").ok();
    lab.imgtool("create -q -f raw target 1M");
    assert_eq!(rights(), (0, 0, 0o640));
    let lists = lab.run("getfacl -n target").ok();
    assert!(!lists.contains("65534"), "{lists}");
}

/// The limit of a file's length is an error like others, and no end without a word.
#[test]
fn a_limit_of_length_is_told() {
    let lab = Lab::new();
    lab.raw("disk", 4 << 20, 1);
    for (line, says) in [
        ("convert -f raw -O qcow2 disk new", "File too large"),
        ("create -q -f raw new 100M", "File too large"),
        ("qemu-img convert -O qcow2 disk new", "File too large"),
        (
            "qemu-img create -q -f raw new 100M",
            "The image size is too large for file format 'raw'",
        ),
    ] {
        let program = env!("CARGO_BIN_EXE_imgtool");
        let done = lab.run(&format!("prlimit --fsize=1000000 {program} {line}"));
        assert_eq!(done.code(), 1, "{line}: {}", done.stderr());
        assert!(done.stderr().contains(says), "{line}: {}", done.stderr());
        assert_eq!(lab.names(), ["disk"], "{line}");
    }
}
