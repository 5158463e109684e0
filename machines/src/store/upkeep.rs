//! Whether a store is what it says, and what in it is nobody's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use ops::Control;

use super::scratch::Scratch;
use super::{Alias, Fingerprint, Store, Template, document, is_others, stems};

/// What a look at a store has found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Templates that are what they were.
    pub templates: usize,
    /// Instances whose disks are based on what they should be.
    pub instances: usize,
    /// Templates and instances that only another user may read.
    pub others: usize,
    /// What is wrong.
    pub faults: Vec<Error>,
}

impl Verified {
    /// Adds what is wrong, unless that is known already: many machines stand on one template.
    pub fn add(&mut self, fault: Error) {
        let said = fault.to_string();
        if self.faults.iter().all(|other| other.to_string() != said) {
            self.faults.push(fault);
        }
    }
}

/// What of a store is to be collected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collecting {
    /// It is only looked for.
    pub tried: bool,
    /// What is known of disks that are not there goes too, unless an instance names them.
    pub missing: bool,
}

/// What a collection has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// What was removed, or would be.
    pub removed: Vec<PathBuf>,
    /// Descriptions of templates and instances whose disks are not there, and variables of such instances.
    pub left: Vec<PathBuf>,
}

impl Store {
    /// Reads all templates, checks their signatures where keys are trusted, follows the disks of all instances, and names disks
    /// that are none's.
    ///
    /// # Errors
    /// `Io` where the store cannot be read; `Interrupted`. What is wrong with one of them is no error of this.
    pub fn verify(&self, control: &Control<'_>) -> Result<Verified> {
        let mut verified = Verified::default();
        let templates = self.templates()?;
        templates.broken.into_iter().for_each(|error| verified.add(error));
        verified.others = templates.others.len();
        templates
            .away
            .iter()
            .for_each(|(_, error)| verified.add(error.clone()));
        for template in &templates.found {
            match self.verify_template(template, control) {
                Ok(()) => verified.templates += 1,
                Err(error) if error.kind() == block::ErrorKind::Interrupted => return Err(error),
                Err(error) => verified.add(error),
            }
        }
        self.broken_keys()?
            .into_iter()
            .for_each(|error| verified.add(error));
        let is_away = |fingerprint| {
            let mut away = templates.away.iter();
            away.any(|(template, _)| template.fingerprint == fingerprint)
        };
        let aliases = self.readable_aliases();
        // Aliases that cannot be read are among what is broken.
        for alias in self.dangling() {
            // Of those that are away it was said.
            if aliases
                .get(&alias)
                .is_some_and(|fingerprint| is_away(*fingerprint))
            {
                continue;
            }
            let message = format!("the alias \"{alias}\" is that of a template that is not there");
            verified.add(Error::invalid(message));
        }
        let instances = self.instances()?;
        instances.broken.into_iter().for_each(|error| verified.add(error));
        verified.others += instances.others.len();
        instances
            .away
            .into_iter()
            .for_each(|(_, error)| verified.add(error));
        for instance in &instances.found {
            match self.machine(instance, crate::Settings::default(), control) {
                Ok(_) => verified.instances += 1,
                Err(error) if error.kind() == block::ErrorKind::Corrupt => {
                    let message = format!(
                        "machine {} is based on a template that has changed",
                        instance.name
                    );
                    verified.add(Error::invalid(message));
                }
                Err(error) if error.kind() == block::ErrorKind::Interrupted => return Err(error),
                Err(error) if is_others(&error) => verified.others += 1,
                Err(error) => verified.add(error),
            }
        }
        for path in self.strays()? {
            let error = Error::invalid("a disk below the store that is no machine's").with_path(path);
            verified.add(error.with_hint(
                "what it is based on is kept for it; if it is needed, make it stand alone (imgtool stream) and move it elsewhere",
            ));
        }
        Ok(verified)
    }

    /// Reads a template, and checks its signature where keys are trusted.
    ///
    /// # Errors
    /// `Corrupt` for what has changed; `InvalidInput` for no signature of a trusted key; `Io`; `Interrupted`.
    pub fn verify_template(&self, template: &Template, control: &Control<'_>) -> Result<()> {
        template.verify(control)?;
        self.verify_signature(template, control)
    }

    /// Aliases of templates whose images are not there.
    fn dangling(&self) -> Vec<Alias> {
        let directory = self.templates_directory();
        let there = |fingerprint: &Fingerprint| Self::file(&directory, fingerprint, "qcow2").exists();
        let aliases = self.readable_aliases();
        let dangling = aliases.iter().filter(|(_, fingerprint)| !there(fingerprint));
        dangling.map(|(alias, _)| alias.clone()).collect()
    }

    /// Removes what killed processes have left: files that go with no disk, and aliases of no template. Disks are never
    /// removed, nor is what goes with a template that an instance names, or with a disk that is known and not there: it may
    /// come back.
    ///
    /// # Errors
    /// `Io`.
    pub fn collect(&self, collecting: Collecting) -> Result<Collected> {
        let held = self.lock()?;
        let (named, by_away) = (self.named()?, self.named_by_away()?);
        let unfinished = self.unfinished();
        let gone = |stem: &str| {
            let is = |name: &dyn std::fmt::Display| name.to_string() == stem;
            unfinished.templates.iter().any(|name| is(name))
                || unfinished.machines.iter().any(|name| is(name))
        };
        let is_named = |stem: &str| !gone(stem) && named.as_ref().is_none_or(|named| named.contains(stem));
        let may_come =
            |stem: &str| by_away.as_ref().is_none_or(|named| named.contains(stem)) || self.is_described(stem);
        let is_left = |stem: &str| !gone(stem) && !collecting.missing && may_come(stem);
        let wanted = |stem: &str| is_named(stem) || is_left(stem);
        let is_known = |stem: &str| !gone(stem) && !collecting.missing && self.is_known(stem);
        let (templates, instances) = (self.templates_directory(), self.instances_directory());
        let mut collected = Collected::default();
        let mut rubbish = without_disk(&templates, &wanted)?;
        rubbish.extend(without_disk(&instances, &is_known)?);
        rubbish.extend(self.notes_of_nothing(&wanted)?);
        collected.left = without_disk(&templates, &|stem| is_named(stem) || !is_left(stem))?;
        collected
            .left
            .extend(without_disk(&instances, &|stem| !is_known(stem))?);
        collected.left.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml" || extension == "vars")
        });
        if !collecting.tried {
            rubbish.iter().try_for_each(|path| document::remove(path))?;
            // Those that cannot be read are left to who mends them.
            let mut aliases = self.aliases_to_change(&held).unwrap_or_default();
            let dangling = self.dangling();
            let before = aliases.len();
            aliases
                .retain(|alias, fingerprint| wanted(&fingerprint.to_string()) || !dangling.contains(alias));
            if aliases.len() < before {
                self.write_aliases(&held, &aliases)?;
            }
            self.settle(&held)?;
        }
        let work = self.directory.join(".work");
        if work.exists() {
            rubbish.extend(Scratch::stale(&work)?);
            if !collecting.tried {
                Scratch::tidy(&work)?;
            }
        }
        collected.removed = rubbish;
        Ok(collected)
    }

    /// Whether somebody has named a template, or it was noted when it was whole, and its description is there.
    fn is_described(&self, stem: &str) -> bool {
        let is_noted = |fingerprint| self.trusted_path(fingerprint).exists();
        // With aliases that cannot be read, it may have any.
        let has_alias = |fingerprint: &Fingerprint| {
            self.aliases()
                .map_or(true, |aliases| aliases.values().any(|other| other == fingerprint))
        };
        Self::file(&self.templates_directory(), stem, "toml").exists()
            && stem
                .parse()
                .is_ok_and(|fingerprint| is_noted(fingerprint) || has_alias(&fingerprint))
    }

    /// Whether there is something of an instance that its disk would need and that nothing else could give back. A description
    /// need not be one that can be read: it may be mended.
    pub(super) fn is_known(&self, stem: &str) -> bool {
        let directory = self.instances_directory();
        let is_there = |extension| Self::file(&directory, stem, extension).symlink_metadata().is_ok();
        is_there("toml") || is_there("vars")
    }

    /// The fingerprints that instances name, in their documents, and all disks in their headers; `None` where one of these
    /// cannot be read, and could name any.
    fn named(&self) -> Result<Option<BTreeSet<String>>> {
        let instances = self.instances_with_disks()?;
        if !instances.broken.is_empty() || !instances.others.is_empty() {
            return Ok(None);
        }
        let templates = instances.found.iter().map(|instance| instance.document.template);
        let mut named: BTreeSet<String> = templates.map(|template| template.to_string()).collect();
        for disk in self.disks()? {
            // Of a machine's it is known, though its base may be away.
            if !disk.is_known && disk.machine.is_none() && disk.stems().next().is_none() {
                return Ok(None);
            }
            named.extend(disk.stems());
        }
        Ok(Some(named))
    }

    /// The fingerprints that instances name whose disks are away; `None` where one of these cannot be read, and could name any.
    fn named_by_away(&self) -> Result<Option<BTreeSet<String>>> {
        let template = |name| {
            let instance = self.load_instance(name).ok()?;
            Some(instance.document.template.to_string())
        };
        Ok(self.away()?.into_iter().map(template).collect())
    }
}

/// The files that go with disks which are not in a directory, but for those that are `wanted`.
fn without_disk(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for extension in [
        "toml",
        "kernel",
        "initrd",
        "qcow2.minisig",
        "toml.minisig",
        "vars",
        "seed",
    ] {
        for stem in stems(directory, extension)? {
            // A link that leads nowhere is a disk that is elsewhere, for now.
            let disk = Store::file(directory, &stem, "qcow2");
            if disk.symlink_metadata().is_err() && !wanted(&stem) {
                found.push(Store::file(directory, &stem, extension));
            }
        }
    }
    Ok(found)
}
