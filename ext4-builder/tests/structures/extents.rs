//! Extent trees put in the place of the kernel's, for e2fsck, debugfs and the kernel to judge.

use crate::extent::{Extent, tree, tree_blocks};
use crate::image::Image;
use crate::inode::MAP_SIZE;

/// debugfs's list of leaf entries.
fn extents_of(image: &Image, number: u32) -> Vec<Extent> {
    let answer = image.debugfs(&format!("dump_extents -l <{number}>"));
    let mut extents = Vec::new();
    for line in answer.lines().skip(1) {
        let numbers: Vec<u64> = line
            .split(|byte: char| !byte.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect();
        extents.push(Extent {
            logical: numbers[4] as u32,
            physical: numbers[6],
            len: numbers[8] as u32,
            unwritten: line.contains("Uninit"),
        });
    }
    extents
}

/// The blocks of the tree itself.
fn nodes_of(image: &Image, number: u32) -> Vec<u64> {
    let answer = image.debugfs(&format!("stat <{number}>"));
    let (_, extents) = answer.split_once("EXTENTS:\n").expect("extents");
    extents
        .split("(ETB")
        .skip(1)
        .map(|node| {
            let (_, number) = node.split_once("):").expect("block");
            let number = number.split([',', '\n', ' ']).next().expect("number");
            number.parse().expect("number")
        })
        .collect()
}

/// Replaces a file's map, and its checksum.
fn replace_map(image: &Image, number: u32, map: &[u8; MAP_SIZE]) {
    let offset = image.inode_offset(number);
    image.write(offset + 0x28, map);
    let mut bytes = image.inode(number);
    let Some(seed) = image.seed() else { return };
    for field in [0x7C, 0x82] {
        bytes[field..field + 2].fill(0);
    }
    let generation = u32::from_le_bytes(bytes[0x64..0x68].try_into().expect("four bytes"));
    let (low, high) = seed.of_inode(number, generation).with(&bytes).halves();
    image.write(offset + 0x7C, &low.to_le_bytes());
    image.write(offset + 0x82, &high.to_le_bytes());
}

#[test]
fn the_kernel_writes_the_same_map_of_a_few_extents() {
    let image = Image::new("400M", "-b 4096 -I 256 -O ^metadata_csum_seed");
    image.mounted(
        "for n in 0 7 9; do dd if=/dev/urandom of=few bs=4096 seek=$n count=1 conv=notrunc status=none; sync; done; \
         fallocate -o 1M -l 64K few; fallocate -l 300M long",
    );
    for (name, unwritten) in [("/few", 1), ("/long", 3)] {
        let number = image.number_of(name);
        let extents = extents_of(&image, number);
        assert!(
            extents.iter().filter(|extent| extent.unwritten).count() >= unwritten,
            "{extents:?}"
        );
        let map = tree(&extents, 4096, None, |_| panic!("a block")).expect("tree");
        assert_eq!(map, image.inode(number)[0x28..0x28 + MAP_SIZE], "{extents:?}");
    }
}

#[test]
fn every_reader_follows_trees_of_any_depth() {
    for (block_size, features, extents, depth) in [
        (1024, "^metadata_csum_seed", 40_000, 3),
        (2048, "^metadata_csum_seed", 3_000, 2),
        (4096, "^metadata_csum_seed", 1_000, 1),
        (4096, "^metadata_csum_seed", 3_000, 2),
        (1024, "^metadata_csum", 1_000, 2),
        (4096, "^metadata_csum", 1_000, 1),
    ] {
        let when = format!("{extents} extents, {block_size}, {features}");
        let image = Image::new("256M", &format!("-b {block_size} -I 256 -O {features}"));
        // A file of which every other block is a hole. Blocks that are written one by one lie side by side all
        // the same, but can't be one extent. Each says which it is.
        let before = image.mounted(&format!(
            "python3 -c 'import os
file = os.open(\"file\", os.O_CREAT | os.O_WRONLY)
for n in range({extents}): os.pwrite(file, (b\"%d|\" % n) * 99, n * 2 * {block_size})
'; sync; md5sum file"
        ));
        let number = image.number_of("/file");
        let found = extents_of(&image, number);
        assert_eq!(found.len(), extents, "{when}");

        // Ours is no larger than the kernel's; it goes where that was.
        let mut nodes = nodes_of(&image, number).into_iter();
        let inode = image.inode(number);
        let generation = u32::from_le_bytes(inode[0x64..0x68].try_into().expect("four bytes"));
        let seed = image.seed().map(|seed| seed.of_inode(number, generation));
        let mut written = 0;
        let map = tree(&found, block_size, seed, |node| {
            let place = nodes.next().expect("a place");
            image.write_block(place, node);
            written += 1;
            Ok(place)
        })
        .expect("tree");
        assert_eq!(written, tree_blocks(extents, block_size), "{when}");
        assert_eq!(map[6], depth, "{when}");
        replace_map(&image, number, &map);
        assert_eq!(extents_of(&image, number), found, "{when}");

        // Give back what was not needed: the bitmap and the count of blocks are all that may differ.
        let left: Vec<u64> = nodes.collect();
        let sectors = u64::from(u32::from_le_bytes(
            inode[0x1C..0x20].try_into().expect("four bytes"),
        ));
        let less = sectors - left.len() as u64 * block_size as u64 / 512;
        image.debugfs_write(&format!("set_inode_field <{number}> blocks {less}"));
        for block in &left {
            image.debugfs_write(&format!("freeb {block}"));
        }
        image.assert_clean(&when);
        assert_eq!(image.mounted("md5sum file"), before, "{when}");
        // The kernel adds to full blocks.
        image.mounted(&format!(
            "for n in 1 401 801 1601; do dd if=/dev/zero of=file bs={block_size} seek=$n count=1 conv=notrunc status=none; done"
        ));
        image.assert_clean_after_kernel(&format!("{when}, changed by the kernel"));
    }
}
