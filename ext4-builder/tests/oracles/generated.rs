//! Trees that nobody has thought of: whatever a builder is told, and in whichever order, is what the crate ext4-view and
//! debugfs find.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::process::Command;

use block::{MemStorage, Storage};
use ext4_builder::{Builder, Compat, Free, Metadata, Node, Options, Size, Special, Time};
use ext4_view::{Ext4, FileType, Path};
use proptest::prelude::*;

use crate::image::{Image, MIB, UUID, run};

/// Few, so that they meet again, and all that debugfs can be asked for.
const NAMES: [&[u8]; 6] = [
    b"a",
    b"b",
    b"with a space",
    b"\xff\xfe",
    "\u{1f980}".as_bytes(),
    &[b'n'; 255],
];

/// A call of a builder.
#[derive(Clone, Debug)]
enum Call {
    Directory,
    /// A file of pieces: a hole, and data behind it.
    File(Vec<(u16, u16)>),
    Symlink(u16),
    Fifo,
    /// Another name of the file that is at this place in the list of all.
    HardLink(usize),
    /// As many empty files, so that the directory gets an index.
    Many(u16),
    Remove,
    Clear,
    Settle,
}

fn call() -> impl Strategy<Value = Call> {
    let pieces = prop::collection::vec((0u16..6000, 1u16..6000), 0..4);
    prop_oneof![
        4 => Just(Call::Directory),
        4 => pieces.prop_map(Call::File),
        2 => (1u16..1000).prop_map(Call::Symlink),
        1 => Just(Call::Fifo),
        4 => any::<usize>().prop_map(Call::HardLink),
        1 => (1u16..300).prop_map(Call::Many),
        2 => Just(Call::Remove),
        1 => Just(Call::Clear),
        1 => Just(Call::Settle),
    ]
}

/// What a file is to be found as.
#[derive(Clone, Debug)]
struct File {
    node: Node,
    kind: FileType,
    /// Of a symlink, its target.
    contents: Vec<u8>,
    permissions: u16,
    uid: u32,
}

/// A builder, and what it was told: names with their numbers in `files`.
struct Told<'s> {
    builder: Builder<'s>,
    storage: &'s MemStorage,
    files: Vec<File>,
    names: BTreeMap<Vec<u8>, usize>,
    calls: u16,
}

impl Told<'_> {
    fn metadata(&self) -> Metadata {
        let time = Time {
            secs: i64::from(self.calls) * 1_000_003,
            nanos: 5,
        };
        Metadata {
            permissions: (self.calls * 37) & 0o7777,
            uid: u32::from(self.calls) * 70_001,
            ..Metadata::at(time)
        }
    }

    /// The directories there are: each with its path, the root's empty.
    fn directories(&self) -> Vec<(Vec<u8>, Node)> {
        let root = (Vec::new(), self.builder.root());
        let is_directory = |file: &File| file.kind == FileType::Directory;
        let below = self
            .names
            .iter()
            .filter(|(_, file)| is_directory(&self.files[**file]));
        let below = below.map(|(path, file)| (path.clone(), self.files[*file].node));
        std::iter::once(root).chain(below).collect()
    }

    /// Forgets a name and all below it.
    fn forget(&mut self, path: &[u8], itself: bool) {
        let is_below = |name: &[u8]| name.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        self.names
            .retain(|name, _| !(is_below(name) || itself && name == path));
    }

    fn put(&mut self, path: Vec<u8>, node: Node, kind: FileType, contents: Vec<u8>) {
        let Metadata { permissions, uid, .. } = self.metadata();
        let file = File {
            node,
            kind,
            contents,
            permissions,
            uid,
        };
        if kind != FileType::Directory
            || self
                .names
                .get(&path)
                .is_none_or(|old| self.files[*old].node != node)
        {
            self.forget(&path, true);
        }
        self.names.insert(path, self.files.len());
        self.files.push(file);
    }

    fn call(&mut self, parent: usize, name: usize, call: &Call) {
        self.calls += 1;
        let directories = self.directories();
        let (mut path, parent) = directories[parent % directories.len()].clone();
        let name = NAMES[name % NAMES.len()];
        path.push(b'/');
        path.extend(name);
        let metadata = self.metadata();
        match call {
            Call::Directory => {
                let node = self
                    .builder
                    .directory(parent, name, &metadata)
                    .expect("a directory");
                self.put(path, node, FileType::Directory, Vec::new());
            }
            Call::File(pieces) => {
                let (contents, data) = contents(pieces, self.calls as u8);
                let size = contents.len() as u64;
                let put = self.builder.file(parent, name, &metadata, size, &data);
                let (node, placement) = put.expect("a file");
                for range in data {
                    let bytes = &contents[range.start as usize..range.end as usize];
                    placement.write(self.storage, bytes, range.start).expect("write");
                }
                self.put(path, node, FileType::Regular, contents);
            }
            Call::Symlink(len) => {
                // The crate takes no names over 255 bytes, in targets either.
                let byte = |at: u16| {
                    if at % 200 == 199 {
                        b'/'
                    } else {
                        b'a' + (self.calls % 26) as u8
                    }
                };
                let target: Vec<u8> = (0..*len).map(byte).collect();
                let put = self.builder.symlink(parent, name, &metadata, &target);
                self.put(path, put.expect("a symlink"), FileType::Symlink, target);
            }
            Call::Fifo => {
                let put = self.builder.special(parent, name, &metadata, Special::Fifo);
                self.put(path, put.expect("a fifo"), FileType::Fifo, Vec::new());
            }
            Call::HardLink(which) => self.hard_link(parent, name, path, *which),
            Call::Many(count) => {
                for number in 0..*count {
                    let name = format!("number {number}");
                    let put = self.builder.file(parent, name.as_bytes(), &metadata, 0, &[]);
                    path.truncate(path.iter().rposition(|byte| *byte == b'/').expect("a slash") + 1);
                    path.extend(name.as_bytes());
                    self.put(
                        path.clone(),
                        put.expect("a file").0,
                        FileType::Regular,
                        Vec::new(),
                    );
                }
            }
            Call::Remove => {
                assert_eq!(self.builder.remove(parent, name), self.names.contains_key(&path));
                self.forget(&path, true);
            }
            Call::Clear => {
                self.builder.clear(parent);
                path.truncate(path.len() - name.len() - 1);
                self.forget(&path, false);
            }
            Call::Settle => self.builder.settle(),
        }
    }

    fn hard_link(&mut self, parent: Node, name: &[u8], path: Vec<u8>, which: usize) {
        let is_file = |file: &usize| self.files[*file].kind != FileType::Directory;
        let files: Vec<usize> = self.names.values().copied().filter(is_file).collect();
        if files.is_empty() {
            return;
        }
        let file = files[which % files.len()];
        let linked = self.builder.hard_link(parent, name, self.files[file].node);
        linked.expect("a link");
        self.forget(&path, true);
        self.names.insert(path, file);
    }
}

/// The bytes of a file of pieces, and where it holds data.
fn contents(pieces: &[(u16, u16)], seed: u8) -> (Vec<u8>, Vec<Range<u64>>) {
    let (mut bytes, mut data) = (Vec::new(), Vec::new());
    for &(hole, len) in pieces {
        bytes.resize(bytes.len() + usize::from(hole), 0);
        let start = bytes.len();
        bytes.extend((0..usize::from(len)).map(|at| ((at % 251) as u8 ^ seed) | 1));
        data.push(start as u64..bytes.len() as u64);
    }
    (bytes, data)
}

/// The names and files that a path from the root on has below it.
fn listed(filesystem: &Ext4, path: &[u8]) -> BTreeSet<Vec<u8>> {
    let path = if path.is_empty() { b"/" } else { path };
    let entries = filesystem
        .read_dir(Path::try_from(path).expect("path"))
        .expect("a directory");
    let names = entries.map(|entry| entry.expect("entry").file_name().as_ref().to_vec());
    names
        .filter(|name| name != b"." && name != b".." && name != b"lost+found")
        .collect()
}

fn compare(told: &BTreeMap<Vec<u8>, usize>, files: &[File], filesystem: &Ext4) {
    let mut children: BTreeMap<&[u8], BTreeSet<Vec<u8>>> = BTreeMap::from([(&b""[..], BTreeSet::new())]);
    for (path, file) in told {
        let slash = path.iter().rposition(|byte| *byte == b'/').expect("a slash");
        let name = path[slash + 1..].to_vec();
        children.entry(&path[..slash]).or_default().insert(name);
        if files[*file].kind == FileType::Directory {
            children.entry(path).or_default();
        }
    }
    for (path, names) in children {
        assert_eq!(listed(filesystem, path), names, "{}", path.escape_ascii());
    }
    for (path, file) in told {
        let shown = path.escape_ascii();
        let (path, file) = (Path::try_from(&path[..]).expect("path"), &files[*file]);
        let found = filesystem.symlink_metadata(path).expect("metadata");
        assert_eq!(found.file_type(), file.kind, "{shown}");
        assert_eq!(
            (found.mode() & 0o7777, found.uid()),
            (file.permissions, file.uid),
            "{shown}"
        );
        match file.kind {
            FileType::Regular => assert!(filesystem.read(path).expect("read") == file.contents, "{shown}"),
            FileType::Symlink => {
                let target = filesystem.read_link(path).expect("a target");
                assert!(target.as_ref() == &file.contents[..], "{shown}");
            }
            _ => {}
        }
    }
}

/// Which names debugfs says to be of one inode, and how many links that has.
fn links(image: &Image, names: &BTreeMap<Vec<u8>, usize>) -> BTreeMap<u64, (u64, BTreeSet<Vec<u8>>)> {
    let mut script = Vec::new();
    for path in names.keys() {
        script.extend(b"stat \"");
        script.extend(path);
        script.extend(b"\"\n");
    }
    let file = image.path.with_extension("script");
    fs::write(&file, script).expect("write");
    let output = run(Command::new("debugfs").arg("-f").arg(&file).arg(&image.path));
    let output = String::from_utf8_lossy(&output.stdout);
    let number = |line: &str, field: &str| {
        let rest = line.split(field).nth(1)?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let inodes = output.lines().filter_map(|line| number(line, "Inode: "));
    let counts = output.lines().filter_map(|line| number(line, "Links: "));
    let mut found: BTreeMap<u64, (u64, BTreeSet<Vec<u8>>)> = BTreeMap::new();
    let mut stats = 0;
    for ((path, inode), count) in names.keys().zip(inodes).zip(counts) {
        let (links, names) = found.entry(inode).or_default();
        *links = count;
        names.insert(path.clone());
        stats += 1;
    }
    assert_eq!(stats, names.len(), "{output}");
    found
}

fn compare_links(names: &BTreeMap<Vec<u8>, usize>, files: &[File], image: &Image) {
    let mut told: BTreeMap<usize, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (path, file) in names {
        told.entry(*file).or_default().insert(path.clone());
    }
    let found = links(image, names);
    let groups: BTreeSet<_> = found.values().map(|(_, names)| names.clone()).collect();
    assert_eq!(groups, told.values().cloned().collect());
    for (links, names) in found.values() {
        let file = &files[*told.iter().find(|(_, group)| *group == names).expect("a file").0];
        if file.kind != FileType::Directory {
            assert_eq!(*links, names.len() as u64, "{names:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn ext4_view_and_debugfs_find_what_the_builder_was_told(
        calls in prop::collection::vec((any::<usize>(), any::<usize>(), call()), 0..80),
        block_size in prop_oneof![Just(1024u32), Just(2048), Just(4096)],
        compat in prop_oneof![Just(Compat::Linux3_10), Just(Compat::Latest)],
        shrink: bool,
    ) {
        let size = if shrink { Size::Shrink } else { Size::Fit(Free::Bytes(MIB)) };
        let options = Options { block_size, compat, ..Options::new(size, UUID) };
        let storage = MemStorage::new();
        let mut told = Told {
            builder: Builder::new(&storage, options).expect("options"),
            storage: &storage,
            files: Vec::new(),
            names: BTreeMap::new(),
            calls: 0,
        };
        for (parent, name, call) in &calls {
            told.call(*parent, *name, call);
        }
        let Told { builder, files, names, .. } = told;
        builder.finish().expect("finish");
        let mut bytes = vec![0; storage.len().expect("len") as usize];
        storage.read_exact_at(&mut bytes, 0).expect("read");
        compare(&names, &files, &Ext4::load(Box::new(bytes)).expect("ext4-view opens it"));
        let image = Image::of(&storage);
        image.assert_clean(&format!("{calls:?}"));
        compare_links(&names, &files, &image);
    }
}
