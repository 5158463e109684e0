//! What deleted files leave on the disk: found in every kind of filesystem, and not missed by e2fsck and the kernel when it
//! is gone.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use common::{Image, KINDS, run};
use ext4_editor::Attributes;

/// The texts that start with the secret, each once.
fn secrets(image: &Image) -> Vec<String> {
    let mut grep = Command::new("grep");
    let found = run(grep.args(["-aoE", "the-secret-of-[a-z]+"]).arg(&image.path));
    let text = String::from_utf8(found.stdout).unwrap();
    let found: BTreeSet<String> = text
        .lines()
        .map(|line| line["the-secret-of-".len()..].to_owned())
        .collect();
    found.into_iter().collect()
}

#[test]
fn what_deleted_files_leave_is_found_in_every_kind() {
    for kind in KINDS {
        let image = Image::of_kind(16 << 20, kind);
        // Short ones are in the inode where that can be; long links are in the journal as well.
        image.change(
            r"
            mkdir -p kept gone/deep
            echo the-secret-of-short >gone/short
            yes the-secret-of-long | head -n 2000 >gone/deep/long || :
            ln -s the-secret-of-links$(head -c 300 /dev/zero | tr '\0' x) gone/link
            for i in $(seq 300); do echo $i >kept/$i; done
            yes the-secret-of-editor | head -n 2000 >kept/editor || :
            yes kept | head -n 2000 >kept/text || :
            sync
            rm -r gone
            for i in $(seq 1 2 300); do echo kept/$i; done | xargs rm
            ",
        );
        image.edit(|editor| {
            editor.remove(b"/kept/editor").unwrap();
            editor.remove_tree(b"/kept/1").unwrap_err();
            editor.put(b"/kept/new", b"new", &Attributes::default()).unwrap();
        });
        let left = secrets(&image);
        assert!(
            left.contains(&"long".to_owned()) && left.contains(&"editor".to_owned()),
            "{kind}: {left:?}"
        );
        let tree = image.tree();
        let editor = image.open();
        let leftovers = editor.leftovers().unwrap();
        assert!(leftovers.windows(2).all(|pair| pair[0].end < pair[1].start));
        let file = fs::OpenOptions::new().write(true).open(&image.path).unwrap();
        for range in leftovers {
            let zeros = vec![0; (range.end - range.start) as usize];
            file.write_all_at(&zeros, range.start).unwrap();
        }
        assert_eq!(secrets(&image), [""; 0], "{kind}");
        image.assert_clean(kind);
        assert!(image.tree() == tree, "{kind}: the tree has changed");
        // And a kernel goes on writing.
        image.change("seq 10000 >again; rm -r kept");
        image.assert_clean(kind);
    }
}

#[test]
fn room_that_a_file_has_reserved_is_found_and_its_content_is_not() {
    let image = Image::new("64M", "-t ext4");
    // Most of what is free holds the secret when room is reserved.
    image.change(
        r"
        yes the-secret-of-all | head -c 40M >gone; sync; rm gone; sync
        fallocate -l 20M reserved; echo content | dd of=reserved conv=notrunc status=none
        echo content >past; fallocate -n -l 15M past
        ",
    );
    let tree = image.tree();
    let leftovers = image.open().leftovers().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&image.path).unwrap();
    for range in leftovers {
        file.write_all_at(&vec![0; (range.end - range.start) as usize], range.start)
            .unwrap();
    }
    assert_eq!(secrets(&image), [""; 0]);
    image.assert_clean("reserved");
    assert!(image.tree() == tree);
}

#[test]
fn nothing_is_left_over_while_changes_are_not_committed() {
    let image = Image::new("16M", "-t ext4");
    let mut editor = image.open();
    editor.put(b"/a", b"a", &Attributes::default()).unwrap();
    let error = editor.leftovers().unwrap_err();
    assert!(error.to_string().contains("committed"), "{error}");
    editor.commit().unwrap();
    assert!(!editor.leftovers().unwrap().is_empty());
}

#[test]
fn names_of_deleted_files_go_from_directories_of_every_kind() {
    for kind in KINDS {
        let image = Image::of_kind(16 << 20, kind);
        // A kernel leaves copies where blocks of names are split, and debugfs what it deletes.
        image.change(
            r#"
            mkdir -p few many/deep inline
            touch few/kept few/the-secret-of-few inline/a inline/the-secret-of-inline
            x=$(head -c 60 /dev/zero | tr '\0' x)
            for i in {a..z}; do for j in {a..h}; do echo "many/the-secret-of-many$i$j$x" "many/kept$i$j$x"; done; done | xargs touch
            sync
            rm many/the-secret-of-many*
            "#,
        );
        for path in ["few/the-secret-of-few", "inline/the-secret-of-inline"] {
            let delete = format!("rm {path}");
            run(Command::new("debugfs")
                .args(["-w", "-R", &delete])
                .arg(&image.path));
        }
        image.edit(|editor| editor.remove(b"/many/deep").unwrap());
        let tree = image.tree();
        assert!(!tree.contains_key(b"few/the-secret-of-few".as_slice()));
        let mut editor = image.open();
        editor.forget_names().unwrap();
        let leftovers = editor.leftovers().unwrap();
        drop(editor);
        let file = fs::OpenOptions::new().write(true).open(&image.path).unwrap();
        for range in leftovers {
            let zeros = vec![0; (range.end - range.start) as usize];
            file.write_all_at(&zeros, range.start).unwrap();
        }
        assert_eq!(secrets(&image), [""; 0], "{kind}");
        image.assert_clean(kind);
        assert!(image.tree() == tree, "{kind}: the tree has changed");
        image.change("for i in {1..300}; do touch many/$i few/$i; done; rm -r many few");
        image.assert_clean(kind);
    }
}
