//! Services that start with the system, or do not: `[services]`.
//!
//! What `systemctl --root enable` does is links: the section `[Install]` of a unit (systemd.unit(5)) says which targets want it,
//! and what else it is called. On a system with `OpenRC` it is one link in a runlevel (rc-update(8)).

use block::{Error, Result, escape};
use ext4_editor::Attributes;
use ext4_reader::FileKind;
use serde::Deserialize;

use super::origins::Origins;
use super::origins::Step::{Key, Text};
use super::source::joined;
use super::users::checked_text;
use crate::personalise::Guest;

/// Where units are, the first winning.
const UNITS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Where links are made.
const OWN: &str = "/etc/systemd/system";

/// Suffixes of units.
const KINDS: [&str; 7] = [
    ".service", ".socket", ".timer", ".target", ".path", ".mount", ".swap",
];

/// Units that others enable (`Also=`) at most.
const MAX_ALSO: usize = 64;

/// What starts, and what does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct Services {
    /// Start with the system.
    pub enable: Vec<UnitName>,
    /// Do not.
    pub disable: Vec<UnitName>,
    /// Cannot be started at all.
    pub mask: Vec<UnitName>,
}

checked_text!(
    /// What a service can be called: the name of one file, in whichever directory.
    UnitName,
    |text| {
        if is_file_name(text) {
            return Ok(());
        }
        Err(Error::invalid(format!("\"{}\" cannot be the name of a service", escape(text)))
            .with_hint("a unit is named without its directory: ssh, serial-getty@ttyS0, fstrim.timer"))
    }
);

/// Whether a name leads nowhere but to a file of a directory.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() < 256
        && !name.contains(|c: char| c == '/' || c.is_control())
}

/// `[Install]` of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

impl Services {
    pub(super) fn then(self, later: Self) -> Self {
        // What one recipe enables, a later one may disable, and the other way around.
        let without = |before: Vec<UnitName>, other: &[UnitName]| -> Vec<UnitName> {
            before.into_iter().filter(|unit| !other.contains(unit)).collect()
        };
        Self {
            enable: joined(without(self.enable, &later.disable), later.enable.clone()),
            disable: joined(without(self.disable, &later.enable), later.disable),
            mask: joined(without(self.mask, &later.enable), later.mask),
        }
    }

    pub(super) fn set(&self, guest: &mut Guest, origins: &Origins) -> Result<()> {
        let told = |error, list, unit: &UnitName| {
            origins.tell(error, &[Key("services"), Key(list), Text(unit.as_str())])
        };
        let has_units = UNITS[2..]
            .iter()
            .any(|path| matches!(guest.kind(path), Ok(Some(_))));
        if !has_units && guest.kind("/etc/runlevels/default")? == Some(FileKind::Directory) {
            return self.set_runlevel(guest, &told);
        }
        for unit in &self.disable {
            disable(guest, &full_name(unit.as_str())).map_err(|error| told(error, "disable", unit))?;
        }
        for unit in &self.mask {
            link(guest, &format!("{OWN}/{}", full_name(unit.as_str())), "/dev/null")
                .map_err(|error| told(error, "mask", unit))?;
        }
        // With the one of the recipe that each is enabled with.
        let units = self.enable.iter();
        let mut left: Vec<_> = units.map(|unit| (full_name(unit.as_str()), unit)).collect();
        let mut done: Vec<String> = Vec::new();
        while let Some((unit, stated)) = left.pop() {
            if done.contains(&unit) {
                continue;
            }
            if done.len() >= self.enable.len() + MAX_ALSO {
                let message =
                    format!("more than {MAX_ALSO} other units are enabled with those that are named");
                return Err(told(Error::invalid(message), "enable", stated));
            }
            let also = enable(guest, &unit).map_err(|error| told(error, "enable", stated))?;
            left.extend(also.into_iter().map(|other| (other, stated)));
            done.push(unit);
        }
        Ok(())
    }

    /// What `OpenRC` starts.
    fn set_runlevel(
        &self,
        guest: &mut Guest,
        told: &dyn Fn(Error, &'static str, &UnitName) -> Error,
    ) -> Result<()> {
        for unit in &self.enable {
            start(guest, unit.as_str()).map_err(|error| told(error, "enable", unit))?;
        }
        for (list, units) in [("disable", &self.disable), ("mask", &self.mask)] {
            for unit in units {
                remove(guest, &format!("/etc/runlevels/default/{}", unit.as_str()))
                    .map_err(|error| told(error, list, unit))?;
            }
        }
        Ok(())
    }
}

/// Has `OpenRC` start a service.
fn start(guest: &mut Guest, name: &str) -> Result<()> {
    let script = format!("/etc/init.d/{name}");
    if guest.kind(&script)? != Some(FileKind::Regular) {
        return Err(missing(name));
    }
    link(guest, &format!("/etc/runlevels/default/{name}"), &script)
}

fn missing(unit: &str) -> Error {
    Error::invalid(format!("the system has no service \"{}\"", escape(unit)))
        .with_hint("add the package that has it, or write its unit with [[files]]")
}

fn full_name(unit: &str) -> String {
    if KINDS.iter().any(|kind| unit.ends_with(kind)) {
        unit.to_owned()
    } else {
        format!("{unit}.service")
    }
}

/// Makes a unit's links. Gives the units that are to be enabled with it.
fn enable(guest: &mut Guest, unit: &str) -> Result<Vec<String>> {
    let (file, instance) = match unit.split_once('@') {
        Some((name, rest)) => {
            let (instance, kind) = rest.rsplit_once('.').unwrap_or((rest, "service"));
            (format!("{name}@.{kind}"), Some(instance))
        }
        None => (unit.to_owned(), None),
    };
    let mut found = None;
    for directory in UNITS {
        let path = format!("{directory}/{file}");
        // Found even where it is a link to another unit, and not where it is masked.
        if let Some(text) = guest.text(&path)? {
            found = Some((path, text));
            break;
        }
    }
    let (path, text) = found.ok_or_else(|| missing(unit))?;
    let install = Install::parse(&text);
    let name = match (instance, &install.default_instance) {
        (Some(""), Some(default)) => unit.replacen('@', &format!("@{default}"), 1),
        _ => unit.to_owned(),
    };
    let place = |directory: &str, other: &String| format!("{OWN}/{other}.{directory}/{name}");
    let wants = install.wanted_by.iter().map(|target| place("wants", target));
    let requires = install.required_by.iter().map(|target| place("requires", target));
    let aliases = install.alias.iter().map(|alias| format!("{OWN}/{alias}"));
    let links: Vec<String> = wants.chain(requires).chain(aliases).collect();
    if links.is_empty() && install.also.is_empty() {
        let message = format!(
            "the service \"{}\" does not say what it starts with",
            escape(unit)
        );
        return Err(Error::invalid(message)
            .with_hint("its unit has no [Install]: it is started by others, or always"));
    }
    for at in links {
        // As systemd understands %p, %i and the like, which names of aliases may have.
        link(guest, &at.replace("%i", instance.unwrap_or_default()), &path)?;
    }
    Ok(install.also)
}

/// Removes all links to a unit that enabling it may have made.
fn disable(guest: &mut Guest, unit: &str) -> Result<()> {
    if guest.kind(OWN)? != Some(FileKind::Directory) {
        return Ok(());
    }
    for name in guest.names(OWN)? {
        if matches!(name.rsplit_once('.'), Some((_, "wants" | "requires"))) {
            remove(guest, &format!("{OWN}/{name}/{unit}"))?;
        }
    }
    for directory in UNITS {
        let Some(text) = guest.text(&format!("{directory}/{unit}"))? else {
            continue;
        };
        for alias in Install::parse(&text).alias {
            remove(guest, &format!("{OWN}/{alias}"))?;
        }
        break;
    }
    Ok(())
}

fn link(guest: &mut Guest, at: &str, target: &str) -> Result<()> {
    if let Some((directory, _)) = at.rsplit_once('/') {
        guest
            .editor
            .make_directories(directory.as_bytes(), &Attributes::of(0o755))?;
    }
    match guest.own_kind(at)? {
        Some(FileKind::Symlink) => guest.editor.remove(at.as_bytes())?,
        Some(_) => {
            let message = format!("{} in the system is no link, and stays as it is", escape(at));
            return Err(Error::invalid(message));
        }
        None => {}
    }
    guest
        .editor
        .symlink(at.as_bytes(), target.as_bytes(), &Attributes::default())
}

fn remove(guest: &mut Guest, at: &str) -> Result<()> {
    match guest.own_kind(at)? {
        Some(FileKind::Symlink) => guest.editor.remove(at.as_bytes()),
        _ => Ok(()),
    }
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut install = Self::default();
        let mut is_ours = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                is_ours = line == "[Install]";
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| is_ours) else {
                continue;
            };
            // As systemd does, what cannot be a unit's name is passed over.
            let names = value.split_whitespace().filter(|word| is_file_name(word));
            let words = names.map(ToOwned::to_owned);
            match key.trim_end() {
                "WantedBy" => install.wanted_by.extend(words),
                "RequiredBy" => install.required_by.extend(words),
                "Alias" => install.alias.extend(words),
                "Also" => install.also.extend(words),
                "DefaultInstance" if is_file_name(value.trim()) => {
                    install.default_instance = Some(value.trim().to_owned());
                }
                _ => {}
            }
        }
        install
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_say_what_they_start_with() {
        let text = "[Unit]\nAlias=no\n\n[Install]\nWantedBy=multi-user.target graphical.target\n\
                    WantedBy = a.target ../b.target\nAlias=sshd.service /x .. \nAlso=b.socket\n#Alias=c\nDefaultInstance=tty1\n[X-Other]\nWantedBy=d\n";
        let install = Install::parse(text);
        assert_eq!(
            install.wanted_by,
            ["multi-user.target", "graphical.target", "a.target"]
        );
        assert_eq!(
            (install.alias, install.also),
            (vec!["sshd.service".to_owned()], vec!["b.socket".to_owned()])
        );
        assert_eq!(install.default_instance.as_deref(), Some("tty1"));
        assert_eq!(full_name("ssh"), "ssh.service");
        assert_eq!(full_name("getty@tty1.service"), "getty@tty1.service");
    }

    #[test]
    fn a_later_recipe_can_disable_what_another_enables() {
        let names = |names: &[&str]| names.iter().map(|&unit| UnitName(unit.to_owned())).collect();
        let services = |enable: &[&str], disable: &[&str]| Services {
            enable: names(enable),
            disable: names(disable),
            mask: vec![],
        };
        let merged = services(&["a", "b"], &["c"]).then(services(&["c"], &["b"]));
        assert_eq!(merged, services(&["a", "c"], &["b"]));
    }
}
