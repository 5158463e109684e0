//! What several fuzz targets do.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{Access, MemStorage, Result};
use ext4_builder::{Builder, Metadata, Node, Options, Size, Special};
use ext4_reader::{FileKind, Filesystem, Inode, InodeNumber, Visits};
use libfuzzer_sys::fuzzer_mutate;

/// Bytes of a file that are looked at: a file may be larger than memory, and a hole.
const MOST: u64 = 1 << 20;

/// Bytes of an image that are changed at once.
const BLOCK: usize = 1024;

/// What has a name in a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub inode: InodeNumber,
    pub kind: FileKind,
    /// The first bytes of a file, or where a symlink leads.
    pub contents: Vec<u8>,
}

/// A filesystem in memory.
pub fn open(storage: MemStorage) -> Result<Filesystem> {
    let disk = raw::Image::open(Arc::new(storage), Access::READ)?;
    Filesystem::open(Arc::new(disk))
}

/// All that a filesystem has, by its path, but for `lost+found`. All of it must be as it should.
pub fn tree(filesystem: &Filesystem) -> Result<BTreeMap<Vec<u8>, Found>> {
    let mut tree = BTreeMap::new();
    let mut visits = Visits::new(filesystem.superblock());
    let mut left = vec![(Vec::new(), InodeNumber::ROOT)];
    while let Some((path, number)) = left.pop() {
        let inode = filesystem.inode(number)?;
        filesystem.xattrs(&inode)?;
        let kind = inode.kind();
        let contents = match kind {
            FileKind::Directory => {
                visits.enter(&inode)?;
                for entry in filesystem.read_dir(&inode)? {
                    if path.is_empty() && entry.name == b"lost+found" {
                        continue;
                    }
                    let mut below = path.clone();
                    if !path.is_empty() {
                        below.push(b'/');
                    }
                    below.extend(&entry.name);
                    left.push((below, entry.inode));
                }
                Vec::new()
            }
            FileKind::Regular => contents(filesystem, &inode)?,
            FileKind::Symlink => filesystem.read_link(&inode)?,
            _ => Vec::new(),
        };
        if !path.is_empty() {
            let inode = number;
            tree.insert(
                path,
                Found {
                    inode,
                    kind,
                    contents,
                },
            );
        }
    }
    Ok(tree)
}

/// The first bytes of a file; all runs of it are gone through.
pub fn contents(filesystem: &Filesystem, inode: &Inode) -> Result<Vec<u8>> {
    let mut bytes = vec![0; inode.size().min(MOST) as usize];
    for run in filesystem.content(inode)? {
        let run = run?;
        let end = (run.offset + run.len).min(bytes.len() as u64);
        if run.offset < end {
            filesystem.read_run(&run, 0, &mut bytes[run.offset as usize..end as usize])?;
        }
    }
    Ok(bytes)
}

/// A tree of one of each, for whatever is laid over it.
pub fn small_tree(builder: &mut Builder<'_>) {
    let metadata = Metadata {
        permissions: 0o755,
        ..Metadata::default()
    };
    let directory = |builder: &mut Builder<'_>, parent: Node, name: &[u8]| {
        builder.directory(parent, name, &metadata).expect("a directory")
    };
    let root = builder.root();
    let etc = directory(builder, root, b"etc");
    let home = directory(builder, root, b"home");
    let user = directory(builder, home, b"user");
    for (parent, name) in [(etc, &b"hostname"[..]), (user, b"file"), (user, b"other")] {
        builder
            .small_file(parent, name, &metadata, b"text")
            .expect("a file");
    }
    builder.symlink(root, b"link", &metadata, b"etc").expect("a link");
    builder.symlink(user, b"up", &metadata, b"../..").expect("a link");
    let null = Special::CharacterDevice { major: 1, minor: 3 };
    builder.special(etc, b"null", &metadata, null).expect("a device");
    builder
        .special(etc, b"fifo", &metadata, Special::Fifo)
        .expect("a fifo");
}

/// Options by the bits of a byte.
pub fn options(how: u8) -> Options {
    Options {
        block_size: [1024, 2048, 4096, 1024][usize::from(how & 3)],
        inline_data: how & 4 != 0,
        compat: match how & 8 {
            0 => ext4_builder::Compat::Latest,
            _ => ext4_builder::Compat::Linux3_10,
        },
        ..Options::new(Size::Shrink, [7; 16])
    }
}

/// Changes an image within one of its blocks that hold anything, where all else stays in its place: for mutators of images.
pub fn change_a_block(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let used: Vec<usize> = (0..size / BLOCK)
        .filter(|block| data[block * BLOCK..][..BLOCK].iter().any(|byte| *byte != 0))
        .collect();
    // Now and then, all of it: cut off, copied, and so on.
    if used.is_empty() || seed.is_multiple_of(32) {
        return fuzzer_mutate(data, size, max_size);
    }
    let block = &mut data[used[(seed / 32) as usize % used.len()] * BLOCK..][..BLOCK];
    // What follows stays where it is.
    let len = fuzzer_mutate(block, BLOCK, BLOCK);
    block[len..].fill(0);
    size
}
