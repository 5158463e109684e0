//! `imgtool resize`: change the size of a disk.

mod contents;
mod superblocks;

use std::any::Any;
use std::io::Write;
use std::path::PathBuf;

use block::chain::Chain;
use block::{Access, Error, ErrorKind, Resize, Result};
use clap::Args;

use self::contents::Contents;
use super::Outcome;
use crate::arguments::OpenArgs;
use crate::formats;
use crate::images::Opening;
use crate::output::note;
use crate::size::NewSize;
use crate::stores::refuse_base;

/// Change the size of a disk
///
/// What is added reads as zeros, in luks images as noise unless --preallocation is full; partitions and file systems on the disk
/// stay as they are, until imgtool partition grow and imgtool fs grow make them larger. Before a disk is made smaller, they must be
/// made so: what would cut through a partition is refused without --force, and so is what would cut through what is all of the
/// disk: a filesystem (ext2, ext3, ext4, XFS, Btrfs, NTFS, FAT, ISO 9660, squashfs), a physical volume of LVM, or swap. A LUKS
/// volume does not say where it ends, and is not cut at all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool resize disk.qcow2 20G
  imgtool resize disk.qcow2 +5G
  imgtool resize web-1 40G                       the disk of a machine
  imgtool resize --shrink disk.qcow2 -5G")]
pub(crate) struct ResizeArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Allow the disk to become smaller: what lies beyond its new end is lost
    #[arg(long)]
    shrink: bool,
    /// With --shrink, cut through filesystems and partitions, too
    #[arg(long, requires = "shrink")]
    force: bool,
    /// What is laid out of the part that is added: off, metadata, falloc or full
    #[arg(long, value_name = "MODE")]
    preallocation: Option<String>,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    open: OpenArgs,
    /// The image, or the name of a machine
    file: PathBuf,
    /// The new size, or +SIZE to add and -SIZE to take away
    size: String,
}

impl ResizeArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        self.open.check()?;
        let named = |error: Error| error.with_path(&self.file);
        let size = NewSize::parse(&self.size).map_err(named)?;
        let preallocation = self
            .preallocation
            .as_deref()
            .map(formats::preallocation)
            .transpose()?;
        let opening = Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access::WRITE,
            direct: false,
        };
        let chain = opening.chain(&self.file, self.format.as_deref())?;
        refuse_base(&chain.layers()[0].path)?;
        let old = chain.size();
        let new = size.of(old).map_err(named)?;
        if new < old && !self.shrink {
            let message = format!(
                "the disk has {old} bytes, and {new} would cut off its last {}",
                old - new
            );
            let hint = "if nothing that is needed lies there, allow it with --shrink";
            return Err(named(Error::invalid(message)).with_hint(hint).into());
        }
        if new < old && preallocation.is_some_and(|mode| mode != block::Preallocation::Off) {
            return Err(named(Error::invalid(
                "nothing can be preallocated when a disk becomes smaller",
            ))
            .into());
        }
        if new < old && !self.force {
            self.check_fits(&chain, new)?;
        }
        let how = Resize {
            shrink: self.shrink,
            preallocation: preallocation.unwrap_or_default(),
        };
        resize(&chain, new, how)?;
        chain.settle()?;
        let next = (new > old && !self.quiet).then(|| self.next_step(&chain));
        drop(chain);
        if !self.quiet {
            writeln!(out, "Image resized.")?;
        }
        if let Some(text) = next.flatten() {
            out.flush()?;
            note(&text);
        }
        Ok(0)
    }

    /// What is to be done for the room to be used, where that is known.
    fn next_step(&self, chain: &Chain) -> Option<String> {
        let disk = chain.device();
        Contents::of(&disk)
            .ok()?
            .next_step(&disk, &self.file.to_string_lossy())
    }

    /// Fails where something on the disk would be cut through, or nobody can tell.
    fn check_fits(&self, chain: &Chain, size: u64) -> Result<()> {
        let contents = Contents::of(&chain.device()).map_err(|error| match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported => {
                let message = format!("nobody can tell what a smaller disk would cut off: {error}");
                let hint = "mend it first; --shrink --force cuts the disk off all the same";
                Error::new(error.kind(), message).with_hint(hint)
            }
            _ => error,
        });
        let fits = contents.and_then(|contents| contents.check_fits(size));
        fits.map_err(|error| error.with_path(&self.file))
    }
}

/// Changes the size of a disk. What is added to one in LUKS's own form is not written to, unless it is to be preallocated: that
/// would take its time, and all the room.
pub(crate) fn resize(chain: &Chain, size: u64, how: Resize) -> Result<()> {
    let device: &dyn Any = &**chain.active();
    match device.downcast_ref::<encryption::Image>() {
        Some(image) => image.resize_unwritten(size, how),
        None => chain.resize(size, how),
    }
}
