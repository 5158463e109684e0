//! What should not be in a template: all that sealing would take away, and more that only people can judge.

use std::collections::BTreeSet;

use block::Result;
use ext4_reader::{FileKind, Inode};

use super::keys::{PrivateKeys, START};
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
    let keys = PrivateKeys::new()?;
    for place in KEY_PLACES {
        search.files(place.into(), |path, file| {
            if is_private_key(&search, &keys, file)? {
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
    let reason = match &step.deed {
        Deed::Replace(_) => format!("it has {}", operation.description),
        Deed::Empty | Deed::Remove => operation.description.to_owned(),
        Deed::Leave(real) => {
            let (what, real) = (operation.description, shown(real));
            format!(
                "{what}: links lead to {real}, which is not emptied; move what is there to where it belongs"
            )
        }
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

fn is_private_key(search: &Search<'_>, keys: &PrivateKeys, file: &Inode) -> Result<bool> {
    if file.kind() != FileKind::Regular || file.is_encrypted() {
        return Ok(false);
    }
    Ok(keys.are_in(&search.start(file, START)?))
}
