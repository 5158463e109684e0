//! A filesystem made here, and those who judge it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use block::{MemStorage, Storage};
use fat_builder::{Builder, Options, Summary, Time};
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// An even second, which is what FAT can say.
pub(crate) const TIME: Time = Time { secs: 1_700_000_000 };

pub(crate) fn of_size(size: u64) -> Options {
    Options {
        time: TIME,
        ..Options::new(size, 0x1234_ABCD)
    }
}

/// A filesystem in a sparse file, in a directory of its own.
pub(crate) struct Image {
    dir: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) summary: Summary,
}

impl Image {
    /// One with a tree.
    pub(crate) fn built(options: &Options, build: impl FnOnce(&mut Builder<'_>)) -> Self {
        Self::on(&MemStorage::new(), options, build)
    }

    /// One on a storage that may hold something.
    pub(crate) fn on(storage: &MemStorage, options: &Options, build: impl FnOnce(&mut Builder<'_>)) -> Self {
        let mut builder = Builder::new(storage, options.clone()).expect("options");
        build(&mut builder);
        let summary = builder.finish().expect("finish");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        copy_sparse(storage, &File::create(&path).expect("create"));
        Self { dir, path, summary }
    }

    /// Fails unless fsck.fat is content, and has nothing to say but what it always says.
    pub(crate) fn assert_clean(&self, when: &str) {
        let output = run(Command::new("fsck.fat").args(["-n", "-v"]).arg(&self.path));
        let text = String::from_utf8_lossy(&output.stdout);
        let findings: Vec<&str> = text.lines().filter(|line| !is_good_news(line)).collect();
        assert!(
            output.status.success() && findings.is_empty(),
            "{when}: {findings:#?}\n{output:#?}"
        );
        let clusters = self.summary.clusters;
        assert!(text.contains(&format!("/{clusters} clusters")), "{when}: {text}");
    }

    /// What a tool of mtools prints, with the image as its disk.
    pub(crate) fn mtools(&self, tool: &str, arguments: &[&str]) -> String {
        succeed(Command::new(tool).arg("-i").arg(&self.path).args(arguments))
    }

    /// Runs a shell script of mtools, for which the filesystem is drive `x:`, in a directory of its own.
    pub(crate) fn script(&self, script: &str) -> String {
        let config = self.dir.path().join("mtoolsrc");
        fs::write(&config, format!("drive x: file=\"{}\"\n", self.path.display())).expect("configuration");
        let out = self.out();
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).expect("directory");
        let mut command = Command::new("sh");
        command
            .args(["-e", "-c", script])
            .env("MTOOLSRC", config)
            .current_dir(out);
        succeed(&mut command)
    }

    /// What mtools find in it, by path: a directory, or a file's bytes.
    pub(crate) fn contents(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        self.script("mcopy -s -n -m x: .");
        let mut contents = BTreeMap::new();
        let mut left = vec![self.out()];
        while let Some(path) = left.pop() {
            for entry in fs::read_dir(path).expect("list") {
                let path = entry.expect("list").path();
                let relative = path.strip_prefix(self.out()).expect("below");
                let relative = relative.to_str().expect("UTF-8").to_owned();
                let is_directory = path.is_dir();
                let bytes = (!is_directory).then(|| fs::read(&path).expect("read"));
                contents.insert(relative, bytes);
                if is_directory {
                    left.push(path);
                }
            }
        }
        contents
    }

    /// The directory to put things in.
    pub(crate) fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }
}

/// Lines that fsck.fat prints of a filesystem without fault: what it does, what the boot sector says, and a summary.
fn is_good_news(line: &str) -> bool {
    let says = [
        "fsck.fat ",
        "Checking ",
        "Boot sector contents:",
        "System ID ",
        "Media byte 0xf8 (hard disk)",
        "Starting check/repair pass.",
    ];
    let counts = [
        " bytes per logical sector",
        " bytes per cluster",
        " reserved sector",
        " reserved sectors",
        "First FAT starts at byte ",
        " FATs, 32 bit entries",
        " bytes per FAT (= ",
        "Root directory start at cluster 2 (arbitrary size)",
        "Data area starts at byte ",
        " data clusters (",
        " sectors/track, ",
        " hidden sectors",
        " sectors total",
        " clusters",
    ];
    says.iter().any(|says| line.starts_with(says))
        || counts.iter().any(|count| line.contains(count)) && !line.contains("ree cluster")
}

fn copy_sparse(storage: &MemStorage, file: &File) {
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
        .envs([("LC_ALL", "C.UTF-8"), ("TZ", "UTC")])
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

/// Puts a file that is all in memory.
pub(crate) fn put_file(builder: &mut Builder<'_>, parent: fat_builder::Node, name: &str, bytes: &[u8]) {
    builder
        .file(parent, name.as_bytes(), TIME, bytes.len() as u64, &mut &*bytes)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Bytes that nothing else has.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}
