//! Signatures of minisign, and the keys that a store trusts.
//!
//! A store with a public key in it (`keys/*.pub`) imports and clones only what one of them has signed. Signed is a file as it is, which is
//! what `minisign -Sm FILE` does: on the way in the file that is imported, and what is beside it; in the store the image, by
//! `FINGERPRINT.qcow2.minisig`, which is where `minisign -Sm` puts it for a template that was built here. A signature that comes
//! with the very bytes of the image goes into the store with them.
//!
//! To clone is to take milliseconds, and to read an image is not: so a signature that was found right is noted beside the image
//! (`FINGERPRINT.trusted`), by the digests of signature and key, and time and size of the image, as they are for [`Template::check`].
//!
//! A machine is started with more than its image: its kernel, initrd, command line and firmware are what the template's document
//! says. That changes seldom, and never by a command of ours, so its digest is noted as well: of the document that came in with a signed
//! image, or was there when the image's signature was first found right. Clones and runs compare it, and through it kernel and initrd, whose
//! digests it has. Whoever changes a document signs it, which is `FINGERPRINT.toml.minisig`; a signed document names its image, so
//! that it is taken for no other's.
//!
//! What this finds is a file that was changed, exchanged or restored wrongly, by whoever does not know of the notes. Against who
//! means harm it helps only where they cannot write to `templates/`, since who can writes a note as well, or removes one; that
//! `keys/` is kept more strictly protects what comes in, and what `template verify` reads: images, and documents that are signed.
//! Files of the size and time that they had are not read but by that. What machines and profiles say themselves is not signed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result};
use minisign_verify::{PublicKey, Signature};
use ops::Control;

use super::template::Stamp;
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

/// A signature that was read, and not looked at.
struct Detached {
    path: PathBuf,
    signature: Signature,
    bytes: Vec<u8>,
}

/// What was found right of a template.
struct Noted {
    /// Signature, key and image.
    image: String,
    /// The document's digest; not there in notes that were made before it was noted.
    document: Option<Fingerprint>,
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
        let keys = self.keys()?;
        if keys.is_empty() {
            return match signature {
                None => Ok(None),
                Some(_) => Err(Error::invalid("there is no key to check the signature by")
                    .with_path(self.keys_directory())
                    .with_hint("put the public key there, as NAME.pub")),
            };
        }
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
        let keys = self.keys()?;
        if keys.is_empty() {
            return Ok(());
        }
        let image = template.image();
        let detached = Detached::read(&suffixed(&image), &image)?;
        let before = Noted::of(template);
        let mut by = None;
        for key in &keys {
            if Noted::image_of(template, &detached, key)? == before.image {
                by = Some(key);
            }
        }
        if by.is_some() && before.document == Some(template.digest) {
            return Ok(());
        }
        self.check_document(&keys, template, &before, control)?;
        let key = match by {
            Some(key) => key,
            None => self.verify_by(&keys, &detached, &image, control)?,
        };
        // Where that cannot be written it is found out again.
        let _ = self.note(template, &detached, key);
        Ok(())
    }

    /// Fails for a template whose document is another than it was when its signature was found right, where keys are trusted.
    ///
    /// # Errors
    /// `Corrupt`; as [`check_signature`](Self::check_signature) for a document that is signed.
    pub(super) fn check_noted(&self, template: &Template, control: &Control<'_>) -> Result<()> {
        let keys = self.keys()?;
        if keys.is_empty() {
            return Ok(());
        }
        self.check_document(&keys, template, &Noted::of(template), control)
    }

    fn check_document(
        &self,
        keys: &[Key],
        template: &Template,
        before: &Noted,
        control: &Control<'_>,
    ) -> Result<()> {
        if before.document == Some(template.digest) {
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
        if before.document.is_none() {
            return Ok(());
        }
        let hint = format!(
            "bring it back from a copy; or if the change is yours, sign it: minisign -Sm {}",
            block::escape(&path.to_string_lossy())
        );
        let message =
            "what the template says of its machines has changed since its signature was found right";
        Err(Error::new(ErrorKind::Corrupt, message)
            .with_path(path)
            .with_hint(hint))
    }

    /// Notes that the signature of a template was found right, and what its document is.
    fn note(&self, template: &Template, detached: &Detached, key: &Key) -> Result<()> {
        let text = format!(
            "{}\n{}\n",
            Noted::image_of(template, detached, key)?,
            template.digest
        );
        let scratch = self.scratch()?;
        let (new, path) = (scratch.path("trusted"), Noted::path(template));
        document::create(&new, text.as_bytes(), 0o644)?;
        fs::rename(&new, &path).map_err(|error| Error::io("replace", error).with_path(&path))
    }

    /// Checks the signatures of a template, reading its image, where keys are trusted.
    pub(super) fn verify_signature(&self, template: &Template, control: &Control<'_>) -> Result<()> {
        let keys = self.keys()?;
        if keys.is_empty() {
            return Ok(());
        }
        self.check_signature(&template.image(), None, control)?;
        let mut before = Noted::of(template);
        if suffixed(&template.description()).exists() {
            // It is looked at, whatever is noted.
            before.document = None;
        }
        self.check_document(&keys, template, &before, control)
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
        let (keys, detached) = (self.keys()?, Detached::read(&from, &image)?);
        let key = match self.verify_by(&keys, &detached, &image, control) {
            // Of a file that the image was made of.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(()),
            verified => verified?,
        };
        // The image may be one that was there already.
        self.check_document(&keys, template, &Noted::of(template), control)?;
        let _held = self.hold()?;
        document::remove(&to)?;
        publish(&from, &to)?;
        self.note(template, &detached, key)?;
        document::sync(&self.templates_directory())
    }

    fn keys(&self) -> Result<Vec<Key>> {
        let directory = self.keys_directory();
        let stems = stems(&directory, "pub")?;
        let keys = stems.iter().map(|stem| {
            let path = Self::file(&directory, stem, "pub");
            let wrong = || {
                Error::invalid("this is no public key of minisign")
                    .with_path(&path)
                    .with_hint("it has two lines, as minisign -G makes it")
            };
            let bytes = read(&path)?;
            let text = str::from_utf8(&bytes).map_err(|_| wrong())?;
            let key = PublicKey::decode(text).map_err(|_| wrong())?;
            let digest = Fingerprint::of_bytes(&bytes);
            Ok(Key { key, digest })
        });
        keys.collect()
    }

    /// The key that has signed a file.
    fn verify_by<'k>(
        &self,
        keys: &'k [Key],
        detached: &Detached,
        file: &Path,
        control: &Control<'_>,
    ) -> Result<&'k Key> {
        let mut has_changed = false;
        for key in keys {
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
        let keys = self.keys_directory();
        Err(Error::invalid("it is signed with a key that is not trusted")
            .with_path(&detached.path)
            .with_hint(format!(
                "trusted keys are those in {}",
                block::escape(&keys.to_string_lossy())
            )))
    }
}

impl Noted {
    fn path(template: &Template) -> PathBuf {
        template.image().with_extension("trusted")
    }

    /// What is noted of a template.
    fn of(template: &Template) -> Self {
        let bytes = read(&Self::path(template)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        Self {
            image: lines.next().unwrap_or_default().to_owned(),
            document: lines.next().and_then(|line| line.parse().ok()),
        }
    }

    /// What is noted of its image when its signature is found to be that of a key.
    fn image_of(template: &Template, detached: &Detached, key: &Key) -> Result<String> {
        let image = template.image();
        let found = fs::metadata(&image).map_err(|error| Error::io("look at", error).with_path(&image))?;
        let (signature, file) = (Fingerprint::of_bytes(&detached.bytes), Stamp::of(&found));
        Ok(format!(
            "{signature} {} {} {}",
            key.digest, file.size, file.modified
        ))
    }
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

fn suffixed(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    PathBuf::from(name)
}

/// A short file.
fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::io("read", error).with_path(path);
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::invalid("this is no file").with_path(path));
    }
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
    let mut file = File::open(path).map_err(failed)?;
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
