//! Labels of `SELinux`, by the patterns of a `file_contexts` file.
//!
//! Each line has a regular expression of whole paths, an optional type of file, and a context. As with libselinux, a
//! pattern without anything special in it goes before all others, and of the others the last that matches counts; the
//! context `<<none>>` says that nothing is to be set.
//!
//! A policy has thousands of patterns, and most of them are plain paths, or plain paths with all that is below
//! (`/etc(/.*)?`): those never become regular expressions. Of the rest, each is kept compiled once the plain text that it
//! starts with is met, and else only tried out.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use block::{Error, Result, escape};
use regex::bytes::{Regex, RegexBuilder};

use super::paths;
use crate::inode::FileType;
use crate::{Builder, Node};

/// The attribute that holds a context, with a NUL at its end.
const ATTRIBUTE: &[u8] = b"security.selinux";

/// The end of a pattern of a path and all that is below.
const AND_BELOW: &str = "(/.*)?";

/// What a policy says of paths.
#[derive(Debug, Default)]
pub struct FileContexts {
    /// Patterns that are plain paths: their places in `rules`, the last one last.
    exact: HashMap<Vec<u8>, Vec<usize>>,
    /// All others, by the first name in them where that is plain.
    by_name: HashMap<Vec<u8>, Vec<usize>>,
    anywhere: Vec<usize>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    matcher: Matcher,
    /// `None` for any.
    file_type: Option<FileType>,
    /// `None` to set nothing.
    context: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Matcher {
    Exact,
    /// A path, and all that is below it.
    Below(Vec<u8>),
    Regex {
        /// What every path starts with that matches.
        prefix: Vec<u8>,
        text: String,
        compiled: OnceLock<Option<Regex>>,
    },
}

impl FileContexts {
    /// Reads the text of such a file.
    ///
    /// # Errors
    /// `InvalidInput` with the line, for what is no rule.
    pub fn parse(text: &str) -> Result<Self> {
        let mut contexts = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            contexts.add(line).map_err(|why| {
                Error::invalid(format!("line {number}: \"{}\": {why}", escape(line))).with_hint(
                    "a line has a pattern, a type of file such as -d if it is for one only, and a context",
                )
            })?;
        }
        Ok(contexts)
    }

    fn add(&mut self, line: &str) -> Result<(), &'static str> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (pattern, file_type, context) = match words[..] {
            [pattern, context] => (pattern, None, context),
            [pattern, file_type, context] => (pattern, Some(parse_type(file_type)?), context),
            _ => return Err("it has not two or three words"),
        };
        let context = (context != "<<none>>").then(|| [context.as_bytes(), b"\0"].concat());
        let place = self.rules.len();
        let (prefix, is_whole) = plain_start(pattern)?;
        let matcher = if is_whole {
            self.exact.entry(prefix.clone()).or_default().push(place);
            Matcher::Exact
        } else {
            match first_name(&prefix) {
                Some(name) => self.by_name.entry(name.to_vec()).or_default().push(place),
                None => self.anywhere.push(place),
            }
            match pattern.strip_suffix(AND_BELOW).map(plain_start) {
                Some(Ok((path, true))) => Matcher::Below(path),
                _ => Matcher::Regex {
                    prefix,
                    text: pattern.to_owned(),
                    compiled: OnceLock::new(),
                },
            }
        };
        // Wrong ones are to be found before they are needed.
        if let Matcher::Regex { text, .. } = &matcher {
            regex_syntax_is_known(text)?;
        }
        self.rules.push(Rule {
            matcher,
            file_type,
            context,
        });
        Ok(())
    }

    /// The context of a path, which starts with a slash, with its NUL.
    fn context(&self, path: &[u8], file_type: FileType) -> Option<&[u8]> {
        let is_for = |&place: &usize| {
            let rule = &self.rules[place];
            rule.file_type.is_none_or(|wanted| wanted == file_type) && rule.matcher.matches(path)
        };
        let last = |places: &[usize]| places.iter().copied().rfind(is_for);
        let exact = self.exact.get(path).and_then(|places| last(places));
        let found = exact.or_else(|| {
            let name = first_name(path).unwrap_or_default();
            let named = self.by_name.get(name).and_then(|places| last(places));
            named.max(last(&self.anywhere))
        });
        self.rules[found?].context.as_deref()
    }

    /// Labels all that is in a filesystem. What has several names has the label of the first.
    ///
    /// # Errors
    /// As [`Builder::change_xattrs`].
    pub fn apply(&self, builder: &mut Builder<'_>) -> Result<()> {
        let mut labels: HashMap<&[u8], Vec<Node>> = HashMap::new();
        let mut seen = HashSet::new();
        let root = self.context(b"/", FileType::Directory);
        labels
            .entry(root.unwrap_or_default())
            .or_default()
            .push(builder.root());
        let mut full = Vec::new();
        paths::for_each(builder, |path, _, node| {
            if seen.insert(node) {
                full.clear();
                full.push(b'/');
                full.extend(path);
                let label = self.context(&full, builder.file_type(node)).unwrap_or_default();
                labels.entry(label).or_default().push(node);
            }
        });
        // In an order that does not depend on the table's.
        let mut labels: Vec<_> = labels
            .into_iter()
            .filter(|(label, _)| !label.is_empty())
            .collect();
        labels.sort_unstable_by_key(|&(label, _)| label);
        for (label, nodes) in labels {
            for node in nodes {
                builder.change_xattrs(node, [(ATTRIBUTE, Some(label))])?;
            }
        }
        Ok(())
    }
}

impl Matcher {
    fn matches(&self, path: &[u8]) -> bool {
        match self {
            // It was found by its path.
            Self::Exact => true,
            Self::Below(above) => path
                .strip_prefix(&above[..])
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/'),
            Self::Regex {
                prefix,
                text,
                compiled,
            } => {
                path.starts_with(prefix)
                    && compiled
                        .get_or_init(|| compile(text).ok())
                        .as_ref()
                        .is_some_and(|regex| regex.is_match(path))
            }
        }
    }
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(&format!("^(?:{pattern})$"))
        .unicode(false)
        .dot_matches_new_line(true)
        .build()
}

fn regex_syntax_is_known(pattern: &str) -> Result<(), &'static str> {
    compile(pattern)
        .map(drop)
        .map_err(|_| "the pattern is not understood")
}

fn parse_type(text: &str) -> Result<FileType, &'static str> {
    Ok(match text {
        "--" => FileType::Regular,
        "-d" => FileType::Directory,
        "-l" => FileType::Symlink,
        "-c" => FileType::CharacterDevice,
        "-b" => FileType::BlockDevice,
        "-p" => FileType::Fifo,
        "-s" => FileType::Socket,
        _ => return Err("there is no such type of file"),
    })
}

/// The text that a pattern starts with, up to anything special, and whether that is all of it. What is optional or
/// repeated does not belong to it.
fn plain_start(pattern: &str) -> Result<(Vec<u8>, bool), &'static str> {
    let mut plain = Vec::new();
    let mut bytes = pattern.bytes().peekable();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'\\' => match bytes.next() {
                Some(escaped) if escaped.is_ascii_punctuation() => escaped,
                Some(_) => return Ok((plain, false)),
                None => return Err("nothing follows the backslash"),
            },
            b'?' | b'*' | b'{' => {
                plain.pop();
                return Ok((plain, false));
            }
            // One or the other: nothing is sure.
            b'|' => return Ok((Vec::new(), false)),
            b'.' | b'^' | b'$' | b'+' | b'[' | b'(' | b')' => {
                // A bar outside of all brackets would make the start one of several.
                if has_outer_bar(pattern) {
                    plain.clear();
                }
                return Ok((plain, false));
            }
            _ => byte,
        };
        plain.push(byte);
    }
    Ok((plain, true))
}

/// Whether a pattern has a bar that is in no bracket.
fn has_outer_bar(pattern: &str) -> bool {
    let mut depth = 0;
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'|' if depth <= 0 => return true,
            _ => {}
        }
    }
    false
}

/// The first name in a path that starts with a slash, if it is followed by another slash.
fn first_name(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(b"/")?;
    let end = rest.iter().position(|&byte| byte == b'/')?;
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r"
# A comment.
/.*                             system_u:object_r:default_t:s0
/                           -d  system_u:object_r:root_t:s0
/etc(/.*)?                      etc_t
/etc/shadow.*               --  shadow_t
/etc/shadow\.old            --  old_t
/usr/(.*/)?lib(/.*)?            lib_t
/usr/bin/[^/]+              --  bin_t
/home/[^/]+/\.ssh(/.*)?         ssh_t
/dev/null                   -c  null_t
/proc(/.*)?                     <<none>>
/opt/a|/opt/b                   opt_t
/var/lo?g                       log_t
";

    fn label(path: &str, file_type: FileType) -> String {
        let contexts = FileContexts::parse(POLICY).unwrap();
        let label = contexts.context(path.as_bytes(), file_type).unwrap_or(b"none\0");
        let label = label.strip_suffix(b"\0").unwrap();
        String::from_utf8(label.to_vec()).unwrap()
    }

    #[test]
    fn the_last_pattern_that_matches_counts_and_plain_paths_before_all() {
        use FileType::{CharacterDevice, Directory, Regular, Symlink};
        for (path, file_type, expected) in [
            ("/", Directory, "system_u:object_r:root_t:s0"),
            ("/x", Regular, "system_u:object_r:default_t:s0"),
            ("/etc", Directory, "etc_t"),
            ("/etcetera", Regular, "system_u:object_r:default_t:s0"),
            ("/etc/a/b", Regular, "etc_t"),
            ("/etc/shadow", Regular, "shadow_t"),
            ("/etc/shadow-", Regular, "shadow_t"),
            ("/etc/shadow.old", Regular, "old_t"),
            ("/etc/shadow", Directory, "etc_t"),
            ("/usr/lib", Directory, "lib_t"),
            ("/usr/a/b/lib/c", Regular, "lib_t"),
            ("/usr/bin/x", Regular, "bin_t"),
            ("/usr/bin/x", Symlink, "system_u:object_r:default_t:s0"),
            ("/home/user/.ssh/id", Regular, "ssh_t"),
            ("/home/user/xssh", Regular, "system_u:object_r:default_t:s0"),
            ("/dev/null", CharacterDevice, "null_t"),
            ("/dev/null", Regular, "system_u:object_r:default_t:s0"),
            ("/proc/1", Directory, "none"),
            ("/opt/a", Regular, "opt_t"),
            ("/opt/b", Regular, "opt_t"),
            ("/var/lg", Regular, "log_t"),
            ("/var/log", Regular, "log_t"),
        ] {
            assert_eq!(label(path, file_type), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_line() {
        for (line, words) in [
            ("/a", "two or three words"),
            ("/a -x b", "no such type"),
            ("/a( b", "not understood"),
            ("/a\\ b", "backslash"),
        ] {
            let error = FileContexts::parse(&format!("/ok label\n{line}"))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("line 2: ") && error.contains(words), "{error}");
        }
    }
}
