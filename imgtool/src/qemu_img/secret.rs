//! `--object secret,...`: passwords and keys by ID, for encrypted images.
//!
//! An image is opened by what names it, which may say the ID of a secret at any depth. So they are known to the process, as QEMU's objects are
//! ([`passphrase`]), and a command keeps its own [`Secrets`] to see that no ID comes twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use block::Passphrase;

use super::console::Console;
use super::keyed;
use super::object::{self, Object};
use super::object_text::{Members, ObjectText};
use super::refusal::{Refusal, host_error, host_text};

/// Bytes in the file of a secret at most.
const LONGEST: u64 = 1 << 20;

static KNOWN: Mutex<BTreeMap<String, Passphrase>> = Mutex::new(BTreeMap::new());

/// The secret with this ID, whichever command it was given to.
pub(super) fn passphrase(id: &str) -> Result<Passphrase, Refusal> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let secret = known.get(id).cloned().ok_or_else(|| unknown(id))?;
    text(id, secret.as_bytes())?;
    Ok(secret)
}

fn could_not_read(file: &str, error: &block::Error) -> Refusal {
    let Some(cause) = host_error(error) else {
        return Refusal::new(format!("Unable to read {file}: {}", error.message()));
    };
    let failed = match cause.kind() {
        ErrorKind::IsADirectory => "Error reading",
        _ => "Failed to open",
    };
    let why = host_text(cause);
    Refusal::new(format!(
        "Unable to read {file}: {failed} file \u{201c}{file}\u{201d}: {why}"
    ))
}

fn unknown(id: &str) -> Refusal {
    Refusal::new(format!("No secret with id '{id}'"))
}

/// The bytes of a secret, if they are text: QEMU takes no others for a passphrase.
fn text<'a>(id: &str, secret: &'a [u8]) -> Result<&'a [u8], Refusal> {
    match str::from_utf8(secret) {
        Ok(_) => Ok(secret),
        Err(_) => Err(Refusal::new(format!("Data from secret {id} is not valid UTF-8"))),
    }
}

/// Secrets by their ID.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    secrets: BTreeMap<String, Vec<u8>>,
    /// The IDs of all objects.
    ids: BTreeSet<String>,
}

impl Secrets {
    /// Takes what one `--object` says. Whoever asks for help gets that, and nothing else.
    pub(super) fn add(&mut self, console: &Console, text: &str) -> Result<(), Refusal> {
        match ObjectText::parse(text)? {
            ObjectText::Members(members) => self.make(members),
            ObjectText::Help(kind) => Err(console.answer(object::help(&kind))),
        }
    }

    fn make(&mut self, mut options: Members) -> Result<(), Refusal> {
        let kind = options.kind()?;
        if !object::is_kind(&kind) {
            // What else stands there may be a password.
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            let shown = if kind.bytes().all(is_name) { &*kind } else { "..." };
            return Err(Refusal::new(format!(
                "Parameter 'qom-type' does not accept value '{shown}'"
            )));
        }
        let id = options.needed("id")?;
        if let Some(object) = Object::of(&kind, &mut options) {
            let object = object?;
            options.finish()?;
            self.name(&id)?;
            return object.complete();
        }
        let secret = Stated::take(&mut options)?;
        options.finish()?;
        self.name(&id)?;
        let value = secret.read(&id, self)?;
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(id.clone(), Passphrase::new(value.clone()));
        self.secrets.insert(id, value);
        Ok(())
    }

    /// Takes an ID, which no other object may have.
    fn name(&mut self, id: &str) -> Result<(), Refusal> {
        object::check_id(id)?;
        if self.ids.insert(id.to_owned()) {
            return Ok(());
        }
        Err(Refusal::new(format!(
            "attempt to add duplicate property '{id}' to object (type 'container')"
        )))
    }

    /// The secret with this ID.
    pub(super) fn get(&self, id: &str) -> Result<&[u8], Refusal> {
        text(id, self.secrets.get(id).ok_or_else(|| unknown(id))?)
    }
}

/// What is said of a secret.
struct Stated {
    data: Option<String>,
    file: Option<String>,
    base64: bool,
    /// The ID of the secret that this one is encrypted with.
    key: Option<String>,
    iv: Option<String>,
}

impl Stated {
    fn take(options: &mut Members) -> Result<Self, Refusal> {
        let base64 = match options.text("format")?.as_deref() {
            None | Some("raw") => false,
            Some("base64") => true,
            Some(other) => {
                return Err(Refusal::new(format!(
                    "Parameter 'format' does not accept value '{other}'"
                )));
            }
        };
        Ok(Self {
            base64,
            key: options.text("keyid")?,
            iv: options.text("iv")?,
            data: options.text("data")?,
            file: options.text("file")?,
        })
    }

    /// The secret itself, which has this ID.
    fn read(self, id: &str, others: &Secrets) -> Result<Vec<u8>, Refusal> {
        let stored = match (self.data, self.file) {
            (Some(_), Some(_)) => return Err(Refusal::new("'file' and 'data' are mutually exclusive")),
            (None, None) => return Err(Refusal::new("Either 'file' or 'data' must be provided")),
            (Some(data), None) => data.into_bytes(),
            (None, Some(file)) => {
                let read = raw::read_whole(Path::new(&file), "a secret", LONGEST);
                read.map_err(|error| could_not_read(&file, &error))?
            }
        };
        let decoded = |stored: Vec<u8>| if self.base64 { base64(&stored) } else { Ok(stored) };
        let Some(key_id) = self.key else {
            return decoded(stored);
        };
        if key_id == id {
            return Err(Refusal::new(format!("Secret with id '{id}' has no data")));
        }
        let key = others.secrets.get(&key_id).ok_or_else(|| unknown(&key_id))?;
        keyed::check_key(key)?;
        let iv = self
            .iv
            .ok_or_else(|| Refusal::new("IV is required to decrypt secret"))?;
        let iv = base64(iv.as_bytes())?;
        keyed::check_iv(&iv)?;
        keyed::decrypted(key, &iv, &decoded(stored)?)
    }
}

/// What base64 stands for, as far as it goes in whole groups of four characters.
fn base64(text: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut digits = Vec::with_capacity(text.len());
    for byte in text.iter().filter(|byte| **byte != b'\n') {
        digits.push(match byte {
            b'A'..=b'Z' => Some(byte - b'A'),
            b'a'..=b'z' => Some(byte - b'a' + 26),
            b'0'..=b'9' => Some(byte - b'0' + 52),
            b'+' => Some(62),
            b'/' => Some(63),
            b'=' => None,
            _ => return Err(Refusal::new("Base64 data contains invalid characters")),
        });
    }
    let mut bytes = Vec::new();
    for group in digits.chunks_exact(4) {
        let value = |digit: &Option<u8>| u32::from(digit.unwrap_or_default());
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | value(digit));
        let [_, first, second, third] = bits.to_be_bytes();
        // What is filled up stands for fewer bytes.
        let there = [Some(first), group[2].map(|_| second), group[3].map(|_| third)];
        bytes.extend(there.into_iter().flatten());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn one(text: &str) -> Result<Vec<u8>, String> {
        let mut secrets = Secrets::default();
        let added = secrets
            .add(&Console::new("qemu-img".to_owned()), text)
            .and_then(|()| secrets.get("s").map(<[u8]>::to_vec));
        added.map_err(|refusal| refusal.text().to_owned())
    }

    #[test]
    fn a_secret_is_text_or_base64_or_a_file() {
        assert_eq!(one("secret,id=s,data=a,,b").unwrap(), b"a,b");
        assert_eq!(one("secret,id=s,data=aGFsbG8=,format=base64").unwrap(), b"hallo");
        assert_eq!(
            one(r#"{"data":"a,b","qom-type":"secret","id":"s"}"#).unwrap(),
            b"a,b"
        );
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
            (
                r#""data:hunter2",id=s"#,
                "Parameter 'qom-type' does not accept value '...'",
            ),
            (r#"{"data":"hunter2"}"#, "Parameter 'qom-type' is missing"),
            ("secret,id=t,data=x", "No secret with id 's'"),
            ("secret,id=s,keyid=s,data=x", "Secret with id 's' has no data"),
            (
                "secret,id=s,data=/w==,format=base64",
                "Data from secret s is not valid UTF-8",
            ),
        ] {
            assert_eq!(one(text).unwrap_err(), why);
        }
    }
}
