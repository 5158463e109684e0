//! `imgtool resize`: change the size of a disk.

use std::io::Write;
use std::path::PathBuf;

use block::{Access, Error, Resize};
use clap::Args;

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::formats;
use crate::images::Opening;
use crate::size::NewSize;

/// Change the size of a disk
///
/// What is added reads as zeros; partitions and file systems on the disk stay as they are. Before a disk is made
/// smaller, they must be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool resize disk.qcow2 20G
  imgtool resize disk.qcow2 +5G
  imgtool resize --shrink disk.qcow2 -5G")]
pub(crate) struct ResizeArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Allow the disk to become smaller: what lies beyond its new end is lost
    #[arg(long)]
    shrink: bool,
    /// What is laid out of the part that is added: off, metadata, falloc or full
    #[arg(long, value_name = "MODE")]
    preallocation: Option<String>,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
    /// The new size, or +SIZE to add and -SIZE to take away
    size: String,
}

impl ResizeArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let named = |error: Error| error.with_path(&self.file);
        let size = NewSize::parse(&self.size).map_err(named)?;
        let preallocation = self
            .preallocation
            .as_deref()
            .map(formats::preallocation)
            .transpose()?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access::WRITE,
            direct: false,
        };
        let chain = opening.chain(&self.file, self.format.as_deref())?;
        let old = chain.size();
        let new = size.of(old).map_err(named)?;
        if new < old && !self.shrink {
            let message = format!(
                "the disk has {old} bytes, and {new} would cut off its last {}",
                old - new
            );
            let hint = "if nothing that is needed lies there, allow it with --shrink";
            return Err(named(Error::invalid(message)).with_hint(hint).into());
        }
        if new < old && preallocation.is_some_and(|mode| mode != block::Preallocation::Off) {
            return Err(named(Error::invalid(
                "nothing can be preallocated when a disk becomes smaller",
            ))
            .into());
        }
        let how = Resize {
            shrink: self.shrink,
            preallocation: preallocation.unwrap_or_default(),
        };
        chain.resize(new, how)?;
        chain.settle()?;
        if !self.quiet {
            writeln!(out, "Image resized.")?;
        }
        Ok(0)
    }
}
