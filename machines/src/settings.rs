//! Settings of machines, as templates, profiles and instances have them: what one does not say is left to those before.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use block::{Error, Result, escape};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::credential::Credentials;
use crate::machine::{Architecture, Forward, Limits};

/// Processors of a machine at most.
pub const MAX_CPUS: u32 = 4096;

/// Bytes of memory at most: what Linux on `x86_64` has addresses for.
const MAX_MEMORY: u64 = 64 << 40;

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
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct Settings {
    /// What the processors are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// Number of virtual processors.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "cpus")]
    pub cpus: Option<u32>,
    /// Bytes of memory.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "size_text::serialize",
        deserialize_with = "memory"
    )]
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

    /// Fails for settings that make no machine, with all that is said of it.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check(&self) -> Result<()> {
        self.check_values()?;
        self.network.check_kind()
    }

    /// Fails for values of which no machine can be made, whatever else is said of it before or later. None that are read from a
    /// file are such: there, it is told with line and column.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn check_values(&self) -> Result<()> {
        self.cpus.map_or(Ok(()), check_cpus)?;
        self.memory.map_or(Ok(()), check_memory)?;
        self.boot.append.as_deref().map_or(Ok(()), check_append)?;
        self.network.check_values()
    }

    /// The mode of a file that has them: with credentials among them, it is its owner's alone.
    pub(crate) fn mode(&self) -> u32 {
        if self.credentials.is_empty() { 0o644 } else { 0o600 }
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
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct BootSettings {
    /// Who loads the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<BootKind>,
    /// The kernel's command line, where the launcher loads it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "append")]
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
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table"
)]
pub struct NetworkSettings {
    /// To what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<NetworkKind>,
    /// Name of the bridge, for that kind.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "bridge")]
    pub bridge: Option<String>,
    /// TCP ports of the host that lead into the guest, for a user network.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "forwards")]
    pub forward: Option<Vec<Forward>>,
}

impl NetworkSettings {
    /// Fails for a bridge with a name that no network card of Linux can have, and for a port of the host that is to lead to two
    /// places.
    fn check_values(&self) -> Result<()> {
        check_forwards(self.forward.as_deref().unwrap_or_default())?;
        self.bridge.as_deref().map_or(Ok(()), check_bridge)
    }

    /// Fails for a bridge that is not named: which one, a profile may say or the machine itself.
    fn check_kind(&self) -> Result<()> {
        if self.kind != Some(NetworkKind::Bridge) || self.bridge.is_some() {
            return Ok(());
        }
        let error = Error::invalid("the network is to be a bridge, and nothing says which one");
        Err(error.with_hint("name it: --net bridge=br0, or bridge = \"br0\" in a profile"))
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

/// Ports that nobody else is to listen on, each once.
fn check_forwards(forwards: &[Forward]) -> Result<()> {
    for (number, later) in forwards.iter().enumerate() {
        let listens_there = |first: &&Forward| {
            let everywhere = first.address.is_unspecified() || later.address.is_unspecified();
            first.host == later.host && (everywhere || first.address == later.address)
        };
        if let Some(first) = forwards[..number].iter().find(listens_there) {
            let message = format!(
                "port {} of the host is forwarded twice: {first} and {later}",
                later.host
            );
            return Err(Error::invalid(message).with_hint("0.0.0.0 is every address of the host"));
        }
    }
    Ok(())
}

fn check_bridge(name: &str) -> Result<()> {
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

fn check_cpus(cpus: u32) -> Result<()> {
    if (1..=MAX_CPUS).contains(&cpus) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a machine has 1 to {MAX_CPUS} processors, and not {cpus}"
    )))
}

fn check_memory(memory: u64) -> Result<()> {
    if memory == 0 || !memory.is_multiple_of(1 << 20) {
        let message = format!("memory comes in whole MiB, and not as {memory} bytes");
        return Err(Error::invalid(message).with_hint("such as 512M"));
    }
    if memory > MAX_MEMORY {
        let message = format!(
            "a machine has up to {} TiB of memory, and not {memory} bytes",
            MAX_MEMORY >> 40
        );
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// A kernel's command line is one line, also where a launcher or a boot loader has it in a file.
fn check_append(text: &str) -> Result<()> {
    if !text.contains(|c: char| c.is_ascii_control() && c != '\t') {
        return Ok(());
    }
    let message = format!(
        "\"{}\" cannot be on a kernel's command line, which is one line of text",
        escape(text)
    );
    Err(Error::invalid(message))
}

/// What is in a file, where it passes a check.
fn checked<T, E: de::Error>(found: Option<T>, check: impl Fn(&T) -> Result<()>) -> Result<Option<T>, E> {
    found.as_ref().map_or(Ok(()), check).map_err(E::custom)?;
    Ok(found)
}

fn cpus<'d, D: Deserializer<'d>>(from: D) -> Result<Option<u32>, D::Error> {
    checked(Option::deserialize(from)?, |cpus| check_cpus(*cpus))
}

fn memory<'d, D: Deserializer<'d>>(from: D) -> Result<Option<u64>, D::Error> {
    checked(size_text::deserialize(from)?, |memory| check_memory(*memory))
}

fn append<'d, D: Deserializer<'d>>(from: D) -> Result<Option<String>, D::Error> {
    checked(Option::deserialize(from)?, |text: &String| check_append(text))
}

fn forwards<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Vec<Forward>>, D::Error> {
    checked(Option::deserialize(from)?, |forwards: &Vec<Forward>| {
        check_forwards(forwards)
    })
}

fn bridge<'d, D: Deserializer<'d>>(from: D) -> Result<Option<String>, D::Error> {
    checked(Option::deserialize(from)?, |name: &String| check_bridge(name))
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
    #[serde(
        untagged,
        expecting = "a size is a number of bytes, or a text with a unit such as \"512M\""
    )]
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
    fn a_port_may_lead_to_several_places_from_several_addresses() {
        let text = "[network]\nforward = [\"127.0.0.2:80:80\", \"127.0.0.3:80:80\", \"0.0.0.0:81:80\"]";
        assert_eq!(parse(text).unwrap().network.forward.unwrap().len(), 3);
    }

    #[test]
    fn later_settings_win_one_by_one() {
        let one = parse(
            "cpus = 1\n[boot]\nkind = \"direct\"\nappend = \"quiet\"\n[credentials]\n\"a.b\" = \"1\"\nc = \"2\"",
        )
        .unwrap();
        let other = parse("memory = 1048576\n[boot]\nappend = \"\"\n[credentials]\nc = \"3\"").unwrap();
        let both = one.then(other);
        assert_eq!((both.cpus, both.memory), (Some(1), Some(1 << 20)));
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
    fn a_bridge_may_be_named_by_what_comes_later() {
        let kind = parse("[network]\nkind = \"bridge\"").unwrap();
        kind.check_values().unwrap();
        let error = kind.check().unwrap_err();
        assert!(error.to_string().contains("which one"), "{error}");
        let profile = parse("[network]\nbridge = \"br0\"").unwrap();
        kind.then(profile).check().unwrap();
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, named) in [
            ("cpu = 1", "cpu"),
            ("memory = \"1X\"", "suffix"),
            ("[network]\nforward = [\"22\"]", "forwards no port"),
            ("[network]\nforward = [\"0:22\"]", "forwards no port"),
            (
                "[network]\nforward = [\"2222:22\", \"80:80\", \"2222:23\"]",
                "port 2222 of the host is forwarded twice: 2222:22 and 2222:23",
            ),
            (
                "[network]\nforward = [\"127.0.0.2:80:80\", \"0.0.0.0:80:81\"]",
                "forwarded twice",
            ),
            ("[boot]\nkind = \"bios\"", "bios"),
            ("cpus = 0", "1 to 4096 processors"),
            ("cpus = 100000", "and not 100000"),
            ("memory = -5", "a size is a number of bytes, or a text"),
            ("memory = \"0\"", "whole MiB"),
            ("memory = \"1500K\"", "1536000 bytes"),
            ("memory = \"100T\"", "up to 64 TiB"),
            (
                "[network]\nkind = \"bridge\"\nbridge = \"a b\"",
                "name of a bridge",
            ),
            ("[boot]\nappend = \"quiet\\ninit=/x\"", "one line of text"),
            ("[credentials]\n\"a/b\" = \"\"", "no name of a credential"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
