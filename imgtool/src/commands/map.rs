//! `imgtool map`: what of a disk is where.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{Access, Error, Extent, ExtentState, escape};
use clap::Args;
use ops::{Extents, HostHoles};

use super::Outcome;
use crate::arguments::{OpenArgs, SandboxArgs};
use crate::failure::Failure;
use crate::image_name::ImageName;
use crate::images::{Opening, directory_of};
use crate::output::OutputFormat;
use crate::picture::{self, Part, Survey};
use crate::sandbox::Names;
use crate::stores::refuse_target;
use crate::target::is_one_of;
use crate::{interrupt, size};

/// Tell what of a disk is data, and in which file of a chain it lies
///
/// For people, only data is listed, with its place in its file. `--output json` lists everything.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool map clone.qcow2
  imgtool map --output json disk.qcow2
  imgtool map --bar clone.qcow2
  imgtool map --svg clone.svg clone.qcow2
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
    /// Draw a picture instead, for a browser: where data is on the disk, in each layer and in each file; - writes it to
    /// standard output
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    svg: Option<PathBuf>,
    /// Draw bars instead, for a terminal: where data is on the disk and in each layer
    #[arg(long, conflicts_with = "output")]
    bar: bool,
    /// Read an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// The image
    file: PathBuf,
}

impl MapArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let start = size::of("-s", &self.start_offset)?;
        let len = self
            .max_length
            .as_deref()
            .map(|text| size::of("-l", text))
            .transpose()?
            .unwrap_or(u64::MAX);
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            direct: false,
        };
        let name = ImageName::parse(&self.file)?;
        let chain = opening.chain(&name.path, self.format.as_deref())?;
        self.confine();
        let cancel = interrupt::watch()?;
        if self.svg.is_some() || self.bar {
            let part = picture_part(&name, &chain, start, len)?;
            let survey = Survey::of(&self.file, &chain, part, &cancel)?;
            if let Some(path) = &self.svg {
                write_picture(path, &picture::draw(&survey), &chain, out)?;
            }
            if self.bar {
                picture::print_bars(out, &survey)?;
            }
            return Ok(0);
        }
        let disk = name.on(chain.device())?;
        let holes = HostHoles::of(&chain)?;
        let mut rows = Rows::new(out, &chain, self.output)?;
        for extent in Extents::of(&*disk, start..start.saturating_add(len)) {
            let mut rest = extent?;
            loop {
                cancel.check()?;
                let (part, hole) = holes.look(rest)?;
                rows.row(&part, hole)?;
                if part.end() == rest.end() {
                    break;
                }
                rest = rest.clip(part.end(), u64::MAX);
            }
        }
        rows.finish()?;
        Ok(0)
    }
}

impl MapArgs {
    fn confine(&self) {
        let names = match &self.svg {
            Some(path) if path != Path::new("-") => Names::Write(directory_of(path)),
            _ => Names::None,
        };
        self.sandbox.confine(names, self.open.io);
    }
}

/// The part of the disk that a picture is to show.
fn picture_part(name: &ImageName, chain: &Chain, start: u64, len: u64) -> Result<Part, Failure> {
    let whole = name.range_on(&**chain.active())?;
    let start = whole.start.saturating_add(start).min(whole.end);
    let end = start.saturating_add(len).min(whole.end);
    Ok(Part {
        origin: whole.start,
        range: start..end,
    })
}

/// Writes a picture. A file that is no picture is not replaced, and least of all an image.
fn write_picture(path: &Path, picture: &str, chain: &Chain, out: &mut dyn Write) -> Result<(), Failure> {
    if path == Path::new("-") {
        return Ok(out.write_all(picture.as_bytes())?);
    }
    refuse_target(path)?;
    let files = chain.layers().iter().map(|layer| &layer.storage);
    let mut head = [0; 4];
    let is_other = match fs::metadata(path) {
        Ok(found) if found.len() > 0 => {
            let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
            read.is_err() || &head != b"<svg"
        }
        Ok(found) => !found.is_file(),
        Err(_) => false,
    };
    if is_other || is_one_of(path, files) {
        let error = Error::invalid("it exists, and is no SVG").with_path(path);
        return Err(error.with_hint("give the picture another name").into());
    }
    fs::write(path, picture).map_err(|error| Error::io("write the picture", error).with_path(path))?;
    Ok(())
}

/// The map as it is printed.
struct Rows<'a> {
    out: &'a mut dyn Write,
    chain: &'a Chain,
    format: OutputFormat,
    first: bool,
}

impl<'a> Rows<'a> {
    fn new(out: &'a mut dyn Write, chain: &'a Chain, format: OutputFormat) -> io::Result<Self> {
        match format {
            OutputFormat::Human => writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?,
            OutputFormat::Json => write!(out, "[")?,
        }
        Ok(Self {
            out,
            chain,
            format,
            first: true,
        })
    }

    /// Prints a run, which is a `hole` in its file if it is data that reads as zeros.
    fn row(&mut self, extent: &Extent, hole: bool) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Human => self.line(extent, hole),
            OutputFormat::Json => Ok(self.object(extent, hole)?),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self.format {
            OutputFormat::Human => Ok(()),
            OutputFormat::Json => writeln!(self.out, "]"),
        }
    }

    /// For people: what has to be read, and from where.
    fn line(&mut self, extent: &Extent, hole: bool) -> Result<(), Failure> {
        if extent.state.reads_as_zero() || hole {
            return Ok(());
        }
        let layer = &self.chain.layers()[extent.depth as usize];
        let (ExtentState::Data, Some(host)) = (extent.state, extent.host) else {
            let why = if extent.state != ExtentState::Data {
                "it holds compressed clusters, which lie in no file as they are"
            } else if layer.device.info().encrypted {
                "it is encrypted, and what it holds lies in no file as it is"
            } else {
                "the file was cut: the data of this offset lay behind its end"
            };
            let error = Error::unsupported(why)
                .with_path(&layer.path)
                .with_offset(extent.offset);
            return Err(error.with_hint("list all with --output json").into());
        };
        let data_file = layer.data_file.as_ref().and_then(|file| file.path());
        let file = data_file.unwrap_or(&layer.path).to_string_lossy();
        let [offset, len, host] = [extent.offset, extent.len, host].map(hexadecimal);
        writeln!(self.out, "{offset:<16}{len:<16}{host:<16}{}", escape(&file))?;
        Ok(())
    }

    /// For programs: an object for each run, one a line.
    fn object(&mut self, extent: &Extent, hole: bool) -> io::Result<()> {
        let between = if self.first { "" } else { ",\n" };
        self.first = false;
        let zero = extent.state.reads_as_zero();
        write!(
            self.out,
            "{between}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
             \"data\": {}, \"compressed\": {}",
            extent.offset,
            extent.len,
            extent.depth,
            extent.state != ExtentState::Hole,
            zero || hole,
            !zero,
            extent.state == ExtentState::Compressed,
        )?;
        if let Some(host) = extent.host {
            write!(self.out, ", \"offset\": {host}")?;
        }
        write!(self.out, "}}")
    }
}

/// As C's `%#x` has it: zero has no prefix.
fn hexadecimal(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}
