//! Where a machine writes that is thrown away afterwards.
//!
//! A directory that only its owner may enter, since what a guest writes has its keys and passwords in it. Its job holds a
//! lock on it. That of a job that was killed stays, without its lock, and the next job that makes one in the same place
//! removes it. The place is one where people have directories too: one that has not the name, the mode and the files of such
//! a job, and these alone, is somebody's, and stays with all that is in it. A directory is there before it is locked, and may be
//! taken for a dead job's until then: so whoever has locked a new one looks whether it still is where it was made, and makes
//! another if not.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use block::chain::{Below, Chain, ChainOptions};
use block::gate::Deny;
use block::{BackingReference, Error, Result};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, open, unlinkat};
use rustix::io::retry_on_intr;
use rustix::process::geteuid;
use tempfile::TempDir;

use crate::machine::{Boot, Disk, Layer, Machine};
use crate::store::create_private;

const PREFIX: &str = "imgtool-run-";
/// Letters and digits behind that, at random: more than are in a word that people would take.
const RANDOM: usize = 16;
const MODE: u32 = 0o700;
/// The firmware's variables.
const VARIABLES: &str = "variables";

/// A directory for what a guest writes, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Ephemeral {
    directory: TempDir,
    /// Held for longer than the directory is there.
    _lock: File,
}

impl Ephemeral {
    /// A new one in `place`.
    fn new(place: &Path) -> Result<Self> {
        let failed = |error| Error::io("make a directory for what the guest writes", error).with_path(place);
        for stale in stale(place) {
            // Whoever could not remove it leaves it to the next.
            let _ = stale.remove();
        }
        loop {
            let directory = tempfile::Builder::new()
                .prefix(PREFIX)
                .rand_bytes(RANDOM)
                .permissions(Permissions::from_mode(MODE))
                .tempdir_in(place)
                .map_err(failed)?;
            let lock = match File::open(directory.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed)?,
            };
            // Without it the next job would take this one for dead.
            retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
                .map_err(|error| failed(error.into()))?;
            if directory.path().exists() {
                return Ok(Self {
                    directory,
                    _lock: lock,
                });
            }
        }
    }

    /// Has a machine write to files of its own in a new one.
    ///
    /// # Errors
    /// `InvalidInput`, `Corrupt` for a disk that cannot be opened; `NoSpace`, `Io`.
    pub(super) fn of(machine: &mut Machine, place: &Path) -> Result<Self> {
        let ephemeral = Self::new(place)?;
        let directory = ephemeral.directory.path();
        for (number, disk) in machine.disks.iter_mut().enumerate() {
            if !disk.read_only {
                let path = directory.join(overlay_name(number));
                make_overlay(disk, &path)?;
                let format = "qcow2".to_owned();
                disk.chain.insert(0, Layer { path, format });
            }
        }
        if let Boot::Uefi { variables, .. } = &mut machine.boot {
            let aside = directory.join(VARIABLES);
            copy_private(variables, &aside)?;
            *variables = aside;
        }
        Ok(ephemeral)
    }
}

fn overlay_name(number: usize) -> String {
    format!("disk{number}.qcow2")
}

/// A directory that a killed job has left; locked, so that nobody else removes it too.
struct Stale {
    path: PathBuf,
    directory: File,
}

impl Stale {
    /// Removes it, unless there is something in it that no job makes.
    fn remove(&self) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let name = entry?.file_name().to_owned();
            if is_made(name.to_bytes()) {
                names.push(name);
            } else if ![c".", c".."].contains(&name.as_c_str()) {
                return Ok(());
            }
        }
        for name in names {
            unlinkat(&self.directory, name, AtFlags::empty())?;
        }
        fs::remove_dir(&self.path)
    }
}

/// Whether a job gives a file this name.
fn is_made(name: &[u8]) -> bool {
    let number = str::from_utf8(name)
        .ok()
        .and_then(|name| name.strip_prefix("disk")?.strip_suffix(".qcow2")?.parse().ok());
    name == VARIABLES.as_bytes() || number.is_some_and(|number| name == overlay_name(number).as_bytes())
}

/// Whether a job gives its directory this name.
fn is_ours(name: &OsStr) -> bool {
    let random = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    random.is_some_and(|random| {
        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Those in a place that others may write to as well: only what is a directory, this user's, and as we make them.
fn stale(place: &Path) -> Vec<Stale> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| is_ours(&entry.file_name()));
    let stale = |path: PathBuf| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = File::from(open(&path, flags, Mode::empty()).ok()?);
        let found = directory.metadata().ok()?;
        let is_own = found.uid() == geteuid().as_raw() && found.mode() & 0o7777 == MODE;
        let is_free = is_own && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok();
        is_free.then_some(Stale { path, directory })
    };
    ours.filter_map(|entry| stale(entry.path())).collect()
}

/// Copies a file, where there is one, so that nobody else can read the copy.
fn copy_private(from: &Path, to: &Path) -> Result<()> {
    let contents = match fs::read(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| Error::io("read", error).with_path(from))?,
    };
    drop(create_private(to)?);
    fs::write(to, contents).map_err(|error| Error::io("write", error).with_path(to))
}

/// An image that reads as the disk does.
fn make_overlay(disk: &Disk, path: &Path) -> Result<()> {
    let Some(active) = disk.chain.first() else {
        return Err(Error::invalid("a disk of the machine has no image"));
    };
    let options = ChainOptions {
        format: Some(&active.format),
        below: Below::Nothing,
        ..ChainOptions::default()
    };
    let opener = raw::HostOpener::new();
    let chain = Chain::open_with(
        &opener,
        &[&qcow2::Qcow2, &raw::Raw],
        &Deny,
        &active.path,
        &options,
    )?;
    let name = active.path.to_string_lossy().into_owned();
    let storage = create_private(path)?;
    let options = qcow2::CreateOptions {
        size: chain.size(),
        backing: Some(BackingReference {
            name,
            format: Some(active.format.clone()),
        }),
        ..qcow2::CreateOptions::default()
    };
    qcow2::create(&storage, &options)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_a_guest_writes_is_its_owners_alone() {
        let lab = tempfile::tempdir().unwrap();
        let made = Ephemeral::new(lab.path()).unwrap();
        assert_eq!(mode(made.directory.path()), 0o700);
        let (from, to) = (lab.path().join("from"), made.directory.path().join("to"));
        copy_private(&from, &to).unwrap();
        assert!(!to.exists());
        fs::write(&from, "variables").unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o644)).unwrap();
        copy_private(&from, &to).unwrap();
        assert_eq!(
            (mode(&to), fs::read(&to).unwrap()),
            (0o600, b"variables".to_vec())
        );
    }

    #[test]
    fn what_a_dead_job_left_is_removed_and_nothing_else() {
        let lab = tempfile::tempdir().unwrap();
        let path = |name: &str| lab.path().join(name);
        let directory = |name: &str, mode: u32, files: &[&str]| {
            fs::create_dir(path(name)).unwrap();
            for file in files {
                fs::write(path(name).join(file), "x").unwrap();
            }
            fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
        };
        let made = Ephemeral::new(lab.path()).unwrap();
        let name = made.directory.path().file_name().unwrap();
        assert!(is_ours(name), "{}", name.display());
        drop(made);
        directory(
            "imgtool-run-0123456789abcdeF",
            0o700,
            &["disk0.qcow2", "disk10.qcow2", "variables"],
        );
        directory("imgtool-run-0123456789abcdeG", 0o700, &[]);
        // Each is not quite what a job makes.
        let kept = [
            ("other", 0o700, "disk0.qcow2"),
            ("imgtool-run-backup", 0o700, "disk0.qcow2"),
            ("imgtool-run-0123456789abcde.", 0o700, "disk0.qcow2"),
            ("imgtool-run-0123456789abcdef0", 0o700, "disk0.qcow2"),
            ("imgtool-run-0123456789abcde1", 0o755, "disk0.qcow2"),
            ("imgtool-run-0123456789abcde2", 0o700, "thesis"),
            ("imgtool-run-0123456789abcde3", 0o700, "disk01.qcow2"),
            ("imgtool-run-0123456789abcde4", 0o700, "disk.qcow2"),
        ];
        for (name, mode, file) in kept {
            directory(name, mode, &["disk1.qcow2", file]);
        }
        directory("imgtool-run-0123456789abcde5", 0o700, &[]);
        fs::create_dir(path("imgtool-run-0123456789abcde5/variables")).unwrap();
        symlink(path("other"), path("imgtool-run-0123456789abcde6")).unwrap();
        fs::write(path("imgtool-run-0123456789abcde7"), "").unwrap();

        let alive = Ephemeral::new(lab.path()).unwrap();
        for gone in ["imgtool-run-0123456789abcdeF", "imgtool-run-0123456789abcdeG"] {
            assert!(!path(gone).exists(), "{gone}");
        }
        let other = Ephemeral::new(lab.path()).unwrap();
        assert!(alive.directory.path().exists());
        for (name, _, file) in kept {
            for file in ["disk1.qcow2", file] {
                assert!(path(name).join(file).exists(), "{name}/{file}");
            }
        }
        for name in ["5/variables", "6", "7"] {
            let name = format!("imgtool-run-0123456789abcde{name}");
            assert!(path(&name).exists(), "{name}");
        }
        let gone = other.directory.path().to_owned();
        drop(other);
        assert!(!gone.exists());
    }
}
