//! Filesystems made by mke2fs and filled by the kernel, and a comparison with what the kernel reads there.
//!
//! Loop mounts need root.

// Every test program uses some of it.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::{Access, MemStorage};
use ext4_reader::{Filesystem, Inode, LastLink, Time, Xattr};
use tempfile::TempDir;

/// The flag of an inode that holds its content itself.
const INLINE: u32 = 0x1000_0000;

/// A filesystem in a file.
pub(crate) struct Image {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
}

/// A mount, undone when it is dropped.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // A program that another thread is starting has this one's open files for a moment, and keeps the mount busy.
        let again =
            "for n in $(seq 100); do umount \"$0\" 2>/dev/null && exit; sleep 0.05; done; umount \"$0\"";
        run(Command::new("sh").args(["-c", again]).arg(&self.0));
    }
}

pub(crate) fn run(command: &mut Command) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = command.env("PATH", path).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| {
        panic!("{command:?}: {error} (scripts/setup.sh test installs what is missing)")
    });
    assert!(output.status.success(), "{command:?}: {output:#?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Image {
    /// A new filesystem with options of mke2fs.
    pub(crate) fn new(size: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let options: Vec<&str> = options.split_whitespace().collect();
        run(Command::new("mke2fs")
            .args(["-q", "-F"])
            .args(options)
            .arg(&path)
            .arg(size));
        Self { dir, path }
    }

    pub(crate) fn mount(&self, options: &str) -> Mounted {
        let point = self.dir.path().join("mnt");
        fs::create_dir_all(&point).unwrap();
        run(Command::new("mount")
            .args(["-o", &format!("loop,{options}")])
            .arg(&self.path)
            .arg(&point));
        Mounted(point)
    }

    /// Has the kernel replay the journal. Gives whether it would.
    pub(crate) fn recover(&self) -> bool {
        let point = self.dir.path().join("mnt");
        fs::create_dir_all(&point).unwrap();
        let mut mount = Command::new("mount");
        let done = mount
            .args(["-o", "loop"])
            .arg(&self.path)
            .arg(&point)
            .output()
            .unwrap()
            .status
            .success();
        if done {
            drop(Mounted(point));
        }
        done
    }

    /// The names in the root directory, as the kernel has them.
    pub(crate) fn names(&self) -> Vec<Vec<u8>> {
        let mounted = self.mount("ro");
        let entries = fs::read_dir(&mounted.0).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_vec())
            .collect();
        names.sort();
        names
    }

    /// Has a shell script change the mounted filesystem, its current directory.
    pub(crate) fn change(&self, script: &str) {
        let mounted = self.mount("rw");
        run(Command::new("bash").args(["-ec", script]).current_dir(&mounted.0));
    }

    pub(crate) fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::copy(&self.path, &path).unwrap();
        Self { dir, path }
    }

    pub(crate) fn open(&self) -> Filesystem {
        open(&self.path).unwrap()
    }
}

pub(crate) fn open(path: &Path) -> block::Result<Filesystem> {
    let storage = Arc::new(raw::OpenOptions::new().lock(false).open(path)?);
    Filesystem::open(Arc::new(raw::Image::open(storage, Access::READ)?))
}

pub(crate) fn open_bytes(bytes: Vec<u8>) -> block::Result<Filesystem> {
    let storage = Arc::new(MemStorage::from(bytes));
    Filesystem::open(Arc::new(raw::Image::open(storage, Access::READ)?))
}

/// The names in the root directory.
pub(crate) fn names(filesystem: &Filesystem) -> Vec<Vec<u8>> {
    let root = filesystem.resolve(b"/", LastLink::Follow).unwrap();
    let mut names: Vec<_> = filesystem
        .read_dir(&root)
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    names.sort();
    names
}

/// Every hard case of a tree that all of these filesystems can hold.
pub(crate) fn fill(image: &Image) {
    image.change(
        r#"
        umask 022
        mkdir -p d/deep/er many; chmod 1777 d/deep; chown 70000:80000 d/deep/er
        : >empty; printf x >one; head -c 100 /dev/urandom >hundred; head -c 1048577 /dev/urandom >d/big
        head -c 4096 /dev/urandom >block; chmod 6755 block; chown 12:34 one
        # Holes at the start, in the middle and at the end; far away; and room that was never written to.
        truncate -s 300000 holes; printf middle | dd of=holes bs=1 seek=100000 conv=notrunc status=none
        printf far | dd of=far bs=1 seek=60000000 conv=notrunc status=none
        (fallocate -l 200000 room || truncate -s 200000 room); printf in | dd of=room bs=1 seek=70000 conv=notrunc status=none
        printf short >kept; (fallocate -n -l 100000 kept || :)
        for i in $(seq 0 2 400); do dd if=/dev/urandom of=pieces bs=1024 count=1 seek=$i conv=notrunc status=none; done
        for n in 1 59 60 61 1000; do ln -s $(head -c $n /dev/zero | tr '\0' a) link$n; done
        ln -s d/deep down; ln -s /d/big d/absolute; ln d/big d/deep/hard; ln -s ../../.. d/deep/up; ln -s self self
        mkfifo fifo; mknod char c 5 1; mknod block_device b 8 300; mknod big_device b 259 70000
        touch -d '2024-02-29 12:34:56.123456789 UTC' one; touch -h -d '1969-01-01 UTC' link60; touch -d '2037-12-31 UTC' block
        seq -f 'a name that is a little longer than most, number %g' 2000 | (cd many; xargs -d '\n' touch)
        (cd many; seq 1 3 2000 | while read i; do rm "a name that is a little longer than most, number $i"; done)
        touch "$(head -c 255 /dev/zero | tr '\0' n)" $'\xff\xfe not UTF-8' $'new\nline'
        "#,
    );
    let mounted = image.mount("rw");
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(
            mounted.0.join(name),
            attribute,
            value,
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    };
    set("one", "user.a", b"value");
    set("one", "user.empty", b"");
    set("one", "trusted.root", &[0, 1, 2, 255]);
    set("d", "user.longer", &[7; 300]);
    set(
        "block",
        "security.capability",
        &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            acl.extend(id.to_le_bytes());
        }
        acl
    };
    let entries = [
        (1, 7, !0),
        (2, 4, 70000),
        (4, 5, !0),
        (8, 1, 3),
        (16, 5, !0),
        (32, 0, !0),
    ];
    set("one", "system.posix_acl_access", &acl(&entries));
    set("d", "system.posix_acl_default", &acl(&entries));
}

/// All that the kernel says of the tree that is mounted is what the reader says.
pub(crate) fn assert_same(image: &Image, filesystem: &Filesystem) -> usize {
    let mounted = image.mount("ro,noatime");
    let root = &mounted.0;
    let mut count = 0;
    let mut ahead = vec![PathBuf::new()];
    while let Some(path) = ahead.pop() {
        count += 1;
        let name = path.display();
        let inode = filesystem.resolve(path.as_os_str().as_bytes(), LastLink::Keep);
        let inode = inode.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_same_file(&root.join(&path), filesystem, &inode);
        if !root.join(&path).symlink_metadata().unwrap().is_dir() {
            continue;
        }
        let theirs = fs::read_dir(root.join(&path)).unwrap();
        let mut theirs: Vec<Vec<u8>> = theirs
            .map(|entry| entry.unwrap().file_name().into_vec())
            .collect();
        let ours = filesystem.read_dir(&inode).unwrap();
        let mut ours: Vec<Vec<u8>> = ours.into_iter().map(|entry| entry.name).collect();
        theirs.sort();
        ours.sort();
        assert!(ours == theirs, "{name}");
        ahead.extend(ours.iter().map(|name| path.join(OsStr::from_bytes(name))));
    }
    count
}

fn assert_same_file(path: &Path, filesystem: &Filesystem, inode: &Inode) {
    let name = path.display();
    let theirs = path.symlink_metadata().unwrap();
    let device = inode
        .device()
        .map_or(0, |(major, minor)| rustix::fs::makedev(major, minor));
    let time = |seconds, nanoseconds: i64| Time {
        seconds,
        nanoseconds: nanoseconds as u32,
    };
    assert_eq!(
        (
            inode.number().0.into(),
            u32::from(inode.mode()),
            inode.uid(),
            inode.gid(),
            u64::from(inode.links()),
            device
        ),
        (
            theirs.ino(),
            theirs.mode(),
            theirs.uid(),
            theirs.gid(),
            theirs.nlink(),
            theirs.rdev()
        ),
        "{name}"
    );
    assert_eq!(
        [inode.accessed(), inode.modified(), inode.changed()],
        [
            time(theirs.atime(), theirs.atime_nsec()),
            time(theirs.mtime(), theirs.mtime_nsec()),
            time(theirs.ctime(), theirs.ctime_nsec())
        ],
        "{name}"
    );
    if let Some(created) = inode.created() {
        let theirs = theirs
            .created()
            .unwrap()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        assert_eq!(
            created,
            time(theirs.as_secs().cast_signed(), theirs.subsec_nanos().into()),
            "{name}"
        );
    }
    // The kernel counts inline content as a block that there is not.
    if inode.flags() & INLINE == 0 {
        assert_eq!(inode.sectors(), theirs.blocks(), "{name}");
    }
    assert_eq!(filesystem.xattrs(inode).unwrap(), xattrs(path), "{name}");
    if theirs.is_symlink() {
        let target = fs::read_link(path).unwrap();
        assert_eq!(
            filesystem.read_link(inode).unwrap(),
            target.as_os_str().as_bytes(),
            "{name}"
        );
    } else if theirs.is_file() {
        assert_eq!(inode.size(), theirs.len(), "{name}");
        assert_same_content(&File::open(path).unwrap(), filesystem, inode);
    } else if theirs.is_dir() {
        assert_eq!(inode.size(), theirs.len(), "{name}");
    }
}

/// Bytes are the same, and nothing is said to be stored that the kernel says is a hole.
fn assert_same_content(file: &File, filesystem: &Filesystem, inode: &Inode) {
    let mut at = 0;
    let zeros = |from: u64, to: u64| {
        let mut bytes = vec![1; (to - from) as usize];
        file.read_exact_at(&mut bytes, from).unwrap();
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "data of inode {} at {from}",
            inode.number()
        );
    };
    for run in filesystem.content(inode).unwrap() {
        let run = run.unwrap();
        zeros(at, run.offset);
        let mut ours = vec![0; run.len as usize];
        filesystem.read_run(&run, 0, &mut ours).unwrap();
        let mut theirs = vec![0; run.len as usize];
        file.read_exact_at(&mut theirs, run.offset).unwrap();
        assert!(ours == theirs, "inode {} at {}", inode.number(), run.offset);
        at = run.offset + run.len;
    }
    zeros(at, inode.size().max(at));
}

fn xattrs(path: &Path) -> Vec<Xattr> {
    let mut names = vec![0u8; 1 << 17];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut found: Vec<Xattr> = names
        .map(|name| {
            let mut value = vec![0u8; 1 << 17];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            value.truncate(len);
            Xattr {
                name: name.to_vec(),
                value,
            }
        })
        .collect();
    found.sort();
    found
}
