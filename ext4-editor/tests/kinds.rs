//! The same changes of filesystems of every kind, judged by e2fsck and by the kernel, which goes on writing then.

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{Image, KINDS, NOW};
use ext4_editor::{Attributes, Contents, Editor, LastLink, Special};

fn is_writable_with_xattrs(kind: &str) -> bool {
    !kind.contains("^ext_attr")
}

/// Files for the changes to meet, made by the kernel.
const BEFORE: &str = r#"
    umask 022
    mkdir -p etc/ssh var/log home/user many
    echo old-name >etc/hostname; echo 127.0.0.1 localhost >etc/hosts; head -c 300000 /dev/urandom >var/log/big
    echo -n tiny >etc/tiny; ln -s /etc/hostname etc/name; ln etc/hosts etc/hosts.too; ln -s nowhere etc/dangling
    for i in $(seq 0 2 100); do dd if=/dev/urandom of=var/log/pieces bs=1024 count=1 seek=$i conv=notrunc status=none; done
    for i in $(seq 600); do : >"many/a name that takes room in the directory $i"; done
    mkdir -p tree/a/b/c tree/d; head -c 5000 /dev/urandom >tree/a/file; ln -s $(head -c 200 /dev/zero | tr '\0' x) tree/a/b/link
    ln tree/a/file tree/d/hard; ln tree/a/file kept; mkfifo tree/fifo; mknod tree/null c 1 3
"#;

/// What instances get, and templates lose.
fn personalise(editor: &mut Editor) -> block::Result<()> {
    editor.put(b"/etc/hostname", b"instance-1\n", &Attributes::default())?;
    editor.put(
        b"/etc/machine-id",
        b"0123456789abcdef0123456789abcdef\n",
        &Attributes::of(0o444),
    )?;
    editor.put(b"/etc/tiny", &[b't'; 5000], &Attributes::of(0o600))?;
    editor.put(b"/var/log/big", b"", &Attributes::default())?;
    editor.put(b"/var/log/pieces", &vec![b'p'; 70_000], &Attributes::default())?;
    editor.make_directories(
        b"/home/user/.ssh/more",
        &Attributes::of(0o700).owned_by(1000, 70_000),
    )?;
    let key = Attributes::of(0o600).owned_by(1000, 70_000);
    editor.put(b"/home/user/.ssh/authorized_keys", b"ssh-ed25519 AAAA\n", &key)?;
    editor.symlink(
        b"/etc/localtime",
        b"../usr/share/zoneinfo/UTC",
        &Attributes::default(),
    )?;
    editor.symlink(b"/etc/long", &[b'l'; 700], &Attributes::default())?;
    editor.make_special(
        b"/console",
        Special::CharacterDevice(5, 1),
        &Attributes::of(0o600),
    )?;
    editor.make_special(
        b"/disk",
        Special::BlockDevice(259, 70_000),
        &Attributes::of(0o660),
    )?;
    editor.make_special(b"/pipe", Special::Fifo, &Attributes::default())?;
    editor.remove(b"/etc/dangling")?;
    editor.remove(b"/etc/hosts.too")?;
    editor.remove_tree(b"/tree")?;
    editor.link(b"/etc/hosts", b"/hosts")?;
    editor.rename(b"/kept", b"/home/user/moved")?;
    editor.rename(b"/var/log", b"/home/log")?;
    let modified = ext4_builder::Time {
        secs: 1_000_000_000,
        nanos: 0,
    };
    let attributes = Attributes {
        uid: Some(7),
        modified: Some(modified),
        ..Attributes::of(0o640)
    };
    editor.set_attributes(b"/etc/hosts", LastLink::Follow, &attributes)
}

fn add_names(editor: &mut Editor) -> block::Result<()> {
    for number in 0..700 {
        let name = format!("/many/new name of some length, so that leaves are split, number {number}");
        editor.put(name.as_bytes(), b"x", &Attributes::default())?;
    }
    for number in (1..600).step_by(2) {
        let name = format!("/many/a name that takes room in the directory {number}");
        editor.remove(name.as_bytes())?;
    }
    Ok(())
}

#[test]
fn every_kind_is_changed_as_the_kernel_sees_it_and_goes_on_with() {
    for kind in KINDS {
        let image = Image::of_kind(48 << 20, kind);
        image.change(BEFORE);
        let before = image.tree();
        image.edit(|editor| {
            personalise(editor).unwrap_or_else(|error| panic!("{kind}: {error:?}"));
            add_names(editor).unwrap_or_else(|error| panic!("{kind}: {error:?}"));
        });
        image.assert_clean(kind);
        let after = image.tree();
        let content = |path: &str| after[path.as_bytes()].content.clone();
        assert_eq!(content("etc/hostname"), b"instance-1\n", "{kind}");
        assert_eq!(content("etc/tiny"), [b't'; 5000], "{kind}");
        assert_eq!(content("etc/localtime"), b"../usr/share/zoneinfo/UTC", "{kind}");
        assert_eq!(content("etc/long"), [b'l'; 700], "{kind}");
        assert_eq!(content("home/log/pieces"), vec![b'p'; 70_000], "{kind}");
        assert_eq!(content("home/log/big"), b"", "{kind}");
        assert_eq!(content("home/user/moved"), before[&b"kept"[..]].content, "{kind}");
        assert_eq!(after[&b"home/user/moved"[..]].links, 1, "{kind}");
        let keys = &after[&b"home/user/.ssh/authorized_keys"[..]];
        assert_eq!(
            (keys.mode, keys.uid, keys.gid),
            (0o100_600, 1000, 70_000),
            "{kind}"
        );
        let has_nanos = !kind.contains("-I 128");
        let nanos = if has_nanos { i64::from(NOW.nanos) } else { 0 };
        assert_eq!(keys.modified, (NOW.secs, nanos), "{kind}");
        let hosts = &after[&b"hosts"[..]];
        assert_eq!((hosts.mode, hosts.uid, hosts.links), (0o100_640, 7, 2), "{kind}");
        assert_eq!(hosts.modified, (1_000_000_000, 0), "{kind}");
        assert_eq!(hosts.content, before[&b"etc/hosts"[..]].content, "{kind}");
        assert_eq!(
            after.keys().filter(|path| path.starts_with(b"many/")).count(),
            1000,
            "{kind}"
        );
        assert!(!after.keys().any(|path| path.starts_with(b"tree")), "{kind}");
        assert_eq!(after[&b""[..]].links, before[&b""[..]].links - 1, "{kind}");
        assert_eq!(after[&b"home"[..]].links, 4, "{kind}");
        assert_eq!(after[&b"home/user"[..]].links, 3, "{kind}");

        image.change(
            "cp -a etc etc2; rm -r many home/log; for i in $(seq 500); do echo $i >etc/new$i; done; sync",
        );
        image.assert_clean(&format!("{kind}, after the kernel"));
        let last = image.tree();
        assert_eq!(last[&b"etc2/tiny"[..]].content, [b't'; 5000], "{kind}");
        assert_eq!(last[&b"etc/new500"[..]].content, b"500\n", "{kind}");
    }
}

#[test]
fn holes_take_no_room_in_any_kind_and_are_read_as_zeros_by_the_kernel() {
    // Three GiB: data inside of a block, from one into the next, over many, and before a hole at the end.
    const LEN: u64 = 3 << 30;
    let data = [
        5_000..5_001,
        70_000..90_000,
        1 << 20..5 << 20,
        2_200_000_333..2_200_100_000,
    ];
    let byte = |offset: u64| (offset % 251) as u8 + 1;
    for kind in KINDS.into_iter().chain(["-t ext2 -b 1024 -O ^large_file"]) {
        let image = Image::of_kind(48 << 20, kind);
        image.edit(|editor| {
            let mut read = |buffer: &mut [u8], from: u64| {
                for (at, place) in buffer.iter_mut().enumerate() {
                    let offset = from + at as u64;
                    *place = if data.iter().any(|range| range.contains(&offset)) {
                        byte(offset)
                    } else {
                        0
                    };
                }
                Ok(())
            };
            // The second time in the place of contents.
            for _ in 0..2 {
                let contents = Contents {
                    len: LEN,
                    data: &data,
                    read: &mut read,
                };
                editor
                    .put_sparse(b"/sparse", contents, &Attributes::default())
                    .unwrap();
            }
            let contents = Contents {
                len: LEN,
                data: &[],
                read: &mut |_, _| panic!("there is nothing"),
            };
            editor
                .put_sparse(b"/hole", contents, &Attributes::default())
                .unwrap();
        });
        image.assert_clean(kind);
        let mounted = image.mount("ro");
        for (name, most) in [("sparse", 5 << 20), ("hole", 0)] {
            let file = mounted.0.join(name).metadata().unwrap();
            assert_eq!(file.len(), LEN, "{kind}");
            assert!(file.blocks() * 512 <= most, "{kind}: {} blocks", file.blocks());
        }
        let file = File::open(mounted.0.join("sparse")).unwrap();
        for range in &data {
            // With what is around.
            let (start, end) = (range.start - 5_000, range.end + 5_000);
            let mut seen = vec![0; (end - start) as usize];
            file.read_exact_at(&mut seen, start).unwrap();
            let is_right = |(at, seen): (usize, &u8)| {
                let offset = start + at as u64;
                let is_data = data.iter().any(|range| range.contains(&offset));
                *seen == if is_data { byte(offset) } else { 0 }
            };
            assert!(seen.iter().enumerate().all(is_right), "{kind}: {range:?}");
        }
    }
}

#[test]
fn parts_that_are_not_in_order_or_longer_than_a_file_can_be_are_refused() {
    for (kind, len, data, why) in [
        ("-t ext4", 100, vec![50..60, 10..20], "not in order"),
        ("-t ext4", 100, vec![10..20, 50..101], "beyond their end"),
        (
            "-t ext4 -b 1024",
            1 << 43,
            vec![],
            "more blocks than a file can have",
        ),
        (
            "-t ext2 -b 1024",
            1 << 35,
            vec![0..1, 2..3],
            "too large for a filesystem without extents",
        ),
    ] {
        let image = Image::of_kind(16 << 20, kind);
        image.edit(|editor| {
            let contents = Contents {
                len,
                data: &data,
                read: &mut |_, _| Ok(()),
            };
            let error = editor
                .put_sparse(b"/file", contents, &Attributes::default())
                .unwrap_err();
            assert!(error.to_string().contains(why), "{kind}: {error}");
        });
        image.assert_clean(kind);
    }
}

#[test]
fn extended_attributes_come_go_and_are_shared() {
    for kind in KINDS.into_iter().filter(|kind| is_writable_with_xattrs(kind)) {
        let image = Image::of_kind(32 << 20, kind);
        image.change(
            r#"
            echo -n small >a; echo b >b; mkdir d; echo -n inline-$(head -c 30 /dev/zero | tr '\0' i) >c
            for f in a b d; do setfattr -n user.same -v "$(head -c 600 /dev/zero | tr '\0' s)" $f; done
            setfattr -n security.selinux -v system_u:object_r:etc_t:s0 c; setfacl -m u:1234:r c
            "#,
        );
        let before = image.tree();
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        image.edit(|editor| {
            let mut set = |path: &[u8], name: &[u8], value: &[u8]| {
                editor
                    .set_xattr(path, LastLink::Keep, name, value)
                    .unwrap_or_else(|error| panic!("{kind}: {error:?}"));
            };
            set(b"/a", b"user.same", b"other");
            set(b"/a", b"security.capability", &capability);
            set(b"/b", b"user.more", &[7; 300]);
            set(b"/d", b"user.in-directory", b"");
            set(b"/c", b"user.large", &[9; 400]);
            set(b"/c", b"security.selinux", b"system_u:object_r:hostname_etc_t:s0");
            editor.remove_xattr(b"/d", LastLink::Keep, b"user.same").unwrap();
            editor
                .set_attributes(b"/c", LastLink::Keep, &Attributes::of(0o750))
                .unwrap();
            let error = editor
                .remove_xattr(b"/d", LastLink::Keep, b"user.none")
                .unwrap_err();
            assert_eq!(error.kind(), block::ErrorKind::InvalidInput);
        });
        image.assert_clean(kind);
        let after = image.tree();
        let get = |path: &[u8], name: &str| {
            let xattrs = &after[path].xattrs;
            xattrs
                .iter()
                .find(|(other, _)| other == name.as_bytes())
                .map(|(_, value)| value.clone())
        };
        assert_eq!(get(b"a", "user.same").unwrap(), b"other", "{kind}");
        assert_eq!(get(b"a", "security.capability").unwrap(), capability, "{kind}");
        assert_eq!(get(b"b", "user.same").unwrap(), [b's'; 600], "{kind}");
        assert_eq!(get(b"b", "user.more").unwrap(), [7; 300], "{kind}");
        assert_eq!(get(b"d", "user.in-directory").unwrap(), b"", "{kind}");
        assert_eq!(get(b"d", "user.same"), None, "{kind}");
        assert_eq!(get(b"c", "user.large").unwrap(), [9; 400], "{kind}");
        assert_eq!(
            get(b"c", "security.selinux").unwrap(),
            b"system_u:object_r:hostname_etc_t:s0",
            "{kind}"
        );
        // The mask follows the group's permissions.
        let list = common::list(&[(1, 7, !0), (2, 4, 1234), (4, 4, !0), (16, 5, !0), (32, 0, !0)]);
        assert_eq!(get(b"c", "system.posix_acl_access").unwrap(), list, "{kind}");
        assert_eq!(after[&b"c"[..]].mode, 0o100_750, "{kind}");
        for path in [&b"a"[..], b"b", b"c"] {
            assert_eq!(after[path].content, before[path].content, "{kind}");
        }
        image.edit(|editor| {
            for path in [&b"/a"[..], b"/b", b"/c", b"/d"] {
                editor.remove(path).unwrap();
            }
        });
        image.assert_clean(&format!("{kind}, after removal"));
    }
}
