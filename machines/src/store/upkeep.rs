//! Whether a store is what it says, and what in it is nobody's.

use std::fs;
use std::path::PathBuf;

use block::{Error, Result};
use ops::Control;

use super::scratch::Scratch;
use super::{Fingerprint, Store, document, stems};

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
    /// Reads all templates, and follows the disks of all instances.
    ///
    /// # Errors
    /// `Io` where the store cannot be read; `Interrupted`. What is wrong with one of them is no error of this.
    pub fn verify(&self, control: &Control<'_>) -> Result<Verified> {
        let mut verified = Verified::default();
        let templates = self.templates()?;
        verified.faults.extend(templates.broken);
        for template in &templates.found {
            match template.verify(control) {
                Ok(()) => verified.templates += 1,
                Err(error) if error.kind() == block::ErrorKind::Interrupted => return Err(error),
                Err(error) => verified.faults.push(error),
            }
        }
        for alias in self.dangling()? {
            let message = format!("the alias \"{alias}\" is that of a template that is not there");
            verified.faults.push(Error::invalid(message));
        }
        let instances = self.instances()?;
        verified.faults.extend(instances.broken);
        for instance in &instances.found {
            // What has changed in a template was told of it already.
            match self.machine(instance, crate::Settings::default(), control) {
                Ok(_) => verified.instances += 1,
                Err(error) if error.kind() == block::ErrorKind::Corrupt => {}
                Err(error) if error.kind() == block::ErrorKind::Interrupted => return Err(error),
                Err(error) => verified.faults.push(error),
            }
        }
        Ok(verified)
    }

    fn dangling(&self) -> Result<Vec<String>> {
        let directory = self.templates_directory();
        let there = |fingerprint: &Fingerprint| Self::file(&directory, fingerprint, "qcow2").exists();
        let aliases = self.aliases()?;
        let dangling = aliases.iter().filter(|(_, fingerprint)| !there(fingerprint));
        Ok(dangling.map(|(alias, _)| alias.to_string()).collect())
    }

    /// Removes what killed processes have left: files that go with no disk, and aliases of no template. Disks are never
    /// removed. Gives what was removed, or would be where it is only `tried`.
    ///
    /// # Errors
    /// `Io`.
    pub fn collect(&self, tried: bool) -> Result<Vec<PathBuf>> {
        let held = self.hold()?;
        let mut rubbish = Vec::new();
        for directory in [self.templates_directory(), self.instances_directory()] {
            for extension in ["toml", "kernel", "initrd", "vars", "seed"] {
                for stem in stems(&directory, extension)? {
                    if !Self::file(&directory, &stem, "qcow2").exists() {
                        rubbish.push(Self::file(&directory, &stem, extension));
                    }
                }
            }
        }
        if !tried {
            rubbish.iter().try_for_each(|path| document::remove(path))?;
            let dangling = self.dangling()?;
            if !dangling.is_empty() {
                let mut aliases = self.aliases()?;
                aliases.retain(|alias, _| !dangling.iter().any(|name| name == alias.as_str()));
                self.write_aliases(&held, &aliases)?;
            }
        }
        let work = self.directory.join(".work");
        if work.exists() {
            rubbish.extend(Scratch::stale(&work)?);
            if !tried {
                // To begin is to tidy up.
                drop(Scratch::new(&work)?);
                let _ = fs::remove_dir(&work);
            }
        }
        Ok(rubbish)
    }
}
