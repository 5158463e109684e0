//! Names that are about to be given or taken: `.unfinished`.
//!
//! A template or a machine has several files, and is there when its disk is. Between the first of its files that gets a name and the
//! disk, and between the disk that goes and the last of its files, it looks like one whose disk is away for a while, on a pool that is not mounted, say.
//! Such a one keeps what is known of it and its name, and what a killed job leaves is to go: so the two must not be taken for each other.
//!
//! Who holds the lock therefore writes down, before, which templates and machines it is about to name or to remove. What is said by that:
//!
//! | written down | its disk | what it is |
//! |---|---|---|
//! | no | there | whole |
//! | no | not there | away: all that is known of it stays |
//! | yes | there | whole, or still so |
//! | yes | not there | not yet, or no more: its other files are nobody's, and so are its aliases |
//!
//! When the job is done, has failed, or was killed and another gets the lock, the files of the last row are removed, and then what was written down.
//! Readers have no lock: they do not see aliases of the last row.
//!
//! It is not synced: a file system that keeps the order of names needs none of it. Where it is lost with a power cut, a name is refused as that of
//! a machine whose disk is away, and nothing else is lost.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use serde::{Deserialize, Serialize};

use super::document::{self, load, text_of};
use super::{Fingerprint, Held, InstanceName, Store, instance, template};

/// Templates and machines that are about to be named or removed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Unfinished {
    pub(super) templates: BTreeSet<Fingerprint>,
    pub(super) machines: BTreeSet<InstanceName>,
}

impl Unfinished {
    pub(super) fn template(fingerprint: Fingerprint) -> Self {
        Self {
            templates: BTreeSet::from([fingerprint]),
            ..Self::default()
        }
    }

    pub(super) fn machines<'n>(names: impl IntoIterator<Item = &'n InstanceName>) -> Self {
        Self {
            machines: names.into_iter().cloned().collect(),
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        self.templates.is_empty() && self.machines.is_empty()
    }
}

impl Store {
    fn unfinished_path(&self) -> PathBuf {
        self.directory.join(".unfinished")
    }

    /// Those that have no disk, of which nothing is to stay. What cannot be read is of nobody's.
    pub(super) fn unfinished(&self) -> Unfinished {
        let read = load::<Unfinished>(&self.unfinished_path());
        let mut unfinished = read.ok().flatten().unwrap_or_default();
        let (templates, machines) = (self.templates_directory(), self.instances_directory());
        unfinished
            .templates
            .retain(|fingerprint| is_gone(&Self::file(&templates, fingerprint, "qcow2")));
        unfinished
            .machines
            .retain(|name| is_gone(&Self::file(&machines, name, "qcow2")));
        unfinished
    }

    /// Does what names or removes the disks of templates and machines; of those that have none afterwards, all else goes too.
    pub(super) fn finish(
        &self,
        held: &Held,
        unfinished: Unfinished,
        job: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut all = unfinished;
        // What could not be removed before stays written down.
        let left = self.unfinished();
        all.templates.extend(left.templates);
        all.machines.extend(left.machines);
        self.write_down(&all)?;
        let done = job();
        let settled = self.settle(held);
        done.and(settled)
    }

    /// Removes what goes with no disk, of those that are written down.
    pub(super) fn settle(&self, held: &Held) -> Result<()> {
        let path = self.unfinished_path();
        if is_gone(&path) {
            return Ok(());
        }
        let unfinished = self.unfinished();
        let cleared = self.clear(held, &unfinished);
        if cleared.is_err() {
            // Those whose disk is there now may have one that is away later.
            let kept = self.write_down(&unfinished);
            return cleared.and(kept);
        }
        document::remove(&path)
    }

    fn clear(&self, held: &Held, unfinished: &Unfinished) -> Result<()> {
        if unfinished.is_empty() {
            return Ok(());
        }
        let (templates, machines) = (self.templates_directory(), self.instances_directory());
        if !unfinished.templates.is_empty() {
            // A disk that came back after a power cut would miss them.
            document::sync(&templates)?;
        }
        if !unfinished.machines.is_empty() {
            document::sync(&machines)?;
        }
        for name in &unfinished.machines {
            for beside in instance::BESIDE {
                document::remove(&Self::file(&machines, name, beside))?;
            }
        }
        for fingerprint in &unfinished.templates {
            for beside in template::BESIDE {
                document::remove(&Self::file(&templates, fingerprint, beside))?;
            }
            document::remove(&self.trusted_path(*fingerprint))?;
        }
        self.forget_aliases(held, &unfinished.templates)
    }

    fn write_down(&self, unfinished: &Unfinished) -> Result<()> {
        let path = self.unfinished_path();
        // Who holds the lock is alone here.
        let new = path.with_extension("new");
        document::remove(&new)?;
        document::create_unsynced(&new, text_of(unfinished)?.as_bytes(), 0o644)?;
        fs::rename(&new, &path).map_err(|error| Error::io("replace", error).with_path(&path))
    }
}

/// Whether there is surely no file of a name: a link that leads nowhere is one that is elsewhere, for now.
fn is_gone(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
