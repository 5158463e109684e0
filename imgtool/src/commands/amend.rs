//! `imgtool amend`: change what an image is, in place.

use std::any::Any;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::chain::{Chain, Layer};
use block::{Access, Backing, BackingReference, Error, ErrorKind, Keys, Result, escape};
use clap::Args;
use ops::Progress;
use qcow2::{CompatibleFeatures, Header, Image, NewBacking, Version};
use serde_json::json;

use super::Outcome;
use super::rebase::check_name;
use crate::arguments::{CacheMode, OpenArgs, WatchArgs};
use crate::failure::Failure;
use crate::formats::{Amended, LUKS_AMEND_OPTIONS, amended_luks};
use crate::images::{FORMATS, Opening, backing_path};
use crate::option_list::OptionList;
use crate::output::{self, OutputFormat};
use crate::target::is_one_of;
use crate::watch::Watch;
use crate::{interrupt, keys};

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
  imgtool amend --key old.key -o encrypt.new-key=new.key,encrypt.old-key=old.key disk.qcow2
  imgtool amend -f luks --key old.key -o new-key=new.key,old-key=old.key disk.luks
  imgtool amend -f luks -o help")]
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
        if let Some(format) = format.filter(|format| !matches!(*format, "qcow2" | "luks")) {
            return Err(named(not_amended(format)).into());
        }
        let share = Access {
            write: false,
            force_share: true,
        };
        let (_, format) = self.opening(share).file(&path, format)?;
        if format == "luks" {
            return self.amend_luks(&path, options);
        }
        let amended = Amended::parse(options).map_err(named)?;
        let changed = if let Some(name) = &amended.amendment.data_file {
            let layer = self.open_with_data_file(&path, name)?;
            self.amend(&layer, amended)?
        } else {
            let chain = self.open_chain(&path, &amended)?;
            self.amend(&chain.layers()[0], amended)?
        };
        if self.output == OutputFormat::Json {
            self.print(&path, changed)?;
        }
        Ok(0)
    }

    fn print_options(&self) -> Result<(), Failure> {
        if let Some(name) = &self.format {
            let format = block::chain::format_named(&FORMATS, name)?.name();
            match format {
                "qcow2" => {}
                "luks" => return Ok(io::stdout().write_all(LUKS_AMEND_OPTIONS.as_bytes())?),
                _ => return Err(not_amended(format).into()),
            }
        }
        Ok(io::stdout().write_all(Amended::HELP.as_bytes())?)
    }

    /// Changes the key slots of a disk in LUKS's own form.
    fn amend_luks(&self, path: &Path, options: OptionList) -> Outcome {
        let change = amended_luks(options).map_err(|error| error.with_path(path))?;
        let chain = self.opening(Access::WRITE).chain(path, Some("luks"))?;
        let device: &dyn Any = &**chain.active();
        let Some(image) = device.downcast_ref::<encryption::Image>() else {
            return Err(not_amended(chain.layers()[0].format).with_path(path).into());
        };
        let changed = change.apply(image)?;
        if self.output == OutputFormat::Json {
            let luks = encryption::read_luks(&*chain.layers()[0].storage)?;
            let summary = json!({
                "filename": path.to_string_lossy(),
                "changed": changed,
                "virtual-size": chain.size(),
                "slots": luks.slots().iter().map(|slot| slot.active).collect::<Vec<_>>(),
            });
            output::json(&mut io::stdout().lock(), &summary)?;
        }
        Ok(0)
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
    fn open_with_data_file(&self, path: &Path, name: &str) -> Result<Layer> {
        let opening = self.opening(Access::WRITE);
        let (storage, format) = opening.file(path, self.format.as_deref())?;
        if format != "qcow2" {
            return Err(not_amended(format).with_path(path));
        }
        let header = Header::read(&*storage)?;
        let mut options = qcow2::OpenOptions {
            access: Access::WRITE,
            keys: Keys::Passphrases(keys::given().clone()),
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
        let data_file = options.data_file.clone();
        let image =
            Image::open(storage.clone(), options).map_err(|error| keys::explain(error.with_path(path)))?;
        Ok(Layer {
            path: path.to_owned(),
            format,
            storage,
            data_file,
            device: Arc::new(image),
        })
    }

    fn amend(&self, layer: &Layer, amended: Amended) -> Result<bool> {
        let device: &dyn Any = &*layer.device;
        let Some(image) = device.downcast_ref::<Image>() else {
            return Err(not_amended(layer.format).with_path(&layer.path));
        };
        let mut amendment = amended.amendment;
        let old = layer.device.backing_reference();
        let new = new_backing(old.as_ref(), amended.backing, amended.backing_format);
        if let Some(new) = new.map_err(|error| error.with_path(&layer.path))? {
            let reference = match &new {
                NewBacking::Nothing => None,
                NewBacking::File(reference) => Some(reference),
            };
            check_name(layer, reference, self.opening(Access::READ), self.force)?;
            amendment.backing = Some(new);
        }
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        // Bytes of the file stand for what is gone through, so that the bar shows something people know.
        let total = layer.storage.len()?;
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
        let result = result.and_then(|changed| Ok(amended.keys.apply(image)? || changed));
        result.map_err(|error| match error.kind() {
            ErrorKind::NoSpace if error.hint().is_none() => {
                error.with_hint("the disk reads as before; make room on that file system, and run it again")
            }
            _ => error,
        })
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
            return Err(Error::invalid(message).with_hint(hint));
        }
        (Some(name), format, _) => BackingReference { name, format },
    };
    Ok(Some(NewBacking::File(reference)))
}

fn not_amended(format: &str) -> Error {
    Error::unsupported(format!("a {format} image has no options that can be amended"))
}
