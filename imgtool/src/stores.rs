//! The store that commands for templates and machines work on, and what they say of machines.

use std::borrow::Cow;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

use block::{Access, Error, Result, size};
use clap::{Args, ValueEnum};
use machines::store::{InstanceName, Store};
use machines::{BootKind, CredentialName, MAX_CPUS, NetworkKind, NetworkSettings, Settings};

use crate::arguments::text_of;
use crate::output::note;

/// Names the store, where no option does.
const VARIABLE: &str = "IMGTOOL_STORE";

/// Which store.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct StoreArgs {
    /// The store of templates and machines [default: that of `IMGTOOL_STORE`, or imgtool in `XDG_DATA_HOME` or ~/.local/share]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// The store that an option has named, for names of images.
static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Whether it was said which of a file and a machine of the same name is read.
static TOLD: Once = Once::new();

impl StoreArgs {
    /// Has names of images be those of machines in this store.
    pub(crate) fn choose(&self) {
        if let Some(store) = &self.store {
            // A command has one such option.
            let _ = CHOSEN.set(store.clone());
        }
    }

    pub(crate) fn open(&self) -> Result<Store> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let absolute = |path: &PathBuf| path.is_absolute();
        let directory = self
            .store
            .clone()
            .or_else(|| CHOSEN.get().cloned())
            .or_else(|| set(VARIABLE))
            .or_else(|| {
                set("XDG_DATA_HOME")
                    .filter(absolute)
                    .map(|data| data.join("imgtool"))
            })
            .or_else(|| set("HOME").map(|home| home.join(".local/share/imgtool")));
        directory.map(Store::at).ok_or_else(|| {
            Error::invalid("there is no store: neither --store, IMGTOOL_STORE nor HOME says where it is")
                .with_hint("imgtool ls --store DIR")
        })
    }
}

impl StoreArgs {
    /// [`refuse_template`], with another store if one is named.
    pub(crate) fn refuse_template(&self, path: &Path) -> Result<()> {
        Store::refuse_template_file(path, self.open().ok().as_ref())
    }

    /// Fails for a file of the store's own, of a machine or a template, that a new one would replace.
    pub(crate) fn refuse_store_file(&self, path: &Path) -> Result<()> {
        self.refuse_template(path)?;
        self.open()?.refuse_own_file(path)
    }
}

/// How a machine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BootArg {
    /// The launcher loads the kernel, which the template has beside its disk.
    Direct,
    /// UEFI firmware boots from the disk.
    Uefi,
}

/// What is said of a machine.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct MachineArgs {
    /// Number of processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CPUS)))]
    cpus: Option<u32>,
    /// Memory, in whole MiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// How it starts
    #[arg(long, value_enum, value_name = "HOW")]
    boot: Option<BootArg>,
    /// The kernel's command line, where the launcher loads it
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// The network: user, user,fwd=2222:22 with ports of this host that lead into the guest, bridge=NAME, bridge where a profile says which
    /// one, or none
    #[arg(long, value_name = "NETWORK")]
    net: Option<String>,
    /// A credential for systemd in the guest: NAME=VALUE, or NAME=@FILE for a text that is in a file; more than one can be given
    #[arg(long, value_name = "NAME=VALUE")]
    credential: Vec<String>,
}

impl MachineArgs {
    pub(crate) fn settings(&self) -> Result<Settings> {
        let memory = self.memory.as_deref().map(|text| size::of("memory", text));
        let mut settings = Settings {
            cpus: self.cpus,
            memory: memory.transpose()?,
            network: self.net.as_deref().map(network).transpose()?.unwrap_or_default(),
            ..Settings::default()
        };
        settings.boot.kind = self.boot.map(|boot| match boot {
            BootArg::Direct => BootKind::Direct,
            BootArg::Uefi => BootKind::Uefi,
        });
        settings.boot.append.clone_from(&self.append);
        let each = self.credential.iter().map(|text| credential(text));
        settings.credentials = each.collect::<Result<_>>()?;
        settings.check_values()?;
        Ok(settings)
    }
}

impl MachineArgs {
    /// The same for machines of a template: each is given its credentials itself.
    pub(crate) fn template_settings(&self) -> Result<Settings> {
        if self.credential.is_empty() {
            return self.settings();
        }
        let error = Error::invalid("a template takes no credentials: all machines of it would have them");
        Err(error.with_hint(
            "give them to the machine: imgtool clone NAME --from TEMPLATE --credential NAME=VALUE",
        ))
    }
}

/// Says which files of keys cannot be read: what they are needed for is refused.
pub(crate) fn tell_broken_keys(store: &Store) {
    // Who cannot say which there are says so when it is asked for one.
    for error in store.broken_keys().unwrap_or_default() {
        note(&format!("{error}; whatever only this key has signed is refused"));
    }
}

/// What `--credential` means.
fn credential(text: &str) -> Result<(CredentialName, String)> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        Error::invalid(format!("\"{}\" gives a credential no value", block::escape(text))).with_hint(
            "such as --credential vmm.motd=hello, or --credential passwd.hashed-password.root=@FILE",
        )
    })?;
    let value = match value.strip_prefix('@') {
        Some(file) => text_of(Path::new(file), "a credential")?,
        None => value.to_owned(),
    };
    Ok((name.parse()?, value))
}

/// What `--net` means.
fn network(text: &str) -> Result<NetworkSettings> {
    let wrong = || {
        Error::invalid(format!("there is no network \"{}\"", block::escape(text))).with_hint(
            "there are user, user,fwd=HOST:GUEST, bridge=NAME, bridge (which a profile names) and none",
        )
    };
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut network = NetworkSettings::default();
    match kind.split_once('=') {
        None if kind == "user" => {
            network.kind = Some(NetworkKind::User);
            let forwards = parts.map(|part| part.strip_prefix("fwd=").ok_or_else(wrong)?.parse());
            network.forward = Some(forwards.collect::<Result<_>>()?);
            return Ok(network);
        }
        None if kind == "none" => network.kind = Some(NetworkKind::None),
        // Which one is left to others, and missed where a machine is made or started.
        None if kind == "bridge" => network.kind = Some(NetworkKind::Bridge),
        Some(("bridge", name)) if !name.is_empty() => {
            network.kind = Some(NetworkKind::Bridge);
            network.bridge = Some(name.to_owned());
        }
        _ => return Err(wrong()),
    }
    match parts.next() {
        None => Ok(network),
        Some(_) => Err(wrong()),
    }
}

/// The image at `path`, or where there is none and a machine of that name, the machine's. A directory is no image.
pub(crate) fn image_at(path: &Path) -> Cow<'_, Path> {
    let is_directory = path.metadata().is_ok_and(|file| file.is_dir());
    match path.symlink_metadata() {
        Ok(_) if !is_directory => Cow::Borrowed(path),
        _ => image_of_machine(path).map_or(Cow::Borrowed(path), Cow::Owned),
    }
}

/// The same, to be opened: of a file and a machine of the same name, that may be meant both, neither is changed, and the file is
/// read.
pub(crate) fn image_to_open(path: &Path, access: Access) -> Result<Cow<'_, Path>> {
    let image = image_at(path);
    let Some(other) = image_of_machine(path).filter(|_| matches!(image, Cow::Borrowed(_))) else {
        return refuse_name_of_template(path).map(|()| image);
    };
    let name = block::escape(&path.to_string_lossy()).into_owned();
    let other = other.to_string_lossy();
    if access.write {
        let error = Error::invalid(format!(
            "\"{name}\" is a file here and a machine of the store, and either may be meant to be changed"
        ));
        return Err(error.with_hint(format!(
            "./{name} is the file; the machine's disk is {}",
            block::escape(&other)
        )));
    }
    TOLD.call_once(|| {
        note(&format!(
            "\"{name}\" is the file here, as ./{name} is, and not the machine of that name, whose disk is {other}"
        ));
    });
    Ok(image)
}

/// Fails for a name that is no file's and no machine's, and that of a template.
fn refuse_name_of_template(path: &Path) -> Result<()> {
    let is_missing = || path.symlink_metadata().is_err();
    let Some(name) = path.to_str().filter(|name| !name.contains('/') && is_missing()) else {
        return Ok(());
    };
    match StoreArgs::default().open() {
        // Its own words say what to make of it.
        Ok(store) if store.template(name).is_ok() => store.instance(name).map(|_| ()),
        _ => Ok(()),
    }
}

/// The disk of the machine that has a name.
fn image_of_machine(name: &Path) -> Option<PathBuf> {
    let name: InstanceName = name.to_str()?.parse().ok()?;
    let store = StoreArgs::default().open().ok()?;
    Some(store.instance(name.as_str()).ok()?.image())
}

/// Whether a name is that of a machine, and not of a file.
pub(crate) fn is_machine(name: &Path) -> bool {
    matches!(image_at(name), Cow::Owned(_))
}

/// Fails for a file of a template, in whichever store, which no command writes to or replaces. What has another name there is
/// looked for in the store that commands use where none is named.
pub(crate) fn refuse_template(path: &Path) -> Result<()> {
    StoreArgs::default().refuse_template(path)
}

/// Fails for what no new file takes the place of: a file of a template, in whichever store, an image that a disk in a store is based on, and
/// a file of a store's own. The disk of a machine is an image as others are.
pub(crate) fn refuse_target(path: &Path) -> Result<()> {
    refuse_template(path)?;
    refuse_base(path)?;
    Store::refuse_store_file(path, StoreArgs::default().open().ok().as_ref())
}

/// Fails for an image that a disk in a store is based on, of which what guests see is about to change.
pub(crate) fn refuse_base(path: &Path) -> Result<()> {
    Store::refuse_base(path, StoreArgs::default().open().ok().as_ref())
}

/// Disks in stores that are based on an image, as far as can be seen.
pub(crate) fn overlays_in_stores(path: &Path) -> Vec<PathBuf> {
    Store::overlays(path, StoreArgs::default().open().ok().as_ref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn networks_are_named_in_one_word() {
        let network = |text: &str| {
            let arguments = MachineArgs {
                net: Some(text.to_owned()),
                ..MachineArgs::default()
            };
            Ok::<_, Error>(arguments.settings()?.network)
        };
        let user = network("user,fwd=2222:22,fwd=0.0.0.0:80:8080").unwrap();
        assert_eq!(user.kind, Some(NetworkKind::User));
        let forwards: Vec<String> = user.forward.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(forwards, ["2222:22", "0.0.0.0:80:8080"]);
        assert_eq!(network("bridge=br0").unwrap().bridge.as_deref(), Some("br0"));
        let open = network("bridge").unwrap();
        assert_eq!((open.kind, open.bridge), (Some(NetworkKind::Bridge), None));
        assert_eq!(network("none").unwrap().kind, Some(NetworkKind::None));
        for wrong in [
            "",
            "users",
            "user,fwd",
            "user,2222:22",
            "bridge,br0",
            "bridge=",
            "bridge=br0;id",
            "bridge=a-name-that-is-too-long",
            "none,fwd=1:2",
            "user,fwd=0:1",
            "user,fwd=2222:22,fwd=2222:23",
            "user,fwd=2222:22,fwd=0.0.0.0:2222:22",
        ] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_are_given_or_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "line\nline\n").unwrap();
        let value = |text: &str| credential(text).unwrap().1;
        assert_eq!(value("a.b=c=d@"), "c=d@");
        assert_eq!(value("a="), "");
        assert_eq!(value(&format!("a=@{}", file.path().display())), "line\nline\n");
        for wrong in ["a", "=b", "a b=c", "a=@/no/such/file"] {
            assert!(credential(wrong).is_err(), "{wrong}");
        }
        fs::write(&file, b"\xff").unwrap();
        assert!(credential(&format!("a=@{}", file.path().display())).is_err());
    }

    #[test]
    fn memory_comes_in_whole_mebibytes_and_is_no_more_than_a_machine_can_have() {
        let memory = |text: &str| {
            let arguments = MachineArgs {
                memory: Some(text.to_owned()),
                ..MachineArgs::default()
            };
            Ok::<_, Error>(arguments.settings()?.memory)
        };
        assert_eq!(memory("1G").unwrap(), Some(1 << 30));
        assert_eq!(memory("64T").unwrap(), Some(64 << 40));
        for wrong in ["1k", "0", "65T", "x"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }
}
