//! `imgtool ls`, `show`, `rm` and `rename`: the machines of a store.

use std::io::Write;
use std::path::Path;

use block::{Error, escape};
use clap::Args;
use machines::store::{Instance, InstanceName, Store};
use machines::{Boot, Network, Settings};
use ops::Control;
use serde_json::{Value, json};

use super::Outcome;
use super::template::short_time;
use crate::output::{self, OutputFormat, human_size};
use crate::stores::StoreArgs;
use crate::table::{self, Table};

/// List machines
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
        if self.output == OutputFormat::Json {
            let found = instances.found.iter().map(as_json);
            let broken = instances
                .broken
                .iter()
                .map(|error| json!({ "name": name_of(error), "broken": error.to_string() }));
            output::json(out, &found.chain(broken).collect::<Value>())?;
        } else {
            let mut table = Table::new(&["NAME", "TEMPLATE", "ADDRESS", "TAKES", "CREATED"]);
            for instance in &instances.found {
                table.row([
                    instance.name.to_string(),
                    template_of(&store, instance),
                    instance.mac().to_string(),
                    instance.allocated().map(human_size).unwrap_or_default(),
                    short_time(instance.document.created),
                ]);
            }
            for error in &instances.broken {
                let empty = String::new;
                table.row([name_of(error), "(broken)".to_owned(), empty(), empty(), empty()]);
            }
            table.print(out)?;
        }
        Ok(table::tell_broken(out, &instances.broken)?)
    }
}

/// The machine whose document an error is about.
fn name_of(error: &Error) -> String {
    let stem = error.path().and_then(Path::file_stem);
    stem.map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The name of the template of an instance, or what is known of it where it is gone.
fn template_of(store: &Store, instance: &Instance) -> String {
    let fingerprint = instance.document.template;
    match store.template(&fingerprint.to_string()) {
        Ok(template) => template.name(),
        Err(_) => fingerprint.short(),
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
        let machine = store.machine(&instance, Settings::default(), &Control::unwatched())?;
        let settings = store.settings(&instance)?;
        if self.output == OutputFormat::Json {
            let mut value = as_json(&instance);
            value["expanded"] = json!(settings);
            output::json(out, &value)?;
            return Ok(0);
        }
        let chain = machine.disks.iter().take(1).flat_map(|disk| &disk.chain);
        let images: Vec<String> = chain
            .map(|layer| layer.path.to_string_lossy().into_owned())
            .collect();
        let boot = match &machine.boot {
            Boot::Direct {
                kernel, command_line, ..
            } => {
                format!("kernel {} with \"{command_line}\"", kernel.to_string_lossy())
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
        let profiles: Vec<&str> = instance
            .document
            .profiles
            .iter()
            .map(machines::store::Alias::as_str)
            .collect();
        let lines = [
            ("machine", instance.name.to_string()),
            ("template", template_of(&store, &instance)),
            ("disk", images.join(" on ")),
            ("takes", instance.allocated().map(human_size).unwrap_or_default()),
            ("uuid", instance.document.uuid.to_string()),
            ("created", instance.document.created.to_string()),
            ("profiles", profiles.join(", ")),
            ("boots", boot),
            ("cpus", machine.cpus.to_string()),
            ("memory", human_size(machine.memory)),
            ("network", format!("{network}, {}", instance.mac())),
        ];
        for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
            writeln!(out, "{:<12} {}", format!("{name}:"), escape(value))?;
        }
        Ok(0)
    }
}

/// What is known of an instance, its document and what follows from it.
pub(super) fn as_json(instance: &Instance) -> Value {
    let mut value = json!({
        "name": instance.name,
        "image": instance.image().to_string_lossy(),
        "actual-size": instance.allocated(),
    });
    let document = serde_json::to_value(&instance.document);
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
    /// Remove also machines of which what is known cannot be read
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
            (Err(_), Ok(name)) if self.force && store.has_disk(&name) => Ok(name),
            (Err(error), _) => Err(error),
        };
        // Those that are there go only if all are there.
        let found = self.names.iter().map(find).collect::<block::Result<Vec<_>>>()?;
        for name in &found {
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
