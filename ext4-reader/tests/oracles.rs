//! What is read is what the kernel and debugfs read.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::Command;

use common::{Image, assert_same, fill, open, run};
use ext4_reader::LastLink;

/// The sets of features that matter to a reader, as options of mke2fs.
const KINDS: [&str; 15] = [
    "-t ext4 -b 4096",
    "-t ext4 -b 1024",
    "-t ext4 -b 2048 -I 512",
    "-t ext4 -I 128 -O ^metadata_csum",
    "-t ext4 -O ^64bit,^metadata_csum,uninit_bg",
    "-t ext4 -O inline_data,ea_inode,large_dir",
    "-t ext4 -b 1024 -O inline_data,ea_inode -I 1024",
    "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    "-t ext4 -O bigalloc -C 65536",
    "-t ext4 -O ^extents,^64bit",
    "-t ext4 -b 4096 -O encrypt,verity",
    "-t ext4 -O sparse_super2,mmp,^flex_bg,^resize_inode",
    "-t ext3 -b 1024",
    "-t ext2 -b 1024",
    "-t ext2 -b 4096 -O ^filetype",
];

#[test]
fn every_kind_of_filesystem_reads_as_the_kernel_reads_it() {
    for kind in KINDS {
        eprintln!("mke2fs {kind}");
        let image = Image::new("96M", &format!("{kind} -N 8192"));
        fill(&image);
        let filesystem = image.open();
        assert!(!filesystem.is_replayed(), "{kind}");
        let count = assert_same(&image, &filesystem);
        assert!(count > 1300, "{kind}: {count} files");
    }
}

#[test]
fn large_extended_attributes_and_deep_trees() {
    let image = Image::new("96M", "-t ext4 -b 1024 -O ea_inode,inline_data");
    image.change("touch f; mkdir d; for i in $(seq 0 2 9000); do dd if=/dev/zero of=deep bs=1024 count=1 seek=$i conv=notrunc status=none; done");
    {
        let mounted = image.mount("rw");
        for (name, len) in [("f", 40_000), ("d", 5_000), ("f", 1), ("f", 900)] {
            let value: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let attribute = format!("user.of{len}");
            rustix::fs::lsetxattr(
                mounted.0.join(name),
                attribute,
                &value,
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
        }
    }
    assert_eq!(assert_same(&image, &image.open()), 5);
}

#[test]
fn blocks_larger_than_the_kernel_mounts_are_read_as_debugfs_reads_them() {
    let source = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        fs::write(
            source.path().join(format!("file number {number}")),
            number.to_string(),
        )
        .unwrap();
    }
    for size in ["16384", "65536"] {
        let image = Image::new(
            "256M",
            &format!("-t ext4 -b {size} -d {}", source.path().display()),
        );
        let filesystem = image.open();
        let root = filesystem.resolve(b"/", LastLink::Follow).unwrap();
        assert_eq!(filesystem.read_dir(&root).unwrap().len(), 3001);
        for number in [0, 1234, 2999] {
            let name = format!("file number {number}");
            let inode = filesystem.resolve(name.as_bytes(), LastLink::Keep).unwrap();
            let theirs = run(Command::new("debugfs")
                .args(["-R", &format!("cat \"/{name}\"")])
                .arg(&image.path));
            let content: Vec<_> = filesystem
                .content(&inode)
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            let mut bytes = vec![0; content[0].len as usize];
            filesystem.read_run(&content[0], 0, &mut bytes).unwrap();
            assert_eq!((bytes, content.len()), (theirs.into_bytes(), 1));
        }
    }
}

#[test]
fn files_with_holes_are_read_from_end_to_end_in_pieces_of_any_size() {
    let script = "seq 9000 | head -c 30000 >f; truncate -s 9M f; printf end >>f; printf x | dd of=f bs=1 seek=5M conv=notrunc status=none; \
                  : >empty; truncate -s 5000 hole; printf inline >inline";
    for kind in ["-t ext4 -b 1024 -O inline_data", "-t ext4", "-t ext2"] {
        let image = Image::new("32M", kind);
        image.change(script);
        let filesystem = image.open();
        let mounted = image.mount("ro");
        for name in ["f", "empty", "hole", "inline"] {
            let theirs = fs::read(mounted.0.join(name)).unwrap();
            let inode = filesystem.resolve(name.as_bytes(), LastLink::Keep).unwrap();
            let mut ours = Vec::new();
            filesystem.reader(&inode).unwrap().read_to_end(&mut ours).unwrap();
            assert!(ours == theirs, "{kind}: {name}");
            let mut reader = filesystem.reader(&inode).unwrap();
            let mut piece = [0; 4999];
            for theirs in theirs.chunks(piece.len()) {
                reader.read_exact(&mut piece[..theirs.len()]).unwrap();
                assert!(&piece[..theirs.len()] == theirs, "{kind}: {name} in pieces");
            }
            assert_eq!(reader.read(&mut piece).unwrap(), 0);
        }
    }
}

#[test]
fn times_past_2038_and_ids_past_65535_are_what_debugfs_shows() {
    let image = Image::new("8M", "-t ext4");
    image.change("touch f; chown 4000000000:70001 f; touch -d '2446-01-01 UTC' f");
    let filesystem = image.open();
    let inode = filesystem.resolve(b"/f", LastLink::Keep).unwrap();
    let shown = run(Command::new("debugfs").args(["-R", "stat /f"]).arg(&image.path));
    assert!(
        shown.contains("User: 4000000000") || shown.contains("User: -294967296"),
        "{shown}"
    );
    assert_eq!((inode.uid(), inode.gid()), (4_000_000_000, 70_001));
    assert_eq!(inode.modified().seconds, 15_021_158_400);
}

/// Copies a filesystem while it is mounted, with what is in its journal and nowhere else.
fn copy_while_in_use(image: &Image, options: &str, script: &str) -> Image {
    let mounted = image.mount(options);
    run(Command::new("bash").args(["-ec", script]).current_dir(&mounted.0));
    image.copy()
}

/// Directories that are removed are revoked, and their blocks come back as data, which looks like a journal's.
///
/// `sync .` commits the journal and leaves it at that: `sync -f` would also write back what the journal holds, and
/// whether the kernel then forgets the older transactions depends on its timing.
const CHANGES: &str = r"
    for i in $(seq 30); do mkdir new$i; (cd new$i; seq 200 | xargs touch); done; sync .
    rm -r new1? many; sync .
    seq 40000 | sed 's/.*/\xc0\x3b\x39\x98/' | tr -d '\n' >magic; mv one two; sync .
    seq 9000 | sed 's/.*/\xc0\x3b\x39\x98/' | tr -d '\n' >>magic; rm hundred; mkdir last; sync .";

#[test]
fn a_filesystem_in_use_reads_as_it_is_after_its_journal_is_replayed() {
    for (kind, options) in [
        ("-t ext4 -b 4096", "rw"),
        ("-t ext4 -b 4096", "data=journal"),
        ("-t ext4 -b 1024 -O ^metadata_csum", "data=journal"),
        ("-t ext4 -O ^64bit", "rw"),
        ("-t ext4 -O ^metadata_csum,^64bit", "rw,journal_checksum"),
        ("-t ext3 -b 1024", "rw"),
    ] {
        eprintln!("mke2fs {kind}, mount -o {options}");
        let image = Image::new("64M", &format!("{kind} -N 16384"));
        fill(&image);
        let copy = copy_while_in_use(&image, options, CHANGES);
        let filesystem = copy.open();
        assert!(filesystem.is_replayed(), "{kind}: nothing to replay");
        // The kernel replays on another copy.
        let recovered = copy.copy();
        drop(recovered.mount("rw,noatime"));
        let count = assert_same(&recovered, &filesystem);
        assert!(count > 4000, "{kind}: {count}");
    }
}

/// A copy in use whose journal holds at least four transactions, and the blocks of the journal they begin and end in.
///
/// The kernel may write back and forget some of them at any time, so that this asks again.
fn copy_with_transactions(image: &Image) -> (Image, Vec<u64>) {
    for _ in 0..20 {
        let copy = copy_while_in_use(&image.copy(), "rw", CHANGES);
        let shown = run(Command::new("debugfs").args(["-R", "logdump"]).arg(&copy.path));
        let blocks: Vec<u64> = shown
            .lines()
            .filter(|line| line.starts_with("Found expected sequence"))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        eprintln!("{} blocks of transactions", blocks.len());
        if blocks.len() > 6 {
            return (copy, blocks);
        }
    }
    panic!("no journal held four transactions")
}

#[test]
fn a_journal_that_was_torn_ends_where_the_kernel_ends_it() {
    let image = Image::new("64M", "-t ext4 -b 4096 -N 16384 -J size=8");
    fill(&image);
    let (copy, own) = copy_with_transactions(&image);
    let debugfs = |line: &str| run(Command::new("debugfs").args(["-R", line]).arg(&copy.path));
    let mut kept = std::collections::BTreeSet::new();
    let mut refused = 0;
    for (number, offset) in [
        (1, 512),
        (1, 20),
        (2, 512),
        (2, 20),
        (3, 1000),
        (4, 0),
        (5, 512),
        (6, 8),
        (6, 4),
    ] {
        let torn = copy.copy();
        let file = fs::File::options().write(true).open(&torn.path).unwrap();
        let block: u64 = debugfs(&format!("bmap <8> {}", own[own.len() - number]))
            .trim()
            .parse()
            .unwrap();
        file.write_all_at(b"torn", block * 4096 + offset).unwrap();
        drop(file);
        let recovered = torn.copy();
        let ours = open(&torn.path);
        let said = ours.as_ref().err().map(ToString::to_string);
        assert_eq!(
            recovered.recover(),
            said.is_none(),
            "{number} from the end, {offset}: {said:?}"
        );
        match ours {
            Ok(filesystem) => {
                // What came later may have overwritten parts of the tree already, so that only the top can be compared.
                let names = recovered.names();
                assert_eq!(common::names(&filesystem), names);
                kept.insert(names);
            }
            Err(error) => {
                assert_eq!(error.kind(), block::ErrorKind::Corrupt, "{error}");
                refused += 1;
            }
        }
    }
    assert!(kept.len() > 1 && refused > 1, "{kept:?} {refused}");
}

#[test]
fn fast_commits_are_refused_and_not_lost() {
    let image = Image::new("64M", "-t ext4 -b 4096 -O fast_commit");
    image.change("echo a >a");
    assert_eq!(assert_same(&image, &image.open()), 3);
    let copy = copy_while_in_use(
        &image,
        "rw",
        "echo b >b; sync -f .; echo c | dd of=c conv=fsync status=none; echo d | dd of=c conv=fsync status=none",
    );
    let error = open(&copy.path).unwrap_err();
    assert!(error.to_string().contains("fast commits"), "{error}");
    assert_eq!(error.kind(), block::ErrorKind::Unsupported);
}

#[test]
fn what_is_no_such_filesystem_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for content in [Vec::new(), vec![0; 100], vec![0; 1 << 20]] {
        fs::write(&path, content).unwrap();
        let error = open(&path).unwrap_err();
        assert_eq!(error.kind(), block::ErrorKind::InvalidInput, "{error}");
    }
    let image = Image::new("8M", "-t ext4");
    let bytes = fs::read(&image.path).unwrap();
    fs::write(&path, &bytes[..4 << 20]).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("8388608") && error.contains("4194304"), "{error}");
    let journal = Image::new("16M", "-O journal_dev -b 4096");
    assert!(
        open(&journal.path)
            .unwrap_err()
            .to_string()
            .contains("journal_dev")
    );
}

#[test]
fn paths_do_not_leave_the_filesystem() {
    let image = Image::new("8M", "-t ext4");
    image.change(
        "mkdir -p a/b; echo in >etc; ln -s /../../etc out; ln -s ../../../etc a/b/up; ln -s loop2 loop1; ln -s loop1 loop2; \
         ln -s a/b ab; ln -s nowhere dangling; touch a/b/file",
    );
    let filesystem = image.open();
    let number = |path: &str| {
        filesystem
            .resolve(path.as_bytes(), LastLink::Follow)
            .map(|inode| inode.number())
    };
    let etc = number("/etc").unwrap();
    for path in [
        "out",
        "a/b/up",
        "ab/up",
        "/../../etc",
        "//a/./b/../../etc",
        "ab/../../etc",
    ] {
        assert_eq!(number(path).unwrap(), etc, "{path}");
    }
    // `..` is that of the place where a link leads to.
    assert_eq!(number("ab/..").unwrap(), number("a").unwrap());
    for (path, says) in [
        ("loop1", "too many symbolic links"),
        ("dangling", "no such file"),
        ("etc/", "no directory"),
        ("etc/x", "no directory"),
        ("a/missing/x", "missing, which a/missing/x needs"),
    ] {
        let error = number(path).unwrap_err();
        assert!(error.to_string().contains(says), "{path}: {error}");
        assert_eq!(error.kind(), block::ErrorKind::InvalidInput);
    }
}
