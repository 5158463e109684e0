//! `imgtool measure`: the size that an image would need.

use std::io::Write;
use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{Access, Error, Result};
use clap::Args;
use ops::{Control, SparseChain};
use qcow2::{Bitmap, CreateOptions, Header, Version};
use serde_json::{Map, Value};

use super::Outcome;
use crate::arguments::{OpenArgs, SandboxArgs, refused};
use crate::formats::NewImage;
use crate::image_name::ImageName;
use crate::images::Opening;
use crate::option_list::OptionList;
use crate::output::{self, OutputFormat};
use crate::sandbox::Names;
use crate::{interrupt, size};

/// Tell how large the file of a new image would be, for an image converted or a size
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool measure -O qcow2 disk.raw
  imgtool measure -O qcow2 -o cluster_size=1M --size 10G
  imgtool measure -O qcow2 --output json disk.raw")]
pub(crate) struct MeasureArgs {
    /// Format of the new image
    #[arg(short = 'O', long, default_value = "raw", value_name = "FORMAT")]
    target_format: String,
    /// Options of that format, as key=value,key=value; `help` lists them
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Size of the disk, instead of an image to convert
    #[arg(short, long, value_name = "SIZE", conflicts_with = "file")]
    size: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    #[arg(short = 'l', hide = true, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Read an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// The image to convert
    #[arg(required_unless_present_any = ["size", "options"])]
    file: Option<PathBuf>,
}

impl MeasureArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        if self.snapshot.is_some() {
            return Err(refused("-l (internal snapshots)").into());
        }
        let options = OptionList::parse(&self.options)?;
        if options.help {
            NewImage::print_options(&self.target_format, out)??;
            return Ok(0);
        }
        let mut image = NewImage::parse(&self.target_format, options, None, None)?;
        let (measure, bitmaps) = match (&self.size, &self.file) {
            (Some(text), _) => {
                image.size = Some(size::parse_disk(text)?);
                (measure(&image, None)?, None)
            }
            (None, Some(path)) => self.measure_file(path, image)?,
            (None, None) => {
                let hint = "imgtool measure -O qcow2 FILE, or --size SIZE";
                return Err(Error::invalid("there is nothing to measure")
                    .with_hint(hint)
                    .into());
            }
        };
        match self.output {
            OutputFormat::Human => {
                writeln!(out, "required size: {}", measure.required)?;
                writeln!(out, "fully allocated size: {}", measure.fully_allocated)?;
                if let Some(bitmaps) = bitmaps {
                    writeln!(out, "bitmaps size: {bitmaps}")?;
                }
            }
            OutputFormat::Json => {
                let mut object = Map::new();
                if let Some(bitmaps) = bitmaps {
                    object.insert("bitmaps".to_owned(), bitmaps.into());
                }
                object.insert("required".to_owned(), measure.required.into());
                object.insert("fully-allocated".to_owned(), measure.fully_allocated.into());
                output::json(out, &Value::Object(object))?;
            }
        }
        Ok(0)
    }

    /// Measures for an image; and how many bytes its bitmaps would take, if both formats know any.
    fn measure_file(&self, path: &Path, mut image: NewImage) -> Result<(qcow2::Measure, Option<u64>)> {
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            direct: false,
        };
        let name = ImageName::parse(path)?;
        let chain = opening.chain(&name.path, self.format.as_deref())?;
        self.sandbox.confine(Names::None, self.open.io);
        let cancel = interrupt::watch()?;
        let disk = name.on(SparseChain::device(&chain)?)?;
        image.size = Some(disk.size());
        let unit = image.qcow2().map(|options| 1 << options.cluster_bits);
        let clusters = match unit {
            Some(unit) => Some(ops::data_units(&*disk, unit, &Control::new(cancel, &|_| {}))?),
            None => None,
        };
        let bitmaps = match image.qcow2() {
            Some(options) if options.version >= Version::V3 && name.partition.is_none() => {
                bitmaps_size(&chain, &options)?
            }
            _ => None,
        };
        Ok((measure(&image, clusters)?, bitmaps))
    }
}

/// Bytes that the bitmaps of an image would take in another, if it is in a format that knows any.
pub(crate) fn bitmaps_size(chain: &Chain, options: &CreateOptions) -> Result<Option<u64>> {
    let layer = &chain.layers()[0];
    if layer.format != "qcow2" {
        return Ok(None);
    }
    let header = Header::read(&*layer.storage)?;
    if header.version < Version::V3 {
        return Ok(None);
    }
    let bitmaps = Bitmap::list(&*layer.storage, &header)?;
    let size = qcow2::measure_bitmaps(&bitmaps, header.size, options.cluster_bits);
    Ok(Some(size))
}

fn measure(image: &NewImage, clusters: Option<u64>) -> Result<qcow2::Measure> {
    if let Some(options) = image.qcow2() {
        return qcow2::measure(&options, clusters);
    }
    let size = image.file_size().unwrap_or(u64::MAX);
    Ok(qcow2::Measure {
        required: size,
        fully_allocated: size,
    })
}
