//! Users of the system: `[[users]]`.

use std::fs;
use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use serde::Deserialize;

use super::source::joined;
use crate::personalise::{AuthorizedKeys, Guest, users};

/// A user that the system has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    /// As in passwd.
    pub name: UserName,
    /// The number, of a group of the same name too; the next one that is free where nothing is said.
    #[serde(default)]
    pub uid: Option<u32>,
    /// What is run at login.
    #[serde(default)]
    pub shell: Option<String>,
    /// Groups, which are there, besides the one of the same name.
    #[serde(default)]
    pub groups: Vec<UserName>,
    /// As in shadow: a hash as of `openssl passwd -6`, or `*` where no password fits.
    #[serde(default)]
    pub password: Option<PasswordHash>,
    /// Public keys to log in with.
    #[serde(default)]
    pub ssh_keys: Vec<PublicKey>,
    /// Files of the host with more of them.
    #[serde(default)]
    pub ssh_key_files: Vec<PathBuf>,
    /// May do everything as root, by sudo and without a password.
    #[serde(default)]
    pub sudo: Option<bool>,
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let check: fn(&str) -> Result<()> = $check;
                check(&text).map_err(|error| error.to_string())?;
                Ok(Self(text))
            }
        }

        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

checked_text!(
    /// A name that a user or a group can have.
    UserName,
    users::check
);

checked_text!(
    /// What is in shadow in the place of a password.
    PasswordHash,
    |text| {
        let hash = text.starts_with('$') && !text.contains([':', '\n', ' ']);
        if hash || matches!(text, "*" | "!") {
            return Ok(());
        }
        Err(Error::invalid("a password is its hash, as openssl passwd -6 makes it, or * for none"))
    }
);

checked_text!(
    /// A public key for ssh, on a line.
    PublicKey,
    |text| AuthorizedKeys::parse(text).map(drop)
);

impl User {
    /// Users that two recipes have: of one that both have, the later one says more.
    pub(super) fn merged(mut before: Vec<Self>, later: Vec<Self>) -> Vec<Self> {
        for user in later {
            match before.iter_mut().find(|other| other.name == user.name) {
                Some(other) => *other = other.clone().then(user),
                None => before.push(user),
            }
        }
        before
    }

    fn then(self, later: Self) -> Self {
        Self {
            name: later.name,
            uid: later.uid.or(self.uid),
            shell: later.shell.or(self.shell),
            groups: joined(self.groups, later.groups),
            password: later.password.or(self.password),
            ssh_keys: joined(self.ssh_keys, later.ssh_keys),
            ssh_key_files: Vec::new(),
            sudo: later.sudo.or(self.sudo),
        }
    }

    /// Reads the keys that are in files, whose paths start at a directory.
    pub(super) fn read_keys(&mut self, directory: &Path) -> Result<()> {
        for path in std::mem::take(&mut self.ssh_key_files) {
            let path = directory.join(path);
            let text =
                fs::read_to_string(&path).map_err(|error| Error::io("read", error).with_path(&path))?;
            let keys = AuthorizedKeys::parse(&text).map_err(|error| error.with_path(&path))?;
            self.ssh_keys
                .extend(keys.lines().map(|line| PublicKey(line.to_owned())));
        }
        Ok(())
    }

    /// Makes the user, or makes one that is there so.
    pub(super) fn set(&self, guest: &mut Guest) -> Result<()> {
        let name = self.name.as_str();
        let user = users::find_or_make_as(guest, name, self.uid)?;
        if let Some(shell) = &self.shell {
            users::set_field(guest, "/etc/passwd", name, 6, shell)?;
        }
        if let Some(password) = &self.password {
            users::set_field(guest, "/etc/shadow", name, 1, password.as_str())?;
        }
        for group in &self.groups {
            users::add_to_group(guest, name, group.as_str())?;
        }
        if !self.ssh_keys.is_empty() {
            let lines: Vec<&str> = self.ssh_keys.iter().map(PublicKey::as_str).collect();
            AuthorizedKeys::parse(&lines.join("\n"))?.add(guest, &user)?;
        }
        if self.sudo == Some(true) {
            let directory = "/etc/sudoers.d";
            if guest.kind(directory)?.is_none() {
                let message = format!(
                    "{} is to use sudo, and the system has no {directory}",
                    escape(name)
                );
                return Err(Error::invalid(message).with_hint("add the package sudo"));
            }
            let rule = format!("{name} ALL=(ALL:ALL) NOPASSWD: ALL\n");
            guest.put(&format!("{directory}/90-{name}"), rule.as_bytes(), 0o440)?;
        }
        Ok(())
    }
}
