//! Paths: names that lead from the root to a file, and the links on the way.

use block::{Error, Result, escape};

use crate::Filesystem;
use crate::inode::{FileKind, Inode, InodeNumber};

/// Symbolic links that are followed for one path, as many as Linux does.
const MAX_LINKS: usize = 40;
/// Components that a path may come to with its links, so that they cannot double it again and again.
const MAX_COMPONENTS: usize = 1 << 16;

/// What becomes of a path that ends at a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    /// It leads to where the link does.
    Follow,
    /// It names the link itself.
    Keep,
}

impl Filesystem {
    /// The file that `path` leads to from the root, whether it starts with a slash or not. Links are followed inside
    /// of the filesystem, and `..` at the root stays there.
    ///
    /// # Errors
    /// `InvalidInput` for a path that leads nowhere, with the part that does not; `Corrupt`, `Io`.
    pub fn resolve(&self, path: &[u8], last: LastLink) -> Result<Inode> {
        let mut ahead = components(path);
        // The directories that lead to here, so that `..` needs no trust in what a directory says is above it.
        let mut above: Vec<Inode> = Vec::new();
        let mut here = self.inode(InodeNumber::ROOT)?;
        let mut links = 0;
        let must_be_directory = path.ends_with(b"/");
        while let Some(name) = ahead.pop() {
            let fail = |reason: &str| {
                let text = |bytes: &[u8]| escape(&String::from_utf8_lossy(bytes)).into_owned();
                let (path, name) = (text(path), text(&name));
                let whole = path.trim_matches('/') == name;
                let place = if whole {
                    String::new()
                } else {
                    format!(", which {path} needs")
                };
                Err(Error::invalid(format!("{name}{place}: {reason}")))
            };
            if here.kind() != FileKind::Directory {
                return fail("what it is looked up in is no directory");
            }
            if name == b".." {
                here = match above.pop() {
                    Some(parent) => parent,
                    None => here,
                };
                continue;
            }
            let Some(number) = self.lookup(&here, &name)? else {
                return fail("there is no such file in the filesystem");
            };
            let inode = self.inode(number)?;
            let follow = !ahead.is_empty() || last == LastLink::Follow || must_be_directory;
            if inode.kind() != FileKind::Symlink || !follow {
                above.push(std::mem::replace(&mut here, inode));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return fail("too many symbolic links, one after the other");
            }
            let target = self.read_link(&inode)?;
            if target.starts_with(b"/") {
                above.clear();
                here = self.inode(InodeNumber::ROOT)?;
            }
            ahead.extend(components(&target));
            if ahead.len() > MAX_COMPONENTS {
                return fail("the links on the way make it too long");
            }
        }
        if must_be_directory && here.kind() != FileKind::Directory {
            let path = String::from_utf8_lossy(path);
            return Err(Error::invalid(format!("{}: this is no directory", escape(&path))));
        }
        Ok(here)
    }
}

/// The names in a path, the last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').rev();
    names
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}
