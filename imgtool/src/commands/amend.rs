//! `imgtool amend`: change what an image is, in place.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use block::chain::Chain;
use block::{Access, Backing, BackingReference, Error, Result, escape};
use clap::Args;
use ops::Progress;
use qcow2::{CompatibleFeatures, Header, Image, NewBacking, Version};
use serde_json::json;

use super::Outcome;
use crate::arguments::{CacheMode, OpenArgs, WatchArgs};
use crate::failure::Failure;
use crate::formats::Amended;
use crate::images::{FORMATS, Opening, backing_path, qcow2_with};
use crate::interrupt;
use crate::option_list::OptionList;
use crate::output::{self, OutputFormat};
use crate::target::is_one_of;
use crate::watch::Watch;

/// Change the options of an image: its version, what it names, how it counts
///
/// The disk and its snapshots read the same at every instant, whatever happens; a run that was stopped is finished by
/// another. If one of several options is refused, nothing is changed. A new name of the backing file or the data file is
/// believed: if that file holds something else, so does the image.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool amend -o compat=1.1 old.qcow2
  imgtool amend -o compat=0.10,refcount_bits=16 disk.qcow2
  imgtool amend -p -o refcount_bits=8 -o lazy_refcounts=on disk.qcow2
  imgtool amend -o backing_file=../moved/base.raw,backing_fmt=raw clone.qcow2
  imgtool amend -o data_file=renamed.raw disk.qcow2
  imgtool amend -o help")]
pub(crate) struct AmendArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// What to change, as key=value,key=value; `help` lists what can be
    #[arg(short, long, value_name = "OPTIONS", required = true)]
    options: Vec<String>,
    /// Name another backing file although the image has internal snapshots, which are based on it too
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
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    #[arg(required_unless_present = "options")]
    file: Option<PathBuf>,
}

impl AmendArgs {
    pub(crate) fn run(mut self) -> Outcome {
        self.open.check()?;
        let options = OptionList::parse(&self.options)?;
        if options.help {
            self.print_options()?;
            return Ok(0);
        }
        let Some(path) = self.file.take() else {
            let hint = "imgtool amend -o compat=1.1 FILE";
            return Err(Error::invalid("no image is named").with_hint(hint).into());
        };
        self.watch.show &= self.output == OutputFormat::Human;
        let named = |error: Error| error.with_path(&path);
        let format = match &self.format {
            Some(name) => Some(block::chain::format_named(&FORMATS, name)?.name()),
            None => None,
        };
        if let Some(format) = format.filter(|format| *format != "qcow2") {
            return Err(named(not_amended(format)).into());
        }
        let amended = Amended::parse(options).map_err(named)?;
        let changed = if let Some(name) = &amended.amendment.data_file {
            let image = self.open_with_data_file(&path, name)?;
            self.amend(&path, &image, amended)?
        } else {
            let chain = self.open_chain(&path, &amended)?;
            let image = qcow2_with(&chain, "options that can be amended")?;
            self.amend(&path, image, amended)?
        };
        if self.output == OutputFormat::Json {
            self.print(&path, changed)?;
        }
        Ok(0)
    }

    fn print_options(&self) -> Result<(), Failure> {
        if let Some(name) = &self.format {
            let format = block::chain::format_named(&FORMATS, name)?.name();
            if format != "qcow2" {
                return Err(not_amended(format).into());
            }
        }
        Ok(io::stdout().write_all(Amended::HELP.as_bytes())?)
    }

    fn opening(&self, access: Access) -> Opening {
        Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access,
            direct: self.cache.direct(),
        }
    }

    /// The image, with what it is based on if that matters: a disk that grows must not show more of it.
    fn open_chain(&self, path: &Path, amended: &Amended) -> Result<Chain> {
        let opening = self.opening(Access::WRITE);
        if amended.amendment.size.is_some() && amended.backing.is_none() {
            opening.chain(path, self.format.as_deref())
        } else {
            opening.detached(path, self.format.as_deref())
        }
    }

    /// The image with the file that it is to name for its data: the one that it names may be gone.
    fn open_with_data_file(&self, path: &Path, name: &str) -> Result<Image> {
        let opening = self.opening(Access::WRITE);
        let (storage, format) = opening.file(path, self.format.as_deref())?;
        if format != "qcow2" {
            return Err(not_amended(format).with_path(path));
        }
        let header = Header::read(&*storage)?;
        let mut options = qcow2::OpenOptions {
            access: Access::WRITE,
            backing: match header.backing() {
                Some(_) => Backing::Detached,
                None => Backing::None,
            },
            ..qcow2::OpenOptions::default()
        };
        if header.data_file().is_some() && !name.is_empty() {
            let file = backing_path(path, name);
            if is_one_of(&file, [&storage]) {
                let message = "the image cannot be its own data file";
                return Err(Error::invalid(message).with_path(path));
            }
            let data_file = opening.file(&file, Some("raw"));
            let (data_file, _) = data_file.map_err(|error| {
                error.with_hint("move or copy the data file there before the image names it")
            })?;
            options.data_file = Some(data_file);
        }
        Image::open(storage, options).map_err(|error| error.with_path(path))
    }

    fn amend(&self, path: &Path, image: &Image, amended: Amended) -> Result<bool> {
        let named = |error: Error| error.with_path(path);
        let mut amendment = amended.amendment;
        let old = image.header().backing();
        let new = new_backing(path, old.as_ref(), amended.backing, amended.backing_format).map_err(named)?;
        if let Some(new) = new {
            self.check_backing(path, image, old.as_ref(), &new)
                .map_err(named)?;
            amendment.backing = Some(new);
        }
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        // Bytes of the file stand for what is gone through, so that the bar shows something people know.
        let total = block::Overlay::storage(image).len()?;
        let result = image.amend(&amendment, &mut |progress| {
            let done = (progress.fraction() * total as f64) as u64;
            watch.report(Progress { done, total });
            if cancel.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        watch.finish();
        result
    }

    /// Fails for a backing file that leads back to the image, and for one that changes what snapshots read as.
    fn check_backing(
        &self,
        path: &Path,
        image: &Image,
        old: Option<&BackingReference>,
        new: &NewBacking,
    ) -> Result<()> {
        let name = match new {
            NewBacking::Nothing => None,
            NewBacking::File(reference) => Some(&reference.name),
        };
        if let NewBacking::File(reference) = new {
            let format = reference.format.as_deref().unwrap_or_default();
            block::chain::format_named(&FORMATS, format)?;
            // One that is not there, or not yet, is the user's business; one that can be opened must not lead back.
            let share = Access {
                write: false,
                force_share: true,
            };
            let file = backing_path(path, &reference.name);
            let own = [block::Overlay::storage(image)];
            let loops = match self.opening(share).chain(&file, Some(format)) {
                Ok(chain) => is_one_of(path, chain.layers().iter().map(|layer| &layer.storage)),
                Err(_) => is_one_of(&file, own),
            };
            if loops {
                return Err(Error::invalid(format!(
                    "it cannot be based on {}, which is this image or based on it",
                    escape(&file.to_string_lossy())
                )));
            }
        }
        let snapshots = image.snapshots()?;
        if self.force || snapshots.is_empty() || old.map(|old| &old.name) == name {
            return Ok(());
        }
        let message = format!(
            "it has {} internal snapshots, which are based on the same backing file and would read something else",
            snapshots.len()
        );
        Err(Error::invalid(message)
            .with_hint("if the new backing file holds the same, or they do not matter, go on with --force"))
    }

    /// What the image is now.
    fn print(&self, path: &Path, changed: bool) -> Result<(), Failure> {
        let share = Access {
            write: false,
            force_share: true,
        };
        let (storage, _) = self.opening(share).file(path, Some("qcow2"))?;
        let header = Header::read(&*storage)?;
        let (backing, data_file) = (header.backing(), header.data_file());
        let summary = json!({
            "filename": path.to_string_lossy(),
            "changed": changed,
            "compat": match header.version {
                Version::V2 => "0.10",
                Version::V3 => "1.1",
            },
            "compression-type": header.compression.name(),
            "lazy-refcounts": header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS),
            "refcount-bits": 1 << header.geometry.refcount_order,
            "virtual-size": header.size,
            "backing-filename": backing.as_ref().map(|backing| &backing.name),
            "backing-filename-format": backing.as_ref().and_then(|backing| backing.format.as_ref()),
            "data-file": data_file.as_ref().and_then(|file| file.name.as_ref()),
            "data-file-raw": data_file.as_ref().map(|file| file.raw),
        });
        Ok(output::json(&mut io::stdout().lock(), &summary)?)
    }
}

/// What the image is to be based on, if the options say anything about that.
fn new_backing(
    path: &Path,
    old: Option<&BackingReference>,
    name: Option<String>,
    format: Option<String>,
) -> Result<Option<NewBacking>> {
    let reference = match (name, format, old) {
        (None, None, _) => return Ok(None),
        (Some(name), None, _) if name.is_empty() => return Ok(Some(NewBacking::Nothing)),
        (Some(name), Some(_), _) if name.is_empty() => {
            let message = "backing_fmt is the format of a backing file, and there is to be none";
            return Err(Error::invalid(message));
        }
        (None, Some(_), None) => {
            let message = "backing_fmt is the format of a backing file, and the image has none";
            return Err(Error::invalid(message).with_hint("name one with backing_file=FILE"));
        }
        (None, format, Some(old)) => BackingReference {
            name: old.name.clone(),
            format,
        },
        (Some(name), None, Some(old)) if old.name == name && old.format.is_some() => old.clone(),
        (Some(name), None, _) => {
            let message = format!(
                "the format of the backing file \"{}\" is not stated",
                escape(&name)
            );
            let hint = "say which it is with backing_fmt=FORMAT";
            return Err(Error::invalid(message).with_path(path).with_hint(hint));
        }
        (Some(name), format, _) => BackingReference { name, format },
    };
    Ok(Some(NewBacking::File(reference)))
}

fn not_amended(format: &str) -> Error {
    Error::unsupported(format!("a {format} image has no options that can be amended"))
}
