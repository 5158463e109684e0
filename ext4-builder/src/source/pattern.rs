//! Patterns of names, as shells and `.gitignore` have them.

use block::{Error, Result};

/// What is left out of a tree.
///
/// `*` stands for any characters but `/`, `?` for one, `[a-z]` for one of those (`[!a-z]` for one of the others), and
/// `**` between slashes for any number of directories; a backslash takes the next character as it is. A pattern with a
/// slash at its start or in its middle is of a path from the tree's root, any other of a name in any directory; a slash
/// at its end does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Of the parts of a path.
    parts: Vec<Item<Vec<Item<Class>>>>,
}

/// One thing of a kind, or any number of any.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item<T> {
    One(T),
    Any,
}

/// Bytes that one byte may be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    negated: bool,
    ranges: Vec<(u8, u8)>,
}

impl Class {
    fn of(byte: u8) -> Self {
        Self {
            negated: false,
            ranges: vec![(byte, byte)],
        }
    }

    fn contains(&self, byte: u8) -> bool {
        let is_in = self
            .ranges
            .iter()
            .any(|&(first, last)| (first..=last).contains(&byte));
        is_in != self.negated
    }
}

impl Pattern {
    /// The pattern that a text means.
    ///
    /// # Errors
    /// `InvalidInput` for what is none: without anything between slashes, of the root or what it is in, or with a bracket or
    /// backslash that is not ended.
    pub fn new(text: &[u8]) -> Result<Self> {
        let refuse = |why: &str| {
            let shown = String::from_utf8_lossy(text);
            Error::invalid(format!("{shown:?} is no pattern: {why}"))
        };
        let trimmed = text.strip_suffix(b"/").unwrap_or(text);
        let mut parts = Vec::new();
        if !trimmed.contains(&b'/') {
            parts.push(Item::Any);
        }
        let trimmed = trimmed.strip_prefix(b"/").unwrap_or(trimmed);
        let mut names = 0;
        for part in trimmed.split(|&byte| byte == b'/').filter(|part| *part != b".") {
            names += 1;
            parts.push(match part {
                b"" => return Err(refuse("there is nothing between slashes")),
                b".." => return Err(refuse("it leads out of the tree")),
                b"**" => Item::Any,
                _ => Item::One(classes(part).map_err(refuse)?),
            });
        }
        if names == 0 {
            return Err(refuse("it is of the root itself"));
        }
        // What is in a directory is not the directory.
        if let [_, .., Item::Any] = parts[..] {
            parts.insert(parts.len() - 1, Item::One(vec![Item::Any]));
        }
        Ok(Self { parts })
    }

    /// Whether it is of this path, which has slashes only between its parts.
    pub fn matches(&self, path: &[u8]) -> bool {
        let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        fits(&self.parts, &names, |part, name| {
            fits(part, name, |class, &byte| class.contains(byte))
        })
    }
}

/// Whether all of `items` stand for all of `things`. Where they do not, the last [`Item::Any`] is tried with one more;
/// never those before it, which could only leave less for it. So no pattern takes long.
fn fits<I, T>(items: &[Item<I>], things: &[T], is_one: impl Fn(&I, &T) -> bool) -> bool {
    let (mut item, mut thing) = (0, 0);
    let mut any = None;
    loop {
        match (items.get(item), things.get(thing)) {
            (None, None) => return true,
            (Some(Item::Any), _) => {
                any = Some((item + 1, thing));
                item += 1;
            }
            (Some(Item::One(this)), Some(there)) if is_one(this, there) => {
                item += 1;
                thing += 1;
            }
            _ => match any {
                Some((next, start)) if start < things.len() => {
                    any = Some((next, start + 1));
                    (item, thing) = (next, start + 1);
                }
                _ => return false,
            },
        }
    }
}

fn classes(part: &[u8]) -> Result<Vec<Item<Class>>, &'static str> {
    let mut items = Vec::new();
    let mut rest = part;
    while let [first, after @ ..] = rest {
        rest = after;
        items.push(match first {
            b'*' => Item::Any,
            b'?' => Item::One(Class {
                negated: true,
                ranges: Vec::new(),
            }),
            b'\\' => {
                let (&byte, after) = rest.split_first().ok_or("nothing follows the backslash")?;
                rest = after;
                Item::One(Class::of(byte))
            }
            b'[' => {
                let (class, after) = class(rest).ok_or("a bracket is not closed")?;
                rest = after;
                Item::One(class)
            }
            &byte => Item::One(Class::of(byte)),
        });
    }
    Ok(items)
}

/// The class that starts behind a bracket, and what follows it.
fn class(text: &[u8]) -> Option<(Class, &[u8])> {
    let (negated, mut rest) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        let (&first, after) = rest.split_first()?;
        // A bracket that comes first is one of the bytes.
        if first == b']' && !ranges.is_empty() {
            return Some((Class { negated, ranges }, after));
        }
        match after {
            [b'-', last, after @ ..] if *last != b']' => {
                ranges.push((first, *last));
                rest = after;
            }
            _ => {
                ranges.push((first, first));
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_what_they_look_like() {
        for (pattern, paths, others) in [
            (
                "*.pyc",
                &["a.pyc", "b/c/a.pyc", ".pyc"][..],
                &["a.pyc/b", "a.py"][..],
            ),
            ("cache", &["cache", "var/cache"], &["var/cache/x", "caches"]),
            ("./cache", &["cache"], &["var/cache", "./cache"]),
            ("var/./cache/", &["var/cache"], &["var", "x/var/cache"]),
            (".cache", &[".cache", "x/.cache"], &["cache"]),
            ("/cache/", &["cache"], &["var/cache"]),
            (
                "var/cache/*",
                &["var/cache/x"],
                &["var/cache", "var/cache/x/y", "x/var/cache/x"],
            ),
            (
                "/var/**/log",
                &["var/log", "var/a/log", "var/a/b/log"],
                &["log", "var/log/x"],
            ),
            ("var/**", &["var/a", "var/a/b"], &["var", "x"]),
            ("**", &["a", "a/b"], &[]),
            ("**/a/b", &["a/b", "x/y/a/b"], &["a/x/b"]),
            ("a?c", &["abc", "a?c"], &["ac", "a/c"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "[a-c]x"]),
            ("[!a-c]x", &["dx"], &["ax", "x"]),
            ("[]-]x", &["]x", "-x"], &["ax"]),
            ("\\*", &["*"], &["a"]),
            ("a*b*c", &["abc", "aXbYbZc"], &["abcd", "acb"]),
        ] {
            let compiled = Pattern::new(pattern.as_bytes()).unwrap();
            for path in paths {
                assert!(compiled.matches(path.as_bytes()), "{pattern} {path}");
            }
            for path in others {
                assert!(!compiled.matches(path.as_bytes()), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "", "/", ".", "./", "/.", "a//b", "../a", "a/..", "[", "[a", "[]", "a\\",
        ] {
            assert!(Pattern::new(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = Pattern::new("*a".repeat(60).as_bytes()).unwrap();
        assert!(!pattern.matches("aaab".repeat(63).as_bytes()));
        assert!(!pattern.matches(&[b'a'; 59]));
        assert!(pattern.matches(&[b'a'; 255]));
    }
}
