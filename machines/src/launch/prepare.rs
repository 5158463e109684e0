//! Files in the form that a launcher wants.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use block::chain::{Chain, ChainOptions};
use block::gate::Explicit;
use block::{Error, Result};
use ops::{Control, ConvertOptions};
use rustix::fs::XattrFlags;
use tempfile::TempPath;

use super::{Needs, is_raw, vmlinux};
use crate::machine::{Boot, Disk, Layer, Machine};
use crate::store::read_kernel;

/// The machine with its files as they are [needed](super::Launcher::needs), those that are not so made anew in
/// `directory`: `NAME-disk0.raw`, `NAME-vmlinux`. They are copies, which go their own way from then on. All get their names when
/// all are whole.
///
/// Files that this has made before are replaced if nothing was written to them since. They say so themselves, in an extended
/// attribute with their length and time.
///
/// # Errors
/// `InvalidInput` for a name of another file, and for a copy that was written to: a machine does so; `Locked` for one that is in use;
/// whatever reading, converting and unpacking meet.
pub fn prepare(machine: &Machine, needs: Needs, directory: &Path, control: &Control<'_>) -> Result<Machine> {
    let mut machine = machine.clone();
    let mut made = Vec::new();
    // What takes no time is what may turn out to be none.
    if let (true, Boot::Direct { kernel, .. }) = (needs.elf_kernel, &mut machine.boot) {
        let bytes = read_kernel(kernel)?;
        let elf = vmlinux::extract(&bytes).map_err(|error| error.with_path(&*kernel))?;
        if elf != bytes {
            let path = directory.join(format!("{}-vmlinux", machine.name));
            made.push(Made::new(&path, |file| {
                let written = fs::File::create(file).and_then(|mut to| {
                    to.write_all(&elf)?;
                    to.sync_all()
                });
                written.map_err(|error| Error::io("write", error))
            })?);
            *kernel = path;
        }
    }
    if needs.raw_disks {
        for (number, disk) in machine.disks.iter_mut().enumerate() {
            if !is_raw(disk) {
                let path = directory.join(format!("{}-disk{number}.raw", machine.name));
                made.push(Made::new(&path, |file| convert(disk, file, control))?);
                disk.chain = vec![Layer {
                    path,
                    format: "raw".to_owned(),
                }];
            }
        }
    }
    made.into_iter().try_for_each(Made::name)?;
    Ok(machine)
}

/// A whole file that has not got its name yet, and is gone when it does not get it.
struct Made {
    file: TempPath,
    path: PathBuf,
}

impl Made {
    /// Has `fill` write it.
    fn new(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let named = |error: Error| error.with_path(path);
        // What is refused is, before anything is copied.
        lock_replaced(path)?;
        let created = raw::create_partial(path, &raw::OpenOptions::new().write(true));
        let (created, partial) = created.map_err(|error| match error.io_kind() {
            Some(io::ErrorKind::NotFound) => named(error).with_hint("make the directory first"),
            _ => named(error),
        })?;
        let file =
            TempPath::try_from_path(partial).map_err(|error| named(Error::io("name a file", error)))?;
        // It gets what is a machine's own.
        fs::set_permissions(&file, Permissions::from_mode(0o600))
            .map_err(|error| named(Error::io("keep to its owner", error)))?;
        drop(created);
        fill(&file).map_err(|error| error.with_path_replaced(&file, path).with_path(path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Gives it its name, which it takes from an older one of its kind and from nothing else.
    fn name(self) -> Result<()> {
        let path = &self.path;
        sign(&self.file);
        let named = match lock_replaced(path)? {
            Some(_locked) => self.file.persist(path),
            None => self.file.persist_noclobber(path),
        };
        named.map_err(|error| {
            if error.error.kind() == io::ErrorKind::AlreadyExists {
                is_taken(path, "there is a file of that name already")
            } else {
                Error::io("name a file", error.error).with_path(path)
            }
        })
    }
}

/// The attribute of files that were made here: length, and time of the last write in seconds and nanoseconds.
const MADE: &str = "user.imgtool.launch";

/// Bytes of seconds, nanoseconds and a length, each of up to 20 digits.
const MAX_SIGNATURE: usize = 64;

/// What a file's attribute says while nobody has written to it.
fn signature(file: &fs::Metadata) -> String {
    format!("{} {}.{:09}", file.len(), file.mtime(), file.mtime_nsec())
}

/// Where a file comes from, as its note says.
#[derive(PartialEq)]
enum Origin {
    Here,
    /// It was made here, and has been written to since.
    HereOnce,
    Elsewhere,
}

/// The file itself, and no link, is `found` to be there.
fn origin(path: &Path, found: &fs::Metadata) -> Origin {
    let mut noted = [0; MAX_SIGNATURE];
    match rustix::fs::lgetxattr(path, MADE, &mut noted) {
        Ok(len) if found.is_file() => {
            if &noted[..len] == signature(found).as_bytes() {
                Origin::Here
            } else {
                Origin::HereOnce
            }
        }
        _ => Origin::Elsewhere,
    }
}

/// Whether a file was made and [signed](sign) here, and nobody has written to it since.
pub fn is_as_made(path: &Path) -> bool {
    let found = fs::canonicalize(path).and_then(|path| Ok((path.symlink_metadata()?, path)));
    found.is_ok_and(|(found, path)| origin(&path, &found) == Origin::Here)
}

/// Notes in a file that it was made here. Where the file system keeps no such note, nobody replaces it later.
pub fn sign(path: &Path) {
    if let Ok(file) = fs::metadata(path) {
        let _ = rustix::fs::setxattr(path, MADE, signature(&file).as_bytes(), XattrFlags::empty());
    }
}

/// The file at `path`, locked, if it is one that can be replaced; `None` where there is none.
fn lock_replaced(path: &Path) -> Result<Option<raw::File>> {
    let file = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(|error| Error::io("look at", error).with_path(path))?,
    };
    let refused = |message| Err(is_taken(path, message));
    match origin(path, &file) {
        Origin::Here => {}
        Origin::HereOnce => return refused("it was made by imgtool launch, and has been written to since"),
        Origin::Elsewhere => {
            return refused("there is a file of that name already, which was not made by imgtool launch");
        }
    }
    raw::OpenOptions::new().write(true).open(path).map(Some)
}

fn is_taken(path: &Path, message: &'static str) -> Error {
    Error::invalid(message)
        .with_path(path)
        .with_hint("remove it if no machine uses it any more, or choose another directory")
}

fn convert(disk: &Disk, to: &Path, control: &Control<'_>) -> Result<()> {
    let [active, below @ ..] = disk.chain.as_slice() else {
        return Err(Error::invalid("a disk of the machine has no image"));
    };
    // Those that the machine was told to have, and no others.
    let gate = Explicit::new(below.iter().map(|layer| &layer.path))?;
    let options = ChainOptions {
        format: Some(&active.format),
        ..ChainOptions::default()
    };
    let opener = raw::HostOpener::new();
    let source = Chain::open_with(
        &opener,
        &[&qcow2::Qcow2, &raw::Raw],
        &gate,
        &active.path,
        &options,
    )?;
    let storage = raw::OpenOptions::new().write(true).open(to)?;
    let storage = std::sync::Arc::new(storage);
    raw::create(&*storage, source.size(), block::Preallocation::Off)?;
    let target = raw::Image::open(storage, block::Access::WRITE)?;
    ops::convert(&*source.device(), &target, &ConvertOptions::new(), control)?;
    block::BlockDevice::flush(&target)
}
