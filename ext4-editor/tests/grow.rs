//! Filesystems that are grown, judged by e2fsck and the kernel, and beside resize2fs.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use block::{ErrorKind, MemStorage};
use common::{Image, run, succeed};
use ext4_builder::Size;
use ext4_editor::Attributes;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const FILL: &str =
    "mkdir d; head -c 3000000 /dev/urandom >d/file; for i in $(seq 200); do echo $i >d/$i; done";

fn set_len(image: &Image, len: u64) {
    File::options()
        .write(true)
        .open(&image.path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

fn grow(image: &Image, size: u64) {
    set_len(image, size);
    image.edit(|editor| editor.grow(size).unwrap());
}

/// What dumpe2fs says of the whole.
fn fields(image: &Image) -> BTreeMap<String, String> {
    let output = succeed(Command::new("dumpe2fs").arg("-h").arg(&image.path));
    let fields = output.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Grown as resize2fs does it, used by the kernel, and found again by its copies.
fn judge(image: &Image, size: u64, when: &str) {
    let theirs = image.copy();
    let before = image.tree();
    grow(image, size);
    image.assert_clean(when);
    assert!(image.tree() == before, "{when}");

    set_len(&theirs, size);
    succeed(Command::new("resize2fs").arg("-f").arg(&theirs.path));
    let (ours, theirs) = (fields(image), fields(&theirs));
    for field in [
        "Inode count",
        "Block count",
        "Reserved block count",
        "Free inodes",
        "Free blocks",
        "Reserved GDT blocks",
        "First block",
    ] {
        assert_eq!(ours.get(field), theirs.get(field), "{when}: {field}");
    }

    image.change(
        "cp -a d d2; mkdir spread; for i in $(seq 40); do mkdir spread/$i; echo $i >spread/$i/file; done",
    );
    image.assert_clean(&format!("{when}, after the kernel"));
    let free: u64 = fields(image)["Free blocks"].parse().unwrap();
    let block: u64 = fields(image)["Block size"].parse().unwrap();
    if size <= GIB {
        // To the end, so that every new group is used.
        image.change(&format!(
            "fallocate -l {} all || head -c {} /dev/zero >all",
            free * block * 8 / 10,
            free * block * 8 / 10
        ));
        image.assert_clean(&format!("{when}, filled"));
    }
    // All but the copies is lost.
    let copy = image.copy();
    let file = File::options().write(true).open(&copy.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 3072], 1024).unwrap();
    let (first, per_group) = (&ours["First block"], &ours["Blocks per group"]);
    let at: u64 = first.parse::<u64>().unwrap() + per_group.parse::<u64>().unwrap();
    let mut e2fsck = Command::new("e2fsck");
    e2fsck.args(["-fy", "-b", &at.to_string(), "-B", &block.to_string()]);
    let output = run(e2fsck.arg(&copy.path));
    assert!(output.status.code() < Some(4), "{when}: {output:?}");
    assert!(copy.tree().contains_key(&b"spread/40/file"[..]), "{when}");
}

#[test]
fn every_kind_becomes_what_resize2fs_makes_of_it() {
    for (kind, from, to) in [
        ("-t ext4 -b 4096", 64 * MIB, GIB),
        ("-t ext4 -O ^metadata_csum -b 4096", 150 * MIB, GIB + 12_345_678),
        ("-t ext4 -O ^metadata_csum,^uninit_bg", 200 * MIB, 700 * MIB),
        ("-t ext4 -O ^64bit -b 4096", 300 * MIB, 301 * MIB),
        ("-t ext4 -O ^flex_bg -b 4096", 128 * MIB, 900 * MIB),
        ("-t ext4 -b 1024", 20 * MIB, 500 * MIB),
        ("-t ext4 -b 2048 -I 512", 50 * MIB, 400 * MIB),
        ("-t ext4 -O ^resize_inode -b 4096", 100 * MIB, GIB),
        ("-t ext4 -O ^has_journal,^orphan_file", 100 * MIB, GIB),
        ("-t ext3 -b 4096", 130 * MIB, 600 * MIB),
        ("-t ext2 -b 1024", 30 * MIB, 100 * MIB),
        // In groups that are only begun, and more of them.
        ("-t ext4 -O meta_bg,^resize_inode -b 1024", 20 * MIB, 900 * MIB),
        ("-t ext4 -O meta_bg,^resize_inode -b 1024", 136 * MIB, 137 * MIB),
        (
            "-t ext4 -O meta_bg,^resize_inode,^metadata_csum,^uninit_bg -b 1024",
            120 * MIB,
            150 * MIB,
        ),
        ("-t ext4 -O meta_bg,^resize_inode,^64bit -b 4096", 100 * MIB, GIB),
    ] {
        let image = Image::new(&format!("{}K", from / 1024), kind);
        image.change(FILL);
        judge(&image, to, &format!("{kind}, {from} to {to}"));
    }
}

#[test]
fn what_is_made_here_is_grown_and_little_is_written() {
    let storage = MemStorage::new();
    ext4_builder::format(
        &storage,
        ext4_builder::Options::new(Size::Given(64 * MIB), [7; 16]),
    )
    .unwrap();
    let image = Image::of(&storage);
    image.change(FILL);
    judge(&image, 3 * GIB, "made here");

    for (options, limit) in [("-t ext4", 3 * MIB), ("-t ext4 -E resize=40G", MIB)] {
        let image = Image::new("2G", options);
        image.change(FILL);
        let before = fs::metadata(&image.path).unwrap().blocks() * 512;
        grow(&image, 20 * GIB);
        let written = fs::metadata(&image.path).unwrap().blocks() * 512 - before;
        assert!(written < limit, "{options}: {written}");
        image.assert_clean(options);
    }
}

#[test]
fn growth_goes_on_in_steps_past_the_reserve() {
    let image = Image::new("64M", "-t ext4 -b 1024 -E resize=1G");
    image.change(FILL);
    let reserve = 1024 * MIB;
    for (size, is_meta) in [
        (64 * MIB + 1024, false),
        (64 * MIB + 3_000_000, false),
        (128 * MIB, false),
        (200 * MIB, false),
        (900 * MIB, false),
        (reserve, false),
        (reserve + 200 * MIB, true),
        (3 * reserve, true),
    ] {
        set_len(&image, size);
        image.edit(|editor| {
            // In one change with others, before and after.
            let path = format!("/{size}");
            editor.put(path.as_bytes(), b"", &Attributes::default()).unwrap();
            editor.grow(size).unwrap();
            editor
                .put(path.as_bytes(), &vec![1; 300_000], &Attributes::default())
                .unwrap();
        });
        image.assert_clean(&format!("{size}"));
        let features = &fields(&image)["Filesystem features"];
        assert_eq!(features.contains("meta_bg"), is_meta, "{size}: {features}");
        assert_eq!(!features.contains("resize_inode"), is_meta, "{size}: {features}");
    }
    image.change("cp -a d d2; head -c 50000000 /dev/zero >much; sync; rm much");
    image.assert_clean("after the kernel");
    let mut editor = image.open();
    let error = editor.grow(4 * reserve).unwrap_err();
    assert!(error.to_string().contains("the disk has"), "{error}");
    let error = editor.grow(MIB).unwrap_err();
    assert!(error.to_string().contains("cannot be shrunk"), "{error}");
    editor.commit().unwrap();
    image.assert_clean("refused");
}

/// To more than a thousand times what it was made with.
#[test]
fn a_small_one_becomes_one_of_a_terabyte() {
    const SIZE: u64 = (1 << 40) + 123 * MIB;
    let image = Image::new("64M", "-t ext4 -b 4096");
    image.change(FILL);
    let before = image.tree();
    grow(&image, SIZE);
    image.assert_clean("grown");
    assert!(image.tree() == before);
    let fields = fields(&image);
    assert!(fields["Filesystem features"].contains("meta_bg"));
    let count: u64 = fields["Block count"].parse().unwrap();
    assert!(count * 4096 > SIZE - 128 * MIB, "{count}");
    let written = fs::metadata(&image.path).unwrap().blocks() * 512;
    assert!(written < 64 * MIB, "{written}");
    // The kernel goes on from there.
    image.change(
        "cp -a d d2; fallocate -l 200G far; for i in $(seq 40); do mkdir dir$i; echo $i >dir$i/file; done",
    );
    image.change("[ $(cat dir40/file) = 40 ]; [ $(stat -c %s far) = 214748364800 ]; cmp d/file d2/file");
}

#[test]
fn a_size_that_numbers_do_not_reach_is_refused_with_the_largest() {
    let image = Image::new("64M", "-t ext4 -b 1024 -O ^64bit");
    let largest = image.open().largest_size();
    assert!(largest <= u64::from(u32::MAX) * 1024);
    set_len(&image, largest + MIB);
    let mut editor = image.open();
    let error = editor.grow(largest + MIB).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains(&largest.to_string()), "{error}");
    editor.commit().unwrap();
    image.assert_clean("refused");
}
