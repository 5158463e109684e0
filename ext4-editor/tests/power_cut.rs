//! Power that fails and I/O that errors while a change is made: the tree is as it was or as it was to be.

mod common;

use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;

use block::test_utils::{Fault, FaultStorage, IoOp, Recorder, seeds};
use block::{MemStorage, Storage};
use common::{Form, Image, NOW, Tree, disk, run, tree_of, with_journal};
use ext4_editor::{Attributes, Durability, Editor, LastLink, Options};

/// Filesystems, and the form of their journal.
const KINDS: [(&str, Form); 9] = [
    ("made here small", Form::Kernels),
    ("-t ext4 -b 1024", Form::Kernels),
    ("-t ext4 -b 1024", Form::Plain),
    ("-t ext4 -b 1024", Form::Checksum2),
    ("-t ext4 -b 1024 -O ^64bit", Form::Checksum2),
    ("-t ext4 -b 1024 -O ^metadata_csum", Form::Kernels),
    ("-t ext4 -b 1024 -O ^64bit,^metadata_csum", Form::Kernels),
    ("-t ext4 -b 2048 -O inline_data", Form::Kernels),
    ("-t ext3 -b 1024", Form::Kernels),
];

fn change(editor: &mut Editor) -> block::Result<()> {
    editor.put(b"/etc/hostname", b"new\n", &Attributes::default())?;
    // The first bytes of a block are those that the journal's own blocks start with.
    let magic = [&0xC03B_3998_u32.to_be_bytes()[..], &[7; 3000]].concat();
    editor.put(b"/etc/magic", &magic, &Attributes::of(0o600))?;
    editor.make_directories(b"/var/lib/cloud", &Attributes::default())?;
    for number in 0..40 {
        let path = format!("/var/lib/cloud/a file with a name that takes room {number}");
        editor.put(path.as_bytes(), b"contents", &Attributes::default())?;
    }
    editor.remove(b"/home/data")?;
    editor.rename(b"/etc", b"/home/etc")?;
    editor.set_xattr(b"/home/etc", LastLink::Keep, b"user.large", &[3; 500])
}

/// The tree but for where e2fsck puts what it finds.
fn without_lost(mut tree: Tree) -> Tree {
    tree.retain(|path, _| !path.starts_with(b"lost+found"));
    tree
}

fn options(durability: Durability) -> Options {
    Options {
        durability,
        ..Options::new(NOW)
    }
}

/// Has e2fsck do what it does at boot after a crash.
fn recovered(disk: &MemStorage, when: &str) -> Tree {
    let image = Image::of(disk);
    let output = run(Command::new("e2fsck").arg("-fy").arg(&image.path));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() < Some(4), "{when}: {text}");
    image.assert_clean(when);
    tree_of(&image.in_memory()).unwrap()
}

#[test]
fn a_power_cut_leaves_the_old_tree_or_the_new() {
    for (kind, form) in KINDS {
        let image = with_journal(kind, form);
        let before = image.in_memory();
        let recorder = Recorder::new();
        let storage = recorder.storage(before.clone());
        let mut editor = Editor::open(disk(storage.clone()), options(Durability::Atomic)).unwrap();
        change(&mut editor).unwrap();
        let uncommitted = recorder.position();
        editor.commit().unwrap();
        let states = recorder.crash_states();
        let old = without_lost(tree_of(&before).unwrap());
        let end = *states.points().end();
        let new = without_lost(tree_of(&states.at(end, 0)[0]).unwrap());
        assert!(old != new && new.contains_key(&b"home/etc/magic"[..]));
        Image::of(&states.at(end, 0)[0]).assert_clean(kind);

        let mut seen = [0; 2];
        for point in states.points() {
            let count = if point > uncommitted { 10 } else { 2 };
            for seed in seeds(count) {
                let when = format!("{kind} {form:?}, point {point} of {end}, seed {seed}");
                let crashed = states.at(point, seed).remove(0);
                let read = without_lost(tree_of(&crashed).unwrap_or_else(|error| panic!("{when}: {error}")));
                assert!(read == old || read == new, "{when}");
                assert!(read == old || point > uncommitted, "{when}");
                seen[usize::from(read == new)] += 1;
                // The other judge takes longer, and is asked where something is under way.
                if seed == 2 && point % 2 == 0 && point > uncommitted {
                    let tree = without_lost(recovered(&crashed, &when));
                    assert!(tree == read, "{when}: e2fsck finds another tree");
                }
                if seed == 5 && point % 6 == 0 && point > uncommitted {
                    let image = Image::of(&crashed);
                    assert!(
                        without_lost(image.tree_mounted("rw,noatime")) == read,
                        "{when}: the kernel finds another tree"
                    );
                }
            }
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{kind}: {seen:?}");
    }
}

#[test]
fn a_power_cut_while_it_grows_leaves_the_old_size_or_the_new() {
    for (kind, is_meta) in [
        ("-t ext4 -b 1024 -E resize=400M", false),
        ("-t ext4 -b 1024 -O ^metadata_csum -E resize=400M", false),
        // Small groups, so that there are several blocks of descriptors: some there already in their groups, and some that come to be.
        ("-t ext4 -b 1024 -g 256 -N 512 -O meta_bg,^resize_inode", true),
        ("-t ext4 -b 1024 -g 256 -N 512 -O ^resize_inode", true),
        ("-t ext4 -b 1024 -g 256 -N 512 -E resize=12M", true),
    ] {
        let image = with_journal(kind, Form::Kernels);
        let file = std::fs::File::options().write(true).open(&image.path).unwrap();
        let (size, large, count) = if is_meta {
            (14 << 20, 4 << 20, 6)
        } else {
            (30 << 20, 10 << 20, 8)
        };
        file.set_len(size).unwrap();
        let before = image.in_memory();
        let recorder = Recorder::new();
        let storage = recorder.storage(before.clone());
        let mut editor = Editor::open(disk(storage), options(Durability::Atomic)).unwrap();
        editor.grow(size).unwrap();
        editor
            .put(b"/large", &vec![1; large], &Attributes::default())
            .unwrap();
        let uncommitted = recorder.position();
        editor.commit().unwrap();
        let states = recorder.crash_states();
        let end = *states.points().end();
        let (old, new) = (tree_of(&before).unwrap(), tree_of(&states.at(end, 0)[0]).unwrap());
        let last = Image::of(&states.at(end, 0)[0]);
        last.assert_clean(kind);
        let said = common::succeed(Command::new("dumpe2fs").arg("-h").arg(&last.path));
        assert_eq!(said.contains("meta_bg"), is_meta, "{kind}: {said}");
        let mut seen = [0; 2];
        for point in uncommitted..=end {
            for seed in seeds(count) {
                let when = format!("{kind}, point {point} of {end}, seed {seed}");
                let crashed = states.at(point, seed).remove(0);
                let tree = tree_of(&crashed).unwrap_or_else(|error| panic!("{when}: {error}"));
                assert!(tree == old || tree == new, "{when}");
                seen[usize::from(tree == new)] += 1;
                if seed == 2 {
                    let found = recovered(&crashed, &when);
                    assert!(without_lost(found) == without_lost(tree.clone()), "{when}");
                }
                if seed == 5 && point % 3 == 0 {
                    let mounted = Image::of(&crashed).tree_mounted("rw,noatime");
                    assert!(mounted == tree, "{when}: the kernel finds another tree");
                }
            }
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{kind}: {seen:?}");
    }
}

#[test]
fn what_a_kernel_left_in_the_journal_is_kept_and_gone_on_with() {
    // A copy of the disk while it is mounted, with its journal full.
    for kind in [
        "made here small",
        "-t ext4 -b 1024",
        "-t ext4 -b 1024 -O ^metadata_csum",
        "-t ext3 -b 1024",
    ] {
        let image = with_journal(kind, Form::Kernels);
        let crashed = {
            let mounted = image.mount("rw");
            common::succeed(
                Command::new("bash")
                    .args([
                        "-ec",
                        "for i in $(seq 50); do echo $i >etc/file$i; done; rm home/data; sync -f .",
                    ])
                    .current_dir(&mounted.0),
            );
            image.copy()
        };
        let before = crashed.in_memory();
        // Where there is an orphan file, it counts as one that may hold something.
        let may_have_orphans = before.to_vec()[1024 + 0x66] & 1 != 0;
        assert_eq!(may_have_orphans, kind.contains("made here"), "{kind}");
        let replayed = tree_of(&before).unwrap();
        assert!(replayed.contains_key(&b"etc/file50"[..]) && !replayed.contains_key(&b"home/data"[..]));

        let recorder = Recorder::new();
        let storage = recorder.storage(before);
        let mut editor = Editor::open(disk(storage), options(Durability::Atomic)).unwrap();
        editor
            .put(b"/etc/hostname", &[b'n'; 3000], &Attributes::default())
            .unwrap();
        editor.remove(b"/etc/file50").unwrap();
        editor.commit().unwrap();
        let states = recorder.crash_states();
        let end = *states.points().end();
        let last = states.at(end, 0).remove(0);
        let new = tree_of(&last).unwrap();
        let image = Image::of(&last);
        image.assert_clean(kind);
        assert_eq!(
            without_lost(image.tree())[&b"etc/hostname"[..]].content,
            [b'n'; 3000]
        );
        assert!(!new.contains_key(&b"etc/file50"[..]) && new.contains_key(&b"etc/file49"[..]));
        for point in states.points() {
            for seed in seeds(16) {
                let crashed = states.at(point, seed).remove(0);
                let tree = tree_of(&crashed)
                    .unwrap_or_else(|error| panic!("{kind}, point {point}, seed {seed}: {error}"));
                assert!(
                    tree == replayed || tree == new,
                    "{kind}, point {point}, seed {seed}"
                );
            }
        }
    }
}

#[test]
fn an_error_leaves_the_old_tree_or_the_new_and_is_passed_on() {
    for (kind, durability) in [
        ("-t ext4 -b 1024", Durability::Atomic),
        ("-t ext4 -b 1024", Durability::Expendable),
        ("-t ext2 -b 1024", Durability::Atomic),
    ] {
        let image = with_journal(kind, Form::Kernels);
        let before = image.in_memory();
        let old = tree_of(&before).unwrap();
        let edit = |storage: Arc<dyn Storage>| {
            let mut editor = Editor::open(disk(storage), options(durability))?;
            change(&mut editor)?;
            editor.commit()
        };
        let clean = Arc::new(FaultStorage::new(Arc::new(before.clone())));
        edit(clean.clone()).unwrap();
        let all = clean.calls(&IoOp::ALL);
        let new = tree_of(&before_of(&clean)).unwrap();
        assert!(all > 50, "{all}");
        for nth in 1..=all {
            let memory = Arc::new(image.in_memory());
            let storage = Arc::new(FaultStorage::new(memory.clone()));
            storage.inject(Fault::from_nth(nth, ErrorKind::StorageFull));
            let error = edit(storage).expect_err("the fault is passed on");
            assert_eq!(error.kind(), block::ErrorKind::NoSpace, "{kind}, call {nth}");
            if durability == Durability::Expendable || kind.contains("ext2") {
                continue;
            }
            let tree = tree_of(&memory).unwrap();
            assert!(tree == old || tree == new, "{kind}, call {nth}");
        }
    }
}

fn before_of(storage: &FaultStorage) -> MemStorage {
    let copy = MemStorage::new();
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    copy.write_all_at(&bytes, 0).unwrap();
    copy
}

#[test]
fn without_a_journal_a_power_cut_is_told_of() {
    let image = with_journal("-t ext2 -b 1024", Form::Kernels);
    let before = image.in_memory();
    let old = tree_of(&before).unwrap();
    let recorder = Recorder::new();
    let storage = recorder.storage(before);
    let mut editor = Editor::open(disk(storage), options(Durability::Atomic)).unwrap();
    change(&mut editor).unwrap();
    editor.commit().unwrap();
    let states = recorder.crash_states();
    let new = tree_of(&states.at(*states.points().end(), 0)[0]).unwrap();
    let mut refused = 0;
    for point in states.points() {
        for seed in seeds(12) {
            let crashed = states.at(point, seed).remove(0);
            match Editor::open(disk(Arc::new(crashed.clone())), Options::new(NOW)) {
                Ok(_) => {
                    let tree = tree_of(&crashed).unwrap();
                    assert!(tree == old || tree == new, "point {point}, seed {seed}");
                }
                Err(error) => {
                    assert!(error.to_string().contains("was not unmounted"), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn without_a_commit_nothing_is_seen_of_a_change() {
    let image = with_journal("-t ext4", Form::Kernels);
    let before = image.tree();
    let mut editor = image.open();
    change(&mut editor).unwrap();
    drop(editor);
    image.assert_clean("dropped");
    assert!(image.tree() == before);
}
