//! `imgtool run`: start a machine with QEMU.

use std::env;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{self, PathBuf};
use std::time::{Duration, SystemTime};

use block::{Error, ErrorKind, Result, escape};
use clap::Args;
use machines::launch::Launcher;
use machines::run::{Ended, RunOptions, WaitFor};
use machines::store::{Instance, NewInstances, Store};
use machines::{Accel, Choice, Machine};
use ops::Control;

use super::personal::PersonalArgs;
use super::{Outcome, clone, doctor};
use crate::interrupt;
use crate::output::note;
use crate::stores::{MachineArgs, StoreArgs, tell_broken_keys};

/// Start a machine with QEMU, with its console on this terminal
///
/// Ctrl-A x turns it off at once, and Ctrl-A c goes to QEMU's monitor and back. The command ends with the machine: with exit code
/// 0 where that turned itself off. With --wait-for it is 3 where the guest was asked to turn itself off, did not, and was turned off: what it
/// had not flushed is lost.
///
/// KVM is used where it really runs a guest, which is tried once after each boot of this host.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool run web-1
  imgtool run web-1 --net user,fwd=2222:22 --memory 2G
  imgtool run --from debian-12 web-1            makes web-1 first
  imgtool run --from debian-12 try --ephemeral  leaves nothing behind
  imgtool run web-1 --ephemeral --wait-for 'login: $' --timeout 120
  imgtool run web-1 --print                     only shows the command line")]
pub(crate) struct RunArgs {
    /// Make the machine first, of this template; it is an error where there is a machine of that name
    #[arg(long, value_name = "TEMPLATE")]
    from: Option<String>,
    /// Print QEMU's command line, as a shell takes it (with credentials: as bash does), and run nothing
    #[arg(long, conflicts_with_all = ["ephemeral", "wait_for", "from"])]
    print: bool,
    /// What runs the machine: kvm, tcg or auto, which is kvm where that works
    #[arg(long, default_value = "auto", value_name = "WHAT")]
    accel: Choice,
    /// Throw away at the end what the machine has written, and a machine that --from has made
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
        self.machine.settings()?;
        // Gone again unless it has run, and where it is ephemeral in any case.
        let made = match &self.from {
            Some(from) => Some(Made::new(&store, from, &self.name, &control)?),
            None => None,
        };
        let machine = find(&store, &self.name, &self.machine, &control)?;
        if !self.ephemeral && !self.print {
            let image = store.instance(&self.name)?.image();
            Store::refuse_base(&image, Some(&store))?;
        }
        let (accel, why) = self
            .accel
            .accel(machine.architecture, doctor::cache().as_deref())?;
        if self.print {
            let description = Launcher::Qemu.ready(&machine, accel, None, &control)?;
            write!(io::stdout(), "{}", description.text)?;
            return Ok(0);
        }
        let options = RunOptions {
            accel,
            ephemeral: self.ephemeral.then(scratch),
            wait_for,
        };
        let ready = machines::run::ready(&machine, &options)?;
        if !self.quiet {
            self.announce(&machine, accel, why);
        }
        let mut console = Console::default();
        let ended = ready.run(&mut console, &cancel);
        console.finish();
        if let Some(made) = made.filter(|_| !self.ephemeral) {
            made.has_run(&ended);
        }
        Ok(exit_code(ended?))
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

/// Standard output, where what is waited for may be in the middle of a line.
#[derive(Default)]
struct Console {
    last: Option<u8>,
}

impl Console {
    /// Ends the last line on a terminal, for what comes next there; a file has what the guest wrote and nothing else.
    fn finish(&self) {
        if self.last.is_some_and(|last| last != b'\n') && io::stdout().is_terminal() {
            // With nobody left to read it there is nothing to be done about that.
            let _ = writeln!(io::stdout());
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = io::stdout().write(bytes)?;
        self.last = bytes[..len].last().copied().or(self.last);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Says of a guest that did not turn itself off what that means, and by its exit code.
fn exit_code(ended: Ended) -> u8 {
    match ended {
        Ended::Itself | Ended::AtOnce => 0,
        Ended::Ignored => {
            // With nobody left to read it there is nothing to be done about that.
            let _ = writeln!(
                io::stderr(),
                "imgtool: the guest was asked to turn itself off, did not, and was turned off: what it had not flushed is lost"
            );
            3
        }
    }
}

/// A machine that was made to be run, and is gone when dropped unless it was.
struct Made<'s> {
    store: &'s Store,
    instance: Option<Instance>,
    /// Length of its disk's file, and when that was written to.
    disk: Option<(u64, SystemTime)>,
}

impl<'s> Made<'s> {
    fn new(store: &'s Store, from: &str, name: &str, control: &Control<'_>) -> Result<Self> {
        let new = NewInstances {
            names: vec![name.parse()?],
            ..NewInstances::default()
        };
        let instance = clone::make(store, from, &new, &PersonalArgs::default(), control)?.pop();
        Ok(Self {
            store,
            disk: instance.as_ref().and_then(stamp),
            instance,
        })
    }

    /// It stays, unless QEMU failed before anything was written to its disk.
    fn has_run(mut self, ended: &Result<Ended>) {
        let failed = ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::Io);
        if !failed || self.instance.as_ref().and_then(stamp) != self.disk {
            self.instance = None;
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let Some(instance) = self.instance.take() else {
            return;
        };
        if let Err(error) = self.store.remove_instance(&instance) {
            note(&format!("machine {} was made, and stays: {error}", instance.name));
        }
    }
}

fn stamp(instance: &Instance) -> Option<(u64, SystemTime)> {
    let file = fs::metadata(instance.image()).ok()?;
    Some((file.len(), file.modified().ok()?))
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

/// A machine of the store that can be started, with what the command line says of it.
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
    let with = with.settings()?;
    let machine = store.machine(&instance, with.clone(), control)?;
    store.check_starts(&instance, with)?;
    Ok(machine)
}
