//! `imgtool rebase`: base an image on another backing file.

use std::io;
use std::path::{Path, PathBuf};

use block::chain::{Chain, Layer};
use block::{Access, BackingReference, Error, ErrorKind, Result};
use clap::Args;
use ops::{Control, Moved, NewBacking, RebaseOptions, SparseChain};
use serde_json::json;

use super::Outcome;
use super::commit::rate;
use super::convert::interrupted;
use super::create::no_backing_format;
use crate::arguments::{CacheMode, OpenArgs, ThreadArgs, WatchArgs, refused};
use crate::images::{Opening, backing_path};
use crate::output::{self, OutputFormat};
use crate::watch::Watch;
use crate::{interrupt, layers};

/// Base an image on another backing file
///
/// The image reads the same afterwards: what differs between the old and the new backing file is written to it first.
/// It does so at every instant, whatever happens meanwhile; a run that was stopped is finished by another. With -u nothing
/// is read or written but the name, for a backing file that was moved or renamed: if the new one holds something else, so
/// does the image.
///
/// Internal snapshots of the image are based on the backing file too, and nothing is written to them: with another one they
/// would read something else. So an image that has any is left alone, unless the new backing file is the old one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool rebase -b newbase.qcow2 -F qcow2 clone.qcow2
  imgtool rebase -p -c -b '' clone.qcow2
  imgtool rebase -u -b ../moved/base.raw -F raw clone.qcow2")]
pub(crate) struct RebaseArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The new backing file; a relative name is looked up from the directory of the image, and '' is none
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Its format
    #[arg(short = 'F', long, alias = "backing-fmt", value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Only change the name, and trust that the new backing file holds the same
    #[arg(short = 'u', long)]
    r#unsafe: bool,
    /// Go on although the image has internal snapshots: what they read as is undefined afterwards. Or although the new
    /// backing file, named as raw, is an image that is based on this one: it cannot be opened as such any more
    #[arg(long)]
    force: bool,
    /// Compress what is written to the image
    #[arg(short, long)]
    compress: bool,
    /// Write so many bytes a second at most
    #[arg(short, long, value_name = "RATE")]
    rate_limit: Option<String>,
    /// How the page cache is used for the image and what it is based on
    #[arg(
        short = 't',
        long,
        value_enum,
        default_value = "writeback",
        value_name = "MODE"
    )]
    cache: CacheMode,
    /// How the page cache is used for the new backing file
    #[arg(
        short = 'T',
        long = "source-cache",
        value_enum,
        default_value = "writeback",
        value_name = "MODE"
    )]
    source_cache: CacheMode,
    #[arg(short = 'U', long, hide = true)]
    force_share: bool,
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

impl RebaseArgs {
    pub(crate) fn run(mut self) -> Outcome {
        self.open.check()?;
        if self.force_share {
            return Err(refused("-U")
                .with_hint("an image that is written to cannot be shared")
                .into());
        }
        self.watch.show &= self.output == OutputFormat::Human;
        let reference = self.reference()?;
        let moved = if self.r#unsafe {
            self.rename(reference.clone())?;
            Moved::default()
        } else {
            self.rebase(reference.clone())?
        };
        if self.output == OutputFormat::Json {
            print(&self.file, reference.as_ref(), moved)?;
        }
        Ok(0)
    }

    fn opening(&self, write: bool) -> Opening {
        let cache = if write { self.cache } else { self.source_cache };
        Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write,
                ..Access::READ
            },
            direct: cache.direct(),
        }
    }

    /// What the image is to name.
    fn reference(&self) -> Result<Option<BackingReference>> {
        let Some(name) = &self.backing else {
            let error = Error::invalid("the new backing file is not named").with_path(&self.file);
            return Err(error.with_hint("name it with -b FILE; -b '' stands for none"));
        };
        if name.is_empty() {
            return Ok(None);
        }
        let file = backing_path(&self.file, name);
        if self.backing_format.is_none() {
            return Err(no_backing_format(self.opening(false), &self.file, &file, name));
        }
        Ok(Some(BackingReference {
            name: name.clone(),
            format: self.backing_format.clone(),
        }))
    }

    /// Changes the name alone.
    fn rename(&self, reference: Option<BackingReference>) -> Result<()> {
        let image = self.opening(true).detached(&self.file, self.format.as_deref())?;
        check_name(
            &image.layers()[0],
            reference.as_ref(),
            self.opening(false),
            self.force,
        )?;
        image.set_backing_reference(reference)
    }

    /// Keeps what the image reads as.
    fn rebase(&self, reference: Option<BackingReference>) -> Result<Moved> {
        let file = reference
            .as_ref()
            .map(|reference| backing_path(&self.file, &reference.name));
        let new = match (&reference, &file) {
            (Some(reference), Some(file)) => {
                Some(self.opening(false).chain(file, reference.format.as_deref())?)
            }
            _ => None,
        };
        let old = self.opening(true).chain(&self.file, self.format.as_deref());
        let old = old.map_err(|error| self.explain(error, new.as_ref()))?;
        if let Some(new) = &new
            && layers::shares_a_file(&old.layers()[0], new.layers())
        {
            return Err(closes_loop(&self.file, &new.layers()[0].path));
        }
        if let (Some(file), false) = (&file, self.force) {
            refuse_hidden_loop(&old.layers()[0], file, self.opening(false))?;
        }
        let layer = new.as_ref().and_then(|new| same_layer(&old, new));
        let same = layer == Some(1) || (new.is_none() && old.layers().len() == 1);
        if !self.force && !same {
            layers::refuse_snapshots(&old.layers()[..1])?;
        }
        let new = match new.zip(reference) {
            Some((new, reference)) => Some(NewBacking {
                reference,
                layer,
                device: SparseChain::device(&new)?,
            }),
            None => None,
        };
        let mut options = RebaseOptions {
            compress: self.compress,
            rate: self.rate_limit.as_deref().map(rate).transpose()?,
            ..RebaseOptions::default()
        };
        if let Some(threads) = self.threads.threads.and_then(|n| usize::from(n).try_into().ok()) {
            options.threads = threads;
        }
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(cancel, &report);
        let moved = ops::rebase(&old, new, &options, &control);
        watch.finish();
        let left = "the image reads as before, and another run finishes the job";
        moved.map_err(|error| interrupted(error, &self.file, left))
    }

    /// Why the image cannot be opened over what it is based on.
    fn explain(&self, error: Error, new: Option<&Chain>) -> Error {
        let look = Opening {
            access: Access {
                write: false,
                force_share: true,
            },
            ..self.opening(true)
        };
        let image = look.detached(&self.file, self.format.as_deref());
        match (image, new) {
            // The new one holds the lock.
            (Ok(image), Some(new)) if layers::shares_a_file(&image.layers()[0], new.layers()) => {
                closes_loop(&self.file, &new.layers()[0].path)
            }
            _ => match self.opening(true).alone(&self.file, self.format.as_deref()) {
                // What it is based on cannot be opened; where it may not be, that is what to allow.
                Ok(_) if error.kind() != ErrorKind::Denied => {
                    error.with_hint("if the new backing file holds the same, -u changes the name alone")
                }
                _ => error,
            },
        }
    }
}

/// Fails for a backing file that leads back to `image`, which only its name is to change; and for another one than it has,
/// if that has internal snapshots, unless that is forced.
pub(super) fn check_name(
    image: &Layer,
    reference: Option<&BackingReference>,
    opening: Opening,
    force: bool,
) -> Result<()> {
    if let Some(reference) = reference {
        let file = backing_path(&image.path, &reference.name);
        let format = reference.format.as_deref().unwrap_or_default();
        block::chain::format_named(&crate::images::FORMATS, format)?;
        // One that is not there, or not yet, is the user's business; one that can be opened must not lead back.
        let read = Opening {
            access: Access {
                write: false,
                force_share: true,
            },
            ..opening
        };
        if layers::leads_to(&file, Some(format), image, read) {
            return Err(closes_loop(&image.path, &file));
        }
        if !force {
            refuse_hidden_loop(image, &file, read)?;
        }
    }
    let named = image.device.backing_reference();
    if force || is_same_file(&image.path, named.as_ref(), reference) {
        return Ok(());
    }
    layers::refuse_snapshots(std::slice::from_ref(image))
}

/// Fails if the file at `backing`, whatever its format was said to be, looks like an image that is based on `image`. Read
/// as raw it leads nowhere, but as what it is it could not be opened any more.
///
/// A guest may have made it look so, and so nothing but this refusal follows from what is found: headers are read, as
/// the gate allows, and `--force` passes by.
fn refuse_hidden_loop(image: &Layer, backing: &Path, opening: Opening) -> Result<()> {
    let look = Opening {
        access: Access {
            write: false,
            force_share: true,
        },
        ..opening
    };
    if !layers::leads_to(backing, None, image, look) {
        return Ok(());
    }
    let hint = "if it is no image, but data of a guest that looks like one, go on with --force";
    Err(closes_loop(&image.path, backing).with_hint(hint))
}

/// Whether two references of the image at `image` are to one file, if not under one name. One that does not state the
/// format could not be opened: it is the other one, completed.
fn is_same_file(image: &Path, old: Option<&BackingReference>, new: Option<&BackingReference>) -> bool {
    let (Some(old), Some(new)) = (old, new) else {
        return old.is_none() && new.is_none();
    };
    let real = |name: &str| std::fs::canonicalize(backing_path(image, name)).ok();
    let same = old.name == new.name || real(&old.name).is_some_and(|old| real(&new.name) == Some(old));
    same && (old.format.is_none() || old.format == new.format)
}

/// The number of the layer of `old` that `new` is.
pub(crate) fn same_layer(old: &Chain, new: &Chain) -> Option<u32> {
    let id = new.layers()[0].storage.file_id()?;
    let layer = (1..).zip(&old.layers()[1..]);
    let mut same = layer.filter(|(_, layer)| layer.storage.file_id() == Some(id));
    same.next()
        .filter(|(_, layer)| layer.format == new.layers()[0].format)
        .map(|(number, _)| number)
}

fn closes_loop(image: &Path, backing: &Path) -> Error {
    let message = format!(
        "it cannot be based on {}, which is this image or based on it",
        block::escape(&backing.to_string_lossy())
    );
    Error::invalid(message).with_path(image)
}

/// The summary of a rebase or a stream, as JSON.
pub(super) fn print(image: &Path, backing: Option<&BackingReference>, moved: Moved) -> io::Result<()> {
    let summary = json!({
        "filename": image.to_string_lossy(),
        "backing-filename": backing.map(|backing| &backing.name),
        "backing-filename-format": backing.and_then(|backing| backing.format.as_ref()),
        "data-bytes": moved.data,
        "zero-bytes": moved.zeros,
    });
    output::json(&mut io::stdout().lock(), &summary)
}
