//! Making a clone a machine of its own, on its disk and before it is started: its name, its IDs, its keys.
//!
//! What identifies a machine must not be shared: two with one machine-id get one address by DHCP, and two with one host key can be
//! taken for each other. And what a service needs to start must be there: sshd does not start without a host key. So all of it is
//! made anew here, with the files changed in the guest's filesystem: no virtual machine runs, and nothing is mounted.

mod grow;
mod hosts;
mod network;
mod ssh_key;
pub(crate) mod users;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use block::{BlockDevice, Error, ErrorKind, Result};
use ext4_builder::Time;
use ext4_editor::{Attributes, Durability, Editor, Options};
use ext4_reader::{FileKind, LastLink};
use uuid::Uuid;

use crate::{Root, seal};

pub use grow::grow;
pub use network::{Addressing, StaticAddress};
pub use ssh_key::{AuthorizedKeys, HostKey};

/// Bytes of a file that is changed at most.
const MAX_FILE: u64 = 1 << 20;

/// What a machine is to be.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What it calls itself, with its domain behind that where it has one.
    pub hostname: String,
    /// Its ID, which the guest tells nobody else.
    pub machine_id: Uuid,
    /// What it shows to who logs in.
    pub host_key: HostKey,
    /// Who may log in, by keys: of the user of this name, who is made where there is none.
    pub login: Option<(String, AuthorizedKeys)>,
    /// How its network card, of this address, gets its addresses; where it is `None`, as the template has it.
    pub network: Option<([u8; 6], Addressing)>,
}

impl Identity {
    /// A machine of this name with an ID and a key that nobody else has.
    ///
    /// # Errors
    /// `Io` where the host has no random numbers.
    pub fn new(hostname: impl Into<String>) -> Result<Self> {
        Ok(Self {
            hostname: hostname.into(),
            machine_id: Uuid::new_v4(),
            host_key: HostKey::generate()?,
            login: None,
            network: None,
        })
    }

    /// Without the domain.
    fn short_hostname(&self) -> &str {
        self.hostname
            .split_once('.')
            .map_or(&self.hostname, |(short, _)| short)
    }
}

/// Whether there is a system on a disk that [`personalise`] can change.
///
/// # Errors
/// `Corrupt`, `Io`.
pub fn has_system(disk: &Arc<dyn BlockDevice>) -> Result<bool> {
    let Some(root) = Root::find(disk)? else {
        return Ok(false);
    };
    match root.filesystem()?.resolve(b"/etc", LastLink::Follow) {
        Ok(inode) => Ok(inode.kind() == FileKind::Directory),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a disk that of a machine. `is_new` says that the disk is deleted if this fails; otherwise all is done or nothing, whenever
/// the power goes.
///
/// # Errors
/// `InvalidInput` for a disk without a root filesystem of ext4, or what cannot be in the one that is there; `Unsupported`,
/// `Corrupt`, `NoSpace`, `Io`.
pub fn personalise(disk: &Arc<dyn BlockDevice>, identity: &Identity, is_new: bool) -> Result<()> {
    let Some(root) = Root::find(disk)? else {
        let error =
            Error::invalid("the disk has no root filesystem of ext4 that could be made another machine's");
        return Err(error.with_hint("leave it as it is, with --as-is"));
    };
    let mut guest = Guest::open(&root, is_new)?;
    if guest.kind("/etc")? != Some(FileKind::Directory) {
        return Err(
            Error::invalid("the root filesystem has no /etc: it is no system's")
                .with_hint("leave it as it is, with --as-is"),
        );
    }
    guest.put(
        "/etc/hostname",
        format!("{}\n", identity.short_hostname()).as_bytes(),
        0o644,
    )?;
    hosts::set(&mut guest, &identity.hostname, identity.short_hostname())?;
    set_machine_id(&mut guest, identity.machine_id)?;
    set_host_id(&mut guest)?;
    seal::forget_identity(&mut guest)?;
    identity.host_key.set(&mut guest, identity.short_hostname())?;
    if let Some((user, keys)) = &identity.login {
        let user = users::find_or_make(&mut guest, user)?;
        keys.add(&mut guest, &user)?;
    }
    if let Some((mac, addressing)) = &identity.network {
        network::set(&mut guest, *mac, addressing)?;
    }
    guest.editor.commit()
}

/// machine-id(5), and the copy that D-Bus has where that is no link.
fn set_machine_id(guest: &mut Guest, id: Uuid) -> Result<()> {
    let text = format!("{}\n", id.simple());
    guest.put("/etc/machine-id", text.as_bytes(), 0o444)?;
    let copy = "/var/lib/dbus/machine-id";
    if guest.own_kind(copy)? == Some(FileKind::Regular) {
        guest.put(copy, text.as_bytes(), 0o444)?;
    }
    Ok(())
}

/// hostid(1): what file systems shared between machines tell them apart by, where the template has one.
fn set_host_id(guest: &mut Guest) -> Result<()> {
    let path = "/etc/hostid";
    if guest.own_kind(path)? == Some(FileKind::Regular) {
        let id = Uuid::new_v4().as_fields().0.to_le_bytes();
        guest.put(path, &id, 0o644)?;
    }
    Ok(())
}

/// A guest's filesystem.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) editor: Editor,
}

impl Guest {
    pub(crate) fn open(root: &Root, is_new: bool) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = Time {
            secs: now.as_secs().cast_signed(),
            nanos: now.subsec_nanos(),
        };
        let mut options = Options::new(time);
        options.seed = Uuid::new_v4().as_u64_pair().0;
        if is_new {
            options.durability = Durability::Expendable;
        }
        let editor = Editor::open(root.device.clone(), options)?;
        Ok(Self { editor })
    }

    /// What is at a path, links followed.
    pub(crate) fn kind(&self, path: &str) -> Result<Option<FileKind>> {
        self.look(path, LastLink::Follow)
    }

    /// What is at a path itself.
    pub(crate) fn own_kind(&self, path: &str) -> Result<Option<FileKind>> {
        self.look(path, LastLink::Keep)
    }

    fn look(&self, path: &str, last: LastLink) -> Result<Option<FileKind>> {
        match self.editor.filesystem().resolve(path.as_bytes(), last) {
            Ok(inode) => Ok(Some(inode.kind())),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The text of a file, of which bytes that are no UTF-8 are kept apart by nobody: `None` where there is no file.
    pub(crate) fn text(&self, path: &str) -> Result<Option<String>> {
        if self.kind(path)? != Some(FileKind::Regular) {
            return Ok(None);
        }
        let bytes = crate::root::read(self.editor.filesystem(), path, MAX_FILE)?;
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::invalid(format!("{path} in the guest is not UTF-8, and is not changed")))
    }

    /// The names in a directory, as far as they are UTF-8.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<String>> {
        let filesystem = self.editor.filesystem();
        let directory = filesystem.resolve(path.as_bytes(), LastLink::Follow)?;
        let entries = filesystem.read_dir(&directory)?.into_iter();
        Ok(entries
            .filter_map(|entry| String::from_utf8(entry.name).ok())
            .collect())
    }

    /// Gives a file contents, whatever it had; a new one is root's, with these permissions.
    pub(crate) fn put(&mut self, path: &str, contents: &[u8], permissions: u16) -> Result<()> {
        let attributes = match self.kind(path)? {
            // Who may read it stays.
            Some(_) => Attributes::default(),
            None => Attributes::of(permissions),
        };
        // A link that leads nowhere is one that the guest would follow to write: put a file in its place.
        if self.kind(path)?.is_none() && self.own_kind(path)?.is_some() {
            self.editor.remove(path.as_bytes())?;
        }
        self.editor.put(path.as_bytes(), contents, &attributes)
    }
}
