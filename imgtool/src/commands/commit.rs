//! `imgtool commit`: write what an overlay holds into what it is based on.

use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use block::chain::{Chain, Layer};
use block::{Access, Error, ErrorKind, Result, escape};
use clap::Args;
use ops::{CommitOptions, Control, Moved};
use serde_json::json;

use super::Outcome;
use super::convert::interrupted;
use crate::arguments::{CacheMode, OpenArgs, ThreadArgs, WatchArgs};
use crate::images::Opening;
use crate::output::{self, OutputFormat};
use crate::watch::Watch;
use crate::{interrupt, layers, size};

/// Other images are named up to this many.
const MOST_NAMED: usize = 3;

/// Write what an image holds into what it is based on
///
/// Without -b that is its backing file, and the image is then emptied: it goes on as an overlay that holds nothing. With -b
/// it is any image further down, and the data of all images above that one goes there; they stay as they are, but those
/// between the image and BASE make no sense any more, and what they read as is undefined. The image itself reads the same
/// at every instant, whatever happens meanwhile; a run that was stopped is finished by another.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool commit clone.qcow2
  imgtool commit -p -d clone.qcow2
  imgtool commit -b base.qcow2 -r 50M top.qcow2")]
pub(crate) struct CommitArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The image to write to, one that FILE is based on. FILE is not emptied then
    #[arg(short, long, value_name = "BASE")]
    base: Option<String>,
    /// Do not empty the image
    #[arg(short = 'd', long = "drop")]
    keep: bool,
    /// Write so many bytes a second at most
    #[arg(short, long, value_name = "RATE")]
    rate_limit: Option<String>,
    /// Go on although other images are based on what is written to: what they read as is undefined afterwards
    #[arg(long)]
    force: bool,
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

/// The images to write to and to read from.
struct Opened {
    base: Chain,
    above: Chain,
}

impl CommitArgs {
    pub(crate) fn run(mut self) -> Outcome {
        self.open.check()?;
        // Standard output is for the result.
        self.watch.show &= self.output == OutputFormat::Human;
        let mut options = CommitOptions {
            rate: self.rate_limit.as_deref().map(rate).transpose()?,
            empty: self.base.is_none() && !self.keep,
            ..CommitOptions::default()
        };
        if let Some(threads) = self.threads.threads.and_then(|n| usize::from(n).try_into().ok()) {
            options.threads = threads;
        }
        let opened = self.open_images(options.empty)?;
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(cancel, &report);
        let moved = ops::commit(&opened.above, &**opened.base.active(), &options, &control);
        watch.finish();
        let left = "the image reads as before, and another run finishes the job";
        let moved = moved.map_err(|error| interrupted(error, &self.file, left))?;
        self.print(&opened, moved, options.empty)?;
        Ok(0)
    }

    fn opening(&self, write: bool) -> Opening {
        Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write,
                ..Access::READ
            },
            direct: self.cache.direct(),
        }
    }

    fn open_images(&self, empty: bool) -> Result<Opened> {
        let whole = self.opening(false).chain(&self.file, self.format.as_deref())?;
        let number = match &self.base {
            Some(name) => layers::find(&whole, &self.file, name)?,
            None if whole.layers().len() > 1 => 1,
            None => {
                let error = Error::invalid("it has no backing file to commit to").with_path(&self.file);
                return Err(error);
            }
        };
        let found = whole.layers()[number].clone();
        if !self.force {
            refuse_others(&found, whole.layers(), number)?;
        }
        // The locks for reading, before those for writing.
        let (path, format, id) = (found.path.clone(), found.format, found.storage.file_id());
        drop((whole, found));
        let base = self.opening(true).chain(&path, Some(format))?;
        if base.layers()[0].storage.file_id() != id {
            let message = "it was replaced by another file meanwhile";
            return Err(Error::new(ErrorKind::Denied, message).with_path(&path));
        }
        let above = self
            .opening(empty)
            .part(&self.file, self.format.as_deref(), number - 1)?;
        Ok(Opened { base, above })
    }

    fn print(&self, opened: &Opened, moved: Moved, emptied: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.output {
            OutputFormat::Json => output::json(
                &mut out,
                &json!({
                    "filename": self.file.to_string_lossy(),
                    "base": opened.base.layers()[0].path.to_string_lossy(),
                    "data-bytes": moved.data,
                    "zero-bytes": moved.zeros,
                    "emptied": emptied,
                }),
            ),
            OutputFormat::Human if self.watch.quiet => Ok(()),
            OutputFormat::Human => {
                use io::Write;
                writeln!(out, "Image committed.")
            }
        }
    }
}

/// What -r says.
pub(super) fn rate(text: &str) -> Result<NonZeroU64> {
    let rate = NonZeroU64::new(size::parse(text)?);
    rate.ok_or_else(|| Error::invalid(format!("-r {text}: at least one byte a second must pass")))
}

/// Fails if images outside of the chain are based on what changes: the base, and with it all between it and the image.
fn refuse_others(base: &Layer, chain: &[Layer], number: usize) -> Result<()> {
    let others = layers::others_based_on(&chain[1..=number], chain);
    if others.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = others
        .iter()
        .take(MOST_NAMED)
        .map(|path| escape(&name_of(path)).into_owned())
        .collect();
    let more = match others.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "other images are based on it, and would read something else afterwards: {}{more}",
        names.join(", ")
    );
    let hint = "if they are not needed any more, go on with --force";
    Err(Error::invalid(message).with_path(&base.path).with_hint(hint))
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
