//! Manifests: what a filesystem is to have besides what its source has, or otherwise.
//!
//! A manifest is TOML, a list of entries that are taken one after the other:
//!
//! ```toml
//! [[entry]]
//! path = "/etc/hostname"
//! type = "file"
//! contents = "guest\n"
//!
//! [[entry]]
//! path = "/usr/bin/ping"
//! xattrs = { "security.capability" = "0x0100000200200000000000000000000000000000" }
//!
//! [[entry]]
//! path = "/etc/ssh"
//! image = "old.qcow2"
//!
//! [[entry]]
//! match = "/home/*/**"
//! uid = 1000
//! gid = 1000
//! ```
//!
//! An entry with a type puts something at its path, whatever was there; a directory stays with what is in it, and
//! what has the same type keeps mode and owner where the entry says none. Directories on the way are made. An entry
//! without a type is a file where it has contents or a source; with an image, what that has at the path, or at its source,
//! and all that is in it; and otherwise it changes what is there, at a path or wherever a [`Pattern`] matches.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use toml_edit::{Document, Item, Table, Value};

use super::copying::{self, Copier, Job};
use super::filesystem::{self, OpenImage};
use super::pattern::Pattern;
use super::stat::Stat;
use super::{Control, descent, paths};
use crate::{Builder, Metadata, Node, Special, Time, tar};

/// The keys that each type has besides those of all.
const TYPES: [(&str, &[&str]); 9] = [
    ("file", &["contents", "source"]),
    ("directory", &[]),
    ("symlink", &["target"]),
    ("link", &["target"]),
    ("char-device", &["major", "minor"]),
    ("block-device", &["major", "minor"]),
    ("fifo", &[]),
    ("socket", &[]),
    ("remove", &[]),
];

/// The keys that every entry may have.
const COMMON: [&str; 8] = ["path", "match", "type", "mode", "uid", "gid", "mtime", "xattrs"];

/// The keys besides those of all of an entry that is taken out of an image.
const OF_IMAGE: &[&str] = &["image", "source"];

/// What a filesystem is to have. See the [module](self) for what can be said.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    at: Position,
    place: Place,
    what: What,
    changes: Changes,
}

#[derive(Clone, Debug)]
enum Place {
    Path(Vec<u8>),
    Match(Pattern),
}

#[derive(Clone, Debug)]
enum What {
    /// Nothing new.
    Change,
    Remove,
    Contents(Vec<u8>),
    /// A file of the host.
    Source(PathBuf),
    /// What an image has at a path.
    Image(PathBuf, Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Link(Vec<u8>),
    Special(Special),
}

/// What is said of metadata.
#[derive(Clone, Debug, Default)]
struct Changes {
    mode: Option<u16>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Time>,
    xattrs: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A place in a manifest, from 1 on.
#[derive(Clone, Copy, Debug)]
struct Position {
    line: usize,
    column: usize,
}

/// What is wrong with an entry, and where, in bytes from the start of the manifest; nothing for all of it.
struct Fault {
    error: Error,
    at: Option<usize>,
}

type Parsed<T> = std::result::Result<T, Fault>;

impl Manifest {
    /// Reads a manifest; the files that it names are looked up from `directory`.
    ///
    /// # Errors
    /// `InvalidInput` with line and column, for what is no TOML and no entry.
    pub fn parse(text: &str, directory: &Path) -> Result<Self> {
        let document = parse(text)?;
        let mut manifest = Self::default();
        for (key, item) in document.iter() {
            manifest.add(text, ("entry", key), item, directory)?;
        }
        Ok(manifest)
    }

    /// Reads the entries that a document about more than those has by a key, as in `[[files]]`; none where it has no such key.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn in_document(text: &str, key: &str, directory: &Path) -> Result<Self> {
        let document = parse(text)?;
        let mut manifest = Self::default();
        if let Some(item) = document.get(key) {
            manifest.add(text, (key, key), item, directory)?;
        }
        Ok(manifest)
    }

    /// Adds the entries of another, which are taken after these.
    pub fn append(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the entries that a document has by a key, which is to be another.
    fn add(&mut self, text: &str, (wanted, key): (&str, &str), item: &Item, directory: &Path) -> Result<()> {
        let tables = Some(item)
            .filter(|_| key == wanted)
            .and_then(Item::as_array_of_tables);
        let Some(tables) = tables else {
            let error = Error::invalid(format!("\"{}\" is no list of entries", escape(key)))
                .with_hint(format!("each entry starts with [[{wanted}]]"));
            return Err(Position::of(text, start(item).unwrap_or(0)).told(&error));
        };
        for table in tables {
            let start = table.span().map_or(0, |span| span.start);
            let entry = Entry::parse(table, text, directory)
                .map_err(|fault| Position::of(text, fault.at.unwrap_or(start)).told(&fault.error))?;
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Lays it over what a filesystem has so far. The images that it names are opened by `images`.
    ///
    /// # Errors
    /// `InvalidInput` with line and column, for paths with nothing there to change, and for what ext4 cannot hold; those of `images`,
    /// and of what is read there; `Io`, `NoSpace`.
    pub fn apply(
        &self,
        builder: &mut Builder<'_>,
        images: &OpenImage<'_>,
        control: &Control<'_>,
    ) -> Result<()> {
        copying::run(builder.storage(), control, |copier| {
            for entry in &self.entries {
                copier.check()?;
                entry
                    .apply(builder, images, copier)
                    .map_err(|error| entry.at.told(&error))?;
            }
            Ok(())
        })
    }
}

fn parse(text: &str) -> Result<Document<&str>> {
    Document::parse(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        Position::of(text, start).told(&Error::invalid(escape(error.message().trim()).into_owned()))
    })
}

impl Entry {
    fn parse(table: &Table, text: &str, directory: &Path) -> Parsed<Self> {
        let is_of_image = table.contains_key("image");
        let has_contents = ["contents", "source"].iter().any(|key| table.contains_key(key));
        let kind = string(table, "type")?.or((has_contents && !is_of_image).then_some("file"));
        let allowed = match kind {
            Some(_) if is_of_image => {
                let error = Error::invalid("an entry with an image has no type: it has what is there");
                return Err(fault(table, "type", error));
            }
            None if is_of_image => OF_IMAGE,
            None => &[],
            Some(kind) => {
                let known = TYPES.iter().find(|(name, _)| *name == kind);
                known.map(|(_, keys)| *keys).ok_or_else(|| {
                    let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
                    let error = Error::invalid(format!("there is no type \"{}\"", escape(kind)))
                        .with_hint(format!("there are {}", names.join(", ")));
                    fault(table, "type", error)
                })?
            }
        };
        let unknown = |key: &&str| !COMMON.contains(key) && !allowed.contains(key);
        if let Some(key) = table.iter().map(|(key, _)| key).find(unknown) {
            let message = match kind {
                Some(kind) => format!("an entry of the type {kind} has no key \"{}\"", escape(key)),
                None if is_of_image => format!("an entry with an image has no key \"{}\"", escape(key)),
                None => format!("an entry without a type has no key \"{}\"", escape(key)),
            };
            let at = table
                .get_key_value(key)
                .and_then(|(key, _)| Some(key.span()?.start));
            let error = Error::invalid(message);
            return Err(Fault { error, at });
        }
        let place = match (string(table, "path")?, string(table, "match")?) {
            (Some(path), None) => Place::Path(plain_path(path).map_err(|error| fault(table, "path", error))?),
            (None, Some(pattern)) => {
                let pattern = Pattern::new(pattern.as_bytes());
                Place::Match(pattern.map_err(|error| fault(table, "match", error))?)
            }
            _ => return Err(Error::invalid("an entry has either a path or a match").into()),
        };
        let what = What::parse(table, kind, directory)?;
        if matches!(place, Place::Match(_)) && !matches!(what, What::Change | What::Remove) {
            let error = Error::invalid("something new needs a path, and not a match");
            return Err(fault(table, "match", error));
        }
        let at = ["path", "match"]
            .iter()
            .find_map(|key| table.get(key).and_then(start));
        Ok(Self {
            at: Position::of(text, at.unwrap_or(0)),
            place,
            what,
            changes: Changes::parse(table)?,
        })
    }

    fn apply(&self, builder: &mut Builder<'_>, images: &OpenImage<'_>, copier: &Copier<'_>) -> Result<()> {
        let path = match &self.place {
            Place::Path(path) => path,
            Place::Match(pattern) => return self.apply_to_matches(builder, pattern),
        };
        let shown = String::from_utf8_lossy(path);
        let missing = || {
            Error::invalid(format!(
                "there is nothing at \"/{}\" in the filesystem",
                escape(&shown)
            ))
        };
        match &self.what {
            What::Change => {
                let node = paths::lookup(builder, path)?.ok_or_else(missing)?;
                self.changes.apply(builder, node)
            }
            What::Remove => {
                let (way, name) =
                    paths::split(path).ok_or_else(|| Error::invalid("the root cannot be removed"))?;
                let directory = paths::existing(builder, way)?.ok_or_else(missing)?;
                if builder.remove(directory, name) {
                    return Ok(());
                }
                Err(missing())
            }
            What::Image(image, source) => {
                let filesystem = images(image)?;
                let target = match paths::split(path) {
                    Some((way, name)) => Some((paths::directory(builder, way)?, name)),
                    None => None,
                };
                let node = filesystem::put(&filesystem, source, builder, target, copier)
                    .map_err(|error| error.with_path(image))?;
                self.changes.apply(builder, node)
            }
            What::Directory if path.is_empty() => {
                let root = builder.root();
                self.changes.apply(builder, root)
            }
            _ => {
                let (way, name) =
                    paths::split(path).ok_or_else(|| Error::invalid("the root is a directory"))?;
                let parent = paths::directory(builder, way)?;
                let node = self.put(builder, copier, parent, name)?;
                self.changes.apply(builder, node)
            }
        }
    }

    /// Puts what it says at a place.
    fn put(&self, builder: &mut Builder<'_>, copier: &Copier<'_>, parent: Node, name: &[u8]) -> Result<Node> {
        let before = builder.lookup(parent, name);
        let file = before.filter(|&node| builder.is_file(node));
        match &self.what {
            What::Change | What::Remove | What::Image(..) => Err(Error::invalid("nothing new is said")),
            What::Contents(contents) => {
                let metadata = like(builder, file, 0o644);
                let size = contents.len() as u64;
                if contents.len() <= crate::inline_data::MAX_FILE {
                    return builder.small_file(parent, name, &metadata, contents);
                }
                let (node, placement) =
                    builder.file(parent, name, &metadata, size, std::slice::from_ref(&(0..size)))?;
                copier.put(Job::Bytes {
                    bytes: contents.clone(),
                    placement: placement.into(),
                    offset: 0,
                })?;
                Ok(node)
            }
            What::Source(path) => {
                let metadata = like(builder, file, 0o644);
                copy_file(builder, copier, parent, name, &metadata, path)
                    .map_err(|error| error.with_path(path))
            }
            What::Directory => {
                if let Some(node) = before.filter(|&node| builder.is_directory(node)) {
                    return Ok(node);
                }
                let metadata = like(builder, None, 0o755);
                builder.directory(parent, name, &metadata)
            }
            What::Symlink(target) => {
                let link = before.filter(|&node| builder.target(node).is_some());
                let metadata = like(builder, link, 0o777);
                builder.symlink(parent, name, &metadata, target)
            }
            What::Link(target) => {
                let node = paths::lookup(builder, target)?.ok_or_else(|| {
                    let target = String::from_utf8_lossy(target);
                    Error::invalid(format!("there is nothing at \"/{}\" to link to", escape(&target)))
                })?;
                builder.hard_link(parent, name, node)?;
                Ok(node)
            }
            What::Special(special) => {
                let metadata = like(builder, None, 0o644);
                builder.special(parent, name, &metadata, *special)
            }
        }
    }

    fn apply_to_matches(&self, builder: &mut Builder<'_>, pattern: &Pattern) -> Result<()> {
        let mut found = Vec::new();
        paths::for_each(builder, |path, parent, node| {
            if pattern.matches(path) {
                let name = paths::split(path).map_or(&[][..], |(_, name)| name);
                found.push((parent, name.to_vec(), node));
            }
        });
        if found.is_empty() {
            return Err(Error::invalid("its match is of nothing in the filesystem"));
        }
        for (parent, name, node) in found {
            match self.what {
                // Something that it is in may be gone already.
                What::Remove => drop(builder.remove(parent, &name)),
                _ => self.changes.for_one_of_many(builder, node).apply(builder, node)?,
            }
        }
        Ok(())
    }
}

impl What {
    fn parse(table: &Table, kind: Option<&str>, directory: &Path) -> Parsed<Self> {
        let needs = |key: &str| Fault::from(Error::invalid(format!("the key \"{key}\" is missing")));
        let target = || string(table, "target")?.ok_or_else(|| needs("target"));
        let device = || -> Parsed<(u32, u32)> {
            let number = |key| integer(table, key, u32::MAX.into())?.ok_or_else(|| needs(key));
            Ok((number("major")? as u32, number("minor")? as u32))
        };
        if let Some(image) = string(table, "image")? {
            let (key, path) = match (string(table, "source")?, string(table, "path")?) {
                (Some(source), _) => ("source", source),
                (None, path) => ("path", path.unwrap_or("/")),
            };
            let path = plain_path(path).map_err(|error| fault(table, key, error))?;
            return Ok(Self::Image(directory.join(image), path));
        }
        Ok(match kind {
            Some("file") => match (string(table, "contents")?, string(table, "source")?) {
                (Some(contents), None) => Self::Contents(contents.as_bytes().to_vec()),
                (None, Some(source)) => Self::Source(directory.join(source)),
                _ => return Err(Error::invalid("a file has either contents or a source").into()),
            },
            Some("directory") => Self::Directory,
            Some("symlink") => Self::Symlink(target()?.as_bytes().to_vec()),
            Some("link") => Self::Link(plain_path(target()?).map_err(|error| fault(table, "target", error))?),
            Some("char-device") => {
                let (major, minor) = device()?;
                Self::Special(Special::CharacterDevice { major, minor })
            }
            Some("block-device") => {
                let (major, minor) = device()?;
                Self::Special(Special::BlockDevice { major, minor })
            }
            Some("fifo") => Self::Special(Special::Fifo),
            Some("socket") => Self::Special(Special::Socket),
            Some("remove") => Self::Remove,
            _ => Self::Change,
        })
    }
}

impl Changes {
    fn parse(table: &Table) -> Parsed<Self> {
        let id = |key| Ok::<_, Fault>(integer(table, key, i64::from(u32::MAX) - 1)?.map(|id| id as u32));
        let mtime = match table.get("mtime") {
            None => None,
            Some(item) => Some(
                item.as_integer()
                    .ok_or_else(|| wrong(item, "mtime", "a number of seconds"))?,
            ),
        };
        let mut changes = Self {
            mode: integer(table, "mode", 0o7777)?.map(|mode| mode as u16),
            uid: id("uid")?,
            gid: id("gid")?,
            modified: mtime.map(|secs| Time { secs, nanos: 0 }),
            xattrs: Vec::new(),
        };
        if let Some(item) = table.get("xattrs") {
            let set = item
                .as_table_like()
                .ok_or_else(|| wrong(item, "xattrs", "a table of names and values"))?;
            for (name, item) in set.iter() {
                let value = match item.as_value() {
                    Some(Value::String(text)) => Some(xattr_value(text.value()).map_err(|error| Fault {
                        error,
                        at: start(item),
                    })?),
                    Some(Value::Boolean(keep)) if !keep.value() => None,
                    _ => return Err(wrong(item, name, "a text, or false for none")),
                };
                changes.xattrs.push((name.as_bytes().to_vec(), value));
            }
        }
        Ok(changes)
    }

    /// The same without attributes that this one cannot have, where others can.
    fn for_one_of_many(&self, builder: &Builder<'_>, node: Node) -> Self {
        let mut changes = self.clone();
        let is_users = |name: &[u8]| name.starts_with(b"user.");
        changes
            .xattrs
            .retain(|(name, _)| !is_users(name) || builder.takes_xattr(node, name));
        changes
    }

    fn apply(&self, builder: &mut Builder<'_>, node: Node) -> Result<()> {
        let old = builder.metadata(node);
        let metadata = Metadata {
            permissions: self.mode.unwrap_or(old.permissions),
            uid: self.uid.unwrap_or(old.uid),
            gid: self.gid.unwrap_or(old.gid),
            modified: self.modified.unwrap_or(old.modified),
            ..old
        };
        builder.set_metadata(node, &metadata)?;
        if self.xattrs.is_empty() {
            return Ok(());
        }
        let changes = self
            .xattrs
            .iter()
            .map(|(name, value)| (&name[..], value.as_deref()));
        builder.change_xattrs(node, changes)
    }
}

/// Metadata of something new, with mode and owner of what was there before, or this mode.
fn like(builder: &Builder<'_>, before: Option<Node>, mode: u16) -> Metadata {
    let now = Metadata::at(builder.time());
    let Some(before) = before.map(|node| builder.metadata(node)) else {
        return Metadata {
            permissions: mode,
            ..now
        };
    };
    Metadata {
        permissions: before.permissions,
        uid: before.uid,
        gid: before.gid,
        ..now
    }
}

/// Puts a file of the host into a directory.
fn copy_file(
    builder: &mut Builder<'_>,
    copier: &Copier<'_>,
    parent: Node,
    name: &[u8],
    metadata: &Metadata,
    path: &Path,
) -> Result<Node> {
    let failed = |error| Error::io("open the file", error);
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(Error::invalid("it is no file"));
    }
    let file = OwnedFd::from(File::open(path).map_err(failed)?);
    let stat = Stat::of(&file, c"").map_err(|errno| Error::io("look at the file", errno.into()))?;
    let data = descent::data(&file, stat.size).map_err(|errno| Error::io("find the holes", errno.into()))?;
    let (node, placement) = builder.file(parent, name, metadata, stat.size, &data)?;
    copier.put(Job::File {
        file,
        stat,
        placement,
        path: path.to_owned(),
    })?;
    Ok(node)
}

/// A value as `setfattr` takes it: `0x` and hexadecimal digits, `0s` and base64, or a text.
fn xattr_value(text: &str) -> Result<Vec<u8>> {
    let refuse = || {
        Error::invalid(format!(
            "\"{}\" is no value of an extended attribute",
            escape(text)
        ))
        .with_hint("there are 0x and hexadecimal digits, 0s and base64, and texts that start otherwise")
    };
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        let bytes = pairs
            .iter()
            .map(|[high, low]| Some(digit(high)? << 4 | digit(low)?));
        return bytes
            .collect::<Option<_>>()
            .filter(|_| rest.is_empty())
            .ok_or_else(refuse);
    }
    if let Some(coded) = text.strip_prefix("0s").or_else(|| text.strip_prefix("0S")) {
        return tar::decode_base64(coded.as_bytes()).ok_or_else(refuse);
    }
    Ok(text.as_bytes().to_vec())
}

/// A path from the root, without the slashes that say nothing.
fn plain_path(text: &str) -> Result<Vec<u8>> {
    let names: Vec<&str> = text
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .collect();
    if text.is_empty() || names.contains(&"..") {
        let message = format!("\"{}\" is no path in the filesystem", escape(text));
        return Err(Error::invalid(message).with_hint("paths are from the root, without .."));
    }
    Ok(names.join("/").into_bytes())
}

fn string<'t>(table: &'t Table, key: &str) -> Parsed<Option<&'t str>> {
    match table.get(key) {
        None => Ok(None),
        Some(item) => item.as_str().map(Some).ok_or_else(|| wrong(item, key, "a text")),
    }
}

/// A number from 0 to `most`.
fn integer(table: &Table, key: &str, most: i64) -> Parsed<Option<i64>> {
    let Some(item) = table.get(key) else {
        return Ok(None);
    };
    let number = item.as_integer().filter(|number| (0..=most).contains(number));
    let what = match key {
        "mode" => "an octal number such as 0o644",
        _ => "a number that fits",
    };
    number.map(Some).ok_or_else(|| wrong(item, key, what))
}

fn wrong(item: &Item, key: &str, what: &str) -> Fault {
    Fault {
        error: Error::invalid(format!("\"{}\" is not {what}", escape(key))),
        at: start(item),
    }
}

/// An error in the value of a key.
fn fault(table: &Table, key: &str, error: Error) -> Fault {
    Fault {
        error,
        at: table.get(key).and_then(start),
    }
}

fn start(item: &Item) -> Option<usize> {
    item.span().map(|span| span.start)
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self { error, at: None }
    }
}

impl Position {
    /// The one of the byte at `offset`.
    fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let last = before.rsplit('\n').next().unwrap_or_default();
        Self {
            line: 1 + before.matches('\n').count(),
            column: 1 + last.chars().count(),
        }
    }

    /// The error, told of this place.
    fn told(self, error: &Error) -> Error {
        let Self { line, column } = self;
        let mut told = Error::new(error.kind(), format!("line {line}, column {column}: {error}"));
        if let Some(hint) = error.hint() {
            told = told.with_hint(hint.to_owned());
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest> {
        Manifest::parse(text, Path::new("/manifests"))
    }

    #[test]
    fn values_are_read_as_setfattr_reads_them() {
        for (text, value) in [
            ("plain", &b"plain"[..]),
            ("", b""),
            ("0x00fF", b"\x00\xff"),
            ("0sAP8=", b"\x00\xff"),
        ] {
            assert_eq!(xattr_value(text).unwrap(), value, "{text}");
        }
        for wrong in ["0x0", "0xgg", "0s*"] {
            assert!(xattr_value(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_column() {
        let entry = |rest: &str| format!("# A comment.\n\n[[entry]]\npath = \"/a\"\n{rest}\n");
        for (text, words) in [
            ("a = ".to_owned(), "line 1, column 5: "),
            (
                "\n\nfile = 5\n".to_owned(),
                "line 3, column 8: \"file\" is no list of entries",
            ),
            (
                entry("type = \"pipe\""),
                "line 5, column 8: there is no type \"pipe\"",
            ),
            (
                entry("target = \"b\""),
                "line 5, column 1: an entry without a type has no key \"target\"",
            ),
            (
                entry("type = \"fifo\"\nmajor = 1"),
                "line 6, column 1: an entry of the type fifo has no key \"major\"",
            ),
            (
                entry("match = \"*\""),
                "line 3, column 1: an entry has either a path or a match",
            ),
            (
                entry("type = \"file\""),
                "line 3, column 1: a file has either contents or a source",
            ),
            (
                entry("type = \"symlink\""),
                "line 3, column 1: the key \"target\" is missing",
            ),
            (
                entry("type = \"char-device\"\nmajor = 1"),
                "line 3, column 1: the key \"minor\" is missing",
            ),
            (
                entry("mode = 0o10000"),
                "line 5, column 8: \"mode\" is not an octal number",
            ),
            (
                entry("mode = \"644\""),
                "line 5, column 8: \"mode\" is not an octal number",
            ),
            (entry("uid = -1"), "line 5, column 7: \"uid\" is not a number"),
            (
                entry("mtime = \"now\""),
                "line 5, column 9: \"mtime\" is not a number of seconds",
            ),
            (
                entry("xattrs = 5"),
                "line 5, column 10: \"xattrs\" is not a table",
            ),
            (
                entry("xattrs = { \"user.a\" = 5 }"),
                "line 5, column 23: \"user.a\" is not a text",
            ),
            (
                entry("image = \"b\"\ntype = \"fifo\""),
                "line 6, column 8: an entry with an image has no type",
            ),
            (
                entry("image = \"b\"\ncontents = \"c\""),
                "line 6, column 1: an entry with an image has no key \"contents\"",
            ),
            (
                entry("image = \"b\"\nsource = \"../c\""),
                "line 6, column 10: \"../c\" is no path in the filesystem",
            ),
            (entry("image = true"), "line 5, column 9: \"image\" is not a text"),
            (
                "[[entry]]\nmatch = \"*\"\nimage = \"b\"".to_owned(),
                "line 2, column 9: something new needs a path",
            ),
            (
                "[[entry]]\nmatch = \"*\"\ntype = \"fifo\"".to_owned(),
                "line 2, column 9: something new needs a path",
            ),
            (
                "[[entry]]\npath = \"a/../b\"".to_owned(),
                "line 2, column 8: \"a/../b\" is no path",
            ),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(words), "{text}: {error}");
        }
    }
}
