//! `imgtool template build`: make a template as a recipe says.

use std::io::Write;
use std::path::PathBuf;

use block::Result;
use clap::Args;
use machines::recipe::{BuildOptions, Recipe};
use machines::store::Template;
use ops::Control;

use crate::arguments::WatchArgs;
use crate::commands::Outcome;
use crate::commands::mkfs::epoch;
use crate::interrupt;
use crate::output::OutputFormat;
use crate::stores::{MachineArgs, StoreArgs};
use crate::watch::Watch;

/// Make a template as a recipe says
///
/// RECIPE is a file in TOML, or the name of one that comes with the program: imgtool template recipes lists those. It says what the system
/// is made of (packages of Debian, a tar archive, a directory, a container image, another disk), what files, users and services
/// it has, and how its disk and its machines are. Nothing is mounted, and root is not needed. A build that fails or is interrupted
/// leaves nothing.
///
/// A number of seconds in the environment variable `SOURCE_DATE_EPOCH` is the time of creation, and no time in the filesystem is later.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template build tiny
  imgtool template build debian-12 --alias base --memory 2G
  imgtool template build ./web.toml --alias web-2024 --move
  imgtool template recipes --show debian-12 >mine.toml")]
pub(super) struct BuildArgs {
    /// What it is to be called [default: as the recipe, where no template is called so yet]
    #[arg(short, long)]
    alias: Option<String>,
    /// Take the alias away from another template that has it
    #[arg(long = "move")]
    moved: bool,
    /// Where packages are taken from, in the place of the recipe's mirror; several may be given
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
    #[command(flatten)]
    machine: MachineArgs,
    /// How to print what was made
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// A file, or the name of a recipe that comes with the program
    recipe: PathBuf,
}

impl BuildArgs {
    pub(super) fn run(self, out: &mut dyn Write) -> Outcome {
        let template = self.build()?;
        if !self.watch.quiet {
            super::show::print(out, &template, self.output)?;
        }
        Ok(0)
    }

    fn build(&self) -> Result<Template> {
        let recipe = Recipe::load(&self.recipe)?;
        let named = || {
            let name = self.recipe.file_name()?.to_str()?;
            name.strip_suffix(".toml").unwrap_or(name).parse().ok()
        };
        let store = self.store.open()?;
        let options = BuildOptions {
            alias: match &self.alias {
                Some(alias) => Some(alias.parse()?),
                None => named(),
            },
            move_alias: self.moved,
            machine: self.machine.template_settings()?,
            mirror: self.mirror.clone(),
            epoch: epoch()?.map(|time| time.secs),
        };
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let made = store.build(&recipe, &options, &Control::new(interrupt::watch()?, &report));
        watch.finish();
        made
    }
}
