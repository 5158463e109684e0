//! Settings of machines, as templates, profiles and instances have them: what one does not say is left to those before.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use block::{Error, Result, escape};
use serde::{Deserialize, Serialize};

use crate::credential::Credentials;
use crate::machine::{Architecture, Forward, Limits};

/// What is said of a machine, in TOML:
///
/// ```
/// use machines::{NetworkKind, Settings};
///
/// let template: Settings = toml_edit::de::from_str(r#"
///     architecture = "x86_64"
///     cpus = 2
///     memory = "512M"
///
///     [boot]
///     kind = "direct"
///     append = "console=ttyS0"
/// "#)?;
/// let profile: Settings = toml_edit::de::from_str(r#"
///     memory = "2G"
///
///     [network]
///     kind = "user"
///     forward = ["2222:22", "0.0.0.0:8080:80"]
///
///     [limits]
///     bytes = "50M"
///     requests = 1000
/// "#)?;
/// let machine = template.then(profile);
/// assert_eq!((machine.cpus, machine.memory), (Some(2), Some(2 << 30)));
/// assert_eq!(machine.network.kind, Some(NetworkKind::User));
/// # Ok::<(), toml_edit::de::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// What the processors are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// Number of virtual processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none", with = "size_text")]
    pub memory: Option<u64>,
    /// How it starts.
    #[serde(skip_serializing_if = "BootSettings::is_empty")]
    pub boot: BootSettings,
    /// What it is connected to.
    #[serde(skip_serializing_if = "NetworkSettings::is_empty")]
    pub network: NetworkSettings,
    /// What its disks may do.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// What systemd in the guest is told.
    #[serde(skip_serializing_if = "Credentials::is_empty")]
    pub credentials: Credentials,
}

impl Settings {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As they stand in a file.
    ///
    /// # Errors
    /// `InvalidInput` for what TOML does not have: numbers from 2^63 on.
    pub fn to_toml(&self) -> Result<String> {
        toml_edit::ser::to_string_pretty(self)
            .map_err(|error| Error::invalid(format!("the settings cannot be written: {error}")))
    }

    /// These settings, and `later` ones where those say something. What is listed is replaced as a whole, and credentials one
    /// by one.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        Self {
            architecture: later.architecture.or(self.architecture),
            cpus: later.cpus.or(self.cpus),
            memory: later.memory.or(self.memory),
            boot: self.boot.then(later.boot),
            network: self.network.then(later.network),
            limits: Limits {
                bytes: later.limits.bytes.or(self.limits.bytes),
                requests: later.limits.requests.or(self.limits.requests),
            },
            credentials: self.credentials.into_iter().chain(later.credentials).collect(),
        }
    }
}

/// How a machine starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BootSettings {
    /// Who loads the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<BootKind>,
    /// The kernel's command line, where the launcher loads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Code of the UEFI firmware, a file of the host, where it is not to be the launcher's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
}

impl BootSettings {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn then(self, later: Self) -> Self {
        Self {
            kind: later.kind.or(self.kind),
            append: later.append.or(self.append),
            firmware: later.firmware.or(self.firmware),
        }
    }
}

/// Who loads the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootKind {
    /// The launcher, from files that the template has beside its disk.
    Direct,
    /// UEFI firmware, from the disk.
    Uefi,
}

/// What a machine is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkSettings {
    /// To what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<NetworkKind>,
    /// Name of the bridge, for that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// TCP ports of the host that lead into the guest, for a user network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<Vec<Forward>>,
}

impl NetworkSettings {
    /// Fails for a bridge of which no network card of Linux can have the name.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check(&self) -> Result<()> {
        let Some(name) = &self.bridge else { return Ok(()) };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        // As many as the kernel takes, and without what options of launchers are parted by.
        if (1..16).contains(&name.len()) && name.chars().all(plain) && !name.starts_with(['.', '-']) {
            return Ok(());
        }
        Err(
            Error::invalid(format!("\"{}\" cannot be the name of a bridge", escape(name)))
                .with_hint("a name has up to 15 letters, digits, - _ and ."),
        )
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn then(self, later: Self) -> Self {
        Self {
            kind: later.kind.or(self.kind),
            bridge: later.bridge.or(self.bridge),
            forward: later.forward.or(self.forward),
        }
    }
}

/// What a machine can be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    /// The emulator's own network: outwards only, but for what is forwarded.
    User,
    /// A bridge of the host.
    Bridge,
    /// Nothing.
    None,
}

/// `[ADDRESS:]HOST:GUEST`, as in `2222:22`.
impl FromStr for Forward {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (address, host, guest) = match parts.as_slice() {
            [host, guest] => (Ok(Ipv4Addr::LOCALHOST), host, guest),
            [address, host, guest] => (address.parse(), host, guest),
            _ => return Err(no_forward(text)),
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0u16);
        match (address, port(host), port(guest)) {
            (Ok(address), Some(host), Some(guest)) => Ok(Self { address, host, guest }),
            _ => Err(no_forward(text)),
        }
    }
}

fn no_forward(text: &str) -> Error {
    Error::invalid(format!("\"{}\" forwards no port", escape(text)))
        .with_hint("name a port of the host and one of the guest: 2222:22, or 0.0.0.0:2222:22 for all of the host's addresses")
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address != Ipv4Addr::LOCALHOST {
            write!(f, "{}:", self.address)?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

impl TryFrom<String> for Forward {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> Self {
        forward.to_string()
    }
}

/// Sizes in files: a number of bytes, or a text with a unit.
pub(crate) mod size_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[derive(Deserialize, Serialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }

    #[expect(clippy::ref_option, reason = "serde gives it so")]
    pub(crate) fn serialize<S: Serializer>(bytes: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        bytes.map(shortest).serialize(to)
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<u64>, D::Error> {
        Ok(match Option::<Size>::deserialize(from)? {
            None => None,
            Some(Size::Bytes(bytes)) => Some(bytes),
            Some(Size::Text(text)) => Some(block::size::parse(&text).map_err(de::Error::custom)?),
        })
    }

    /// In the largest unit of which it is a whole number.
    fn shortest(bytes: u64) -> Size {
        let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'k')];
        let whole = |shift: &u32| bytes > 0 && bytes.trailing_zeros() >= *shift;
        match units.iter().find(|(shift, _)| whole(shift)) {
            Some((shift, unit)) => Size::Text(format!("{}{unit}", bytes >> shift)),
            None => Size::Bytes(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, toml_edit::de::Error> {
        toml_edit::de::from_str(text)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = "cpus = 4\nmemory = \"1536M\"\n\n[network]\nkind = \"user\"\nforward = [\"2222:22\", \"0.0.0.0:80:8080\"]\n";
        let settings = parse(text).unwrap();
        assert_eq!(settings.memory, Some(1536 << 20));
        let written = toml_edit::ser::to_string_pretty(&settings).unwrap();
        assert_eq!(parse(&written).unwrap(), settings);
        assert!(written.contains("memory = \"1536M\""), "{written}");
        assert!(
            !written.contains("boot"),
            "what is not said is not written: {written}"
        );
    }

    #[test]
    fn later_settings_win_one_by_one() {
        let one = parse(
            "cpus = 1\n[boot]\nkind = \"direct\"\nappend = \"quiet\"\n[credentials]\n\"a.b\" = \"1\"\nc = \"2\"",
        )
        .unwrap();
        let other = parse("memory = 1024\n[boot]\nappend = \"\"\n[credentials]\nc = \"3\"").unwrap();
        let both = one.then(other);
        assert_eq!((both.cpus, both.memory), (Some(1), Some(1024)));
        assert_eq!(both.boot.kind, Some(BootKind::Direct));
        assert_eq!(both.boot.append.as_deref(), Some(""));
        let credentials: Vec<_> = both
            .credentials
            .iter()
            .map(|(name, value)| (name.as_str(), &**value))
            .collect();
        assert_eq!(credentials, [("a.b", "1"), ("c", "3")]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, named) in [
            ("cpu = 1", "cpu"),
            ("memory = \"1X\"", "suffix"),
            ("[network]\nforward = [\"22\"]", "forwards no port"),
            ("[network]\nforward = [\"0:22\"]", "forwards no port"),
            ("[boot]\nkind = \"bios\"", "bios"),
            ("[credentials]\n\"a/b\" = \"\"", "no name of a credential"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
