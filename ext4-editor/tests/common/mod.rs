//! Filesystems of all makes, changes of them, and those who judge the result.
//!
//! Loop mounts need root.

// Every test program uses some of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use block::{Access, BlockDevice, MemStorage, Storage};
use ext4_builder::Time;
use ext4_editor::{Attributes, Editor, Options};
use ext4_reader::{FileKind, Filesystem, InodeNumber};
use tempfile::TempDir;

pub(crate) const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 123_456_789,
};

/// Kinds of filesystems, for [`Image::of_kind`].
pub(crate) const KINDS: [&str; 21] = [
    "made here",
    "made here inline small",
    "made here old",
    "-t ext4 -b 4096",
    "-t ext4 -O ^metadata_csum -b 4096",
    "-t ext4 -O ^metadata_csum,^uninit_bg",
    "-t ext4 -O ^metadata_csum,uninit_bg -b 4096",
    "-t ext4 -O ^64bit -b 4096",
    "-t ext4 -O ^64bit,^flex_bg,^resize_inode",
    "-t ext4 -O inline_data -b 4096",
    "-t ext4 -O inline_data -I 512 -b 1024",
    "-t ext4 -b 1024",
    "-t ext4 -b 2048 -O ^metadata_csum_seed,^orphan_file",
    "-t ext4 -b 1024 -O ^dir_index",
    "-t ext4 -I 128 -b 4096",
    "-t ext4 -O ^has_journal,^orphan_file -b 4096",
    "-t ext4 -O meta_bg,^resize_inode -b 1024",
    "-t ext4 -O ^filetype,large_dir -b 1024",
    "-t ext3 -b 1024",
    "-t ext2 -b 1024",
    "-t ext2 -I 128 -O ^dir_index,^ext_attr -b 4096",
];

/// A filesystem in a file, in a directory of its own.
pub(crate) struct Image {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
}

/// Where the image beside it is mounted, until it is dropped.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // A program that another thread is starting has this one's open files for a moment, and keeps the mount busy.
        let mut unmount = Command::new("umount");
        unmount.arg(&self.0);
        soon(|| run(&mut unmount).status.success(), "umount");
        // Whoever looks at a mount as it goes writes the rest of it, after umount has ended. The loop device goes last.
        let mut devices = Command::new("losetup");
        devices
            .args(["-n", "-O", "NAME", "-j"])
            .arg(self.0.with_file_name("image"));
        soon(|| run(&mut devices).stdout.is_empty(), "losetup");
    }
}

/// Waits until something is so.
fn soon(mut is_so: impl FnMut() -> bool, what: &str) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(std::thread::panicking(), "{what} takes more than five seconds");
}

pub(crate) fn run(command: &mut Command) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    command
        .env("PATH", path)
        .envs([("LC_ALL", "C"), ("TZ", "UTC")])
        .output()
        .unwrap_or_else(|error| {
            panic!("{command:?}: {error} (scripts/setup.sh test installs what is missing)")
        })
}

pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:#?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is said of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stat {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u64,
    /// Content of files, targets of links, numbers of devices.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) modified: (i64, i64),
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Stat>;

impl Image {
    /// A new filesystem with options of mke2fs.
    pub(crate) fn new(size: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        succeed(
            Command::new("mke2fs")
                .args(["-q", "-F"])
                .args(options.split_whitespace())
                .arg(&path)
                .arg(size),
        );
        Self { dir, path }
    }

    /// A filesystem of a kind: options of mke2fs, or `made here` with features.
    pub(crate) fn of_kind(size: u64, kind: &str) -> Self {
        let Some(features) = kind.strip_prefix("made here") else {
            return Self::new(&format!("{}K", size / 1024), kind);
        };
        let mut options = ext4_builder::Options::new(ext4_builder::Size::Given(size), [0x1F; 16]);
        for feature in features.split_whitespace() {
            match feature {
                "inline" => options.inline_data = true,
                "small" => options.block_size = 1024,
                "old" => options.compat = ext4_builder::Compat::Linux3_10,
                _ => panic!("{feature}"),
            }
        }
        let storage = MemStorage::new();
        ext4_builder::format(&storage, options).unwrap();
        Self::of(&storage)
    }

    pub(crate) fn of(storage: &MemStorage) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, storage.to_vec()).unwrap();
        Self { dir, path }
    }

    pub(crate) fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        succeed(
            Command::new("cp")
                .arg("--sparse=always")
                .args([&self.path, &path]),
        );
        Self { dir, path }
    }

    pub(crate) fn in_memory(&self) -> MemStorage {
        let storage = MemStorage::new();
        storage.write_all_at(&fs::read(&self.path).unwrap(), 0).unwrap();
        storage
    }

    pub(crate) fn mount(&self, options: &str) -> Mounted {
        let point = self.dir.path().join("mnt");
        fs::create_dir_all(&point).unwrap();
        succeed(
            Command::new("mount")
                .args(["-o", &format!("loop,{options}")])
                .arg(&self.path)
                .arg(&point),
        );
        Mounted(point)
    }

    /// Has a shell script change the mounted filesystem, its current directory.
    pub(crate) fn change(&self, script: &str) {
        let mounted = self.mount("rw");
        succeed(Command::new("bash").args(["-ec", script]).current_dir(&mounted.0));
    }

    pub(crate) fn open(&self) -> Editor {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&self) -> block::Result<Editor> {
        let storage = Arc::new(raw::OpenOptions::new().write(true).lock(false).open(&self.path)?);
        let disk = Arc::new(raw::Image::open(storage, Access::WRITE)?);
        Editor::open(disk, Options::new(NOW))
    }

    /// Makes a change and commits it.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut Editor)) {
        let mut editor = self.open();
        change(&mut editor);
        editor.commit().unwrap();
    }

    /// Fails unless e2fsck is content. Its exit code is not enough: it only prints some of what it finds.
    pub(crate) fn assert_clean(&self, when: &str) {
        let output = run(Command::new("e2fsck").arg("-fn").arg(&self.path));
        let text = String::from_utf8_lossy(&output.stdout);
        let findings: Vec<&str> = text.lines().filter(|line| !is_good_news(line)).collect();
        assert!(
            output.status.success() && findings.is_empty(),
            "{when}: {findings:#?}"
        );
    }

    pub(crate) fn debugfs(&self, request: &str) -> String {
        succeed(Command::new("debugfs").args(["-R", request]).arg(&self.path))
    }

    /// All that the kernel says of the tree.
    pub(crate) fn tree(&self) -> Tree {
        self.tree_mounted("ro,noatime")
    }

    pub(crate) fn tree_mounted(&self, options: &str) -> Tree {
        let mounted = self.mount(options);
        let mut tree = Tree::new();
        let mut ahead = vec![PathBuf::new()];
        while let Some(path) = ahead.pop() {
            let full = mounted.0.join(&path);
            let metadata = full.symlink_metadata().unwrap();
            let content = if metadata.is_dir() {
                let names = fs::read_dir(&full).unwrap();
                ahead.extend(names.map(|entry| path.join(entry.unwrap().file_name())));
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&full).unwrap().into_os_string().into_vec()
            } else if metadata.is_file() {
                fs::read(&full).unwrap()
            } else {
                metadata.rdev().to_le_bytes().to_vec()
            };
            let stat = Stat {
                mode: metadata.mode(),
                uid: metadata.uid(),
                gid: metadata.gid(),
                links: metadata.nlink(),
                content,
                xattrs: xattrs(&full),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            };
            tree.insert(path.as_os_str().as_bytes().to_vec(), stat);
        }
        tree
    }
}

pub(crate) fn is_good_news(line: &str) -> bool {
    let summary = line.contains(" files (") && line.contains("% non-contiguous), ");
    line.is_empty() || line.starts_with("Pass ") || summary
}

pub(crate) fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0u8; 1 << 17];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => return Vec::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let names = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut found: Vec<_> = names
        .map(|name| {
            let mut value = vec![0u8; 1 << 17];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect();
    found.sort();
    found
}

/// An access control list in the form of system calls.
pub(crate) fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

/// All that a filesystem's tree says, as this project reads it.
pub(crate) fn read_tree(filesystem: &Filesystem) -> block::Result<Tree> {
    let mut tree = Tree::new();
    let mut ahead = vec![(Vec::new(), InodeNumber::ROOT)];
    while let Some((path, number)) = ahead.pop() {
        let inode = filesystem.inode(number)?;
        let content = match inode.kind() {
            FileKind::Directory => {
                for entry in filesystem.read_dir(&inode)? {
                    let mut below: Vec<u8> = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend(entry.name);
                    ahead.push((below, entry.inode));
                }
                Vec::new()
            }
            FileKind::Symlink => filesystem.read_link(&inode)?,
            FileKind::Regular => {
                let mut bytes = Vec::new();
                filesystem
                    .reader(&inode)?
                    .read_to_end(&mut bytes)
                    .map_err(|error| block::Error::io("read", error))?;
                bytes
            }
            _ => format!("{:?}", inode.device()).into_bytes(),
        };
        let xattrs = filesystem.xattrs(&inode)?;
        let stat = Stat {
            mode: inode.mode().into(),
            uid: inode.uid(),
            gid: inode.gid(),
            links: inode.links().into(),
            content,
            xattrs: xattrs
                .into_iter()
                .map(|xattr| (xattr.name, xattr.value))
                .collect(),
            modified: (inode.modified().seconds, inode.modified().nanoseconds.into()),
        };
        assert!(tree.insert(path, stat).is_none());
    }
    Ok(tree)
}

/// The tree in a disk.
pub(crate) fn tree_of(storage: &MemStorage) -> block::Result<Tree> {
    read_tree(&Filesystem::open(disk(Arc::new(storage.clone())))?)
}

pub(crate) fn disk(storage: Arc<dyn Storage>) -> Arc<dyn BlockDevice> {
    Arc::new(raw::Image::open(storage, Access::WRITE).unwrap())
}

/// The form of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As mke2fs makes it: without features.
    Plain,
    /// With 16 bits of a checksum for each block, as kernels of 2012 made it.
    Checksum2,
    /// As the kernel likes it.
    Kernels,
}

/// A filesystem with some files, and its journal in a form.
pub(crate) fn with_journal(options: &str, form: Form) -> Image {
    let image = Image::of_kind(8 << 20, options);
    if form == Form::Kernels {
        image.change("mkdir -p etc home; echo old >etc/hostname; head -c 20000 /dev/urandom >home/data; ln -s data home/link");
        return image;
    }
    if form == Form::Checksum2 {
        let (zeros, script) = (image.dir.path().join("zeros"), image.dir.path().join("script"));
        fs::write(&zeros, [0; 1024]).unwrap();
        fs::write(
            &script,
            format!("jo -c -v 2\njw -b 7000 {}\njc\n", zeros.display()),
        )
        .unwrap();
        succeed(
            Command::new("debugfs")
                .arg("-w")
                .arg("-f")
                .args([&script, &image.path]),
        );
        succeed(Command::new("e2fsck").arg("-fy").arg(&image.path));
        let header = succeed(Command::new("dumpe2fs").arg("-h").arg(&image.path));
        assert!(header.contains("journal_checksum_v2"), "{header}");
    }
    image.edit(|editor| {
        editor.make_directory(b"/etc", &Attributes::default()).unwrap();
        editor
            .put(b"/etc/hostname", b"old\n", &Attributes::default())
            .unwrap();
        editor.make_directory(b"/home", &Attributes::default()).unwrap();
        editor
            .put(b"/home/data", &vec![5; 20_000], &Attributes::default())
            .unwrap();
    });
    image
}
