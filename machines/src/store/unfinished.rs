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
//! The alias that a new template is to have is written down with it, and is its name from the moment that the disk is there: there is none at which
//! the template is there without it.
//!
//! When the job is done, has failed, or was killed and another gets the lock, such aliases go where all are, the files of the last row are removed, and
//! then what was written down. Readers have no lock: they do not see aliases of the last row, and do see those that are only written down here.
//!
//! A disk that is full takes no note. What removes, which makes room there, goes on without one: killed there, it leaves what looks like a template or a
//! machine whose disk is away, to be removed again.
//!
//! It is synced only where it has an alias: a file system that keeps the order of names needs none of it. Where it is lost with a power cut, a name is
//! refused as that of a machine whose disk is away, and nothing else is lost.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use serde::{Deserialize, Serialize};

use super::aliases::Aliases;
use super::document::{self, load, text_of};
use super::{Alias, Fingerprint, Held, InstanceName, Store, instance, template};

/// Templates and machines that are about to be named or removed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Unfinished {
    pub(super) templates: BTreeSet<Fingerprint>,
    pub(super) machines: BTreeSet<InstanceName>,
    /// What templates are called once their disks are there.
    #[serde(skip_serializing_if = "Aliases::is_empty")]
    pub(super) aliases: Aliases,
}

impl Unfinished {
    /// A template that is to have an alias as soon as it is there.
    pub(super) fn new_template(fingerprint: Fingerprint, alias: Option<&Alias>) -> Self {
        Self {
            aliases: alias
                .map(|alias| (alias.clone(), fingerprint))
                .into_iter()
                .collect(),
            ..Self::template(fingerprint)
        }
    }

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

    /// Whether there is nothing to remove.
    fn is_clear(&self) -> bool {
        self.templates.is_empty() && self.machines.is_empty()
    }
}

impl Store {
    fn unfinished_path(&self) -> PathBuf {
        self.directory.join(".unfinished")
    }

    /// Those that have no disk, of which nothing is to stay, and aliases of those that have one now. What cannot be read is of nobody's.
    pub(super) fn unfinished(&self) -> Unfinished {
        let read = load::<Unfinished>(&self.unfinished_path());
        self.of_no_disk(read.ok().flatten().unwrap_or_default())
    }

    /// What of that has no disk, and aliases of what has one.
    fn of_no_disk(&self, mut unfinished: Unfinished) -> Unfinished {
        let (templates, machines) = (self.templates_directory(), self.instances_directory());
        unfinished
            .templates
            .retain(|fingerprint| is_gone(&Self::file(&templates, fingerprint, "qcow2")));
        unfinished
            .machines
            .retain(|name| is_gone(&Self::file(&machines, name, "qcow2")));
        unfinished
            .aliases
            .retain(|_, fingerprint| !is_gone(&Self::file(&templates, fingerprint, "qcow2")));
        unfinished
    }

    /// Does what names or removes the disks of templates and machines; of those that have none afterwards, all else goes too.
    pub(super) fn finish(
        &self,
        held: &Held,
        unfinished: Unfinished,
        job: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.write_down(&self.with_left(unfinished))?;
        self.settle_after(held, job)
    }

    fn settle_after(&self, held: &Held, job: impl FnOnce() -> Result<()>) -> Result<()> {
        let done = job();
        let settled = self.settle(held);
        done.and(settled)
    }

    /// The same for what removes disks, on a full disk too.
    pub(super) fn finish_removal(
        &self,
        held: &Held,
        unfinished: Unfinished,
        job: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let all = self.with_left(unfinished);
        match self.write_down(&all) {
            Err(error) if is_full(&error) => {
                job()?;
                self.clear(held, &self.of_no_disk(all))
            }
            written => written.and_then(|()| self.settle_after(held, job)),
        }
    }

    /// With what could not be removed before, which stays written down.
    fn with_left(&self, unfinished: Unfinished) -> Unfinished {
        let mut all = unfinished;
        let left = self.unfinished();
        all.templates.extend(left.templates);
        all.machines.extend(left.machines);
        left.aliases.into_iter().for_each(|(alias, fingerprint)| {
            all.aliases.entry(alias).or_insert(fingerprint);
        });
        all
    }

    /// Gives templates the aliases that are written down, and removes what goes with no disk.
    pub(super) fn settle(&self, held: &Held) -> Result<()> {
        let path = self.unfinished_path();
        if is_gone(&path) {
            return Ok(());
        }
        let named = self.name_promised(held);
        let unfinished = self.unfinished();
        let settled = named.and(self.clear(held, &unfinished));
        if settled.is_err() {
            // Those whose disk is there now may have one that is away later.
            let kept = self.write_down(&unfinished);
            return settled.and(kept);
        }
        document::remove(&path)
    }

    /// Has the aliases that are written down here be where all are, and no longer here, where they would win over later ones.
    pub(super) fn name_promised(&self, held: &Held) -> Result<()> {
        let mut unfinished = self.unfinished();
        if unfinished.aliases.is_empty() {
            return Ok(());
        }
        self.write_aliases(held, &self.aliases()?)?;
        unfinished.aliases.clear();
        self.write_down(&unfinished)
    }

    fn clear(&self, held: &Held, unfinished: &Unfinished) -> Result<()> {
        if unfinished.is_clear() {
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
            document::remove(&self.changed_path(*fingerprint))?;
        }
        self.forget_aliases(held, &unfinished.templates)
    }

    fn write_down(&self, unfinished: &Unfinished) -> Result<()> {
        let path = self.unfinished_path();
        // Who holds the lock is alone here.
        let new = path.with_extension("new");
        document::remove(&new)?;
        let text = text_of(unfinished)?;
        let file = document::create_unsynced(&new, text.as_bytes(), 0o644).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })?;
        let is_durable = !unfinished.aliases.is_empty();
        if is_durable {
            file.sync_all()
                .map_err(|error| Error::io("sync", error).with_path(&new))?;
        }
        fs::rename(&new, &path).map_err(|error| Error::io("replace", error).with_path(&path))?;
        if is_durable {
            document::sync(&self.directory)?;
        }
        Ok(())
    }
}

fn is_full(error: &Error) -> bool {
    matches!(
        error.io_kind(),
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    )
}

/// Whether there is surely no file of a name: a link that leads nowhere is one that is elsewhere, for now.
fn is_gone(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
