//! `imgtool stream`: pull data up from a chain, which gets shorter.

use std::path::PathBuf;

use block::Access;
use clap::Args;
use ops::{Control, RebaseOptions};

use super::Outcome;
use super::commit::rate;
use super::convert::interrupted;
use crate::arguments::{CacheMode, OpenArgs, ThreadArgs, WatchArgs};
use crate::images::Opening;
use crate::output::OutputFormat;
use crate::watch::Watch;
use crate::{interrupt, layers};

/// Copy what an image is based on into the image, and shorten the chain
///
/// What the images between this one and BASE hold is copied up, and the image is then based on BASE; without --base
/// everything is copied, and it is based on nothing. The other images are not written to. The image reads the same at every
/// instant, whatever happens meanwhile; a run that was stopped is finished by another.
///
/// Internal snapshots of the image are based on the same, and nothing is copied into them: over a shorter chain they would
/// read something else. So an image that has any is left alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool stream clone.qcow2
  imgtool stream -p --base base.qcow2 top.qcow2
  imgtool stream -c --output json clone.qcow2")]
pub(crate) struct StreamArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The image that FILE is to be based on, one of those that it is based on now
    #[arg(short, long, value_name = "BASE")]
    base: Option<String>,
    /// Go on although the image has internal snapshots: what they read as is undefined afterwards
    #[arg(long)]
    force: bool,
    /// Compress what is copied
    #[arg(short, long)]
    compress: bool,
    /// Write so many bytes a second at most
    #[arg(short, long, value_name = "RATE")]
    rate_limit: Option<String>,
    /// How the page cache is used
    #[arg(
        short = 't',
        long,
        value_enum,
        default_value = "writeback",
        value_name = "MODE"
    )]
    cache: CacheMode,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: OutputFormat,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
}

impl StreamArgs {
    pub(crate) fn run(mut self) -> Outcome {
        self.open.check()?;
        self.watch.show &= self.output == OutputFormat::Human;
        let mut options = RebaseOptions {
            compress: self.compress,
            rate: self.rate_limit.as_deref().map(rate).transpose()?,
            ..RebaseOptions::default()
        };
        if let Some(threads) = self.threads.threads.and_then(|n| usize::from(n).try_into().ok()) {
            options.threads = threads;
        }
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access::WRITE,
            direct: self.cache.direct(),
        };
        let chain = opening.chain(&self.file, self.format.as_deref())?;
        let base = match &self.base {
            None => None,
            Some(name) => {
                let number = layers::find(&chain, &self.file, name)?;
                Some((number as u32, layers::reference(&chain, &self.file, number)?))
            }
        };
        let number = base
            .as_ref()
            .map_or(chain.layers().len(), |(number, _)| *number as usize);
        if !self.force && number > 1 {
            layers::refuse_snapshots(&chain.layers()[..1])?;
        }
        let reference = base.as_ref().map(|(_, reference)| reference.clone());
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(cancel, &report);
        let moved = ops::stream(&chain, base, &options, &control);
        watch.finish();
        let left = "the image reads as before, and another run finishes the job";
        let moved = moved.map_err(|error| interrupted(error, &self.file, left))?;
        if self.output == OutputFormat::Json {
            super::rebase::print(&self.file, reference.as_ref(), moved)?;
        }
        Ok(0)
    }
}
