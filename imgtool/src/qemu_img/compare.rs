//! `qemu-img compare`.

use ops::{CompareError, CompareOptions, Comparison, Control, SparseChain};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Image};
use super::node::Flags;
use super::progress::Progress;
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::{Outcome, cache_mode, pages};
use crate::sandbox::{self, Names};

const DIFFERENT: u8 = 1;
const CANNOT_OPEN: u8 = 2;
const CANNOT_MAP: u8 = 3;
const CANNOT_READ: u8 = 4;

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    compare(console, arguments).map_err(|refusal| match refusal.code() {
        // 1 means that the images differ.
        1 if !refusal.is_usage() => refusal.with_code(CANNOT_OPEN),
        _ => refusal,
    })
}

fn compare(console: &Console, arguments: &[String]) -> Outcome {
    let (mut formats, mut image_opts, mut flags) = ([None, None], false, Flags::default());
    let (mut strict, mut quiet, mut show) = (false, false, false);
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::COMPARE, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::COMPARE),
            "f" => formats[0] = Some(value),
            "F" => formats[1] = Some(value),
            "T" => flags.direct = cache_mode("source", &value)?.direct,
            "p" => show = true,
            "q" => quiet = true,
            "s" => strict = true,
            "U" => flags.force_share = true,
            "image-opts" => image_opts = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let operands = options.operands();
    let [first, second] = &*operands else {
        return Err(Refusal::usage("Expecting two image file names"));
    };
    let progress = Progress::new(console, show && !quiet, 2.0);
    let result = (|| {
        let first = open(first, formats[0].as_deref(), image_opts, flags)?;
        let second = open(second, formats[1].as_deref(), image_opts, flags)?;
        sandbox::confine(Names::None, false);
        differences(console, &first, &second, [strict, quiet], &progress)
    })();
    let printed = match &result {
        Ok((text, _)) if !quiet => console.print(text),
        _ => Ok(()),
    };
    progress.end();
    printed?;
    let (_, code): (String, u8) = result?;
    // A failure of this is none of the images.
    console.flush()?;
    Ok(code)
}

fn open(name: &str, format: Option<&str>, image_opts: bool, flags: Flags) -> Result<Image, Refusal> {
    image::open(&super::spec(name, format, image_opts)?, flags)
}

/// What is to be said about the two, with the exit code.
fn differences(
    console: &Console,
    first: &Image,
    second: &Image,
    [strict, quiet]: [bool; 2],
    progress: &Progress<'_>,
) -> Result<(String, u8), Refusal> {
    let mut options = CompareOptions::new();
    options.strict = strict;
    let sizes = [first, second].map(|image| image.device().size());
    // What only one of them has is looked at last.
    let warn = |at: u64| match () {
        () if sizes[0] == sizes[1] || strict || quiet || at < sizes[0].min(sizes[1]) => Ok(()),
        () => console.print("Warning: Image size mismatch!\n"),
    };
    let report = |at: ops::Progress| progress.bytes(at.done, at.total);
    let control = Control::new(ops::Cancel::new(), &report);
    let result = match (
        SparseChain::device(&first.chain),
        SparseChain::device(&second.chain),
    ) {
        (Ok(left), Ok(right)) => ops::compare(&*left, &*right, &options, &control),
        (Err(error), _) | (_, Err(error)) => Err(CompareError::Extents(error)),
    };
    Ok(match result {
        Ok(Comparison::Identical) => {
            warn(u64::MAX)?;
            ("Images are identical.\n".to_owned(), 0)
        }
        Ok(Comparison::Size) => ("Strict mode: Image size mismatch!\n".to_owned(), DIFFERENT),
        Ok(Comparison::Content(offset)) => {
            warn(offset)?;
            (format!("Content mismatch at offset {offset}!\n"), DIFFERENT)
        }
        Ok(Comparison::State(offset)) => (
            format!("Strict mode: Offset {offset} block status mismatch!\n"),
            DIFFERENT,
        ),
        Err(CompareError::Extents(error)) => {
            let text = format!("Failed to read block status: {}", reason(&error));
            return Err(Refusal::new(text).with_code(CANNOT_MAP));
        }
        Err(CompareError::Read(error)) => {
            let (image, offset) = unreadable(first, second, &error);
            warn(offset)?;
            return Err(read_failed(image, offset, &error));
        }
    })
}

/// Says where one of the two cannot be read. The comparison has read in large pieces and from many threads; here they are read
/// from the start on, as QEMU does.
fn unreadable<'a>(first: &'a Image, second: &'a Image, error: &block::Error) -> (&'a Image, u64) {
    const PIECE: u64 = 2 << 20;
    let mut buffer = vec![0; PIECE as usize];
    let size = first.device().size().max(second.device().size());
    let mut offset = 0;
    while offset < size {
        let mut len = PIECE.min(size - offset);
        for image in [first, second] {
            let device = image.device();
            let there = device.size().saturating_sub(offset).min(len);
            let Some(extent) = (there > 0)
                .then(|| device.extent_at(offset, there))
                .and_then(Result::ok)
            else {
                continue;
            };
            len = extent.len;
            let bytes = &mut buffer[..len as usize];
            if !extent.state.reads_as_zero() && device.read_at(bytes, offset).is_err() {
                return (image, offset);
            }
        }
        offset += len;
    }
    // It can be read now.
    (first, error.offset().unwrap_or_default())
}

fn read_failed(image: &Image, offset: u64, error: &block::Error) -> Refusal {
    let name = image.filename();
    let text = format!("Error while reading offset {offset} of {name}: {}", reason(error));
    Refusal::new(text).with_code(CANNOT_READ)
}
