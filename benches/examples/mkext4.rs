//! What `mke2fs -d` does, by the crate mkext4: a filesystem of a directory, for `make comparefs`.
//!
//!     mkext4 DIRECTORY IMAGE SIZE INODES
//!
//! Like the crate, it has names in UTF-8 only; and no extended attributes, so that it does less than what it is compared
//! with.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, ROOT, SparseSeg, SpecialKind};

struct Walk {
    builder: FsBuilder,
    links: HashMap<(u64, u64), InodeHandle>,
    /// Files with data, in order.
    files: Vec<(InodeHandle, PathBuf)>,
}

impl Walk {
    fn directory(&mut self, directory: InodeHandle, path: &Path) -> Result<(), Box<dyn Error>> {
        let mut entries = fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_str().ok_or("a name is not UTF-8")?;
            self.entry(directory, name, &entry.path(), &entry.metadata()?)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: InodeHandle,
        name: &str,
        path: &Path,
        stat: &Metadata,
    ) -> Result<(), Box<dyn Error>> {
        let file_type = stat.file_type();
        let meta = meta(stat);
        if file_type.is_dir() {
            let below = self.builder.mkdir(parent, name, meta)?;
            return self.directory(below, path);
        }
        let id = (stat.dev(), stat.ino());
        if let Some(&known) = self.links.get(&id) {
            return Ok(self.builder.hardlink(parent, name, known)?);
        }
        let node = if file_type.is_symlink() {
            let target = fs::read_link(path)?;
            let target = target.to_str().ok_or("a link is not UTF-8")?;
            self.builder.symlink(parent, name, target, meta)?
        } else if file_type.is_file() {
            if stat.blocks() == 0 && stat.len() > 0 {
                let hole = [SparseSeg::Hole(stat.len())];
                self.builder.file_sparse(parent, name, meta, &hole)?
            } else {
                let node = self.builder.file(parent, name, meta, stat.len())?;
                if stat.len() > 0 {
                    self.files.push((node, path.to_owned()));
                }
                node
            }
        } else {
            let device = stat.rdev();
            let major = (device >> 8) as u32 & 0xFFF;
            let minor = device as u32 & 0xFF | (device >> 12) as u32 & 0xFFF00;
            let special = match () {
                () if file_type.is_char_device() => SpecialKind::Char { major, minor },
                () if file_type.is_block_device() => SpecialKind::Block { major, minor },
                () if file_type.is_fifo() => SpecialKind::Fifo,
                () => SpecialKind::Socket,
            };
            self.builder.mknod(parent, name, meta, special)?
        };
        if stat.nlink() > 1 {
            self.links.insert(id, node);
        }
        Ok(())
    }
}

fn meta(stat: &Metadata) -> Meta {
    let mode = (stat.mode() & 0o7777) as u16;
    let mut meta = Meta::new(
        mode,
        stat.uid(),
        stat.gid(),
        (stat.mtime(), stat.mtime_nsec() as u32),
    );
    meta.atime = Some((stat.atime(), stat.atime_nsec() as u32));
    meta.ctime = Some((stat.ctime(), stat.ctime_nsec() as u32));
    meta
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, image, size, inodes] = &arguments[..] else {
        return Err("usage: mkext4 DIRECTORY IMAGE SIZE INODES".into());
    };
    let mut options = Options::new(size.parse()?, [7; 16], 0);
    options.inodes = InodeCount::Exact(inodes.parse()?);
    let mut walk = Walk {
        builder: FsBuilder::new(options)?,
        links: HashMap::new(),
        files: Vec::new(),
    };
    walk.directory(ROOT, Path::new(directory))?;
    let layout = walk.builder.seal()?;
    let mut sink = FileSink::create(Path::new(image), layout.image_len())?;
    let mut writer = layout.writer(&mut sink)?;
    for (node, path) in &walk.files {
        writer.fill(*node, &mut File::open(path)?)?;
    }
    writer.finish()?;
    Ok(())
}
