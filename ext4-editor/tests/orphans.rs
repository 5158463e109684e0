//! Files that were removed while they were open, or whose end was being cut, when the machine stopped: finished as the kernel and
//! e2fsck finish them.
//!
//! Loop mounts need root.

mod common;

use std::process::Command;

use block::test_utils::{Recorder, seeds};
use common::{Image, NOW, disk, run, succeed, tree_of};
use ext4_editor::{Attributes, Editor, Options};

const KINDS: [&str; 6] = [
    "-t ext4 -O orphan_file",
    "-t ext4 -O ^orphan_file",
    "-t ext4 -O ^metadata_csum,^orphan_file -b 1024",
    "-t ext4 -O orphan_file,^metadata_csum -b 1024",
    "-t ext4 -O inline_data,orphan_file -b 1024",
    "made here",
];

/// Removes files and directories that are open, and copies the image as it is then.
const USE: &str = r#"
import os, subprocess, sys
held = []
os.mkdir("etc")
for number in range(30):
    f = open(f"file{number}", "wb"); f.write(bytes([number]) * (number * 3000)); f.flush(); held.append(f)
    os.setxattr(f"file{number}", "user.large", b"x" * 300)
os.link("file3", "etc/three")
f = open("holes", "wb"); held.append(f)
for number in range(200):
    f.seek(number * 16384); f.write(b"y")
os.symlink("/" + "long/" * 100, "link"); held.append(os.open("link", os.O_PATH | os.O_NOFOLLOW))
os.mkfifo("pipe"); held.append(os.open("pipe", os.O_RDWR))
os.mkdir("dir"); held.append(os.open("dir", os.O_RDONLY))
os.sync()
for number in range(2, 30):
    os.unlink(f"file{number}")
for name in ["holes", "link", "pipe"]:
    os.unlink(name)
os.rmdir("dir")
os.sync()
subprocess.run(["cp", "--sparse=always", sys.argv[1], sys.argv[2]], check=True)
"#;

fn crashed(kind: &str) -> Image {
    let image = Image::of_kind(16 << 20, kind);
    let copy = image.copy();
    let mounted = image.mount("rw");
    succeed(
        Command::new("python3")
            .args(["-c", USE])
            .args([&image.path, &copy.path])
            .current_dir(&mounted.0),
    );
    copy
}

/// What is free.
fn counts(image: &Image) -> Vec<String> {
    let header = succeed(Command::new("dumpe2fs").arg("-h").arg(&image.path));
    let lines = header.lines().filter(|line| line.starts_with("Free "));
    lines.map(str::to_owned).collect()
}

/// What e2fsck makes of it.
fn checked(image: &Image, kind: &str) -> Image {
    let copy = image.copy();
    let output = run(Command::new("e2fsck").arg("-fy").arg(&copy.path));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() < Some(4), "{kind}: {text}");
    assert!(text.contains("rphan"), "{kind}: {text}");
    copy
}

#[test]
fn files_that_were_removed_while_they_were_open_are_deleted_with_the_first_change() {
    for kind in KINDS {
        let image = crashed(kind);
        let by_kernel = image.copy().tree_mounted("rw,noatime");
        let by_e2fsck = checked(&image, kind);
        image.edit(|_| {});
        image.assert_clean(kind);
        assert_eq!(counts(&image), counts(&by_e2fsck), "{kind}");
        let tree = image.tree();
        assert!(tree == by_e2fsck.tree() && tree == by_kernel, "{kind}");
        assert_eq!(tree[&b"etc/three"[..]].content, [3; 9000], "{kind}");
        // The room is there for others.
        image.edit(|editor| {
            let bytes = vec![7; 300_000];
            editor.put(b"/new", &bytes, &Attributes::default()).unwrap();
        });
        image.assert_clean(kind);
    }
}

/// Has one file that is open, and removed, hold all the room that there is.
const FILL: &str = r#"
import os, subprocess, sys
f = open("large", "wb", buffering=0)
try:
    while True:
        f.write(b"x" * 65536)
except OSError:
    pass
os.fsync(f.fileno())
os.unlink("large")
os.sync()
subprocess.run(["cp", "--sparse=always", sys.argv[1], sys.argv[2]], check=True)
"#;

#[test]
fn a_disk_that_is_full_of_removed_files_has_their_room_for_the_first_change() {
    for kind in ["-t ext4 -O orphan_file", "-t ext4 -O ^orphan_file"] {
        let image = Image::of_kind(16 << 20, kind);
        let full = image.copy();
        let mounted = image.mount("rw");
        succeed(
            Command::new("python3")
                .args(["-c", FILL])
                .args([&image.path, &full.path])
                .current_dir(&mounted.0),
        );
        drop(mounted);
        let before = std::fs::read(&full.path).unwrap();
        drop(full.open());
        assert!(std::fs::read(&full.path).unwrap() == before, "{kind}");
        let bytes = vec![7; 4 << 20];
        full.edit(|editor| editor.put(b"/new", &bytes, &Attributes::default()).unwrap());
        full.assert_clean(kind);
        assert!(full.tree()[&b"new"[..]].content == bytes, "{kind}");
    }
}

#[test]
fn a_file_that_was_being_cut_ends_where_it_says_that_it_does() {
    for kind in ["-t ext4 -b 1024", "-t ext4 -O ^metadata_csum -b 4096"] {
        for (size, before) in [(5000, 60_000), (0, 60_000), (8192, 500_000), (60_000, 60_000)] {
            let when = format!("{kind}: {size} of {before}");
            let image = Image::of_kind(16 << 20, kind);
            image.change(&format!(
                "yes abcdefg | head -c {before} >file; echo other >other"
            ));
            let stat = image.debugfs("stat /file");
            let number = stat.split_whitespace().nth(1).unwrap();
            for request in [
                format!("sif <{number}> size {size}"),
                format!("sif <{number}> dtime 0"),
                format!("ssv last_orphan {number}"),
            ] {
                succeed(
                    Command::new("debugfs")
                        .args(["-w", "-R", &request])
                        .arg(&image.path),
                );
            }
            let by_e2fsck = checked(&image, &when);
            image.edit(|_| {});
            image.assert_clean(&when);
            assert_eq!(counts(&image), counts(&by_e2fsck), "{when}");
            let tree = image.tree();
            assert_eq!(tree[&b"file"[..]].content.len(), size, "{when}");
            assert!(
                tree[&b"file"[..]].content == by_e2fsck.tree()[&b"file"[..]].content,
                "{when}"
            );
            // What a file grows by reads as zeros.
            image.change("truncate -s 70000 file");
            let content = &image.tree()[&b"file"[..]].content;
            assert!(content[size..].iter().all(|byte| *byte == 0), "{when}");
            image.assert_clean(&when);
        }
    }
}

#[test]
fn a_power_cut_while_orphans_are_settled_leaves_them_or_not() {
    for kind in [
        "-t ext4 -O orphan_file -b 1024",
        "-t ext4 -O ^orphan_file -b 1024",
    ] {
        let image = crashed(kind);
        let expected = checked(&image, kind);
        let (tree, free) = (expected.tree(), counts(&expected));
        let recorder = Recorder::new();
        let storage = recorder.storage(image.in_memory());
        let mut editor = Editor::open(disk(storage), Options::new(NOW)).unwrap();
        editor.commit().unwrap();
        let states = recorder.crash_states();
        for point in states.points().step_by(9) {
            for seed in seeds(1) {
                let when = format!("{kind}, point {point}, seed {seed}");
                let crashed = states.at(point, seed).remove(0);
                let read = tree_of(&crashed).unwrap_or_else(|error| panic!("{when}: {error}"));
                assert_eq!(read.keys().count(), tree.keys().count(), "{when}");
                let image = Image::of(&crashed);
                let output = run(Command::new("e2fsck").arg("-fy").arg(&image.path));
                assert!(output.status.code() < Some(4), "{when}: {output:?}");
                image.assert_clean(&when);
                assert_eq!(counts(&image), free, "{when}");
                // And by the next change here.
                let again = Image::of(&crashed);
                again.edit(|_| {});
                again.assert_clean(&when);
                assert_eq!(counts(&again), free, "{when}");
            }
        }
    }
}

#[test]
fn lists_of_orphans_that_lead_astray_are_refused() {
    for (requests, problem) in [
        (&["ssv last_orphan 12"][..], "its bitmap says that it is free"),
        (&["ssv last_orphan 2"], "cannot be an orphan"),
        (&["ssv last_orphan 4000000000"], "cannot be an orphan"),
        (&["ssv last_orphan 13", "sif <13> dtime 13"], "in a circle"),
        (
            &["ssv last_orphan 13", "sif <13> dtime 14", "sif <14> dtime 13"],
            "in a circle",
        ),
    ] {
        let image = Image::new("8M", "-t ext4");
        image.change("touch a b c; rm a");
        for request in requests {
            succeed(
                Command::new("debugfs")
                    .args(["-w", "-R", request])
                    .arg(&image.path),
            );
        }
        let before = std::fs::read(&image.path).unwrap();
        let error = image.try_open().unwrap_err();
        assert!(error.to_string().contains(problem), "{requests:?}: {error}");
        assert!(error.hint().unwrap().contains("e2fsck"));
        assert!(std::fs::read(&image.path).unwrap() == before);
    }
}

#[test]
fn orphans_with_block_maps_are_refused_with_what_to_do() {
    let image = crashed("-t ext3 -b 1024");
    let before = std::fs::read(&image.path).unwrap();
    let error = image.try_open().unwrap_err();
    assert!(error.to_string().contains("orphans"), "{error}");
    assert!(error.hint().unwrap().contains("e2fsck"));
    assert!(std::fs::read(&image.path).unwrap() == before);
}
