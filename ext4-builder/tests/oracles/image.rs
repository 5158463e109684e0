//! A filesystem made here, and those who judge it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use block::{MemStorage, Storage};
use ext4_builder::{Builder, Options, Size};
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const UUID: [u8; 16] = *b"\x12\x34\x56\x78\x9a\xbc\xde\xf0\x0f\xed\xcb\xa9\x87\x65\x43\x21";

pub(crate) fn given(size: u64) -> Options {
    Options::new(Size::Given(size), UUID)
}

/// A filesystem in a sparse file, in a directory of its own.
pub(crate) struct Image {
    dir: TempDir,
    pub(crate) path: PathBuf,
}

impl Image {
    /// An empty one.
    pub(crate) fn new(options: &Options) -> Self {
        Self::built(options, |_, _| ())
    }

    /// One with a tree.
    pub(crate) fn built(options: &Options, build: impl FnOnce(&mut Builder<'_>, &MemStorage)) -> Self {
        let storage = MemStorage::new();
        let mut builder = Builder::new(&storage, options.clone()).expect("options");
        build(&mut builder, &storage);
        builder.finish().expect("finish");
        Self::of(&storage)
    }

    /// What is in memory.
    pub(crate) fn of(storage: &MemStorage) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        copy_sparse(storage, &File::create(&path).expect("create"));
        Self { dir, path }
    }

    /// What is in a file, which is copied.
    pub(crate) fn in_file(file: &Path) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        fs::copy(file, &path).expect("copy");
        Self { dir, path }
    }

    /// An empty one of a given size.
    pub(crate) fn of_size(size: u64) -> Self {
        Self::new(&given(size))
    }

    /// Fails unless e2fsck is content. Its exit code is not: it only prints some of what it finds.
    pub(crate) fn assert_clean(&self, when: &str) {
        let output = run(Command::new("e2fsck").arg("-fn").arg(&self.path));
        let text = String::from_utf8_lossy(&output.stdout);
        let findings: Vec<&str> = text.lines().filter(|line| !is_good_news(line)).collect();
        assert!(
            output.status.success() && findings.is_empty(),
            "{when}: {findings:#?}"
        );
    }

    /// What dumpe2fs says of a field of the superblock.
    pub(crate) fn field(&self, name: &str) -> String {
        let output = succeed(Command::new("dumpe2fs").arg("-h").arg(&self.path));
        let line = output
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name:?} in {output}"))
            .trim()
            .to_owned()
    }

    /// Runs a shell script with the filesystem mounted read-write at `$1`.
    pub(crate) fn mounted(&self, script: &str) -> String {
        let mount_point = self.dir.path().join("mnt");
        fs::create_dir_all(&mount_point).expect("mount point");
        let script =
            format!("set -e; mount -t ext4 -o loop \"$2\" \"$1\"; trap 'umount \"$1\"' EXIT; {script}");
        let root = run(Command::new("id").arg("-u")).stdout == b"0\n";
        let mut command = Command::new(if root { "sh" } else { "sudo" });
        if !root {
            command.args(["-n", "sh"]);
        }
        succeed(
            command
                .args(["-c", &script, "sh"])
                .arg(&mount_point)
                .arg(&self.path),
        )
    }
}

pub(crate) fn is_good_news(line: &str) -> bool {
    let summary = line.contains(" files (") && line.contains("% non-contiguous), ");
    line.is_empty() || line.starts_with("Pass ") || summary
}

pub(crate) fn copy_sparse(storage: &MemStorage, file: &File) {
    let len = storage.len().expect("len");
    file.set_len(len).expect("set_len");
    let mut offset = 0;
    while offset < len {
        let extent = storage.host_extent(offset, len - offset).expect("extent");
        if extent.data {
            let mut bytes = vec![0; extent.len as usize];
            storage.read_exact_at(&mut bytes, offset).expect("read");
            file.write_all_at(&bytes, offset).expect("write");
        }
        offset += extent.len;
    }
}

pub(crate) fn run(command: &mut Command) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").expect("PATH"));
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
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Zeroes the superblock in use and the first descriptors.
pub(crate) fn lose_primary_superblock(path: &Path) {
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(&[0; 8192], 0).expect("write");
}
