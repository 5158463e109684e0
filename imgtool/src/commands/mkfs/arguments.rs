//! What is said of whatever is made of a source.

use std::io::Write;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use clap::Args;

use super::is_block_device;
use super::options::FilesystemArgs;
use super::source::TreeArgs;
use crate::arguments::{OpenArgs, ThreadArgs, WatchArgs};
use crate::failure::Failure;
use crate::formats::NewImage;
use crate::option_list::OptionList;
use crate::output::OutputFormat;

/// Extensions of names of images that are not raw.
const OTHER_FORMATS: [&str; 7] = ["qcow2", "qcow", "qed", "vdi", "vhd", "vhdx", "vmdk"];

/// The arguments that `mkfs` and `mkdisk` have in common.
#[derive(Debug, Args)]
pub(in crate::commands) struct MakeArgs {
    /// Format of the new image [default: raw]
    #[arg(short = 'O', long, value_name = "FORMAT")]
    pub(in crate::commands) target_format: Option<String>,
    /// Options of that format, as key=value,key=value; `help` lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS")]
    options: Vec<String>,
    #[command(flatten)]
    pub(in crate::commands) filesystem: FilesystemArgs,
    #[command(flatten)]
    pub(in crate::commands) tree: TreeArgs,
    /// How to print what was made
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(in crate::commands) output: OutputFormat,
    #[command(flatten)]
    pub(in crate::commands) threads: ThreadArgs,
    #[command(flatten)]
    pub(in crate::commands) watch: WatchArgs,
    #[command(flatten)]
    pub(in crate::commands) open: OpenArgs,
    /// A directory, a tar archive, - for an archive on standard input, or a container image
    #[arg(required_unless_present = "options")]
    source: Option<PathBuf>,
    /// The new image, or what to write to
    #[arg(required_unless_present = "options")]
    target: Option<PathBuf>,
}

impl MakeArgs {
    /// Source, target and options of the image, or `None` where it was only asked which options there are.
    pub(in crate::commands) fn start(
        &self,
        out: &mut dyn Write,
    ) -> Result<Option<(&Path, &Path, OptionList)>, Failure> {
        self.open.check()?;
        let options = OptionList::parse(&self.options)?;
        if options.help {
            NewImage::print_options(self.format(), out)??;
            return Ok(None);
        }
        match (&self.source, &self.target) {
            (Some(source), Some(target)) => Ok(Some((source, target, options))),
            _ => Err(Error::invalid("a source and a target have to be named")
                .with_hint("the source first, such as rootfs/ and root.img")
                .into()),
        }
    }

    fn format(&self) -> &str {
        self.target_format.as_deref().unwrap_or("raw")
    }

    /// Refuses a new image that would have another format than its name says, unless that was asked for: whoever opens it
    /// by its name would be wrong about it.
    fn check_name(&self, target: &Path) -> Result<()> {
        let extension = target
            .extension()
            .map(|extension| extension.to_string_lossy().to_lowercase());
        let Some(named) = extension.filter(|extension| OTHER_FORMATS.contains(&&**extension)) else {
            return Ok(());
        };
        if self.target_format.is_some() || is_block_device(target) {
            return Ok(());
        }
        let hint = match &*named {
            "qcow2" => "make one with -O qcow2, or insist with -O raw",
            _ => "name it otherwise, or insist with -O raw",
        };
        let message = format!("the name is that of a {named} image, and a raw one would be made");
        Err(Error::invalid(message).with_path(target).with_hint(hint))
    }

    /// The image that `options` ask for, whose size follows from what is put in it.
    pub(in crate::commands) fn new_image(&self, target: &Path, options: OptionList) -> Result<NewImage> {
        self.check_name(target)?;
        let image = NewImage::parse(self.format(), options, None, None);
        let image = image.map_err(|error| error.with_path(target))?;
        let wrong = match () {
            () if image.size.is_some() => {
                Some(("the size is not an option of the image here", "give --size"))
            }
            () if image.backing.is_some() => Some((
                "a new filesystem needs no backing file",
                "make it first, and clones of it then: imgtool create -f qcow2 -b",
            )),
            () if image.format() == "luks" => Some((
                "a filesystem is not made in a luks image, which reads as noise at first",
                "convert it afterwards: imgtool convert -O luks --key FILE",
            )),
            () if image.is_preallocated() => Some((
                "an image whose size is found out cannot be preallocated",
                "convert it afterwards: imgtool convert -o preallocation=...",
            )),
            () => None,
        };
        match wrong {
            Some((wrong, hint)) => Err(Error::invalid(wrong).with_path(target).with_hint(hint)),
            None => Ok(image),
        }
    }
}
