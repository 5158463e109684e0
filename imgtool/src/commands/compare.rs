//! `imgtool compare`: do two images hold the same disk?

use std::io;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::chain::Chain;
use block::{Access, BlockDevice};
use clap::Args;
use ops::{CompareError, CompareOptions, Comparison, Control, SparseChain};

use super::Outcome;
use crate::arguments::{CacheMode, OpenArgs, SandboxArgs, ThreadArgs, WatchArgs};
use crate::failure::Failure;
use crate::image_name::ImageName;
use crate::images::Opening;
use crate::interrupt;
use crate::sandbox::Names;
use crate::watch::Watch;

const DIFFERENT: u8 = 1;
const CANNOT_OPEN: u8 = 2;
const CANNOT_MAP: u8 = 3;
const CANNOT_READ: u8 = 4;

/// Tell whether two images hold the same disk, whatever their formats
///
/// A longer disk that only adds zeros is the same. The exit code is 0 for the same, 1 for a difference, and 2, 3 or 4
/// if an image cannot be opened, mapped or read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool compare disk.raw disk.qcow2
  imgtool compare -f raw -F qcow2 disk.img clone.qcow2
  imgtool compare -s copy1.qcow2 copy2.qcow2")]
pub(crate) struct CompareArgs {
    /// Format of the first image [default: found out]
    #[arg(short, long = "a-format", value_name = "FORMAT")]
    format: Option<String>,
    /// Format of the second image [default: found out]
    #[arg(short = 'F', long = "b-format", value_name = "FORMAT")]
    second_format: Option<String>,
    /// Sizes must be equal too, and what is data, zeros or unallocated must be so in both
    #[arg(short, long)]
    strict: bool,
    /// How the page cache is used
    #[arg(short = 'T', long = "cache", value_enum, value_name = "MODE")]
    cache: Option<CacheMode>,
    /// Read images that somebody else may be writing to
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// An image
    first: PathBuf,
    /// Another
    second: PathBuf,
}

impl CompareArgs {
    pub(crate) fn run(self) -> Outcome {
        self.open.check()?;
        let first = self.open(&self.first, self.format.as_deref())?;
        let second = self.open(&self.second, self.second_format.as_deref())?;
        let mut options = CompareOptions::new();
        options.strict = self.strict;
        if let Some(threads) = self.threads.threads.and_then(|n| NonZeroUsize::new(n.into())) {
            options.threads = threads;
        }
        self.sandbox.confine(Names::None, self.open.io);
        let sizes_differ = first.disk.size() != second.disk.size();
        let say = |text: &str| match writeln!(io::stdout(), "{text}") {
            // 1 means that the images differ.
            Err(error) => Err(Failure::from(error).with_code(CANNOT_OPEN)),
            Ok(()) => Ok(()),
        };
        if sizes_differ && !self.strict && !self.watch.quiet {
            say("Warning: Image size mismatch!")?;
        }
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(interrupt::watch()?, &report);
        let result = match (first.sparse(), second.sparse()) {
            (Ok(first), Ok(second)) => ops::compare(&*first, &*second, &options, &control),
            (Err(error), _) | (_, Err(error)) => Err(CompareError::Extents(error)),
        };
        watch.finish();
        let (text, code) = match result {
            Ok(Comparison::Identical) => ("Images are identical.".to_owned(), 0),
            Ok(Comparison::Size) => ("Strict mode: Image size mismatch!".to_owned(), DIFFERENT),
            Ok(Comparison::Content(offset)) => (format!("Content mismatch at offset {offset}!"), DIFFERENT),
            Ok(Comparison::State(offset)) => (
                format!("Strict mode: Offset {offset} block status mismatch!"),
                DIFFERENT,
            ),
            Err(CompareError::Extents(error)) => return Err(Failure::from(error).with_code(CANNOT_MAP)),
            Err(CompareError::Read(error)) => return Err(Failure::from(error).with_code(CANNOT_READ)),
        };
        if !self.watch.quiet {
            say(&text)?;
        }
        Ok(code)
    }

    fn open(&self, path: &Path, format: Option<&str>) -> Result<Opened, Failure> {
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: self.force_share,
            },
            direct: self.cache.is_some_and(CacheMode::direct),
        };
        let opened = ImageName::parse(path).and_then(|name| {
            let chain = opening.chain(&name.path, format)?;
            let disk = name.on(chain.device())?;
            Ok(Opened { name, chain, disk })
        });
        opened.map_err(|error| Failure::from(error).with_code(CANNOT_OPEN))
    }
}

/// One of the images, or a partition of it.
struct Opened {
    name: ImageName,
    chain: Chain,
    disk: Arc<dyn BlockDevice>,
}

impl Opened {
    /// The disk, with what the host knows of holes.
    fn sparse(&self) -> block::Result<Arc<dyn BlockDevice>> {
        self.name.on(SparseChain::device(&self.chain)?)
    }
}
