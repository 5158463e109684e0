//! `metadata.yaml` of Incus and LXD, as far as it says what a template is: the architecture, and properties that are text.
//!
//! It is gone through by events, so that nothing of it is kept that is not wanted, and aliases, with which a short document can stand
//! for an endless one, are refused where they would be used.

use std::collections::BTreeMap;

use block::{Error, Result, escape};
use saphyr_parser::{Event, Parser};

use crate::Architecture;

/// How deep it may be nested.
const MAX_DEPTH: usize = 32;

/// What it says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) architecture: Option<Architecture>,
    pub(super) properties: BTreeMap<String, String>,
}

impl Metadata {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut metadata = Self::default();
        // The keys of the mappings that are open; `None` for a sequence, and for a mapping whose next key is to come.
        let mut way: Vec<Option<String>> = Vec::new();
        // Of each, whether it is a mapping.
        let mut mappings: Vec<bool> = Vec::new();
        for event in Parser::new_from_str(text) {
            let (event, _) = event.map_err(|error| wrong(&error.to_string()))?;
            match event {
                Event::Scalar(value, ..) => {
                    if mappings.last() == Some(&true) && way.last() == Some(&None) {
                        *way.last_mut().unwrap_or(&mut None) = Some(value.into_owned());
                        continue;
                    }
                    metadata.note(&way, &value)?;
                }
                Event::Alias(_) => return Err(wrong("it has aliases")),
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    let is_mapping = matches!(event, Event::MappingStart(..));
                    if mappings.last() == Some(&true) && way.last() == Some(&None) {
                        return Err(wrong("a key is no text"));
                    }
                    if mappings.len() == MAX_DEPTH {
                        return Err(wrong("it is nested too deep"));
                    }
                    way.push(None);
                    mappings.push(is_mapping);
                    continue;
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    way.pop();
                    mappings.pop();
                }
                _ => continue,
            }
            // A value has ended, and what comes next in a mapping is a key.
            if let Some(key) = way.last_mut() {
                *key = None;
            }
        }
        Ok(metadata)
    }

    /// Takes a value by the keys that lead to it.
    fn note(&mut self, way: &[Option<String>], value: &str) -> Result<()> {
        let way: Vec<&str> = way.iter().map(|key| key.as_deref().unwrap_or("")).collect();
        match way.as_slice() {
            ["architecture"] => {
                self.architecture = Some(match value {
                    "x86_64" | "amd64" => Architecture::X86_64,
                    "aarch64" | "arm64" => Architecture::Aarch64,
                    other => {
                        let message = format!("it is for processors of the kind \"{}\"", escape(other));
                        return Err(Error::unsupported(message)
                            .with_hint("machines have processors of the kinds x86_64 and aarch64"));
                    }
                });
            }
            ["properties", key] => drop(self.properties.insert((*key).to_owned(), value.to_owned())),
            _ => {}
        }
        Ok(())
    }
}

fn wrong(what: &str) -> Error {
    Error::invalid(format!("metadata.yaml: {}", escape(what)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_template_is_is_found_among_the_rest() {
        let text = "---\narchitecture: amd64\ncreation_date: 1424284563\nexpiry_date: 0\nproperties:\n  os: Debian\n  description: |\n    two\n    lines\n  release: 'bookworm'\n\
                    templates:\n  /etc/hostname:\n    when: [create, copy]\n    properties: {os: no}\n    architecture: no\n";
        let metadata = Metadata::parse(text).unwrap();
        assert_eq!(metadata.architecture, Some(Architecture::X86_64));
        let found: Vec<_> = metadata.properties.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            found,
            [
                ("description", "two\nlines\n"),
                ("os", "Debian"),
                ("release", "bookworm")
            ]
        );
    }

    #[test]
    fn it_is_nested_32_deep_at_most() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        Metadata::parse(&nested(32)).unwrap();
        let error = Metadata::parse(&nested(33)).unwrap_err();
        assert!(error.to_string().contains("nested too deep"), "{error}");
    }

    #[test]
    fn what_is_hostile_is_refused() {
        for text in [
            "a: &a [x]\nb: *a",
            "architecture: [",
            "? [a]\n: b",
            "architecture: sparc",
            &"[".repeat(100_000),
            &"{a: ".repeat(100),
        ] {
            Metadata::parse(text).unwrap_err();
        }
        assert_eq!(Metadata::parse("").unwrap(), Metadata::default());
    }
}
