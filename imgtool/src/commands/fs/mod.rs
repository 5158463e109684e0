//! `imgtool fs`: files in the ext2, ext3 and ext4 filesystems of images, without mounting anything.

mod attributes;
mod cat;
mod copy;
mod describe;
mod edit;
mod grow;
mod host;
mod list;
mod mode;
mod names;
mod put;
mod putting;
mod read;
mod stat;
mod tree;
mod walk;
mod write;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{Access, Error, ErrorKind, Result, SnapshotSelector};
use clap::{Args, Subcommand};
use ext4_reader::{FileKind, Filesystem, Inode, LastLink};
use raw::partition::PartitionTable;

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::image_name::ImageName;
use crate::images::Opening;
use crate::target::is_one_of;

/// Read and change files in the ext2, ext3 or ext4 filesystem of an image
///
/// Nothing is mounted, and nobody has to be root. The image may have any format and any chain below it. Where the disk is
/// partitioned, a partition is named as IMAGE#NUMBER, IMAGE#name:LABEL or IMAGE#uuid:GUID. Commands that read write nothing:
/// a filesystem that was not unmounted is read as its journal would make it. Those that change something change all of
/// what they were asked for or nothing, whenever the power goes, and not an image that is in use.
#[derive(Debug, Args)]
#[command(
    subcommand_required = true,
    after_help = "Examples:
  imgtool fs ls -l disk.qcow2#2 /etc
  imgtool fs cat disk.qcow2#name:root /etc/fstab
  imgtool fs cp -r -p disk.qcow2#2 /var/log logs
  imgtool fs tree -L 2 root.ext4
  imgtool fs put disk.qcow2#2 hosts /etc/hosts
  imgtool fs edit disk.qcow2#2 /etc/fstab

Paths start at the root of the filesystem, with a slash or without, and links in them stay in it. Bytes of names that are \
not UTF-8 are shown as \\xNN."
)]
pub(crate) struct FsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(list::ListArgs),
    Cat(cat::CatArgs),
    Stat(stat::StatArgs),
    Cp(copy::CopyArgs),
    Tree(tree::TreeArgs),
    Put(put::PutArgs),
    Edit(edit::EditArgs),
    Mkdir(names::MkdirArgs),
    Rm(names::RmArgs),
    Mv(names::MvArgs),
    Ln(names::LnArgs),
    Chmod(attributes::ChmodArgs),
    Chown(attributes::ChownArgs),
    Grow(grow::GrowArgs),
}

impl FsArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        match self.command {
            Command::Ls(arguments) => arguments.run(out),
            Command::Cat(arguments) => arguments.run(out),
            Command::Stat(arguments) => arguments.run(out),
            Command::Cp(arguments) => arguments.run(out),
            Command::Tree(arguments) => arguments.run(out),
            Command::Put(arguments) => arguments.run(out),
            Command::Edit(arguments) => arguments.run(out),
            Command::Mkdir(arguments) => arguments.run(out),
            Command::Rm(arguments) => arguments.run(out),
            Command::Mv(arguments) => arguments.run(out),
            Command::Ln(arguments) => arguments.run(out),
            Command::Chmod(arguments) => arguments.run(out),
            Command::Chown(arguments) => arguments.run(out),
            Command::Grow(arguments) => arguments.run(out),
        }
    }
}

/// The filesystem that is read.
#[derive(Debug, Args)]
struct SourceArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Read it as it was when this internal snapshot was taken
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Read an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// The image, or a partition of the disk in one
    image: PathBuf,
}

/// An open filesystem, and how it was named.
struct Source {
    filesystem: Filesystem,
    chain: Chain,
    name: PathBuf,
}

impl SourceArgs {
    fn open(&self) -> Result<Source> {
        self.open.check()?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            direct: false,
        };
        let name = ImageName::parse(&self.image)?;
        let format = self.format.as_deref();
        let chain = match self
            .snapshot
            .as_deref()
            .map(SnapshotSelector::parse)
            .transpose()?
        {
            Some(snapshot) => opening.snapshot(&name.path, format, &snapshot)?,
            None => opening.chain(&name.path, format)?,
        };
        let disk = name.filesystem_on(chain.device())?;
        let filesystem =
            Filesystem::open(disk).map_err(|error| explain_none(error, &name, &self.image, &chain))?;
        Ok(Source {
            filesystem,
            chain,
            name: self.image.clone(),
        })
    }
}

/// Says of an error in opening a filesystem which image it is about, and where one is if there is none.
fn explain_none(error: Error, name: &ImageName, image: &Path, chain: &Chain) -> Error {
    let none = error.kind() == ErrorKind::InvalidInput && name.partition.is_none();
    let error = error.with_path(image);
    match none.then(|| partitions_hint(image, chain)).flatten() {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Which partitions could have been meant by the name of a whole disk.
fn partitions_hint(image: &Path, chain: &Chain) -> Option<String> {
    let table = PartitionTable::read(&**chain.active(), None).ok()?;
    let mut named = Vec::new();
    for partition in table.partitions() {
        let window = block::view::Window::new(chain.device(), partition.start(), partition.len()).ok()?;
        if Filesystem::is_on(&window).unwrap_or(false) {
            named.push(format!("{}#{}", image.display(), partition.number));
        }
    }
    if named.is_empty() {
        return None;
    }
    Some(format!("the disk is partitioned: name {}", named.join(" or ")))
}

impl Source {
    /// The file at a path that was given.
    fn find(&self, path: &[u8], last: LastLink) -> Result<Inode> {
        let found = self.filesystem.resolve(path, last);
        found.map_err(|error| error.with_path(&self.name))
    }

    /// The same error, with the image and the file in it.
    fn at(&self, path: &[u8], error: Error) -> Error {
        let mut name = self.name.as_os_str().to_owned();
        name.push(":");
        name.push(describe::shown(path));
        error.with_path(name)
    }

    /// Where a link leads.
    fn target(&self, path: &[u8], inode: &Inode) -> Result<Option<Vec<u8>>> {
        if inode.kind() != FileKind::Symlink {
            return Ok(None);
        }
        let target = self.filesystem.read_link(inode);
        target.map(Some).map_err(|error| self.at(path, error))
    }

    /// Whether a file of the host is one that is read from.
    fn is_read_from(&self, path: &Path) -> bool {
        let layers = self.chain.layers().iter();
        is_one_of(
            path,
            layers.flat_map(|layer| std::iter::once(&layer.storage).chain(&layer.data_file)),
        )
    }
}

/// A path from the command line, from the root on and without what it does not need: `/` for the root.
fn absolute(path: &OsStr) -> Vec<u8> {
    let names = path.as_bytes().split(|byte| *byte == b'/');
    let mut absolute = Vec::new();
    for name in names.filter(|name| !name.is_empty() && *name != b".") {
        absolute.push(b'/');
        absolute.extend_from_slice(name);
    }
    if absolute.is_empty() {
        absolute.push(b'/');
    }
    absolute
}

/// The path of what is called `name`, or has that path, below another.
fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if name.is_empty() {
        return path.to_vec();
    }
    let slash: &[u8] = if path.ends_with(b"/") { b"" } else { b"/" };
    [path, slash, name].concat()
}

/// What is given on the command line, or the root.
fn or_root(paths: &[std::ffi::OsString]) -> Vec<&OsStr> {
    if paths.is_empty() {
        vec![OsStr::new("/")]
    } else {
        paths.iter().map(std::ffi::OsString::as_os_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_root() {
        for (given, path) in [
            ("", "/"),
            ("/", "/"),
            ("//a//b/./c/", "/a/b/c"),
            ("a", "/a"),
            ("a/..", "/a/.."),
        ] {
            assert_eq!(absolute(OsStr::new(given)), path.as_bytes(), "{given}");
        }
        assert_eq!(below(b"/", b"a"), b"/a");
        assert_eq!(below(b"/a", b"b/c"), b"/a/b/c");
        assert_eq!(below(b"/a", b""), b"/a");
    }
}
