//! `imgtool dd`: copy part of a disk.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::view::Window;
use block::{Access, Backing, BlockDevice, Error, Result, escape};
use clap::Args;
use ops::{Before, Cancel, Control, ConvertOptions, SparseChain};

use super::Outcome;
use super::convert::interrupted;
use crate::arguments::{OpenArgs, WatchArgs};
use crate::formats::NewImage;
use crate::image_name::ImageName;
use crate::images::Opening;
use crate::option_list::OptionList;
use crate::target::{Making, is_one_of};
use crate::targets::Targets;
use crate::watch::Watch;
use crate::{interrupt, size};

/// Bytes in a block where none are stated.
const DEFAULT_BLOCK: u64 = 512;

const HINT: &str = "there are if=FILE, of=FILE, bs=SIZE, count=N and skip=N";

/// Copy part of the disk in an image into a new image
///
/// The new image is as long as what is copied. Blocks are counted on the disk, whatever the format; count= is how many
/// are copied after those that skip= leaves out, as in other programs of this name (qemu-img counts those too).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool dd -f qcow2 -O raw bs=1M count=1 if=disk.qcow2 of=first.raw
  imgtool dd -O qcow2 bs=1M skip=1024 if=disk.raw of=rest.qcow2")]
pub(crate) struct DdArgs {
    /// Format of the image to copy [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Format of the new image
    #[arg(short = 'O', long, default_value = "raw", value_name = "FORMAT")]
    target_format: String,
    /// Read an image that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// What to copy: if=FILE of=FILE [bs=SIZE] [count=N] [skip=N]
    #[arg(required = true, value_name = "OPERAND")]
    operands: Vec<OsString>,
}

/// What the operands say.
#[derive(Debug, PartialEq, Eq)]
struct Operands {
    input: PathBuf,
    output: PathBuf,
    /// Bytes in a block.
    block: u64,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(operands: &[OsString]) -> Result<Self> {
        let (mut input, mut output) = (None, None);
        let (mut block, mut count, mut skip) = (DEFAULT_BLOCK, None, 0);
        for operand in operands {
            let text = operand.to_string_lossy();
            let Some((name, value)) = text.split_once('=') else {
                let message = format!("\"{}\" is no operand", escape(&text));
                return Err(Error::invalid(message).with_hint(HINT));
            };
            let path = || OsStr::from_bytes(&operand.as_bytes()[3..]).into();
            match name {
                "if" => input = Some(path()),
                "of" => output = Some(path()),
                "bs" => block = size::of(name, value)?,
                "count" => count = Some(size::of(name, value)?),
                "skip" => skip = size::of(name, value)?,
                _ => {
                    let message = format!("there is no operand {}=", escape(name));
                    return Err(Error::invalid(message).with_hint(HINT));
                }
            }
        }
        let (Some(input), Some(output)) = (input, output) else {
            let message = "an image to copy and a new image have to be named";
            return Err(Error::invalid(message).with_hint("imgtool dd if=disk.raw of=new.raw bs=1M count=1"));
        };
        if block == 0 || block > i32::MAX as u64 {
            return Err(Error::invalid(format!(
                "bs={block}: a block has from 1 to {} bytes",
                i32::MAX
            )));
        }
        Ok(Self {
            input,
            output,
            block,
            count,
            skip,
        })
    }

    /// Where on a disk of `size` bytes they lie: offset and length in bytes.
    fn range(&self, size: u64) -> Result<(u64, u64)> {
        let start = self.skip.checked_mul(self.block).filter(|start| *start <= size);
        let Some(start) = start else {
            return Err(Error::invalid(format!(
                "skip={} blocks of {} bytes lead past the end of the disk, which has {size} bytes",
                self.skip, self.block
            )));
        };
        let most = self
            .count
            .map_or(u64::MAX, |count| count.saturating_mul(self.block));
        Ok((start, most.min(size - start)))
    }
}

impl DdArgs {
    pub(crate) fn run(self) -> Outcome {
        self.open.check()?;
        let operands = Operands::parse(&self.operands)?;
        let path = &*operands.output;
        let named = |error: Error| error.with_path(path);
        let mut image =
            NewImage::parse(&self.target_format, OptionList::parse(&[])?, None, None).map_err(named)?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            ..Opening::default()
        };
        let input = ImageName::parse(&operands.input)?;
        ImageName::parse(path)?.must_be_new()?;
        let chain = opening.chain(&input.path, self.format.as_deref())?;
        let files = chain.layers().iter();
        if is_one_of(
            path,
            files.flat_map(|layer| std::iter::once(&layer.storage).chain(&layer.data_file)),
        ) {
            let error = Error::invalid("the target is an image that is read from").with_path(path);
            return Err(error
                .with_hint("give the new image another name, and move it afterwards")
                .into());
        }
        let disk = input.on(SparseChain::device(&chain)?)?;
        let (start, len) = operands
            .range(disk.size())
            .map_err(|error| error.with_path(&operands.input))?;
        image.size = Some(len);
        image.check().map_err(named)?;
        let part: Arc<dyn BlockDevice> = Arc::new(Window::new(disk, start, len)?);
        let cancel = interrupt::watch()?;
        self.make(path, &image, &*part, &cancel)?;
        Ok(0)
    }

    fn make(&self, path: &Path, image: &NewImage, part: &dyn BlockDevice, cancel: &Cancel) -> Result<()> {
        let targets = Targets::new(path, image, Making::default())?;
        let target = targets.image();
        let mut copy = ConvertOptions::new();
        if !targets.are_zero(image) {
            copy.before = Before::Unknown;
        }
        let left = target.if_dropped();
        let watch = Watch::new(&self.watch);
        let copied = (|| {
            targets.create(image)?;
            let new = targets.open(image, Backing::None, None)?;
            let report = |progress| watch.report(progress);
            ops::convert(part, new.device(), &copy, &Control::new(cancel.clone(), &report))?;
            new.close()?;
            targets.finish(cancel)
        })();
        watch.finish();
        copied.map_err(|error| interrupted(error, path, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Operands> {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        Operands::parse(&words)
    }

    #[test]
    fn blocks_become_bytes() {
        let operands = parse("if=a of=b bs=1M count=3 skip=2").unwrap();
        assert_eq!(operands.range(100 << 20).unwrap(), (2 << 20, 3 << 20));
        assert_eq!(operands.range((2 << 20) + 5).unwrap(), (2 << 20, 5));
        assert_eq!(operands.range(2 << 20).unwrap(), (2 << 20, 0));
        operands.range((2 << 20) - 1).unwrap_err();
        let all = parse("of=b=c if=").unwrap();
        assert_eq!((all.output, all.block), ("b=c".into(), 512));
    }

    #[test]
    fn nothing_overflows() {
        let huge = parse("if=a of=b bs=2147483647 count=4E skip=4E").unwrap();
        huge.range(i64::MAX as u64).unwrap_err();
        let count = parse("if=a of=b bs=2147483647 count=4E").unwrap();
        assert_eq!(count.range(77).unwrap(), (0, 77));
    }

    #[test]
    fn refuses_by_name() {
        for (line, word) in [
            ("if=a", "have to be named"),
            ("if=a of=b seek=1", "seek="),
            ("if=a of=b fast", "\"fast\""),
            ("if=a of=b bs=0", "bs=0"),
            ("if=a of=b bs=2G", "bs=2147483648"),
            ("if=a of=b count=-1", "\"-1\""),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
