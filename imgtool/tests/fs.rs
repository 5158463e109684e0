//! `imgtool fs`: files read and copied out of ext4 filesystems, compared with what the kernel and debugfs make of them.
//!
//! Loop mounts need root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Lab, copy_program, interrupted_by};
use serde_json::Value;

/// A mounted filesystem, unmounted when it is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Lab::new().unmount(&self.0);
    }
}

fn mount(lab: &Lab, image: &str, options: &str) -> Mounted {
    let point = lab.path(&format!("mnt-{image}"));
    fs::create_dir_all(&point).unwrap();
    let options = format!("loop,{options}");
    lab.run_words(&["mount", "-o", &options, image, point.to_str().unwrap()])
        .ok();
    Mounted(point)
}

/// Has a shell script change a filesystem, its current directory.
fn change(lab: &Lab, image: &str, script: &str) {
    let mounted = mount(lab, image, "rw");
    let mut command = lab.command("bash");
    let output = command
        .args(["-ec", script])
        .current_dir(&mounted.0)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn mke2fs(lab: &Lab, name: &str, size: &str, options: &str) {
    lab.run(&format!("mke2fs -q -F {options} {name} {size}")).ok();
}

/// A tree with every kind of file in `root.ext4`, and the same in partition 2 of `top`, an overlay: its base, `base`, has
/// only part of it.
fn fixture(lab: &Lab) {
    mke2fs(lab, "root.ext4", "48M", "-t ext4 -I 256");
    change(
        lab,
        "root.ext4",
        r#"
        umask 022
        mkdir -p etc/deep/er many .hidden; chmod 1777 etc; chown 70000:80000 etc/deep; chmod 500 etc/deep/er
        : >empty; printf 'one\n' >etc/one; head -c 3000000 /dev/urandom >etc/big; chown 12:34 etc/one; chmod 4751 etc/one
        truncate -s 300000 holes; printf middle | dd of=holes bs=1 seek=100000 conv=notrunc status=none
        printf far | dd of=far bs=1 seek=60000000 conv=notrunc status=none
        ln -s deep etc/link; ln -s /etc/one absolute; ln -s nowhere dangling; ln etc/big etc/deep/er/again; ln etc/link linked
        mkfifo fifo; mknod char c 5 1; mknod etc/device b 259 70000; ln char char2
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
        touch -d '2024-02-29 12:34:56.123456789 UTC' etc/one; touch -h -d '1969-01-01 UTC' dangling; touch -d '2040-12-31 UTC' etc/deep
        seq -f 'number %g' 300 | (cd many; xargs -d '\n' touch); touch .hidden/x
        touch "$(head -c 255 /dev/zero | tr '\0' n)" $'\xff\xfe not UTF-8' $'new\nline'
        setfacl -m u:1234:rx,m::rwx etc/one; setfacl -d -m g:4321:r many
        setfattr -n user.colour -v blue etc/one; setfattr -n user.bytes -v 0x00ff etc/big; setfattr -n trusted.t -v x etc/deep/er
        setfattr -h -n trusted.link -v y dangling
        setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 etc/big
        "#,
    );
    fs::copy(lab.path("root.ext4"), lab.path("old.ext4")).unwrap();
    change(lab, "old.ext4", "rm -r etc many; echo old >old");
    lab.qemu_img("create -q -f qcow2 base 80M");
    lab.imgtool("partition create -q base size=8M,type=efi,name=ESP size=48M,type=root-x86-64,name=root");
    lab.imgtool("convert -n -f raw -O qcow2 old.ext4 base#2");
    lab.qemu_img("create -q -f qcow2 -b base -F qcow2 top");
    lab.imgtool("convert -n -f raw -O qcow2 root.ext4 top#2");
}

const IMAGES: [&str; 2] = ["root.ext4", "top#name:root"];

fn json(lab: &Lab, line: &[&str]) -> Value {
    let words: Vec<&str> = ["imgtool", "fs"].iter().chain(line).copied().collect();
    serde_json::from_str(&lab.run_words(&words).ok()).unwrap()
}

/// The bytes that an object has under a key.
fn bytes(object: &Value, key: &str) -> Vec<u8> {
    match object.get(format!("{key}-hex")) {
        Some(digits) => {
            let digits = digits.as_str().unwrap();
            let pairs = (0..digits.len()).step_by(2);
            pairs
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
                .collect()
        }
        None => object[key].as_str().unwrap().as_bytes().to_vec(),
    }
}

/// All files below a directory, by their paths from there.
fn tree(root: &Path) -> BTreeMap<Vec<u8>, fs::Metadata> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![PathBuf::new()];
    while let Some(path) = ahead.pop() {
        let metadata = root.join(&path).symlink_metadata().unwrap();
        if metadata.is_dir() {
            let entries = fs::read_dir(root.join(&path)).unwrap();
            ahead.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
        }
        found.insert(path.into_os_string().into_vec(), metadata);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0u8; 1 << 16];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        value.truncate(len);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// A moment as the program prints it, from seconds and nanoseconds.
fn moment(seconds: i64, nanoseconds: i64) -> String {
    let time = jiff::SignedDuration::new(seconds, nanoseconds as i32);
    format!("{:.9}", jiff::Timestamp::UNIX_EPOCH + time)
}

#[test]
fn what_is_said_of_files_is_what_the_kernel_says() {
    let lab = Lab::new();
    fixture(&lab);
    let mounted = mount(&lab, "root.ext4", "ro,noatime");
    let theirs = tree(&mounted.0);
    assert!(theirs.len() > 320);
    for image in IMAGES {
        let listed = json(&lab, &["ls", "-a", "-R", "--output", "json", image]);
        let listed = listed.as_array().unwrap();
        // The root is in no directory.
        assert_eq!(listed.len(), theirs.len() - 1, "{image}");
        for object in listed {
            let path = bytes(object, "path");
            let theirs = &theirs[&path[1..]];
            let shown = object["path"].as_str().unwrap();
            assert_eq!(object["inode"].as_u64(), Some(theirs.ino()), "{shown}");
            assert_eq!(
                object["mode"],
                format!("{:04o}", theirs.mode() & 0o7777),
                "{shown}"
            );
            assert_eq!(object["links"].as_u64(), Some(theirs.nlink()), "{shown}");
            assert_eq!(object["uid"].as_u64(), Some(theirs.uid().into()), "{shown}");
            assert_eq!(object["gid"].as_u64(), Some(theirs.gid().into()), "{shown}");
            assert_eq!(object["size"].as_u64(), Some(theirs.size()), "{shown}");
            assert_eq!(
                object["modified"],
                moment(theirs.mtime(), theirs.mtime_nsec()),
                "{shown}"
            );
            if theirs.is_symlink() {
                let target = fs::read_link(mounted.0.join(OsStr::from_bytes(&path[1..]))).unwrap();
                assert_eq!(bytes(object, "target"), target.as_os_str().as_bytes(), "{shown}");
            }
            if let Some(device) = object.get("device") {
                let number = |key: &str| device[key].as_u64().unwrap() as u32;
                let device = rustix::fs::makedev(number("major"), number("minor"));
                assert_eq!(device, theirs.rdev(), "{shown}");
            }
        }
        let named = [
            "etc/one",
            "/dangling",
            "etc/big",
            "etc/deep/er",
            "/char",
            "many",
            "/",
        ];
        let told = json(&lab, &[&["stat", "--output", "json", image], &named[..]].concat());
        for (object, name) in told.as_array().unwrap().iter().zip(named) {
            let path = mounted.0.join(name.trim_start_matches('/'));
            let theirs = path.symlink_metadata().unwrap();
            assert_eq!(
                object["accessed"],
                moment(theirs.atime(), theirs.atime_nsec()),
                "{name}"
            );
            assert_eq!(
                object["changed"],
                moment(theirs.ctime(), theirs.ctime_nsec()),
                "{name}"
            );
            let created = theirs
                .created()
                .unwrap()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap();
            let created = moment(created.as_secs().cast_signed(), created.subsec_nanos().into());
            assert_eq!(object["created"], created, "{name}");
            assert_eq!(
                object["allocated"].as_u64(),
                Some(theirs.blocks() * 512),
                "{name}"
            );
            let ours: BTreeMap<_, _> = object["xattrs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|xattr| (bytes(xattr, "name"), bytes(xattr, "value")))
                .collect();
            assert_eq!(ours, xattrs(&path), "{name}");
        }
        for (path, metadata) in &theirs {
            if metadata.is_file() {
                let path = Path::new(OsStr::from_bytes(path));
                let mut command = lab.command("imgtool");
                let output = command.args(["fs", "cat", image]).arg(path).output().unwrap();
                assert!(output.status.success(), "{output:?}");
                assert!(
                    output.stdout == fs::read(mounted.0.join(path)).unwrap(),
                    "{path:?}"
                );
            }
        }
    }
}

#[test]
fn lists_look_like_those_of_other_programs() {
    let lab = Lab::new();
    fixture(&lab);
    let mounted = mount(&lab, "root.ext4", "ro,noatime");
    // Columns are as wide as there, but for devices.
    let ours = lab.imgtool("fs ls -l -a top#2 etc");
    let theirs = |line: &str| {
        let mut command = lab.command("bash");
        let output = command
            .args(["-ec", line])
            .current_dir(&mounted.0)
            .env("LC_ALL", "C")
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let long = theirs("ls -lnA --time-style='+%Y-%m-%d %H:%M:%S' etc | tail -n +2");
    let words = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                line.replace('+', "")
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect()
    };
    assert_eq!(words(&ours), words(&long));
    let plain = lab.imgtool("fs ls -l top#2 many");
    assert_eq!(
        plain,
        theirs("ls -ln --time-style='+%Y-%m-%d %H:%M:%S' many | tail -n +2")
    );
    for (ours, line) in [
        (
            "fs ls top#2",
            r"ls -1b | sed 's/\\ / /g; s/\\377\\376/\\xff\\xfe/'",
        ),
        (
            "fs ls -a -R top#2 .hidden etc many",
            "ls -1A -R @/.hidden @/etc @/many",
        ),
        ("fs ls -R top#2 /etc/deep", "ls -1R @/etc/deep"),
        ("fs ls top#2 etc/link", "ls -1 etc/link/"),
        (
            "fs ls top#2 etc/one empty absolute",
            "ls -1d @/etc/one @/empty @/absolute | sort -r",
        ),
    ] {
        // Absolute paths are those of the filesystem.
        let root = mounted.0.to_str().unwrap();
        let theirs = theirs(&line.replace('@', root)).replace(root, "");
        if line.ends_with("sort -r") {
            let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            assert_eq!(sorted(&lab.imgtool(ours)), sorted(&theirs), "{ours}");
        } else {
            assert_eq!(lab.imgtool(ours), theirs, "{ours}");
        }
    }
    // And debugfs has the same names.
    let debugfs = lab.run_words(&["debugfs", "-R", "ls -p /etc", "root.ext4"]).ok();
    let names: BTreeSet<&str> = debugfs
        .lines()
        .filter_map(|line| line.split('/').nth(5))
        .filter(|name| !matches!(*name, "." | ".."))
        .collect();
    let ours = lab.imgtool("fs ls -a root.ext4 etc");
    assert_eq!(ours.lines().collect::<BTreeSet<_>>(), names);
    let stat = lab.imgtool("fs stat top#2 etc/one /char");
    for line in [
        "file: /etc/one",
        "mode: 4771 (-rwsrwx--x)",
        "owner: 12",
        "size: 4 B (4 bytes)",
        "xattr user.colour: \"blue\"",
        "type: character-device 5, 1",
    ] {
        assert!(stat.lines().any(|said| said == line), "{line}: {stat}");
    }
    assert!(
        lab.imgtool("fs stat top#2 dangling")
            .contains("leads to: nowhere\n")
    );
    assert!(lab.imgtool("fs stat -L top#2 absolute").contains("type: file\n"));
}

/// The paths of objects and of their contents, which must be below them.
fn flat(objects: &Value, found: &mut Vec<Vec<u8>>) {
    for object in objects.as_array().unwrap() {
        found.push(bytes(object, "path"));
        if object["type"] == "directory" {
            let before = found.len();
            flat(&object["contents"], found);
            let parent = bytes(object, "path");
            assert!(found[before..].iter().all(|path| path.starts_with(&parent)));
        }
    }
}

#[test]
fn trees_are_drawn() {
    let lab = Lab::new();
    fixture(&lab);
    change(
        &lab,
        "root.ext4",
        "rm -r lost+found many n* char* far holes socket fifo etc/device; chmod 700 etc/deep/er",
    );
    assert_eq!(
        lab.imgtool("fs tree root.ext4"),
        "/
├── absolute -> /etc/one
├── dangling -> nowhere
├── empty
├── etc
│   ├── big
│   ├── deep
│   │   └── er
│   │       └── again
│   ├── link -> deep
│   └── one
├── linked -> deep
└── \\xff\\xfe not UTF-8

3 directories, 9 files
"
    );
    assert_eq!(
        lab.imgtool("fs tree -L 1 root.ext4 etc /.hidden"),
        "/etc\n├── big\n├── deep\n├── link -> deep\n└── one\n/.hidden\n└── x\n\n1 directory, 4 files\n"
    );
    // In json it is all there is.
    let mut found = Vec::new();
    flat(
        &json(&lab, &["tree", "-a", "--output", "json", "top#2", "/"]),
        &mut found,
    );
    let listed = json(&lab, &["ls", "-a", "-R", "--output", "json", "top#2"]);
    let mut listed: Vec<Vec<u8>> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|object| bytes(object, "path"))
        .collect();
    listed.push(b"/".to_vec());
    found.sort();
    listed.sort();
    assert!(found == listed);
    let shallow = json(
        &lab,
        &["tree", "-L", "1", "--output", "json", "top#2", "etc", "empty"],
    );
    assert_eq!(shallow[0]["contents"].as_array().unwrap().len(), 5);
    assert!(shallow[0]["contents"][1].get("contents").is_none());
    assert_eq!(shallow[1]["type"], "file");
}

/// What is known about a copy is what is known about the original: all, or what is kept without -p.
fn assert_copied(copy: &Path, original: &Path, preserved: bool) {
    let (ours, theirs) = (tree(copy), tree(original));
    let names = |tree: &BTreeMap<Vec<u8>, fs::Metadata>| tree.keys().cloned().collect::<Vec<_>>();
    assert!(names(&ours) == names(&theirs), "{:?}", names(&ours));
    let mut numbers: BTreeMap<u64, u64> = BTreeMap::new();
    for (path, ours) in &ours {
        let theirs = &theirs[path];
        let path = Path::new(OsStr::from_bytes(path));
        let name = path.display();
        assert_eq!(ours.file_type(), theirs.file_type(), "{name}");
        // The same names stand for the same file.
        if !theirs.is_dir() {
            assert_eq!(
                *numbers.entry(theirs.ino()).or_insert(ours.ino()),
                ours.ino(),
                "{name}"
            );
            assert_eq!(ours.nlink(), theirs.nlink(), "{name}");
        }
        assert_eq!(ours.rdev(), theirs.rdev(), "{name}");
        let (copy, original) = (copy.join(path), original.join(path));
        if theirs.is_symlink() {
            assert_eq!(
                fs::read_link(&copy).unwrap(),
                fs::read_link(&original).unwrap(),
                "{name}"
            );
        } else if theirs.is_file() {
            assert_same_content(&copy, &original);
        }
        if preserved {
            let known = |file: &fs::Metadata| {
                let times = (file.atime(), file.atime_nsec(), file.mtime(), file.mtime_nsec());
                (file.mode(), file.uid(), file.gid(), times)
            };
            assert_eq!(known(ours), known(theirs), "{name}");
            assert_eq!(xattrs(&copy), xattrs(&original), "{name}");
        } else if !theirs.is_symlink() {
            assert_eq!(ours.mode() & 0o7777, theirs.mode() & 0o755, "{name}");
        }
    }
}

/// The same bytes, and holes where there were some.
fn assert_same_content(copy: &Path, original: &Path) {
    let name = copy.display();
    let [copy, original] = [copy, original].map(|path| File::open(path).unwrap());
    let len = original.metadata().unwrap().len();
    assert_eq!(copy.metadata().unwrap().len(), len, "{name}");
    let data = |file: &File| {
        let mut ranges = Vec::new();
        let mut at = 0;
        while let Ok(start) = rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Data(at)) {
            at = rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Hole(start)).unwrap();
            ranges.push((start, at));
        }
        ranges
    };
    let ranges = data(&original);
    let room = |ranges: &[(u64, u64)]| ranges.iter().map(|(start, end)| end - start).sum::<u64>();
    assert!(room(&data(&copy)) <= room(&ranges), "{name}: holes were filled");
    for (start, end) in ranges {
        let mut buffers = [vec![0; (end - start) as usize], vec![1; (end - start) as usize]];
        copy.read_exact_at(&mut buffers[0], start).unwrap();
        original.read_exact_at(&mut buffers[1], start).unwrap();
        assert!(buffers[0] == buffers[1], "{name} at {start}");
    }
}

#[test]
fn a_copy_is_what_was_copied() {
    let (lab, _mounted) = Lab::on("ext4", 300);
    fixture(&lab);
    let mounted = mount(&lab, "root.ext4", "ro,noatime");
    for image in IMAGES {
        let said = json(&lab, &["cp", "-r", "-p", "--output", "json", image, "/", "copy"]);
        assert_copied(&lab.path("copy"), &mounted.0, true);
        let count = |kept: fn(&fs::FileType) -> bool| {
            tree(&mounted.0)
                .values()
                .filter(|file| kept(&file.file_type()))
                .count() as u64
        };
        assert_eq!(said["directories"].as_u64(), Some(count(fs::FileType::is_dir)));
        let files = said["files"].as_u64().unwrap() + 1;
        assert_eq!(files, count(fs::FileType::is_file), "one has two names");
        assert_eq!(
            said["left-out"],
            serde_json::json!({"owners": 0, "xattrs": 0, "devices": 0})
        );
        lab.imgtool(&format!("fs cp -r {image} / plain"));
        assert_copied(&lab.path("plain"), &mounted.0, false);
        for name in ["copy", "plain"] {
            fs::remove_dir_all(lab.path(name)).unwrap();
        }
    }
    // Into a directory that is there: all together, so that links between what is named are kept too.
    fs::create_dir(lab.path("into")).unwrap();
    lab.imgtool("fs cp -r -p -q top#2 etc/big /etc/deep/ empty dangling into");
    let into = tree(&lab.path("into"));
    let names: Vec<&[u8]> = into.keys().map(Vec::as_slice).collect();
    assert_eq!(
        names,
        [
            &b""[..],
            b"big",
            b"dangling",
            b"deep",
            b"deep/er",
            b"deep/er/again",
            b"empty"
        ]
    );
    assert_eq!(into[&b"big"[..]].ino(), into[&b"deep/er/again"[..]].ino());
    assert_eq!(into[&b"deep/er"[..]].mode() & 0o7777, 0o500);
    // Without -r links are followed.
    lab.imgtool("fs cp top#2 absolute into/followed");
    assert_eq!(fs::read(lab.path("into/followed")).unwrap(), b"one\n");
    assert_eq!(
        lab.path("into/followed").metadata().unwrap().mode() & 0o7777,
        0o751
    );
}

#[test]
fn nothing_is_replaced_that_was_not_meant() {
    let lab = Lab::new();
    fixture(&lab);
    let outside = lab.path("outside");
    fs::write(&outside, "precious").unwrap();
    fs::create_dir(lab.path("dir")).unwrap();
    std::os::unix::fs::symlink("../outside", lab.path("dir/one")).unwrap();
    let before = lab.names();
    for (line, says) in [
        (
            "top#2 etc/one outside",
            &["outside", "exists already", "--force"][..],
        ),
        ("top#2 etc/one dir", &["dir/one", "exists already"]),
        ("-r top#2 etc outside", &["outside", "exists already"]),
        ("-r --force top#2 etc outside", &["outside", "not replaced"]),
        (
            "--force root.ext4 etc/one root.ext4",
            &["root.ext4", "image that is read from"],
        ),
        ("--force top#2 etc/one base", &["base", "image that is read from"]),
        ("top#2 etc new", &["top#2:/etc", "directory", "-r"]),
        ("top#2 fifo new", &["top#2:/fifo", "fifo", "-r"]),
        ("-r top#2 / dir", &["\"/\"", "no name"]),
        ("-r top#2 etc/.. dir", &["no name"]),
        ("top#2 empty etc/one new", &["new", "into a directory"]),
        ("top#2 empty none/new", &["none"]),
        ("top#2 empty new/", &["new", "no such directory"]),
        ("top#2 nothing new", &["top#2", "nothing", "no such file"]),
        ("-r top#2 empty /empty dir", &["empty"]),
    ] {
        lab.run(&format!("imgtool fs cp {line}")).fails(1, says);
        assert_eq!(lab.names(), before, "{line}");
    }
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
    assert_eq!(fs::read_dir(lab.path("dir")).unwrap().count(), 1);
    // A link that is in the way is replaced itself.
    lab.imgtool("fs cp --force top#2 etc/one dir");
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
    assert!(lab.path("dir/one").symlink_metadata().unwrap().is_file());
    lab.imgtool("fs cp --force top#2 etc/one outside");
    assert_eq!(fs::read(&outside).unwrap(), b"one\n");
}

/// Changes every entry of this name in a filesystem without checksums to one of the same length.
fn rename(lab: &Lab, image: &str, from: &[u8], to: &[u8]) {
    let mut bytes = fs::read(lab.path(image)).unwrap();
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(at, found)| *found == from && *at >= 2 && bytes[at - 2] as usize == from.len())
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    fs::write(lab.path(image), bytes).unwrap();
}

#[test]
fn a_hostile_tree_stays_where_it_is_put() {
    let lab = Lab::new();
    let outside = lab.path("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.display();
    for (script, from, to, says) in [
        // A link to elsewhere, and something to put there under the same name.
        (
            format!("ln -s {target} kkkkk; mkdir lllll; echo evil >lllll/evil"),
            &b"lllll"[..],
            &b"kkkkk"[..],
            "twice",
        ),
        (
            format!("ln -s {target}/evil kkkkk; echo evil >lllll"),
            b"lllll",
            b"kkkkk",
            "twice",
        ),
        (
            "mkdir lllll; echo evil >lllll/evil".into(),
            b"lllll",
            b"../ev",
            "slash or a NUL",
        ),
        (
            "mkdir lllll; echo evil >lllll/evil".into(),
            b"lllll",
            b"/tmp/",
            "slash or a NUL",
        ),
    ] {
        mke2fs(&lab, "hostile", "8M", "-t ext4 -O ^metadata_csum,^dir_index");
        change(&lab, "hostile", &script);
        rename(&lab, "hostile", from, to);
        let before = lab.names();
        lab.run("imgtool fs cp -r -p hostile / out").fails(1, &[says]);
        assert_eq!(lab.names(), before, "{script}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{script}");
    }
    // A second name .. is none: what it stands for is not reached.
    mke2fs(&lab, "hostile", "8M", "-t ext4 -O ^metadata_csum,^dir_index");
    change(&lab, "hostile", "mkdir a ww; echo evil >ww/evil");
    rename(&lab, "hostile", b"ww", b"..");
    lab.imgtool("fs cp -r -p hostile / out");
    let names: Vec<Vec<u8>> = tree(&lab.path("out")).into_keys().collect();
    assert_eq!(names, [&b""[..], b"a", b"lost+found"]);
    fs::remove_dir_all(lab.path("out")).unwrap();
    // Circles and directories with two names end.
    mke2fs(&lab, "hostile", "8M", "-t ext4 -O ^metadata_csum,^dir_index");
    change(&lab, "hostile", "mkdir -p a/b c");
    lab.run_words(&["debugfs", "-w", "-R", "link /a /a/b/again", "hostile"])
        .ok();
    let before = lab.names();
    for line in ["cp -r hostile / out", "ls -R hostile", "tree hostile"] {
        lab.run(&format!("imgtool fs {line}"))
            .fails(1, &["again", "two ways"]);
    }
    assert_eq!(lab.names(), before);
}

#[test]
fn a_tree_may_be_deeper_than_a_path_is_long() {
    let lab = Lab::new();
    mke2fs(&lab, "deep", "24M", "-t ext4 -N 4000");
    change(
        &lab,
        "deep",
        "python3 -c '\nimport os\nfor i in range(1500):\n os.mkdir(\"directory\"); os.chdir(\"directory\")\nopen(\"bottom\", \"w\").write(\"deep\")'",
    );
    lab.imgtool("fs cp -r -p deep / out");
    let found = lab
        .run_words(&[
            "bash",
            "-c",
            "find out -name directory | wc -l; find out -name bottom -execdir cat {} +",
        ])
        .ok();
    assert_eq!(found, "1500\ndeep");
    let drawn = lab.imgtool("fs tree deep");
    assert!(drawn.contains("└── bottom\n") && drawn.ends_with("\n1501 directories, 1 file\n"));
    lab.run("rm -r out").ok();
}

#[test]
fn a_copy_that_fails_or_is_killed_is_not_taken_for_one() {
    let lab = Lab::new();
    mke2fs(&lab, "big", "400M", "-t ext4");
    change(
        &lab,
        "big",
        "mkdir -p d/locked; echo x >d/locked/x; chmod 500 d/locked; for i in 1 2 3; do head -c 100M /dev/urandom >d/$i; done",
    );
    // No room.
    let (full, _mounted) = Lab::on("ext4", 100);
    let target = full.path("out");
    let target = target.to_str().unwrap();
    lab.run(&format!("imgtool fs cp -r -p big d {target}"))
        .fails(1, &["out/", "No space left"]);
    assert_eq!(full.names(), ["lost+found"]);
    // Interrupted, and killed.
    for (signal, leaves) in [("INT", 0), ("KILL", 1)] {
        let mut child = lab.command("imgtool");
        let mut child = child
            .args(["fs", "cp", "-r", "big", "/d", "out"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let unfinished = || {
            lab.names()
                .iter()
                .filter(|name| name.starts_with(".imgtool-unfinished-"))
                .count()
        };
        let start = Instant::now();
        while unfinished() == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        lab.run(&format!("kill -{signal} {}", child.id())).ok();
        let status = child.wait().unwrap();
        assert!(
            status.signal() == Some(9) || status.code() == Some(interrupted_by(signal)),
            "{status}"
        );
        assert!(!lab.path("out").exists());
        assert_eq!(unfinished(), leaves, "{signal}");
    }
    lab.imgtool("fs cp -r big d out");
    assert_eq!(tree(&lab.path("out")).len(), 6);
}

#[test]
fn what_a_user_may_not_do_is_left_out_and_told() {
    let lab = Lab::new();
    fixture(&lab);
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    // Where everybody reaches it.
    copy_program(&lab.path("program"));
    let as_nobody = |line: &str| {
        let user = "setpriv --reuid 54321 --regid 54321 --clear-groups ./program fs";
        lab.run(&format!("{user} {line}"))
    };
    let done = as_nobody("cp -r -p root.ext4 / out");
    assert_eq!(done.code(), 0, "{}", done.stderr());
    assert!(
        done.stderr()
            .starts_with("imgtool: not permitted, and left out: "),
        "{}",
        done.stderr()
    );
    assert!(
        done.stderr().contains(" owners, ") && done.stderr().ends_with(", 3 devices\n"),
        "{}",
        done.stderr()
    );
    let one = lab.path("out/etc/one").metadata().unwrap();
    assert_eq!(
        (one.uid(), one.mode() & 0o7777),
        (54321, 0o771),
        "set-user-ID is another user's"
    );
    assert_eq!(fs::read(lab.path("out/etc/big")).unwrap().len(), 3_000_000);
    assert_eq!(xattrs(&lab.path("out/etc/big"))[&b"user.bytes"[..]], [0, 255]);
    // Without rights to write to a directory, its owner may still be given a copy of it.
    assert_eq!(as_nobody("cp -r -p -q root.ext4 /etc/deep/er locked").code(), 0);
    assert_eq!(lab.path("locked").metadata().unwrap().mode() & 0o7777, 0o500);
    as_nobody("cp -r root.ext4 /etc out").fails(1, &["out/etc", "exists already"]);
}

#[test]
fn errors_say_what_to_do() {
    let lab = Lab::new();
    fixture(&lab);
    for (line, says) in [
        ("ls top", &["top", "no ext2, ext3 or ext4", "name top#2"][..]),
        ("ls top#1", &["top#1", "no ext2, ext3 or ext4"]),
        ("ls top#7", &["top", "7"]),
        ("cat top#2 etc", &["top#2:/etc", "directory", "fs ls"]),
        ("cat top#2 fifo", &["top#2:/fifo", "no content"]),
        ("cat top#2 none/at/all", &["top#2", "none", "no such file"]),
        ("stat top#2 etc/one/", &["etc/one", "no directory"]),
        ("ls top#2 dangling/", &["nowhere", "no such file"]),
        ("ls missing", &["missing", "No such file"]),
    ] {
        lab.run(&format!("imgtool fs {line}")).fails(1, says);
    }
    let help = lab.imgtool("fs cp --help");
    assert!(
        help.contains("imgtool fs cp -r -p disk.qcow2#2 /home/anna anna"),
        "{help}"
    );
}

#[test]
fn a_snapshot_is_read_too() {
    let lab = Lab::new();
    fixture(&lab);
    lab.qemu_img("convert -O qcow2 old.ext4 disk");
    lab.qemu_img("snapshot -c before disk");
    lab.imgtool("convert -n -f raw -O qcow2 root.ext4 disk");
    assert_eq!(lab.imgtool("fs cat --snapshot before disk old"), "old\n");
    lab.run("imgtool fs cat disk old").fails(1, &["old"]);
    assert_eq!(lab.imgtool("fs cat disk etc/one"), "one\n");
}
