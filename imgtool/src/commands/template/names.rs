//! `imgtool template tag`, `untag` and `rm`.

use clap::Args;

use crate::commands::Outcome;
use crate::stores::StoreArgs;

/// Give a template another name
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template tag debian-12.5 debian-12
  imgtool template tag --move 3f1a debian-12")]
pub(super) struct TagArgs {
    /// Take the name away from another template that has it
    #[arg(long = "move")]
    moved: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Its alias, or the first digits of its fingerprint
    template: String,
    /// The new name
    alias: String,
}

impl TagArgs {
    pub(super) fn run(self) -> Outcome {
        let store = self.store.open()?;
        store.tag(&store.template(&self.template)?, &self.alias.parse()?, self.moved)?;
        Ok(0)
    }
}

/// Take a name away from a template
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template untag debian-12")]
pub(super) struct UntagArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The name
    alias: String,
}

impl UntagArgs {
    pub(super) fn run(self) -> Outcome {
        self.store.open()?.untag(&self.alias.parse()?)?;
        Ok(0)
    }
}

/// Remove templates, with all their names
///
/// A template that the disk of a machine is based on stays.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template rm debian-11")]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Their aliases, or the first digits of their fingerprints
    #[arg(required = true, value_name = "TEMPLATE")]
    templates: Vec<String>,
}

impl RemoveArgs {
    pub(super) fn run(self) -> Outcome {
        let store = self.store.open()?;
        for name in &self.templates {
            store.remove_template(&store.template(name)?)?;
        }
        Ok(0)
    }
}
