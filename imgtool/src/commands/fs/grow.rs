//! `imgtool fs grow`: a filesystem as large as its image or partition.

use std::io::Write;

use block::Result;
use clap::Args;
use serde_json::json;

use super::Outcome;
use super::write::TargetArgs;
use crate::output::{self, OutputFormat, human_size};
use crate::size;

/// Grow a filesystem to the size of its image or partition
///
/// Little is written, whatever the sizes are: new parts are initialised as they are used. The image is made larger by
/// imgtool resize before, and a partition by imgtool partition grow --last.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs grow disk.qcow2#2
  imgtool fs grow --size 20G root.ext4")]
pub(super) struct GrowArgs {
    /// Its new size, at most [default: all there is]
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    target: TargetArgs,
}

impl GrowArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let wanted = self.size.as_deref().map(size::parse).transpose()?;
        let mut target = self.target.open()?;
        let before = target.size();
        let wanted = wanted.unwrap_or(target.disk_size());
        let grown: Result<()> = target.editor.grow(wanted);
        let after = target.size();
        target.finish(grown)?;
        match self.target.output {
            OutputFormat::Human if self.quiet => {}
            OutputFormat::Human if after == before => writeln!(out, "{} as before", human_size(after))?,
            OutputFormat::Human => writeln!(out, "{} after {}", human_size(after), human_size(before))?,
            OutputFormat::Json => {
                output::json(out, &json!({ "size-before": before, "size": after }))?;
            }
        }
        Ok(0)
    }
}
