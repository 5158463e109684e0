//! Damaged and hostile filesystems: errors at worst, never a panic and never without an end.

mod common;

use std::sync::Arc;

use block::test_utils::Rng;
use block::{ErrorKind, MemStorage, Storage};
use common::{Image, NOW, disk};
use ext4_editor::{Attributes, Editor, LastLink, Options};

const FILL: &str = r"
    mkdir -p d/deep many inline; echo hello >d/file; head -c 100000 /dev/urandom >d/big; ln -s d/file link; echo x >inline/a
    for i in $(seq 0 2 60); do dd if=/dev/urandom of=pieces bs=1024 count=1 seek=$i conv=notrunc status=none; done
    for i in $(seq 300); do : >many/name-that-is-long-enough-to-fill-some-blocks-$i; done
    setfattr -n user.x -v $(head -c 500 /dev/zero | tr '\0' v) d/file; setfattr -n user.y -v y d
";

/// One that two files share, and one that is another's alone.
const LARGE_VALUES: &str = r"
    for name in d/file d/big; do setfattr -n user.shared -v $(head -c 3000 /dev/zero | tr '\0' s) $name; done
    setfattr -n user.large -v $(head -c 9000 /dev/zero | tr '\0' l) d/big
";

/// Tries everything. Gives how much of it was done.
fn try_everything(storage: MemStorage) -> usize {
    let plain = Attributes::default();
    let mut done = 0;
    let mut editor = match Editor::open(disk(Arc::new(storage)), Options::new(NOW)) {
        Ok(editor) => editor,
        Err(error) => {
            check(&error);
            return 0;
        }
    };
    let mut tried = |result: block::Result<()>| match result {
        Ok(()) => done += 1,
        Err(error) => check(&error),
    };
    tried(editor.put(b"/d/file", b"other", &plain));
    tried(editor.put(b"/d/new", &vec![1; 30_000], &plain));
    tried(editor.put(
        b"/many/name-that-is-new-and-long-enough-to-fill-a-leaf-some-time",
        b"",
        &plain,
    ));
    for number in 0..30 {
        let path = format!("/many/name-that-is-as-long-as-others-to-split-leaves-{number}");
        tried(editor.put(path.as_bytes(), b"", &plain));
    }
    tried(editor.remove(b"/many/name-that-is-long-enough-to-fill-some-blocks-7"));
    tried(editor.put(
        b"/inline/b-name-that-is-long-enough-to-be-elsewhere-than-in-the-inode",
        b"",
        &plain,
    ));
    tried(editor.make_directories(b"/d/deep/er/still", &plain));
    tried(editor.rename(b"/d/deep", b"/many/deep"));
    tried(editor.set_xattr(b"/d", LastLink::Follow, b"user.z", &[7; 300]));
    tried(editor.set_xattr(b"/d/big", LastLink::Follow, b"user.large", &[9; 4000]));
    tried(editor.set_xattr(b"/d/file", LastLink::Follow, b"user.own", &[8; 3000]));
    tried(editor.remove_xattr(b"/d/file", LastLink::Follow, b"user.shared"));
    tried(editor.remove(b"/pieces"));
    tried(editor.set_attributes(b"/link", LastLink::Keep, &Attributes::of(0o700)));
    tried(editor.remove_tree(b"/d"));
    tried(editor.remove_tree(b"/many"));
    tried(editor.grow(4 << 20));
    tried(editor.commit());
    done
}

fn check(error: &block::Error) {
    let expected = [
        ErrorKind::Corrupt,
        ErrorKind::Unsupported,
        ErrorKind::InvalidInput,
        ErrorKind::NoSpace,
        ErrorKind::OutOfBounds,
    ];
    assert!(expected.contains(&error.kind()), "{error:?}");
}

#[test]
fn random_damage_never_panics_and_always_ends() {
    for kind in [
        "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg,inline_data",
        "-t ext4 -b 1024 -O inline_data",
        "-t ext3 -b 1024",
        "-t ext4 -b 1024 -O ^metadata_csum,meta_bg,^resize_inode",
        "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg,ea_inode",
        "-t ext4 -b 1024 -O ea_inode",
    ] {
        let image = Image::new("4M", kind);
        image.change(FILL);
        if kind.contains("ea_inode") {
            image.change(LARGE_VALUES);
        }
        let bytes = image.in_memory().to_vec();
        let all = try_everything(image.in_memory());
        assert!(all > 30, "{kind}: {all}");
        // Blocks that hold something, but contents of files.
        let used: Vec<usize> = bytes
            .chunks(1024)
            .enumerate()
            .filter(|(_, block)| block.windows(16).any(|bytes| bytes == [0; 16]))
            .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
            .map(|(block, _)| block * 1024)
            .collect();
        let mut some = 0;
        for seed in 0..400 {
            let mut rng = Rng::new(seed);
            let mut damaged = bytes.clone();
            for _ in 0..=rng.below(12) {
                let block = used[rng.below(used.len() as u64) as usize];
                let at = block + rng.below(1024) as usize;
                // Where there is something, most of the time: zeros mean little.
                let at = (at..block + 1024).find(|at| damaged[*at] != 0).unwrap_or(at);
                damaged[at] = rng.next_u64() as u8;
            }
            let storage = MemStorage::new();
            storage.write_all_at(&damaged, 0).unwrap();
            some += usize::from(try_everything(storage) > 0);
        }
        assert!(some > 20, "{kind}: {some}");
    }
}

#[test]
fn whatever_the_superblock_and_the_journal_claim_is_checked() {
    let image = Image::new("4M", "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg");
    image.change(FILL);
    let bytes = image.in_memory().to_vec();
    let magic = 0xC03B_3998_u32.to_be_bytes();
    let journal = bytes
        .chunks(1024)
        .position(|block| block.starts_with(&[&magic[..], &[0, 0, 0, 4]].concat()))
        .unwrap();
    let descriptors = 2048;
    for start in [1024, journal * 1024, descriptors] {
        for field in (start..start + 0x180).step_by(4) {
            for value in [0, 1, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0xFF00_0000, 0x1_0000] {
                let mut damaged = bytes.clone();
                damaged[field..field + 4].copy_from_slice(&u32::to_le_bytes(value));
                let storage = MemStorage::new();
                storage.write_all_at(&damaged, 0).unwrap();
                try_everything(storage);
            }
        }
    }
}

#[test]
fn maps_that_name_the_filesystems_own_blocks_free_nothing_of_them() {
    // A file whose one extent is where the group's bitmaps are, in a filesystem without checksums to tell.
    let image = Image::new("8M", "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg,^flex_bg");
    image.change("echo x >file");
    let stats = image.debugfs("stats");
    let bitmap = stats.split("block bitmap at ").nth(1).unwrap();
    let bitmap: u32 = bitmap.split(',').next().unwrap().trim().parse().unwrap();
    common::succeed(
        std::process::Command::new("debugfs")
            .args(["-w", "-R", &format!("sif file block[5] {bitmap}")])
            .arg(&image.path),
    );
    let mut editor = image.open();
    let error = editor.remove(b"/file").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("metadata of block group"), "{error}");
}
