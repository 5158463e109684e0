//! `imgtool fs`: files changed in ext4 filesystems, as e2fsck and the kernel see it.
//!
//! Loop mounts need root.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::{Lab, interrupted_by};

/// A mounted filesystem, unmounted when it is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Lab::new().unmount(&self.0);
    }
}

fn mount(lab: &Lab, image: &str, options: &str) -> Mounted {
    let point = lab.path("mnt");
    fs::create_dir_all(&point).unwrap();
    lab.run_words(&[
        "mount",
        "-o",
        &format!("loop,{options}"),
        image,
        point.to_str().unwrap(),
    ])
    .ok();
    Mounted(point)
}

/// A filesystem with some files in `root.ext4`, and the same in partition 2 of `disk.qcow2`.
fn fixture(lab: &Lab) {
    lab.run("mke2fs -q -F -t ext4 root.ext4 32M").ok();
    let mounted = mount(lab, "root.ext4", "rw");
    let mut command = lab.command("bash");
    let script = r"
        mkdir -p etc/ssh var/cache/many home; echo old >etc/hostname; chmod 640 etc/hostname; chown 5:6 etc/hostname
        ln -s hostname etc/name; seq 100 | (cd var/cache/many; xargs touch); echo fstab >etc/fstab; ln -s nowhere etc/dangling
        setfacl -m u:1234:r etc/fstab
    ";
    assert!(
        command
            .args(["-ec", script])
            .current_dir(&mounted.0)
            .status()
            .unwrap()
            .success()
    );
    drop(mounted);
    lab.qemu_img("create -q -f qcow2 disk.qcow2 64M");
    lab.imgtool(
        "partition create -q disk.qcow2 size=8M,type=efi,name=ESP size=32M,type=root-x86-64,name=root",
    );
    lab.imgtool("convert -n -f raw -O qcow2 root.ext4 disk.qcow2#2");
}

/// Both are sound, and the same.
fn judge(lab: &Lab) {
    lab.imgtool("convert -O raw disk.qcow2#2 part.ext4");
    for image in ["root.ext4", "part.ext4"] {
        let output = lab.run(&format!("e2fsck -fn {image}"));
        let text = output.ok();
        let findings: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("Pass ") && !line.contains(" files ("))
            .collect();
        assert!(findings.is_empty(), "{findings:?}");
    }
    assert_eq!(lab.run("qemu-img check disk.qcow2").code(), 0);
    let trees =
        ["root.ext4", "part.ext4"].map(|image| lab.imgtool(&format!("fs ls -lR --output json {image}")));
    let without_times = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| !line.contains("\"modified\"") && !line.contains("generation"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(without_times(&trees[0]), without_times(&trees[1]));
}

const IMAGES: [&str; 2] = ["root.ext4", "disk.qcow2#name:root"];

#[test]
fn files_are_put_edited_moved_and_removed() {
    let lab = Lab::new();
    fixture(&lab);
    fs::write(lab.path("hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(lab.path("tool"), vec![7; 200_000]).unwrap();
    fs::set_permissions(lab.path("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    for image in IMAGES {
        lab.imgtool(&format!("fs put {image} hosts /etc"));
        lab.imgtool(&format!("fs put --mkdir {image} tool hosts /usr/local/bin"));
        lab.imgtool(&format!(
            "fs put --mkdir --mode 600 --owner 1000:1001 {image} hosts /home/anna/.ssh/keys"
        ));
        // Through the link, with standard input.
        let mut put = lab.command("imgtool");
        let mut put = put
            .args(["fs", "put", image, "-", "/etc/name"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        put.stdin.take().unwrap().write_all(b"new\n").unwrap();
        assert!(put.wait().unwrap().success());
        let mut edit = lab.command("imgtool");
        edit.args(["fs", "edit", image, "/etc/fstab"])
            .env_remove("VISUAL")
            .env("EDITOR", "sed -i s/fs/FS/");
        assert!(edit.status().unwrap().success());
        lab.imgtool(&format!("fs mkdir -p --mode 700 {image} /srv/a/b /etc"));
        lab.imgtool(&format!("fs rm -r {image} /var/cache/many /etc/dangling"));
        lab.imgtool(&format!("fs rm --force {image} /etc/none"));
        lab.imgtool(&format!("fs mv {image} /etc/hosts /srv"));
        lab.imgtool(&format!("fs ln {image} /srv/hosts /etc/hosts"));
        lab.imgtool(&format!("fs ln -s {image} ../usr/zone /etc/localtime"));
        lab.imgtool(&format!("fs ln -s --force {image} ../usr/other /etc/localtime"));
        lab.imgtool(&format!("fs chmod {image} 4711 /usr/local/bin/tool"));
        lab.imgtool(&format!("fs chmod {image} 604 /etc/fstab"));
        lab.imgtool(&format!("fs chown {image} :42 /etc/fstab"));
    }
    judge(&lab);
    let mounted = mount(&lab, "root.ext4", "ro");
    let stat = |path: &str| {
        let metadata = mounted.0.join(path).symlink_metadata().unwrap();
        (
            metadata.mode() & 0o7777,
            metadata.uid(),
            metadata.gid(),
            metadata.nlink(),
        )
    };
    let read = |path: &str| fs::read(mounted.0.join(path)).unwrap();
    assert_eq!(
        (read("etc/hostname"), stat("etc/hostname")),
        (b"new\n".to_vec(), (0o640, 5, 6, 1))
    );
    assert_eq!(
        (read("etc/fstab"), stat("etc/fstab")),
        (b"FStab\n".to_vec(), (0o604, 0, 42, 1))
    );
    assert_eq!(
        (read("srv/hosts"), stat("etc/hosts")),
        (b"127.0.0.1 localhost\n".to_vec(), (0o644, 0, 0, 2))
    );
    assert_eq!(
        (read("usr/local/bin/tool"), stat("usr/local/bin/tool")),
        (vec![7; 200_000], (0o4711, 0, 0, 1))
    );
    assert_eq!(stat("home/anna/.ssh/keys"), (0o600, 1000, 1001, 1));
    assert_eq!(stat("home/anna/.ssh"), (0o755, 1000, 1001, 2));
    assert_eq!(stat("srv/a/b"), (0o700, 0, 0, 2));
    assert_eq!(
        fs::read_link(mounted.0.join("etc/localtime")).unwrap(),
        PathBuf::from("../usr/other")
    );
    assert!(!mounted.0.join("var/cache/many").exists() && mounted.0.join("var/cache").exists());
    let list = lab
        .run_words(&["getfacl", "-cn", mounted.0.join("etc/fstab").to_str().unwrap()])
        .ok();
    assert!(list.contains("mask::---"), "{list}");
}

#[test]
fn what_fails_changes_nothing_and_says_why() {
    let lab = Lab::new();
    fixture(&lab);
    fs::write(lab.path("small"), "x").unwrap();
    fs::write(lab.path("large"), vec![1; 40 << 20]).unwrap();
    let before = ["root.ext4", "disk.qcow2"].map(|image| fs::read(lab.path(image)).unwrap());
    for (line, says) in [
        ("put root.ext4 small /none/small", &["none", "root.ext4"][..]),
        ("put root.ext4 large /large", &["no room", "root.ext4"]),
        ("put root.ext4 missing /etc", &["missing"]),
        ("put root.ext4 small large /etc/fstab", &["fstab"]),
        (
            "put disk.qcow2 small /etc",
            &["hint: the disk is partitioned: name disk.qcow2#2"],
        ),
        ("rm root.ext4 /etc", &["is a directory", "hint: -r"]),
        // The first could be removed, and stays.
        ("rm root.ext4 /etc/fstab /etc/none", &["no such file"]),
        ("mv root.ext4 /etc /etc/ssh", &["into itself"]),
        ("mkdir root.ext4 /etc", &["there already"]),
        ("ln root.ext4 /etc /etc2", &["one name only"]),
        ("chmod root.ext4 644 /none", &["none"]),
    ] {
        lab.run(&format!("imgtool fs {line}")).fails(1, says);
    }
    let mut edit = lab.command("imgtool");
    edit.args(["fs", "edit", "root.ext4", "/etc/fstab"])
        .env_remove("VISUAL")
        .env("EDITOR", "echo x >\"$1\"; exit 3; :");
    let output = edit.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("the editor failed"),
        "{text}"
    );
    for line in [
        "chmod root.ext4 9 /etc",
        "chown root.ext4 root /etc",
        "put --mode u+x root.ext4 small /etc",
    ] {
        assert_eq!(lab.run(&format!("imgtool fs {line}")).code(), 1, "{line}");
    }
    let after = ["root.ext4", "disk.qcow2"].map(|image| fs::read(lab.path(image)).unwrap());
    // New contents may be where nothing is.
    lab.run("e2fsck -fn root.ext4").ok();
    assert!(before[1] == after[1]);
    assert_eq!(lab.imgtool("fs cat root.ext4 /etc/fstab"), "fstab\n");
    assert_eq!(
        lab.imgtool("fs tree root.ext4")
            .lines()
            .filter(|line| line.contains("large"))
            .count(),
        0
    );
}

/// What `fs edit` has put into the directory for temporary files.
fn copies(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.path("tmp")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// `fs edit` of a file, by an editor that is a script, in a process group of its own as a shell would start it.
fn edit(lab: &Lab, editor: &str) -> Command {
    fs::create_dir_all(lab.path("tmp")).unwrap();
    let mut command = lab.command("imgtool");
    command
        .args(["fs", "edit", "root.ext4", "/etc/fstab"])
        .env_remove("VISUAL")
        .env("EDITOR", editor)
        .env("TMPDIR", lab.path("tmp"))
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// Starts an edit, and waits until its editor has made the file `ready`.
fn editing(lab: &Lab, editor: &str) -> Child {
    let mut child = edit(lab, editor).spawn().unwrap();
    while !lab.path("ready").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it is over already");
        thread::sleep(Duration::from_millis(10));
    }
    fs::remove_file(lab.path("ready")).unwrap();
    child
}

/// An editor that adds the names of the signals that the keyboard sends, and ends when it has had both.
const EDITOR_OF_SIGNALS: &str = "
import signal, sys, time
had = set()
for number in signal.SIGINT, signal.SIGQUIT:
    signal.signal(number, lambda number, frame: had.add(signal.Signals(number).name))
open('ready', 'w').close()
while len(had) < 2:
    time.sleep(0.02)
with open(sys.argv[1], 'a') as file:
    file.write('\\n'.join(sorted(had)) + '\\n')
";

#[test]
fn the_keyboard_is_the_editors_and_does_not_end_what_waits_for_it() {
    let lab = Lab::new();
    fixture(&lab);
    fs::write(lab.path("editor.py"), EDITOR_OF_SIGNALS).unwrap();
    let child = editing(&lab, "python3 editor.py");
    let group = format!("-{}", child.id());
    for signal in ["-INT", "-QUIT"] {
        lab.run_words(&["kill", signal, "--", &group]).ok();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = lab.imgtool("fs cat root.ext4 /etc/fstab");
    assert!(text.ends_with("SIGINT\nSIGQUIT\n"), "{text}");
    assert!(copies(&lab).is_empty());
}

#[test]
fn an_edit_that_is_told_to_stop_ends_its_editor_and_keeps_only_what_has_work_in_it() {
    let lab = Lab::new();
    fixture(&lab);
    for (work, signal) in [("", "-TERM"), ("", "-HUP"), ("echo work >>$0;", "-TERM")] {
        let editor = format!("bash -c '{work} echo $$ >pid; touch ready; exec sleep 1000'");
        let child = editing(&lab, &editor);
        lab.run_words(&["kill", signal, &child.id().to_string()]).ok();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(interrupted_by(&signal[1..])),
            "{stderr}"
        );
        let pid = fs::read_to_string(lab.path("pid")).unwrap();
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        assert!(
            state.is_err() || state.unwrap().contains(") Z "),
            "the editor lives on"
        );
        assert_eq!(copies(&lab).len(), usize::from(!work.is_empty()), "{stderr}");
    }
    let kept = copies(&lab).remove(0);
    assert_eq!(fs::read_to_string(kept.join("fstab")).unwrap(), "fstab\nwork\n");
    assert_eq!(lab.imgtool("fs cat root.ext4 /etc/fstab"), "fstab\n");
}

#[test]
fn what_the_image_has_no_room_for_is_kept_and_where_it_is_is_said() {
    let lab = Lab::new();
    fixture(&lab);
    let output = edit(&lab, "f() { yes work | head -c 40M >\"$1\"; }; f")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let kept = copies(&lab).remove(0);
    let file = kept.join("fstab");
    assert!(stderr.contains(file.to_str().unwrap()), "{stderr}");
    assert_eq!(fs::metadata(&file).unwrap().len(), 40 << 20);
    let mode = |path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&kept), mode(&file)), (0o700, 0o600));
    assert_eq!(lab.imgtool("fs cat root.ext4 /etc/fstab"), "fstab\n");
    fs::remove_dir_all(kept).unwrap();
    // Who has the editor fail wants nothing of it.
    let output = edit(&lab, "f() { echo work >\"$1\"; exit 3; }; f")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(copies(&lab).is_empty());
}

#[test]
fn an_image_that_is_in_use_is_not_changed() {
    let lab = Lab::new();
    fixture(&lab);
    // An editor that looks at the image while it is open for a change.
    let mut edit = lab.command("imgtool");
    let imgtool = env!("CARGO_BIN_EXE_imgtool");
    let script = format!("{imgtool} fs rm disk.qcow2#2 /etc/fstab 2>second; echo $? >>second; echo more >>");
    edit.args(["fs", "edit", "disk.qcow2#2", "/etc/hostname"])
        .env_remove("VISUAL")
        .env("EDITOR", script);
    assert!(edit.status().unwrap().success());
    let second = fs::read_to_string(lab.path("second")).unwrap();
    assert!(second.contains("lock") && second.ends_with("1\n"), "{second}");
    assert_eq!(lab.imgtool("fs cat disk.qcow2#2 /etc/hostname"), "old\nmore\n");
    assert_eq!(lab.imgtool("fs cat disk.qcow2#2 /etc/fstab"), "fstab\n");
}

#[test]
fn an_overlay_gets_the_change_and_its_base_stays() {
    let lab = Lab::new();
    fixture(&lab);
    let base = fs::read(lab.path("disk.qcow2")).unwrap();
    for clone in 0..3 {
        lab.qemu_img(&format!("create -q -f qcow2 -b disk.qcow2 -F qcow2 clone{clone}"));
        fs::write(lab.path("name"), format!("clone-{clone}\n")).unwrap();
        lab.imgtool(&format!("fs put clone{clone}#name:root name /etc/hostname"));
        assert_eq!(
            lab.imgtool(&format!("fs cat clone{clone}#2 /etc/hostname")),
            format!("clone-{clone}\n")
        );
        let size = fs::metadata(lab.path(&format!("clone{clone}"))).unwrap().blocks() * 512;
        assert!(size < 2 << 20, "{size}");
    }
    assert!(fs::read(lab.path("disk.qcow2")).unwrap() == base);
}

#[test]
fn a_filesystem_grows_with_its_partition() {
    let lab = Lab::new();
    fixture(&lab);
    lab.imgtool("resize -q disk.qcow2 3G");
    lab.imgtool("partition grow -q --last disk.qcow2");
    let text = lab.imgtool("fs grow --output json disk.qcow2#2");
    let grown: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(grown["size-before"], 32 << 20);
    assert!(
        grown["size"].as_u64().unwrap() > (3 << 30) - (64 << 20),
        "{grown}"
    );
    assert!(lab.imgtool("fs grow disk.qcow2#name:root").contains("as before"));
    lab.run("imgtool fs grow --size 16M disk.qcow2#2")
        .fails(1, &["cannot be shrunk"]);
    lab.run("imgtool fs grow --size 5G disk.qcow2#2")
        .fails(1, &["the disk has", "hint: grow"]);
    lab.imgtool("convert -O raw disk.qcow2#2 part.ext4");
    let fsck = lab.run("e2fsck -fn part.ext4").ok();
    assert!(
        fsck.lines()
            .all(|line| line.starts_with("Pass ") || line.contains(" files (")),
        "{fsck}"
    );
    let mounted = mount(&lab, "part.ext4", "rw");
    assert_eq!(fs::read(mounted.0.join("etc/hostname")).unwrap(), b"old\n");
    fs::write(mounted.0.join("large"), vec![1; 100 << 20]).unwrap();
}

#[test]
fn modes_and_owners_change_below_a_directory_as_chmod_and_chown_do_it() {
    let lab = Lab::new();
    let make = "mkdir -p tree/a/b; touch tree/a/file tree/a/b/run; chmod 711 tree/a/b/run; chmod 2777 tree/a; ln -s file tree/a/link";
    lab.run_words(&["sh", "-ec", make]).ok();
    lab.imgtool("mkfs -q --size 16M tree root.ext4");
    for mode in ["u=rwX,go=rX", "g+ws,o-rx", "+t", "a-w,u+w"] {
        lab.imgtool(&format!("fs chmod -R root.ext4 {mode} /a"));
        lab.run(&format!("chmod -R {mode} tree/a")).ok();
    }
    lab.imgtool("fs chmod root.ext4 -- -x /a/b/run");
    lab.run("chmod -- -x tree/a/b/run").ok();
    lab.imgtool("fs chown -R root.ext4 1000:1001 /a");
    lab.run("chown -R -P -h 1000:1001 tree/a").ok();
    let look = r#"cd "$1"; find a -printf '%p %m %U:%G\n' | LC_ALL=C sort"#;
    let theirs = lab.run_words(&["bash", "-ec", look, "bash", "tree"]).ok();
    let mounted = mount(&lab, "root.ext4", "ro");
    let ours = lab
        .run_words(&["bash", "-ec", look, "bash", mounted.0.to_str().unwrap()])
        .ok();
    assert_eq!(ours, theirs);
}

#[test]
fn every_change_is_told_to_programs() {
    let lab = Lab::new();
    fixture(&lab);
    fs::write(lab.path("small"), "12345").unwrap();
    let told = |line: &str| -> serde_json::Value {
        let text = lab.imgtool(&format!(
            "fs {} --output json root.ext4 {}",
            line.split_once('|').unwrap().0,
            line.split_once('|').unwrap().1
        ));
        serde_json::from_str(&text).unwrap()
    };
    let put = told("put|small /etc/small");
    assert_eq!((&put["files"], &put["bytes"]), (&1.into(), &5.into()), "{put}");
    let made = told("mkdir -p|/srv/a/b /etc");
    assert_eq!(
        (&made[0]["path"], &made[0]["type"], &made[1]["path"]),
        (&"/srv/a/b".into(), &"directory".into(), &"/etc".into())
    );
    let linked = told("ln -s|../nowhere /etc/new");
    assert_eq!(
        (&linked["target"], &linked["type"]),
        (&"../nowhere".into(), &"symlink".into())
    );
    assert_eq!(told("ln|/etc/small /etc/again")["links"], 2);
    assert_eq!(told("mv|/etc/again /srv")["path"], "/srv/again");
    assert_eq!(told("chmod|u+x /etc/small")[0]["mode"], "0744");
    let owned = told("chown|8:9 /etc/small");
    assert_eq!((&owned[0]["uid"], &owned[0]["gid"]), (&8.into(), &9.into()));
    let removed = told("rm --force|/etc/small /etc/none");
    assert_eq!(
        (removed.as_array().unwrap().len(), &removed[0]["size"]),
        (1, &5.into())
    );
    for (editor, changed) in [("true", false), ("echo more >>", true)] {
        let mut edit = lab.command("imgtool");
        let edit = edit.args(["fs", "edit", "--output", "json", "root.ext4", "/etc/fstab"]);
        let output = edit.env_remove("VISUAL").env("EDITOR", editor).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&told["changed"], &told["path"]),
            (&changed.into(), &"/etc/fstab".into())
        );
    }
    // What people see is nothing, as all is as they asked for.
    assert_eq!(lab.imgtool("fs chmod root.ext4 600 /etc/fstab"), "");
}
