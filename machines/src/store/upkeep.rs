//! Whether a store is what it says, and what in it is nobody's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use ops::Control;

use super::scratch::Scratch;
use super::{Fingerprint, Store, Template, document, stems};

/// What a look at a store has found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Templates that are what they were.
    pub templates: usize,
    /// Instances whose disks are based on what they should be.
    pub instances: usize,
    /// What is wrong.
    pub faults: Vec<Error>,
}

impl Store {
    /// Reads all templates, checks their signatures where keys are trusted, and follows the disks of all instances.
    ///
    /// # Errors
    /// `Io` where the store cannot be read; `Interrupted`. What is wrong with one of them is no error of this.
    pub fn verify(&self, control: &Control<'_>) -> Result<Verified> {
        let mut verified = Verified::default();
        let templates = self.templates()?;
        verified.faults.extend(templates.broken);
        for template in &templates.found {
            match self.verify_template(template, control) {
                Ok(()) => verified.templates += 1,
                Err(error) if error.kind() == block::ErrorKind::Interrupted => return Err(error),
                Err(error) => verified.faults.push(error),
            }
        }
        verified.faults.extend(self.broken_keys()?);
        // Aliases that cannot be read are among what is broken.
        for alias in self.dangling() {
            let message = format!("the alias \"{alias}\" is that of a template that is not there");
            verified.faults.push(Error::invalid(message));
        }
        let instances = self.instances()?;
        verified.faults.extend(instances.broken);
        for instance in &instances.found {
            match self.machine(instance, crate::Settings::default(), control) {
                Ok(_) => verified.instances += 1,
                Err(error) if error.kind() == block::ErrorKind::Corrupt => {
                    let message = format!(
                        "machine {} is based on a template that has changed",
                        instance.name
                    );
                    verified.faults.push(Error::invalid(message));
                }
                Err(error) if error.kind() == block::ErrorKind::Interrupted => return Err(error),
                Err(error) => verified.faults.push(error),
            }
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

    fn dangling(&self) -> Vec<String> {
        let directory = self.templates_directory();
        let there = |fingerprint: &Fingerprint| Self::file(&directory, fingerprint, "qcow2").exists();
        let aliases = self.readable_aliases();
        let dangling = aliases.iter().filter(|(_, fingerprint)| !there(fingerprint));
        dangling.map(|(alias, _)| alias.to_string()).collect()
    }

    /// Removes what killed processes have left: files that go with no disk, and aliases of no template. Disks are never
    /// removed, nor is what goes with a template that an instance names, though its disk is not there: it may come back. Gives
    /// what was removed, or would be where it is only `tried`.
    ///
    /// # Errors
    /// `Io`.
    pub fn collect(&self, tried: bool) -> Result<Vec<PathBuf>> {
        let held = self.hold()?;
        let named = self.named()?;
        let wanted = |stem: &str| named.as_ref().is_none_or(|named| named.contains(stem));
        let mut rubbish = Vec::new();
        for (directory, is_wanted) in [
            (self.templates_directory(), &wanted as &dyn Fn(&str) -> bool),
            (self.instances_directory(), &|_| false),
        ] {
            for extension in [
                "toml",
                "kernel",
                "initrd",
                "qcow2.minisig",
                "toml.minisig",
                "vars",
                "seed",
            ] {
                for stem in stems(&directory, extension)? {
                    // A link that leads nowhere is a disk that is elsewhere, for now.
                    let disk = Self::file(&directory, &stem, "qcow2");
                    if disk.symlink_metadata().is_err() && !is_wanted(&stem) {
                        rubbish.push(Self::file(&directory, &stem, extension));
                    }
                }
            }
        }
        rubbish.extend(self.notes_of_nothing(&wanted)?);
        if !tried {
            rubbish.iter().try_for_each(|path| document::remove(path))?;
            let mut aliases = self.readable_aliases();
            let dangling = self.dangling();
            let before = aliases.len();
            aliases.retain(|alias, fingerprint| {
                wanted(&fingerprint.to_string()) || !dangling.iter().any(|name| name == alias.as_str())
            });
            if aliases.len() < before {
                self.write_aliases(&held, &aliases)?;
            }
        }
        let work = self.directory.join(".work");
        if work.exists() {
            rubbish.extend(Scratch::stale(&work)?);
            if !tried {
                // To begin is to tidy up.
                drop(Scratch::new(&work)?);
            }
        }
        Ok(rubbish)
    }

    /// The fingerprints that instances name, in their documents and in the headers of their disks; `None` where one of these
    /// cannot be read, and could name any.
    fn named(&self) -> Result<Option<BTreeSet<String>>> {
        let instances = self.instances()?;
        if !instances.broken.is_empty() {
            return Ok(None);
        }
        let mut named = BTreeSet::new();
        for instance in &instances.found {
            named.insert(instance.document.template.to_string());
            let Ok(Some(backing)) = instance.backing() else {
                continue;
            };
            named.extend(
                Path::new(&backing)
                    .file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
        Ok(Some(named))
    }
}
