//! Random changes, compared with a model, judged by e2fsck after each commit and by the kernel at the end.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use block::ErrorKind;
use common::{Image, KINDS, Tree};
use ext4_editor::{Attributes, Editor, LastLink};
use proptest::prelude::*;

/// Kinds besides those of all tests.
const WITH_LARGE_VALUES: [&str; 3] = [
    "-t ext4 -O ea_inode -b 4096",
    "-t ext4 -O ea_inode,^metadata_csum -b 1024",
    "-t ext4 -O ea_inode,inline_data -I 512",
];

/// What is done: numbers pick from what is there.
#[derive(Clone, Debug)]
enum Step {
    Put {
        at: usize,
        name: usize,
        len: usize,
    },
    Directory {
        at: usize,
        name: usize,
    },
    Symlink {
        at: usize,
        name: usize,
        len: usize,
    },
    Link {
        what: usize,
        at: usize,
        name: usize,
    },
    Remove {
        what: usize,
    },
    RemoveTree {
        what: usize,
    },
    Rename {
        what: usize,
        at: usize,
        name: usize,
    },
    Permissions {
        what: usize,
        permissions: u16,
    },
    Xattr {
        what: usize,
        name: usize,
        len: usize,
    },
    RemoveXattr {
        what: usize,
        name: usize,
    },
    /// A value that has an inode of its own, where the filesystem allows that.
    LargeValue {
        what: usize,
        name: usize,
        len: usize,
    },
    /// Many names in one directory, so that it gets an index, and levels of one.
    Fill {
        at: usize,
        count: usize,
        len: usize,
    },
    /// Every so many of the names in a directory go.
    Thin {
        at: usize,
        every: usize,
    },
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let any = || 0..1_000_usize;
    let len = || prop_oneof![0..200_usize, 3000..10_000_usize, 60_000..90_000_usize];
    prop_oneof![
        4 => (any(), any(), len()).prop_map(|(at, name, len)| Step::Put { at, name, len }),
        3 => (any(), any()).prop_map(|(at, name)| Step::Directory { at, name }),
        1 => (any(), any(), 1..900_usize).prop_map(|(at, name, len)| Step::Symlink { at, name, len }),
        1 => (any(), any(), any()).prop_map(|(what, at, name)| Step::Link { what, at, name }),
        2 => any().prop_map(|what| Step::Remove { what }),
        1 => any().prop_map(|what| Step::RemoveTree { what }),
        3 => (any(), any(), any()).prop_map(|(what, at, name)| Step::Rename { what, at, name }),
        1 => (any(), 0..0o10000_u16).prop_map(|(what, permissions)| Step::Permissions { what, permissions }),
        2 => (any(), any(), 0..400_usize).prop_map(|(what, name, len)| Step::Xattr { what, name, len }),
        1 => (any(), any(), 2000..30_000_usize).prop_map(|(what, name, len)| Step::LargeValue { what, name, len }),
        1 => (any(), any()).prop_map(|(what, name)| Step::RemoveXattr { what, name }),
        1 => (any(), 1..500_usize, 4..200_usize).prop_map(|(at, count, len)| Step::Fill { at, count, len }),
        1 => (any(), 1..4_usize).prop_map(|(at, every)| Step::Thin { at, every }),
        2 => Just(Step::Commit),
    ]
}

fn name(number: usize) -> Vec<u8> {
    let lengths = [1, 5, 12, 40, 120, 255];
    let mut name = format!("{}-", number % 12).into_bytes();
    name.resize(lengths[number / 12 % lengths.len()].max(name.len()), 0xE4);
    name
}

#[derive(Clone, Debug)]
struct File {
    kind: Kind,
    permissions: u16,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Regular(Vec<u8>),
    Symlink(Vec<u8>),
    Directory,
}

/// Paths, and the files that they name.
#[derive(Debug)]
struct Model {
    names: BTreeMap<Vec<u8>, usize>,
    files: Vec<File>,
    has_large_values: bool,
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, name].join(&b'/')
}

fn above(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)]
}

fn is_in(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with(b"/"))
}

impl Model {
    fn new(has_large_values: bool) -> Self {
        let root = File {
            kind: Kind::Directory,
            permissions: 0o755,
            xattrs: BTreeMap::new(),
        };
        Self {
            names: BTreeMap::from([(Vec::new(), 0)]),
            files: vec![root],
            has_large_values,
        }
    }

    fn directories(&self) -> Vec<Vec<u8>> {
        let all = self.names.iter();
        all.filter(|(_, file)| self.files[**file].kind == Kind::Directory)
            .map(|(path, _)| path.clone())
            .collect()
    }

    fn directory(&self, at: usize) -> Vec<u8> {
        let directories = self.directories();
        directories[at % directories.len()].clone()
    }

    /// Any path but the root.
    fn path(&self, what: usize) -> Option<Vec<u8>> {
        let count = self.names.len() - 1;
        let place = 1 + what.checked_rem(count)?;
        self.names.keys().nth(place).cloned()
    }

    fn file(&mut self, path: &[u8]) -> &mut File {
        &mut self.files[self.names[path]]
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        let file = self.names.get(path);
        file.is_some_and(|file| self.files[*file].kind == Kind::Directory)
    }

    fn is_empty(&self, directory: &[u8]) -> bool {
        !self.names.keys().any(|path| is_in(path, directory))
    }

    fn add(&mut self, path: Vec<u8>, kind: Kind, permissions: u16) {
        self.files.push(File {
            kind,
            permissions,
            xattrs: BTreeMap::new(),
        });
        self.names.insert(path, self.files.len() - 1);
    }

    fn links(&self, path: &[u8]) -> u64 {
        if self.is_directory(path) {
            let below = self
                .directories()
                .iter()
                .filter(|other| !other.is_empty() && above(other) == path)
                .count();
            return 2 + below as u64;
        }
        let file = self.names[path];
        self.names.values().filter(|other| **other == file).count() as u64
    }

    fn assert_is(&self, tree: &Tree, when: &str) {
        let theirs: BTreeSet<Vec<u8>> = tree
            .keys()
            .map(|path| {
                if path.is_empty() {
                    Vec::new()
                } else {
                    join(b"", path)
                }
            })
            .collect();
        let ours: BTreeSet<Vec<u8>> = self.names.keys().cloned().collect();
        assert!(
            ours == theirs,
            "{when}: names differ: {:?}",
            ours.symmetric_difference(&theirs).next()
        );
        for (path, stat) in tree {
            let path = if path.is_empty() {
                Vec::new()
            } else {
                join(b"", path)
            };
            let file = &self.files[self.names[&path]];
            let shown = String::from_utf8_lossy(&path);
            assert_eq!(stat.mode & 0o7777, u32::from(file.permissions), "{when}: {shown}");
            assert_eq!(stat.links, self.links(&path), "{when}: {shown}");
            let xattrs: Vec<_> = file.xattrs.clone().into_iter().collect();
            assert_eq!(stat.xattrs, xattrs, "{when}: {shown}");
            let content = match &file.kind {
                Kind::Regular(bytes) | Kind::Symlink(bytes) => bytes.clone(),
                Kind::Directory => Vec::new(),
            };
            assert!(stat.content == content, "{when}: {shown}");
        }
    }
}

/// Does a step to both. Where the model says that it cannot be done, it must be refused.
fn take(editor: &mut Editor, model: &mut Model, step: &Step) {
    let plain = Attributes::default();
    let expect = |result: block::Result<()>, possible: bool| match result {
        Ok(()) => assert!(possible, "{step:?} was done"),
        Err(error) => assert!(
            !possible && error.kind() == ErrorKind::InvalidInput,
            "{step:?}: {error:?}"
        ),
    };
    match *step {
        Step::Put {
            at,
            name: number,
            len,
        } => {
            let path = join(&model.directory(at), &name(number));
            let contents: Vec<u8> = (0..len).map(|byte| (byte * 7 + number) as u8).collect();
            let there = model.names.get(&path).map(|file| model.files[*file].kind.clone());
            let possible = matches!(there, None | Some(Kind::Regular(_)));
            expect(editor.put(&path, &contents, &plain), possible);
            match there {
                None => model.add(path, Kind::Regular(contents), 0o644),
                Some(Kind::Regular(_)) => model.file(&path).kind = Kind::Regular(contents),
                _ => {}
            }
        }
        Step::Directory { at, name: number } => {
            let path = join(&model.directory(at), &name(number));
            let possible = !model.names.contains_key(&path) && path.len() < 3000;
            if path.len() < 3000 {
                expect(editor.make_directory(&path, &plain), possible);
            }
            if possible {
                model.add(path, Kind::Directory, 0o755);
            }
        }
        Step::Symlink {
            at,
            name: number,
            len,
        } => {
            let path = join(&model.directory(at), &name(number));
            let possible = !model.names.contains_key(&path);
            // Nothing is there, so that it is followed nowhere.
            let target = vec![b'.'; 2]
                .into_iter()
                .chain(vec![b'z'; len])
                .collect::<Vec<u8>>();
            expect(editor.symlink(&path, &target, &plain), possible);
            if possible {
                model.add(path, Kind::Symlink(target), 0o777);
            }
        }
        Step::Link {
            what,
            at,
            name: number,
        } => {
            let Some(existing) = model.path(what) else { return };
            let path = join(&model.directory(at), &name(number));
            let possible = !model.names.contains_key(&path) && !model.is_directory(&existing);
            expect(editor.link(&existing, &path), possible);
            if possible {
                model.names.insert(path, model.names[&existing]);
            }
        }
        Step::Remove { what } => {
            let Some(path) = model.path(what) else { return };
            let possible = model.is_empty(&path);
            expect(editor.remove(&path), possible);
            if possible {
                model.names.remove(&path);
            }
        }
        Step::RemoveTree { what } => {
            let Some(path) = model.path(what) else { return };
            expect(editor.remove_tree(&path), true);
            model
                .names
                .retain(|other, _| *other != path && !is_in(other, &path));
        }
        Step::Rename {
            what,
            at,
            name: number,
        } => {
            let Some(from) = model.path(what) else { return };
            let to = join(&model.directory(at), &name(number));
            let same = model.names.get(&to) == Some(&model.names[&from]);
            let replaces = !model.names.contains_key(&to)
                || model.is_directory(&from) == model.is_directory(&to) && model.is_empty(&to);
            let possible = same || replaces && !is_in(&to, &from);
            expect(editor.rename(&from, &to), possible);
            if same || !possible {
                return;
            }
            let moved: Vec<_> = model
                .names
                .keys()
                .filter(|path| **path == from || is_in(path, &from))
                .cloned()
                .collect();
            for path in moved {
                let file = model.names.remove(&path).unwrap();
                model.names.insert([&to[..], &path[from.len()..]].concat(), file);
            }
        }
        Step::Permissions { what, permissions } => {
            let Some(path) = model.path(what) else { return };
            expect(
                editor.set_attributes(&path, LastLink::Keep, &Attributes::of(permissions)),
                true,
            );
            model.file(&path).permissions = permissions;
        }
        Step::Xattr {
            what,
            name: number,
            len,
        } => {
            let Some(path) = model.path(what) else { return };
            let name = format!("trusted.{}", "x".repeat(1 + number % 3)).into_bytes();
            let value = vec![number as u8; len.min(150)];
            let has_room = editor.set_xattr(&path, LastLink::Keep, &name, &value);
            if has_room.is_ok() {
                model.file(&path).xattrs.insert(name, value);
            }
            expect(has_room, true);
        }
        Step::LargeValue {
            what,
            name: number,
            len,
        } => {
            let Some(path) = model.path(what) else { return };
            let name = format!("trusted.{}", "x".repeat(1 + number % 3)).into_bytes();
            // Some of them are shared, as they are the same.
            let value = vec![(number % 2) as u8; len / 5000 * 5000 + 2000];
            if model.has_large_values {
                expect(editor.set_xattr(&path, LastLink::Keep, &name, &value), true);
                model.file(&path).xattrs.insert(name, value);
            }
        }
        Step::RemoveXattr { what, name: number } => {
            let Some(path) = model.path(what) else { return };
            let name = format!("trusted.{}", "x".repeat(1 + number % 3)).into_bytes();
            let there = model.file(&path).xattrs.remove(&name).is_some();
            expect(editor.remove_xattr(&path, LastLink::Keep, &name), there);
        }
        Step::Fill { at, count, len } => {
            let directory = model.directory(at);
            for number in 0..count {
                let mut name = format!("{number}-fill-{count}").into_bytes();
                name.resize(len.max(name.len()), b'f');
                let path = join(&directory, &name);
                if !model.names.contains_key(&path) {
                    expect(editor.put(&path, b"", &plain), true);
                    model.add(path, Kind::Regular(Vec::new()), 0o644);
                }
            }
        }
        Step::Thin { at, every } => {
            let directory = model.directory(at);
            let all: Vec<_> = model
                .names
                .keys()
                .filter(|path| !path.is_empty() && above(path) == directory)
                .cloned()
                .collect();
            for path in all.into_iter().step_by(every).filter(|path| !path.is_empty()) {
                if !model.is_directory(&path) {
                    expect(editor.remove(&path), true);
                    model.names.remove(&path);
                }
            }
        }
        Step::Commit => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 70, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_does_what_the_model_says(kind in 0..KINDS.len() + WITH_LARGE_VALUES.len(), steps in prop::collection::vec(step(), 1..50)) {
        // A filesystem without attributes has none to set.
        let all: Vec<&str> = KINDS.into_iter().chain(WITH_LARGE_VALUES).collect();
        let kind = all[kind].replace(",^ext_attr", "");
        let inodes = if kind.starts_with('-') { " -N 8000" } else { "" };
        let image = Image::of_kind(64 << 20, &format!("{kind}{inodes}"));
        image.edit(|editor| editor.remove(b"/lost+found").unwrap());
        let mut model = Model::new(kind.contains("ea_inode"));
        let mut editor = image.open();
        for (number, step) in steps.iter().enumerate() {
            take(&mut editor, &mut model, step);
            if matches!(step, Step::Commit) {
                editor.commit().unwrap();
                image.assert_clean(&format!("{kind}, after step {number}"));
            }
            if number % 8 == 0 {
                model.assert_is(&common::read_tree(editor.filesystem()).unwrap(), &kind);
            }
        }
        model.assert_is(&common::read_tree(editor.filesystem()).unwrap(), &kind);
        editor.commit().unwrap();
        image.assert_clean(&kind);
        model.assert_is(&image.tree(), &kind);
    }
}
