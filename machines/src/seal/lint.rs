//! What should not be in a template: all that sealing would take away, and more that only people can judge.

use std::collections::BTreeSet;

use block::{Error, Result};
use ext4_reader::{FileKind, Inode};
use regex::bytes::Regex;

use super::operations::{OPERATIONS, Operation};
use super::parts::holds_something;
use super::plan::{Deed, Search, Step};
use super::shown;
use super::swap::{Swap, SwapFile};
use crate::Root;

/// Where private keys are looked for: where people and services put what is theirs.
const KEY_PLACES: [&str; 7] = [
    "/etc",
    "/home",
    "/opt",
    "/root",
    "/srv",
    "/usr/local/etc",
    "/var/lib",
];

/// Where programs that give rights are not to be.
const OPEN_PLACES: [&str; 6] = ["/dev/shm", "/home", "/root", "/srv", "/tmp", "/var/tmp"];

/// Bytes at the start of a file in which keys are looked for.
const KEY_START: u64 = 256 << 10;

/// How a private key announces itself: in a file of its own, among other text, and in JSON. A program that reads such has no
/// line that ends there.
const KEY: &str = concat!(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\r\n\\]",
    r"|-----BEGIN OpenVPN Static key V1-----\r?\n",
    r"|PuTTY-User-Key-File-[0-9]",
    r"|AGE-SECRET-KEY-1[0-9A-Z]",
);

const SETUID_OR_SETGID: u16 = 0o6000;

/// Something that should not be in a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// From the root on, with bytes that are no text escaped.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
    /// The operation that would see to it.
    pub operation: Option<&'static str>,
}

/// Looks for what should not be in a template, but for what these operations are about. Nothing is changed.
///
/// # Errors
/// `Unsupported`, `Corrupt`, `Io`.
pub fn lint(root: &Root, but_for: &[&'static Operation]) -> Result<Vec<Finding>> {
    let filesystem = root.filesystem()?;
    let search = Search::new(&filesystem)?;
    let (mut findings, mut named) = (BTreeSet::new(), BTreeSet::new());
    for operation in OPERATIONS {
        let is_wanted = !but_for.iter().any(|other| other.name == operation.name);
        for step in search.plan(operation)? {
            named.insert(shown(&step.path));
            if is_wanted {
                findings.insert(found(operation, &step));
            }
        }
    }
    let mut more = |path: &[u8], reason: &str| {
        let path = shown(path);
        // What goes as a whole is not told of file by file, nor what nobody is to look for.
        let goes = named.iter().any(|whole| {
            path.strip_prefix(whole.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if !goes {
            findings.insert(Finding {
                path,
                reason: reason.to_owned(),
                operation: None,
            });
        }
    };
    let key = Regex::new(KEY).map_err(|error| Error::invalid(error.to_string()))?;
    for place in KEY_PLACES {
        search.files(place.into(), |path, file| {
            if is_private_key(&search, &key, file)? {
                more(&path, "a private key");
            }
            Ok(())
        })?;
    }
    for place in OPEN_PLACES {
        search.files(place.into(), |path, file| {
            if file.kind() == FileKind::Regular && file.mode() & SETUID_OR_SETGID != 0 {
                more(
                    &path,
                    "a program that runs with the rights of its owner, where users keep their files",
                );
            }
            Ok(())
        })?;
    }
    for file in search.swap_files()? {
        if let Some(reason) = swapped(root, &file)? {
            more(&file.path, reason);
        }
    }
    Ok(findings.into_iter().collect())
}

fn found(operation: &Operation, step: &Step) -> Finding {
    let reason = match step.deed {
        Deed::Replace(_) => format!("it has {}", operation.description),
        Deed::Empty | Deed::Remove => operation.description.to_owned(),
    };
    Finding {
        path: shown(&step.path),
        reason,
        operation: Some(operation.name),
    }
}

/// What is wrong with a file that is swapped to.
fn swapped(root: &Root, file: &SwapFile) -> Result<Option<&'static str>> {
    if file.swap == Swap::Hibernated {
        return Ok(Some("the memory of a machine that is hibernated"));
    }
    for range in &file.swapped {
        if holds_something(&*root.device, range.clone())? {
            return Ok(Some("memory that was swapped out, of which sealing makes zeros"));
        }
    }
    Ok(None)
}

fn is_private_key(search: &Search<'_>, key: &Regex, file: &Inode) -> Result<bool> {
    if file.kind() != FileKind::Regular || file.is_encrypted() {
        return Ok(false);
    }
    Ok(key.is_match(&search.start(file, KEY_START)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_programs_that_read_them() {
        let key = Regex::new(KEY).unwrap();
        for text in [
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
            "note: -----BEGIN RSA PRIVATE KEY-----\r\nMIIE",
            "-----BEGIN PRIVATE KEY-----\nMIIE",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n",
            "{\"private_key\": \"-----BEGIN PRIVATE KEY-----\\nMIIE",
            "PuTTY-User-Key-File-3: ssh-ed25519",
            "# x\nAGE-SECRET-KEY-1QQ",
        ] {
            assert!(key.is_match(text.as_bytes()), "{text}");
        }
        for text in [
            "-----BEGIN PUBLIC KEY-----\nMIIB",
            "-----BEGIN OPENSSH PRIVATE KEY-----\0",
            "b'-----BEGIN OPENSSH PRIVATE KEY-----' in text",
            "PRIVATE KEY-----",
        ] {
            assert!(!key.is_match(text.as_bytes()), "{text}");
        }
    }
}
