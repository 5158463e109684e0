//! `imgtool config`: the settings of a machine.

use std::io::Write;

use block::Error;
use clap::{Args, Subcommand};
use serde_json::json;

use super::Outcome;
use crate::output::{self, OutputFormat, note};
use crate::stores::{MachineArgs, StoreArgs};
use crate::table;

/// Show and change the settings of a machine
///
/// What a machine does not say itself, its profiles say (the later ones win), and then its template. Profiles are files in the store:
/// profiles/NAME.toml, with settings as this command shows them.
#[derive(Debug, Args)]
#[command(
    subcommand_required = true,
    after_help = "Examples:
  imgtool config show --expanded web-1
  imgtool config set web-1 --memory 2G --net user,fwd=2222:22"
)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(ShowArgs),
    Set(SetArgs),
}

impl ConfigArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        match self.command {
            Command::Show(arguments) => arguments.run(out),
            Command::Set(arguments) => arguments.run(),
        }
    }
}

/// Show the settings of a machine
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool config show web-1
  imgtool config show --expanded web-1")]
struct ShowArgs {
    /// With what comes from its template and its profiles
    #[arg(long)]
    expanded: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
    /// The machine
    name: String,
}

impl ShowArgs {
    fn run(self, out: &mut dyn Write) -> Outcome {
        let store = self.store.open()?;
        let instance = store.instance(&self.name)?;
        let (settings, missing) = if self.expanded {
            store.known_settings(&instance)
        } else {
            (instance.document.machine, Vec::new())
        };
        if settings.is_empty() && self.output == OutputFormat::Human && !self.expanded {
            note("it says nothing itself; with --expanded, what its template and its profiles say is shown");
        }
        match self.output {
            OutputFormat::Human => write!(out, "{}", settings.to_toml()?)?,
            OutputFormat::Json => output::json(out, &json!(settings))?,
        }
        Ok(table::tell_broken(out, &missing)?)
    }
}

/// Change settings of a machine
///
/// They hold from when it is started the next time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool config set web-1 --cpus 4 --memory 2G")]
struct SetArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// The profiles, instead of those that it has; none is ''
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Vec<String>>,
    #[command(flatten)]
    store: StoreArgs,
    /// The machine
    name: String,
}

impl SetArgs {
    fn run(self) -> Outcome {
        let settings = self.machine.settings()?;
        if settings.is_empty() && self.profile.is_none() {
            let error = Error::invalid("there is nothing to set");
            return Err(error
                .with_hint("such as --memory 2G; --help has all that there is")
                .into());
        }
        let store = self.store.open()?;
        let instance = store.instance(&self.name)?;
        let mut document = instance.document.clone();
        document.machine = document.machine.then(settings);
        if let Some(profiles) = &self.profile {
            let profiles = profiles.iter().filter(|name| !name.is_empty());
            document.profiles = profiles.map(|name| name.parse()).collect::<block::Result<_>>()?;
        }
        store.redefine(&instance, document)?;
        Ok(0)
    }
}
