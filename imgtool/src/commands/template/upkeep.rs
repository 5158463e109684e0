//! `imgtool template verify` and `gc`.

use std::io::Write;

use block::{ErrorKind, Result, escape};
use clap::Args;
use machines::store::{Collecting, Store, Verified};
use ops::Control;
use serde_json::json;

use crate::arguments::WatchArgs;
use crate::commands::Outcome;
use crate::interrupt;
use crate::output::{self, OutputFormat, counted, note};
use crate::stores::{StoreArgs, tell_broken_keys};
use crate::table;
use crate::watch::Watch;

/// See whether templates are what they were, and machines based on what they should be
///
/// All templates are read and compared with their fingerprints, and with their signatures where the store has keys; or only those that are
/// named, and no machines.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template verify
  imgtool template verify debian-12")]
pub(super) struct VerifyArgs {
    /// How to print what was found
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Their aliases, or the first digits of their fingerprints, four at least [default: all, and all machines]
    #[arg(value_name = "TEMPLATE")]
    templates: Vec<String>,
}

impl VerifyArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        let store = self.store.open()?;
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let verified = self.verify(&store, &Control::new(interrupt::watch()?, &report));
        watch.finish();
        let verified = verified?;
        if self.output == OutputFormat::Json {
            let faults: Vec<String> = verified.faults.iter().map(ToString::to_string).collect();
            let value = json!({
                "templates": verified.templates,
                "machines": verified.instances,
                "others": verified.others,
                "faults": faults,
            });
            output::json(out, &value)?;
            return Ok(u8::from(!verified.faults.is_empty()));
        }
        if verified.others > 0 && !self.watch.quiet {
            note(&match verified.others {
                1 => "1 is another user's, who alone may read it, and was not looked at".to_owned(),
                others => {
                    format!("{others} are other users', who alone may read them, and were not looked at")
                }
            });
        }
        if !self.watch.quiet {
            let (templates, machines) = (verified.templates, verified.instances);
            match self.templates.as_slice() {
                [] => writeln!(
                    out,
                    "{} and {} are as they should be",
                    counted(templates as u64, "template", "templates"),
                    counted(machines as u64, "machine", "machines")
                )?,
                [one] if templates == 1 => writeln!(out, "template {one} is as it should be")?,
                // What is wrong with it is told below.
                [_] => {}
                named => writeln!(
                    out,
                    "{templates} of {} templates are as they should be",
                    named.len()
                )?,
            }
        }
        Ok(table::tell_broken(out, &verified.faults)?)
    }

    fn verify(&self, store: &Store, control: &Control<'_>) -> Result<Verified> {
        if self.templates.is_empty() {
            return store.verify(control);
        }
        tell_broken_keys(store);
        let named = self.templates.iter().map(|name| store.template(name));
        let mut verified = Verified::default();
        for template in named.collect::<Result<Vec<_>>>()? {
            match store.verify_template(&template, control) {
                Ok(()) => verified.templates += 1,
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => verified.add(error),
            }
        }
        Ok(verified)
    }
}

/// Remove what killed processes have left in a store
///
/// Images are never removed, nor is anything that goes with one. What is known of an image that is not there is left, as it may come back, and
/// is told on standard error: of a template that has an alias or was noted, and of a machine, be its description readable or not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template gc --dry-run
  imgtool template gc --missing                 also what is known of images that are gone for good")]
pub(super) struct CollectArgs {
    /// List what would be removed, and leave it
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Remove also what is known of images that are not there, unless a machine needs them
    #[arg(long)]
    missing: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl CollectArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        let collected = self.store.open()?.collect(Collecting {
            tried: self.dry_run,
            missing: self.missing,
        })?;
        for path in &collected.removed {
            writeln!(out, "{}", escape(&path.to_string_lossy()))?;
        }
        out.flush()?;
        for path in &collected.left {
            note(&format!(
                "left {}, whose image is not there and may come back; --missing removes what goes with it",
                escape(&path.to_string_lossy())
            ));
        }
        Ok(0)
    }
}
