//! Filesystems made by mke2fs, whose bytes can be read and replaced.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::checksum::Checksum;
use crate::inode::INODE_SIZE;
use tempfile::TempDir;

/// A filesystem in a sparse file, in a directory of its own.
pub(crate) struct Image {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
    file: File,
}

impl Image {
    /// Runs mke2fs with these arguments, parted by spaces.
    pub(crate) fn new(size: &str, arguments: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        let mut command = Command::new("mke2fs");
        command
            .args(["-q", "-t", "ext4"])
            .args(arguments.split_whitespace());
        succeed(command.arg(&path).arg(size));
        let file = File::options().read(true).write(true).open(&path).expect("open");
        Self { dir, path, file }
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).expect("read");
        bytes
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("write");
    }

    fn superblock_u32(&self, offset: u64) -> u32 {
        let bytes = self.read(1024 + offset, 4);
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    pub(crate) fn block_size(&self) -> usize {
        1024 << self.superblock_u32(0x18)
    }

    pub(crate) fn block(&self, number: u64) -> Vec<u8> {
        let size = self.block_size();
        self.read(number * size as u64, size)
    }

    pub(crate) fn write_block(&self, number: u64, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.block_size());
        self.write(number * bytes.len() as u64, bytes);
    }

    /// What checksums start from, where there are any.
    pub(crate) fn seed(&self) -> Option<Checksum> {
        let uuid = self.read(1024 + 0x68, 16).try_into().expect("UUID");
        // `metadata_csum`; these filesystems have no seed of their own, so that the UUID is it.
        let has_checksums = self.superblock_u32(0x64) & 0x400 != 0;
        assert_eq!(self.superblock_u32(0x60) & 0x2000, 0, "metadata_csum_seed");
        has_checksums.then(|| Checksum::of_filesystem(&uuid))
    }

    pub(crate) fn hash_seed(&self) -> [u8; 16] {
        self.read(1024 + 0xEC, 16).try_into().expect("16 bytes")
    }

    /// What debugfs answers.
    pub(crate) fn debugfs(&self, request: &str) -> String {
        self.debugfs_bytes(request, false)
    }

    /// Lets debugfs change something.
    pub(crate) fn debugfs_write(&self, request: &str) -> String {
        self.debugfs_bytes(request, true)
    }

    fn debugfs_bytes(&self, request: &str, write: bool) -> String {
        let mut command = Command::new("debugfs");
        command.args(write.then_some("-w")).args(["-R", request]);
        let output = run(command.arg(&self.path));
        // It announces itself there, and exits with 0 whatever happens.
        let errors = String::from_utf8_lossy(&output.stderr);
        // And of an index without checksums, the kernel's own included, it says that there is no room for them.
        let is_noise = |line: &str| {
            let no_room = line.contains("does not have space for checksum") && self.seed().is_none();
            line.is_empty() || line.starts_with("debugfs 1.") || no_room
        };
        let errors: Vec<&str> = errors.lines().filter(|line| !is_noise(line)).collect();
        assert!(errors.is_empty(), "{request}: {errors:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn number_of(&self, path: &str) -> u32 {
        let answer = self.debugfs(&format!("stat {path}"));
        let number = answer.strip_prefix("Inode: ").expect("stat");
        number
            .split_whitespace()
            .next()
            .expect("number")
            .parse()
            .expect("number")
    }

    /// Where an inode is.
    pub(crate) fn inode_offset(&self, number: u32) -> u64 {
        let answer = self.debugfs(&format!("imap <{number}>"));
        let (_, place) = answer.split_once("located at block ").expect("imap");
        let (block, offset) = place.trim().split_once(", offset 0x").expect("imap");
        let offset = u64::from_str_radix(offset, 16).expect("offset");
        block.parse::<u64>().expect("block") * self.block_size() as u64 + offset
    }

    pub(crate) fn inode(&self, number: u32) -> [u8; INODE_SIZE] {
        let bytes = self.read(self.inode_offset(number), INODE_SIZE);
        bytes.try_into().expect("inode")
    }

    /// All blocks of an inode's contents, in order, without those of its extent tree.
    pub(crate) fn blocks_of(&self, number: u32) -> Vec<u64> {
        let answer = self.debugfs(&format!("dump_extents -l <{number}>"));
        let mut blocks = Vec::new();
        for line in answer.lines().skip(1) {
            // Level/ of, entry/ of, logical first - last, physical first - last, length.
            let numbers: Vec<u64> = line
                .split(|byte: char| !byte.is_ascii_digit())
                .filter_map(|word| word.parse().ok())
                .collect();
            if numbers[0] == numbers[1] {
                blocks.extend(numbers[6]..=numbers[7]);
            }
        }
        blocks
    }

    /// Runs a shell script in the root of the filesystem, mounted read-write.
    pub(crate) fn mounted(&self, script: &str) -> String {
        let mount_point = self.dir.path().join("mnt");
        fs::create_dir_all(&mount_point).expect("mount point");
        let script = format!(
            "set -e; mount -t ext4 -o loop \"$2\" \"$1\"; trap 'umount \"$1\"' EXIT; ( cd \"$1\"; {script} )"
        );
        let root = run(Command::new("id").arg("-u")).stdout == b"0\n";
        let mut command = Command::new(if root { "bash" } else { "sudo" });
        if !root {
            command.args(["-n", "bash"]);
        }
        command.args(["-c", &script, "bash"]);
        succeed(command.arg(&mount_point).arg(&self.path))
    }

    /// Fails unless e2fsck is content. Its exit code is not: it only prints some of what it finds.
    pub(crate) fn assert_clean(&self, when: &str) {
        self.assert_no_findings(when, |_| false);
    }

    /// The same after the kernel wrote: how it splits extent trees is not always as tight as e2fsck would like.
    pub(crate) fn assert_clean_after_kernel(&self, when: &str) {
        self.assert_no_findings(when, |line| {
            line.contains(" extent tree (at level ") && line.contains("could be")
        });
    }

    fn assert_no_findings(&self, when: &str, is_allowed: impl Fn(&str) -> bool) {
        let output = run(Command::new("e2fsck").arg("-fn").arg(&self.path));
        let text = String::from_utf8_lossy(&output.stdout);
        let findings: Vec<&str> = text
            .lines()
            .filter(|line| !is_good_news(line) && !is_allowed(line))
            .collect();
        assert!(
            output.status.success() && findings.is_empty(),
            "{when}: {findings:#?}"
        );
    }
}

fn is_good_news(line: &str) -> bool {
    let summary = line.contains(" files (") && line.contains("% non-contiguous), ");
    line.is_empty() || line.starts_with("Pass ") || summary
}

pub(crate) fn run(command: &mut Command) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").expect("PATH"));
    command
        .env("PATH", path)
        .envs([("LC_ALL", "C"), ("TZ", "UTC"), ("DEBUGFS_PAGER", "__none__")])
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
