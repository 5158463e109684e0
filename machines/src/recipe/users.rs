//! Users of the system: `[[users]]`.

use std::path::{Path, PathBuf};

use block::{Error, Result, escape};
use serde::{Deserialize, Deserializer, de};

use super::origins::Origins;
use super::origins::Step::{Key, Named, Text};
use super::source::joined;
use crate::personalise::{AuthorizedKeys, Guest, users};

/// Bytes in a file with keys at most.
const MAX_KEYS: u64 = 1 << 20;

/// A user that the system has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub struct User {
    /// As in passwd.
    pub name: UserName,
    /// The number, of a group of the same name too; the next one that is free where nothing is said.
    #[serde(default, deserialize_with = "number")]
    pub uid: Option<u32>,
    /// What is run at login.
    #[serde(default, deserialize_with = "shell")]
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

/// A path that a line of passwd can end with.
fn shell<'d, D: Deserializer<'d>>(from: D) -> Result<Option<String>, D::Error> {
    let shell: Option<String> = Option::deserialize(from)?;
    match &shell {
        Some(path) if !path.starts_with('/') || path.contains(|c: char| c == ':' || c.is_control()) => {
            let message = format!("\"{}\" is no shell: name its path, as \"/bin/sh\"", escape(path));
            Err(de::Error::custom(message))
        }
        _ => Ok(shell),
    }
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

pub(super) use checked_text;

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

/// Of a user: the last number stands for none, in chown(2).
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(deserializer)? {
        u32::MAX => Err(de::Error::custom(
            "4294967295 is no number of a user: it stands for none",
        )),
        number => Ok(Some(number)),
    }
}

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

    /// Adds the keys that are in a file.
    pub(super) fn add_keys_of(&mut self, file: &Path) -> Result<()> {
        let text = raw::read_text(file, "a list of keys", MAX_KEYS)?;
        let keys = AuthorizedKeys::parse(&text).map_err(|error| error.with_path(file))?;
        let keys = keys.lines().map(|line| PublicKey(line.to_owned()));
        self.ssh_keys.extend(keys);
        Ok(())
    }

    /// Makes the user, or makes one that is there so.
    pub(super) fn set(&self, guest: &mut Guest, origins: &Origins) -> Result<()> {
        let name = self.name.as_str();
        let told = |error, key| origins.tell(error, &[Key("users"), Named(name), Key(key)]);
        let user = users::find_or_make_as(guest, name, self.uid).map_err(|error| told(error, "uid"))?;
        if let Some(shell) = &self.shell {
            users::set_field(guest, "/etc/passwd", name, 6, shell).map_err(|error| told(error, "shell"))?;
        }
        if let Some(password) = &self.password {
            users::set_field(guest, "/etc/shadow", name, 1, password.as_str())
                .map_err(|error| told(error, "password"))?;
        }
        for group in self.groups.iter().map(UserName::as_str) {
            let way = [Key("users"), Named(name), Key("groups"), Text(group)];
            users::add_to_group(guest, name, group).map_err(|error| origins.tell(error, &way))?;
        }
        if !self.ssh_keys.is_empty() {
            let lines: Vec<&str> = self.ssh_keys.iter().map(PublicKey::as_str).collect();
            let keys = AuthorizedKeys::parse(&lines.join("\n"));
            keys.and_then(|keys| keys.add(guest, &user))
                .map_err(|error| told(error, "ssh-keys"))?;
        }
        if self.sudo == Some(true) {
            self.allow_sudo(guest).map_err(|error| told(error, "sudo"))?;
        }
        Ok(())
    }

    fn allow_sudo(&self, guest: &mut Guest) -> Result<()> {
        let name = self.name.as_str();
        if users::allow_sudo(guest, name)? {
            return Ok(());
        }
        let message = format!("{} is to use sudo, and the system has none", escape(name));
        Err(Error::invalid(message).with_hint("add the package sudo"))
    }
}
