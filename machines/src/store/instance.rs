//! Instances: machines that are copy-on-write clones of templates.

use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use block::chain::MAX_LAYERS;
use block::{Error, ErrorKind, Format, Result, escape};
use jiff::Timestamp;
use ops::Control;
use raw::lock::{Conflict, LockMode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::document::{self, load};
use super::name::nearest;
use super::unfinished::Unfinished;
use super::{Alias, Fingerprint, InstanceName, Listing, Store, Template, is_others, publish, stems};
use crate::machine::{Boot, Disk, Layer, Limits, Machine, Network};
use crate::settings::{BootKind, NetworkKind, Settings};

/// Bytes of memory that a machine has for which nothing is said.
const MEMORY: u64 = 1 << 30;

/// The files of an instance beside its disk.
pub(super) const BESIDE: [&str; 5] = ["toml", "vars", "seed", "kernel", "initrd"];

/// What is known of an instance, as its document has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstanceDocument {
    /// What its hardware calls itself, and its MAC address follows from.
    pub uuid: Uuid,
    /// The template that it is a clone of.
    pub template: Fingerprint,
    /// When it was made, as in RFC 3339.
    pub created: Timestamp,
    /// Its Ethernet address, where it is not to follow from the UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// It needs its template no more: its disk is all of it, and so are its settings and what a launcher loads.
    #[serde(default, skip_serializing_if = "is_false")]
    pub alone: bool,
    /// The profiles whose settings it has; later ones win.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<Alias>,
    /// Its own settings, which win over those of profiles and template.
    #[serde(default, skip_serializing_if = "Settings::is_empty")]
    pub machine: Settings,
}

impl InstanceDocument {
    /// Who may read the file: with credentials in it, its owner.
    pub(super) fn mode(&self) -> u32 {
        self.machine.mode()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// An Ethernet address, in text as `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// One that is always the same for a UUID, and locally administered. It does not start with 0xfe: so libvirt has the addresses
    /// of the taps of its bridges start, and refuses a machine whose address does.
    pub fn of(uuid: &Uuid) -> Self {
        let digest = Sha256::digest(uuid.as_bytes());
        let mut mac = [0; 6];
        mac.copy_from_slice(&digest[..6]);
        // The two lowest bits of the first octet: locally administered, and of one station.
        mac[0] = mac[0] & 0xfc | 0x02;
        if mac[0] == 0xfe {
            mac[0] = 0xfa;
        }
        Self(mac)
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why| {
            Error::invalid(format!(
                "\"{}\" is no address of a network card: {why}",
                escape(text)
            ))
            .with_hint("such as 52:54:00:12:34:56")
        };
        let mut mac = [0; 6];
        let parts: Vec<&str> = text.split(':').collect();
        if parts.len() != mac.len() {
            return Err(wrong("it has to be six numbers with colons between them"));
        }
        for (byte, part) in mac.iter_mut().zip(parts) {
            let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| digits)
                .ok_or_else(|| wrong("numbers are two hexadecimal digits"))?;
        }
        if mac == [0; 6] {
            return Err(wrong("it is none"));
        }
        if mac[0] & 1 != 0 {
            return Err(wrong("it is one of a group (the first number is odd)"));
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// An instance of a store.
#[derive(Clone, Debug)]
pub struct Instance {
    /// What it is called.
    pub name: InstanceName,
    /// What is known of it.
    pub document: InstanceDocument,
    pub(super) directory: PathBuf,
}

impl Instance {
    /// Its disk.
    pub fn image(&self) -> PathBuf {
        self.file("qcow2")
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> Mac {
        self.document.mac.unwrap_or_else(|| Mac::of(&self.document.uuid))
    }

    /// Bytes that its disk takes on the host; `None` where it cannot be looked at.
    pub fn allocated(&self) -> Option<u64> {
        fs::metadata(self.image()).ok().map(|file| file.blocks() * 512)
    }

    /// Who uses its disk, as who wants to write to it is told; `None` where nobody does.
    ///
    /// # Errors
    /// `Io`.
    pub fn user(&self) -> Result<Option<Error>> {
        let path = self.image();
        let file = fs::File::open(&path).map_err(|error| Error::io("open", error).with_path(&path))?;
        match raw::lock::look(file.as_fd(), LockMode::Write) {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::Locked => Ok(Some(error)),
            Err(error) => Err(error.with_path(path)),
        }
    }

    /// Bytes of its disk; `None` where that cannot be read.
    pub fn disk_size(&self) -> Option<u64> {
        let storage = raw::OpenOptions::new().lock(false).open(self.image()).ok()?;
        Some(qcow2::Header::read(&storage).ok()?.size)
    }

    fn file(&self, extension: &str) -> PathBuf {
        Store::file(&self.directory, &self.name, extension)
    }

    /// What the header of its disk names below it.
    pub(super) fn backing(&self) -> Result<Option<String>> {
        let storage = raw::OpenOptions::new().lock(false).open(self.image())?;
        Ok(qcow2::Qcow2
            .references(&storage)?
            .backing
            .map(|backing| backing.name))
    }

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

/// Fails if somebody uses the disk of an instance; nobody can while the result is there.
fn lock(image: &Path) -> Result<raw::File> {
    let open = raw::OpenOptions::new().write(true).open(image);
    open.map_err(what_to_stop)
}

/// How the names start of programs that run machines, as the kernel cuts them.
const EMULATORS: [&str; 6] = [
    "qemu-system",
    "qemu-kvm",
    "lkvm",
    "crosvm",
    "cloud-hyperviso",
    "firecracker",
];

/// Says of a disk that is locked what to do about that: a machine is not waited for, and a command need not be stopped.
pub(super) fn what_to_stop(error: Error) -> Error {
    if error.kind() != ErrorKind::Locked {
        return error;
    }
    let hint = match Conflict::of(&error) {
        Some(conflict) if is_emulator(conflict) => "the machine is running: stop it first",
        Some(Conflict { program: None, .. }) => {
            "if that runs the machine, stop it first; wait for anything else"
        }
        _ => "wait until that has ended, or stop it",
    };
    error.with_hint(hint)
}

/// Whether who has a disk locked is a program that runs machines.
fn is_emulator(conflict: &Conflict) -> bool {
    let program = conflict.program.as_deref();
    program.is_some_and(|program| EMULATORS.iter().any(|name| program.starts_with(name)))
}

impl Store {
    /// All instances.
    ///
    /// # Errors
    /// `Io`.
    pub fn instances(&self) -> Result<Listing<Instance>> {
        let mut listing = Listing::new();
        for stem in stems(&self.instances_directory(), "qcow2")? {
            let Ok(name) = stem.parse() else { continue };
            listing.add(self.load_instance(name));
        }
        Ok(listing)
    }

    /// The instance of a name.
    ///
    /// # Errors
    /// `InvalidInput` where there is none, with names that may have been meant.
    pub fn instance(&self, name: &str) -> Result<Instance> {
        let directory = self.instances_directory();
        if let Ok(name) = name.parse::<InstanceName>() {
            let disk = Self::file(&directory, &name, "qcow2");
            if disk.exists() {
                return self.load_instance(name);
            }
            if self.is_taken(&name) {
                let error = Error::invalid(format!("the disk of machine \"{name}\" is away")).with_path(disk);
                return Err(error.with_hint(give_up(&name)));
            }
        }
        let names = stems(&directory, "qcow2")?;
        let near = nearest(name, names.iter().map(String::as_str));
        let hint = match near.as_slice() {
            [] => "imgtool ls lists those that there are".to_owned(),
            near => format!("there is {}", near.join(", ")),
        };
        let hint = match self.template(name) {
            Ok(_) => format!("it is a template; make a machine of it: imgtool clone NAME --from {name}"),
            Err(_) => hint,
        };
        Err(Error::invalid(format!("there is no machine \"{}\"", escape(name))).with_hint(hint))
    }

    pub(super) fn load_instance(&self, name: InstanceName) -> Result<Instance> {
        let directory = self.instances_directory();
        let path = Self::file(&directory, &name, "toml");
        let unreadable = |error: Error| {
            let hint = if is_others(&error) {
                "the machine is another user's, who alone may read this".to_owned()
            } else {
                format!("mend it, or remove the machine with its disk: imgtool rm --force {name}")
            };
            error.with_hint(hint)
        };
        let Some(document) = load(&path).map_err(unreadable)? else {
            let error = Error::invalid("a disk without the description of its machine").with_path(path);
            return Err(error.with_hint(format!(
                "bring that back from a copy, or remove the disk: imgtool rm --force {name}"
            )));
        };
        Ok(Instance {
            name,
            document,
            directory,
        })
    }

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
        let template = (!document.alone).then(|| self.load_template(document.template));
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

    /// The template that an instance is a clone of.
    ///
    /// # Errors
    /// `InvalidInput` where it is not there.
    pub fn base_of(&self, instance: &Instance) -> Result<Template> {
        self.load_template(instance.document.template)
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
        let template = self.load_template(instance.document.template)?;
        Ok((template.kernel(), template.initrd()))
    }

    /// The images of an instance's disk, as their headers name them.
    ///
    /// # Errors
    /// `InvalidInput` where one is missing, or is another than the template that the instance is a clone of; `Corrupt` for
    /// a template that has changed.
    pub fn layers(&self, instance: &Instance, control: &Control<'_>) -> Result<Vec<Layer>> {
        let layers = chain(instance.image())?;
        if layers.len() == 1 && instance.document.alone {
            return Ok(layers);
        }
        let template = self.load_template(instance.document.template)?;
        self.check_noted(&template, control)?;
        if let Some(base) = layers.last().filter(|_| layers.len() > 1) {
            let is = fs::canonicalize(&base.path).ok();
            if is.is_none() || is != fs::canonicalize(template.image()).ok() {
                let message = format!(
                    "the disk is based on {}, and not on template {}",
                    escape(&base.path.to_string_lossy()),
                    template.name()
                );
                return Err(Error::invalid(message).with_path(instance.image()));
            }
            template.check(control)?;
        } else {
            // Its disk needs none, but what it is started with is the template's.
            template.check_boot_files(control)?;
        }
        Ok(layers)
    }

    /// The instances whose disks are based on a template, as far as can be seen: by their headers, and where those cannot be
    /// read, by what is known of them.
    pub(super) fn instances_on(&self, template: Fingerprint) -> Result<Vec<String>> {
        let image = Self::file(&self.templates_directory(), template, "qcow2");
        let image = fs::canonicalize(&image).unwrap_or(image);
        let directory = self.instances_directory();
        let mut users = Vec::new();
        for stem in stems(&directory, "qcow2")? {
            let stands_on = match chain(Self::file(&directory, &stem, "qcow2")) {
                Ok(layers) => layers[1..].iter().any(|layer| layer.path == image),
                // Rather one too many than a base too few.
                Err(_) => true,
            };
            // What it is started with comes from there, too.
            let needs = || {
                let instance = self.load_instance(stem.parse().ok()?).ok()?;
                Some(instance.document.template == template && !instance.document.alone)
            };
            let stands_on = stands_on || needs() == Some(true);
            if stands_on {
                users.push(stem);
            }
        }
        for name in self.away()? {
            let instance = self.load_instance(name.clone());
            // As above: what cannot be read may stand on any.
            let stands_on =
                |instance: Instance| instance.document.template == template && !instance.document.alone;
            if instance.map_or(true, stands_on) {
                users.push(format!("{name} (whose disk is away)"));
            }
        }
        Ok(users)
    }

    /// The machines that are described, and whose disks are elsewhere for now.
    pub(super) fn away(&self) -> Result<Vec<InstanceName>> {
        let directory = self.instances_directory();
        let unfinished = self.unfinished().machines;
        let names = stems(&directory, "toml")?.into_iter();
        let names = names.filter_map(|stem| stem.parse::<InstanceName>().ok());
        Ok(names
            .filter(|name| !self.has_disk(name) && !unfinished.contains(name))
            .collect())
    }

    /// Changes what is known of an instance. Profiles that it had before may be missing.
    ///
    /// # Errors
    /// `InvalidInput` for another profile that is not there; `Io`.
    pub fn redefine(&self, instance: &Instance, document: InstanceDocument) -> Result<Instance> {
        document.machine.check_values()?;
        let _held = self.hold()?;
        let before = self.load_instance(instance.name.clone())?.document.profiles;
        let others = document.profiles.iter().filter(|name| !before.contains(name));
        for profile in others {
            self.profile(profile)?;
        }
        let scratch = self.scratch()?;
        let (new, path) = (scratch.path("toml"), instance.file("toml"));
        document::create(&new, document::text_of(&document)?.as_bytes(), document.mode())?;
        fs::rename(&new, &path).map_err(|error| Error::io("replace", error).with_path(&path))?;
        document::sync(&instance.directory)?;
        Ok(Instance {
            document,
            ..instance.clone()
        })
    }

    /// Fails if another disk in the store is based on that of an instance.
    fn refuse_overlays(&self, name: &InstanceName) -> Result<()> {
        let directory = self.instances_directory();
        let image = Self::file(&directory, name, "qcow2");
        let image = fs::canonicalize(&image).unwrap_or(image);
        for stem in stems(&directory, "qcow2")? {
            let layers = chain(Self::file(&directory, &stem, "qcow2")).unwrap_or_default();
            if layers.iter().skip(1).any(|layer| layer.path == image) {
                let message = format!("{stem} is based on the disk of machine {name}");
                return Err(
                    Error::invalid(message).with_hint("make that one stand alone first: imgtool stream")
                );
            }
        }
        Ok(())
    }

    /// Whether a name is that of an instance, though its document may be one that cannot be read, or its disk away.
    pub fn is_taken(&self, name: &InstanceName) -> bool {
        let is_away = || self.is_known(name.as_str()) && !self.unfinished().machines.contains(name);
        self.has_disk(name) || is_away()
    }

    /// A link that leads nowhere is a disk that is elsewhere.
    fn has_disk(&self, name: &InstanceName) -> bool {
        Self::file(&self.instances_directory(), name, "qcow2")
            .symlink_metadata()
            .is_ok()
    }

    /// Removes an instance.
    ///
    /// # Errors
    /// `Locked` while it runs.
    pub fn remove_instance(&self, instance: &Instance) -> Result<()> {
        self.remove_disk(&instance.name)
    }

    /// Removes the instance of a name, whatever its document is: it may be one that cannot be read. Where its disk is away, that stays there.
    ///
    /// # Errors
    /// `InvalidInput` where there is none; `Locked` while it runs.
    pub fn remove_disk(&self, name: &InstanceName) -> Result<()> {
        let held = self.hold()?;
        let image = Self::file(&self.instances_directory(), name, "qcow2");
        if !self.is_taken(name) {
            return Err(Error::invalid(format!("there is no machine \"{name}\"")));
        }
        let _lock = image.exists().then(|| lock(&image)).transpose()?;
        self.refuse_overlays(name)?;
        self.finish(&held, Unfinished::machines([name]), || document::remove(&image))
    }

    /// Fails for a name that an instance has, be its disk away for a while: what is known of it is replaced by nobody.
    pub(super) fn refuse_taken(&self, name: &InstanceName) -> Result<()> {
        if !self.is_taken(name) {
            return Ok(());
        }
        let disk = Self::file(&self.instances_directory(), name, "qcow2");
        if disk.exists() {
            let message = format!("there is a machine \"{name}\" already");
            return Err(Error::invalid(message).with_hint("choose another name, or remove it: imgtool rm"));
        }
        let message = format!("there is a machine \"{name}\" already, whose disk is away");
        let hint = format!("choose another name, or {}", give_up(name));
        Err(Error::invalid(message).with_path(disk).with_hint(hint))
    }

    /// Gives an instance another name. What the guest calls itself stays.
    ///
    /// # Errors
    /// `InvalidInput` for a name that another has; `Locked` while it runs.
    pub fn rename(&self, instance: &Instance, name: &InstanceName) -> Result<Instance> {
        if instance.name == *name {
            return Err(Error::invalid(format!("machine {name} is called so already")));
        }
        let held = self.hold()?;
        let now = self.instance(instance.name.as_str());
        if !now.is_ok_and(|now| now.document.uuid == instance.document.uuid) {
            let message = format!("machine {} has been renamed or removed meanwhile", instance.name);
            return Err(Error::invalid(message).with_hint("imgtool ls lists those that there are"));
        }
        let _lock = lock(&instance.image())?;
        self.refuse_overlays(&instance.name)?;
        let renamed = Instance {
            name: name.clone(),
            ..instance.clone()
        };
        self.refuse_taken(name)?;
        // The files of the name that has no disk afterwards are removed, whichever that is.
        let names = Unfinished::machines([&instance.name, name]);
        self.finish(&held, names, || {
            for beside in BESIDE {
                let (from, to) = (instance.file(beside), renamed.file(beside));
                document::remove(&to)?;
                if from.exists() {
                    fs::hard_link(&from, &to).map_err(|error| Error::io("name", error).with_path(&to))?;
                }
            }
            document::sync(&instance.directory)?;
            publish(&instance.image(), &renamed.image())
        })?;
        Ok(renamed)
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

/// What to do about a machine whose disk is away.
fn give_up(name: &InstanceName) -> String {
    format!(
        "bring the disk back; if it is gone for good, remove what is known of the machine: imgtool rm --force {name}"
    )
}

/// The image at `path` and what it is based on, the nearest first, by their headers. Nothing is locked, since a machine may run.
fn chain(path: PathBuf) -> Result<Vec<Layer>> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut next = Some((path, "qcow2".to_owned()));
    while let Some((path, format)) = next.take() {
        let below = |error: Error| {
            match layers.last() {
            Some(above) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => Error::invalid(format!(
                "{} is missing, which {} is based on",
                escape(&plain(&path).to_string_lossy()),
                escape(&above.path.to_string_lossy())
            ))
            .with_hint("bring it back from a copy: without it there is no more of the disk than what was written to it since"),
            _ => error,
        }
        };
        if layers.len() == MAX_LAYERS {
            return Err(
                Error::unsupported(format!("the chain has more than {MAX_LAYERS} layers")).with_path(path),
            );
        }
        let path =
            fs::canonicalize(&path).map_err(|error| below(Error::io("look up", error).with_path(&path)))?;
        let storage = raw::OpenOptions::new().lock(false).open(&path)?;
        let reference = match format.as_str() {
            "qcow2" => {
                qcow2::Qcow2
                    .references(&storage)
                    .map_err(|error| error.with_path(&path))?
                    .backing
            }
            _ => None,
        };
        if let Some(reference) = reference {
            let Some(format) = reference.format else {
                let message = "it does not state the format of its backing file";
                return Err(Error::invalid(message).with_path(path));
            };
            let directory = path.parent().unwrap_or(&path);
            next = Some((directory.join(&reference.name), format));
        }
        layers.push(Layer { path, format });
    }
    Ok(layers)
}

/// The path of a file that is not there, without `..` where its directory is.
fn plain(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_ones_that_bridges_of_libvirt_take() {
        let mut firsts: Vec<u8> = (0..4096).map(|n| Mac::of(&Uuid::from_u128(n)).0[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert!(firsts.iter().all(|first| first & 3 == 2 && *first != 0xfe));
        assert_eq!(firsts.len(), 63);
    }
}
