//! What cannot be changed, and filesystems that are full: refused with the reason, and nothing is changed.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use block::ErrorKind;
use common::{Image, succeed};
use ext4_editor::{Attributes, Durability, Editor, LastLink, Options};

#[test]
fn features_that_cannot_be_kept_right_are_refused_by_name() {
    for (options, name) in [
        ("-t ext4 -O bigalloc -C 16384", "bigalloc"),
        ("-t ext4 -O quota", "quota"),
        ("-t ext4 -O encrypt", "encrypt"),
        ("-t ext4 -O casefold -E encoding=utf8", "casefold"),
        ("-t ext4 -O mmp", "mmp"),
        ("-t ext4 -O verity", "verity"),
    ] {
        let image = Image::new("32M", options);
        let error = image.try_open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{options}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_says_that_it_is_damaged_or_was_not_unmounted_is_refused() {
    for (kind, request, problem) in [
        ("-t ext4", "ssv state 3", "having errors"),
        ("-t ext2", "ssv state 0", "was not unmounted"),
        ("-t ext4", "ssv last_orphan 12", "an orphan"),
    ] {
        let image = Image::new("8M", kind);
        succeed(
            Command::new("debugfs")
                .args(["-w", "-R", request])
                .arg(&image.path),
        );
        let error = image.try_open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.hint().unwrap().contains("e2fsck"));
    }
}

#[test]
fn contents_that_are_not_committed_leave_room_reserved_that_was() {
    let image = Image::new("64M", "-t ext4");
    succeed(Command::new("fallocate").args(["-l", "64M"]).arg(&image.path));
    let room = || fs::metadata(&image.path).unwrap().blocks() * 512;
    let (before, plain) = (room(), Attributes::default());
    let large = vec![7; 12 << 20];
    let mut editor = image.open();
    editor.put(b"/large", &large, &plain).unwrap();
    drop(editor);
    assert_eq!(room(), before);
    image.assert_clean("dropped");

    // An operation that fails leaves the others to be committed.
    image.edit(|editor| {
        editor.put(b"/one", &large[..1 << 20], &plain).unwrap();
        let error = editor
            .put_from(b"/two", 12 << 20, &mut &large[..11 << 20], &plain)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        editor.put(b"/three", &large[..1 << 20], &plain).unwrap();
    });
    assert_eq!(room(), before);
    image.assert_clean("one of three");
    let tree = image.tree();
    for name in [&b"one"[..], b"three"] {
        assert!(tree[name].content == large[..1 << 20]);
    }
    assert!(!tree.contains_key(&b"two"[..]));
}

#[test]
fn a_full_disk_fails_the_operation_and_nothing_else() {
    for kind in ["-t ext4", "-t ext4 -b 1024", "-t ext3 -b 1024"] {
        let image = Image::new("8M", kind);
        let mut editor = image.open();
        editor.put(b"/kept", b"before", &Attributes::default()).unwrap();
        let free = editor.free_bytes();
        let error = editor
            .put(b"/large", &vec![1; free as usize + 1], &Attributes::default())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{kind}");
        assert_eq!(editor.free_bytes(), free, "{kind}");
        let error = editor
            .put(b"/kept", &vec![1; free as usize + 1], &Attributes::default())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{kind}");
        // To the last block, in pieces.
        let mut number = 0;
        loop {
            let path = format!("/file{number}");
            match editor.put(
                path.as_bytes(),
                &vec![number as u8; 70_000],
                &Attributes::default(),
            ) {
                Ok(()) => number += 1,
                Err(error) => break assert_eq!(error.kind(), ErrorKind::NoSpace, "{kind}"),
            }
        }
        assert!(number > 40, "{kind}");
        editor.commit().unwrap();
        image.assert_clean(kind);
        let tree = image.tree();
        assert_eq!(tree[&b"kept"[..]].content, b"before");
        assert!(!tree.contains_key(&b"large"[..]));
        // What is freed can be used after the next commit, and not before.
        let mut editor = image.open();
        editor.remove(b"/file0").unwrap();
        editor.remove(b"/file1").unwrap();
        let error = editor
            .put(b"/again", &vec![9; 100_000], &Attributes::default())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{kind}");
        assert!(error.hint().unwrap().contains("committed"), "{error:?}");
        editor.commit().unwrap();
        editor
            .put(b"/again", &vec![9; 100_000], &Attributes::default())
            .unwrap();
        editor.commit().unwrap();
        image.assert_clean(kind);
    }
}

#[test]
fn without_inodes_no_file_is_made() {
    let image = Image::new("8M", "-t ext4 -N 16");
    let mut editor = image.open();
    let mut made = 0_u32;
    let error = loop {
        match editor.put(format!("/{made}").as_bytes(), b"x", &Attributes::default()) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("inodes"), "{error}");
    editor.commit().unwrap();
    image.assert_clean("no inodes");
    assert_eq!(image.tree().len() as u32, made + 2);
}

#[test]
fn a_change_that_is_larger_than_the_journal_is_refused_or_made_at_once() {
    let image = Image::new("64M", "-t ext4 -b 1024 -N 20000 -J size=1");
    let fill = |editor: &mut Editor| {
        for number in 0..9000 {
            let path = format!("/{number}");
            editor.put(path.as_bytes(), b"", &Attributes::default()).unwrap();
        }
    };
    let before = image.tree();
    let mut editor = image.open();
    fill(&mut editor);
    let error = editor.commit().unwrap_err();
    assert!(error.to_string().contains("larger than the journal"), "{error}");
    drop(editor);
    image.assert_clean("refused");
    assert!(image.tree() == before);

    let storage = raw::OpenOptions::new()
        .write(true)
        .lock(false)
        .open(&image.path)
        .unwrap();
    let options = Options {
        durability: Durability::Expendable,
        ..Options::new(common::NOW)
    };
    let mut editor = Editor::open(common::disk(std::sync::Arc::new(storage)), options).unwrap();
    fill(&mut editor);
    editor.commit().unwrap();
    image.assert_clean("at once");
    assert_eq!(image.tree().len(), before.len() + 9000);
}

#[test]
fn paths_and_names_that_cannot_be_are_refused() {
    let image = Image::new("8M", "-t ext4");
    image.change("echo x >file; mkdir -p dir/below; ln -s nowhere dangling; echo y >fixed; chattr +i fixed; ln -s self self");
    let before = image.tree();
    let mut editor = image.open();
    let plain = Attributes::default();
    let long = [b"/".to_vec(), vec![b'n'; 256]].concat();
    for path in [
        &b"/"[..],
        b"",
        b"/dir/..",
        b"/dir/.",
        b"/none/file",
        b"/file/below",
        b"/dir",
        b"/dangling",
        b"/self",
        b"/a\0b",
        &long,
    ] {
        let error = editor.put(path, b"x", &plain).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path:?}: {error}");
    }
    let errors = [
        editor.remove(b"/"),
        editor.remove(b"/none"),
        editor.remove(b"/dir"),
        editor.remove(b"/fixed"),
        editor.put(b"/fixed", b"", &plain),
        editor.rename(b"/fixed", b"/other"),
        editor.rename(b"/dir", b"/dir/below/dir"),
        editor.rename(b"/dir", b"/file"),
        editor.rename(b"/file", b"/dir"),
        editor.rename(b"/none", b"/other"),
        editor.make_directory(b"/file", &plain),
        editor.make_directories(b"/file/below", &plain),
        editor.link(b"/dir", b"/other"),
        editor.link(b"/file", b"/dir"),
        editor.symlink(b"/link", b"", &plain),
        editor.symlink(b"/link", &[b'x'; 4096], &plain),
        editor.set_xattr(b"/file", LastLink::Keep, b"unknown.name", b""),
        editor.set_xattr(b"/file", LastLink::Keep, b"user.x", &[0; 5000]),
        editor.set_xattr(b"/file", LastLink::Keep, b"system.posix_acl_access", b"none"),
        editor.set_attributes(b"/none", LastLink::Keep, &Attributes::of(0o600)),
    ];
    for (number, result) in errors.into_iter().enumerate() {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{number}: {error}");
    }
    editor.commit().unwrap();
    image.assert_clean("nothing done");
    assert!(image.tree() == before);
    let short = &mut &b"short"[..];
    let error = image.open().put_from(b"/file", 10, short, &plain).unwrap_err();
    assert!(error.to_string().contains("end before"), "{error}");
}
