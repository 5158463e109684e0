//! Extended attributes that the kernel wrote, encoded again.

use std::fmt::Write;

use crate::acl;
use crate::image::Image;
use crate::inode::{INODE_SIZE, MAP_SIZE, XATTR_ROOM};
use crate::xattr::{Plan, Xattr, value_hash, value_inode};

type Pair = (Vec<u8>, Vec<u8>);

fn pair(name: &str, value: impl Into<Vec<u8>>) -> Pair {
    (name.as_bytes().to_vec(), value.into())
}

/// A list in the form of system calls: owner, a user, group, a group, mask, others.
fn list() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 7u16, u32::MAX),
        (0x02, 6, 1000),
        (0x02, 4, 4_000_000_000),
        (0x04, 5, u32::MAX),
        (0x08, 1, 70_000),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Sets of attributes, each in the order of the disk, in which the kernel places them as ours does.
fn sets(block_size: usize) -> Vec<(&'static str, Vec<Pair>)> {
    let acl_access = std::str::from_utf8(acl::ACCESS).expect("UTF-8");
    let acl_default = std::str::from_utf8(acl::DEFAULT).expect("UTF-8");
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let many = (0..block_size / 40).map(|index| pair(&format!("user.{index:03}"), format!("value {index}")));
    let mut high = pair("user.high", "negative chars");
    high.0.extend(b"\xe9\xff\x80");
    vec![
        (
            "inode",
            vec![
                pair("user.b", "value"),
                pair("user.empty", ""),
                pair("trusted.a", "1234"),
            ],
        ),
        ("full", vec![pair("user.a", vec![b'v'; 68])]),
        ("block", vec![pair("user.a", vec![b'v'; 69])]),
        ("acl", vec![pair(acl_access, list())]),
        (
            "directory",
            vec![pair(acl_access, list()), pair(acl_default, list())],
        ),
        (
            "capability",
            vec![pair("security.capability", capability.to_vec())],
        ),
        ("high", vec![high, pair("trusted.large", vec![0xFE; 333])]),
        (
            "mixed",
            vec![
                pair("user.z", "in the inode"),
                pair("user.larger", vec![b'l'; 300]),
                pair(&format!("user.{}", "n".repeat(250)), ""),
                pair(acl_access, list()),
                pair("security.selinux", &b"system_u:object_r:etc_t:s0\0"[..]),
            ],
        ),
        ("many", many.collect()),
        // One block for both.
        ("shared1", vec![pair("user.s", vec![b's'; 500])]),
        ("shared2", vec![pair("user.s", vec![b's'; 500])]),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string");
        text
    })
}

/// Lets the kernel set attributes of new files.
fn set_all(image: &Image, sets: &[(&str, Vec<Pair>)]) {
    let mut script = "import os\nd = bytes.fromhex\n".to_owned();
    for (file, set) in sets {
        let make = if *file == "directory" {
            "os.mkdir"
        } else {
            "os.mknod"
        };
        writeln!(script, "{make}('{file}')").expect("a string");
        for (name, value) in set {
            writeln!(
                script,
                "os.setxattr('{file}', d('{}'), d('{}'))",
                hex(name),
                hex(value)
            )
            .expect("a string");
        }
    }
    let path = image.dir.path().join("script");
    std::fs::write(&path, script).expect("write");
    image.mounted(&format!("python3 {}", path.display()));
}

fn plan(set: &[Pair], block_size: usize, ea_inode: bool) -> Plan {
    let set = set
        .iter()
        .map(|(name, value)| Xattr::new(name, value).expect("a name").expect("some"));
    Plan::new(set.collect(), XATTR_ROOM, block_size, ea_inode).expect("a plan")
}

fn xattr_block(inode: &[u8; INODE_SIZE]) -> u64 {
    u64::from(u32::from_le_bytes(
        inode[0x68..0x6C].try_into().expect("four bytes"),
    ))
}

#[test]
fn the_kernel_writes_the_same_attributes() {
    for (block_size, features) in [
        (4096, "^metadata_csum_seed"),
        (2048, "^metadata_csum_seed"),
        (1024, "^metadata_csum_seed"),
        (1024, "^metadata_csum"),
    ] {
        let image = Image::new("32M", &format!("-b {block_size} -I 256 -O {features}"));
        let sets = sets(block_size);
        set_all(&image, &sets);
        image.assert_clean_after_kernel("with the kernel's attributes");
        let mut blocks = 0;
        for (file, set) in &sets {
            let when = format!("{file}, {block_size}, {features}");
            let inode = image.inode(image.number_of(&format!("/{file}")));
            let plan = plan(set, block_size, false);
            let mut room = [0; XATTR_ROOM];
            plan.put_inode(&mut room, &[]);
            // The kernel leaves an empty list of entries behind that it tried to use.
            let theirs = &inode[INODE_SIZE - XATTR_ROOM..];
            if room != [0; XATTR_ROOM] || theirs[4..].iter().any(|&byte| byte != 0) {
                assert_eq!(hex(&room), hex(theirs), "{when}");
            }
            let place = xattr_block(&inode);
            assert_eq!(plan.has_block(), place != 0, "{when}");
            if plan.has_block() {
                blocks += 1;
                let references = if file.starts_with("shared") { 2 } else { 1 };
                let ours = plan
                    .block(block_size, &[])
                    .to_bytes(place, references, image.seed());
                assert_eq!(hex(&ours), hex(&image.block(place)), "{when}");
            }
        }
        assert_eq!(blocks, 7, "{block_size}");
    }
}

#[test]
fn the_kernel_writes_the_same_inodes_of_large_values() {
    let image = Image::new("32M", "-b 4096 -I 256 -O ea_inode,^metadata_csum_seed");
    let seed = image.seed().expect("checksums");
    let large = vec![b'L'; 65_536];
    let larger_than_block: Vec<u8> = (0..5000u32).map(|byte| (byte * 7) as u8).collect();
    let set = vec![
        pair("user.a", "small"),
        pair("user.b", larger_than_block.clone()),
        pair("user.c", large.clone()),
        pair("user.d", vec![b'd'; 200]),
    ];
    let sets = [
        ("file", set.clone()),
        ("same", vec![pair("user.c", large.clone())]),
    ];
    set_all(&image, &sets);
    image.assert_clean_after_kernel("with the kernel's large values");

    let inode = image.inode(image.number_of("/file"));
    let theirs = &inode[INODE_SIZE - XATTR_ROOM..];
    let plan = plan(&set, 4096, true);
    assert_eq!(
        plan.large_values().collect::<Vec<_>>(),
        [&larger_than_block[..], &large[..]]
    );
    // The second entry and the third, after a header of 4 bytes and entries of 20 bytes each.
    let numbers =
        [24, 44].map(|entry| u32::from_le_bytes(theirs[entry + 4..entry + 8].try_into().expect("u32")));
    let values: Vec<_> = numbers
        .into_iter()
        .zip(plan.large_values().map(|value| value_hash(value, seed)))
        .collect();
    let mut room = [0; XATTR_ROOM];
    plan.put_inode(&mut room, &values);
    assert_eq!(hex(&room), hex(theirs));
    let place = xattr_block(&inode);
    let ours = plan.block(4096, &values).to_bytes(place, 1, Some(seed));
    assert_eq!(hex(&ours), hex(&image.block(place)));

    for (number, value, references) in [(numbers[0], &larger_than_block, 1), (numbers[1], &large, 2)] {
        let found = image.inode(number);
        let map: [u8; MAP_SIZE] = found[0x28..0x28 + MAP_SIZE].try_into().expect("a map");
        let sectors = value.len().next_multiple_of(4096) as u64 / 512;
        let mut inode = value_inode(value, references, seed, map, sectors);
        // Random; and the time of making, which nothing reads.
        inode.generation = u32::from_le_bytes(found[0x64..0x68].try_into().expect("four bytes"));
        let ours = inode.to_bytes(number, Some(seed));
        image.write(image.inode_offset(number), &ours);
    }
    image.assert_clean("with inodes of ours for the values");
    let hashes = image.mounted(
        "for f in file same; do python3 -c 'import hashlib, os, sys
print(hashlib.md5(os.getxattr(sys.argv[1], \"user.c\")).hexdigest())' $f; done; rm same; setfattr -x user.b file",
    );
    let lines: Vec<&str> = hashes.lines().collect();
    assert_eq!(lines[0], lines[1]);
    image.assert_clean_after_kernel("after the kernel counted references");
}

#[test]
fn attributes_of_ours_are_read_by_the_kernel() {
    // In an order that the kernel would not place them in, shared by as many as can be.
    let image = Image::new("32M", "-b 4096 -I 256 -N 2000 -O ^metadata_csum_seed");
    image.mounted(
        "for n in $(seq 1024); do touch f$n; setfattr -n user.s -v \"$(printf '%0500d' 7)\" f$n; done",
    );
    let inode = image.inode(image.number_of("/f1"));
    let place = xattr_block(&inode);
    assert_eq!(xattr_block(&image.inode(image.number_of("/f1024"))), place);
    let set = vec![
        pair("user.bb", vec![1; 700]),
        pair("trusted.x", vec![2; 900]),
        pair("user.c", vec![3; 600]),
    ];
    let block = plan(&set, 4096, false).block(4096, &[]);
    image.write_block(
        place,
        &block.to_bytes(place, crate::xattr::MAX_REFERENCES, image.seed()),
    );
    image.assert_clean("a block of ours, shared by 1024");
    let found = image.mounted(
        "getfattr -h --absolute-names -m - f1024 | grep -v '^#' | sort; setfattr -n user.new -v x f1; setfattr -n user.new -v x f2; \
         touch f; setfattr -x user.c f3; getfattr --only-values -n trusted.x f4 | wc -c",
    );
    let words: Vec<&str> = found.split_whitespace().collect();
    assert_eq!(words, ["trusted.x", "user.bb", "user.c", "900"]);
    image.assert_clean_after_kernel("after the kernel took copies of the block");
}
