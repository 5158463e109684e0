//! What `qemu-img` says where there is no room left, by our link and by QEMU's own program: in both directories, `small` is a file system of
//! 4 MiB.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::Command;

use crate::common::twins::Twins;

/// A file system in memory, gone with the test.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=4M", "none"];
        let done = Command::new("mount").args(mount).arg(&path).output().unwrap();
        assert!(done.status.success(), "mount: {done:?}");
        Self(path)
    }

    /// Leaves this many KiB.
    fn fill(&self, left: u64) {
        let mut file = File::create(self.0.join("fill")).unwrap();
        let mut len = 0;
        loop {
            match file.write(&[7; 4096]) {
                Ok(written) => len += written as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        file.set_len(len - (left << 10)).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Runs a line where so many KiB are left beside what a script has made.
fn without_room(made: &str, left: u64, line: &str) {
    let twins = Twins::new();
    let small = [twins.theirs(), twins.ours()].map(|directory| Small::new(directory.join("small")));
    twins.script(made);
    for small in &small {
        small.fill(left);
    }
    let outcome = twins.both(line);
    assert_eq!(outcome.code, Some(1), "{line}: {outcome:?}");
    assert!(
        outcome.err.contains("No space left on device"),
        "{line}: {outcome:?}"
    );
}

const IMAGE: &str = "0 create -q -f qcow2 small/a 1M";
const RAW: &str = "0 create -q -f raw small/r 64k";
const DATA: &str = "0 create -q -f raw r 1M
                    io r write -P 1 0 512k
                    0 create -q -f qcow2 small/t 1M";

#[test]
fn images_do_not_grow_without_room() {
    for (left, line) in [
        (0, "bitmap --add small/a b"),
        (0, "bitmap --add --disable small/a b"),
        (0, "amend -o refcount_bits=64 small/a"),
        (0, "amend -o size=20G small/a"),
        (0, "resize small/a 20G"),
        (0, "resize small/a 20T"),
        (0, "resize --preallocation=metadata small/a 20M"),
        (64, "resize --preallocation=falloc small/a 20M"),
        (64, "resize --preallocation=full small/a 20M"),
    ] {
        without_room(IMAGE, left, line);
    }
    for line in [
        "resize -f raw --preallocation=falloc small/r 20M",
        "resize -f raw --preallocation=full small/r 20M",
    ] {
        without_room(RAW, 0, line);
    }
}

#[test]
fn images_are_not_made_without_room() {
    for (left, line) in [
        (0, "create -f raw -o preallocation=falloc small/new 1M"),
        (0, "create -f raw -o preallocation=full small/new 1M"),
        (0, "create -f qcow2 small/new 1M"),
        (64, "create -f qcow2 small/new 1M"),
        (256, "create -f qcow2 -o preallocation=metadata small/new 1G"),
        (
            0,
            "create --object secret,id=s,data=x -f luks -o key-secret=s,iter-time=10 small/new 1M",
        ),
    ] {
        without_room("", left, line);
    }
}

#[test]
fn data_is_not_copied_without_room() {
    for (left, line) in [
        (0, "dd -f raw if=r of=small/new"),
        (64, "dd -f raw if=r of=small/new"),
        (64, "dd -f raw -O qcow2 if=r of=small/new"),
        (300, "dd -f raw -O qcow2 if=r of=small/new"),
        (0, "convert -f raw r small/new"),
        (64, "convert -f raw r small/new"),
        (64, "convert -f raw -O qcow2 r small/new"),
        (300, "convert -f raw -O qcow2 r small/new"),
        (64, "convert -n -f raw -O qcow2 r small/t"),
    ] {
        without_room(DATA, left, line);
    }
    let over = "0 create -q -f raw small/b 1M
                io small/b write -P 1 0 512k
                0 create -q -f qcow2 -b b -F raw small/a";
    without_room(over, 0, "rebase -b '' small/a");
    without_room(over, 64, "rebase -b '' small/a");
}
