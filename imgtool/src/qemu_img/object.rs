//! `--object` of kinds that nothing here has a use for, but secrets: what they say is looked at as QEMU looks at it, so that a command line
//! that is wrong is refused by both.
//!
//! There is no TLS here. Credentials have to be where the object says, and are not looked into any further.

use std::fs::{self, File};
use std::path::Path;

use super::object_text::Members;
use super::refusal::{Refusal, host_text};
use super::throttle::Limits;

/// Objects that can be made, and what can be said of them besides their ID.
const KINDS: [(&str, &[&str]); 5] = [
    (
        "secret",
        &[
            "data=<string>",
            "file=<string>",
            "format=<QCryptoSecretFormat>",
            "iv=<string>",
            "keyid=<string>",
        ],
    ),
    (
        "throttle-group",
        &[
            "limits=<ThrottleLimits>",
            "x-bps-read-max-length=<int>",
            "x-bps-read-max=<int>",
            "x-bps-read=<int>",
            "x-bps-total-max-length=<int>",
            "x-bps-total-max=<int>",
            "x-bps-total=<int>",
            "x-bps-write-max-length=<int>",
            "x-bps-write-max=<int>",
            "x-bps-write=<int>",
            "x-iops-read-max-length=<int>",
            "x-iops-read-max=<int>",
            "x-iops-read=<int>",
            "x-iops-size=<int>",
            "x-iops-total-max-length=<int>",
            "x-iops-total-max=<int>",
            "x-iops-total=<int>",
            "x-iops-write-max-length=<int>",
            "x-iops-write-max=<int>",
            "x-iops-write=<int>",
        ],
    ),
    (
        "tls-creds-anon",
        &[
            "dir=<string>",
            "endpoint=<QCryptoTLSCredsEndpoint>",
            "priority=<string>",
            "verify-peer=<bool>",
        ],
    ),
    (
        "tls-creds-psk",
        &[
            "dir=<string>",
            "endpoint=<QCryptoTLSCredsEndpoint>",
            "priority=<string>",
            "username=<string>",
            "verify-peer=<bool>",
        ],
    ),
    (
        "tls-creds-x509",
        &[
            "dir=<string>",
            "endpoint=<QCryptoTLSCredsEndpoint>",
            "passwordid=<string>",
            "priority=<string>",
            "sanity-check=<bool>",
            "verify-peer=<bool>",
        ],
    ),
];

/// Whether there are objects of this kind.
pub(super) fn is_kind(kind: &str) -> bool {
    KINDS.iter().any(|known| known.0 == kind)
}

/// What `--object KIND,help` prints, or without a kind that is known.
pub(super) fn help(kind: &str) -> String {
    let (head, lines): (String, Vec<&str>) = match KINDS.iter().find(|known| known.0 == kind) {
        Some((kind, options)) => (format!("{kind} options:\n"), options.to_vec()),
        None => (
            "List of user creatable objects:\n".to_owned(),
            KINDS.iter().map(|known| known.0).collect(),
        ),
    };
    lines.iter().fold(head, |text, line| text + "  " + line + "\n")
}

/// What its options are, once they are looked at.
#[derive(Debug)]
pub(super) enum Object {
    Credentials(Credentials),
    Throttle(Limits),
}

/// How the other end of a connection is known.
#[derive(Debug)]
pub(super) struct Credentials {
    kind: &'static str,
    /// Of the other end of a connection.
    server: bool,
    directory: Option<String>,
    username: Option<String>,
}

impl Object {
    /// Reads the options of an object of this kind; `None` for kinds that are none of these.
    pub(super) fn of(kind: &str, options: &mut Members) -> Option<Result<Self, Refusal>> {
        let (kind, _) = KINDS.iter().find(|known| known.0 == kind)?;
        match *kind {
            "secret" => None,
            "throttle-group" => Some(Limits::take(options).map(Self::Throttle)),
            kind => Some(Credentials::read(kind, options).map(Self::Credentials)),
        }
    }

    /// Fails if there cannot be such an object, or what it needs is not there.
    pub(super) fn complete(self) -> Result<(), Refusal> {
        match self {
            Self::Throttle(limits) => limits.judge(),
            Self::Credentials(credentials) => credentials.complete(),
        }
    }
}

impl Credentials {
    fn read(kind: &'static str, options: &mut Members) -> Result<Self, Refusal> {
        options.switch("verify-peer")?;
        let directory = options.text("dir")?;
        let server = match options.text("endpoint")?.as_deref() {
            Some("server") => true,
            Some("client") | None => false,
            Some(other) => {
                let text = format!("Parameter 'endpoint' does not accept value '{other}'");
                return Err(Refusal::new(text));
            }
        };
        options.text("priority")?;
        let mut username = None;
        match kind {
            "tls-creds-psk" => username = options.text("username")?,
            "tls-creds-x509" => {
                options.switch("sanity-check")?;
                options.text("passwordid")?;
            }
            _ => {}
        }
        Ok(Self {
            kind,
            server,
            directory,
            username,
        })
    }

    /// Fails if what they need is not there.
    fn complete(&self) -> Result<(), Refusal> {
        // Those without names for their keys have keys that are made up.
        if !matches!(self.kind, "tls-creds-psk" | "tls-creds-x509") {
            return Ok(());
        }
        let Some(directory) = &self.directory else {
            return Err(Refusal::new("Missing 'dir' property value"));
        };
        let directory = Path::new(directory);
        match (self.kind, self.server) {
            ("tls-creds-psk", true) if self.username.is_some() => {
                Err(Refusal::new("username should not be set when endpoint=server"))
            }
            ("tls-creds-psk", true) => is_there(&directory.join("keys.psk")),
            ("tls-creds-psk", false) => self.key_of_user(&directory.join("keys.psk")),
            (_, server) => {
                let own: &[&str] = if server {
                    &["server-cert.pem", "server-key.pem"]
                } else {
                    &[]
                };
                let authorities = directory.join("ca-cert.pem");
                is_there(&authorities)?;
                own.iter().try_for_each(|name| is_there(&directory.join(name)))?;
                has_certificates(&authorities)
            }
        }
    }

    /// Fails where a list of shared keys has none for the user.
    fn key_of_user(&self, path: &Path) -> Result<(), Refusal> {
        is_there(path)?;
        let list = fs::read(path).map_err(|error| no_access(path, &error))?;
        let user = self.username.as_deref().unwrap_or("qemu");
        let start = format!("{user}:");
        let mut lines = list.split(|byte| *byte == b'\n');
        if lines.any(|line| line.starts_with(start.as_bytes())) {
            return Ok(());
        }
        let path = path.display();
        Err(Refusal::new(format!(
            "Username {user} not found in PSK file {path}"
        )))
    }
}

fn is_there(path: &Path) -> Result<(), Refusal> {
    File::open(path)
        .map(drop)
        .map_err(|error| no_access(path, &error))
}

/// Fails for a file in which there is no certificate.
fn has_certificates(path: &Path) -> Result<(), Refusal> {
    const START: &[u8] = b"-----BEGIN CERTIFICATE-----";
    let list = fs::read(path).map_err(|error| no_access(path, &error))?;
    if list.windows(START.len()).any(|bytes| bytes == START) {
        return Ok(());
    }
    let path = path.display();
    Err(Refusal::new(format!(
        "Unable to import CA certificate list {path}"
    )))
}

fn no_access(path: &Path, error: &std::io::Error) -> Refusal {
    let (path, why) = (path.display(), host_text(error));
    Refusal::new(format!("Unable to access credentials {path}: {why}"))
}

/// Fails for an ID that QEMU takes for none.
pub(super) fn check_id(id: &str) -> Result<(), Refusal> {
    if is_id(id) {
        return Ok(());
    }
    Err(Refusal::new("Parameter 'id' expects an identifier")
        .with_hint("Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."))
}

/// Whether a text can be an ID.
pub(super) fn is_id(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    first && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_start_with_a_letter() {
        assert!(check_id("a-1._b").is_ok());
        for id in ["", "1a", "-a", "a b"] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
