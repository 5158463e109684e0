//! `imgtool launch`: describe a machine to a launcher.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use clap::Args;
use machines::Choice;
use machines::launch::{Description, Launcher, quoted};
use ops::Control;

use super::{Outcome, doctor, run};
use crate::arguments::WatchArgs;
use crate::images::directory_of;
use crate::interrupt::{self, Unfinished};
use crate::stores::{MachineArgs, StoreArgs};
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

impl LaunchArgs {
    pub(crate) fn run(self) -> Outcome {
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(interrupt::watch()?, &report);
        let description = self.describe(&control);
        watch.finish();
        let (description, is_secret) = description?;
        let Some(path) = &self.out else {
            write!(io::stdout(), "{}", description.text)?;
            return Ok(0);
        };
        write_file(path, &description.text, is_secret)?;
        if !self.watch.quiet {
            let file = quoted(&path.to_string_lossy());
            for step in &description.steps {
                writeln!(io::stdout(), "{}", escape(&step.replace("FILE", &file)))?;
            }
        }
        Ok(0)
    }

    /// What the launcher is told, and whether it has a secret in it.
    fn describe(&self, control: &Control<'_>) -> Result<(Description, bool)> {
        let store = run::open(&self.store)?;
        let machine = run::find(&store, &self.name, &self.machine, control)?;
        let (accel, _) = match self.format {
            Launcher::Libvirt | Launcher::Qemu => self
                .accel
                .accel(machine.architecture, doctor::cache().as_deref())?,
            // They have nothing else.
            _ => (machines::Accel::Kvm, None),
        };
        let beside = self.out.as_deref().map(directory_of);
        let files = self.files.as_deref().or(beside);
        let absolute = files.map(std::path::absolute).transpose();
        let files = absolute.map_err(|error| Error::io("find the directory for files", error))?;
        let description = self.format.ready(&machine, accel, files.as_deref(), control)?;
        Ok((description, !machine.credentials.is_empty()))
    }
}

/// Writes a file whole, or not at all.
fn write_file(path: &Path, text: &str, is_secret: bool) -> Result<()> {
    let failed = |error| Error::io("write", error).with_path(path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = Unfinished::new(&path.with_file_name(name));
    let mut file = fs::File::create(partial.path()).map_err(failed)?;
    if is_secret {
        let to_owner = fs::Permissions::from_mode(0o600);
        file.set_permissions(to_owner).map_err(failed)?;
    }
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    partial.keep(|partial| fs::rename(partial, path)).map_err(failed)
}
