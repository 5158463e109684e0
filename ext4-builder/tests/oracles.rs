//! Filesystems made here, judged by the e2fsprogs tools and by the kernel.
//!
//! The kernel's judgement needs a loop mount, hence root, or sudo without a password.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use block::{MemStorage, Storage};
use ext4_builder::Parameters;
use proptest::prelude::*;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const UUID: [u8; 16] = *b"\x12\x34\x56\x78\x9a\xbc\xde\xf0\x0f\xed\xcb\xa9\x87\x65\x43\x21";

/// A filesystem in a sparse file, in a directory of its own.
struct Image {
    dir: TempDir,
    path: PathBuf,
}

impl Image {
    fn new(parameters: &Parameters) -> Self {
        let storage = MemStorage::new();
        ext4_builder::format(&storage, parameters).expect("format");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        copy_sparse(&storage, &File::create(&path).expect("create"));
        Self { dir, path }
    }

    fn of_size(size: u64) -> Self {
        Self::new(&Parameters::new(size, UUID))
    }

    /// Fails unless e2fsck is content. Its exit code is not: it only prints some of what it finds.
    fn assert_clean(&self, when: &str) {
        let output = run(Command::new("e2fsck").arg("-fn").arg(&self.path));
        let text = String::from_utf8_lossy(&output.stdout);
        let findings: Vec<&str> = text.lines().filter(|line| !is_good_news(line)).collect();
        assert!(
            output.status.success() && findings.is_empty(),
            "{when}: {findings:#?}"
        );
    }

    /// What dumpe2fs says of a field of the superblock.
    fn field(&self, name: &str) -> String {
        let output = succeed(Command::new("dumpe2fs").arg("-h").arg(&self.path));
        let line = output
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name:?} in {output}"))
            .trim()
            .to_owned()
    }

    /// Runs a shell script with the filesystem mounted read-write at `$1`.
    fn mounted(&self, script: &str) -> String {
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

fn is_good_news(line: &str) -> bool {
    let summary = line.contains(" files (") && line.contains("% non-contiguous), ");
    line.is_empty() || line.starts_with("Pass ") || summary
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

fn run(command: &mut Command) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").expect("PATH"));
    command
        .env("PATH", path)
        .envs([("LC_ALL", "C"), ("TZ", "UTC")])
        .output()
        .unwrap_or_else(|error| {
            panic!("{command:?}: {error} (scripts/setup.sh test installs what is missing)")
        })
}

fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:#?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Zeroes the superblock in use and the first descriptors.
fn lose_primary_superblock(path: &Path) {
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(&[0; 8192], 0).expect("write");
}

#[test]
fn e2fsck_finds_nothing_wrong_at_any_size() {
    let group = 128 * MIB;
    for size in [
        MIB,
        MIB + 4095,
        8 * MIB,
        group - 4096,
        group,
        group + 4096,
        group + MIB,
        2 * group,
        GIB + 77 * 4096,
        16 * GIB,
        100 * GIB,
    ] {
        Image::of_size(size).assert_clean(&format!("{size} bytes"));
    }
}

#[test]
fn e2fsck_finds_nothing_wrong_with_many_or_few_inodes() {
    for (size, bytes_per_inode) in [
        (8 * MIB, 1024),
        (300 * MIB, 4096),
        (GIB, u64::MAX),
        (3 * GIB, 1024),
    ] {
        let parameters = Parameters {
            bytes_per_inode,
            ..Parameters::new(size, UUID)
        };
        Image::new(&parameters).assert_clean(&format!("{size} bytes, an inode for {bytes_per_inode}"));
    }
}

#[test]
fn e2fsck_counts_no_more_files_than_there_are_on_a_terabyte() {
    let image = Image::of_size(1 << 40);
    image.assert_clean("1 TiB");
    assert_eq!(image.field("Block count"), (1u64 << 28).to_string());
    assert_eq!(image.field("Inode count"), (1u64 << 26).to_string());
}

#[test]
fn dumpe2fs_shows_what_was_asked_for() {
    let image = Image::new(&Parameters {
        label: "sixteen bytes ok".into(),
        time: 1_700_000_000,
        bytes_per_inode: 8192,
        reserved_percent: 2,
        hash_seed: [0xAB; 16],
        ..Parameters::new(512 * MIB, UUID)
    });
    image.assert_clean("with every parameter set");
    for (name, value) in [
        ("Filesystem volume name", "sixteen bytes ok"),
        ("Filesystem UUID", "12345678-9abc-def0-0fed-cba987654321"),
        ("Filesystem state", "clean"),
        ("Filesystem created", "Tue Nov 14 22:13:20 2023"),
        ("Block count", "131072"),
        ("Reserved block count", "2621"),
        ("Block size", "4096"),
        ("Inode count", "65536"),
        ("Inodes per group", "16384"),
        ("Free inodes", "65525"),
        ("Inode size", "256"),
        ("Group descriptor size", "64"),
        ("Directory Hash Seed", "abababab-abab-abab-abab-abababababab"),
        ("Checksum type", "crc32c"),
        (
            "Filesystem features",
            "ext_attr dir_index filetype extent 64bit sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
        ),
    ] {
        assert_eq!(image.field(name), value, "{name}");
    }
}

#[test]
fn the_kernel_writes_to_it_and_e2fsck_is_content_afterwards() {
    for size in [MIB, 200 * MIB, 16 * GIB] {
        let image = Image::of_size(size);
        let listing = image.mounted(
            "echo hello >\"$1/greeting\"; sync; cat \"$1/greeting\"; stat -c '%A %u:%g %h %Y' \"$1\" \"$1/lost+found\"",
        );
        let (greeting, directories) = listing.split_once('\n').expect("lines");
        assert_eq!(greeting, "hello");
        let [root, lost_and_found] = directories.lines().collect::<Vec<_>>()[..] else {
            panic!("{directories}")
        };
        assert!(root.starts_with("drwxr-xr-x 0:0 3 "), "{root}");
        assert_eq!(lost_and_found, "drwx------ 0:0 2 0");
        image.assert_clean(&format!("after the kernel wrote to {size} bytes"));
    }
}

#[test]
fn the_kernel_reads_times_past_2038() {
    for time in [1 << 31, 1 << 33, ext4_builder::MAX_TIME] {
        let image = Image::new(&Parameters {
            time,
            ..Parameters::new(8 * MIB, UUID)
        });
        let times = image.mounted("stat -c '%X %Y %Z %W' \"$1/lost+found\"");
        assert_eq!(times.trim(), [time.to_string().as_str(); 4].join(" "));
    }
}

#[test]
fn the_kernel_fills_and_empties_every_group() {
    // Groups whose bitmaps are implied get them now; a wrong count or checksum stops the kernel with an error.
    let image = Image::of_size(600 * MIB);
    let refused = image.mounted(
        "head -c 1G /dev/zero >\"$1/big\" 2>/dev/null || echo full; truncate -s 400M \"$1/big\"; mkdir \"$1/many\"; cd \"$1/many\"; \
         seq 20000 | xargs touch; cd /; rm \"$1/big\"; echo again >\"$1/small\"",
    );
    assert_eq!(refused, "full\n");
    image.assert_clean("after every block and many inodes were in use");
}

#[test]
fn statfs_counts_the_blocks_that_are_not_metadata() {
    let image = Image::of_size(GIB);
    let output = image.mounted("stat -f -c '%b %f' \"$1\"");
    let (blocks, free) = output.trim().split_once(' ').expect("two numbers");
    // All that is not metadata is free but for the two directories.
    assert_eq!(blocks.parse::<u64>().unwrap(), free.parse::<u64>().unwrap() + 5);
    assert_eq!(image.field("Free blocks"), free);
    // What the superblock says itself, which kernels may take over instead of counting.
    let overhead: u64 = image.field("Overhead clusters").parse().unwrap();
    assert_eq!(
        blocks.parse::<u64>().unwrap() + overhead,
        GIB / ext4_builder::BLOCK_SIZE
    );
}

#[test]
fn a_lost_superblock_is_recovered_from_its_copy() {
    let image = Image::of_size(GIB);
    lose_primary_superblock(&image.path);
    let output = run(Command::new("e2fsck")
        .args(["-fy", "-b", "32768", "-B", "4096"])
        .arg(&image.path));
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    image.assert_clean("recovered from the copy in group 1");
    assert_eq!(image.field("Inode count"), "65536");
}

#[test]
fn resize2fs_makes_it_larger_and_smaller() {
    let image = Image::of_size(200 * MIB);
    for size in ["1000M", "90M"] {
        succeed(Command::new("resize2fs").arg("-f").arg(&image.path).arg(size));
        image.assert_clean(size);
    }
}

#[test]
fn old_contents_of_the_disk_do_not_show_through() {
    let storage = MemStorage::new();
    let size = 300 * MIB;
    let ones = vec![0xFF; MIB as usize];
    for offset in (0..size).step_by(ones.len()) {
        storage.write_all_at(&ones, offset).expect("write");
    }
    ext4_builder::format(&storage, &Parameters::new(size, UUID)).expect("format");
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("disk");
    copy_sparse(&storage, &File::create(&path).expect("create"));
    let image = Image { dir, path };
    image.assert_clean("on a disk full of ones");
    image.mounted("cd \"$1\"; seq 5000 | xargs touch; cd /");
    image.assert_clean("after inodes were taken there");
}

#[test]
fn the_same_parameters_make_the_same_bytes() {
    let bytes = || {
        let storage = MemStorage::new();
        ext4_builder::format(&storage, &Parameters::new(4 * MIB, UUID)).expect("format");
        storage.to_vec()
    };
    assert_eq!(bytes(), bytes());
}

#[test]
fn parameters_that_cannot_be_are_refused_before_anything_is_written() {
    let good = Parameters::new(4 * MIB, UUID);
    for bad in [
        Parameters {
            size: MIB - 1,
            ..good.clone()
        },
        Parameters {
            size: u64::MAX,
            ..good.clone()
        },
        Parameters {
            label: "seventeen bytes..".into(),
            ..good.clone()
        },
        Parameters {
            label: "a\0b".into(),
            ..good.clone()
        },
        Parameters {
            time: ext4_builder::MAX_TIME + 1,
            ..good.clone()
        },
        Parameters {
            bytes_per_inode: 0,
            ..good.clone()
        },
        Parameters {
            reserved_percent: 51,
            ..good.clone()
        },
    ] {
        let storage = MemStorage::new();
        let error = ext4_builder::format(&storage, &bad).expect_err("refused");
        assert_eq!(error.kind(), block::ErrorKind::InvalidInput, "{error}");
        assert!(error.hint().is_some(), "{error}");
        assert_eq!(storage.len().expect("len"), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn e2fsck_is_content_with_any_size_and_number_of_inodes(
        size in prop_oneof![MIB..40 * MIB, 100 * MIB..3 * GIB],
        bytes_per_inode in 2048u64..200_000,
    ) {
        let parameters = Parameters { bytes_per_inode, ..Parameters::new(size, UUID) };
        Image::new(&parameters).assert_clean(&format!("{parameters:?}"));
    }
}
