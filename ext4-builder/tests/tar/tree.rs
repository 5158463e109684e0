//! A tree as it lies in a directory, and as an archive describes it, in one form to be compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use block::Result;
use ext4_builder::tar::{Archive, Kind, Options, decompress};

/// What has a name, with all that the tests compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: BTreeMap<Bytes, Bytes>,
    /// Of all names that are hard links of each other, the first in order.
    pub(crate) first_name: Bytes,
}

/// Printed as text.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    File(Contents),
    Directory,
    Symlink(Bytes),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// A file's bytes, printed as no more than their number.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Contents(pub(crate) Vec<u8>);

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// All below a directory; the directory itself is the empty name.
pub(crate) fn of_directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    add_directory(root, b"", &mut tree, &mut inodes);
    let mut firsts = BTreeMap::new();
    for (name, inode) in &inodes {
        firsts.entry(*inode).or_insert_with(|| Bytes(name.clone()));
    }
    for (name, node) in &mut tree {
        node.first_name.clone_from(&firsts[&inodes[name]]);
    }
    tree
}

fn add_directory(path: &Path, name: &[u8], tree: &mut Tree, inodes: &mut BTreeMap<Vec<u8>, u64>) {
    let metadata = fs::symlink_metadata(path).expect("stat");
    let kind = metadata.file_type();
    let device = metadata.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let node_kind = if kind.is_dir() {
        NodeKind::Directory
    } else if kind.is_file() {
        NodeKind::File(Contents(fs::read(path).expect("read")))
    } else if kind.is_symlink() {
        NodeKind::Symlink(Bytes(
            fs::read_link(path).expect("readlink").into_os_string().into_vec(),
        ))
    } else if kind.is_char_device() {
        NodeKind::CharacterDevice(major, minor)
    } else if kind.is_block_device() {
        NodeKind::BlockDevice(major, minor)
    } else {
        assert!(kind.is_fifo(), "{} is of no kind that tar knows", path.display());
        NodeKind::Fifo
    };
    let node = Node {
        kind: node_kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
        xattrs: xattrs(path),
        first_name: Bytes::default(),
    };
    tree.insert(name.to_owned(), node);
    inodes.insert(name.to_owned(), metadata.ino());
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("read directory") {
            let child = entry.expect("read directory").file_name();
            let separator: &[u8] = if name.is_empty() { b"" } else { b"/" };
            let child_name = [name, separator, child.as_bytes()].concat();
            add_directory(&path.join(&child), &child_name, tree, inodes);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Bytes, Bytes> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("list extended attributes");
    let names = names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len =
                rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).expect("get attribute");
            value.truncate(len);
            (Bytes(name.to_vec()), Bytes(value))
        })
        .collect()
}

/// What an archive, compressed or not, describes.
pub(crate) fn of_archive(archive: impl Read + Send + 'static, options: Options) -> Result<Tree> {
    let mut archive = Archive::new(decompress(archive)?, options);
    let mut tree = Tree::new();
    while let Some(entry) = archive.next_entry()? {
        let kind = match entry.kind {
            Kind::File { size, data } => {
                let mut contents = vec![0; size as usize];
                for range in data {
                    let range = range.start as usize..range.end as usize;
                    let len = range.len();
                    assert_eq!(archive.read_data(&mut contents[range])?, len, "all of a range");
                }
                assert_eq!(archive.read_data(&mut [0])?, 0, "nothing after the last range");
                NodeKind::File(Contents(contents))
            }
            Kind::Directory => NodeKind::Directory,
            Kind::Symlink { target } => NodeKind::Symlink(Bytes(target)),
            Kind::HardLink { target } => {
                let node: &Node = &tree[&target];
                let node = node.clone();
                tree.insert(entry.path, node);
                continue;
            }
            Kind::CharacterDevice { major, minor } => NodeKind::CharacterDevice(major, minor),
            Kind::BlockDevice { major, minor } => NodeKind::BlockDevice(major, minor),
            Kind::Fifo => NodeKind::Fifo,
        };
        let node = Node {
            kind,
            mode: u32::from(entry.mode),
            owner: (entry.uid, entry.gid),
            mtime: (entry.mtime.secs, entry.mtime.nanos),
            xattrs: entry
                .xattrs
                .into_iter()
                .map(|(name, value)| (Bytes(name), Bytes(value)))
                .collect(),
            first_name: Bytes(entry.path.clone()),
        };
        tree.insert(entry.path, node);
    }
    // The first name in the archive need not be the first in order.
    let mut firsts = BTreeMap::new();
    for (name, node) in &tree {
        firsts
            .entry(node.first_name.clone())
            .or_insert_with(|| Bytes(name.clone()));
    }
    for node in tree.values_mut() {
        node.first_name.clone_from(&firsts[&node.first_name]);
    }
    Ok(tree)
}

/// Fails with the names whose nodes differ, and how.
pub(crate) fn assert_same(read: &Tree, extracted: &Tree, what: &str) {
    let names: std::collections::BTreeSet<_> = read.keys().chain(extracted.keys()).collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|&name| read.get(name) != extracted.get(name))
        .map(|name| {
            let (ours, theirs) = (read.get(name), extracted.get(name));
            let name = name.escape_ascii();
            format!("{name}:\n  read      {ours:?}\n  extracted {theirs:?}")
        })
        .collect();
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
