//! `--object secret,...`: passwords and keys by ID, for encrypted images.
//!
//! An image is opened by what names it, which may say the ID of a secret at any depth. So they are known to the process, as QEMU's objects are
//! ([`passphrase`]), and a command keeps its own [`Secrets`] to see that no ID comes twice.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use block::Passphrase;

use super::node::NodeOptions;
use super::refusal::{Refusal, host_text};

/// Objects that QEMU knows and this program has no use for.
const OTHERS: [&str; 4] = [
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
    "throttle-group",
];

static KNOWN: Mutex<BTreeMap<String, Passphrase>> = Mutex::new(BTreeMap::new());

/// The secret with this ID, whichever command it was given to.
pub(super) fn passphrase(id: &str) -> Result<Passphrase, Refusal> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let secret = known.get(id).cloned();
    secret.ok_or_else(|| Refusal::new(format!("No secret with id '{id}'")))
}

/// Secrets by their ID.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets(BTreeMap<String, Vec<u8>>);

impl Secrets {
    /// Takes what one `--object` says.
    pub(super) fn add(&mut self, text: &str) -> Result<(), Refusal> {
        let (kind, rest) = match text.strip_prefix("qom-type=") {
            Some(named) => named.split_once(',').unwrap_or((named, "")),
            None => text.split_once(',').unwrap_or((text, "")),
        };
        let mut options = NodeOptions::of_list(rest);
        if OTHERS.contains(&kind) {
            return Ok(());
        }
        if kind != "secret" {
            return Err(Refusal::new(format!(
                "Parameter 'qom-type' does not accept value '{kind}'"
            )));
        }
        let Some(id) = options.take("id") else {
            return Err(Refusal::new("Parameter 'id' is missing"));
        };
        let encoded = match (options.take("data"), options.take("file")) {
            (Some(_), Some(_)) => return Err(Refusal::new("'file' and 'data' are mutually exclusive")),
            (None, None) => return Err(Refusal::new("Either 'file' or 'data' must be provided")),
            (Some(data), None) => data.into_bytes(),
            (None, Some(file)) => fs::read(&file).map_err(|error| {
                let why = host_text(&error);
                Refusal::new(format!(
                    "Unable to read {file}: Failed to open file \u{201c}{file}\u{201d}: {why}"
                ))
            })?,
        };
        if options.take("keyid").is_some() {
            return Err(Refusal::new(
                "Secrets that are encrypted with another are not supported",
            ));
        }
        options.take("iv");
        let value = match options.take("format").as_deref() {
            None | Some("raw") => encoded,
            Some("base64") => base64(&encoded).ok_or_else(|| Refusal::new("Base64 data is not valid"))?,
            Some(other) => {
                return Err(Refusal::new(format!(
                    "Parameter 'format' does not accept value '{other}'"
                )));
            }
        };
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(id.clone(), Passphrase::new(value.clone()));
        if self.0.insert(id.clone(), value).is_some() {
            return Err(Refusal::new(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        Ok(())
    }

    /// The secret with this ID.
    pub(super) fn get(&self, id: &str) -> Result<&[u8], Refusal> {
        let secret = self.0.get(id).map(Vec::as_slice);
        secret.ok_or_else(|| Refusal::new(format!("No secret with id '{id}'")))
    }
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for byte in &text[..text.len() - padding] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Vec<u8>, String> {
        let mut secrets = Secrets::default();
        let added = secrets
            .add(text)
            .and_then(|()| secrets.get("s").map(<[u8]>::to_vec));
        added.map_err(|refusal| refusal.text().to_owned())
    }

    #[test]
    fn a_secret_is_text_or_base64_or_a_file() {
        assert_eq!(one("secret,id=s,data=a,,b").unwrap(), b"a,b");
        assert_eq!(one("secret,id=s,data=aGFsbG8=,format=base64").unwrap(), b"hallo");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"from file").unwrap();
        let text = format!("secret,id=s,file={}", file.path().display());
        assert_eq!(one(&text).unwrap(), b"from file");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("secret,data=x", "Parameter 'id' is missing"),
            ("secret,id=s", "Either 'file' or 'data' must be provided"),
            ("foo,id=s", "Parameter 'qom-type' does not accept value 'foo'"),
            ("secret,id=t,data=x", "No secret with id 's'"),
        ] {
            assert_eq!(one(text).unwrap_err(), why);
        }
    }
}
