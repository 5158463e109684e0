//! `imgtool template publish`: a template of a machine's disk.

use std::io::Write;

use clap::Args;
use machines::store::{Leftovers, NewTemplate, Published};
use ops::Control;

use super::seal::{SelectionArgs, changes_as_json, tell};
use super::show;
use crate::arguments::WatchArgs;
use crate::commands::Outcome;
use crate::interrupt;
use crate::output::{self, OutputFormat, counted};
use crate::stores::{MachineArgs, StoreArgs};
use crate::watch::Watch;

/// Make a template of a machine's disk
///
/// The machine stays as it is, and must not run. What must be unique or private is taken away first, as by template seal, and what is
/// free in the disk's ext4 and FAT filesystems, in swap and between partitions is not copied: nothing of a deleted file is in the template,
/// neither of one that was sealed nor of one that the guest deleted. What template lint still finds then, but for passwords of users, is named and
/// nothing is made, unless its operation is disabled, or --no-lint is given. Settings are those of the machine, and the kernel for direct boot is
/// the newest on its disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template publish web-1 --alias web
  imgtool template publish web-1 --alias web --enable credentials --disable service-keys
  imgtool template publish web-1 --alias web --compress --enable passwords --notes 'nginx set up'")]
pub(super) struct PublishArgs {
    /// What it is to be called
    #[arg(short, long)]
    alias: String,
    /// Take the alias away from another template that has it
    #[arg(long = "move")]
    moved: bool,
    /// Take nothing away, and copy the disk as it is
    #[arg(long, conflicts_with_all = ["enable", "disable"])]
    no_seal: bool,
    /// Copy what is private and left after sealing, such as private keys that are found by their content
    #[arg(long)]
    no_lint: bool,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Compress the image, with zstd
    #[arg(short = 'c', long)]
    compress: bool,
    /// Whatever there is to say
    #[arg(long, value_name = "TEXT")]
    notes: Option<String>,
    #[command(flatten)]
    settings: MachineArgs,
    /// How to print what was made
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// The machine
    #[arg(value_name = "MACHINE")]
    name: String,
}

impl PublishArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        let new = NewTemplate {
            alias: Some(self.alias.parse()?),
            move_alias: self.moved,
            notes: self.notes.clone(),
            machine: self.settings.template_settings()?,
            compress: self.compress,
            ..NewTemplate::default()
        };
        let selection = self.selection.selection()?;
        let leftovers = if self.no_lint {
            Leftovers::Kept
        } else {
            Leftovers::Refused
        };
        let sealed = (!self.no_seal).then_some((&selection, leftovers));
        let store = self.store.open()?;
        let instance = store.instance(&self.name)?;
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(interrupt::watch()?, &report);
        let published = store.publish(&instance, new, sealed, &control);
        watch.finish();
        let Published {
            template,
            changes,
            not_looked_into,
        } = published?;
        tell(&not_looked_into);
        if self.watch.quiet {
            return Ok(0);
        }
        if self.output == OutputFormat::Json {
            let mut value = show::as_json(&template);
            value["sealed"] = changes_as_json(&changes);
            output::json(out, &value)?;
        } else {
            show::print(out, &template, self.output)?;
            let sealed = counted(changes.len() as u64, "file or directory", "files and directories");
            writeln!(out, "sealed:      {sealed}")?;
        }
        Ok(0)
    }
}
