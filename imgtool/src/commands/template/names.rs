//! `imgtool template tag`, `untag` and `rm`.

use block::Result;
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
    /// Its alias, or the first digits of its fingerprint, four at least
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
  imgtool template rm debian-11
  imgtool template rm --force 3f1a")]
pub(super) struct RemoveArgs {
    /// Remove also templates whose descriptions cannot be read or are away
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Their aliases, or the first digits of their fingerprints, four at least
    #[arg(required = true, value_name = "TEMPLATE")]
    templates: Vec<String>,
}

impl RemoveArgs {
    pub(super) fn run(self) -> Outcome {
        let store = self.store.open()?;
        let find = |name: &String| match store.template(name) {
            Ok(template) => Ok((template.fingerprint, Some(template))),
            Err(_) if self.force => Ok((store.template_fingerprint(name)?, None)),
            Err(error) => Err(error),
        };
        // Those that are there go only if all are there.
        let found = self.templates.iter().map(find).collect::<Result<Vec<_>>>()?;
        for (fingerprint, template) in found {
            match template {
                Some(template) => store.remove_template(&template)?,
                None => store.remove_unread(fingerprint)?,
            }
        }
        Ok(0)
    }
}
