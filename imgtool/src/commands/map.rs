//! `imgtool map`: what of a disk is where.

use std::io::Write;
use std::path::PathBuf;

use block::chain::Chain;
use block::{Access, Error, Extent, ExtentState, escape};
use clap::Args;
use ops::Extents;

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::failure::Failure;
use crate::images::Opening;
use crate::output::OutputFormat;
use crate::{interrupt, size};

/// Tell what of a disk is data, and in which file of a chain it lies
///
/// For people, only data is listed, with its place in its file. `--output json` lists everything.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool map clone.qcow2
  imgtool map --output json disk.qcow2
  imgtool map --start-offset 1G --max-length 64M disk.qcow2")]
pub(crate) struct MapArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Where on the disk to start
    #[arg(short, long, value_name = "OFFSET", default_value = "0")]
    start_offset: String,
    /// How much of the disk to look at [default: all]
    #[arg(short = 'l', long, value_name = "LENGTH")]
    max_length: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// Read an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
}

impl MapArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let start = size::parse(&self.start_offset)?;
        let len = self
            .max_length
            .as_deref()
            .map(size::parse)
            .transpose()?
            .unwrap_or(u64::MAX);
        let cancel = interrupt::watch()?;
        let opening = Opening {
            nested: self.open.nested,
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            direct: false,
        };
        let chain = opening.chain(&self.file, self.format.as_deref())?;
        let extents = Extents::of(&**chain.active(), start..start.saturating_add(len)).map(|extent| {
            cancel.check()?;
            extent
        });
        match self.output {
            OutputFormat::Human => table(out, &chain, extents),
            OutputFormat::Json => json(out, extents),
        }
    }
}

/// A row for each run of data.
fn table(
    out: &mut dyn Write,
    chain: &Chain,
    extents: impl Iterator<Item = block::Result<Extent>>,
) -> Outcome {
    writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
    for extent in extents {
        let extent = extent?;
        let layer = &chain.layers()[extent.depth as usize];
        let file = layer
            .data_file
            .as_ref()
            .and_then(|file| file.path())
            .unwrap_or(&layer.path);
        match (extent.state, extent.host) {
            (ExtentState::Zero | ExtentState::Hole, _) => {}
            (ExtentState::Data, Some(host)) => {
                let [offset, len, host] = [extent.offset, extent.len, host].map(hexadecimal);
                let file = file.to_string_lossy();
                writeln!(out, "{offset:<16}{len:<16}{host:<16}{}", escape(&file))?;
            }
            (ExtentState::Data | ExtentState::Compressed, _) => {
                let message = "it holds compressed clusters, which lie in no file as they are";
                let error = Error::unsupported(message)
                    .with_path(&layer.path)
                    .with_offset(extent.offset);
                return Err(error.with_hint("list them with --output json").into());
            }
        }
    }
    Ok(0)
}

/// As C's `%#x` has it: zero has no prefix.
fn hexadecimal(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}

/// An object for each run, one a line.
fn json(out: &mut dyn Write, extents: impl Iterator<Item = block::Result<Extent>>) -> Outcome {
    write!(out, "[")?;
    let mut between = "";
    for extent in extents {
        let extent = match extent {
            Ok(extent) => extent,
            Err(error) => {
                out.flush()?;
                return Err(Failure::from(error));
            }
        };
        let zero = extent.state.reads_as_zero();
        write!(
            out,
            "{between}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {zero}, \
             \"data\": {}, \"compressed\": {}",
            extent.offset,
            extent.len,
            extent.depth,
            extent.state != ExtentState::Hole,
            !zero,
            extent.state == ExtentState::Compressed,
        )?;
        if let Some(host) = extent.host {
            write!(out, ", \"offset\": {host}")?;
        }
        write!(out, "}}")?;
        between = ",\n";
    }
    writeln!(out, "]")?;
    Ok(0)
}
