//! `imgtool clone`: machines that are copy-on-write clones of a template.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use block::{BlockDevice, Error, Result, escape, size};
use clap::Args;
use machines::Seed;
use machines::personalise::{has_system, personalise};
use machines::store::{Instance, InstanceName, Mac, NewInstances, Store};
use ops::Control;
use serde_json::Value;

use super::Outcome;
use super::instances::as_json;
use crate::arguments::WatchArgs;
use crate::commands::personal::PersonalArgs;
use crate::interrupt;
use crate::output::{self, OutputFormat, note};
use crate::stores::{MachineArgs, StoreArgs, tell_broken_keys};
use crate::watch::Watch;

/// Make machines that are copy-on-write clones of a template
///
/// Each gets a disk that starts as the template's and takes no room for what it shares with that, a UUID and a network address
/// of its own. Where the disk has a root filesystem of ext4, files in it make the clone a machine of its own: its name in /etc/hostname
/// and /etc/hosts, a new machine-id, a new host key for sshd, and what the options ask for; and the filesystem grows with the disk.
/// The template stays as it is, and cannot be removed while a clone of it is there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool clone web --from debian-12 --size 20G
  imgtool clone web --from debian-12 --count 3 --memory 2G     makes web-1, web-2 and web-3
  imgtool clone db --from debian-12 --ssh-key ~/.ssh/id_ed25519.pub --user admin --ip 10.0.0.5/24,gw=10.0.0.1
  imgtool clone db --from debian-12 --full --profile large")]
pub(crate) struct CloneArgs {
    /// The template: its alias, or the first digits of its fingerprint, four at least
    #[arg(long, value_name = "TEMPLATE")]
    from: String,
    /// How many, which are then called NAME-1, NAME-2, ...
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: Option<u32>,
    /// Size of each disk, where it is to be longer than the template's
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// A profile whose settings they have; more than one can be given, and later ones win
    #[arg(long, value_name = "PROFILE")]
    profile: Vec<String>,
    /// The network address of a single machine [default: one that follows from its UUID]
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<String>,
    /// Copy the whole disk, so that it stands alone
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    personal: PersonalArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// How to print what was made
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// What it is to be called
    name: String,
}

impl CloneArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let made = self.make()?;
        if self.watch.quiet {
            return Ok(0);
        }
        if self.output == OutputFormat::Json {
            output::json(out, &made.iter().map(as_json).collect::<Value>())?;
            return Ok(0);
        }
        for instance in &made {
            let image = instance.image();
            writeln!(
                out,
                "{}: clone of {}, {}, {}",
                instance.name,
                escape(&self.from),
                instance.mac(),
                escape(&image.to_string_lossy())
            )?;
        }
        Ok(0)
    }

    fn make(&self) -> Result<Vec<Instance>> {
        let new = NewInstances {
            names: self.names()?,
            size: self.size.as_deref().map(size::parse_disk).transpose()?,
            profiles: self
                .profile
                .iter()
                .map(|name| name.parse())
                .collect::<Result<_>>()?,
            machine: self.machine.settings()?,
            mac: self.mac.as_deref().map(str::parse::<Mac>).transpose()?,
            full: self.full,
            seed: None,
            grow: false,
        };
        let store = self.store.open()?;
        tell_broken_keys(&store);
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(interrupt::watch()?, &report);
        let made = make(&store, &self.from, &new, &self.personal, &control);
        watch.finish();
        made
    }

    fn names(&self) -> Result<Vec<InstanceName>> {
        let Some(count) = self.count else {
            return Ok(vec![self.name.parse()?]);
        };
        let numbered = |number| format!("{}-{number}", self.name).parse();
        (1..=count)
            .map(numbered)
            .collect::<Result<_>>()
            .map_err(|error: Error| {
                error.with_hint("a name with its number is a hostname: up to 63 of a-z, 0-9 and -")
            })
    }
}

/// Makes machines of the template `from`.
pub(super) fn make(
    store: &Store,
    from: &str,
    new: &NewInstances,
    personal: &PersonalArgs,
    control: &Control<'_>,
) -> Result<Vec<Instance>> {
    let template = store.template(from)?;
    let personal = personal.read(&template, new)?;
    let new = NewInstances {
        seed: personal.seed.clone(),
        grow: !personal.as_is && new.size.is_some_and(|size| size > template.document.disk_size),
        ..new.clone()
    };
    let foreign = AtomicBool::new(false);
    // All of them have the same system.
    let reads_seed = OnceLock::new();
    let own = |instance: &Instance, disk: &Arc<dyn BlockDevice>| {
        if personal.seed.is_some() {
            reads_seed.get_or_init(|| Seed::has_reader(disk));
        }
        if personal.as_is {
            return Ok(());
        }
        if !personal.is_asked && !has_system(disk)? {
            foreign.store(true, Ordering::Relaxed);
            return Ok(());
        }
        personalise(disk, &personal.identity(instance)?, true)
    };
    let made = store.clone_template(&template, &new, &own, control)?;
    if reads_seed.into_inner().flatten() == Some(false) {
        note(
            "the template has no cloud-init, and nothing in it reads the seed: no hostname, user, key or address is set by it; \
             without --seed nocloud, imgtool changes the files itself",
        );
    }
    if foreign.into_inner() {
        note("the disk has no root filesystem of ext4 with a system in it: it is as in the template");
    }
    Ok(made)
}
