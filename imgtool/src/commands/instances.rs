//! `imgtool ls`, `show`, `rm` and `rename`: the machines of a store.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use block::{Error, escape};
use clap::Args;
use machines::store::{Instance, InstanceDocument, InstanceName, InstanceState, Listing, Store};
use machines::{Boot, Machine, Network, Settings};
use ops::Control;
use serde_json::{Value, json};

use super::Outcome;
use super::template::{hidden, print_settings, short_time};
use crate::output::{self, OutputFormat, human_size, key};
use crate::stores::StoreArgs;
use crate::table::{self, Table};

/// List machines
///
/// The state is what can be seen without reading a disk: "stopped", "running" where a program that runs machines has the disk locked, "in use" where
/// another has; and what would keep the machine from being started: "base missing", "base changed" where the template's image has another length
/// than it had, "base touched" where it was written to since, be it with the same (`template verify` reads it), "other base", "template missing",
/// "kernel missing", "profile missing", "disk missing" or "disk unreadable".
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool ls
  imgtool ls --output json")]
pub(crate) struct ListArgs {
    /// How to print them
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
}

impl ListArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let store = self.store.open()?;
        let instances = store.instances()?;
        match self.output {
            OutputFormat::Json => output::json(out, &list_as_json(&store, &instances))?,
            OutputFormat::Human => table_of(&store, &instances).print(out)?,
        }
        let missing = instances.away.iter().map(|(_, error)| error);
        Ok(table::tell_broken(out, missing.chain(&instances.broken))?)
    }
}

/// Those of which all is known, and how they are.
fn with_states<'l>(
    store: &Store,
    instances: &'l Listing<Instance>,
) -> impl Iterator<Item = (&'l Instance, InstanceState)> {
    let away = instances.away.iter().map(|(instance, _)| instance);
    let all = instances.found.iter().chain(away);
    all.map(|instance| (instance, store.state(instance)))
}

fn list_as_json(store: &Store, instances: &Listing<Instance>) -> Value {
    let found = with_states(store, instances).map(|(instance, state)| {
        let mut value = as_json(instance);
        value["state"] = json!(key(state.used.words()));
        value["fault"] = json!(state.fault.map(|fault| key(fault.words())));
        value
    });
    let others = instances.others.iter();
    let others = others.map(|error| json!({ "name": name_of(error), "others": true }));
    let broken = instances.broken.iter();
    let broken = broken.map(|error| json!({ "name": name_of(error), "broken": error.to_string() }));
    found.chain(others).chain(broken).collect()
}

fn table_of(store: &Store, instances: &Listing<Instance>) -> Table {
    let mut table = Table::new(&["NAME", "TEMPLATE", "STATE", "ADDRESS", "TAKES", "CREATED"]);
    for (instance, state) in with_states(store, instances) {
        table.row([
            instance.name.to_string(),
            template_of(store, instance),
            state.to_string(),
            instance.mac().to_string(),
            instance.allocated().map(human_size).unwrap_or_default(),
            short_time(instance.document.created),
        ]);
    }
    let others = instances.others.iter().map(|error| (error, "(another user's)"));
    let broken = instances.broken.iter().map(|error| (error, "(broken)"));
    for (error, what) in others.chain(broken) {
        let empty = String::new;
        table.row([
            name_of(error),
            empty(),
            what.to_owned(),
            empty(),
            empty(),
            empty(),
        ]);
    }
    table
}

/// The machine, or the template, whose document an error is about.
pub(super) fn name_of(error: &Error) -> String {
    let stem = error.path().and_then(Path::file_stem);
    stem.map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The name of the template of an instance, or what is known of it where it is gone.
fn template_of(store: &Store, instance: &Instance) -> String {
    match store.base_of(instance) {
        Ok(template) => template.name(),
        Err(_) => instance.document.template.short(),
    }
}

/// Show what is known of a machine
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool show web-1
  imgtool show --output json web-1")]
pub(crate) struct ShowArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
    /// The machine
    name: String,
}

impl ShowArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let store = self.store.open()?;
        let instance = store.instance(&self.name)?;
        let known = Known::of(&store, &instance);
        match self.output {
            OutputFormat::Json => output::json(out, &known.as_json())?,
            OutputFormat::Human => known.print(out)?,
        }
        Ok(table::tell_broken(out, &known.missing)?)
    }
}

/// What is known of a machine, though something may be missing that it needs.
struct Known<'s> {
    store: &'s Store,
    instance: &'s Instance,
    /// As far as they are known.
    settings: Settings,
    /// All of it, where nothing is missing.
    machine: Option<Machine>,
    /// Who uses its disk.
    user: Option<Error>,
    missing: Vec<Error>,
}

impl<'s> Known<'s> {
    fn of(store: &'s Store, instance: &'s Instance) -> Self {
        let (settings, mut missing) = store.known_settings(instance);
        let control = Control::unwatched();
        let mut machine = None;
        let mut miss = |error: Error| {
            // One cause can be met twice.
            if missing.iter().all(|other| other.to_string() != error.to_string()) {
                missing.push(error);
            }
        };
        match store.machine(instance, Settings::default(), &control) {
            Ok(all) => machine = Some(all),
            Err(error) => {
                miss(error);
                if let Err(error) = store.layers(instance, &control) {
                    miss(error);
                }
            }
        }
        let user = instance.user().unwrap_or_else(|error| {
            miss(error);
            None
        });
        Self {
            store,
            instance,
            settings,
            machine,
            user,
            missing,
        }
    }

    fn as_json(&self) -> Value {
        let mut value = as_json(self.instance);
        let missing: Vec<String> = self.missing.iter().map(ToString::to_string).collect();
        value["virtual-size"] = json!(self.instance.disk_size());
        value["in-use"] = json!(self.user.is_some());
        value["expanded"] = json!(hidden(&self.settings));
        value["missing"] = json!(missing);
        value
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let instance = self.instance;
        let profiles = instance.document.profiles.iter();
        let profiles: Vec<&str> = profiles.map(machines::store::Alias::as_str).collect();
        let disk = match &self.machine {
            Some(machine) => images(machine),
            None => instance.image().to_string_lossy().into_owned(),
        };
        let state = match &self.user {
            Some(user) => user.message().to_owned(),
            None => "stopped".to_owned(),
        };
        let lines = [
            ("machine", instance.name.to_string()),
            ("template", self.template()),
            ("state", state),
            ("disk", disk),
            ("size", instance.disk_size().map(human_size).unwrap_or_default()),
            ("takes", instance.allocated().map(human_size).unwrap_or_default()),
            ("uuid", instance.document.uuid.to_string()),
            ("created", instance.document.created.to_string()),
            ("profiles", profiles.join(", ")),
        ];
        let starts = self.store.check_starts(instance, Settings::default()).is_ok();
        let machine = self.machine.as_ref().map(|machine| hardware(machine, starts));
        let machine = machine.unwrap_or_default();
        let network = [("address", instance.mac().to_string())];
        for (name, value) in lines.into_iter().chain(machine).chain(network) {
            if !value.is_empty() {
                writeln!(out, "{:<12} {}", format!("{name}:"), escape(&value))?;
            }
        }
        if self.machine.is_none() {
            print_settings(out, "settings", &self.settings)?;
        }
        Ok(())
    }

    /// What its template is called, and what of it is missing that it needs.
    fn template(&self) -> String {
        let document = &self.instance.document;
        match self.store.base_of(self.instance) {
            Ok(template) if document.alone || template.image().exists() => template.name(),
            Ok(template) => format!("{} (its image is missing)", template.name()),
            Err(_) if document.alone => document.template.short(),
            Err(_) => format!("{} (missing)", document.template.short()),
        }
    }
}

/// The image of a machine's disk, and those that it is based on.
fn images(machine: &Machine) -> String {
    let chain = machine.disks.iter().take(1).flat_map(|disk| &disk.chain);
    let paths: Vec<_> = chain.map(|layer| layer.path.to_string_lossy()).collect();
    paths.join(" on ")
}

/// What a machine is made of, in words; `starts` where something is known to start it.
fn hardware(machine: &Machine, starts: bool) -> Vec<(&'static str, String)> {
    let boot = match &machine.boot {
        Boot::Direct {
            kernel, command_line, ..
        } => {
            format!("kernel {} with \"{command_line}\"", kernel.to_string_lossy())
        }
        Boot::Uefi { .. } if !starts => {
            "nothing: no kernel beside the disk, and no EFI system partition on it".to_owned()
        }
        Boot::Uefi { .. } => "UEFI, from the disk".to_owned(),
    };
    let network = match &machine.network {
        Network::User { forwards } => {
            let forwards = forwards.iter().map(|forward| format!(", {forward}"));
            format!("user{}", forwards.collect::<String>())
        }
        Network::Bridge { name } => format!("bridge {name}"),
        Network::None => "none".to_owned(),
    };
    vec![
        ("boots", boot),
        ("cpus", machine.cpus.to_string()),
        ("memory", human_size(machine.memory)),
        ("network", network),
    ]
}

/// What is known of an instance, its document and what follows from it.
pub(super) fn as_json(instance: &Instance) -> Value {
    let mut value = json!({
        "name": instance.name,
        "image": instance.image().to_string_lossy(),
        "actual-size": instance.allocated(),
    });
    let document = serde_json::to_value(InstanceDocument {
        machine: hidden(&instance.document.machine),
        ..instance.document.clone()
    });
    if let (Some(value), Ok(Value::Object(document))) = (value.as_object_mut(), document) {
        value.extend(document);
        value.insert("mac".to_owned(), json!(instance.mac()));
    }
    value
}

/// Remove machines, with their disks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool rm web-1 web-2
  imgtool rm --force broken")]
pub(crate) struct RemoveArgs {
    /// Remove also machines of which what is known cannot be read, and what is known of those whose disks are away
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// The machines
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl RemoveArgs {
    pub(crate) fn run(self) -> Outcome {
        let store = self.store.open()?;
        let find = |name: &String| match (store.instance(name), name.parse::<InstanceName>()) {
            (Ok(instance), _) => Ok(instance.name),
            (Err(_), Ok(name)) if self.force && store.is_taken(&name) => Ok(name),
            (Err(error), _) => Err(error),
        };
        // Those that are there go only if all are there.
        let found = self.names.iter().map(find).collect::<block::Result<Vec<_>>>()?;
        // One that is named twice goes once.
        for name in found.iter().collect::<BTreeSet<_>>() {
            store.remove_disk(name)?;
        }
        Ok(0)
    }
}

/// Give a machine another name
///
/// What the guest calls itself stays as it is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool rename web-1 web")]
pub(crate) struct RenameArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The machine
    name: String,
    /// What it is to be called
    new: String,
}

impl RenameArgs {
    pub(crate) fn run(self) -> Outcome {
        let store = self.store.open()?;
        store.rename(&store.instance(&self.name)?, &self.new.parse()?)?;
        Ok(0)
    }
}
