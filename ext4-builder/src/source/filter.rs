//! What is changed of a tree on the way into a filesystem.

use std::borrow::Cow;

use block::{Error, Result};

use super::left_out::LeftOut;
use super::pattern::Pattern;
use crate::{Builder, Metadata, Node, acl, capability};

/// What is left out of a tree, and what ids become. By default, all stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// What is left out, with all that is in it.
    pub exclude: Vec<Pattern>,
    /// Whom everything belongs to, whatever the source says; capabilities that are a user's as root of a namespace too.
    pub owner: Option<u32>,
    /// The group of everything.
    pub group: Option<u32>,
    /// What users' ids become, in access control lists and capabilities too.
    pub uids: IdMap,
    /// What groups' ids become.
    pub gids: IdMap,
}

/// Ranges of ids that become others. Ids outside of them stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    ranges: Vec<IdRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IdRange {
    from: u32,
    to: u32,
    count: u32,
}

impl IdMap {
    /// Adds a range: `count` ids from `from` on become those from `to` on.
    ///
    /// # Errors
    /// `InvalidInput` for an empty range, one that reaches past the last id, 2^32 - 2, and one that has an id of another.
    pub fn add(&mut self, from: u32, to: u32, count: u32) -> Result<()> {
        let refuse = |why: &str| {
            let message = format!("{count} ids from {from} cannot become those from {to}: {why}");
            Err(Error::invalid(message))
        };
        if count == 0 {
            let message = format!("the range of ids from {from} to {to} is empty");
            return Err(Error::invalid(message).with_hint("it takes a count of 1 or more"));
        }
        // The last number stands for no id, and no range ends behind it.
        let fits = |start: u32| start.checked_add(count).is_some();
        if !fits(from) || !fits(to) {
            return refuse("the last id is 4294967294");
        }
        let meets = |other: &IdRange| from < other.from + other.count && other.from < from + count;
        if self.ranges.iter().any(meets) {
            return refuse("some of them are in another range");
        }
        self.ranges.push(IdRange { from, to, count });
        Ok(())
    }

    /// What an id becomes.
    pub fn map(&self, id: u32) -> u32 {
        let range = self
            .ranges
            .iter()
            .find(|range| (range.from..range.from + range.count).contains(&id));
        range.map_or(id, |range| range.to + (id - range.from))
    }
}

impl Filter {
    /// Whether a path is left out. That what it is in is not has been asked before.
    pub(super) fn excludes(&self, path: &[u8]) -> bool {
        self.exclude.iter().any(|pattern| pattern.matches(path))
    }

    /// Whether a path is left out, or something that it is in.
    pub(super) fn excludes_any_of(&self, path: &[u8]) -> bool {
        let ends = (0..path.len()).filter(|&at| path[at] == b'/').chain([path.len()]);
        !self.exclude.is_empty() && ends.into_iter().any(|end| self.excludes(&path[..end]))
    }

    pub(super) fn metadata(&self, metadata: &Metadata) -> Metadata {
        Metadata {
            uid: self.uid(metadata.uid),
            gid: self.group.unwrap_or_else(|| self.gids.map(metadata.gid)),
            ..metadata.clone()
        }
    }

    /// Gives a node these extended attributes, but those that it cannot have.
    pub(super) fn set_xattrs<'x>(
        &self,
        builder: &mut Builder<'_>,
        node: Node,
        xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>,
        left_out: &mut LeftOut,
    ) -> Result<()> {
        let mut mapped: Vec<(&[u8], Cow<'_, [u8]>)> = Vec::new();
        for (name, value) in xattrs {
            if builder.takes_xattr(node, name) {
                mapped.push((name, self.value(name, value)));
            } else {
                left_out.add(name);
            }
        }
        builder.set_xattrs(node, mapped.iter().map(|(name, value)| (*name, &**value)))
    }

    /// Gives a node one more extended attribute.
    pub(super) fn add_xattr(
        &self,
        builder: &mut Builder<'_>,
        node: Node,
        name: &[u8],
        value: &[u8],
    ) -> Result<()> {
        let value = self.value(name, value);
        builder.change_xattrs(node, [(name, Some(&*value))])
    }

    /// What becomes of an extended attribute's value.
    fn value<'v>(&self, name: &[u8], value: &'v [u8]) -> Cow<'v, [u8]> {
        match name {
            acl::ACCESS | acl::DEFAULT if self.maps_ids() => Cow::Owned(acl::map_ids(
                value,
                |uid| self.uids.map(uid),
                |gid| self.gids.map(gid),
            )),
            capability::NAME => capability::map_root(value, |uid| self.uid(uid)),
            _ => Cow::Borrowed(value),
        }
    }

    fn maps_ids(&self) -> bool {
        self.uids != IdMap::default() || self.gids != IdMap::default()
    }

    fn uid(&self, uid: u32) -> u32 {
        self.owner.unwrap_or_else(|| self.uids.map(uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_ranges_become_others() {
        let mut map = IdMap::default();
        map.add(1000, 0, 1).unwrap();
        map.add(100_000, 1, 65_535).unwrap();
        map.add(u32::MAX - 1, 70_000, 1).unwrap();
        let ids = [0, 1000, 1001, 100_000, 165_534, 165_535, u32::MAX - 1];
        assert_eq!(
            ids.map(|id| map.map(id)),
            [0, 0, 1001, 1, 65_535, 165_535, 70_000]
        );
        for (from, to, count) in [
            (5, 5, 0),
            (u32::MAX, 0, 1),
            (0, u32::MAX, 1),
            (1000, 7, 1),
            (165_534, 0, 2),
            (2, 0, u32::MAX),
        ] {
            assert!(map.add(from, to, count).is_err(), "{from} {to} {count}");
        }
    }

    #[test]
    fn what_is_in_something_left_out_is_left_out_too() {
        let filter = Filter {
            exclude: vec![Pattern::new(b"/a/b").unwrap()],
            ..Filter::default()
        };
        assert!(filter.excludes_any_of(b"a/b/c/d"));
        assert!(filter.excludes_any_of(b"a/b"));
        assert!(!filter.excludes_any_of(b"a/bc"));
        assert!(!filter.excludes_any_of(b"a"));
    }
}
