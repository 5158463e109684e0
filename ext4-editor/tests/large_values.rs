//! Extended attributes whose values have inodes of their own (`ea_inode`), made by the kernel and here, and judged by both.
//!
//! Loop mounts need root.

mod common;

use common::Image;
use ext4_editor::{Attributes, LastLink};

const KINDS: [&str; 4] = [
    "-t ext4 -O ea_inode -b 4096",
    "-t ext4 -O ea_inode -b 1024",
    "-t ext4 -O ea_inode,^metadata_csum,^orphan_file",
    "-t ext4 -O ea_inode,inline_data -I 512",
];

fn value(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8 ^ seed).collect()
}

/// What the kernel says of a file's attributes.
fn of(image: &Image, path: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    image.tree()[path.as_bytes()].xattrs.clone()
}

#[test]
fn large_values_are_written_kept_replaced_and_removed() {
    for kind in KINDS {
        let image = Image::of_kind(32 << 20, kind);
        // Two share a value, and two a block.
        image.change(
            "set() { python3 -c 'import os, sys; os.setxattr(sys.argv[1], \"user.\" + sys.argv[2], bytes([int(sys.argv[3])]) * int(sys.argv[4]))' \"$@\"; }
             for name in a b c d e; do echo $name >$name; set $name kernel 7 20000; set $name small 1 10; done
             set a second 9 60000; head -c 100000 /dev/zero >large; set large kernel 7 20000; mkdir dir; set dir kernel 8 5000
             setfacl -m u:1234:r e",
        );
        let plain = Attributes::default();
        image.edit(|editor| {
            let mut set = |path: &[u8], name: &str, bytes: &[u8]| {
                editor
                    .set_xattr(path, LastLink::Keep, name.as_bytes(), bytes)
                    .unwrap_or_else(|error| panic!("{kind}: {name}: {error}"));
            };
            set(b"/a", "user.ours", &value(3, 40_000));
            set(b"/b", "user.kernel", &value(4, 30_000));
            set(b"/b", "user.kernel", &value(5, 65_536));
            set(b"/c", "user.tiny", b"x");
            set(b"/dir", "user.ours", &value(6, 12_345));
            editor
                .remove_xattr(b"/c", LastLink::Keep, b"user.kernel")
                .unwrap();
            editor.put(b"/new", b"new", &plain).unwrap();
            for number in 0..5 {
                let name = format!("user.{number}");
                editor
                    .set_xattr(b"/new", LastLink::Keep, name.as_bytes(), &value(number, 9000))
                    .unwrap();
            }
            // Contents, owner and mode of files with such values change too.
            editor.put(b"/large", &[1; 10], &plain).unwrap();
            editor.put(b"/dir/below", &[2; 5000], &plain).unwrap();
            editor
                .set_attributes(b"/e", LastLink::Keep, &Attributes::of(0o751).owned_by(5, 6))
                .unwrap();
            editor.remove(b"/d").unwrap();
        });
        image.assert_clean(kind);
        let get = |path: &str, name: &str| {
            let found = of(&image, path);
            let found = found.into_iter().find(|(other, _)| other == name.as_bytes());
            found.unwrap_or_else(|| panic!("{kind}: {path} has no {name}")).1
        };
        assert!(
            get("a", "user.ours") == value(3, 40_000) && get("a", "user.second") == vec![9; 60_000],
            "{kind}"
        );
        assert!(
            get("a", "user.kernel") == vec![7; 20_000] && get("b", "user.kernel") == value(5, 65_536),
            "{kind}"
        );
        assert!(
            get("e", "user.kernel") == vec![7; 20_000] && get("large", "user.kernel") == vec![7; 20_000],
            "{kind}"
        );
        assert!(
            get("dir", "user.ours") == value(6, 12_345) && get("dir", "user.kernel") == vec![8; 5000],
            "{kind}"
        );
        assert_eq!(of(&image, "c").len(), 2, "{kind}");
        for number in 0..5 {
            assert!(
                get("new", &format!("user.{number}")) == value(number, 9000),
                "{kind}"
            );
        }
        // The kernel goes on from there, and so does the next change.
        image.change("setfattr -x user.ours a; setfattr -n user.ours -v short dir; rm b new; cp --preserve=xattr e copy");
        image.assert_clean(kind);
        image.edit(|editor| {
            for path in [&b"/a"[..], b"/e", b"/copy", b"/large"] {
                editor.remove(path).unwrap();
            }
            editor.remove_tree(b"/dir").unwrap();
        });
        image.assert_clean(kind);
        assert_eq!(image.tree().len(), 3, "{kind}");
    }
}

#[test]
fn without_the_feature_a_large_value_is_refused() {
    let image = Image::new("8M", "-t ext4");
    image.change("echo x >file");
    let mut editor = image.open();
    let error = editor
        .set_xattr(b"/file", LastLink::Keep, b"user.large", &[1; 5000])
        .unwrap_err();
    assert!(error.to_string().contains("do not fit"), "{error}");
    image.assert_clean("refused");
}
