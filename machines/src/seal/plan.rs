//! What is to be done, looked up in a guest: which of the table's paths are there, and with something in them.

use std::collections::{BTreeMap, BTreeSet};

use block::{Error, ErrorKind, Result};
use ext4_reader::{FileKind, Filesystem, Inode, LastLink, Visits};

use super::operations::{Action, LOGIN_RECORDS, Operation};
use super::shown;
use super::texts::Text;

/// Where nothing is that has to last, whatever leads there.
const TEMPORARY: [&[u8]; 3] = [b"/run", b"/tmp", b"/var/tmp"];

/// Bytes of a text that is changed at most.
const MAX_TEXT: u64 = 16 << 20;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    /// From the root on.
    pub(super) path: Vec<u8>,
    pub(super) deed: Deed,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deed {
    /// The content goes.
    Empty,
    /// It goes, with all that is below it.
    Remove,
    /// It gets another content.
    Replace(Vec<u8>),
    /// It stays: a directory that would be emptied, and whose path has links that lead to this one, which is something else.
    Leave(Vec<u8>),
}

/// A look at a guest.
#[derive(Debug)]
pub(super) struct Search<'f> {
    filesystem: &'f Filesystem,
    homes: BTreeSet<Vec<u8>>,
}

impl<'f> Search<'f> {
    /// Before anything is looked for: finds out where users live.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn new(filesystem: &'f Filesystem) -> Result<Self> {
        let mut search = Self {
            filesystem,
            homes: BTreeSet::new(),
        };
        search.homes.insert(b"/root".to_vec());
        search.homes.extend(search.expand(b"/home/*")?);
        let passwd = search.text(b"/etc/passwd")?.unwrap_or_default();
        let homes = passwd.lines().filter_map(|line| line.split(':').nth(5));
        let homes = homes.filter(|home| home.starts_with('/') && home.len() > 1);
        search
            .homes
            .extend(homes.map(|home| passwd.bytes_of(home.trim_end_matches('/'))));
        Ok(search)
    }

    pub(super) fn filesystem(&self) -> &Filesystem {
        self.filesystem
    }

    /// What an operation has to do.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn plan(&self, operation: &Operation) -> Result<Vec<Step>> {
        let mut steps = BTreeSet::new();
        for (action, patterns) in operation.actions {
            for pattern in *patterns {
                for path in self.expand_in_homes(pattern)? {
                    let emptied = emptied(*action, pattern, &path).map(<[u8]>::to_vec);
                    let mut found = BTreeSet::new();
                    self.steps(*action, path, &mut found)?;
                    match emptied.filter(|_| !found.is_empty()) {
                        Some(directory) => match self.elsewhere(&directory, operation)? {
                            Some(real) => steps.extend([Step {
                                path: directory,
                                deed: Deed::Leave(real),
                            }]),
                            None => steps.append(&mut found),
                        },
                        None => steps.append(&mut found),
                    }
                }
            }
        }
        let left: BTreeSet<Vec<u8>> = steps
            .iter()
            .filter(|step| matches!(step.deed, Deed::Leave(_)))
            .map(|step| step.path.clone())
            .collect();
        // Without its link it would be found no more.
        steps.retain(|step| step.deed != Deed::Remove || !left.contains(&step.path));
        let steps = self.settled(steps)?;
        let removed: BTreeSet<Vec<u8>> = steps
            .iter()
            .filter(|step| step.deed == Deed::Remove)
            .map(|step| step.path.clone())
            .collect();
        // What goes with a directory is not removed once more.
        let goes = |step: &Step| {
            let slashes = step.path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            slashes
                .map(|(at, _)| &step.path[..at])
                .any(|above| removed.contains(above))
        };
        Ok(steps.into_iter().filter(|step| !goes(step)).collect())
    }

    /// What is done, by paths that have no links before their last part: what several paths lead to is done once.
    fn settled(&self, steps: BTreeSet<Step>) -> Result<BTreeSet<Step>> {
        let mut real_ones = BTreeMap::new();
        let mut settled = BTreeSet::new();
        for step in steps {
            if let Deed::Leave(_) = step.deed {
                settled.insert(step);
                continue;
            }
            let slash = step.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            let (directory, name) = step.path.split_at(slash);
            if !real_ones.contains_key(directory) {
                real_ones.insert(directory.to_vec(), self.real(directory)?);
            }
            let real = real_ones[directory]
                .strip_suffix(b"/")
                .unwrap_or(&real_ones[directory]);
            let path = [real, name].concat();
            settled.insert(Step { path, ..step });
        }
        Ok(settled)
    }

    /// Where a directory that is emptied is, if links lead from its path to one that an operation is not about: the system's own files
    /// may be there. A link to what the operation empties anyway leads to more of the same, and one to temporary files to what
    /// is nobody's.
    fn elsewhere(&self, path: &[u8], operation: &Operation) -> Result<Option<Vec<u8>>> {
        let real = self.real(path)?;
        let is_in = |place: &[u8]| {
            real.strip_prefix(place)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        let mut emptied = operation.actions.iter().flat_map(|(action, patterns)| {
            let each = patterns.iter();
            each.filter_map(|pattern| emptied(*action, pattern, pattern.as_bytes()))
        });
        let is_usual = real == path || TEMPORARY.iter().any(|place| is_in(place)) || emptied.any(is_in);
        Ok((!is_usual).then_some(real))
    }

    /// The path without links of what is there.
    fn real(&self, path: &[u8]) -> Result<Vec<u8>> {
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/')
                .rev()
                .map(<[u8]>::to_vec)
                .collect()
        };
        let (mut ahead, mut real) = (parts(path), Vec::new());
        // It ends, since there are not too many links to what was looked up before.
        while let Some(part) = ahead.pop() {
            match part.as_slice() {
                b"" | b"." => {}
                b".." => {
                    let end = real.iter().rposition(|byte| *byte == b'/');
                    real.truncate(end.unwrap_or(0));
                }
                name => {
                    let next = below(&real, name);
                    let link = self.own(&next)?.filter(|file| file.kind() == FileKind::Symlink);
                    let Some(link) = link else {
                        real = next;
                        continue;
                    };
                    let target = self.filesystem.read_link(&link)?;
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    ahead.extend(parts(&target));
                }
            }
        }
        Ok(if real.is_empty() { b"/".to_vec() } else { real })
    }

    fn steps(&self, action: Action, path: Vec<u8>, steps: &mut BTreeSet<Step>) -> Result<()> {
        let step = |path, deed| Step { path, deed };
        match action {
            Action::Remove => {
                steps.insert(step(path, Deed::Remove));
            }
            Action::Empty => {
                let file = self.own(&path)?.filter(|file| file.kind() == FileKind::Regular);
                if file.is_some_and(|file| file.size() > 0) {
                    steps.insert(step(path, Deed::Empty));
                }
            }
            Action::Edit(edit) => {
                let text = self.text(&path)?;
                let changed = text.and_then(|text| edit(&text).map(|changed| text.bytes_of(&changed)));
                steps.extend(changed.map(|bytes| step(path, Deed::Replace(bytes))));
            }
            Action::RemoveIf(goes) => {
                if self.beginning(&path)?.is_some_and(|text| goes(&text)) {
                    steps.insert(step(path, Deed::Remove));
                }
            }
            Action::RemoveNamed(names, goes) => {
                let text = self.text(&path)?.unwrap_or_default();
                for named in names(&text) {
                    let found = self.expand(&text.bytes_of(&named))?;
                    for path in found {
                        self.steps(Action::RemoveIf(goes), path, steps)?;
                    }
                }
            }
            Action::Clear => {
                for name in self.names(&path)? {
                    steps.insert(step(below(&path, &name), Deed::Remove));
                }
            }
            Action::ClearFiles => self.files(path, |path, file| {
                let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                let is_empty = file.kind() == FileKind::Regular && file.size() == 0;
                if !is_empty && name != b"README" && !LOGIN_RECORDS.contains(&name) {
                    steps.insert(step(path, Deed::Remove));
                }
                Ok(())
            })?,
        }
        Ok(())
    }

    /// All below a directory that is no directory, whatever links lead to the directory.
    ///
    /// # Errors
    /// Those of `found`; `Corrupt`, `Io`.
    pub(super) fn files(
        &self,
        top: Vec<u8>,
        mut found: impl FnMut(Vec<u8>, &Inode) -> Result<()>,
    ) -> Result<()> {
        let Some(directory) = self.followed(&top)? else {
            return Ok(());
        };
        let mut visits = Visits::new(self.filesystem.superblock());
        let mut ahead = vec![(top, directory)];
        while let Some((path, directory)) = ahead.pop() {
            if directory.kind() != FileKind::Directory {
                continue;
            }
            visits.enter(&directory)?;
            for entry in self.filesystem.read_dir(&directory)? {
                let (path, inode) = (below(&path, &entry.name), self.filesystem.inode(entry.inode)?);
                if inode.kind() == FileKind::Directory {
                    ahead.push((path, inode));
                } else {
                    found(path, &inode)?;
                }
            }
        }
        Ok(())
    }

    /// The text of a regular file; `None` for what is none.
    ///
    /// # Errors
    /// `Unsupported` for one that is longer than texts are: what is in it would stay. `Corrupt`, `Io`.
    pub(super) fn text(&self, path: &[u8]) -> Result<Option<Text>> {
        let size = self.followed(path)?.map_or(0, |inode| inode.size());
        let text = self.beginning(path)?;
        if text.is_some() && size > MAX_TEXT {
            let message = format!(
                "{} in the guest has {size} bytes: no text of more than {MAX_TEXT} is looked into, and what is private in it would stay",
                shown(path),
            );
            return Err(Error::unsupported(message).with_hint("shorten it, or remove it: imgtool fs rm"));
        }
        Ok(text)
    }

    /// The same as far as texts are long.
    fn beginning(&self, path: &[u8]) -> Result<Option<Text>> {
        match self.followed(path)? {
            Some(inode) if inode.kind() == FileKind::Regular => {
                self.start(&inode, MAX_TEXT).map(|bytes| Some(Text::new(bytes)))
            }
            _ => Ok(None),
        }
    }

    /// The first bytes of a regular file.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn start(&self, inode: &Inode, most: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; inode.size().min(most) as usize];
        for run in self.filesystem.content(inode)? {
            let run = run?;
            let end = (run.offset + run.len).min(bytes.len() as u64);
            if run.offset >= end {
                break;
            }
            let part = &mut bytes[run.offset as usize..end as usize];
            self.filesystem.read_run(&run, 0, part)?;
        }
        Ok(bytes)
    }

    fn expand_in_homes(&self, pattern: &str) -> Result<Vec<Vec<u8>>> {
        let Some(rest) = pattern.strip_prefix("~/") else {
            return self.expand(pattern.as_bytes());
        };
        let mut found = Vec::new();
        for home in &self.homes {
            found.extend(self.expand_from(home.clone(), rest.as_bytes())?);
        }
        Ok(found)
    }

    fn expand(&self, pattern: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.expand_from(Vec::new(), pattern)
    }

    /// The paths that are there, below one without stars. Links on the way are followed, and at the end they are not.
    fn expand_from(&self, top: Vec<u8>, pattern: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut found = vec![top];
        for part in pattern
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
        {
            let mut next = Vec::new();
            for path in found {
                if !part.contains(&b'*') {
                    let path = below(&path, part);
                    if self.own(&path)?.is_some() {
                        next.push(path);
                    }
                    continue;
                }
                let names = self.names(&path)?.into_iter();
                next.extend(
                    names
                        .filter(|name| matches(part, name))
                        .map(|name| below(&path, &name)),
                );
            }
            found = next;
        }
        Ok(found)
    }

    /// The names in a directory; none where there is no directory.
    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let path: &[u8] = if path.is_empty() { b"/" } else { path };
        let directory = self
            .followed(path)?
            .filter(|inode| inode.kind() == FileKind::Directory);
        let Some(directory) = directory else {
            return Ok(Vec::new());
        };
        let entries = self.filesystem.read_dir(&directory)?.into_iter();
        Ok(entries.map(|entry| entry.name).collect())
    }

    /// What is at a path, links followed.
    pub(super) fn followed(&self, path: &[u8]) -> Result<Option<Inode>> {
        self.look(path, LastLink::Follow)
    }

    fn own(&self, path: &[u8]) -> Result<Option<Inode>> {
        self.look(path, LastLink::Keep)
    }

    fn look(&self, path: &[u8], last: LastLink) -> Result<Option<Inode>> {
        match self.filesystem.resolve(path, last) {
            Ok(inode) => Ok(Some(inode)),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The directory of which all goes by an action, for a path that is as its pattern.
fn emptied<'a>(action: Action, pattern: &str, path: &'a [u8]) -> Option<&'a [u8]> {
    match action {
        Action::Clear | Action::ClearFiles => Some(path),
        Action::Empty | Action::Remove if pattern.ends_with("/*") => {
            let end = path.iter().rposition(|byte| *byte == b'/')?;
            Some(&path[..end])
        }
        _ => None,
    }
}

/// The path of a name in a directory.
fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    [path, b"/", name].concat()
}

/// Whether a name is like a pattern, in which every `*` stands for any bytes or none.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut parts = pattern.split(|byte| *byte == b'*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&[u8]> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        match rest.windows(part.len()).position(|window| window == part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_part_of_a_name() {
        for (pattern, name, is) in [
            ("*", "", true),
            ("*", "a", true),
            ("a*", "a", true),
            ("a*a", "a", false),
            ("a*a", "aba", true),
            ("*.lease*", "x.lease~", true),
            ("*a*b*c", "1a2b3c", true),
            ("*a*b*c", "1b2a3c", false),
            (".*_history", ".bash_history", true),
            ("abc", "abc", true),
            ("abc", "abcd", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                is,
                "{pattern} {name}"
            );
        }
    }
}
