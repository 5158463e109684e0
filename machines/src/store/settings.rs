//! What machine an instance is: by its template, its profiles and what it says itself.

use std::fs;
use std::path::PathBuf;

use block::{Error, Result, escape};
use ops::Control;

use super::document::load;
use super::name::nearest;
use super::{Alias, Instance, Store, stems};
use crate::machine::{Boot, Disk, Layer, Limits, Machine, Network};
use crate::settings::{BootKind, NetworkKind, Settings};

/// Bytes of memory that a machine has for which nothing is said.
const MEMORY: u64 = 1 << 30;

impl Instance {
    /// Its disks, of which the chain of the first is known.
    fn disks(&self, chain: Vec<Layer>, limits: Limits) -> Vec<Disk> {
        let mut disks = vec![Disk {
            chain,
            read_only: false,
            limits,
        }];
        let seed = self.file("seed");
        if seed.exists() {
            disks.push(Disk {
                chain: vec![Layer {
                    path: fs::canonicalize(&seed).unwrap_or(seed),
                    format: "raw".to_owned(),
                }],
                read_only: true,
                limits: Limits::default(),
            });
        }
        disks
    }
}

impl Store {
    /// The settings of an instance: its template's, its profiles', and its own.
    ///
    /// # Errors
    /// `InvalidInput` for a template or a profile that is not there.
    pub fn settings(&self, instance: &Instance) -> Result<Settings> {
        let (settings, missing) = self.known_settings(instance);
        missing.into_iter().next().map_or(Ok(settings), Err)
    }

    /// The same as far as they are known, and what is missing of them.
    pub fn known_settings(&self, instance: &Instance) -> (Settings, Vec<Error>) {
        let document = &instance.document;
        let (mut settings, mut missing) = (Settings::default(), Vec::new());
        let template = (!document.alone).then(|| self.base_of(instance));
        let template = template.map(|loaded| loaded.map(|template| template.document.machine));
        let profiles = document.profiles.iter().map(|name| {
            let settings = self.profile(name);
            settings.map_err(|error| without_profile(&error, instance, name))
        });
        for layer in template.into_iter().chain(profiles) {
            match layer {
                Ok(layer) => settings = settings.then(layer),
                Err(error) => missing.push(error),
            }
        }
        (settings.then(document.machine.clone()), missing)
    }

    /// What a launcher is told of an instance, `with` settings that win over all others.
    ///
    /// # Errors
    /// `InvalidInput` for settings that make no machine, a template, profile or kernel that is not there; `Corrupt` for a
    /// template that has changed.
    pub fn machine(&self, instance: &Instance, with: Settings, control: &Control<'_>) -> Result<Machine> {
        let settings = self.settings(instance)?.then(with);
        settings
            .check()
            .map_err(|error| error.with_path(instance.file("toml")))?;
        let chain = self.layers(instance, control)?;
        let boot = self.boot(instance, &settings)?;
        let cpus = settings.cpus.unwrap_or(1);
        let memory = settings.memory.unwrap_or(MEMORY);
        let network = match settings.network.kind.unwrap_or(NetworkKind::User) {
            NetworkKind::User => Network::User {
                forwards: settings.network.forward.clone().unwrap_or_default(),
            },
            NetworkKind::Bridge => Network::Bridge {
                name: settings.network.bridge.clone().unwrap_or_default(),
            },
            NetworkKind::None => Network::None,
        };
        Ok(Machine {
            name: instance.name.to_string(),
            uuid: instance.document.uuid,
            architecture: settings.architecture.unwrap_or_default(),
            cpus,
            memory,
            boot,
            disks: instance.disks(chain, settings.limits),
            network,
            mac: instance.mac().0,
            credentials: settings.credentials,
        })
    }

    /// Fails for a machine of which nothing is known that could start it, `with` settings that win over its own. One that is only
    /// exported, or given to others, needs nothing.
    ///
    /// # Errors
    /// `InvalidInput`, and as [`settings`](Self::settings).
    pub fn check_starts(&self, instance: &Instance, with: Settings) -> Result<()> {
        let boot = self.settings(instance)?.then(with).boot;
        if boot.kind.is_some() || boot.firmware.is_some() || self.kernel(instance)?.0.is_some() {
            return Ok(());
        }
        let message = format!(
            "nothing starts machine {}: there is no kernel beside its disk, and was no EFI system partition on it",
            instance.name
        );
        Err(Error::invalid(message).with_hint(
            "import the image once more with --kernel; or, if UEFI firmware finds something on the disk, give --boot uefi",
        ))
    }

    fn boot(&self, instance: &Instance, settings: &Settings) -> Result<Boot> {
        let (kernel, initrd) = self.kernel(instance)?;
        let direct = match settings.boot.kind {
            Some(kind) => kind == BootKind::Direct,
            None => kernel.is_some(),
        };
        if !direct {
            return Ok(Boot::Uefi {
                firmware: settings.boot.firmware.clone(),
                variables: instance.file("vars"),
            });
        }
        let missing = |what: &str, path: Option<&PathBuf>| {
            let error = Error::invalid(format!("there is no {what} for machine {}", instance.name));
            let error = error.with_hint("import its template once more, or have it boot by UEFI");
            match path {
                Some(path) => error.with_path(path),
                None => error,
            }
        };
        let kernel = kernel.ok_or_else(|| missing("kernel", None))?;
        for (what, path) in [("kernel", Some(&kernel)), ("initrd", initrd.as_ref())] {
            if path.is_some_and(|path| !path.exists()) {
                return Err(missing(what, path));
            }
        }
        Ok(Boot::Direct {
            kernel,
            initrd,
            command_line: settings.boot.append.clone().unwrap_or_default(),
        })
    }

    /// What a launcher loads: the instance's own, or its template's.
    pub(super) fn kernel(&self, instance: &Instance) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
        if instance.document.alone {
            let own = |name| Some(instance.file(name)).filter(|path| path.exists());
            return Ok((own("kernel"), own("initrd")));
        }
        let template = self.base_of(instance)?;
        Ok((template.kernel(), template.initrd()))
    }

    /// The settings of a profile.
    ///
    /// # Errors
    /// `InvalidInput` where there is none, or for what is in it.
    pub fn profile(&self, name: &Alias) -> Result<Settings> {
        let directory = self.directory.join("profiles");
        if let Some(settings) = load(&Self::file(&directory, name, "toml"))? {
            return Ok(settings);
        }
        let names = stems(&directory, "toml")?;
        let near = nearest(name.as_str(), names.iter().map(String::as_str));
        let hint = match near.as_slice() {
            [] => format!(
                "profiles are files such as {}/small.toml",
                escape(&directory.to_string_lossy())
            ),
            near => format!("there is {}", near.join(", ")),
        };
        Err(Error::invalid(format!("there is no profile \"{name}\"")).with_hint(hint))
    }
}

/// The error for a profile of an instance that is missing or broken, with how to do without it.
fn without_profile(error: &Error, instance: &Instance, profile: &Alias) -> Error {
    let others = instance
        .document
        .profiles
        .iter()
        .filter(|other| *other != profile);
    let mut options: Vec<String> = others.map(|other| format!("--profile {other}")).collect();
    if options.is_empty() {
        options.push("--profile ''".to_owned());
    }
    let first = error.hint().unwrap_or("mend it");
    let hint = format!(
        "{first}; to have the machine without it: imgtool config set {} {}",
        instance.name,
        options.join(" ")
    );
    error.clone().with_hint(hint)
}
