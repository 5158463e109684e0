//! A store of templates and of the machines that are clones of them.
//!
//! # What is where
//!
//! A store is a directory that can be read without this program:
//!
//! ```text
//! templates/FINGERPRINT.qcow2    the disk, mode 0444
//! templates/FINGERPRINT.toml     what it is: TemplateDocument
//! templates/FINGERPRINT.kernel   } for machines whose launcher loads the kernel
//! templates/FINGERPRINT.initrd   }
//! instances/NAME.qcow2           the disk, an overlay of a template's
//! instances/NAME.toml            what it is: InstanceDocument
//! profiles/NAME.toml             settings that instances can share: Settings
//! templates/FINGERPRINT.qcow2.minisig   who vouches for the disk
//! templates/FINGERPRINT.toml.minisig    who vouches for what it is, if somebody does
//! trusted/FINGERPRINT.toml       what of a template was found right
//! keys/NAME.pub                  whom the store trusts; with none, everybody
//! aliases.toml                   names of templates
//! .lock                          held while any of these are changed
//! .unfinished                    what is about to be named or removed, and aliases of that: Unfinished
//! .work/                         what is not finished
//! ```
//!
//! # How it stays whole
//!
//! All files of a template or an instance are made, and durable, in `.work` before they get their names, and the disk gets its name last.
//! In the same way the disk is what is removed first. What has no disk is therefore not there, or away for a while: `unfinished` tells
//! these apart. Names are given and taken under one lock, so a template cannot go while a clone of
//! it comes; and what is removed is looked for in the headers of all disks below the store, whatever they are called, not only in what is written about them.
//!
//! The lock is for who may change the store: `.lock` can be opened by those who can write to the store's directory, and by nobody
//! else, so that nobody who only reads a store can keep others from changing it.

mod aliases;
mod bases;
mod clones;
mod document;
mod fingerprint;
mod guard;
mod import;
mod instance;
mod layers;
mod mac;
mod name;
mod publish;
mod scratch;
mod settings;
mod signature;
mod state;
mod template;
mod trusted;
mod unfinished;
mod upkeep;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result, escape};
use rustix::fs::{FlockOperation, OFlags, RenameFlags, flock, renameat_with};

pub(crate) use clones::create_private;
pub use clones::{NewInstances, Personalise};
pub use document::parse;
pub(crate) use document::position;
pub use fingerprint::Fingerprint;
pub(crate) use import::{MAX_KERNEL, copy_file, copy_image, copy_image_file, has_esp, stands_alone};
pub use import::{NewTemplate, read_kernel};
pub use instance::{Instance, InstanceDocument};
pub use mac::Mac;
pub use name::{Alias, Hostname, InstanceName, nearest};
pub use publish::{Leftovers, Published};
pub(crate) use signature::SUFFIX as SIGNATURE;
pub use state::{InstanceFault, InstanceState, TemplateFault, Used};
pub use template::{Provenance, Stamp, Template, TemplateDocument};
pub use upkeep::{Collected, Collecting, Verified};

use scratch::Scratch;

/// What is locked in a store's directory as long as it is changed.
const LOCK: &str = ".lock";

/// A store.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What is in a part of a store.
#[derive(Debug)]
pub struct Listing<T> {
    /// In the order of names.
    pub found: Vec<T>,
    /// Those of which all is known, and whose disks are not there; with what there is to say of that.
    pub away: Vec<(T, Error)>,
    /// What only another user may read, as errors that name the file.
    pub others: Vec<Error>,
    /// What cannot be read.
    pub broken: Vec<Error>,
}

impl<T> Listing<T> {
    fn new() -> Self {
        Self {
            found: Vec::new(),
            away: Vec::new(),
            others: Vec::new(),
            broken: Vec::new(),
        }
    }

    /// Adds what was found, or why not.
    fn add(&mut self, loaded: Result<T>) {
        match loaded {
            Ok(one) => self.found.push(one),
            Err(error) if is_others(&error) => self.others.push(error),
            Err(error) => self.broken.push(error),
        }
    }
}

/// Whether an error is that a file is another user's.
fn is_others(error: &Error) -> bool {
    error.io_kind() == Some(io::ErrorKind::PermissionDenied)
}

/// The lock of a store, let go when dropped.
#[derive(Debug)]
struct Held(#[expect(dead_code, reason = "it is closed when dropped")] File);

impl Store {
    /// The store in a directory, which need not be there before something is put into it.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn templates_directory(&self) -> PathBuf {
        self.directory.join("templates")
    }

    fn instances_directory(&self) -> PathBuf {
        self.directory.join("instances")
    }

    /// A file of a template or an instance.
    fn file(directory: &Path, name: impl std::fmt::Display, extension: &str) -> PathBuf {
        directory.join(format!("{name}.{extension}"))
    }

    /// Waits until nobody else changes the store, and keeps others from it. What a killed job has left half-made is removed.
    fn hold(&self) -> Result<Held> {
        let held = self.lock()?;
        // What cannot be removed now, another user's for example, stays written down, and its names taken.
        let _ = self.settle(&held);
        Ok(held)
    }

    /// As [`hold`](Self::hold), for who changes nothing yet.
    fn lock(&self) -> Result<Held> {
        let path = self.directory.join(LOCK);
        let failed = |error| self.explain(Error::io("lock the store", error).with_path(&path));
        self.make_directory().map_err(failed)?;
        self.refuse_links_of_others()?;
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
            .open(&path)
            .map_err(failed)?;
        share(&file, &self.directory).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Held(file))
    }

    /// Fails where somebody who may write to the store has made a part of it a link: what is there would be changed and removed as the
    /// store's own, by users who may do so and with files that the one who laid the link may not touch. One's own links, root's, and those of the
    /// store's owner are a way to have the disks elsewhere.
    fn refuse_links_of_others(&self) -> Result<()> {
        let failed = |error| Error::io("look at", error).with_path(&self.directory);
        let owner = fs::metadata(&self.directory).map_err(failed)?.uid();
        let may_link = [owner, 0, rustix::process::geteuid().as_raw()];
        for part in ["templates", "instances", "profiles", "trusted", "keys"] {
            let path = self.directory.join(part);
            let is_strange = |found: fs::Metadata| found.is_symlink() && !may_link.contains(&found.uid());
            if path.symlink_metadata().is_ok_and(is_strange) {
                let error = Error::new(ErrorKind::Denied, "this is a link that another user has laid");
                return Err(error
                    .with_path(path)
                    .with_hint("remove it, or make it as the owner of the store"));
            }
        }
        Ok(())
    }

    /// Makes its directory, if it is not there, for nobody else to read: disks have passwords and keys in them.
    fn make_directory(&self) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
    }

    /// A directory for what is not finished.
    fn scratch(&self) -> Result<Scratch> {
        self.make_directory()
            .map_err(|error| self.explain(Error::io("make the store", error).with_path(&self.directory)))?;
        Scratch::new(&self.directory.join(".work")).map_err(|error| self.explain(error))
    }

    /// Says of a store that cannot be written to how to have another.
    fn explain(&self, error: Error) -> Error {
        let refused = [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::ReadOnlyFilesystem,
            io::ErrorKind::NotFound,
            io::ErrorKind::NotADirectory,
        ];
        match error.io_kind() {
            Some(kind) if refused.contains(&kind) => error.with_hint(format!(
                "the store is {}; choose another with --store or IMGTOOL_STORE",
                escape(&self.directory.to_string_lossy())
            )),
            _ => error,
        }
    }
}

/// Lets a file of our own be opened by those who may write to a directory, and by nobody else: who can read it can lock it.
fn share(file: &File, directory: &Path) -> io::Result<()> {
    let (ours, writers) = (file.metadata()?, fs::metadata(directory)?.mode() & 0o222);
    let wanted = 0o600 | writers | writers << 1;
    if ours.uid() == rustix::process::geteuid().as_raw() && ours.mode() & 0o777 != wanted {
        file.set_permissions(fs::Permissions::from_mode(wanted))?;
    }
    Ok(())
}

/// The names, without an extension, of the files in a directory that have it; none where there is no directory.
fn stems(directory: &Path, extension: &str) -> Result<Vec<String>> {
    let failed = |error| Error::io("read the directory", error).with_path(directory);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // A link that leads nowhere is a directory that is elsewhere, for now.
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.symlink_metadata().is_err() => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut stems = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(extension));
        if let Some(stem) = stem.and_then(|stem| stem.strip_suffix('.')) {
            stems.push(stem.to_owned());
        }
    }
    stems.sort_unstable();
    Ok(stems)
}

/// Gives a file a name that no other has.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let none = rustix::fs::CWD;
    renameat_with(none, from, none, to, RenameFlags::NOREPLACE).map_err(|error| {
        let error = io::Error::from(error);
        if error.kind() == io::ErrorKind::AlreadyExists {
            return Error::new(ErrorKind::InvalidInput, "a file of that name is there already")
                .with_path(to)
                .with_hint("choose another name, or remove it");
        }
        Error::io("give the file its name", error).with_path(to)
    })
}
