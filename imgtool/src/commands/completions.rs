//! `imgtool completions`: completion scripts for shells.

use std::io::Write;

use clap::Args;
use clap_complete::Shell;

use super::Outcome;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool completions bash > /etc/bash_completion.d/imgtool
  imgtool completions zsh > ~/.zfunc/_imgtool")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        // Collected first: the generator knows no errors.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::command(), "imgtool", &mut script);
        out.write_all(&script)?;
        Ok(0)
    }
}
