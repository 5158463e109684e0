//! Sealing: a disk loses what must be unique or private, before it becomes a template.
//!
//! [`OPERATIONS`] is a table of what goes. [`lint`] looks all of it up and changes nothing; [`seal`] looks it up in the same way and
//! does it, so that what the one finds the other takes away.
//!
//! A file that is deleted leaves its content on the disk, for whoever reads that past the filesystem. So when the files are
//! gone, what is free in every ext4 and FAT filesystem of the disk is made zeros too, and so is the log of an ext4 journal:
//! files that the guest itself has deleted before are gone as well. So does what is in swap, be that a partition or a file, and
//! in room that is no partition's. What else there is on a disk is not looked into, and said by name: [`not_looked_into`].

mod behind;
mod keys;
mod lint;
mod operations;
mod parts;
mod plan;
mod shares;
mod swap;
mod texts;
mod wipe;

use std::sync::Arc;

use block::{BlockDevice, Error, Result, escape};
use ext4_editor::Attributes;
use ops::Control;

use crate::Root;
use crate::personalise::Guest;
use crate::store::nearest;

pub use lint::{Finding, lint};
pub use operations::{OPERATIONS, Operation};
pub use parts::{NotLookedInto, instead_of_root, not_looked_into};

use plan::{Deed, Search, Step};

/// Things that are named where more are found.
const NAMED: usize = 8;

/// Which operations are done.
#[derive(Clone, Debug)]
pub struct Selection {
    done: Vec<&'static Operation>,
    left_out: Vec<&'static Operation>,
}

impl Default for Selection {
    /// Those that are done by default.
    fn default() -> Self {
        let by_default = OPERATIONS.iter().filter(|operation| operation.by_default);
        Self {
            done: by_default.collect(),
            left_out: Vec::new(),
        }
    }
}

impl Selection {
    /// Those that are done by default and those that are enabled, without those that are disabled.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is none, or for one that is both.
    pub fn new(enabled: &[String], disabled: &[String]) -> Result<Self> {
        let (enabled, disabled) = (named(enabled)?, named(disabled)?);
        let has = |list: &[&Operation], operation: &Operation| {
            list.iter().any(|other| other.name == operation.name)
        };
        if let Some(both) = enabled.iter().find(|operation| has(&disabled, operation)) {
            return Err(Error::invalid(format!(
                "the operation {} is both enabled and disabled",
                both.name
            )));
        }
        let chosen = OPERATIONS.iter().filter(|operation| {
            (operation.by_default || has(&enabled, operation)) && !has(&disabled, operation)
        });
        Ok(Self {
            done: chosen.collect(),
            left_out: disabled,
        })
    }

    /// Fails for what sealing has left on a disk that nobody asked to have left, as [`lint`] finds it. Passwords of the system's own users
    /// may be what a template is made with.
    ///
    /// # Errors
    /// `InvalidInput` with what was found; `Corrupt`, `Io`.
    pub(crate) fn check_sealed(&self, disk: &Arc<dyn BlockDevice>) -> Result<()> {
        let Some(root) = Root::find(disk)? else {
            return Ok(());
        };
        let passwords = OPERATIONS
            .iter()
            .filter(|operation| operation.name == "passwords");
        let but_for: Vec<_> = self.left_out.iter().copied().chain(passwords).collect();
        let found = lint(&root, &but_for)?;
        if found.is_empty() {
            return Ok(());
        }
        let named = found.iter().take(NAMED).map(|finding| {
            let operation = finding.operation.map(|name| format!(", {name}"));
            format!(
                "{} ({}{})",
                finding.path,
                finding.reason,
                operation.unwrap_or_default()
            )
        });
        let named = named.collect::<Vec<_>>().join("; ");
        let more = match found.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Err(
            Error::invalid(format!("after sealing, the disk still has {named}{more}")).with_hint(
                "remove it from the machine, or have an operation take it away: --enable OPERATION; to publish it, --disable OPERATION, or --no-lint for all",
            ),
        )
    }
}

/// The operations of these names.
///
/// # Errors
/// `InvalidInput` for a name that is none, with those that may have been meant.
pub fn named(names: &[String]) -> Result<Vec<&'static Operation>> {
    let find = |name: &String| {
        let found = OPERATIONS.iter().find(|operation| operation.name == name);
        found.ok_or_else(|| {
            let error = Error::invalid(format!("there is no operation \"{}\"", escape(name)));
            let near = nearest(name, OPERATIONS.iter().map(|operation| operation.name));
            error.with_hint(match near.as_slice() {
                [] => "imgtool template seal --list lists those that there are".to_owned(),
                near => format!("there is {}", near.join(", ")),
            })
        })
    };
    names.iter().map(find).collect()
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// By which operation.
    pub operation: &'static str,
    /// To what, from the root on, with bytes that are no text escaped.
    pub path: String,
    /// In a word, or that it was left and why.
    pub done: &'static str,
}

/// What two machines must not share and each makes anew, but for what [`personalise`](crate::personalise) gives them.
const UNIQUE: [&str; 4] = ["ssh-hostkeys", "dhcp-leases", "random-seed", "machine-secrets"];

/// What programs that make a system leave in it: what it was before their last change, and the name of the host that they ran on.
const LEFT_BY_MAKERS: [&str; 2] = ["passwd-backups", "hostname"];

/// Takes from a guest what would make another machine of it the same one, with the next commit.
///
/// # Errors
/// `Corrupt`, `NoSpace`, `Io`.
pub(crate) fn forget_identity(guest: &mut Guest) -> Result<()> {
    forget(guest, &UNIQUE)
}

/// Takes from a guest what the program that made it has left there, with the next commit.
///
/// # Errors
/// `Corrupt`, `NoSpace`, `Io`.
pub(crate) fn forget_maker(guest: &mut Guest) -> Result<()> {
    forget(guest, &LEFT_BY_MAKERS)
}

fn forget(guest: &mut Guest, names: &[&str]) -> Result<()> {
    for operation in OPERATIONS
        .iter()
        .filter(|operation| names.contains(&operation.name))
    {
        for step in Search::new(guest.editor.filesystem())?.plan(operation)? {
            apply(guest, &step)?;
        }
    }
    Ok(())
}

/// Takes from a disk what must be unique or private, and makes zeros of what that leaves. `is_new` says that the disk is deleted if
/// this fails; otherwise each operation is done or not, whenever the power goes, and it can be begun anew. A directory to whose place links
/// lead, and where an operation has nothing to do, is not emptied, and said to be left.
///
/// # Errors
/// `InvalidInput` for a disk without a root filesystem of ext4, and for one with the memory of a machine that is hibernated;
/// `Unsupported`, `Corrupt`, `NoSpace`, `Io`; `Interrupted`.
pub fn seal(
    disk: &Arc<dyn BlockDevice>,
    selection: &Selection,
    is_new: bool,
    control: &Control<'_>,
) -> Result<Vec<Change>> {
    let Some(root) = Root::find(disk)? else {
        return Err(Error::invalid(
            "the disk has no root filesystem of ext4 that could be sealed",
        ));
    };
    // A disk of which something cannot be wiped is not changed at all.
    not_looked_into(disk, true)?;
    parts::refuse_hibernated_parts(disk)?;
    let mut guest = Guest::open(&root, is_new)?;
    let search = Search::new(guest.editor.filesystem())?;
    for operation in &selection.done {
        // Nor is one in which something cannot be looked into.
        search.plan(operation)?;
    }
    let mut changes = Vec::new();
    for operation in &selection.done {
        control.check()?;
        for step in Search::new(guest.editor.filesystem())?.plan(operation)? {
            changes.push(Change {
                operation: operation.name,
                path: shown(&step.path),
                done: apply(&mut guest, &step)?,
            });
        }
        // One by one, for a journal need not have room for all.
        guest.editor.commit()?;
    }
    drop(guest);
    wipe::wipe(disk, is_new, control)?;
    Ok(changes)
}

fn apply(guest: &mut Guest, step: &Step) -> Result<&'static str> {
    let editor = &mut guest.editor;
    match &step.deed {
        Deed::Remove => editor.remove_tree(&step.path).map(|()| "removed"),
        Deed::Empty => editor
            .put(&step.path, b"", &Attributes::default())
            .map(|()| "emptied"),
        Deed::Replace(bytes) => editor
            .put(&step.path, bytes.as_slice(), &Attributes::default())
            .map(|()| "edited"),
        Deed::Leave(_) => Ok("left, as a link to elsewhere"),
    }
}

/// A path as it is shown.
fn shown(path: &[u8]) -> String {
    escape(&String::from_utf8_lossy(path)).into_owned()
}
