//! `qemu-img measure`.

use block::SnapshotSelector;
use ops::{Control, SparseChain};
use qcow2::Measure;

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Image};
use super::json::{Json, Object};
use super::node::Flags;
use super::refusal::Refusal;
use super::secret::Secrets;
use super::{Outcome, encrypted, new_image, number, option_list, output_format, pages};
use crate::commands::measure::bitmaps_size;
use crate::formats::NewImage;
use crate::sandbox::{self, Names};

#[derive(Debug, Default)]
struct Wanted {
    format: Option<String>,
    out_format: Option<String>,
    options: Option<String>,
    snapshot: Option<SnapshotSelector>,
    size: Option<u64>,
    image_opts: bool,
    json: bool,
    flags: Flags,
    secrets: Secrets,
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::default();
    let mut options = Options::new(&pages::MEASURE, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::MEASURE),
            "f" => wanted.format = Some(value),
            "l" => {
                wanted.snapshot = Some(super::snapshot_param(&value)?);
            }
            "o" => option_list::accumulate(&mut wanted.options, &value)?,
            "O" => wanted.out_format = Some(value),
            "U" => wanted.flags.force_share = true,
            "image-opts" => wanted.image_opts = true,
            "output" => wanted.json = output_format(&value).map_err(Refusal::without_hint)?,
            "s" => wanted.size = Some(number::disk_size("image size", &value)?),
            _ => wanted.secrets.add(console, &value)?,
        }
    }
    let operands = options.operands();
    let file = match &*operands {
        [] => None,
        [file] => Some(&**file),
        _ => return Err(Refusal::new("At most one filename argument is allowed.")),
    };
    wanted.check(file)?;
    let format = wanted.out_format.as_deref().unwrap_or("raw");
    if option_list::asks_for_help(wanted.options.as_deref()) {
        console.print(new_image::help(format, file)?)?;
        return Ok(0);
    }
    let (measure, bitmaps) = wanted.measure(file, format)?;
    console.print(shown(measure, bitmaps, wanted.json))?;
    Ok(0)
}

impl Wanted {
    /// Fails for arguments that do not go together.
    fn check(&self, file: Option<&str>) -> Result<(), Refusal> {
        let of_file = self.image_opts || self.format.is_some() || self.snapshot.is_some();
        let wrong = match file {
            None if of_file => "--image-opts, -f, and -l require a filename argument.",
            None if self.size.is_none() => "Either --size N or one filename must be specified.",
            Some(_) if self.size.is_some() => "--size N cannot be used together with a filename.",
            _ => return Ok(()),
        };
        Err(Refusal::new(wrong))
    }

    /// Measures; and how many bytes the bitmaps of an image would take, if both formats know any.
    fn measure(&self, file: Option<&str>, format: &str) -> Result<(Measure, Option<u64>), Refusal> {
        let source = match file {
            Some(file) => {
                let source = self.open(file)?;
                sandbox::confine(Names::None, false);
                Some(source)
            }
            None => None,
        };
        if format == "file" {
            let text = format!("Block driver '{format}' does not support size measurement");
            return Err(Refusal::new(text));
        }
        let mut options = new_image::options_of(format, true)?;
        options
            .parse(self.options.as_deref().unwrap_or_default())
            .map_err(|refusal| refusal.with_more(format!("Invalid options for file format '{format}'")))?;
        let size = source
            .as_ref()
            .map_or(self.size, |image| Some(image.device().size()));
        options.set("size", &size.unwrap_or_default().to_string())?;
        if format == "luks" {
            return Ok((encrypted::luks_measure(&options, &self.secrets)?, None));
        }
        let new = new_image::image(format, &options, &self.secrets).map_err(without_format)?;
        let measured = measure(&new, source.as_ref()).map_err(|error| image::engine_words(&error))?;
        let bitmaps = match (&source, new.qcow2()) {
            (Some(image), Some(options)) if options.version >= qcow2::Version::V3 => {
                bitmaps_size(&image.chain, &options).map_err(|error| image::engine_words(&error))?
            }
            _ => None,
        };
        Ok((measured, bitmaps))
    }

    fn open(&self, file: &str) -> Result<Image, Refusal> {
        let spec = super::spec(file, self.format.as_deref(), self.image_opts)?;
        match &self.snapshot {
            None => image::open(&spec, self.flags),
            Some(snapshot) => image::open_snapshot(&spec, self.flags, Some(snapshot)),
        }
    }
}

/// There is no file here that the size could be too large for.
fn without_format(refusal: Refusal) -> Refusal {
    match refusal.text().split_once(" for file format 'qcow2'") {
        Some((too_large, hint)) => Refusal::new(format!("{too_large}{hint}")),
        None => refusal,
    }
}

fn measure(new: &NewImage, source: Option<&Image>) -> block::Result<Measure> {
    let Some(options) = new.qcow2() else {
        return Ok(Measure {
            required: new.disk_size(),
            fully_allocated: new.disk_size(),
        });
    };
    let clusters = match source {
        None => None,
        Some(image) => {
            let disk = SparseChain::device(&image.chain)?;
            let control = Control::new(ops::Cancel::new(), &|_| {});
            Some(ops::data_units(&*disk, 1 << options.cluster_bits, &control)?)
        }
    };
    qcow2::measure(&options, clusters)
}

fn shown(measure: Measure, bitmaps: Option<u64>, json: bool) -> String {
    if json {
        let mut object = Object::default();
        object.insert_some("bitmaps", bitmaps);
        object.insert("required", measure.required);
        object.insert("fully-allocated", measure.fully_allocated);
        return Json::from(object).pretty();
    }
    let mut text = format!(
        "required size: {}\nfully allocated size: {}\n",
        measure.required, measure.fully_allocated
    );
    if let Some(bitmaps) = bitmaps {
        text += &format!("bitmaps size: {bitmaps}\n");
    }
    text
}
