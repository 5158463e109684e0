//! Single files of a filesystem that is being built, by their paths from the root: for what is made of other files in it.
//! Links on the way are followed, and not the last name.

use block::Result;

use super::paths;
use crate::{Builder, Metadata};

/// All of a regular file, whose data is written; `None` where there is none, or more than `most` bytes.
///
/// # Errors
/// `InvalidInput` for a way through what is no directory; `Io`.
pub fn read(builder: &mut Builder<'_>, path: &str, most: u64) -> Result<Option<Vec<u8>>> {
    match paths::lookup(builder, plain(path))? {
        Some(node) => builder.contents(node, most),
        None => Ok(None),
    }
}

/// The names in a directory, sorted, as far as they are UTF-8; `None` where there is no directory.
///
/// # Errors
/// `InvalidInput` for a way through what is no directory.
pub fn names(builder: &mut Builder<'_>, path: &str) -> Result<Option<Vec<String>>> {
    let Some(directory) = paths::existing(builder, plain(path))? else {
        return Ok(None);
    };
    let entries = builder.entries(directory);
    let mut names: Vec<String> = entries
        .filter_map(|(name, _)| String::from_utf8(name.to_vec()).ok())
        .collect();
    names.sort_unstable();
    Ok(Some(names))
}

/// Puts a file of root's into the filesystem, whatever was there. Directories that are missing are made.
///
/// # Errors
/// `InvalidInput` for a path that cannot be; `NoSpace`, `Io`.
pub fn put(builder: &mut Builder<'_>, path: &str, contents: &[u8], permissions: u16) -> Result<()> {
    let path = plain(path);
    let (way, name) = paths::split(path).unwrap_or((b"", path));
    let parent = paths::directory(builder, way)?;
    let metadata = Metadata {
        permissions,
        ..Metadata::at(builder.time())
    };
    let len = contents.len() as u64;
    let (_, place) = builder.file(parent, name, &metadata, len, std::slice::from_ref(&(0..len)))?;
    place.write(builder.storage(), contents, 0)
}

fn plain(path: &str) -> &[u8] {
    path.trim_start_matches('/').as_bytes()
}

#[cfg(test)]
mod tests {
    use block::MemStorage;

    use super::*;
    use crate::{Options, Size};

    #[test]
    fn a_file_is_put_and_read_again_through_links() {
        let storage = MemStorage::new();
        let mut builder = Builder::new(&storage, Options::new(Size::Shrink, [7; 16])).unwrap();
        let metadata = Metadata::at(builder.time());
        builder
            .symlink(builder.root(), b"lib", &metadata, b"usr/lib")
            .unwrap();
        let contents = vec![3; 10_000];
        put(&mut builder, "/usr/lib/b", &contents, 0o644).unwrap();
        put(&mut builder, "lib/a", b"", 0o600).unwrap();
        assert_eq!(names(&mut builder, "/lib").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(names(&mut builder, "/none").unwrap(), None);
        assert_eq!(read(&mut builder, "/lib/b", 10_000).unwrap(), Some(contents));
        assert_eq!(read(&mut builder, "/lib/b", 9_999).unwrap(), None);
        assert_eq!(read(&mut builder, "/lib/a", 0).unwrap(), Some(vec![]));
        assert_eq!(read(&mut builder, "/lib", 100).unwrap(), None);
    }
}
