//! What this host can do, and what is to be installed for the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use block::Result;
use rustix::fs::{ioctl_ficlone, statvfs};

use crate::accel::{Kvm, find_program};
use crate::bridge;
use crate::launch::reach::User;
use crate::launch::{firmware, qemu, quoted};
use crate::machine::Architecture;

/// Less free room than this, in bytes, is too little for a template or two.
const LITTLE: u64 = 2 << 30;
/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What, in a word or two.
    pub name: &'static str,
    /// What it is good for.
    pub purpose: &'static str,
    /// Whether machines cannot be kept and run without it.
    pub essential: bool,
    /// Whether it is there and works.
    pub ok: bool,
    /// What there is, or what is wrong.
    pub found: String,
    /// What to do where it is not.
    pub hint: Option<String>,
}

/// What a look at something gives: what there is, or what is wrong and what to do.
type Found = Result<String, (String, String)>;

fn missing<T>(found: impl Into<String>, hint: impl Into<String>) -> Result<T, (String, String)> {
    Err((found.into(), hint.into()))
}

/// Looks at all that machines of an architecture could use, with their images in `directory` or, where that is not there
/// yet, where it would be. Whether KVM works is found out anew, and kept in `cache`.
pub fn examine(directory: &Path, architecture: Architecture, cache: Option<&Path>) -> Vec<Check> {
    let store = directory;
    let directory = existing(directory);
    let check = |name, purpose, essential, found: Found| {
        let ok = found.is_ok();
        let (found, hint) = match found {
            Ok(found) => (found, None),
            Err((found, hint)) => (found, Some(hint)),
        };
        Check {
            name,
            purpose,
            essential,
            ok,
            found,
            hint,
        }
    };
    vec![
        check("emulator", "run machines", true, emulator(architecture)),
        check("images", "keep templates and machines", true, room(&directory)),
        check(
            "KVM",
            "run them at the processor's speed",
            false,
            kvm(architecture, cache),
        ),
        check(
            "UEFI firmware",
            "machines that boot from their disk",
            false,
            uefi(architecture),
        ),
        check("bridge helper", "machines on a bridge", false, bridge_helper()),
        check(
            "tap devices",
            "machines on a bridge, other launchers' too",
            false,
            device("/dev/net/tun", "modprobe tun"),
        ),
        check(
            "reflinks",
            "copies of images that take no room",
            false,
            reflinks(&directory),
        ),
        check(
            "mmdebstrap",
            "templates made of Debian's packages",
            false,
            program("mmdebstrap", "apt install mmdebstrap"),
        ),
        check(
            "libvirt",
            "imgtool launch --format libvirt",
            false,
            libvirt(store),
        ),
        check(
            "other launchers",
            "imgtool launch --format NAME",
            false,
            launchers(),
        ),
    ]
}

/// The directory, or the first one on the way up that is there.
fn existing(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|path| path.is_dir());
    match found {
        Some(path) if !path.as_os_str().is_empty() => path.to_owned(),
        _ => ".".into(),
    }
}

fn emulator(architecture: Architecture) -> Found {
    let name = qemu::program(architecture);
    program(name, &format!("apt install {}", qemu::package(architecture)))
}

/// A program and what it says its version is.
fn program(name: &str, hint: &str) -> Found {
    let Some(path) = find_program(name) else {
        return missing(format!("no {name} in PATH"), hint);
    };
    let mut command = Command::new(&path);
    let output = command.arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let path = path.display();
    match text.unwrap_or_default().lines().next().map(str::trim) {
        None | Some("") => Ok(path.to_string()),
        Some(version) => Ok(format!("{path}, {version}")),
    }
}

fn kvm(architecture: Architecture, cache: Option<&Path>) -> Found {
    match Kvm::find_anew(architecture, cache) {
        Ok(Kvm::Works) => Ok("it has run a guest".to_owned()),
        Ok(Kvm::Fails { reason, hint }) => {
            let without = "machines run without it, ten times slower";
            missing(reason, hint.unwrap_or_else(|| without.to_owned()))
        }
        Err(error) => missing(
            error.to_string(),
            error.hint().unwrap_or("see whether QEMU starts").to_owned(),
        ),
    }
}

fn uefi(architecture: Architecture) -> Found {
    match firmware::find(architecture) {
        Some(path) => Ok(path.display().to_string()),
        None => missing(
            "none where distributions put it",
            format!("apt install {}", firmware::package(architecture)),
        ),
    }
}

fn bridge_helper() -> Found {
    let path = bridge::helper()?;
    let Some(allowed) = bridge::allowed() else {
        return Ok(path.to_owned());
    };
    if allowed.is_empty() {
        return missing(
            "/etc/qemu/bridge.conf allows no bridge",
            "for a bridge br0: mkdir -p /etc/qemu && echo 'allow br0' >>/etc/qemu/bridge.conf",
        );
    }
    Ok(format!("{path}, for {}", allowed.join(", ")))
}

fn device(path: &str, hint: &str) -> Found {
    match fs::File::options().read(true).write(true).open(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(error) => missing(format!("{path} cannot be opened: {}", error.kind()), hint),
    }
}

fn room(directory: &Path) -> Found {
    let shown = directory.display();
    if let Err(error) = tempfile::tempfile_in(directory) {
        return missing(
            format!("no file can be made in {shown}: {}", error.kind()),
            "choose another directory with --store or IMGTOOL_STORE",
        );
    }
    match statvfs(directory) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} MiB are free in {shown}", free >> 20);
            if free < LITTLE {
                return missing(
                    text,
                    "make room, or choose another directory with --store or IMGTOOL_STORE",
                );
            }
            Ok(text)
        }
        Err(error) => missing(
            format!("{shown} tells not what is free: {error}"),
            "choose another directory with --store or IMGTOOL_STORE",
        ),
    }
}

/// Has two files share a block, since the name of a file system says little.
fn reflinks(directory: &Path) -> Found {
    let shown = directory.display();
    let shared = || -> std::io::Result<()> {
        let (from, to) = (
            tempfile::NamedTempFile::new_in(directory)?,
            tempfile::tempfile_in(directory)?,
        );
        fs::write(from.path(), vec![1; 1 << 16])?;
        Ok(ioctl_ficlone(to, from.as_file())?)
    };
    match shared() {
        Ok(()) => Ok(format!("files in {shown} can share blocks")),
        Err(_) => missing(
            format!("files in {shown} cannot share blocks"),
            "put images on XFS, Btrfs or bcachefs, if they are often copied as a whole",
        ),
    }
}

/// libvirt, and whether whoever runs its QEMU can reach a store in a directory.
fn libvirt(store: &Path) -> Found {
    let found = program("virsh", "apt install libvirt-daemon-system libvirt-clients")?;
    let Some(user) = User::of_libvirt() else {
        return Ok(found);
    };
    let mut closed = user.kept_out([store]);
    let mut before = String::new();
    if !store.is_dir() {
        // It is made for its owner alone, where it is not there before.
        let store = std::path::absolute(store).unwrap_or_else(|_| store.to_owned());
        before = format!("install -d -m 700 {} && ", quoted(&store.to_string_lossy()));
        closed.push(store);
    }
    match user.told(&closed) {
        None => Ok(found),
        Some((why, hint)) => missing(format!("{found}; {why}"), before + &hint),
    }
}

fn launchers() -> Found {
    let names = ["firecracker", "cloud-hypervisor", "crosvm", "lkvm"];
    let found: Vec<&str> = names
        .into_iter()
        .filter(|name| find_program(name).is_some())
        .collect();
    if found.is_empty() {
        return missing(
            format!("none of {} in PATH", names.join(", ")),
            "get a release from its project, if you want one",
        );
    }
    Ok(found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_not_has_a_hint() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let later = directory.path().join("not/yet");
        let checks = examine(&later, Architecture::X86_64, Some(&cache));
        let found = |name| checks.iter().find(|check| check.name == name).unwrap();
        // scripts/setup.sh test installs these.
        assert!(
            found("emulator").ok && found("emulator").found.contains("version"),
            "{checks:#?}"
        );
        assert!(found("UEFI firmware").ok, "{checks:#?}");
        let libvirt = found("libvirt");
        assert!(libvirt.found.contains("virsh, "), "{checks:#?}");
        // A store that is not there yet is made for its owner, who is another than runs root's libvirt.
        let hint = libvirt.hint.as_deref().unwrap_or_default();
        let is_told = hint.starts_with("install -d -m 700 ") && hint.ends_with("/not/yet");
        assert_eq!(is_told, User::of_libvirt().is_some(), "{libvirt:?}");
        assert!(found("images").found.contains(directory.path().to_str().unwrap()));
        assert_eq!(cache.join("kvm").exists(), device("/dev/kvm", "").is_ok());
        for check in &checks {
            assert_eq!(check.ok, check.hint.is_none(), "{check:?}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_says_what_to_install() {
        let missing = program("no-such-program", "apt install it");
        assert_eq!(missing.unwrap_err().1, "apt install it");
    }
}
