//! Filesystems with extended attributes and access control lists.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;

use block::MemStorage;
use ext4_builder::{Builder, Compat, Free, Metadata, Node, Options, Size, Special};

use crate::image::{Image, MIB, UUID, given, succeed};

type Set = Vec<(&'static str, Vec<u8>)>;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NO_ID: u32 = u32::MAX;

/// Python that prints every attribute below the root, one to a line.
const DUMP: &str = r"
import os, sys
os.chdir(sys.argv[1])
for where, directories, files in os.walk('.'):
    for path in [where] + [os.path.join(where, name) for name in files]:
        for name in os.listxattr(path, follow_symlinks=False):
            value = os.getxattr(path, name, follow_symlinks=False)
            print(path, name, value.hex())
        for name in [n for n in directories if os.path.islink(os.path.join(where, n))]:
            sys.exit('a symlink to a directory')
";

/// A list in the form of system calls.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// One that says more than permissions: 0670 they are.
fn full_list() -> Vec<u8> {
    list(&[
        (0x01, 6, NO_ID),
        (0x02, 6, 1000),
        (0x02, 4, 4_000_000_000),
        (0x04, 5, NO_ID),
        (0x08, 1, 70_000),
        (0x10, 7, NO_ID),
        (0x20, 0, NO_ID),
    ])
}

fn set(builder: &mut Builder<'_>, node: Node, xattrs: &[(&'static str, Vec<u8>)]) {
    let xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes(), &value[..]));
    builder.set_xattrs(node, xattrs).expect("attributes");
}

/// What the dump has to print of these.
fn lines(path: &str, xattrs: &[(&'static str, Vec<u8>)], into: &mut BTreeSet<String>) {
    for (name, value) in xattrs {
        let mut line = format!("{path} {name} ");
        for byte in value {
            write!(line, "{byte:02x}").expect("a string");
        }
        into.insert(line);
    }
}

fn dump(image: &Image) -> BTreeSet<String> {
    let script = image.path.with_extension("py");
    std::fs::write(&script, DUMP).expect("write");
    let output = image.mounted(&format!("python3 {} \"$1\"", script.display()));
    output.lines().map(str::to_owned).collect()
}

fn file(builder: &mut Builder<'_>, name: &str) -> Node {
    let metadata = Metadata {
        permissions: 0o4604,
        ..Metadata::default()
    };
    let (node, _) = builder
        .file(builder.root(), name.as_bytes(), &metadata, 0, &[])
        .expect("file");
    node
}

/// Sets that fit the inode, a block, or both; with values of the size of blocks where they can be in inodes.
fn sets(block_size: usize, ea_inode: bool) -> Vec<Set> {
    let capability = [&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat();
    let mut sets = vec![
        vec![("user.small", b"value".to_vec()), ("user.empty", Vec::new())],
        vec![("security.capability", capability)],
        vec![("security.selinux", b"system_u:object_r:etc_t:s0\0".to_vec())],
        vec![("user.block", vec![b'b'; block_size / 2])],
        vec![
            ("trusted.zz", vec![1; 200]),
            ("user.name", vec![2; 100]),
            ("user.n", vec![3; 99]),
            ("security.selinux", b"system_u:object_r:etc_t:s0\0".to_vec()),
            (ACCESS, full_list()),
        ],
    ];
    if ea_inode {
        sets.push(vec![("user.huge", vec![b'h'; 65_536])]);
        sets.push(vec![
            ("user.huge", vec![b'h'; 65_536]),
            ("user.odd", vec![b'o'; 5001]),
            ("trusted.half", vec![4; block_size / 2]),
            ("trusted.more", vec![5; block_size / 2]),
        ]);
    }
    sets
}

#[test]
fn everything_that_has_an_inode_has_its_attributes() {
    for block_size in [1024, 4096] {
        for compat in [Compat::Linux3_10, Compat::Linux4_19, Compat::Latest] {
            let options = Options {
                block_size,
                compat,
                ..Options::new(Size::Fit(Free::Bytes(MIB)), UUID)
            };
            let sets = sets(block_size as usize, compat > Compat::Linux3_10);
            let mut expected = BTreeSet::new();
            let image = Image::built(&options, |builder, _| {
                let root = builder.root();
                let metadata = Metadata::default();
                let other = [("trusted.other", vec![9; 300]), ("security.x", vec![7])];
                set(builder, root, &[(DEFAULT, full_list()), (ACCESS, full_list())]);
                lines(
                    ".",
                    &[(DEFAULT, full_list()), (ACCESS, full_list())],
                    &mut expected,
                );
                for (index, xattrs) in sets.iter().enumerate() {
                    let name = format!("file{index}");
                    let node = file(builder, &name);
                    set(builder, node, xattrs);
                    lines(&format!("./{name}"), xattrs, &mut expected);
                }
                let symlinks = [59, 60].map(|len| {
                    builder
                        .symlink(root, format!("link{len}").as_bytes(), &metadata, &vec![b't'; len])
                        .expect("symlink")
                });
                let fifo = builder
                    .special(root, b"fifo", &metadata, Special::Fifo)
                    .expect("fifo");
                let device = Special::CharacterDevice { major: 1, minor: 3 };
                let device = builder.special(root, b"null", &metadata, device).expect("device");
                for (node, path) in [symlinks[0], symlinks[1], fifo, device]
                    .into_iter()
                    .zip(["./link59", "./link60", "./fifo", "./null"])
                {
                    set(builder, node, &other);
                    lines(path, &other, &mut expected);
                }
            });
            let what = format!("{block_size} {compat:?}");
            image.assert_clean(&what);
            assert_eq!(dump(&image), expected, "{what}");
            let modes = image
                .mounted("stat -c %a \"$1\" \"$1/file0\" \"$1/file4\"; readlink \"$1/link59\" \"$1/link60\"");
            assert_eq!(
                modes,
                format!("670\n4604\n4670\n{}\n{}\n", "t".repeat(59), "t".repeat(60))
            );
            image.assert_clean(&format!("{what} after mounting"));
        }
    }
}

#[test]
fn debugfs_finds_attributes_in_inodes_blocks_and_inodes_of_their_own() {
    let sets = sets(4096, true);
    let image = Image::built(&given(20 * MIB), |builder, _| {
        for (index, xattrs) in sets.iter().enumerate() {
            let node = file(builder, &format!("file{index}"));
            set(builder, node, xattrs);
        }
    });
    for (index, xattrs) in sets.iter().enumerate() {
        for (name, value) in xattrs.iter().filter(|(name, _)| *name != ACCESS) {
            let to = image.path.with_extension("value");
            let request = format!("ea_get -f {} /file{index} {name}", to.display());
            succeed(Command::new("debugfs").args(["-R", &request]).arg(&image.path));
            let found = std::fs::read(&to).unwrap_or_else(|error| panic!("file{index} {name}: {error}"));
            assert!(found == *value, "file{index} {name}");
            std::fs::remove_file(to).expect("remove");
        }
    }
}

#[test]
fn equal_sets_share_blocks_and_equal_values_inodes() {
    let build = |with_blocks: bool| {
        Image::built(
            &Options::new(Size::Fit(Free::Bytes(4 * MIB)), UUID),
            |builder, _| {
                for index in 0..2500 {
                    let node = file(builder, &format!("file{index}"));
                    if with_blocks {
                        set(
                            builder,
                            node,
                            &[
                                ("user.shared", vec![1; 1000]),
                                ("user.large", vec![2; 60_000]),
                                ("trusted.z", vec![3; 1500]),
                                ("trusted.x", vec![5; 1700]),
                            ],
                        );
                    }
                }
                for index in 0..3 {
                    let node = file(builder, &format!("in-inode{index}"));
                    if with_blocks {
                        set(builder, node, &[("user.same", vec![2; 60_000])]);
                    }
                }
                // What no node has in the end takes nothing.
                let gone = file(builder, "gone");
                set(builder, gone, &[("user.gone", vec![9; 50_000])]);
                builder.remove(builder.root(), b"gone");
            },
        )
    };
    let free = |image: &Image| -> (u64, u64) {
        let number = |field| image.field(field).parse::<u64>().expect("number");
        (
            number("Block count") - number("Free blocks"),
            number("Inode count") - number("Free inodes"),
        )
    };
    let (without, with) = (build(false), build(true));
    with.assert_clean("with shared attributes");
    let ((blocks, inodes), (more_blocks, more_inodes)) = (free(&without), free(&with));
    // Three blocks for 2500 files, and two values in inodes, of 15 blocks and of one.
    assert_eq!((more_blocks - blocks, more_inodes - inodes), (3 + 15 + 1, 2));

    let output = with.mounted(
        "cd \"$1\"; setfattr -n user.own -v x file1; setfattr -x user.large file2; rm file3 in-inode0; \
         setfattr -n user.shared -v changed file2000; setfattr -x user.same in-inode1; \
         for n in $(seq 100 200); do rm file$n; done; sync; \
         getfattr --only-values -n user.large file1 | wc -c; getfattr --only-values -n user.same in-inode2 | wc -c; \
         getfattr --only-values -n user.shared file2000; cd /",
    );
    assert_eq!(output, "60000\n60000\nchanged");
    with.assert_clean("after the kernel took copies and counted references");
}

#[test]
fn lists_that_say_no_more_than_permissions_set_them_and_are_not_stored() {
    let image = Image::built(&given(20 * MIB), |builder, _| {
        let node = file(builder, "file");
        let minimal = list(&[(0x01, 7, NO_ID), (0x04, 1, NO_ID), (0x20, 2, NO_ID)]);
        set(builder, node, &[(ACCESS, minimal.clone())]);
        let directory = builder
            .directory(builder.root(), b"directory", &Metadata::default())
            .expect("directory");
        set(builder, directory, &[(ACCESS, list(&[])), (DEFAULT, minimal)]);
    });
    image.assert_clean("with minimal lists");
    let output = image
        .mounted("cd \"$1\"; stat -c %a file; umask 0; touch directory/new; stat -c %a directory/new; cd /");
    assert_eq!(output, "4712\n602\n");
    assert_eq!(
        dump(&image).len(),
        1,
        "only the directory's list for what is made in it"
    );
}

#[test]
fn attributes_that_cannot_be_are_refused() {
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, Options::new(Size::Shrink, UUID)).expect("options");
    let old = Options {
        compat: Compat::Linux3_10,
        ..Options::new(Size::Shrink, UUID)
    };
    let old_storage = MemStorage::new();
    let mut old = Builder::new(&old_storage, old).expect("options");
    let node = file(&mut builder, "file");
    let old_node = file(&mut old, "file");
    let link = builder
        .symlink(builder.root(), b"link", &Metadata::default(), b"target")
        .expect("symlink");
    let many = |count: usize| {
        let names: Vec<String> = (0..count).map(|index| format!("user.{index:0200}")).collect();
        names
    };
    let refused = |builder: &mut Builder<'_>, node: Node, name: &str, value: &[u8]| {
        let error = builder
            .set_xattrs(node, [(name.as_bytes(), value)])
            .expect_err(name);
        assert_eq!(error.kind(), block::ErrorKind::InvalidInput, "{error}");
        assert!(error.hint().is_some(), "{error}");
        error.to_string()
    };
    assert!(refused(&mut builder, link, ACCESS, &full_list()).contains("symlink"));
    assert!(refused(&mut builder, node, DEFAULT, &full_list()).contains("directories"));
    assert!(refused(&mut builder, node, ACCESS, b"\x02\0\0\0\x01").contains("cut off"));
    assert!(refused(&mut builder, node, "user.x", &vec![0; 65_537]).contains("too large"));
    assert!(refused(&mut builder, node, "btrfs.compression", b"zstd").contains("btrfs.compression"));
    assert!(refused(&mut old, old_node, "user.x", &[0; 5000]).contains("do not fit"));
    let names = many(20);
    let all = names.iter().map(|name| (name.as_bytes(), &b"v"[..]));
    builder
        .set_xattrs(node, all)
        .expect_err("more names than a block holds");
}
