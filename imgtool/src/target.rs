//! Files that are made: whole under their name, or not there.
//!
//! # How it works
//!
//! A new file is written under a name of its own in the directory that it is to be in, and given its name when it
//! is whole ([`raw::create_partial`]); a rename puts it in the place of an older one at once. Until then the older one is locked against
//! others and as it was. While the file has no name that anybody knows, nothing in it has to be durable in any
//! order, so [`Pending`] leaves out every sync, and one at the end does for all.
//!
//! It keeps the mode, the owner, and the extended attributes of the file that it replaces. A file that can be written to, in a
//! directory that takes no other, is either refused or written to [as it is](Making::or_in_place), as the caller likes; and so is one that
//! would get another owner, or that happens.
//!
//! A block device, which must not be in use by anybody, and an export of an NBD server have no other name, and
//! `--in-place` asks for the same: they are written to as they are.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Access, Alignment, Error, ErrorKind, FileId, HostCopy, HostExtent, Result, Storage, ZeroMode};
use nbd::{Address, Export};
use ops::Cancel;
use raw::Io;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};

use crate::images::directory_of;
use crate::interrupt::Unfinished;
use crate::opener::export;
use crate::stores::refuse_target;

/// What to do where no file can be put in another's place.
const IN_PLACE: &str = "the new file is made beside the one that it replaces: choose a directory that you may write to, or have `imgtool convert \
                        --in-place` write to the file as it is";

/// The most bytes that the names of a file's extended attributes take, and the value of one.
const MOST_ATTRIBUTES: usize = 64 << 10;

/// The extended attribute that an access list is.
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

/// Extended attributes that vouch for the contents of a file.
const OF_CONTENTS: [&[u8]; 3] = [b"security.capability", b"security.ima", b"security.evm"];

/// How a file is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Making {
    /// Under its name from the start.
    pub(crate) in_place: bool,
    /// Under its name where it is there already and its directory takes no other file, or none of the same owner.
    pub(crate) or_in_place: bool,
    /// Past the host's page cache.
    pub(crate) direct: bool,
    /// How its bytes are reached.
    pub(crate) io: Io,
    /// On disk when it is finished.
    pub(crate) durable: bool,
    /// For its owner only, where it is new: it has passwords and keys in it.
    pub(crate) private: bool,
    /// A data file may replace one that holds something.
    pub(crate) replace_data: bool,
}

/// A file in the making. Dropped before it is [finished](Self::finish), it leaves things as they were, unless it
/// is a device or was there already and is made in place.
#[derive(Debug)]
pub(crate) struct TargetFile {
    /// Where it is to be, with links followed.
    path: PathBuf,
    storage: Arc<Pending>,
    making: Making,
    /// The file while it is not whole; `None` for what was there already and is written to in place.
    unfinished: Option<Unfinished>,
    /// The file that is to be replaced, locked.
    replaced: Option<raw::File>,
    kind: TargetKind,
}

/// What is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetKind {
    File,
    BlockDevice {
        /// Bytes.
        sector: Option<u64>,
    },
    Export,
}

impl TargetFile {
    /// Makes ready to write a file called `path`.
    pub(crate) fn new(path: &Path, making: Making) -> Result<Self> {
        if let Some(address) = export(path) {
            return Self::served(&address?);
        }
        refuse_standard_output(path)?;
        let place = follow_links(path)?;
        let path = match place {
            Place::Path(path) => path,
            // Its name may be gone, or another file's.
            Place::Descriptor(name) => {
                refuse_target(&name)?;
                let device = fs::metadata(&name).is_ok_and(|file| file.file_type().is_block_device());
                // Standard output was emptied by whoever said where it goes.
                if !device && !making.in_place && !making.or_in_place && !is_standard_output(path) {
                    let message = "no new file can take the place of an open one";
                    return Err(Error::invalid(message).with_path(name).with_hint(IN_PLACE));
                }
                return Self::in_place(name, making, true, device);
            }
        };
        refuse_target(&path)?;
        let existing = match fs::metadata(&path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("look at the file", error).with_path(path)),
        };
        let block_device = existing
            .as_ref()
            .is_some_and(|file| file.file_type().is_block_device());
        if block_device || making.in_place {
            return Self::in_place(path, making, existing.is_some(), block_device);
        }
        if existing.is_none() && is_for_devices(&path) {
            let error = Error::invalid("there is no device of this name").with_path(&path);
            return Err(error.with_hint("files are not kept here: lsblk lists the devices that there are"));
        }
        // Opened whatever it is: what holds no image is refused, and what somebody uses is locked.
        let replaced = match existing {
            Some(_) => Some(raw::OpenOptions::new().write(true).open(&path)?),
            None => None,
        };
        let created = match &existing {
            Some(existing) if stays_in_its_place(&path, existing) => {
                let error = io::Error::from(io::ErrorKind::PermissionDenied);
                Err(Error::io("replace the file", error).with_path(&path))
            }
            _ => create_beside(&path, making),
        };
        let (file, unfinished) = match created {
            Err(error) if replaced.is_some() && is_not_allowed(&error) => {
                if making.or_in_place {
                    drop(replaced);
                    return Self::in_place(path, making, true, false);
                }
                return Err(error.with_hint(IN_PLACE));
            }
            created => created?,
        };
        let owner_stays = match &existing {
            Some(existing) => like(existing, &path, unfinished.path()),
            None if making.private => {
                fs::set_permissions(unfinished.path(), fs::Permissions::from_mode(0o600)).map(|()| true)
            }
            None => Ok(true),
        };
        let owner_stays = owner_stays.map_err(|error| Error::io("set the mode", error).with_path(&path))?;
        if !owner_stays && making.or_in_place {
            // Its owner goes on to own it.
            drop((file, unfinished, replaced));
            return Self::in_place(path, making, true, false);
        }
        let storage = Pending::new(file, Some(unfinished.path()), &path);
        Ok(Self {
            path,
            storage: Arc::new(storage),
            making,
            unfinished: Some(unfinished),
            replaced,
            kind: TargetKind::File,
        })
    }

    /// An export, with what is in it.
    fn served(address: &Address) -> Result<Self> {
        let path = address.path().to_owned();
        let export = Export::open(address, Access::WRITE)?;
        // In a sandbox there is no other time.
        export.connect_ahead();
        Ok(Self {
            storage: Arc::new(Pending::new(export, None, &path)),
            making: Making {
                // There is no other time at which the server could be asked to.
                durable: true,
                ..Making::default()
            },
            unfinished: None,
            replaced: None,
            kind: TargetKind::Export,
            path,
        })
    }

    fn in_place(path: PathBuf, making: Making, existed: bool, block_device: bool) -> Result<Self> {
        let options = raw::OpenOptions::new()
            .write(true)
            .truncate(!block_device)
            .exclusive(true)
            .direct(making.direct)
            .io(making.io.for_writing());
        let file = options
            .open(&path)
            .map_err(|error| missing_directory(error, &path))?;
        let kind = if block_device {
            TargetKind::BlockDevice {
                sector: file.sector_size(),
            }
        } else {
            TargetKind::File
        };
        Ok(Self {
            storage: Arc::new(Pending::new(file, None, &path)),
            making,
            unfinished: (!existed).then(|| Unfinished::new(&path)),
            replaced: None,
            kind,
            path,
        })
    }

    /// What to write to. Syncing it does nothing.
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    /// The directory that it is to be in.
    pub(crate) fn directory(&self) -> &Path {
        directory_of(&self.path)
    }

    /// It is a device, of this host or served, with a length of its own and contents from before.
    pub(crate) fn is_device(&self) -> bool {
        self.kind != TargetKind::File
    }

    /// Bytes in a sector of a device.
    pub(crate) fn sector_size(&self) -> Option<u64> {
        match self.kind {
            TargetKind::BlockDevice { sector } => sector,
            TargetKind::File | TargetKind::Export => None,
        }
    }

    /// What an interrupt or a failure leaves, for a message.
    pub(crate) fn if_dropped(&self) -> &'static str {
        match (&self.unfinished, &self.replaced) {
            (Some(_), Some(_)) => "it is as it was before",
            (Some(_), None) => "nothing was left behind",
            (None, _) => "its contents are incomplete",
        }
    }

    /// Gives the file, now whole and closed, its name. What it replaces stays there until the new one is on disk.
    pub(crate) fn finish(self, cancel: &Cancel) -> Result<()> {
        if self.making.durable || self.replaced.is_some() {
            self.storage
                .file
                .sync_data()
                .map_err(|error| self.storage.tell(error))?;
        }
        cancel.check()?;
        let named = |error| Error::io("give the file its name", error).with_path(&self.path);
        if let Some(unfinished) = self.unfinished {
            let rename = |from: &Path| {
                if from == self.path {
                    Ok(())
                } else {
                    fs::rename(from, &self.path)
                }
            };
            unfinished.keep(rename).map_err(named)?;
        }
        if self.making.durable && self.kind != TargetKind::Export {
            let directory = directory_of(&self.path);
            let sync = fs::File::open(directory).and_then(|directory| directory.sync_all());
            sync.map_err(|error| Error::io("sync the directory", error).with_path(directory))?;
        }
        Ok(())
    }
}

/// Whether the file at `path` is one of `files`.
pub(crate) fn is_one_of<'a>(path: &Path, files: impl IntoIterator<Item = &'a Arc<dyn Storage>>) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    let id = if metadata.file_type().is_block_device() {
        // Two nodes in the file system may be one device.
        None
    } else {
        Some(FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    };
    files
        .into_iter()
        .any(|file| match (file.file_id(), id, file.path()) {
            (Some(other), Some(id), _) => other == id,
            (_, None, Some(other)) => fs::metadata(other)
                .is_ok_and(|other| other.file_type().is_block_device() && other.rdev() == metadata.rdev()),
            _ => false,
        })
}

/// What a name leads to.
enum Place {
    /// A file of this name, whether there is one or not.
    Path(PathBuf),
    /// What a process has open: the name of its descriptor, below /proc.
    Descriptor(PathBuf),
}

/// Follows the links at `path`.
fn follow_links(path: &Path) -> Result<Place> {
    // As many as the kernel follows.
    let mut path = path.to_owned();
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(_) if is_descriptor(&path) => return Ok(Place::Descriptor(path)),
            Ok(next) => path = directory_of(&path).join(next),
            Err(_) => return Ok(Place::Path(path)),
        }
    }
    Err(Error::invalid("too many symbolic links").with_path(path))
}

/// Whether a link is one of those that stand for the open files of a process.
fn is_descriptor(link: &Path) -> bool {
    let directory = fs::canonicalize(directory_of(link)).unwrap_or_default();
    directory.starts_with("/proc") && directory.ends_with("fd")
}

/// Whether no other file can take the place of this one: something is mounted there, or it is somebody else's in a directory where only
/// owners may remove what is theirs.
fn stays_in_its_place(path: &Path, existing: &fs::Metadata) -> bool {
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    let is_mounted = rustix::fs::statx(CWD, path, no_follow, StatxFlags::BASIC_STATS)
        .is_ok_and(|file| file.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    let user = rustix::process::geteuid().as_raw();
    let is_others = |directory: &fs::Metadata| {
        directory.mode() & 0o1000 != 0 && ![0, existing.uid(), directory.uid()].contains(&user)
    };
    is_mounted || fs::metadata(directory_of(path)).is_ok_and(|directory| is_others(&directory))
}

/// Whether a name is that of standard output, as the kernel shows it.
pub(crate) fn is_standard_output(path: &Path) -> bool {
    ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]
        .iter()
        .any(|name| path == Path::new(name))
}

/// Fails for standard output that is a pipe or a terminal: what is written here does not come in order.
fn refuse_standard_output(path: &Path) -> Result<()> {
    let is_sought = |file: fs::Metadata| file.is_file() || file.file_type().is_block_device();
    if !is_standard_output(path) || fs::metadata(path).is_ok_and(is_sought) {
        return Ok(());
    }
    let error =
        Error::invalid("this is not written from the front to the back, as standard output would have it");
    Err(error
        .with_path(path)
        .with_hint("name a file, and copy that to standard output: imgtool convert -O raw FILE -"))
}

/// Whether a new file of this name would lie among the devices, where somebody has mistyped one's name.
fn is_for_devices(path: &Path) -> bool {
    let directory = fs::canonicalize(directory_of(path)).unwrap_or_default();
    directory.starts_with("/dev")
        && !["/dev/shm", "/dev/mqueue"]
            .iter()
            .any(|own| directory.starts_with(own))
}

/// A new file in the directory of `path`.
fn create_beside(path: &Path, making: Making) -> Result<(raw::File, Unfinished)> {
    let options = raw::OpenOptions::new()
        .write(true)
        .direct(making.direct)
        .io(making.io.for_writing());
    let created = raw::create_partial(path, &options);
    let (file, partial) = created.map_err(|error| missing_directory(error, path))?;
    Ok((file, Unfinished::new(&partial)))
}

/// Whether a directory takes no new files.
fn is_not_allowed(error: &Error) -> bool {
    matches!(
        error.io_kind(),
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
    )
}

/// Says which directory is missing.
pub(crate) fn missing_directory(error: Error, path: &Path) -> Error {
    match error.io_kind() {
        Some(io::ErrorKind::NotFound) => {
            let directory = directory_of(path).display().to_string();
            error.with_hint(format!("make the directory {directory} first"))
        }
        _ if is_not_allowed(&error) => error.with_hint("choose a directory that you may write to"),
        _ => error,
    }
}

/// Gives the file at `new` the mode of the one at `old`, which it replaces, and as far as that is allowed the owner, the group and the
/// extended attributes: access lists, labels, whatever people keep there. Nobody gets rights that they did not have. Whether it belongs
/// to the same owner and group.
fn like(existing: &fs::Metadata, old: &Path, new: &Path) -> io::Result<bool> {
    // Whoever may not give a file away may hand it to a group of theirs.
    let group_stays = chown(new, None, Some(existing.gid())).is_ok();
    let owner_stays = chown(new, Some(existing.uid()), None).is_ok();
    let mut names = vec![0; MOST_ATTRIBUTES];
    let len = listxattr(old, &mut names).unwrap_or(0);
    let mut value = vec![0; MOST_ATTRIBUTES];
    let mut has_list = false;
    for name in names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        if OF_CONTENTS.contains(&name) || (name == ACCESS_LIST && !group_stays) {
            continue;
        }
        if let Ok(len) = getxattr(old, name, &mut value) {
            has_list |=
                setxattr(new, name, &value[..len], XattrFlags::empty()).is_ok() && name == ACCESS_LIST;
        }
    }
    if !has_list {
        // The directory may have given it one.
        let _ = removexattr(new, ACCESS_LIST);
    }
    let mut mode = existing.mode() & 0o7777;
    if !group_stays {
        mode &= !0o2070;
    }
    if !owner_stays {
        mode &= !0o4000;
    }
    fs::set_permissions(new, fs::Permissions::from_mode(mode))?;
    let made = fs::metadata(new)?;
    Ok((made.uid(), made.gid()) == (existing.uid(), existing.gid()))
}

/// A file that is not whole yet: nothing in it needs to be durable, and errors call it by the name it will have.
#[derive(Debug)]
struct Pending {
    file: Box<dyn Storage>,
    /// The name that it has, and the one it will have.
    names: Option<(PathBuf, PathBuf)>,
}

impl Pending {
    fn new(file: impl Storage + 'static, now: Option<&Path>, then: &Path) -> Self {
        Self {
            file: Box::new(file),
            names: now.map(|now| (now.to_owned(), then.to_owned())),
        }
    }

    fn tell(&self, error: Error) -> Error {
        let error = match &self.names {
            Some((now, then)) => error.with_path_replaced(now, then),
            None => error,
        };
        match error.kind() {
            ErrorKind::NoSpace => error.with_hint("make room on that file system, or choose another"),
            _ => error,
        }
    }
}

impl Storage for Pending {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| self.tell(error))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(buf, offset)
            .map_err(|error| self.tell(error))
    }

    fn read_vectored_at(&self, bufs: &mut [io::IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.file
            .read_vectored_at(bufs, offset)
            .map_err(|error| self.tell(error))
    }

    fn read_batch(&self, runs: &mut [(u64, &mut [u8])]) -> Result<()> {
        self.file.read_batch(runs).map_err(|error| self.tell(error))
    }

    fn write_vectored_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> Result<()> {
        self.file
            .write_vectored_at(bufs, offset)
            .map_err(|error| self.tell(error))
    }

    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.file
            .zero(offset, len, mode)
            .map_err(|error| self.tell(error))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file.discard(offset, len).map_err(|error| self.tell(error))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.file.allocate(offset, len).map_err(|error| self.tell(error))
    }

    fn copy_from(
        &self,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        len: u64,
        how: HostCopy,
    ) -> Result<u64> {
        self.file
            .copy_from(offset, source, source_offset, len, how)
            .map_err(|error| self.tell(error))
    }

    fn may_copy_from(&self, source: &dyn Storage, how: HostCopy) -> bool {
        self.file.may_copy_from(source, how)
    }

    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.file
            .host_extent(offset, len)
            .map_err(|error| self.tell(error))
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        self.file.len().map_err(|error| self.tell(error))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|error| self.tell(error))
    }

    fn alignment(&self) -> Alignment {
        self.file.alignment()
    }

    fn path(&self) -> Option<&Path> {
        match &self.names {
            Some((_, then)) => Some(then),
            None => self.file.path(),
        }
    }

    fn file_id(&self) -> Option<FileId> {
        self.file.file_id()
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.file.allocated().map_err(|error| self.tell(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn there_is_no_file_until_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let target = TargetFile::new(&path, Making::default()).unwrap();
        target.storage().write_all_at(b"new", 0).unwrap();
        assert!(!path.exists());
        drop(target);
        assert!(entries(directory.path()).is_empty());

        let target = TargetFile::new(
            &path,
            Making {
                durable: true,
                ..Making::default()
            },
        )
        .unwrap();
        target.storage().write_all_at(b"new", 0).unwrap();
        target.finish(&Cancel::new()).unwrap();
        assert_eq!(entries(directory.path()), ["a"]);
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn an_older_file_stays_until_it_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("a", &link).unwrap();

        let cancelled = Cancel::new();
        cancelled.cancel();
        let target = TargetFile::new(&link, Making::default()).unwrap();
        target.storage().write_all_at(b"newer", 0).unwrap();
        assert_eq!(
            target.finish(&cancelled).unwrap_err().kind(),
            ErrorKind::Interrupted
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");

        let target = TargetFile::new(&link, Making::default()).unwrap();
        target.storage().write_all_at(b"newer", 0).unwrap();
        target.finish(&Cancel::new()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(entries(directory.path()), ["a", "link"]);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn in_place_removes_only_what_it_made() {
        let directory = tempfile::tempdir().unwrap();
        let making = Making {
            in_place: true,
            ..Making::default()
        };
        let path = directory.path().join("a");
        drop(TargetFile::new(&path, making).unwrap());
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        drop(TargetFile::new(&path, making).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn errors_name_the_file_that_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none/a");
        let error = TargetFile::new(&path, Making::default()).unwrap_err();
        assert_eq!(error.path(), Some(&*path));
        assert!(error.hint().unwrap().contains("none"));
        assert!(TargetFile::new(directory.path(), Making::default()).is_err());
        assert!(entries(directory.path()).is_empty());
    }
}
