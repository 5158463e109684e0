//! `imgtool template export`: a template as one file.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use clap::Args;
use machines::store::TemplateDocument;
use ops::{Cancel, Control};

use super::FormArg;
use crate::arguments::WatchArgs;
use crate::commands::Outcome;
use crate::interrupt;
use crate::output::counted;
use crate::stores::{StoreArgs, refuse_template};
use crate::target::{Making, TargetFile};
use crate::watch::Watch;

/// Write a template to a file
///
/// The file appears under its name when it is whole, and a new one is readable to its owner only, since it has password hashes in it.
/// What is known of the template goes beside it as FILE.toml (qcow2, raw, tar) or is in it (oci, incus), and so does what else the
/// form has no place for: FILE.kernel and FILE.initrd, where they are not on the disk. `imgtool template import FILE` takes all of it back.
///
/// A tar archive has modes, owners, times to the nanosecond, devices, hard links, holes and extended attributes; sockets are left out.
/// A container image is an image layout in a tar archive, which skopeo and podman call oci-archive:FILE. An Incus image is one tar archive;
/// the disk has to boot by UEFI.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool template export debian-12 -o debian-12.qcow2
  imgtool template export debian-12 --format raw -o debian-12.img
  imgtool template export debian-12 --format tar -o rootfs.tar
  imgtool template export debian-12 --format oci -o debian-12.oci.tar
  skopeo copy oci-archive:debian-12.oci.tar oci:layout:debian-12
  imgtool template export debian-12 --format incus -o debian-12.incus.tar
  incus image import debian-12.incus.tar --alias debian-12")]
pub(super) struct ExportArgs {
    /// What it becomes
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: FormArg,
    /// The file, which is replaced if it is there
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Its alias, or the first digits of its fingerprint, four at least
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
                "imgtool: left out {}, which archives cannot have",
                counted(sockets, "socket", "sockets")
            );
        }
        Ok(0)
    }

    fn export(&self, control: &Control<'_>, cancel: &Cancel) -> Result<u64> {
        let template = self.store.open()?.template(&self.template)?;
        let making = Making {
            durable: true,
            private: true,
            ..Making::default()
        };
        check_notes(&beside(&self.output, ".toml"))?;
        self.store.refuse_store_file(&self.output)?;
        let target = TargetFile::new(&self.output, making)?;
        let is_device = target.is_device();
        let exported = template.export(self.format.into(), &target.storage(), control)?;
        target.finish(cancel)?;
        // A disk has nothing beside it that would go with it.
        if !is_device {
            for file in &exported.beside {
                let target = TargetFile::new(&beside(&self.output, file.suffix), making)?;
                target.storage().write_all_at(&file.content, 0)?;
                target.finish(cancel)?;
            }
        }
        Ok(exported.sockets)
    }
}

/// The name of a file with more at its end.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Fails for a file of that name that says nothing of a template: it would be replaced.
fn check_notes(path: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(path) else {
        return Ok(());
    };
    if machines::store::parse::<TemplateDocument>(&text).is_ok() {
        return refuse_template(path);
    }
    let error = Error::invalid("what is known of the template would replace this file");
    Err(error
        .with_path(path)
        .with_hint("choose another name for the output"))
}
