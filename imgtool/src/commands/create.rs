//! `imgtool create`: make an image.

use std::io::Write;
use std::path::{Path, PathBuf};

use block::{Access, BackingReference, Error, Result, escape};
use clap::Args;

use super::Outcome;
use crate::arguments::OpenArgs;
use crate::formats::NewImage;
use crate::images::{Opening, backing_path};
use crate::option_list::OptionList;
use crate::target::{Making, is_one_of};
use crate::targets::Targets;
use crate::{interrupt, size};

/// Make a new image: an empty disk, or a copy-on-write clone of another image
///
/// An image that exists is replaced, unless somebody is using it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool create disk.raw 10G
  imgtool create -f qcow2 disk.qcow2 10G
  imgtool create -f qcow2 -b base.qcow2 -F qcow2 clone.qcow2
  imgtool create -f qcow2 -o cluster_size=1M,compression_type=zstd disk.qcow2 1.5T
  imgtool create -f qcow2 -o encrypt.format=luks --key disk.key disk.qcow2 10G
  imgtool create -f luks --key disk.key disk.luks 10G
  imgtool create -f qcow2 -o help")]
pub(crate) struct CreateArgs {
    /// Format of the new image
    #[arg(short, long, default_value = "raw", value_name = "FORMAT")]
    format: String,
    /// Backing file: the image to read from where the new one holds nothing; a relative name is looked up from the
    /// directory of the new image
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Do not open the backing file
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Options of the format, as key=value,key=value; `help` lists them
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// The new image
    #[arg(required_unless_present = "options")]
    file: Option<PathBuf>,
    /// Size of the disk, such as 512M, 10G or 1.5T; a clone has its backing file's unless one is given
    size: Option<String>,
}

impl CreateArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let options = OptionList::parse(&self.options)?;
        if options.help {
            NewImage::print_options(&self.format, out)??;
            return Ok(0);
        }
        let Some(path) = &self.file else {
            return Err(Error::invalid("no file is named")
                .with_hint("imgtool create -f qcow2 FILE SIZE")
                .into());
        };
        let named = |error: Error| error.with_path(path);
        let mut image = NewImage::parse(
            &self.format,
            options,
            self.backing.clone(),
            self.backing_format.clone(),
        )
        .map_err(named)?;
        if let Some(text) = &self.size {
            image.size = Some(size::parse_disk(text).map_err(named)?);
        }
        if let Some(backing) = image.backing.clone() {
            image.size = self.look_at_backing(path, &backing, image.size)?;
        }
        if image.size.is_none() {
            let hint = format!("imgtool create -f {} {} 10G", image.format(), path.display());
            return Err(named(Error::invalid("the new image needs a size"))
                .with_hint(hint)
                .into());
        }
        image.check().map_err(named)?;
        if !self.quiet {
            writeln!(out, "{}", image.describe(path))?;
            out.flush()?;
        }
        make(path, &image)?;
        Ok(0)
    }

    /// Sees to it that the backing file is there; gives the size that the image is to have.
    fn look_at_backing(
        &self,
        path: &Path,
        backing: &BackingReference,
        size: Option<u64>,
    ) -> Result<Option<u64>> {
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write: false,
                force_share: true,
            },
            direct: false,
        };
        let file = backing_path(path, &backing.name);
        let Some(format) = &backing.format else {
            return Err(no_backing_format(opening, path, &file, &backing.name));
        };
        if self.backing_unsafe {
            return Ok(size);
        }
        let chain = opening.chain(&file, Some(format))?;
        if is_one_of(path, chain.layers().iter().map(|layer| &layer.storage)) {
            return Err(
                Error::invalid("the new image would replace one that it is based on").with_path(path),
            );
        }
        Ok(Some(size.unwrap_or(chain.size())))
    }
}

/// The format of a backing file is never guessed, but what it looks like can be told.
pub(crate) fn no_backing_format(opening: Opening, image: &Path, file: &Path, name: &str) -> Error {
    let message = format!(
        "the format of the backing file \"{}\" is not stated",
        escape(name)
    );
    let error = Error::invalid(message).with_path(image);
    match opening.alone(file, None) {
        Ok(chain) => error.with_hint(format!(
            "it looks like {0}: say -F {0} if it is",
            chain.info().format
        )),
        Err(_) => error.with_hint("say which it is with -F FORMAT"),
    }
}

fn make(path: &Path, image: &NewImage) -> Result<()> {
    let cancel = interrupt::watch()?;
    let targets = Targets::new(path, image, Making::default())?;
    targets.create(image)?;
    targets.finish(&cancel)
}
