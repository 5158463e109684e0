//! Signatures of minisign, and the keys that a store trusts.
//!
//! A store with a public key in it (`keys/*.pub`) imports and clones only what one of them has signed. Signed is a file as it is, which is
//! what `minisign -Sm FILE` does: on the way in the file that is imported, and what is beside it; in the store the image, by
//! `FINGERPRINT.qcow2.minisig`, which is where `minisign -Sm` puts it for a template that was built here. A signature that comes
//! with the very bytes of the image goes into the store with them.
//!
//! To clone is to take milliseconds, and to read an image is not: so a signature that was found right is [noted](super::trusted).
//!
//! A machine is started with more than its image: its kernel, initrd, command line and firmware are what the template's document
//! says. That changes seldom, and never by a command of ours, so its digest is noted as well, when the template is made. Clones and runs
//! compare it, and through it kernel and initrd, whose digests it has. Whoever changes a document signs it, which is
//! `FINGERPRINT.toml.minisig`; a signed document names its image, so that it is taken for no other's. A document of which nothing is noted is
//! refused unless it is signed.
//!
//! What this finds is a file that was changed, exchanged or restored wrongly, also by who means harm and may write to `templates/`, but
//! for files that have the size and time that they had: those are not read but by `template verify`. Who may write to `keys/` or `trusted/`
//! says what is right. What machines and profiles say themselves is not signed.
//!
//! A key that cannot be read has signed nothing: what it was needed for is refused, and the rest goes on. As long as there is a file of one, only
//! what is signed is taken.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result};
use minisign_verify::{PublicKey, Signature};
use ops::Control;

use super::template::Stamp;
use super::trusted::{Noted, SignedImage};
use super::{Fingerprint, Store, Template, document, publish, stems};

/// Bytes of a key or a signature at most.
const MAX_LEN: u64 = 64 << 10;

/// Bytes hashed at once.
const CHUNK: usize = 1 << 20;

/// What a signature's name has at its end, behind that of what is signed.
pub(crate) const SUFFIX: &str = ".minisig";

/// A key that is trusted.
#[derive(Debug)]
struct Key {
    key: PublicKey,
    digest: Fingerprint,
}

/// What is in the files of keys, of which there is at least one.
#[derive(Debug)]
struct Keys {
    trusted: Vec<Key>,
    /// Those that cannot be read.
    broken: Vec<Error>,
}

/// A signature that was read, and not looked at.
struct Detached {
    path: PathBuf,
    signature: Signature,
    bytes: Vec<u8>,
}

impl Store {
    /// Where the keys are that it trusts.
    pub fn keys_directory(&self) -> PathBuf {
        self.directory.join("keys")
    }

    /// Whether only what is signed is imported and cloned.
    ///
    /// # Errors
    /// `Io`.
    pub fn wants_signatures(&self) -> Result<bool> {
        Ok(!stems(&self.keys_directory(), "pub")?.is_empty())
    }

    /// Checks a file against the signature in another, by default `FILE.minisig`; gives that as it is. Where no key is trusted there is
    /// nothing to check, and nothing is given.
    ///
    /// # Errors
    /// `InvalidInput` for no signature, one of another key, and what is no signature or key; `Corrupt` for another file than was signed;
    /// `Unsupported` for a signature of an old kind; `Io`; `Interrupted`.
    pub(crate) fn check_signature(
        &self,
        file: &Path,
        signature: Option<&Path>,
        control: &Control<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(keys) = self.keys()? else {
            return match signature {
                None => Ok(None),
                Some(_) => Err(Error::invalid("there is no key to check the signature by")
                    .with_path(self.keys_directory())
                    .with_hint("put the public key there, as NAME.pub")),
            };
        };
        let beside = suffixed(file);
        let detached = Detached::read(signature.unwrap_or(&beside), file)?;
        self.verify_by(&keys, &detached, file, control)?;
        Ok(Some(detached.bytes))
    }

    /// Fails for a template that none of the trusted keys has signed, where there are some, and for one whose document is another
    /// than it was. The image is read only where its signature was not found right before.
    ///
    /// # Errors
    /// As [`check_signature`](Self::check_signature).
    pub(super) fn check_trusted(&self, template: &Template, control: &Control<'_>) -> Result<()> {
        let Some(keys) = self.keys()? else {
            return Ok(());
        };
        let image = template.image();
        let detached = Detached::read(&suffixed(&image), &image)?;
        let before = self.noted(template);
        let signed = before.as_ref().and_then(|noted| noted.image.as_ref());
        let mut by = None;
        for key in &keys.trusted {
            if signed == Some(&detached.found_right(template, key)?) {
                by = Some(key);
            }
        }
        if by.is_some() && is_noted(template, before.as_ref()) {
            return Ok(());
        }
        self.check_document(&keys, template, before.as_ref(), control)?;
        let key = match by {
            Some(key) => key,
            None => self.verify_by(&keys, &detached, &image, control)?,
        };
        // Where that cannot be written it is found out again.
        let _ = self.note_signed(template, &detached, key);
        Ok(())
    }

    /// Fails for a template whose document is not noted as it is nor signed, where keys are trusted.
    ///
    /// # Errors
    /// `Corrupt` for one that is noted otherwise; as [`check_signature`](Self::check_signature) for a document that is signed.
    pub(super) fn check_noted(&self, template: &Template, control: &Control<'_>) -> Result<()> {
        let Some(keys) = self.keys()? else {
            return Ok(());
        };
        self.check_document(&keys, template, self.noted(template).as_ref(), control)
    }

    fn check_document(
        &self,
        keys: &Keys,
        template: &Template,
        before: Option<&Noted>,
        control: &Control<'_>,
    ) -> Result<()> {
        if is_noted(template, before) {
            return Ok(());
        }
        let path = template.description();
        let signature = suffixed(&path);
        if signature.exists() {
            let detached = Detached::read(&signature, &path)?;
            self.verify_by(keys, &detached, &path, control)?;
            let is_of = template.document.check_is_of(template.fingerprint);
            return is_of.map_err(|error| error.with_path(path));
        }
        let sign = format!("minisign -Sm {}", block::escape(&path.to_string_lossy()));
        Err(match before {
            Some(_) => Error::new(
                ErrorKind::Corrupt,
                "what the template says of its machines has changed since it was found right",
            )
            .with_hint(format!(
                "bring it back from a copy; or if the change is yours, sign it: {sign}"
            )),
            None => Error::invalid(
                "nothing vouches for what the template says of its machines: it is not signed, and that it is as it was made is not noted",
            )
            .with_hint(format!("if it is right, sign it: {sign}")),
        }
        .with_path(path))
    }

    /// Notes that the signature of a template was found right, and what its document is.
    fn note_signed(&self, template: &Template, detached: &Detached, key: &Key) -> Result<()> {
        let noted = Noted {
            document: template.digest,
            image: Some(detached.found_right(template, key)?),
        };
        self.note(template.fingerprint, &noted)
    }

    /// Checks the signatures of a template, reading its image, where keys are trusted.
    pub(super) fn verify_signature(&self, template: &Template, control: &Control<'_>) -> Result<()> {
        let Some(keys) = self.keys()? else {
            return Ok(());
        };
        self.check_signature(&template.image(), None, control)?;
        // Where it is signed that is looked at, whatever is noted.
        let is_signed = suffixed(&template.description()).exists();
        let before = if is_signed { None } else { self.noted(template) };
        self.check_document(&keys, template, before.as_ref(), control)
    }

    /// Keeps a signature with a template, if it is that of its image.
    pub(crate) fn keep_signature(
        &self,
        template: &Template,
        bytes: &[u8],
        control: &Control<'_>,
    ) -> Result<()> {
        let image = template.image();
        let to = suffixed(&image);
        let scratch = self.scratch()?;
        let from = scratch.path("minisig");
        document::create(&from, bytes, 0o644)?;
        let Some(keys) = self.keys()? else {
            return Ok(());
        };
        let detached = Detached::read(&from, &image)?;
        let key = match self.verify_by(&keys, &detached, &image, control) {
            // Of a file that the image was made of.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(()),
            verified => verified?,
        };
        // The image may be one that was there already.
        self.check_document(&keys, template, self.noted(template).as_ref(), control)?;
        let _held = self.hold()?;
        document::remove(&to)?;
        publish(&from, &to)?;
        self.note_signed(template, &detached, key)?;
        document::sync(&self.templates_directory())
    }

    /// Files of keys that cannot be read, which have signed nothing.
    ///
    /// # Errors
    /// `Io` where it cannot be said which there are.
    pub fn broken_keys(&self) -> Result<Vec<Error>> {
        Ok(self.keys()?.map(|keys| keys.broken).unwrap_or_default())
    }

    /// The keys; `None` where there is no file of any, and everybody is trusted.
    fn keys(&self) -> Result<Option<Keys>> {
        let directory = self.keys_directory();
        let stems = stems(&directory, "pub")?;
        if stems.is_empty() {
            return Ok(None);
        }
        let (mut trusted, mut broken) = (Vec::new(), Vec::new());
        for stem in stems {
            match Key::read(&Self::file(&directory, stem, "pub")) {
                Ok(key) => trusted.push(key),
                Err(error) => broken.push(error),
            }
        }
        Ok(Some(Keys { trusted, broken }))
    }

    /// The key that has signed a file.
    fn verify_by<'k>(
        &self,
        keys: &'k Keys,
        detached: &Detached,
        file: &Path,
        control: &Control<'_>,
    ) -> Result<&'k Key> {
        let mut has_changed = false;
        for key in &keys.trusted {
            let mut verifier = match key.key.verify_stream(&detached.signature) {
                Ok(verifier) => verifier,
                Err(minisign_verify::Error::UnsupportedLegacyMode) => {
                    let error =
                        Error::unsupported("the signature is of the old kind, of a whole file and no hash");
                    return Err(error
                        .with_path(&detached.path)
                        .with_hint("sign anew: minisign -SHm FILE"));
                }
                Err(_) => continue,
            };
            hash(file, control, &mut |bytes| verifier.update(bytes))?;
            // Keys with the same number may be several: whoever makes one chooses it.
            if verifier.finalize().is_ok() {
                return Ok(key);
            }
            has_changed = true;
        }
        if has_changed {
            let message = "the signature is not that of this file: one of them has changed";
            return Err(Error::new(ErrorKind::Corrupt, message)
                .with_path(file)
                .with_hint("fetch both again from whom you trust"));
        }
        let shown = |path: &Path| block::escape(&path.to_string_lossy()).into_owned();
        let mut hint = format!("trusted keys are those in {}", shown(&self.keys_directory()));
        for path in keys.broken.iter().filter_map(Error::path) {
            let _ = write!(hint, ", of which {} cannot be read", shown(path));
        }
        Err(Error::invalid("it is signed with a key that is not trusted")
            .with_path(&detached.path)
            .with_hint(hint))
    }
}

impl Key {
    fn read(path: &Path) -> Result<Self> {
        let wrong = || {
            Error::invalid("this is no public key of minisign")
                .with_path(path)
                .with_hint("it has two lines, as minisign -G makes it")
        };
        let bytes = read(path)?;
        let text = str::from_utf8(&bytes).map_err(|_| wrong())?;
        let key = PublicKey::decode(text).map_err(|_| wrong())?;
        let digest = Fingerprint::of_bytes(&bytes);
        Ok(Self { key, digest })
    }
}

/// Whether a template's document is what was found right.
fn is_noted(template: &Template, noted: Option<&Noted>) -> bool {
    noted.is_some_and(|noted| noted.document == template.digest)
}

impl Detached {
    fn read(path: &Path, signed: &Path) -> Result<Self> {
        if !path.exists() {
            let shown = signed.to_string_lossy();
            let error = Error::invalid(
                "there is no signature of it, and the store has keys: only what is signed is taken",
            );
            return Err(error
                .with_path(signed)
                .with_hint(format!("minisign -Sm {} makes one", block::escape(&shown))));
        }
        let bytes = read(path)?;
        let wrong = || Error::invalid("this is no signature of minisign").with_path(path);
        let text = str::from_utf8(&bytes).map_err(|_| wrong())?;
        let signature = Signature::decode(text).map_err(|_| wrong())?;
        Ok(Self {
            path: path.to_owned(),
            signature,
            bytes,
        })
    }
}

impl Detached {
    /// What is noted of a template's image when this is found to be a key's signature of it.
    fn found_right(&self, template: &Template, key: &Key) -> Result<SignedImage> {
        let image = template.image();
        let found = fs::metadata(&image).map_err(|error| Error::io("look at", error).with_path(&image))?;
        Ok(SignedImage {
            signature: Fingerprint::of_bytes(&self.bytes),
            key: key.digest,
            file: Stamp::of(&found),
        })
    }
}

fn suffixed(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    PathBuf::from(name)
}

/// A short file.
fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::io("read", error).with_path(path);
    let file = document::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(Error::invalid(format!("a file of more than {MAX_LEN} bytes")).with_path(path));
    }
    Ok(bytes)
}

/// Goes through a file.
fn hash(path: &Path, control: &Control<'_>, take: &mut dyn FnMut(&[u8])) -> Result<()> {
    let failed = |error| Error::io("read", error).with_path(path);
    let mut file = document::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let (mut buffer, mut done) = (vec![0; CHUNK], 0);
    loop {
        control.check()?;
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        take(&buffer[..read]);
        done += read as u64;
        control.report(done.min(total), total);
    }
}
