//! The journal, the orphan file and the resize inode, as mke2fs makes them.

use crate::image::Image;
use crate::inode::{INODE_SIZE, Inode, MAP_SIZE};
use crate::journal::{self, JOURNAL_INODE};
use crate::orphan_file;
use crate::resize_inode::{RESIZE_INODE, Reserved};
use crate::time::Time;

const KINDS: [(usize, &str); 4] = [
    (1024, "^metadata_csum_seed"),
    (2048, "^metadata_csum_seed"),
    (4096, "^metadata_csum_seed"),
    (4096, "^metadata_csum,^64bit"),
];

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn map(inode: &[u8; INODE_SIZE]) -> [u8; MAP_SIZE] {
    inode[0x28..0x28 + MAP_SIZE].try_into().expect("a map")
}

fn file_size(image: &Image, number: u32) -> u64 {
    let inode = image.inode(number);
    u64::from(u32_at(&inode, 0x04)) | u64::from(u32_at(&inode, 0x6C)) << 32
}

#[test]
fn mke2fs_makes_the_same_journal() {
    for (block_size, features) in KINDS {
        let image = Image::new("300M", &format!("-b {block_size} -I 256 -O {features}"));
        let uuid = image.read(1024 + 0x68, 16).try_into().expect("UUID");
        let size = file_size(&image, JOURNAL_INODE);
        let blocks = journal::default_blocks(300 * (1 << 20) / block_size as u64).expect("a journal");
        assert_eq!(u64::from(blocks) * block_size as u64, size);
        let first = image.blocks_of(JOURNAL_INODE)[0];
        assert_eq!(
            journal::first_block(block_size, blocks, &uuid),
            image.block(first)
        );
        let map = map(&image.inode(JOURNAL_INODE));
        assert_eq!(
            journal::backup(&map, size)[..],
            image.read(1024 + 0x10C, journal::BACKUP_SIZE)
        );
        assert_eq!([journal::BACKUP_TYPE][..], image.read(1024 + 0xFD, 1));
    }
}

#[test]
fn mke2fs_makes_journals_and_orphan_files_of_the_same_sizes() {
    for blocks in [
        2048u64, 0x7FFF, 0x8000, 0x1_FFFF, 0x2_0000, 0x3_FFFF, 0x4_0000, 0x7_FFFF, 0x8_0000, 0x1F_FFFF,
        0x20_0000, 0x3F_FFFF, 0x40_0000, 0x7F_FFFF, 0x80_0000, 0xFF_FFFF, 0x100_0000, 0x1FF_FFFF, 0x200_0000,
    ] {
        let image = Image::new(
            &format!("{}k", blocks * 4),
            "-b 4096 -I 256 -O orphan_file,^resize_inode -i 1048576 -N 64 -E lazy_itable_init=1,lazy_journal_init=1",
        );
        let journal = file_size(&image, JOURNAL_INODE) / 4096;
        assert_eq!(
            journal::default_blocks(blocks).map(u64::from),
            Some(journal),
            "{blocks}"
        );
        let orphans = file_size(&image, u32_at(&image.read(1024 + 0x280, 4), 0)) / 4096;
        assert_eq!(
            u64::from(orphan_file::default_blocks(blocks)),
            orphans,
            "{blocks}"
        );
    }
    let image = Image::new("8188k", "-b 4096");
    assert_eq!(file_size(&image, JOURNAL_INODE), 0);
    assert_eq!(journal::default_blocks(2047), None);
}

#[test]
fn mke2fs_makes_the_same_orphan_file() {
    for (block_size, features) in KINDS {
        let image = Image::new(
            "100M",
            &format!("-b {block_size} -I 256 -O orphan_file,{features}"),
        );
        let number = u32_at(&image.read(1024 + 0x280, 4), 0);
        let seed = image.seed().map(|seed| seed.of_inode(number, 0));
        let blocks = image.blocks_of(number);
        assert_eq!(blocks.len(), 32);
        for place in blocks {
            let ours = orphan_file::block(block_size, place, &[], seed);
            assert_eq!(ours, image.block(place), "{block_size}, {features}");
        }
    }
}

#[test]
fn mke2fs_makes_the_same_resize_inode() {
    for (block_size, features, size) in [
        (1024, "^metadata_csum_seed", "300M"),
        (1024, "^metadata_csum,^64bit", "2G"),
        (2048, "^metadata_csum_seed", "2G"),
        (4096, "^metadata_csum_seed", "300M"),
        (4096, "^metadata_csum_seed", "20G"),
        (4096, "^metadata_csum_seed", "1200G"),
        (4096, "^metadata_csum,^64bit", "20G"),
    ] {
        let when = format!("{block_size}, {features}, {size}");
        let image = Image::new(size, &format!("-b {block_size} -I 256 -i 1048576 -O {features}"));
        let superblock = image.read(1024, 1024);
        let (blocks, first, per_group) = (
            u32_at(&superblock, 0x04),
            u32_at(&superblock, 0x14),
            u32_at(&superblock, 0x20),
        );
        let all = (blocks - first).div_ceil(per_group);
        let descriptor = if features.contains("^64bit") { 32 } else { 64 };
        let is_power =
            |group: u32, base: u32| (0..=20).any(|exponent| base.checked_pow(exponent) == Some(group));
        let groups: Vec<u64> = (0..all)
            .filter(|&group| group == 0 || [3, 5, 7].into_iter().any(|base| is_power(group, base)))
            .map(|group| u64::from(first) + u64::from(group) * u64::from(per_group))
            .collect();
        let reserved = Reserved {
            block_size,
            descriptors: (all * descriptor).div_ceil(block_size as u32),
            blocks: u32::from(u16::from_le_bytes([superblock[0xCE], superblock[0xCF]])),
            groups: &groups,
        };
        assert!(reserved.blocks > 0 && groups.len() > 1, "{when}");

        let found = image.inode(RESIZE_INODE);
        let place = u64::from(u32_at(&map(&found), 13 * 4));
        let time = Time {
            secs: i64::from(u32_at(&found, 0x08)),
            nanos: 0,
        };
        let inode = Inode {
            accessed: time,
            changed: time,
            modified: time,
            created: time,
            ..reserved.inode(place)
        };
        assert_eq!(inode.to_bytes(RESIZE_INODE, image.seed()), found, "{when}");
        assert_eq!(reserved.double_indirect(), image.block(place), "{when}");
        for (place, bytes) in reserved.indirect() {
            assert_eq!(bytes, image.block(place), "{when}, block {place}");
        }
        assert_eq!(reserved.indirect().count(), reserved.blocks as usize);
    }
}
