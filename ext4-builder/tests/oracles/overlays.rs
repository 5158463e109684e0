//! Manifests and labels over filesystems.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use block::{Access, MemStorage, Result};
use ext4_builder::source::{Control, FileContexts, Manifest};
use ext4_builder::{Builder, Metadata, Summary};
use ext4_reader::Filesystem;

use crate::directories::fit;
use crate::image::{Image, run};

/// `etc/hostname`, `etc/old/x`, `home/user/.ssh/id` and a symlink `link`, all of them 1000:1000.
fn tree(builder: &mut Builder<'_>) {
    let metadata = Metadata {
        permissions: 0o600,
        uid: 1000,
        gid: 1000,
        ..Metadata::default()
    };
    let directory = |builder: &mut Builder<'_>, parent, name: &str| {
        builder
            .directory(parent, name.as_bytes(), &metadata)
            .expect("directory")
    };
    let root = builder.root();
    let etc = directory(builder, root, "etc");
    let old = directory(builder, etc, "old");
    let home = directory(builder, root, "home");
    let user = directory(builder, home, "user");
    let ssh = directory(builder, user, ".ssh");
    for (parent, name) in [(etc, "hostname"), (old, "x"), (ssh, "id")] {
        builder
            .file(parent, name.as_bytes(), &metadata, 0, &[])
            .expect("file");
    }
    builder
        .symlink(root, b"link", &metadata, b"etc")
        .expect("symlink");
}

/// A raw image with a filesystem and nothing else.
fn opened(path: &Path) -> Result<Filesystem> {
    let storage = Arc::new(raw::OpenOptions::new().open(path)?);
    Filesystem::open(Arc::new(raw::Image::open(storage, Access::READ)?))
}

fn laid_over(storage: &MemStorage, manifest: &str, directory: &Path) -> Result<Summary> {
    let mut builder = Builder::new(storage, fit())?;
    tree(&mut builder);
    Manifest::parse(manifest, directory)?.apply(&mut builder, &opened, &Control::unwatched())?;
    builder.finish()
}

const MANIFEST: &str = r#"
[[entry]]
path = "/etc/hostname"
type = "file"
contents = "guest\n"

[[entry]]
path = "link/new/below"
type = "file"
source = "large"
mode = 0o4755
uid = 0
gid = 70000
mtime = 1700000000
xattrs = { "user.a" = "text", "security.capability" = "0x0100000200200000000000000000000000000000" }

[[entry]]
path = "etc/old"
type = "remove"

[[entry]]
path = "/dev/null"
type = "char-device"
major = 1
minor = 3
mode = 0o666

[[entry]]
path = "/dev/sda"
type = "block-device"
major = 8
minor = 0

[[entry]]
path = "run/pipe"
type = "fifo"

[[entry]]
path = "run/socket"
type = "socket"

[[entry]]
path = "run/also"
type = "link"
target = "/etc/hostname"

[[entry]]
path = "etc/alias"
type = "symlink"
target = "hostname"

[[entry]]
path = "/"
mode = 0o711

[[entry]]
path = "/home/user/.ssh"
type = "directory"
mode = 0o700

[[entry]]
match = "/home/user/**"
uid = 5
xattrs = { "user.b" = "0sAP8=" }

# Pipes and sockets have none of users.
[[entry]]
match = "/run/*"
xattrs = { "user.c" = "c" }
"#;

#[test]
fn everything_that_a_manifest_says_is_there() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("large"), vec![b'l'; 100_000]).expect("write");
    let storage = MemStorage::new();
    laid_over(&storage, MANIFEST, directory.path()).expect("laid over");
    let image = Image::of(&storage);
    image.assert_clean("with a manifest");
    let output = image.mounted(
        "cd \"$1\"; find . -not -path './lost+found*' -printf '%p %y %m %U:%G %s %n %l\n' | LC_ALL=C sort; stat -c %Y etc/new/below; stat -c %t:%T dev/null dev/sda; \
         tr -d l <etc/new/below | wc -c; cat run/also; getfattr -dm- -e hex etc/new/below home/user/.ssh/id run/also run/pipe | grep -v '^$'; cd /",
    );
    let expected = "\
. d 711 0:0 4096 7 \n./dev d 755 0:0 4096 2 \n./dev/null c 666 0:0 0 1 \n./dev/sda b 644 0:0 0 1 \n./etc d 600 1000:1000 4096 3 \n\
./etc/alias l 777 0:0 8 1 hostname\n./etc/hostname f 600 1000:1000 6 2 \n./etc/new d 755 0:0 4096 2 \n./etc/new/below f 4755 0:70000 100000 1 \n\
./home d 600 1000:1000 4096 3 \n./home/user d 600 1000:1000 4096 3 \n./home/user/.ssh d 700 5:1000 4096 2 \n./home/user/.ssh/id f 600 5:1000 0 1 \n\
./link l 600 1000:1000 3 1 etc\n./run d 755 0:0 4096 2 \n./run/also f 600 1000:1000 6 2 \n./run/pipe p 644 0:0 0 1 \n./run/socket s 644 0:0 0 1 \n\
1700000000\n1:3\n8:0\n0\nguest\n\
# file: etc/new/below\nsecurity.capability=0x0100000200200000000000000000000000000000\nuser.a=0x74657874\n\
# file: home/user/.ssh/id\nuser.b=0x00ff\n# file: run/also\nuser.c=0x63\n";
    assert_eq!(output, expected);
}

/// A tree with some of everything, in a filesystem that mke2fs made, as `disk` in a directory.
fn other(directory: &Path, options: &str) {
    let script = format!(
        "cd \"$1\"; mkdir -p t/a/deep t/b; echo text >t/a/small; chmod 4750 t/a/small; chown 70000:7 t/a/small
         head -c 700000 /dev/urandom >t/a/deep/large; ln t/a/deep/large t/b/same; ln -s ../deep/large t/a/b; mknod t/a/null c 1 3
         mkfifo t/a/pipe; truncate -s 20M t/a/holes; echo middle | dd of=t/a/holes bs=1 seek=7000001 conv=notrunc status=none
         setfattr -n user.color -v blue t/a/small; setfacl -m u:5:rw t/a/deep/large; setfacl -dm g:6:r t/a/deep
         for i in $(seq 30); do : >t/a/deep/$i; done; chmod 1777 t/a/deep; touch -d 2001-02-03T04:05:06.789Z t/a/small t/a
         truncate -s 8M disk; mke2fs -q -F {options} -d t disk"
    );
    let output = run(Command::new("sh").args(["-ec", &script, "sh"]).arg(directory));
    assert!(output.status.success(), "{output:?}");
}

/// What the kernel sees below `$2`, but for the directories' sizes.
const SEEN: &str = "(cd \"$1\"/$2; find . -printf '%p %y %m %U:%G %n %l %T@ %A@\\n' | sort; find . -type f | sort | xargs md5sum
                    find . ! -type l | sort | xargs getfattr -hdm- -e hex; stat -c %t:%T null; test $(stat -c %b holes) -lt 100 && echo holes)";

#[test]
fn what_is_taken_out_of_another_image_is_as_it_was() {
    for options in [
        "-t ext4 -I 256",
        "-t ext4 -I 256 -O inline_data",
        "-t ext2 -I 256 -b 1024",
    ] {
        let directory = tempfile::tempdir().expect("temporary directory");
        other(directory.path(), options);
        let manifest = "\
[[entry]]\npath = \"/etc/old\"\nimage = \"disk\"\nsource = \"a\"\n\
[[entry]]\npath = \"b\"\nimage = \"disk\"\n\
[[entry]]\npath = \"/link/hostname\"\nimage = \"disk\"\nsource = \"/a/small\"\nmode = 0o600\ngid = 9\nxattrs = { \"user.color\" = false }\n\
[[entry]]\npath = \"/home\"\nimage = \"disk\"\nsource = \"/a/b\"\n\
[[entry]]\npath = \"/all\"\nimage = \"disk\"\nsource = \"/\"\n";
        let storage = MemStorage::new();
        laid_over(&storage, manifest, directory.path()).expect("laid over");
        let image = Image::of(&storage);
        image.assert_clean(options);
        let old = image.mounted(&SEEN.replace("$2; ", "etc/old; rm x; touch -r ../../all/a .; "));
        let whole = image.mounted(&SEEN.replace("$2", "all/a"));
        let theirs = Image::in_file(&directory.path().join("disk")).mounted(&SEEN.replace("$2", "a"));
        // What `etc/old` had before is not of the image, and one of two names is not below it.
        let one_name = theirs.replace("./deep/large f 664 0:0 2 ", "./deep/large f 664 0:0 1 ");
        assert_eq!(whole, theirs, "{options}");
        assert_ne!(one_name, theirs, "{theirs}");
        assert_eq!(old, one_name, "{options}");
        let rest = image.mounted("cd \"$1\"; stat -c '%n %F %a %u:%g' b/same etc/hostname home; readlink home; getfattr -d etc/hostname; \
             test all/b/same -ef all/a/deep/large && echo one; ls all; cd /");
        assert_eq!(
            rest,
            "b/same regular file 664 0:0\netc/hostname regular file 600 70000:9\nhome symbolic link 777 0:0\n\
             ../deep/large\none\na\nb\n",
            "{options}"
        );
    }
}

#[test]
fn a_root_can_be_taken_out_of_another_image() {
    let directory = tempfile::tempdir().expect("temporary directory");
    other(directory.path(), "-t ext4");
    let storage = MemStorage::new();
    let manifest = "[[entry]]\npath = \"/\"\nimage = \"disk\"\nmode = 0o711\n";
    laid_over(&storage, manifest, directory.path()).expect("laid over");
    let image = Image::of(&storage);
    image.assert_clean("with another root");
    let seen = image.mounted("cd \"$1\"; ls; stat -c %a .; test b/same -ef a/deep/large && echo one; cd /");
    assert_eq!(seen, "a\nb\netc\nhome\nlink\nlost+found\n711\none\n");
}

#[test]
fn what_cannot_be_taken_out_of_an_image_is_told_with_line_and_column() {
    let directory = tempfile::tempdir().expect("temporary directory");
    other(directory.path(), "-t ext4");
    let disk = directory.path().join("disk");
    let damaged = directory.path().join("damaged");
    let mut bytes = fs::read(&disk).expect("read");
    bytes[1024..2048].fill(0);
    fs::write(&damaged, bytes).expect("write");
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    for (entry, words) in [
        (
            "path = \"/x\"\nimage = \"none\"",
            format!("{}: ", shown(&directory.path().join("none"))),
        ),
        (
            "path = \"/x\"\nimage = \"disk\"",
            format!("{}: x: there is no such file in the filesystem", shown(&disk)),
        ),
        (
            "path = \"/\"\nimage = \"disk\"\nsource = \"a/small\"",
            format!("{}: \"/a/small\": it is no directory", shown(&disk)),
        ),
        (
            "path = \"/x\"\nimage = \"damaged\"\nsource = \"/a\"",
            String::new(),
        ),
    ] {
        let storage = MemStorage::new();
        let text = format!("\n[[entry]]\n{entry}\n");
        let error = laid_over(&storage, &text, directory.path()).expect_err(entry);
        let words = format!("line 3, column 8: {words}");
        assert!(error.to_string().starts_with(&words), "{entry}: {error}");
    }
}

#[test]
fn what_cannot_be_laid_over_is_told_with_line_and_column() {
    for (entry, words) in [
        (
            "path = \"/none\"\nmode = 0",
            "line 3, column 8: there is nothing at \"/none\"",
        ),
        (
            "path = \"/none/x\"\ntype = \"remove\"",
            "line 3, column 8: there is nothing at \"/none/x\"",
        ),
        (
            "path = \"/etc/none\"\ntype = \"remove\"",
            "line 3, column 8: there is nothing at \"/etc/none\"",
        ),
        (
            "path = \"/\"\ntype = \"remove\"",
            "line 3, column 8: the root cannot be removed",
        ),
        (
            "path = \"/\"\ntype = \"fifo\"",
            "line 3, column 8: the root is a directory",
        ),
        (
            "path = \"/link\"\nxattrs = { \"user.a\" = \"x\" }",
            "line 3, column 8: only files and directories have attributes of users",
        ),
        (
            "match = \"*.none\"\nmode = 0",
            "line 3, column 9: its match is of nothing",
        ),
        (
            "path = \"/x\"\ntype = \"link\"\ntarget = \"none\"",
            "line 3, column 8: there is nothing at \"/none\" to link to",
        ),
        (
            "path = \"/x\"\ntype = \"file\"\nsource = \"none\"",
            "line 3, column 8: /nowhere/none: open the file: No such file",
        ),
        (
            "path = \"/x\"\ntype = \"file\"\nsource = \"/\"",
            "line 3, column 8: /: it is no file",
        ),
        (
            "path = \"etc/hostname/x\"\ntype = \"fifo\"",
            "line 3, column 8: it is in \"hostname\", which is no directory",
        ),
        (
            "path = \"etc\"\nxattrs = { \"other.x\" = \"\" }",
            "line 3, column 8: ext4 cannot store",
        ),
    ] {
        let storage = MemStorage::new();
        let text = format!("\n[[entry]]\n{entry}\n");
        let error = laid_over(&storage, &text, Path::new("/nowhere")).expect_err(entry);
        assert!(error.to_string().starts_with(words), "{entry}: {error}");
    }
}

#[test]
fn everything_has_the_label_that_the_policy_says() {
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, fit()).expect("options");
    tree(&mut builder);
    let etc = builder.lookup(builder.root(), b"etc").expect("etc");
    let old = [(&b"security.selinux"[..], &b"old\0"[..]), (b"user.kept", b"kept")];
    builder.set_xattrs(etc, old).expect("attributes");
    let policy = "/.* u:default\n/ -d u:root\n/etc(/.*)? u:etc\n/home/[^/]+/\\.ssh(/.*)? u:ssh\n/link -l u:link\n/lost\\+found(/.*)? <<none>>\n";
    FileContexts::parse(policy)
        .expect("policy")
        .apply(&mut builder)
        .expect("labels");
    builder.finish().expect("finish");
    let image = Image::of(&storage);
    image.assert_clean("with labels");
    let output = image.mounted(
        "cd \"$1\"; python3 -c \"
import os
for path in ['.', 'etc', 'etc/hostname', 'home', 'home/user/.ssh/id', 'link', 'lost+found']:
    names = os.listxattr(path, follow_symlinks=False)
    print(path, [os.getxattr(path, name, follow_symlinks=False).decode().replace(chr(0), '!') for name in sorted(names)])
\"; cd /",
    );
    assert_eq!(
        output,
        ". ['u:root!']\netc ['u:etc!', 'kept']\netc/hostname ['u:etc!']\nhome ['u:default!']\nhome/user/.ssh/id ['u:ssh!']\nlink ['u:link!']\nlost+found []\n"
    );
}

#[test]
fn a_change_of_mode_is_one_of_the_access_control_list() {
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, fit()).expect("options");
    tree(&mut builder);
    let etc = builder.lookup(builder.root(), b"etc").expect("etc");
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 6, 7),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 5, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    builder
        .set_xattrs(etc, [(&b"system.posix_acl_access"[..], &list[..])])
        .expect("a list");
    let manifest =
        Manifest::parse("[[entry]]\npath = \"etc\"\nmode = 0o540\n", Path::new("")).expect("manifest");
    manifest
        .apply(&mut builder, &opened, &Control::unwatched())
        .expect("laid over");
    builder.finish().expect("finish");
    let image = Image::of(&storage);
    image.assert_clean("with a changed list");
    let output = image.mounted("cd \"$1\"; stat -c %a etc; getfacl -ncE etc; cd /");
    assert_eq!(
        output,
        "540\nuser::r-x\nuser:7:rw-\ngroup::r-x\nmask::r--\nother::---\n\n"
    );
}
