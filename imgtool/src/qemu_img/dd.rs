//! `qemu-img dd`.

use std::sync::Arc;

use block::view::Window;
use block::{Backing, BlockDevice};
use ops::{Before, Control, ConvertOptions, SparseChain};

use super::console::Console;
use super::getopt::Options;
use super::image;
use super::node::Flags;
use super::noted::Noted;
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::{Outcome, create, new_image, number, pages};

/// What the operands say.
#[derive(Debug, Default)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block: Option<u64>,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(operands: &[String]) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        for operand in operands {
            let (name, value) = operand.split_once('=').unwrap_or((operand, ""));
            if !operand.contains('=') {
                return Err(Refusal::new(format!("unrecognized operand {operand}")));
            }
            match name {
                "if" => parsed.input = Some(value.to_owned()),
                "of" => parsed.output = Some(value.to_owned()),
                "bs" => parsed.block = Some(number::argument("bs", value, 1, i32::MAX as u64)?),
                "count" => parsed.count = Some(number::disk_size("count", value)?),
                "skip" => parsed.skip = number::disk_size("skip", value)?,
                _ => return Err(Refusal::new(format!("unrecognized operand {name}"))),
            }
        }
        Ok(parsed)
    }

    /// Where on a disk of `size` bytes the blocks lie, offset and length: what is skipped is counted too. `None` where that leads
    /// past the end.
    fn range(&self, size: u64) -> Option<(u64, u64)> {
        let block = self.block.unwrap_or(512);
        let end = self
            .count
            .map_or(size, |count| count.saturating_mul(block).min(size));
        let start = self.skip.checked_mul(block).filter(|start| *start <= end)?;
        Some((start, end - start))
    }
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let (mut format, mut out_format, mut image_opts) = (None, None, false);
    let mut flags = Flags::default();
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::DD, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::DD),
            "f" => format = Some(value),
            "O" => out_format = Some(value),
            "U" => flags.force_share = true,
            "image-opts" => image_opts = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let operands = Operands::parse(&options.operands())?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Refusal::new("Must specify both input and output files"));
    };
    let source = image::open(&super::spec(input, format.as_deref(), image_opts)?, flags)?;
    let format = out_format.as_deref().unwrap_or("raw");
    new_image::can_be_made(format)?;
    let mut new = new_image::options_of(format, true).map_err(|_| Refusal::new("Unknown file format"))?;
    let range = operands.range(source.device().size());
    let (start, len) = range.unwrap_or((0, 0));
    new.set("size", &len.to_string())?;
    let creating = |refusal: Refusal| refusal.after(format!("{output}: error while creating output image: "));
    let new = new_image::image(format, &new, &secrets).map_err(creating)?;
    let path = create::target_path(output)?;
    if image::is_same_file(&source, &path) {
        return Err(creating(create::in_use(&path)));
    }
    if create::takes_nothing(&path, &new) {
        return Ok(0);
    }
    let cancel = console.stop_orderly()?;
    let targets = create::begin(&path, format, &new, create::making()).map_err(creating)?;
    create::lay_out(&path, format, &new, &targets).map_err(creating)?;
    let disk = SparseChain::device(&source.chain).map_err(|error| image::engine_words(&error))?;
    let mut reads = false;
    let copied = (|| {
        let part: Arc<dyn BlockDevice> = Arc::new(Window::new(disk, start, len)?);
        let target = targets.open(&new, Backing::None, None)?;
        let control = Control::new(cancel.clone(), &|_| {});
        let mut copy = ConvertOptions::new();
        if !targets.are_zero(&new) {
            copy.before = Before::Unknown;
        }
        let noted = Noted::new(&*part);
        let copied = ops::convert(&noted, target.device(), &copy, &control);
        reads = noted.failed_at().is_some();
        copied.and_then(|()| target.close())
    })();
    copied.map_err(|error: block::Error| {
        let what = if reads {
            "reading from input"
        } else {
            "writing to output"
        };
        Refusal::new(format!("error while {what} image file: {}", reason(&error)))
    })?;
    let finished = targets.finish(&cancel);
    finished.map_err(|error| creating(create::could_not_create(&path, format, &error)))?;
    if range.is_none() {
        console.error(&format!("{input}: cannot skip to specified offset"));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(line: &str, size: u64) -> Option<(u64, u64)> {
        let words: Vec<String> = line.split_whitespace().map(ToOwned::to_owned).collect();
        Operands::parse(&words).unwrap().range(size)
    }

    #[test]
    fn what_is_skipped_is_counted_too() {
        assert_eq!(range("bs=1k count=3 skip=1", 1 << 20), Some((1024, 2048)));
        assert_eq!(range("", 77), Some((0, 77)));
        assert_eq!(range("count=4E bs=1G", 77), Some((0, 77)));
        assert_eq!(range("skip=4E bs=1G", 77), None);
        assert_eq!(range("skip=2 count=1", 4096), None);
    }
}
