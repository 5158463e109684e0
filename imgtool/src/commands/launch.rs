//! `imgtool launch`: describe a machine to a launcher.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use clap::Args;
use machines::Choice;
use machines::launch::{Description, Launcher, is_as_made, libvirt_is_kept_out, quoted, sign};
use ops::Control;

use super::{Outcome, doctor, run};
use crate::arguments::WatchArgs;
use crate::images::directory_of;
use crate::interrupt;
use crate::output::note;
use crate::stores::{MachineArgs, StoreArgs};
use crate::target::{Making, TargetFile};
use crate::watch::Watch;

/// Describe a machine to libvirt, QEMU, Firecracker, Cloud Hypervisor, crosvm, kvmtool
///
/// The launcher takes the description as it is. Where it wants a disk or the kernel in another form (Firecracker: a raw disk and
/// an uncompressed kernel), that is made beside the description; such a copy of a disk goes its own way from then on. What the
/// launcher cannot do is an error.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool launch web-1 --format libvirt -o web-1.xml
  imgtool launch web-1 --format qemu >web-1.sh
  imgtool launch web-1 --format firecracker --net bridge=br0 -o /srv/vm/web-1.json")]
pub(crate) struct LaunchArgs {
    /// The launcher: libvirt, qemu, firecracker, cloud-hypervisor, crosvm or kvmtool
    #[arg(long, value_name = "LAUNCHER")]
    format: Launcher,
    /// Write the description to this file [default: standard output]
    #[arg(short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where files are made that the launcher wants in another form [default: the directory of FILE]
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Replace FILE whatever it is: what launch has not made, or somebody has changed since
    #[arg(long)]
    force: bool,
    /// What runs the machine, for libvirt and qemu: kvm, tcg or auto, which is kvm where that works here
    #[arg(long, default_value = "auto", value_name = "WHAT")]
    accel: Choice,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// The machine
    name: String,
}

/// What a launcher is told.
struct Described<'a> {
    description: Description,
    /// The file for it.
    target: Option<(&'a Path, TargetFile)>,
    /// What keeps libvirt from the machine's files.
    kept_out: Option<Error>,
}

impl LaunchArgs {
    pub(crate) fn run(self) -> Outcome {
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let cancel = interrupt::watch()?;
        let described = self.describe(&Control::new(cancel.clone(), &report));
        watch.finish();
        let Described {
            description,
            target,
            kept_out,
        } = described?;
        if let Some(error) = kept_out.filter(|_| !self.watch.quiet) {
            note(&format!("{error}: {}", error.hint().unwrap_or_default()));
        }
        let Some((path, target)) = target else {
            write!(io::stdout(), "{}", description.text)?;
            return Ok(0);
        };
        target.storage().write_all_at(description.text.as_bytes(), 0)?;
        target.finish(&cancel)?;
        sign(path);
        if !self.watch.quiet {
            let file = quoted(&path.to_string_lossy());
            for step in &description.steps {
                writeln!(io::stdout(), "{}", escape(&step.replace("FILE", &file)))?;
            }
        }
        Ok(0)
    }

    fn describe(&self, control: &Control<'_>) -> Result<Described<'_>> {
        let store = run::open(&self.store)?;
        let machine = run::find(&store, &self.name, &self.machine, control)?;
        let (accel, _) = match self.format {
            Launcher::Libvirt | Launcher::Qemu => self
                .accel
                .accel(machine.architecture, doctor::cache().as_deref())?,
            // They have nothing else.
            _ => (machines::Accel::Kvm, None),
        };
        let out = self.out.as_deref().filter(|out| *out != Path::new("-"));
        let files = self.files.as_deref().or_else(|| out.map(directory_of));
        let absolute = files.map(std::path::absolute).transpose();
        let files = absolute.map_err(|error| Error::io("find the directory for files", error))?;
        if let Some(files) = self.files.as_deref() {
            self.store.refuse_store_file(&files.join(&self.name))?;
        }
        // Before all that takes time, and leaves files.
        let target = match out {
            Some(out) => Some((out, self.target(out, !machine.credentials.is_empty())?)),
            None => None,
        };
        let description = self.format.ready(&machine, accel, files.as_deref(), control)?;
        let is_libvirt = self.format == Launcher::Libvirt;
        Ok(Described {
            description,
            target,
            kept_out: is_libvirt.then(|| libvirt_is_kept_out(&machine)).flatten(),
        })
    }

    /// Makes ready to write a description, which takes the place of no machine and no image that is in use.
    fn target(&self, path: &Path, has_secrets: bool) -> Result<TargetFile> {
        self.store.refuse_store_file(path)?;
        let making = Making {
            durable: true,
            private: has_secrets,
            ..Making::default()
        };
        let target = TargetFile::new(path, making)?;
        if target.is_device() {
            let error = Error::invalid("a description is written to a file, and this is a device");
            return Err(error.with_path(path).with_hint("name a file with -o"));
        }
        let holds_something = fs::metadata(path).is_ok_and(|file| file.len() > 0);
        if holds_something && !self.force && !is_as_made(path) {
            let message = "it is there already, and is not a description as imgtool launch has made it";
            let error = Error::invalid(message).with_path(path);
            return Err(error.with_hint("--force replaces it"));
        }
        Ok(target)
    }
}
