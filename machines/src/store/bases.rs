//! All disks below a store, whoever made them and whatever they are called, and what they are based on.
//!
//! A disk can come to stand on one of a store without the store's doing: libvirt's external snapshots of a machine's disk `a.qcow2` are called
//! `a.NAME`, and who works by hand calls them anything. So before a disk goes, gets another name or is written to, the headers of all files below the
//! store are looked at, and not only those of machines. This is rather one disk too many than a base too few.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::chain::MAX_LAYERS;
use block::gate::{self, OpenRequest, Purpose};
use block::{Error, Format, Result};

use super::{Fingerprint, InstanceName, LOCK, Store};

/// How deep below a store is looked; what lies deeper may be based on anything.
const MAX_DEPTH: usize = 8;
/// How the names of files end that are no disks, and are not opened.
const NO_DISKS: [&str; 7] = ["toml", "kernel", "initrd", "seed", "vars", "minisig", "pub"];
/// What is beside the directories of a store, and has no disk that stays.
const OWN: [&str; 4] = [LOCK, ".unfinished", ".unfinished.new", ".work"];
/// What a qcow2 image starts with.
const MAGIC: [u8; 4] = *b"QFI\xfb";

/// A disk below a store that is no template's.
#[derive(Debug)]
pub(super) struct Disk {
    /// Its file, or a directory that cannot be looked into.
    pub(super) path: PathBuf,
    /// The machine whose disk it is by its place.
    pub(super) machine: Option<String>,
    /// What it is called: the machine, or the path below the store.
    pub(super) name: String,
    /// What it is based on, as far as headers can be read.
    below: Vec<PathBuf>,
    /// Whether that is all of it.
    pub(super) is_known: bool,
}

impl Disk {
    /// Whether it is based on the image at a path, as far as can be seen.
    pub(super) fn is_on(&self, image: &Path) -> bool {
        let image = identity(image);
        self.below.iter().any(|base| identity(base) == image)
    }

    /// The names, without an extension, of what it is based on.
    pub(super) fn stems(&self) -> impl Iterator<Item = String> {
        let stems = self.below.iter().filter_map(|base| base.file_stem());
        stems.map(|stem| stem.to_string_lossy().into_owned())
    }

    /// Whether it is a disk, and not only what cannot be looked into.
    fn is_disk(&self) -> bool {
        self.path.is_file() && starts_as_disk(&self.path).unwrap_or(false)
    }
}

/// What a file is, by whatever name, or where it would be.
#[derive(PartialEq, Eq)]
enum Identity {
    File(u64, u64),
    Place(PathBuf),
}

fn identity(path: &Path) -> Identity {
    match fs::metadata(path) {
        Ok(file) => Identity::File(file.dev(), file.ino()),
        Err(_) => Identity::Place(plain(path)),
    }
}

/// The path of a file that is not there, without `..` where its directory is.
pub(super) fn plain(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

impl Store {
    /// All disks below the store, in the order of their names, but for templates' images: those of machines first.
    ///
    /// # Errors
    /// `Io` where the store's own directories cannot be read.
    pub(super) fn disks(&self) -> Result<Vec<Disk>> {
        let mut disks = Vec::new();
        let (templates, instances) = (self.templates_directory(), self.instances_directory());
        // These may be links to where there is room, and others are not followed.
        let mut ahead: Vec<(PathBuf, usize)> = [&self.directory, &templates, &instances]
            .into_iter()
            .filter(|directory| directory.symlink_metadata().is_ok())
            .map(|directory| (directory.clone(), 0))
            .collect();
        let mut seen = Vec::new();
        while let Some((directory, depth)) = ahead.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) if depth <= MAX_DEPTH => entries,
                Err(error) if depth == 0 => {
                    return Err(Error::io("read the directory", error).with_path(directory));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                _ => {
                    disks.push(self.unknown(directory));
                    continue;
                }
            };
            if let Ok(found) = fs::metadata(&directory) {
                let id = (found.dev(), found.ino());
                if seen.contains(&id) {
                    continue;
                }
                seen.push(id);
            }
            for entry in entries {
                let Ok(entry) = entry else {
                    disks.push(self.unknown(directory.clone()));
                    break;
                };
                let path = entry.path();
                if directory == self.directory && OWN.iter().any(|own| entry.file_name() == *own) {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    ahead.push((path, depth + 1));
                } else {
                    disks.extend(self.disk(path));
                }
            }
        }
        disks.sort_by(|one, other| {
            (one.machine.is_none(), &one.name).cmp(&(other.machine.is_none(), &other.name))
        });
        Ok(disks)
    }

    /// The disk that a file is, if it is one or cannot be looked at.
    fn disk(&self, path: PathBuf) -> Option<Disk> {
        if path
            .extension()
            .is_some_and(|extension| NO_DISKS.iter().any(|other| extension == *other))
            || self.template_at(&path).is_some()
        {
            return None;
        }
        let mut disk = self.unknown(path);
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match fs::metadata(&disk.path) {
            Ok(file) if !file.is_file() => return None,
            // A link that leads nowhere is a machine's disk that is elsewhere, or nothing.
            Err(error) if is_gone(&error) => return disk.machine.is_some().then_some(disk),
            _ => {}
        }
        match starts_as_disk(&disk.path) {
            // What should be a machine's disk and is none may be one that was damaged.
            Ok(false) if disk.machine.is_none() => None,
            Ok(true) => {
                (disk.below, disk.is_known) = below(&disk.path);
                Some(disk)
            }
            Err(error) if is_gone(&error) => None,
            _ => Some(disk),
        }
    }

    fn unknown(&self, path: PathBuf) -> Disk {
        let machine = self.machine_at(&path);
        let inside = path.strip_prefix(&self.directory).unwrap_or(&path);
        Disk {
            name: match &machine {
                Some(machine) => machine.clone(),
                None => block::escape(&inside.to_string_lossy()).into_owned(),
            },
            machine,
            path,
            below: Vec::new(),
            is_known: false,
        }
    }

    fn machine_at(&self, path: &Path) -> Option<String> {
        let name: InstanceName = disk_in(path, &self.instances_directory())?.parse().ok()?;
        Some(name.to_string())
    }

    fn template_at(&self, path: &Path) -> Option<Fingerprint> {
        disk_in(path, &self.templates_directory())?.parse().ok()
    }

    /// A disk below the store that is based on the image at a path.
    pub(super) fn overlay_of(&self, image: &Path) -> Result<Option<Disk>> {
        Ok(self.disks()?.into_iter().find(|disk| disk.is_on(image)))
    }

    /// The files of all disks below the store that are based on the image at a path.
    pub(super) fn disks_based_on(&self, image: &Path) -> Result<Vec<PathBuf>> {
        let disks = self.disks()?.into_iter().filter(|disk| disk.is_on(image));
        Ok(disks.map(|disk| disk.path).collect())
    }

    /// Disks below the store that are no machine's and no template's.
    pub(super) fn strays(&self) -> Result<Vec<PathBuf>> {
        let disks = self.disks()?;
        let own = disks.iter().filter(|disk| disk.machine.is_some());
        let templates = super::stems(&self.templates_directory(), "qcow2")?;
        let templates = templates
            .iter()
            .filter(|stem| stem.parse::<Fingerprint>().is_ok());
        let templates = templates.map(|stem| Self::file(&self.templates_directory(), stem, "qcow2"));
        // What a link in the store leads to may lie in it, too.
        let known: Vec<Identity> = own
            .map(|disk| identity(&disk.path))
            .chain(templates.map(|image| identity(&image)))
            .collect();
        let strays = disks
            .into_iter()
            .filter(|disk| disk.machine.is_none() && disk.is_disk());
        Ok(strays
            .map(|disk| disk.path)
            .filter(|path| !known.contains(&identity(path)))
            .collect())
    }
}

/// The name of a file in a directory that ends as disks there do.
fn disk_in<'p>(path: &'p Path, directory: &Path) -> Option<&'p str> {
    let is_inside = path.parent() == Some(directory);
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".qcow2").filter(|_| is_inside)
}

fn starts_as_disk(path: &Path) -> io::Result<bool> {
    let mut head = [0; MAGIC.len()];
    match File::open(path)?.read_exact(&mut head) {
        Ok(()) => Ok(head == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What an image is based on, by headers, and whether that is all of it.
fn below(path: &Path) -> (Vec<PathBuf>, bool) {
    let (mut below, mut next) = (Vec::new(), vec![path.to_owned()]);
    let mut is_known = true;
    while let Some(image) = next.pop() {
        match bases(&image) {
            Ok(bases) if below.len() + bases.len() < MAX_LAYERS => {
                is_known &= bases.iter().all(|base| base.exists());
                next.extend(bases.iter().filter(|base| base.exists()).cloned());
                below.extend(bases);
            }
            _ => is_known = false,
        }
    }
    (below, is_known)
}

/// What the header of an image names below it: from where the image is called so, and from where a link leads to.
fn bases(image: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("look at", error).with_path(image);
    if !fs::metadata(image).map_err(failed)?.is_file() || !starts_as_disk(image).map_err(failed)? {
        return Ok(Vec::new());
    }
    let storage = raw::OpenOptions::new().lock(false).open(image)?;
    let Some(reference) = qcow2::Qcow2.references(&storage)?.backing else {
        return Ok(Vec::new());
    };
    let base = |from: &Path| {
        gate::resolve(&OpenRequest {
            from,
            name: &reference.name,
            purpose: Purpose::Backing,
        })
    };
    let (named, real) = (base(image)?, fs::canonicalize(image).map_err(failed)?);
    let real = base(&real)?;
    if identity(&named) == identity(&real) {
        return Ok(vec![named]);
    }
    let found: Vec<PathBuf> = [&named, &real]
        .into_iter()
        .filter(|base| base.exists())
        .cloned()
        .collect();
    Ok(if found.is_empty() {
        vec![named, real]
    } else {
        found
    })
}
