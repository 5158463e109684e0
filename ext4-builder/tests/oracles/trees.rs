//! Filesystems with something in them.

use std::process::Command;

use block::MemStorage;
use ext4_builder::{Builder, Compat, Free, Metadata, Node, Options, Size, Special, Time};

use crate::image::{Image, MIB, UUID, given, lose_primary_superblock, run};

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
    put_file(
        builder,
        storage,
        root,
        b"replaced",
        50_000,
        &[(0, &vec![1; 50_000])],
    );
    builder.settle();
    put_file(builder, storage, root, b"replaced", 9, &[(0, b"the last\n")]);
    let gone = builder.directory(root, b"gone", &metadata(1)).expect("directory");
    put_file(builder, storage, gone, b"file", 70_000, &[(0, &vec![2; 70_000])]);
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
pub(crate) const CHURN: &str = r#"cd "$1"; find . -type d | while read -r d; do
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

#[test]
fn a_directory_of_100_000_entries_and_one_of_66_000_directories() {
    for block_size in [1024, 4096] {
        let options = Options {
            block_size,
            ..Options::new(Size::Fit(Free::Bytes(50 * MIB)), UUID)
        };
        let image = Image::built(&options, |builder, _| {
            let root = builder.root();
            let many = builder.directory(root, b"many", &metadata(1)).expect("directory");
            let directories = builder
                .directory(root, b"directories", &metadata(1))
                .expect("directory");
            for index in 0..100_000 {
                let name = format!("entry number {index} \u{e9}");
                builder
                    .special(many, name.as_bytes(), &metadata(2), Special::Fifo)
                    .expect("fifo");
            }
            for index in 0..66_000 {
                let name = format!("{index}");
                builder
                    .directory(directories, name.as_bytes(), &metadata(2))
                    .expect("directory");
            }
        });
        image.assert_clean("with large directories");
        let counts = image.mounted(
            "cd \"$1\"; ls -f many | wc -l; stat -c %h directories; test -p \"many/entry number 99999 é\"; test -d directories/65999; \
             for n in $(seq 3000); do echo \"$n\" >many/new$n; rm \"many/entry number $n é\"; mkdir directories/new$n; rmdir directories/$n; done; sync; cd /",
        );
        assert_eq!(counts, "100002\n1\n");
        image.assert_clean("after the kernel changed large directories");
    }
}

#[test]
fn a_file_of_70_000_pieces_and_one_as_long_as_can_be() {
    let options = Options::new(Size::Fit(Free::Bytes(20 * MIB)), UUID);
    let longest = u64::from(u32::MAX) * 4096;
    let image = Image::built(&options, |builder, storage| {
        let root = builder.root();
        let data: Vec<(u64, &[u8])> = (0..70_000)
            .map(|piece| (piece * 8192, &[0x77; 100][..]))
            .collect();
        put_file(builder, storage, root, b"pieces", 70_000 * 8192 - 4000, &data);
        put_file(
            builder,
            storage,
            root,
            b"long",
            longest,
            &[(0, b"first"), (longest - 4, b"last")],
        );
        let error = builder
            .file(root, b"longer", &metadata(1), longest + 1, &[])
            .expect_err("too long");
        assert!(error.to_string().contains("17592186040320"), "{error}");
    });
    image.assert_clean("with many extents");
    let output = image.mounted(
        "cd \"$1\"; stat -c '%s %b' pieces long; tail -c 4 long; head -c 5 long; tr -d '\\0' <pieces | tr -d w | wc -c; tr -d '\\0' <pieces | wc -c; cd /",
    );
    assert_eq!(
        output,
        format!("573436000 561656\n{longest} 16\nlastfirst0\n7000000\n")
    );
    image.assert_clean("after reading");
}

#[test]
fn the_last_of_equal_names_wins_and_takes_no_room_twice() {
    let image = Image::built(&Options::new(Size::Shrink, UUID), |builder, storage| {
        let root = builder.root();
        let body = vec![7; MIB as usize];
        for _ in 0..50 {
            put_file(builder, storage, root, b"file", MIB, &[(0, &body)]);
            builder.settle();
        }
        let again = builder
            .directory(root, b"lost+found", &metadata(1))
            .expect("directory");
        put_file(builder, storage, again, b"#12", 3, &[(0, b"abc")]);
        builder
            .symlink(root, b"name", &metadata(1), b"target")
            .expect("symlink");
        builder.directory(root, b"name", &metadata(1)).expect("directory");
        let file = builder.lookup(root, b"file").expect("file");
        builder.hard_link(root, b"file", file).expect("the same name");
        builder
            .special(root, b"lost+found", &metadata(1), Special::Fifo)
            .expect_err("lost+found");
        builder.hard_link(root, b"link", again).expect_err("a directory");
    });
    image.assert_clean("with replaced files");
    let blocks: u64 = image.field("Block count").parse().expect("number");
    assert!(blocks * 4096 < 4 * MIB, "{blocks} blocks");
    assert_eq!(
        image.mounted(
            "cd \"$1\"; stat -c '%F %h %s' name file; ls lost+found; stat -c '%a %u' lost+found; cd /"
        ),
        "directory 2 4096\nregular file 1 1048576\n#12\n640 100001\n"
    );
}

#[test]
fn a_tree_is_recovered_from_a_copy_of_the_superblock() {
    for (block_size, copy) in [(1024, 8193), (2048, 16384), (4096, 32768)] {
        let options = Options {
            block_size,
            ..given(300 * MIB)
        };
        let image = Image::built(&options, build_some);
        let list = image.mounted(LIST);
        lose_primary_superblock(&image.path);
        let output = run(Command::new("e2fsck")
            .args(["-fy", "-b", &copy.to_string(), "-B", &block_size.to_string()])
            .arg(&image.path));
        assert_eq!(output.status.code(), Some(1), "{output:#?}");
        image.assert_clean("recovered from the copy in group 1");
        assert_eq!(image.mounted(LIST), list);
    }
}

#[test]
fn the_same_calls_make_the_same_bytes() {
    for size in [Size::Given(20 * MIB), Size::Shrink] {
        let bytes = || {
            let storage = MemStorage::new();
            let mut builder = Builder::new(&storage, Options::new(size, UUID)).expect("options");
            build_some(&mut builder, &storage);
            builder.finish().expect("finish");
            storage.to_vec()
        };
        assert!(bytes() == bytes(), "{size:?}");
    }
}

#[test]
fn a_size_that_is_too_small_says_which_would_do() {
    let build = |size| {
        let storage = MemStorage::new();
        let mut builder = Builder::new(&storage, given(size)).expect("options");
        let directory = builder
            .directory(builder.root(), b"d", &metadata(1))
            .expect("directory");
        for name in 0..20_000 {
            let name = format!("{name}");
            builder
                .special(directory, name.as_bytes(), &metadata(1), Special::Fifo)
                .expect("fifo");
        }
        builder.finish()
    };
    let error = build(5 * MIB).expect_err("too small");
    assert_eq!(error.kind(), block::ErrorKind::NoSpace, "{error}");
    let hint = error.hint().expect("a hint");
    let enough: u64 = hint
        .split(' ')
        .find_map(|word| word.parse().ok())
        .expect("a size");
    build(enough - 4096).expect_err("less");
    build(enough).expect("what was said to do");
}

/// As an archive may have it: a directory, a file in it, and then another name of that file in the directory's place.
#[test]
fn a_link_in_the_place_of_the_directory_with_its_only_other_name_keeps_the_contents() {
    let image = Image::built(&given(16 * MIB), |builder, storage| {
        let root = builder.root();
        let directory = builder.directory(root, b"a", &metadata(1)).expect("directory");
        let file = put_file(builder, storage, directory, b"file", 6, &[(0, b"hello\n")]);
        builder.settle();
        builder.hard_link(root, b"a", file).expect("link");
        put_file(builder, storage, root, b"other", 6, &[(0, b"world\n")]);
    });
    image.assert_clean("linked");
    assert_eq!(
        image.mounted("cat \"$1\"/a \"$1\"/other; stat -c %h \"$1\"/a"),
        "hello\nworld\n1\n"
    );
}
