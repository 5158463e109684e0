//! `imgtool template seal` and `lint`: what must be unique or private, taken away or found.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::chain::Chain;
use block::{Access, BlockDevice, Error, Result};
use clap::Args;
use machines::Root;
use machines::seal::{self, Change, Finding, NotLookedInto, OPERATIONS, Selection};
use ops::Control;
use serde_json::{Value, json};

use crate::arguments::{OpenArgs, WatchArgs};
use crate::commands::Outcome;
use crate::image_name::ImageName;
use crate::images::Opening;
use crate::interrupt;
use crate::output::{self, OutputFormat, note};
use crate::stores::StoreArgs;
use crate::table::Table;
use crate::watch::Watch;

/// Which operations are done.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct SelectionArgs {
    /// Do an operation that is not done by default; more than one can be given
    #[arg(long, value_name = "OPERATION", value_delimiter = ',')]
    enable: Vec<String>,
    /// Leave out an operation; more than one can be given
    #[arg(long, value_name = "OPERATION", value_delimiter = ',')]
    disable: Vec<String>,
}

impl SelectionArgs {
    pub(super) fn selection(&self) -> Result<Selection> {
        Selection::new(&self.enable, &self.disable)
    }
}

/// Take from a disk what must be unique or private
///
/// Keys, IDs, logs, histories, caches and more go from the root filesystem, which has to be of ext4, and then all that is free in the
/// disk's ext4 and FAT filesystems, in swap and between partitions is made zeros, so that nothing of it is left there. What stays
/// as it is is said by name. The machine must not run. A template is not
/// changed: publish seals a copy of a machine's disk. Snapshots in the image keep what they have.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template seal --list
  imgtool template seal web-1
  imgtool template seal disk.qcow2 --enable passwords --disable cron-spool,logs")]
pub(super) struct SealArgs {
    /// List all operations, and leave it at that
    #[arg(long)]
    list: bool,
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    selection: SelectionArgs,
    /// How to print what was done
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// The machine, or an image, or a partition of the disk in one
    #[arg(value_name = "MACHINE|FILE", required_unless_present = "list")]
    disk: Option<PathBuf>,
}

impl SealArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        let Some(disk) = self.disk.as_ref().filter(|_| !self.list) else {
            print_operations(out, self.output)?;
            return Ok(0);
        };
        self.open.check()?;
        let selection = self.selection.selection()?;
        let name = name_of(&self.open.store, disk, false)?;
        let (chain, disk) = open(&self.open, &name, self.format.as_deref(), Access::WRITE)?;
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(interrupt::watch()?, &report);
        let changes = seal::seal(&disk, &selection, false, &control);
        watch.finish();
        let changes = changes.map_err(|error| error.with_path(&name.path))?;
        tell(&seal::not_looked_into(&disk, true)?);
        drop((disk, chain));
        if !self.watch.quiet {
            print_changes(out, &changes, self.output)?;
        }
        Ok(0)
    }
}

/// Says what on a disk nobody looked into.
pub(super) fn tell(not_looked_into: &[NotLookedInto]) {
    for what in not_looked_into {
        note(&what.to_string());
    }
}

/// Prints what was sealed.
pub(super) fn print_changes(out: &mut dyn Write, changes: &[Change], format: OutputFormat) -> io::Result<()> {
    if format == OutputFormat::Json {
        return output::json(out, &changes_as_json(changes));
    }
    let mut table = Table::new(&["OPERATION", "DONE", "PATH"]);
    for change in changes {
        table.row([
            change.operation.to_owned(),
            change.done.to_owned(),
            change.path.clone(),
        ]);
    }
    table.print(out)
}

pub(super) fn changes_as_json(changes: &[Change]) -> Value {
    let change =
        |change: &Change| json!({ "operation": change.operation, "done": change.done, "path": change.path });
    changes.iter().map(change).collect()
}

fn print_operations(out: &mut dyn Write, format: OutputFormat) -> io::Result<()> {
    if format == OutputFormat::Json {
        let operations = OPERATIONS.iter().map(|operation| {
            let paths = operation.paths();
            let paths = paths.map(|(path, done)| json!({ "path": path, "done": done }));
            json!({
                "name": operation.name,
                "description": operation.description,
                "default": operation.by_default,
                "paths": paths.collect::<Value>(),
            })
        });
        return output::json(out, &operations.collect::<Value>());
    }
    let mut table = Table::new(&["OPERATION", "DEFAULT", "WHAT IT TAKES AWAY"]);
    for operation in OPERATIONS {
        let default = if operation.by_default { "yes" } else { "no" };
        table.row([
            operation.name.to_owned(),
            default.to_owned(),
            operation.description.to_owned(),
        ]);
    }
    table.print(out)
}

/// Find on a disk what must be unique or private
///
/// Finds all that seal takes away, with the operations that are not done by default, and also private keys by their content, in homes,
/// /etc, /opt, /srv, /var/lib and /usr/local/etc, and setuid programs where users keep files. Only the root filesystem is looked into, which has to
/// be of ext4; others, such as an EFI system partition's FAT, are named. Nothing is changed. The exit code is 1 where something was found.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template lint debian-12
  imgtool template lint disk.qcow2#2 --disable logs,package-cache
  imgtool template lint --output json web-1")]
pub(super) struct LintArgs {
    /// Do not look for what an operation takes away; more than one can be given
    #[arg(long, value_name = "OPERATION", value_delimiter = ',')]
    disable: Vec<String>,
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    open: OpenArgs,
    /// The template, or a machine, an image, or a partition of the disk in one
    #[arg(value_name = "TEMPLATE|FILE")]
    disk: PathBuf,
}

impl LintArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let but_for = seal::named(&self.disable)?;
        let name = name_of(&self.open.store, &self.disk, true)?;
        let (_chain, disk) = open(&self.open, &name, self.format.as_deref(), Access::READ)?;
        let Some(root) = Root::find(&disk)? else {
            let error = Error::invalid("the disk has no root filesystem of ext4 to look at");
            return Err(error.with_path(&name.path).into());
        };
        let findings = seal::lint(&root, &but_for).map_err(|error| error.with_path(&name.path))?;
        tell(&seal::not_looked_into(&disk, false)?);
        if self.output == OutputFormat::Json {
            output::json(out, &findings.iter().map(as_json).collect::<Value>())?;
        } else {
            for finding in &findings {
                writeln!(out, "{}", told(finding))?;
            }
        }
        Ok(u8::from(!findings.is_empty()))
    }
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "path": finding.path,
        "reason": finding.reason,
        "operation": finding.operation,
    })
}

/// What was found in a line, with the operation that sees to it.
pub(super) fn told(finding: &Finding) -> String {
    let operation = finding.operation.map(|name| format!(" ({name})"));
    format!(
        "{}: {}{}",
        finding.path,
        finding.reason,
        operation.unwrap_or_default()
    )
}

/// What is named: a file that is there, or a machine or, if they may be, a template of the store.
fn name_of(store: &StoreArgs, text: &Path, templates: bool) -> Result<ImageName> {
    let name = ImageName::parse(text)?;
    if name.path.symlink_metadata().is_ok() {
        return Ok(name);
    }
    let (store, text) = (store.open()?, text.to_string_lossy());
    let (bare, partition) = text
        .split_once('#')
        .map_or((&*text, None), |(bare, part)| (bare, Some(part)));
    let image = match store.instance(bare) {
        Ok(instance) => instance.image(),
        Err(_) if templates => store.template(bare)?.image(),
        Err(error) => return Err(error),
    };
    match partition {
        Some(partition) => ImageName::parse(Path::new(&format!("{}#{partition}", image.display()))),
        None => ImageName::parse(&image),
    }
}

fn open(
    arguments: &OpenArgs,
    name: &ImageName,
    format: Option<&str>,
    access: Access,
) -> Result<(Chain, Arc<dyn BlockDevice>)> {
    let opening = Opening {
        nested: arguments.nested,
        io: arguments.io.into(),
        access,
        direct: false,
    };
    let chain = opening.chain_to_change(&name.path, format)?;
    let disk = name.on(chain.device())?;
    Ok((chain, disk))
}
