//! Names of what is in a filesystem that is being built, as archives have them.

use block::{Error, Result};

use crate::{Builder, Metadata, Node};

/// Links that are followed on one way, as the kernel does.
const MAX_LINKS: u32 = 40;

/// Splits a path into the way and the last name. `None` for that of the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// The directory at a path. Links on the way are followed, as they are when an archive is unpacked; never out of the
/// tree, whose root has itself above it. Directories that are missing are made.
///
/// # Errors
/// `InvalidInput` where something on the way is no directory, or there are too many links.
pub(super) fn directory(builder: &mut Builder<'_>, path: &[u8]) -> Result<Node> {
    walk(builder, path, true)?.ok_or_else(|| Error::invalid("there is no such directory"))
}

/// The same; `None` where a directory is missing.
///
/// # Errors
/// As [`directory`].
pub(super) fn existing(builder: &mut Builder<'_>, path: &[u8]) -> Result<Option<Node>> {
    walk(builder, path, false)
}

/// What is at a path, whose last name is not followed; `None` where there is nothing.
///
/// # Errors
/// As [`directory`].
pub(super) fn lookup(builder: &mut Builder<'_>, path: &[u8]) -> Result<Option<Node>> {
    let Some((way, name)) = split(path) else {
        return Ok(Some(builder.root()));
    };
    let directory = walk(builder, way, false)?;
    Ok(directory.and_then(|directory| builder.lookup(directory, name)))
}

fn walk(builder: &mut Builder<'_>, path: &[u8], make: bool) -> Result<Option<Node>> {
    let mut node = builder.root();
    let mut links = 0;
    // Names that are still to be gone through, the next one last.
    let mut left: Vec<Vec<u8>> = names(path).rev().map(<[u8]>::to_vec).collect();
    while let Some(name) = left.pop() {
        if name == b".." {
            node = builder.parent(node);
            continue;
        }
        let Some(next) = builder.lookup(node, &name) else {
            if !make {
                return Ok(None);
            }
            let metadata = Metadata {
                permissions: 0o755,
                ..Metadata::at(builder.time())
            };
            node = builder.directory(node, &name, &metadata)?;
            continue;
        };
        if builder.is_directory(next) {
            node = next;
            continue;
        }
        let shown = String::from_utf8_lossy(&name);
        let Some(target) = builder.target(next) else {
            let message = format!("it is in {shown:?}, which is no directory");
            return Err(Error::invalid(message));
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(Error::invalid(format!(
                "on the way to it are more than {MAX_LINKS} links, the last of them {shown:?}"
            )));
        }
        if target.starts_with(b"/") {
            node = builder.root();
        }
        left.extend(names(target).rev().map(<[u8]>::to_vec));
    }
    Ok(Some(node))
}

/// Calls `visit` with everything but the root: its path, the directory that it is in, and itself. What is in a directory
/// follows it, in the order of names.
pub(super) fn for_each(builder: &Builder<'_>, mut visit: impl FnMut(&[u8], Node, Node)) {
    // What is still to be visited, the next one last.
    let mut left: Vec<(Vec<u8>, Node, Node)> = Vec::new();
    let add = |left: &mut Vec<_>, way: &[u8], directory: Node| {
        let start = left.len();
        left.extend(builder.entries(directory).map(|(name, node)| {
            let path = match way {
                b"" => name.to_vec(),
                _ => [way, b"/", name].concat(),
            };
            (path, directory, node)
        }));
        left[start..].sort_unstable_by(|(a, ..), (b, ..)| b.cmp(a));
    };
    add(&mut left, b"", builder.root());
    while let Some((path, directory, node)) = left.pop() {
        visit(&path, directory, node);
        if builder.is_directory(node) {
            add(&mut left, &path, node);
        }
    }
}

/// The names in a path.
fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}
