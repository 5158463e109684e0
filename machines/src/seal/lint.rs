//! What should not be in a template: all that sealing would take away, and more that only people can judge.

use std::collections::BTreeSet;

use block::Result;
use ext4_reader::{FileKind, Inode};

use super::operations::{OPERATIONS, Operation};
use super::parts::holds_something;
use super::plan::{Deed, Search};
use super::shown;
use super::swap::{Swap, SwapFile};
use crate::Root;

/// Where private keys are looked for, besides users' homes.
const KEY_PLACES: [&str; 3] = ["/etc/ssh", "/etc/ssl/private", "/etc/pki/tls/private"];

/// Where programs that give rights are not to be, besides users' homes.
const OPEN_PLACES: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/srv"];

/// Bytes at the start of a file in which a key announces itself.
const KEY_START: u64 = 16 << 10;

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
    let mut findings = BTreeSet::new();
    let wanted = |operation: &&Operation| !but_for.iter().any(|other| other.name == operation.name);
    for operation in OPERATIONS.iter().filter(wanted) {
        for step in search.plan(operation)? {
            let reason = match step.deed {
                Deed::Replace(_) => format!("it has {}", operation.description),
                Deed::Empty | Deed::Remove => operation.description.to_owned(),
            };
            findings.insert(Finding {
                path: shown(&step.path),
                reason,
                operation: Some(operation.name),
            });
        }
    }
    let named: BTreeSet<String> = findings.iter().map(|finding| finding.path.clone()).collect();
    let mut more = |path: &[u8], reason: &str| {
        let path = shown(path);
        // What goes as a whole is not told of file by file.
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
    let homes: Vec<Vec<u8>> = search.homes().map(<[u8]>::to_vec).collect();
    let homes = homes
        .iter()
        .filter(|home| home.starts_with(b"/root") || home.starts_with(b"/home"));
    let homes: Vec<&[u8]> = homes.map(Vec::as_slice).collect();
    let with_homes = |places: &[&'static str]| -> Vec<Vec<u8>> {
        let places = places.iter().map(|place| place.as_bytes());
        places.chain(homes.iter().copied()).map(<[u8]>::to_vec).collect()
    };
    for place in with_homes(&KEY_PLACES) {
        search.files(place, |path, file| {
            if is_private_key(&search, file)? {
                more(&path, "a private key");
            }
            Ok(())
        })?;
    }
    for place in with_homes(&OPEN_PLACES) {
        search.files(place, |path, file| {
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

fn is_private_key(search: &Search<'_>, file: &Inode) -> Result<bool> {
    if file.kind() != FileKind::Regular || file.is_encrypted() {
        return Ok(false);
    }
    let start = search.start(file, KEY_START)?;
    let has = |text: &[u8]| start.windows(text.len()).any(|window| window == text);
    Ok(has(b"PRIVATE KEY-----") || has(b"PuTTY-User-Key-File-") || has(b"AGE-SECRET-KEY-1"))
}
