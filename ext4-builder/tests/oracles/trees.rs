//! Filesystems with something in them.

use block::MemStorage;
use ext4_builder::{Builder, Compat, Free, Metadata, Node, Options, Size, Special, Time};

use crate::image::{Image, MIB, UUID};

/// Metadata that nothing else in the tree has.
fn metadata(seed: i64) -> Metadata {
    let time = |secs| Time {
        secs,
        nanos: 123_456_789,
    };
    Metadata {
        permissions: 0o640,
        uid: 100_000 + seed as u32,
        gid: 200_000 + seed as u32,
        accessed: time(-1000 - seed),
        changed: time(1_600_000_000 + seed),
        modified: time(5_000_000_000 + seed),
        created: time(15_032_385_000 - seed),
        ..Metadata::default()
    }
}

/// Puts a file that holds `data`, and nothing else.
fn put_file(
    builder: &mut Builder<'_>,
    storage: &MemStorage,
    parent: Node,
    name: &[u8],
    size: u64,
    data: &[(u64, &[u8])],
) -> Node {
    let ranges: Vec<_> = data
        .iter()
        .map(|&(offset, bytes)| offset..offset + bytes.len() as u64)
        .collect();
    let (node, placement) = builder
        .file(parent, name, &metadata(7), size, &ranges)
        .expect("file");
    for &(offset, bytes) in data {
        placement.write(storage, bytes, offset).expect("write");
    }
    node
}

/// Some of everything.
fn build_some(builder: &mut Builder<'_>, storage: &MemStorage) {
    let root = builder.root();
    let long = [b'n'; 255];
    let directory = builder
        .directory(root, b"directory", &metadata(1))
        .expect("directory");
    builder
        .directory(directory, &long, &metadata(2))
        .expect("directory");
    put_file(builder, storage, root, b"empty", 0, &[]);
    put_file(builder, storage, directory, b"small", 6, &[(0, b"hello\n")]);
    put_file(builder, storage, directory, b"hole", 100_000, &[]);
    let ends = vec![0x55; 5000];
    let holes = [(10_000, &ends[..]), (90_000, &ends[..]), (1_000_000, b"x")];
    put_file(builder, storage, directory, b"holes", 5_000_000, &holes);
    let linked = put_file(builder, storage, directory, b"linked", 5000, &[(0, &ends)]);
    builder.hard_link(root, b"link", linked).expect("link");
    for len in [1, 59, 60, 61, 1023] {
        let target = vec![b'a' + (len % 26) as u8; len];
        let name = format!("symlink{len}");
        builder
            .symlink(root, name.as_bytes(), &metadata(3), &target)
            .expect("symlink");
    }
    let symlink = builder.lookup(root, b"symlink60").expect("symlink");
    builder.hard_link(directory, b"also", symlink).expect("link");
    builder
        .special(root, b"fifo", &metadata(4), Special::Fifo)
        .expect("fifo");
    builder
        .special(root, b"socket", &metadata(4), Special::Socket)
        .expect("socket");
    for (name, major, minor) in [("tty", 4, 64), ("large", 4095, 1_048_575)] {
        let character = Special::CharacterDevice { major, minor };
        builder
            .special(root, name.as_bytes(), &metadata(5), character)
            .expect("device");
        let name = format!("b{name}");
        let block = Special::BlockDevice { major, minor };
        builder
            .special(root, name.as_bytes(), &metadata(5), block)
            .expect("device");
    }
    builder
        .special(root, b"\xff\xfe not UTF-8", &metadata(4), Special::Fifo)
        .expect("fifo");
    put_file(builder, storage, root, b"replaced", 50_000, &[(0, &[1; 50_000])]);
    builder.settle();
    put_file(builder, storage, root, b"replaced", 9, &[(0, b"the last\n")]);
    let gone = builder.directory(root, b"gone", &metadata(1)).expect("directory");
    put_file(builder, storage, gone, b"file", 70_000, &[(0, &[2; 70_000])]);
    builder
        .directory(gone, b"below", &metadata(1))
        .expect("directory");
    assert!(builder.remove(root, b"gone"));
    assert!(!builder.remove(root, b"gone"));
}

const LIST: &str = r#"mount -o remount,noatime "$1"; cd "$1"; find . -printf '%P %y %m %U:%G %s %n %T@ %A@ %C@ %l\n' | LC_ALL=C sort | sha256sum;
    cat directory/small replaced; cmp link directory/linked; stat -c '%t:%T' tty large blarge; cat directory/holes | sha256sum;
    stat -c '%b %W' directory/holes; stat -c %h directory; cd /"#;

/// Writes, renames and removes in every directory.
const CHURN: &str = r#"cd "$1"; find . -type d | while read -r d; do
    for n in 1 2 3 4 5 6 7 8 9; do echo "$n" >"$d/churn$n"; done; mkdir "$d/churn"; mv "$d/churn1" "$d/churn/moved"; rm "$d/churn2"; ln "$d/churn3" "$d/linked-churn"; done; sync; cd /"#;

#[test]
fn every_option_makes_what_the_kernel_goes_on_with() {
    let mut lists = Vec::new();
    for block_size in [1024, 2048, 4096] {
        for compat in [
            Compat::Linux3_10,
            Compat::Linux4_19,
            Compat::Linux5_15,
            Compat::Latest,
        ] {
            for size in [Size::Given(300 * MIB), Size::Fit(Free::Percent(20)), Size::Shrink] {
                let options = Options {
                    block_size,
                    compat,
                    ..Options::new(size, UUID)
                };
                let image = Image::built(&options, build_some);
                let what = format!("{block_size} {compat:?} {size:?}");
                image.assert_clean(&what);
                lists.push(image.mounted(LIST));
                image.assert_clean(&format!("{what} after mounting"));
                if size != Size::Shrink {
                    image.mounted(CHURN);
                    image.assert_clean(&format!("{what} after churn"));
                }
            }
        }
    }
    let with_directories_of = |index: usize| &lists[index * 12..][..12];
    for index in 0..3 {
        let lists = with_directories_of(index);
        assert!(lists.iter().all(|list| list == &lists[0]), "{lists:#?}");
    }
    let text = &lists[24];
    for expected in [
        "hello\nthe last\n4:40\nfff:fffff\nfff:fffff\n",
        "\n48 15032384993\n3\n",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
}
