//! Instances: machines that are copy-on-write clones of templates.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result, escape};
use jiff::Timestamp;
use raw::lock::{Conflict, LockMode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::document::{self, load};
use super::name::nearest;
use super::unfinished::Unfinished;
use super::{Alias, Fingerprint, InstanceName, Listing, Mac, Store, Template, is_others, publish, stems};
use crate::settings::Settings;

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
    /// What that was called when the clone was made, if it was asked for by an alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
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
        let file = document::open(&path).map_err(|error| Error::io("open", error).with_path(&path))?;
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

    pub(super) fn file(&self, extension: &str) -> PathBuf {
        Store::file(&self.directory, &self.name, extension)
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
pub(super) fn is_emulator(conflict: &Conflict) -> bool {
    let program = conflict.program.as_deref();
    program.is_some_and(|program| EMULATORS.iter().any(|name| program.starts_with(name)))
}

impl Store {
    /// All instances.
    ///
    /// # Errors
    /// `Io`.
    pub fn instances(&self) -> Result<Listing<Instance>> {
        let mut listing = self.instances_with_disks()?;
        for name in self.away()? {
            match self.load_instance(name.clone()) {
                Ok(instance) => listing.away.push((instance, self.disk_is_away(&name))),
                // It has been removed meanwhile.
                Err(_) if !self.is_taken(&name) => {}
                error => listing.add(error),
            }
        }
        Ok(listing)
    }

    /// Those whose disks are there, or linked to.
    pub(super) fn instances_with_disks(&self) -> Result<Listing<Instance>> {
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
                return Err(self.disk_is_away(&name));
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
            let disk = Self::file(&directory, &name, "qcow2");
            if disk.is_dir() {
                return Err(a_directory(&disk, Some(&name)));
            }
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

    /// The template that an instance is a clone of, called as it was then, if it still is.
    ///
    /// # Errors
    /// `InvalidInput` where it is not there.
    pub fn base_of(&self, instance: &Instance) -> Result<Template> {
        let template = self.load_template(instance.document.template)?;
        Ok(match &instance.document.alias {
            Some(alias) => template.called(alias),
            None => template,
        })
    }

    fn disk_is_away(&self, name: &InstanceName) -> Error {
        let disk = Self::file(&self.instances_directory(), name, "qcow2");
        let error = Error::invalid(format!("the disk of machine \"{name}\" is away"));
        error.with_path(disk).with_hint(give_up(name))
    }

    /// The machines that are described, and whose disks are elsewhere for now.
    pub(super) fn away(&self) -> Result<Vec<InstanceName>> {
        let directory = self.instances_directory();
        let names = stems(&directory, "toml")?.into_iter();
        // Read after the names, and disks are looked for after both: what is just coming is not finished, or is there.
        let unfinished = self.unfinished().machines;
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
        let is_directory = image.is_dir();
        let _lock = (image.exists() && !is_directory)
            .then(|| lock(&image))
            .transpose()?;
        self.refuse_overlays(name)?;
        self.finish_removal(&held, Unfinished::machines([name]), || {
            if is_directory && !image.is_symlink() {
                return fs::remove_dir(&image).map_err(|_| a_directory(&image, None));
            }
            document::remove(&image)
        })
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
}

/// The error for a directory that is called as the disk of a machine. A machine's `name` is given where that can be removed, if nothing is in it.
fn a_directory(disk: &Path, name: Option<&InstanceName>) -> Error {
    let is_empty = fs::read_dir(disk).is_ok_and(|mut entries| entries.next().is_none());
    let hint = match name {
        Some(name) if is_empty => format!("remove it: imgtool rm --force {name}"),
        _ => "what is in it is not a store's: move that elsewhere or remove it by hand, with the directory"
            .to_owned(),
    };
    Error::invalid("a directory where the disk of a machine would be")
        .with_path(disk)
        .with_hint(hint)
}

/// What to do about a machine whose disk is away.
fn give_up(name: &InstanceName) -> String {
    format!(
        "bring the disk back; if it is gone for good, remove what is known of the machine: imgtool rm --force {name}"
    )
}
