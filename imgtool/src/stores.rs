//! The store that commands for templates and machines work on, and what they say of machines.

use std::borrow::Cow;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use block::{Error, Result, size};
use clap::{Args, ValueEnum};
use machines::store::{InstanceName, Store};
use machines::{BootKind, CredentialName, NetworkKind, NetworkSettings, Settings};

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

impl StoreArgs {
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
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
    /// The network: user, user,fwd=2222:22 with ports of this host that lead into the guest, bridge=NAME or none
    #[arg(long, value_name = "NETWORK")]
    net: Option<String>,
    /// A credential for systemd in the guest: NAME=VALUE, or NAME=@FILE for a text that is in a file; more than one can be given
    #[arg(long, value_name = "NAME=VALUE")]
    credential: Vec<String>,
}

impl MachineArgs {
    pub(crate) fn settings(&self) -> Result<Settings> {
        let mut settings = Settings {
            cpus: self.cpus,
            memory: self.memory.as_deref().map(memory).transpose()?,
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
        Ok(settings)
    }
}

fn memory(text: &str) -> Result<u64> {
    let bytes = size::of("memory", text)?;
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) {
        let error = Error::invalid(format!("memory comes in whole MiB, and not as {bytes} bytes"));
        return Err(error.with_hint("such as --memory 512M"));
    }
    Ok(bytes)
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
        Some(file) => fs::read_to_string(file)
            .map_err(|error| Error::io("read the credential", error).with_path(file))?,
        None => value.to_owned(),
    };
    Ok((name.parse()?, value))
}

/// What `--net` means.
fn network(text: &str) -> Result<NetworkSettings> {
    let wrong = || {
        Error::invalid(format!("there is no network \"{}\"", block::escape(text)))
            .with_hint("there are user, user,fwd=HOST:GUEST, bridge=NAME and none")
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
        Some(("bridge", name)) if !name.is_empty() => {
            network.kind = Some(NetworkKind::Bridge);
            network.bridge = Some(name.to_owned());
        }
        _ => return Err(wrong()),
    }
    network.check()?;
    match parts.next() {
        None => Ok(network),
        Some(_) => Err(wrong()),
    }
}

/// The image at `path`, or where there is none and a machine of that name, the machine's.
pub(crate) fn image_at(path: &Path) -> Cow<'_, Path> {
    let own = || {
        let name: InstanceName = path.to_str()?.parse().ok()?;
        let store = StoreArgs::default().open().ok()?;
        Some(store.instance(name.as_str()).ok()?.image())
    };
    match path.symlink_metadata() {
        Err(_) => own().map_or(Cow::Borrowed(path), Cow::Owned),
        Ok(_) => Cow::Borrowed(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_named_in_one_word() {
        let user = network("user,fwd=2222:22,fwd=0.0.0.0:80:8080").unwrap();
        assert_eq!(user.kind, Some(NetworkKind::User));
        let forwards: Vec<String> = user.forward.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(forwards, ["2222:22", "0.0.0.0:80:8080"]);
        assert_eq!(network("bridge=br0").unwrap().bridge.as_deref(), Some("br0"));
        assert_eq!(network("none").unwrap().kind, Some(NetworkKind::None));
        for wrong in [
            "",
            "users",
            "user,fwd",
            "user,2222:22",
            "bridge",
            "bridge=",
            "bridge=br0;id",
            "bridge=a-name-that-is-too-long",
            "none,fwd=1:2",
            "user,fwd=0:1",
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
    fn memory_comes_in_whole_mebibytes() {
        assert_eq!(memory("1G").unwrap(), 1 << 30);
        assert!(memory("1k").is_err() && memory("0").is_err());
    }
}
