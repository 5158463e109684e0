//! Signatures of minisign, and the keys that a store trusts.
//!
//! A store with a public key in it (`keys/*.pub`) imports and clones only what one of them has signed. Signed is a file as it is, which is
//! what `minisign -Sm FILE` does: on the way in the file that is imported, and what is beside it; in the store the image, by
//! `FINGERPRINT.qcow2.minisig`, which is where `minisign -Sm` puts it for a template that was built here. A signature that comes
//! with the very bytes of the image goes into the store with them.
//!
//! To clone is to take milliseconds, and to read an image is not: so a signature that was found right is noted beside the image
//! (`FINGERPRINT.trusted`), by the digests of signature and key, and time and size of the image, as they are for [`Template::check`]. Who can
//! write there can put a key of their own there as well. `template verify` reads everything.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result};
use minisign_verify::{PublicKey, Signature};
use ops::Control;

use super::template::modified;
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

    /// Fails for a template that none of the trusted keys has signed, where there are some. The image is read only where that was not
    /// found before.
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
        let found = fs::metadata(&image).map_err(|error| Error::io("look at", error).with_path(&image))?;
        let signature = Fingerprint::of_bytes(&detached.bytes);
        let note = |key: &Key| {
            let (size, time) = (found.size(), modified(&found));
            format!("{signature} {} {size} {time}\n", key.digest)
        };
        let path = image.with_extension("trusted");
        let before = fs::read_to_string(&path).unwrap_or_default();
        if keys.iter().any(|key| note(key) == before) {
            return Ok(());
        }
        let key = self.verify_by(&keys, &detached, &image, control)?;
        // Where that cannot be written it is found out again.
        let _ = fs::write(&path, note(key));
        Ok(())
    }

    /// Checks the signature of a template, reading its image, where keys are trusted.
    pub(super) fn verify_signature(&self, template: &Template, control: &Control<'_>) -> Result<()> {
        self.check_signature(&template.image(), None, control).map(drop)
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
        match self.check_signature(&image, Some(&from), control) {
            // Of a file that the image was made of.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(()),
            checked => drop(checked?),
        }
        let _held = self.hold()?;
        document::remove(&to)?;
        publish(&from, &to)?;
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
