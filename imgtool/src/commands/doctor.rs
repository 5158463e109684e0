//! `imgtool doctor`: what this host can do for machines.

use std::env;
use std::io::Write;
use std::path::PathBuf;

use block::{Error, Result, escape};
use clap::Args;
use machines::Architecture;
use machines::doctor::{Check, examine};
use serde_json::{Value, json};

use super::Outcome;
use crate::output::{self, OutputFormat};
use crate::stores::StoreArgs;

/// Tell what this host can do for machines, and what to install for the rest
///
/// Whether KVM works is found out by running a guest of a few hundred bytes on it, and remembered until the next boot for
/// imgtool run. The exit code is 1 where machines cannot be kept and run at all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool doctor
  imgtool doctor --store /srv/machines --output json
  imgtool doctor --architecture aarch64")]
pub(crate) struct DoctorArgs {
    /// What the machines' processors are: `x86_64` or aarch64 [default: this host's]
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    store: StoreArgs,
}

impl DoctorArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let architecture = self.architecture.as_deref().unwrap_or(env::consts::ARCH);
        let architecture = self::architecture(architecture)?;
        let store = self.store.open()?;
        let checks = examine(store.directory(), architecture, cache().as_deref());
        match self.output {
            OutputFormat::Human => print(&checks, out)?,
            OutputFormat::Json => output::json(out, &checks.iter().map(as_json).collect::<Value>())?,
        }
        let missing = checks.iter().any(|check| check.essential && !check.ok);
        Ok(u8::from(missing))
    }
}

fn architecture(name: &str) -> Result<Architecture> {
    let known = [Architecture::X86_64, Architecture::Aarch64];
    known
        .into_iter()
        .find(|known| known.name() == name)
        .ok_or_else(|| {
            Error::invalid(format!("there are no machines of \"{}\"", escape(name)))
                .with_hint("there are --architecture x86_64 and aarch64")
        })
}

/// The directory for what can be found out again.
pub(crate) fn cache() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("imgtool"))
}

fn print(checks: &[Check], out: &mut dyn Write) -> std::io::Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let state = match (check.ok, check.essential) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "no",
        };
        let found = escape(&check.found);
        writeln!(out, "{state:7} {:width$}  {}: {found}", check.name, check.purpose)?;
        if let Some(hint) = &check.hint {
            writeln!(out, "{:8}{:width$}  -> {}", "", "", escape(hint))?;
        }
    }
    Ok(())
}

fn as_json(check: &Check) -> Value {
    json!({
        "name": check.name,
        "purpose": check.purpose,
        "essential": check.essential,
        "ok": check.ok,
        "found": check.found,
        "hint": check.hint,
    })
}
