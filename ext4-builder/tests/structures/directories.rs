//! Directories put in the place of the kernel's, for e2fsck, debugfs and the kernel to judge.

use std::collections::HashMap;

use crate::directory::Entry;
use crate::hash::{HashVersion, NameHash};
use crate::htree::{Directory, Plan};
use crate::image::Image;
use crate::inode::FileType;

#[test]
fn debugfs_hashes_names_the_same() {
    let image = Image::new("8M", "-O ^metadata_csum_seed");
    let seeds = [
        "00000000-0000-0000-0000-000000000000",
        "01020304-a5b6-c7d8-e9fa-fbfcfdfeff00",
    ];
    for seed in seeds {
        let hex: String = seed.chars().filter(|&char| char != '-').collect();
        let bytes = u128::from_str_radix(&hex, 16).expect("hexadecimal").to_be_bytes();
        for (kind, version) in [
            ("legacy", HashVersion::Legacy),
            ("half_md4", HashVersion::HalfMd4),
            ("tea", HashVersion::Tea),
        ] {
            let hash = NameHash {
                version,
                signed: true,
                seed: bytes,
            };
            hashes_are_debugfs_own(&image, hash, kind, seed);
        }
    }
}

fn hashes_are_debugfs_own(image: &Image, ours: NameHash, kind: &str, seed: &str) {
    for len in [1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 96, 128, 200, 254, 255] {
        // Two bytes for each of some letters, which count as negative where bytes are signed.
        let letters = "The_quick,brown-fox+j\u{fc}mps".repeat(11);
        let name: String = letters.chars().take(len).collect();
        if name.len() > 255 {
            continue;
        }
        let answer = image.debugfs(&format!("dx_hash -h {kind} -s {seed} {name}"));
        let (_, hash) = answer.split_once(" is 0x").expect("a hash");
        let (hash, _) = hash.split_once(' ').expect("two hashes");
        let theirs = u32::from_str_radix(hash, 16).unwrap();
        assert_eq!(ours.of(name.as_bytes()), theirs, "{kind} of {name}");
    }
}

/// Names that are numbers, filled with zeros up to a length. Every other one has a byte that counts as negative.
fn numbers(count: u32, len: usize) -> Vec<Vec<u8>> {
    let name = |index: u32| {
        let mut name = vec![if index.is_multiple_of(2) { b'n' } else { 0xE9 }];
        name.extend(format!("{index:0width$}", width = len - 1).bytes());
        name
    };
    (0..count).map(name).collect()
}

const HASH_SEED: &str = "01020304-a5b6-c7d8-e9fa-fbfcfdfeff00";

fn hash_seed() -> [u8; 16] {
    let hex: String = HASH_SEED.chars().filter(|&char| char != '-').collect();
    u128::from_str_radix(&hex, 16).expect("hexadecimal").to_be_bytes()
}

/// Makes a directory of these names with the kernel, puts ours in its place, and has it judged. Returns debugfs's
/// dump of the index.
fn judge(block_size: usize, features: &str, names: &[Vec<u8>], when: &str) -> String {
    let arguments = format!("-b {block_size} -I 256 -N 300 -E hash_seed={HASH_SEED} -O {features}");
    let image = Image::new("512M", &arguments);
    assert_eq!(image.hash_seed(), hash_seed());
    // All names lead to a few inodes, whose links must stay below 65,000.
    let list = image.dir.path().join("names");
    std::fs::write(&list, names.join(&b"\n"[..])).expect("write");
    image.mounted(&format!(
        "mkdir d; python3 -c 'import os
for n, name in enumerate(open(\"{}\", \"rb\").read().split(b\"\\n\")):
    target = \"t%d\" % (n // 60000)
    if n % 60000 == 0: open(target, \"w\").close()
    os.link(target, b\"d/\" + name)'",
        list.display()
    ));
    let number = image.number_of("/d");
    let targets: Vec<u32> = (0..names.len().div_ceil(60_000))
        .map(|n| image.number_of(&format!("/t{n}")))
        .collect();
    let inode = image.inode(number);
    let generation = u32::from_le_bytes(inode[0x64..0x68].try_into().expect("four bytes"));
    let directory = Directory {
        number,
        parent: 2,
        inode: image.seed().map(|seed| seed.of_inode(number, generation)),
        block_size,
        hash: NameHash::half_md4(hash_seed()),
    };
    let entry = |index: u32| Entry {
        inode: targets[index as usize / 60_000],
        file_type: FileType::Regular,
        name: &names[index as usize],
    };
    let plan = Plan::new(directory, names.len() as u32, entry).expect("a plan");
    let places = image.blocks_of(number);
    let mut written = 0;
    plan.write(entry, |block| {
        image.write_block(places[written], block);
        written += 1;
        Ok(())
    })
    .expect("write");
    assert_eq!(written, plan.blocks() as usize);
    // Give back what ours does not need.
    if written < places.len() {
        image.debugfs_write(&format!("punch <{number}> {written} {}", places.len() - 1));
        let size = written * block_size;
        image.debugfs_write(&format!("set_inode_field <{number}> size {size}"));
    }
    image.assert_clean(when);
    let dump = if plan.is_indexed() {
        image.debugfs(&format!("htree_dump <{number}>"))
    } else {
        String::new()
    };

    // Every name is found by its hash, and listed; the kernel adds, renames and removes, where all is full.
    let found = image.mounted(
        "python3 -c 'import os
names = os.listdir(b\"d\"); assert len(set(names)) == len(names); print(len(names))
for n in names: os.stat(b\"d/\" + n)
for n in names[::7]: os.rename(b\"d/\" + n, b\"d/+\" + n[-200:])
for n in names[3::7]: os.unlink(b\"d/\" + n)
open(\"more\", \"w\").close()
for n in names[5::7]: os.link(b\"more\", b\"d/*\" + n[-200:])
'",
    );
    assert_eq!(found.trim(), names.len().to_string(), "{when}");
    image.assert_clean_after_kernel(&format!("{when}, changed by the kernel"));
    dump
}

#[test]
fn every_reader_finds_every_name_in_directories_of_any_size() {
    for (block_size, features, count, len, levels) in [
        (4096, "^metadata_csum_seed", 3, 10, None),
        (4096, "^metadata_csum_seed", 20_000, 12, Some(0)),
        (4096, "^metadata_csum_seed", 9_000, 255, Some(1)),
        (4096, "^metadata_csum", 9_000, 255, Some(1)),
        (2048, "^metadata_csum_seed", 30_000, 40, Some(1)),
        (1024, "^metadata_csum_seed", 3, 235, None),
        // One leaf: only with the dots it would be too large.
        (1024, "^metadata_csum", 84, 4, Some(0)),
        (1024, "^metadata_csum_seed", 5_000, 20, Some(1)),
        (1024, "^metadata_csum", 5_000, 20, Some(1)),
        (1024, "^metadata_csum_seed,large_dir", 47_000, 250, Some(2)),
    ] {
        let when = format!("{count} names of {len} bytes, {block_size}, {features}");
        let dump = judge(block_size, features, &numbers(count, len), &when);
        let said = levels.map_or(String::new(), |levels| format!("Indirect levels: {levels}"));
        assert!(dump.contains(&said), "{when}: {dump:.500}");
        assert_eq!(dump.is_empty(), levels.is_none(), "{when}");
    }
}

#[test]
fn names_of_one_hash_are_found_in_all_their_leaves() {
    // Five to a leaf, so that every other pair is torn.
    let mut by_hash = HashMap::<u32, Vec<Vec<u8>>>::new();
    for name in numbers(600_000, 192) {
        by_hash
            .entry(NameHash::half_md4(hash_seed()).of(&name))
            .or_default()
            .push(name);
    }
    let mut names: Vec<_> = by_hash
        .into_values()
        .filter(|names| names.len() > 1)
        .flatten()
        .collect();
    names.sort();
    assert!(names.len() > 100, "{}", names.len());
    let dump = judge(1024, "^metadata_csum_seed", &names, "names of one hash");
    // The entry's lowest bit.
    let continued = dump
        .lines()
        .filter_map(|line| line.strip_prefix("Entry #")?.split_once(": Hash 0x"))
        .filter(|(_, rest)| {
            u32::from_str_radix(rest.split([',', ' ']).next().expect("hash"), 16).expect("hash") & 1 == 1
        });
    assert!(continued.count() > 10, "{dump:.1000}");
}
