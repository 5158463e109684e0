//! Aliases: names that people give to templates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use block::{Error, Result};

use super::document::{self, load, text_of};
use super::{Alias, Fingerprint, Held, Store};

/// Whose name an alias is.
pub(super) type Aliases = BTreeMap<Alias, Fingerprint>;

impl Store {
    /// All aliases of templates that are there, or away.
    ///
    /// # Errors
    /// `InvalidInput` where they cannot be read, with line and column: they are people's, and not made anew.
    pub(super) fn aliases(&self) -> Result<Aliases> {
        // Read first: what it says has come true before it says no more.
        let unfinished = self.unfinished();
        let mut aliases = self.all_aliases()?;
        aliases.retain(|_, fingerprint| !unfinished.templates.contains(fingerprint));
        aliases.extend(unfinished.aliases);
        Ok(aliases)
    }

    /// The same, for who writes them anew.
    pub(super) fn aliases_to_change(&self, held: &Held) -> Result<Aliases> {
        self.name_promised(held)?;
        self.aliases()
    }

    /// With those of templates that a killed job was removing.
    fn all_aliases(&self) -> Result<Aliases> {
        let aliases = load(&self.directory.join("aliases.toml")).map_err(|error| {
            error.with_hint(
                "mend that line, or move the file away and name templates anew: imgtool template tag",
            )
        })?;
        Ok(aliases.unwrap_or_default())
    }

    /// The aliases as far as they can be read, for what does not need them: none otherwise.
    pub(super) fn readable_aliases(&self) -> Aliases {
        self.aliases().unwrap_or_default()
    }

    /// Fails for a name that another template has than the one of a fingerprint, which may not be known yet.
    pub(crate) fn check_alias(&self, alias: &Alias, fingerprint: Option<Fingerprint>) -> Result<()> {
        match self.aliases()?.get(alias) {
            Some(other) if Some(*other) != fingerprint => {
                let message = format!("\"{alias}\" is the name of template {}", other.short());
                Err(Error::invalid(message).with_hint("choose another, or have it moved: --move"))
            }
            _ => Ok(()),
        }
    }

    /// Gives a template another name, and takes it away from any other that has it.
    pub(super) fn add_alias(&self, held: &Held, alias: &Alias, fingerprint: Fingerprint) -> Result<()> {
        let mut aliases = self.aliases_to_change(held)?;
        match aliases.insert(alias.clone(), fingerprint) {
            Some(before) if before == fingerprint => Ok(()),
            _ => self.write_aliases(held, &aliases),
        }
    }

    /// Takes all names away from templates. Those that cannot be read are left to who mends them.
    pub(super) fn forget_aliases(&self, held: &Held, templates: &BTreeSet<Fingerprint>) -> Result<()> {
        let Ok(mut aliases) = self.all_aliases() else {
            return Ok(());
        };
        let before = aliases.len();
        aliases.retain(|_, fingerprint| !templates.contains(fingerprint));
        if aliases.len() == before {
            return Ok(());
        }
        self.write_aliases(held, &aliases)
    }

    pub(super) fn write_aliases(&self, _held: &Held, aliases: &Aliases) -> Result<()> {
        let scratch = self.scratch()?;
        let (new, path) = (scratch.path("aliases.toml"), self.directory.join("aliases.toml"));
        document::create(&new, text_of(aliases)?.as_bytes(), 0o644)?;
        fs::rename(&new, &path).map_err(|error| Error::io("replace", error).with_path(&path))?;
        document::sync(&self.directory)
    }
}
