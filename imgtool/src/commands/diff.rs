//! `imgtool diff`: what has changed on a machine's disk since it was a clone of its template.
//!
//! Both trees are walked side by side. A file with the same inode number, size and times as before is taken for the same: a kernel sets the
//! time of change whenever it changes anything, and no program can set that one. Of others, content is compared.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use block::{Access, Error, Result, escape};
use clap::Args;
use ext4_reader::{FileKind, Filesystem, Inode, InodeNumber, LastLink, Visits};
use machines::Root;
use ops::Control;
use serde_json::{Value, json};

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::images::Opening;
use crate::interrupt;
use crate::output::{self, OutputFormat};

/// Bytes compared at once.
const CHUNK: u64 = 1 << 20;

/// List files that have changed on a machine's disk since it was cloned
///
/// Files of the root filesystem are compared with those of the template: A is one that was added, R one that was removed, C one whose
/// content has changed, and M one of which only owner, mode, times or extended attributes have. Of a directory that was added or removed, all that is in
/// it is listed. Nothing is changed, and the machine must not run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool diff web-1
  imgtool diff --output json web-1")]
pub(crate) struct DiffArgs {
    /// How to print what was found
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    open: OpenArgs,
    /// The machine
    #[arg(value_name = "MACHINE")]
    name: String,
}

impl DiffArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let store = self.open.store.open()?;
        let instance = store.instance(&self.name)?;
        let template = store.base_of(&instance)?;
        template.check(&Control::new(interrupt::watch()?, &|_| ()))?;
        let (before, after) = (self.root(&template.image())?, self.root(&instance.image())?);
        let mut comparison = Comparison {
            before: &before,
            after: &after,
            changes: BTreeMap::new(),
        };
        comparison.compare()?;
        if self.output == OutputFormat::Json {
            let changes = comparison.changes.iter();
            let changes =
                changes.map(|(path, change)| json!({ "path": shown(path), "change": change.word() }));
            output::json(out, &changes.collect::<Value>())?;
            return Ok(0);
        }
        for (path, change) in &comparison.changes {
            writeln!(out, "{} {}", change.letter(), shown(path))?;
        }
        Ok(0)
    }

    fn root(&self, image: &Path) -> Result<Filesystem> {
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access::READ,
            direct: false,
        };
        let chain = opening.chain(image, Some("qcow2"))?;
        match Root::find(&chain.device())? {
            Some(root) => root.filesystem().map_err(|error| error.with_path(image)),
            None => {
                Err(Error::invalid("the disk has no root filesystem of ext4 to look at").with_path(image))
            }
        }
    }
}

fn shown(path: &[u8]) -> String {
    escape(&String::from_utf8_lossy(path)).into_owned()
}

/// What has become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Added,
    Removed,
    Content,
    Metadata,
}

impl Change {
    fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Removed => 'R',
            Self::Content => 'C',
            Self::Metadata => 'M',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Content => "content",
            Self::Metadata => "metadata",
        }
    }
}

struct Comparison<'f> {
    before: &'f Filesystem,
    after: &'f Filesystem,
    changes: BTreeMap<Vec<u8>, Change>,
}

type Names = BTreeMap<Vec<u8>, InodeNumber>;

impl Comparison<'_> {
    fn compare(&mut self) -> Result<()> {
        let root = |filesystem: &Filesystem| filesystem.resolve(b"/", LastLink::Follow);
        let mut visits = (
            Visits::new(self.before.superblock()),
            Visits::new(self.after.superblock()),
        );
        let mut ahead = vec![(Vec::new(), Some(root(self.before)?), Some(root(self.after)?))];
        while let Some((path, before, after)) = ahead.pop() {
            let old = names(self.before, before.as_ref(), &mut visits.0)?;
            let new = names(self.after, after.as_ref(), &mut visits.1)?;
            let all: Vec<Vec<u8>> = old.keys().chain(new.keys()).cloned().collect();
            for name in all.into_iter().collect::<std::collections::BTreeSet<_>>() {
                let inode = |filesystem: &Filesystem, number: Option<&InodeNumber>| {
                    number.map(|number| filesystem.inode(*number)).transpose()
                };
                let before = inode(self.before, old.get(&name))?;
                let after = inode(self.after, new.get(&name))?;
                let path = [&path[..], b"/", &name].concat();
                if let Some(change) = self.change(before.as_ref(), after.as_ref())? {
                    self.changes.insert(path.clone(), change);
                }
                let directory =
                    |inode: Option<Inode>| inode.filter(|inode| inode.kind() == FileKind::Directory);
                let (before, after) = (directory(before), directory(after));
                if before.is_some() || after.is_some() {
                    ahead.push((path, before, after));
                }
            }
        }
        Ok(())
    }

    fn change(&self, before: Option<&Inode>, after: Option<&Inode>) -> Result<Option<Change>> {
        let (before, after) = match (before, after) {
            (Some(before), Some(after)) => (before, after),
            (None, Some(_)) => return Ok(Some(Change::Added)),
            (Some(_), None) => return Ok(Some(Change::Removed)),
            (None, None) => return Ok(None),
        };
        let same = |inode: &Inode| {
            (
                inode.number(),
                inode.generation(),
                inode.size(),
                inode.changed(),
                inode.modified(),
            )
        };
        if same(before) == same(after) {
            return Ok(None);
        }
        if before.kind() != after.kind() || !self.same_content(before, after)? {
            return Ok(Some(Change::Content));
        }
        let said = |inode: &Inode| (inode.mode(), inode.uid(), inode.gid());
        let times = before.kind() == FileKind::Directory || before.modified() == after.modified();
        let xattrs = self.before.xattrs(before)? == self.after.xattrs(after)?;
        Ok((said(before) != said(after) || !times || !xattrs).then_some(Change::Metadata))
    }

    fn same_content(&self, before: &Inode, after: &Inode) -> Result<bool> {
        match before.kind() {
            FileKind::Regular if before.size() != after.size() => Ok(false),
            FileKind::Regular => {
                let mut at = 0;
                while at < before.size() {
                    let len = CHUNK.min(before.size() - at);
                    if read(self.before, before, at, len)? != read(self.after, after, at, len)? {
                        return Ok(false);
                    }
                    at += len;
                }
                Ok(true)
            }
            FileKind::Symlink => Ok(self.before.read_link(before)? == self.after.read_link(after)?),
            _ => Ok(before.device() == after.device()),
        }
    }
}

/// Part of a file's content.
fn read(filesystem: &Filesystem, inode: &Inode, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    for run in filesystem.content(inode)? {
        let run = run?;
        let (from, to) = (run.offset.max(offset), (run.offset + run.len).min(offset + len));
        if from < to {
            let part = &mut bytes[(from - offset) as usize..(to - offset) as usize];
            filesystem.read_run(&run, from - run.offset, part)?;
        }
    }
    Ok(bytes)
}

fn names(filesystem: &Filesystem, directory: Option<&Inode>, visits: &mut Visits) -> Result<Names> {
    let Some(directory) = directory else {
        return Ok(Names::new());
    };
    visits.enter(directory)?;
    let entries = filesystem.read_dir(directory)?.into_iter();
    Ok(entries.map(|entry| (entry.name, entry.inode)).collect())
}
