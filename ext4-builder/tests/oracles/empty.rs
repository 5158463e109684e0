//! Empty filesystems.

use std::process::Command;

use block::{MemStorage, Storage};
use ext4_builder::{Inodes, Journal, Options, Size, Time};
use proptest::prelude::*;

use crate::image::{GIB, Image, MIB, given, lose_primary_superblock, run, succeed};

fn seconds(secs: i64) -> Time {
    Time { secs, nanos: 0 }
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
        let options = Options {
            inodes: Inodes::BytesPerInode(bytes_per_inode),
            ..given(size)
        };
        Image::new(&options).assert_clean(&format!("{size} bytes, an inode for {bytes_per_inode}"));
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
    let image = Image::new(&Options {
        label: "sixteen bytes ok".into(),
        time: seconds(1_700_000_000),
        inodes: Inodes::BytesPerInode(8192),
        reserved_percent: 2,
        hash_seed: [0xAB; 16],
        ..given(512 * MIB)
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
        ("Free inodes", "65524"),
        ("Inode size", "256"),
        ("Group descriptor size", "64"),
        ("Directory Hash Seed", "abababab-abab-abab-abab-abababababab"),
        ("Checksum type", "crc32c"),
        ("Total journal size", "16M"),
        ("Journal features", "(none)"),
        (
            "Filesystem features",
            "has_journal ext_attr resize_inode dir_index orphan_file filetype extent 64bit flex_bg metadata_csum_seed sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
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
    for time in [1 << 31, 1 << 33, Time::MAX.secs] {
        let image = Image::new(&Options {
            time: seconds(time),
            ..given(8 * MIB)
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
    // All that is not metadata is free but for the two directories, the orphan file, and the resize inode's block.
    assert_eq!(
        blocks.parse::<u64>().unwrap(),
        free.parse::<u64>().unwrap() + 5 + 64 + 1
    );
    assert_eq!(image.field("Free blocks"), free);
    // What the superblock says itself, which kernels may take over instead of counting.
    let overhead: u64 = image.field("Overhead clusters").parse().unwrap();
    assert_eq!(blocks.parse::<u64>().unwrap() + overhead, GIB / 4096);
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
fn journals_are_as_large_as_is_asked_for() {
    for (block_size, blocks) in [(1024, 1024), (1024, 600_000), (4096, 200_000)] {
        let image = Image::new(&Options {
            block_size,
            journal: Journal::Bytes(blocks * u64::from(block_size)),
            ..given(GIB)
        });
        image.assert_clean("with a journal of its own size");
        assert_eq!(image.field("Total journal blocks"), blocks.to_string());
        image.mounted("cd \"$1\"; seq 1000 | xargs mkdir; sync; cd /");
        image.assert_clean("after the journal was in use");
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
    ext4_builder::format(&storage, given(size)).expect("format");
    let image = Image::of(&storage);
    image.assert_clean("on a disk full of ones");
    image.mounted("cd \"$1\"; seq 5000 | xargs touch; cd /");
    image.assert_clean("after inodes were taken there");
}

#[test]
fn the_same_parameters_make_the_same_bytes() {
    let bytes = || {
        let storage = MemStorage::new();
        ext4_builder::format(&storage, given(4 * MIB)).expect("format");
        storage.to_vec()
    };
    assert_eq!(bytes(), bytes());
}

#[test]
fn parameters_that_cannot_be_are_refused_before_anything_is_written() {
    let good = given(4 * MIB);
    for bad in [
        Options {
            size: Size::Given(8 << 10),
            ..good.clone()
        },
        Options {
            size: Size::Given(u64::MAX),
            ..good.clone()
        },
        Options {
            label: "seventeen bytes..".into(),
            ..good.clone()
        },
        Options {
            label: "a\0b".into(),
            ..good.clone()
        },
        Options {
            time: seconds(Time::MAX.secs + 1),
            ..good.clone()
        },
        Options {
            inodes: Inodes::BytesPerInode(0),
            ..good.clone()
        },
        Options {
            reserved_percent: 51,
            ..good.clone()
        },
    ] {
        let storage = MemStorage::new();
        let error = ext4_builder::format(&storage, bad).expect_err("refused");
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
        let options = Options { inodes: Inodes::BytesPerInode(bytes_per_inode), ..given(size) };
        Image::new(&options).assert_clean(&format!("{options:?}"));
    }
}
