//! `imgtool run`: start a machine with QEMU.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::{self, PathBuf};
use std::time::Duration;

use block::{Error, Result, escape};
use clap::Args;
use machines::launch::Launcher;
use machines::run::{RunOptions, WaitFor};
use machines::store::{NewInstances, Store};
use machines::{Accel, Choice, Machine};
use ops::{Cancel, Control};

use super::personal::PersonalArgs;
use super::{Outcome, clone, doctor};
use crate::interrupt;
use crate::stores::{MachineArgs, StoreArgs, tell_broken_keys};

/// Start a machine with QEMU, with its console on this terminal
///
/// Ctrl-A x turns it off at once, and Ctrl-A c goes to QEMU's monitor and back. The command ends with the machine: with exit code
/// 0 where that turned itself off.
///
/// KVM is used where it really runs a guest, which is tried once after each boot of this host.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool run web-1
  imgtool run web-1 --net user,fwd=2222:22 --memory 2G
  imgtool run --from debian-12 web-1            makes web-1 first
  imgtool run web-1 --ephemeral --wait-for 'login: $' --timeout 120
  imgtool run web-1 --print                     only shows the command line")]
pub(crate) struct RunArgs {
    /// Make the machine first, of this template
    #[arg(long, value_name = "TEMPLATE")]
    from: Option<String>,
    /// Print QEMU's command line, as a shell takes it (with credentials: as bash does), and run nothing
    #[arg(long, conflicts_with_all = ["ephemeral", "wait_for"])]
    print: bool,
    /// What runs the machine: kvm, tcg or auto, which is kvm where that works
    #[arg(long, default_value = "auto", value_name = "WHAT")]
    accel: Choice,
    /// Throw away at the end what the machine has written
    #[arg(long)]
    ephemeral: bool,
    /// Run until a line of the console matches this regular expression, then turn the machine off
    #[arg(long, value_name = "REGEX")]
    wait_for: Option<String>,
    /// Seconds that may take
    #[arg(long, default_value_t = 600, value_name = "S", requires = "wait_for")]
    timeout: u32,
    /// Seconds that the machine has to turn itself off then, before it is turned off
    #[arg(long, default_value_t = 30, value_name = "S", requires = "wait_for")]
    grace: u32,
    /// Print the machine's console and errors, and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// The machine
    name: String,
}

impl RunArgs {
    pub(crate) fn run(self) -> Outcome {
        let wait_for = self.wait_for()?;
        let cancel = interrupt::watch_patiently()?;
        let control = Control::new(cancel.clone(), &|_| {});
        let store = open(&self.store)?;
        if let Some(from) = &self.from {
            let new = NewInstances {
                names: vec![self.name.parse()?],
                ..NewInstances::default()
            };
            clone::make(&store, from, &new, &PersonalArgs::default(), &control)?;
        }
        let machine = find(&store, &self.name, &self.machine, &control)?;
        let (accel, why) = self
            .accel
            .accel(machine.architecture, doctor::cache().as_deref())?;
        if self.print {
            let description = Launcher::Qemu.ready(&machine, accel, None, &control)?;
            write!(io::stdout(), "{}", description.text)?;
            return Ok(0);
        }
        if !self.quiet {
            self.announce(&machine, accel, why);
        }
        let options = RunOptions {
            accel,
            ephemeral: self.ephemeral.then(scratch),
            wait_for,
        };
        start(&machine, &options, &cancel)
    }

    fn wait_for(&self) -> Result<Option<WaitFor>> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let pattern = self.wait_for.as_deref();
        pattern
            .map(|pattern| WaitFor::new(pattern, seconds(self.timeout), seconds(self.grace)))
            .transpose()
    }

    /// Says what is started, and how it is ended.
    fn announce(&self, machine: &Machine, accel: Accel, why: Option<String>) {
        let on = match (accel, why) {
            (Accel::Kvm, _) => "with KVM".to_owned(),
            (Accel::Tcg, None) => "without KVM".to_owned(),
            (Accel::Tcg, Some(why)) => format!("without KVM, and slowly: {}", escape(&why)),
        };
        let keys = if self.wait_for.is_none() && io::stdin().is_terminal() {
            "; Ctrl-A x turns it off, Ctrl-A c is QEMU's monitor"
        } else {
            ""
        };
        // With nobody left to read it there is nothing to be done about that.
        let _ = writeln!(io::stderr(), "imgtool: {} runs {on}{keys}", machine.name);
    }
}

fn start(machine: &Machine, options: &RunOptions, cancel: &Cancel) -> Outcome {
    machines::run::run(machine, options, &mut io::stdout(), cancel)?;
    Ok(0)
}

/// Where what an ephemeral machine writes goes: /tmp is in memory on many hosts.
fn scratch() -> PathBuf {
    env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// The store, by a name that means the same to every program.
pub(super) fn open(store: &StoreArgs) -> Result<Store> {
    let directory = store.open()?.directory().to_owned();
    let absolute = path::absolute(&directory);
    let store = absolute
        .map(Store::at)
        .map_err(|error| Error::io("find the store", error).with_path(&directory))?;
    tell_broken_keys(&store);
    Ok(store)
}

/// A machine of the store, with what the command line says of it.
pub(super) fn find(store: &Store, name: &str, with: &MachineArgs, control: &Control<'_>) -> Result<Machine> {
    let instance = store.instance(name).map_err(|error| match store.template(name) {
        Ok(_) => Error::invalid(format!(
            "\"{}\" is a template, and only machines are run",
            escape(name)
        ))
        .with_hint(format!(
            "make one of it and run that: imgtool run --from {} NAME",
            escape(name)
        )),
        Err(_) => error,
    })?;
    store.machine(&instance, with.settings()?, control)
}
