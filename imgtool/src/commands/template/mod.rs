//! `imgtool template`: disks that machines are cloned from.

mod build;
mod export;
mod import;
mod list;
mod names;
mod publish;
mod recipes;
mod seal;
mod show;
mod upkeep;

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use machines::export::Form;

use super::Outcome;

pub(super) use show::{hidden, print_settings, short_time};

/// What templates come as and become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FormArg {
    /// A disk image in qcow2 format.
    #[default]
    Qcow2,
    /// A disk as a raw image.
    Raw,
    /// The tree of a root filesystem as a tar archive: for containers, and for mkfs.
    Tar,
    /// A container image of such a tree.
    Oci,
    /// A virtual machine's image for Incus and LXD.
    Incus,
}

impl From<FormArg> for Form {
    fn from(form: FormArg) -> Self {
        match form {
            FormArg::Qcow2 => Self::Qcow2,
            FormArg::Raw => Self::Raw,
            FormArg::Tar => Self::Tar,
            FormArg::Oci => Self::Oci,
            FormArg::Incus => Self::Incus,
        }
    }
}

/// Keep disks as templates that machines are cloned from
///
/// A template is an image that does not change any more, and what is known of it: the system, how it boots, and what machines of
/// it are like. Its fingerprint is the SHA-256 of the image; aliases are names that people give it. Where a template is to be
/// named, an alias will do, or the first digits of the fingerprint, four at least.
#[derive(Debug, Args)]
#[command(
    subcommand_required = true,
    after_help = "Examples:
  imgtool template build tiny
  imgtool template import disk.qcow2 --alias debian-12
  imgtool template ls
  imgtool template publish web-1 --alias web
  imgtool clone web-1 --from debian-12"
)]
pub(crate) struct TemplateArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(Box<build::BuildArgs>),
    Recipes(recipes::RecipesArgs),
    Import(Box<import::ImportArgs>),
    Export(export::ExportArgs),
    Publish(Box<publish::PublishArgs>),
    Seal(Box<seal::SealArgs>),
    Lint(seal::LintArgs),
    Ls(list::ListArgs),
    Show(show::ShowArgs),
    Tag(names::TagArgs),
    Untag(names::UntagArgs),
    Rm(names::RemoveArgs),
    Verify(upkeep::VerifyArgs),
    Gc(upkeep::CollectArgs),
}

impl TemplateArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        match self.command {
            Command::Build(arguments) => arguments.run(out),
            Command::Recipes(arguments) => arguments.run(out),
            Command::Import(arguments) => arguments.run(out),
            Command::Export(arguments) => arguments.run(),
            Command::Publish(arguments) => arguments.run(out),
            Command::Seal(arguments) => arguments.run(out),
            Command::Lint(arguments) => arguments.run(out),
            Command::Ls(arguments) => arguments.run(out),
            Command::Show(arguments) => arguments.run(out),
            Command::Tag(arguments) => arguments.run(),
            Command::Untag(arguments) => arguments.run(),
            Command::Rm(arguments) => arguments.run(),
            Command::Verify(arguments) => arguments.run(out),
            Command::Gc(arguments) => arguments.run(out),
        }
    }
}
