//! `imgtool man`: manual pages.

use std::path::PathBuf;

use block::Error;
use clap::Args;

use super::Outcome;
use crate::stores::refuse_target;

/// Write manual pages, one for each command, into a directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The directory
    directory: PathBuf,
}

impl ManArgs {
    pub(crate) fn run(self) -> Outcome {
        // All are alike in where they are.
        refuse_target(&self.directory.join("imgtool.1"))?;
        clap_mangen::generate_to(crate::command(), &self.directory)
            .map_err(|error| Error::io("write manual pages", error).with_path(&self.directory))?;
        Ok(0)
    }
}
