//! Any image of a filesystem, and a few changes of it: they end without a panic, and errors are those of what is damaged or
//! cannot be. In a sound filesystem, all is sound afterwards: names count as links, and no two files have the same block.
//!
//! The last bytes are the changes. An image is changed as in the target `filesystem`.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{Access, ErrorKind, MemStorage, Result, Storage};
use ext4_builder::{Builder, Size, Time};
use ext4_editor::{Attributes, Durability, Editor, LastLink, Options, Special};
use ext4_reader::{FileKind, Filesystem, InodeNumber};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

/// Bytes of the disk.
const DISK: u64 = 3 << 20;

/// Bytes that say what is changed: one for all, and four for each change.
const CHANGES: usize = 1 + 4 * 8;

/// What the trees have, and what may be added.
const PATHS: [&str; 16] = [
    "/etc",
    "/etc/hostname",
    "/home/user/file",
    "/home/user",
    "/link",
    "/file",
    "/hard link",
    "/many",
    "/many/new",
    "/sparse",
    "/pieces",
    "/symlink",
    "/new",
    "/new/below",
    "/new/below/more",
    "/lost+found",
];

fuzz_target!(|bytes: &[u8]| {
    let Some((image, changes)) = bytes.split_last_chunk::<CHANGES>() else {
        return;
    };
    let (how, changes) = (changes[0], &changes[1..]);
    let storage = MemStorage::from(image.to_vec());
    storage.set_len(DISK.max(image.len() as u64)).expect("memory");
    match change(&Arc::new(storage), how, changes) {
        Ok(_) => {}
        Err(error) => assert!(is_expected(error.kind()), "{error:?}"),
    }
    let sound = Arc::new(sound(how));
    let changed = change(&sound, how, changes).expect("a sound filesystem can be changed");
    assert!(
        changed.iter().all(|kind| *kind != ErrorKind::Corrupt),
        "{changed:?}"
    );
    let filesystem = fuzz::open((*sound).clone()).expect("it can be opened");
    fuzz::tree(&filesystem).expect("it can be read");
    check(&filesystem).expect("it can be read");
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    fuzz::change_a_block(data, size, max_size, seed)
});

fn is_expected(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::InvalidInput | ErrorKind::NoSpace
    )
}

/// A filesystem without a fault, with little room.
fn sound(how: u8) -> MemStorage {
    let storage = MemStorage::new();
    let options = ext4_builder::Options {
        size: Size::Given(DISK),
        ..fuzz::options(how)
    };
    let mut builder = Builder::new(&storage, options).expect("options");
    fuzz::small_tree(&mut builder);
    builder.finish().expect("it fits");
    storage
}

/// Makes the changes, and tells how those failed that did.
fn change(storage: &Arc<MemStorage>, how: u8, changes: &[u8]) -> Result<Vec<ErrorKind>> {
    let disk = Arc::new(raw::Image::open(storage.clone(), Access::WRITE)?);
    let options = Options {
        durability: match how & 16 {
            0 => Durability::Atomic,
            _ => Durability::Expendable,
        },
        ..Options::new(Time::default())
    };
    let mut editor = Editor::open(disk, options)?;
    let mut failed = Vec::new();
    for change in changes.as_chunks::<4>().0 {
        if let Err(error) = change_one(&mut editor, *change) {
            assert!(is_expected(error.kind()), "{error:?}");
            failed.push(error.kind());
        }
    }
    editor.commit()?;
    Ok(failed)
}

fn change_one(editor: &mut Editor, [what, path, other, len]: [u8; 4]) -> Result<()> {
    let name = |byte: u8| PATHS[usize::from(byte) % PATHS.len()].as_bytes();
    let (path, to) = (name(path), name(other));
    let attributes = Attributes::of(u16::from(other)).owned_by(len.into(), other.into());
    match what % 13 {
        0 => editor.put(path, &vec![other; usize::from(len) * 100], &attributes),
        1 => editor.put(path, &vec![other; len.into()], &attributes),
        2 => editor.make_directory(path, &attributes),
        3 => editor.make_directories(path, &attributes),
        4 => editor.remove(path),
        5 => editor.remove_tree(path),
        6 => editor.rename(path, to),
        7 => editor.link(path, to),
        8 => editor.symlink(path, &vec![b'a'; len.into()], &attributes),
        9 => editor.make_special(path, Special::BlockDevice(len.into(), other.into()), &attributes),
        10 => editor.set_xattr(
            path,
            LastLink::Keep,
            b"user.a",
            &vec![other; usize::from(len) * 8],
        ),
        11 => editor.remove_xattr(path, LastLink::Keep, b"user.a"),
        // The least of a commit is what was changed before it.
        _ => editor.commit(),
    }
}

/// Counts names and blocks.
fn check(filesystem: &Filesystem) -> Result<()> {
    let mut names: BTreeMap<u32, u16> = BTreeMap::new();
    let mut blocks = Vec::new();
    let mut left = vec![InodeNumber::ROOT];
    *names.entry(InodeNumber::ROOT.0).or_default() += 1;
    while let Some(number) = left.pop() {
        let inode = filesystem.inode(number)?;
        // Its own name.
        *names.entry(number.0).or_default() += 1;
        for entry in filesystem.read_dir(&inode)? {
            let below = filesystem.inode(entry.inode)?;
            let is_new = !names.contains_key(&entry.inode.0);
            *names.entry(entry.inode.0).or_default() += 1;
            if below.kind() == FileKind::Directory {
                // What is above it is named in it.
                *names.entry(number.0).or_default() += 1;
                left.push(entry.inode);
            }
            if is_new && matches!(below.kind(), FileKind::Regular | FileKind::Directory) {
                for run in filesystem.content(&below)? {
                    let run = run?;
                    blocks.extend(run.disk_offset(filesystem).map(|start| (start, start + run.len)));
                }
            }
        }
    }
    for (number, count) in names {
        let links = filesystem.inode(InodeNumber(number))?.links();
        assert_eq!(links, count, "links of inode {number}");
    }
    blocks.sort_unstable();
    for pair in blocks.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "files share blocks: {pair:?}");
    }
    Ok(())
}
