//! Filesystems made of tar archives.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use block::{MemStorage, Result};
use ext4_builder::source::{Control, Directory, Filter, IdMap, Pattern, copy_archive, copy_directory};
use ext4_builder::{Builder, Options, Summary, tar};

use crate::directories::{compare, fit, hard_tree};
use crate::image::{Image, MIB, given, succeed};

fn copy(storage: &MemStorage, options: &Options, archive: File, filter: &Filter) -> Result<Summary> {
    let mut builder = Builder::new(storage, options.clone())?;
    let tar = tar::Options::default();
    copy_archive(&mut builder, archive, tar, filter, &Control::unwatched())?;
    builder.finish()
}

/// An archive that Python makes of entries: (name, type, link or contents) each.
fn archive(entries: &str) -> File {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("archive");
    let script = format!(
        "import io, sys, tarfile
archive = tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT)
for name, kind, value in {entries}:
    entry = tarfile.TarInfo(name)
    entry.type = getattr(tarfile, kind)
    entry.mtime, entry.uid, entry.gid = 1000, 1000, 5
    if kind == 'REGTYPE':
        entry.size = len(value)
        archive.addfile(entry, io.BytesIO(value))
    else:
        entry.mode = 0o750
        entry.linkname = value
        archive.addfile(entry)
archive.close()"
    );
    succeed(Command::new("python3").args(["-c", &script]).arg(&path));
    File::open(path).expect("open")
}

fn image(entries: &str, filter: &Filter) -> Image {
    let storage = MemStorage::new();
    copy(&storage, &fit(), archive(entries), filter).expect("copy");
    let image = Image::of(&storage);
    image.assert_clean(entries);
    image
}

#[test]
fn nothing_differs_between_a_tree_and_the_filesystem_of_its_archive() {
    let (directory, tree) = hard_tree();
    // What archives do not have: sockets, and links between devices or pipes.
    for name in [
        "socket",
        "link-to-socket",
        "link-to-disk",
        "link-to-null",
        "link-to-fifo",
    ] {
        fs::remove_file(tree.join(name)).expect("remove");
    }
    let path = directory.path().join("archive");
    for compression in ["--no-auto-compress", "--zstd", "--gzip"] {
        let mut command = Command::new("tar");
        command
            .args([
                "--format=posix",
                "--sparse",
                "--hole-detection=seek",
                "--numeric-owner",
            ])
            .args([
                "--acls",
                "--xattrs",
                "--xattrs-include=*",
                "--atime-preserve=system",
            ])
            .args([compression, "-C"])
            .arg(&tree)
            .args(["-cf", "-", "."])
            .stderr(Stdio::null())
            .stdout(File::create(&path).expect("create"));
        assert!(command.status().expect("tar").success());
        let storage = MemStorage::new();
        copy(
            &storage,
            &fit(),
            File::open(&path).expect("open"),
            &Filter::default(),
        )
        .expect("copy");
        let image = Image::of(&storage);
        image.assert_clean(compression);
        // Of these, archives have nothing.
        let found = compare(&image, &tree, "created");
        let (_, rest) = found.trim().split_once(' ').expect("a summary");
        assert_eq!(rest, "compared", "{compression}: {found}");
    }
}

#[test]
fn what_comes_early_twice_or_through_links_ends_up_where_it_does_when_unpacked() {
    let image = image(
        "[('early/below/file', 'REGTYPE', b'early'), ('early', 'DIRTYPE', ''),
          ('usr/lib/real', 'REGTYPE', b'real'), ('lib', 'SYMTYPE', 'usr/lib'), ('lib/file', 'REGTYPE', b'through a link'),
          ('up', 'SYMTYPE', '/../../usr/../usr'), ('up/lib/also', 'REGTYPE', b'also'), ('linked', 'LNKTYPE', 'lib/file'),
          ('twice', 'REGTYPE', b'first'), ('twice', 'REGTYPE', b'second'), ('other', 'REGTYPE', b'x'), ('other', 'DIRTYPE', ''),
          ('.', 'DIRTYPE', '')]",
        &Filter::default(),
    );
    let output = image.mounted(
        "cd \"$1\"; stat -c '%n %a %u:%g %Y' . early early/below other; cat early/below/file usr/lib/file usr/lib/also linked twice; echo; \
         stat -c %h linked; readlink lib up; cd /",
    );
    assert_eq!(
        output,
        ". 750 1000:5 1000\nearly 750 1000:5 1000\nearly/below 755 0:0 0\nother 750 1000:5 1000\n\
         earlythrough a linkalsothrough a linksecond\n2\nusr/lib\n/../../usr/../usr\n"
    );
}

#[test]
fn names_are_left_out_and_ids_become_others() {
    let mut uids = IdMap::default();
    uids.add(1000, 0, 1).expect("range");
    let filter = Filter {
        exclude: vec![Pattern::new(b"/a/b").expect("pattern")],
        group: Some(77),
        uids,
        ..Filter::default()
    };
    let image = image(
        "[('a/b/c', 'REGTYPE', b'x'), ('a/d', 'REGTYPE', b'x'), ('a', 'DIRTYPE', '')]",
        &filter,
    );
    let output = image.mounted("cd \"$1\"; find a -printf '%p %U:%G\n' | sort; cd /");
    assert_eq!(output, "a 0:77\na/d 0:77\n");
}

/// What GNU tar makes of a tree with such options.
fn gnu_tar(options: &[&str], tree: &Path) -> File {
    let path = tree.with_extension("tar");
    let mut command = Command::new("tar");
    command
        .args(["--format=posix", "--sort=name"])
        .args(options)
        .arg("-C");
    succeed(command.arg(tree).arg("-cf").arg(&path).arg("."));
    File::open(path).expect("open")
}

#[test]
fn names_in_access_control_lists_have_the_numbers_of_the_archive_and_not_those_of_the_host() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = directory.path().join("tree");
    // Names that the host knows, as otherwise tar would not write any, with other numbers.
    let script = "set -e; mkdir -p \"$1/etc\" \"$1/a\"; cd \"$1\"; echo 'daemon:x:777:778::/:' >etc/passwd
        echo adm:x:779: >etc/group; head -c 5000 /dev/zero | tr '\\0' '\\n' >>etc/group; touch a/file; chmod 640 a/file
        setfacl -m u:daemon:rw,g:adm:r,u:1234:x a/file; setfacl -d -m g:adm:rx a";
    succeed(Command::new("sh").args(["-c", script, "sh"]).arg(&tree));
    let getfacl = "cd \"$1\"; getfacl -n -c a/file; getfacl -n -c -d a; cd /";
    let expected = |user: u32, group: u32| {
        let mut users = [(user, "rw-"), (1234, "--x")];
        users.sort_unstable();
        let users = users.map(|(id, permissions)| format!("user:{id}:{permissions}\n"));
        format!(
            "user::rw-\n{}group::r--\ngroup:{group}:r--\nmask::rwx\nother::---\n\n\
             user::rwx\ngroup::r-x\ngroup:{group}:r-x\nmask::r-x\nother::r-x\n\n",
            users.concat()
        )
    };
    let mut uids = IdMap::default();
    uids.add(777, 5555, 1).expect("range");
    let mapping = Filter {
        uids,
        ..Filter::default()
    };
    for (filter, user, group) in [(Filter::default(), 777, 779), (mapping, 5555, 779)] {
        let storage = MemStorage::new();
        copy(&storage, &fit(), gnu_tar(&["--acls"], &tree), &filter).expect("copy");
        let image = Image::of(&storage);
        image.assert_clean("names");
        assert_eq!(image.mounted(getfacl), expected(user, group));
    }

    // What nobody has a number for is told.
    fs::write(tree.join("etc/passwd"), "").expect("write");
    let storage = MemStorage::new();
    let error =
        copy(&storage, &fit(), gnu_tar(&["--acls"], &tree), &Filter::default()).expect_err("no number");
    assert_eq!(error.kind(), block::ErrorKind::Unsupported);
    let text = format!("{error} {}", error.hint().unwrap_or_default());
    assert!(
        text.contains("entry \"a/file\"") && text.contains("user \"daemon\"") && text.contains("--names"),
        "{text}"
    );
    let mut builder = Builder::new(&storage, fit()).expect("options");
    let tar = tar::Options {
        names: tar::Names::new(b"daemon:x:42:", b""),
        ..tar::Options::default()
    };
    let archive = gnu_tar(&["--acls"], &tree);
    copy_archive(
        &mut builder,
        archive,
        tar,
        &Filter::default(),
        &Control::unwatched(),
    )
    .expect("copy");
    builder.finish().expect("finish");
    assert_eq!(Image::of(&storage).mounted(getfacl), expected(42, 779));
}

#[test]
fn capabilities_in_a_user_namespace_follow_the_ids() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = directory.path().join("tree");
    let script =
        "set -e; mkdir \"$1\"; cd \"$1\"; touch of-1000 of-2000 of-all; setcap -n 1000 cap_net_raw+ep of-1000
        setcap -n 2000 cap_net_raw+ep of-2000; setcap cap_net_raw+ep of-all";
    succeed(Command::new("sh").args(["-c", script, "sh"]).arg(&tree));
    let mut uids = IdMap::default();
    uids.add(1000, 0, 1).expect("range");
    uids.add(2000, 70_000, 1).expect("range");
    let mapped = Filter {
        uids,
        ..Filter::default()
    };
    let owned = Filter {
        owner: Some(5),
        ..Filter::default()
    };
    for (filter, one, two) in [
        (Filter::default(), " [rootid=1000]", " [rootid=2000]"),
        (mapped, "", " [rootid=70000]"),
        (owned, " [rootid=5]", " [rootid=5]"),
    ] {
        let expected =
            format!("of-1000 cap_net_raw=ep{one}\nof-2000 cap_net_raw=ep{two}\nof-all cap_net_raw=ep\n");
        let archive = gnu_tar(&["--xattrs", "--xattrs-include=*"], &tree);
        let (unpacked, copied) = (MemStorage::new(), MemStorage::new());
        copy(&unpacked, &fit(), archive, &filter).expect("copy");
        let mut builder = Builder::new(&copied, fit()).expect("options");
        let directory = Directory::default();
        copy_directory(&mut builder, &tree, &directory, &filter, &Control::unwatched()).expect("copy");
        builder.finish().expect("finish");
        for storage in [unpacked, copied] {
            let image = Image::of(&storage);
            image.assert_clean("capabilities");
            let found = image.mounted("cd \"$1\"; getcap -n of-1000 of-2000 of-all; cd /");
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn attributes_that_no_kernel_shows_are_left_out_and_counted() {
    let script = "import io, sys, tarfile
archive = tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT)
for name, kind in [('file', tarfile.REGTYPE), ('link', tarfile.SYMTYPE), ('fifo', tarfile.FIFOTYPE), ('null', tarfile.CHRTYPE)]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, 'target'
    entry.pax_headers = {'SCHILY.xattr.user.one': '1', 'SCHILY.xattr.trusted.two': '2', 'SCHILY.xattr.btrfs.compression': 'zstd',
        'SCHILY.xattr.system.nfs4_acl': 'A', 'LIBARCHIVE.xattr.com.apple.FinderInfo': 'QUJD'}
    archive.addfile(entry)
archive.close()";
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("archive");
    succeed(Command::new("python3").args(["-c", script]).arg(&path));
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, fit()).expect("options");
    let archive = File::open(&path).expect("open");
    let (tar, filter) = (tar::Options::default(), Filter::default());
    let left_out = copy_archive(&mut builder, archive, tar, &filter, &Control::unwatched()).expect("copy");
    builder.finish().expect("finish");
    // Three of each, and those of users where the kernel knows none.
    assert_eq!(left_out.count(), 4 * 3 + 3);
    let names: Vec<&[u8]> = left_out.names().collect();
    let expected: [&[u8]; 4] = [
        b"btrfs.compression",
        b"com.apple.FinderInfo",
        b"system.nfs4_acl",
        b"user.one",
    ];
    assert_eq!(names, expected);
    let image = Image::of(&storage);
    image.assert_clean("attributes");
    let found = image.mounted("cd \"$1\"; getfattr -hd -m- file link fifo null; cd /");
    let rest = |name: &str| format!("# file: {name}\ntrusted.two=\"2\"\n\n");
    let file = "# file: file\ntrusted.two=\"2\"\nuser.one=\"1\"\n\n";
    assert_eq!(
        found,
        [file, &rest("link"), &rest("fifo"), &rest("null")].concat()
    );
}

#[test]
fn the_room_of_what_is_replaced_is_used_again() {
    let entries = format!(
        "[('file', 'REGTYPE', bytes([number]) * {MIB}) for number in range(30)] + [('end', 'DIRTYPE', '')]"
    );
    let storage = MemStorage::new();
    copy(&storage, &given(8 * MIB), archive(&entries), &Filter::default()).expect("copy");
    let image = Image::of(&storage);
    image.assert_clean("after many replacements");
    assert_eq!(image.mounted("tail -c 1 \"$1/file\" | od -An -tu1"), "  29\n");
}

#[test]
fn what_cannot_be_in_a_filesystem_is_an_error_that_names_the_entry() {
    for (entries, words) in [
        ("[('a', 'LNKTYPE', 'none')]", "\"a\": it is a link to \"none\""),
        (
            "[('a', 'REGTYPE', b''), ('a/b', 'REGTYPE', b'')]",
            "\"a/b\": it is in \"a\", which is no directory",
        ),
        (
            "[('a', 'SYMTYPE', 'b'), ('b', 'SYMTYPE', 'a'), ('a/x', 'DIRTYPE', '')]",
            "more than 40 links",
        ),
        ("[('n' * 256, 'DIRTYPE', '')]", "255 at most"),
        (
            "[('a', 'SYMTYPE', 't' * 4096)]",
            "a symlink cannot point to 4096 bytes",
        ),
        (
            "[('d', 'DIRTYPE', ''), ('a', 'LNKTYPE', 'd')]",
            "directories have one name only",
        ),
    ] {
        let storage = MemStorage::new();
        let error = copy(&storage, &fit(), archive(entries), &Filter::default()).expect_err(entries);
        assert_eq!(error.kind(), block::ErrorKind::InvalidInput, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(words) && text.contains("entry \""),
            "{entries}: {text}"
        );
    }
}

#[test]
fn a_link_to_what_is_excluded_is_told_with_both_names() {
    let archive =
        archive("[('cache/a', 'REGTYPE', b'x'), ('b', 'LNKTYPE', 'cache/a'), ('c', 'REGTYPE', b'')]");
    let excluding = |patterns: &[&[u8]]| Filter {
        exclude: patterns
            .iter()
            .map(|pattern| Pattern::new(pattern).expect("pattern"))
            .collect(),
        ..Filter::default()
    };
    let storage = MemStorage::new();
    let again = archive.try_clone().expect("clone");
    let error = copy(&storage, &fit(), archive, &excluding(&[b"./cache"])).expect_err("excluded");
    let text = format!("{error}; {}", error.hint().unwrap_or_default());
    assert!(
        text.contains("entry \"b\"") && text.contains("link to \"cache/a\"") && text.contains("exclude both"),
        "{text}"
    );
    std::io::Seek::rewind(&mut &again).expect("seek");
    copy(&storage, &fit(), again, &excluding(&[b"./cache", b"b"])).expect("both are excluded");
    let found = Image::of(&storage).mounted("ls \"$1\"");
    assert_eq!(found, "c\nlost+found\n");
}

#[test]
fn an_archive_that_ends_early_is_an_error() {
    let mut whole = Vec::new();
    std::io::Read::read_to_end(&mut archive("[('a', 'REGTYPE', b'x' * 1000000)]"), &mut whole).expect("read");
    for len in [100, 512, 300_000, whole.len() - 10_000] {
        let storage = MemStorage::new();
        let mut builder = Builder::new(&storage, fit()).expect("options");
        let part = std::io::Cursor::new(whole[..len].to_vec());
        let tar = tar::Options::default();
        let error = copy_archive(&mut builder, part, tar, &Filter::default(), &Control::unwatched())
            .expect_err("an early end");
        assert_eq!(error.kind(), block::ErrorKind::Corrupt, "{len}: {error}");
    }
}
