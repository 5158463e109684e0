//! `imgtool template export`: a template as one file.

use std::io::Write;
use std::path::PathBuf;

use block::{Access, Error, Result};
use clap::{Args, ValueEnum};
use machines::Root;
use machines::archive::write_tar;
use ops::{Cancel, Control, ConvertOptions};

use crate::arguments::WatchArgs;
use crate::commands::Outcome;
use crate::images::Opening;
use crate::interrupt;
use crate::stores::StoreArgs;
use crate::target::{Making, TargetFile};
use crate::watch::Watch;

/// What a template becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The image as it is, byte by byte.
    #[default]
    Qcow2,
    /// The disk as a raw image.
    Raw,
    /// The tree of the root filesystem as a tar archive: for containers, and for mkfs.
    Tar,
}

/// Write a template to a file
///
/// The file appears under its name when it is whole, and a new one is readable to its owner only, since it has password hashes in it. An archive has modes, owners, times to the nanosecond, devices, hard links, holes and
/// extended attributes; sockets are left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template export debian-12 -o debian-12.qcow2
  imgtool template export debian-12 --format raw -o debian-12.img
  imgtool template export debian-12 --format tar -o rootfs.tar")]
pub(super) struct ExportArgs {
    /// What it becomes
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// The file, which is replaced if it is there
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Its alias, or the first digits of its fingerprint
    template: String,
}

impl ExportArgs {
    pub(super) fn run(self) -> Outcome {
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let cancel = interrupt::watch()?;
        let written = self.export(&Control::new(cancel.clone(), &report), &cancel);
        watch.finish();
        let sockets = written?;
        if sockets > 0 && !self.watch.quiet {
            // With nobody left to read it there is nothing to be done about that.
            let _ = writeln!(
                std::io::stderr(),
                "imgtool: left out {sockets} sockets, which archives cannot have"
            );
        }
        Ok(0)
    }

    fn export(&self, control: &Control<'_>, cancel: &Cancel) -> Result<u64> {
        let template = self.store.open()?.template(&self.template)?;
        template.check(control)?;
        let image = template.image();
        let opening = Opening {
            access: Access::READ,
            ..Opening::default()
        };
        let read_as = if self.format == Format::Qcow2 {
            "raw"
        } else {
            "qcow2"
        };
        let chain = opening.alone(&image, Some(read_as))?;
        let target = TargetFile::new(
            &self.output,
            Making {
                durable: true,
                private: true,
                ..Making::default()
            },
        )?;
        let storage = target.storage();
        let mut sockets = 0;
        if self.format == Format::Tar {
            let Some(root) = Root::find(&chain.device())? else {
                let error = Error::invalid("the disk has no root filesystem of ext4 to make an archive of");
                return Err(error.with_path(image));
            };
            let mut at = 0;
            let mut sink = |bytes: &[u8]| {
                storage.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
                Ok(())
            };
            sockets = write_tar(&root.filesystem()?, &mut sink, control)?;
        } else {
            let len = match self.format {
                Format::Qcow2 => chain.layers()[0].storage.len()?,
                _ => chain.size(),
            };
            storage.set_len(len)?;
            let disk = raw::Image::open(storage.clone(), Access::WRITE)?;
            ops::convert(&*chain.device(), &disk, &ConvertOptions::new(), control)?;
        }
        drop(storage);
        target.finish(cancel)?;
        Ok(sockets)
    }
}
