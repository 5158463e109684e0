//! Where recipes say what. Values of several files are one before anything is made of them, and what is wrong with one is told with
//! the file, line and column that it is from.
//!
//! Only the texts are kept for that: a place is looked for when there is something to tell of it.

use std::path::PathBuf;

use block::{Error, ErrorKind};
use toml_edit::{Document, Item};

use crate::store::{Fingerprint, position};

/// The files that a recipe was read from, of which later ones win.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(Vec<Origin>);

/// A file that a recipe was read from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// What it was loaded by.
    pub(super) name: PathBuf,
    pub(super) text: String,
}

/// A step on the way to a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'s> {
    /// To what a table has by this key.
    Key(&'s str),
    /// To the table of a list that has this name.
    Named(&'s str),
    /// To this text of a list.
    Text(&'s str),
}

impl Origins {
    pub(super) fn push(&mut self, origin: Origin) {
        self.0.push(origin);
    }

    /// Whether it was read from no file.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of all texts, one after the other.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let texts = self.0.iter().flat_map(|origin| [origin.text.as_bytes(), &[0]]);
        Fingerprint::of_bytes(&texts.collect::<Vec<_>>().concat())
    }

    /// An error, told of the value at the end of a way: in the last file that has it. Where none has, it is what the way leads to as far
    /// as it goes. What was told already, and what is not the recipe's, stays as it is.
    pub(super) fn tell(&self, error: Error, way: &[Step<'_>]) -> Error {
        let is_told = self.0.iter().any(|origin| error.path() == Some(&*origin.name));
        let is_hosts = error.kind() == ErrorKind::NoSpace && error.io_kind().is_some();
        if is_told || is_hosts || error.kind() == ErrorKind::Interrupted {
            return error;
        }
        let mut ways = (0..=way.len()).rev().map(|len| &way[..len]);
        let told = ways.find_map(|way| {
            let mut latest = self.0.iter().rev();
            latest.find_map(|origin| Some(origin.told(&error, origin.find(way)?)))
        });
        told.unwrap_or(error)
    }
}

impl Origin {
    /// The same of one file.
    pub(super) fn tell(&self, error: &Error, way: &[Step<'_>]) -> Error {
        self.told(error, self.find(way).unwrap_or(0))
    }

    /// Where the value at the end of a way starts, in bytes.
    fn find(&self, way: &[Step<'_>]) -> Option<usize> {
        let document = Document::parse(&*self.text).ok()?;
        let found = find(document.as_item(), way)?;
        if way.is_empty() {
            return Some(0);
        }
        Some(found.span()?.start)
    }

    fn told(&self, error: &Error, start: usize) -> Error {
        let (line, column) = position(&self.text, start);
        let message = format!("line {line}, column {column}: {error}");
        let told = Error::new(error.kind(), message).with_path(&self.name);
        match error.hint() {
            Some(hint) => told.with_hint(hint.to_owned()),
            None => told,
        }
    }
}

fn find<'d>(item: &'d Item, way: &[Step<'_>]) -> Option<&'d Item> {
    let Some((step, rest)) = way.split_first() else {
        return Some(item);
    };
    let mut entries = (0..).map_while(|index: usize| item.get(index));
    match *step {
        Step::Key(key) => find(item.get(key)?, rest),
        // Two tables of one name say more of the same.
        Step::Named(name) => entries
            .filter(|entry| entry.get("name").and_then(Item::as_str) == Some(name))
            .find_map(|entry| find(entry, rest)),
        Step::Text(text) => find(entries.find(|entry| entry.as_str() == Some(text))?, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::Step::{Key, Named, Text};
    use super::*;

    fn origin(name: &str, text: &str) -> Origin {
        Origin {
            name: name.into(),
            text: text.to_owned(),
        }
    }

    fn told(origins: &[Origin], way: &[Step<'_>]) -> String {
        let error = Error::invalid("no").with_hint("yes");
        let told = Origins(origins.to_vec()).tell(error, way);
        assert_eq!(told.hint(), Some("yes"));
        told.to_string()
    }

    #[test]
    fn a_value_is_found_in_the_last_file_that_has_it_however_it_is_written() {
        let one = origin(
            "one",
            "users = [{ name = \"a\", groups = [\"x\", \"y\"] }]\n[initrd]\n[source.mmdebstrap]\n",
        );
        let two = origin(
            "two",
            "[[users]]\nname = \"b\"\n[[users]]\nname = \"a\"\n\n[[users]]\nname = \"a\"\nuid = 5\n",
        );
        let both = [one, two];
        for (way, place) in [
            (
                &[Key("users"), Named("a"), Key("uid")][..],
                "two: line 8, column 7",
            ),
            (
                &[Key("users"), Named("a"), Key("groups"), Text("y")],
                "one: line 1, column 39",
            ),
            (&[Key("users"), Named("a"), Key("shell")], "two: line 3, column 1"),
            (&[Key("initrd"), Key("modules")], "one: line 2, column 1"),
            (&[Key("source"), Key("mmdebstrap")], "one: line 3, column 1"),
            (&[Key("hostname")], "two: line 1, column 1"),
        ] {
            assert_eq!(told(&both, way), format!("{place}: no"), "{way:?}");
        }
    }

    #[test]
    fn an_error_is_told_once_and_only_if_it_is_the_recipes() {
        let one = origin("one", "a = 1\n");
        let origins = Origins(vec![one]);
        let once = origins.tell(Error::invalid("no").with_path("file"), &[Key("a")]);
        assert_eq!(once.to_string(), "one: line 1, column 5: file: no");
        assert_eq!(origins.tell(once.clone(), &[]).to_string(), once.to_string());
        let full = Error::io("write", std::io::ErrorKind::StorageFull.into());
        assert_eq!(origins.tell(full.clone(), &[]).to_string(), full.to_string());
        assert_eq!(
            Origins::default().tell(full.clone(), &[Key("a")]).to_string(),
            full.to_string()
        );
    }
}
