//! New images that are encrypted: what options say of it, and disks in LUKS's own form.

use std::time::Duration;

use block::{Passphrase, Preallocation};
use encryption::{Cipher, Hash, Iterations, IvGenerator, LuksOptions, Mode};
use qcow2::{EncryptionMethod, Measure, NewEncryption};

use super::format_options::FormatOptions;
use super::new_image::{not_accepted, raw_preallocation};
use super::refusal::Refusal;
use super::secret::Secrets;
use crate::formats::NewImage;

/// A disk in LUKS's own form (`-f luks`).
pub(super) fn luks_image(options: &FormatOptions, secrets: &Secrets) -> Result<NewImage, Refusal> {
    let Some(id) = options.get("key-secret") else {
        return Err(Refusal::new("Parameter 'key-secret' is required for cipher"));
    };
    if options.get("detached-header").is_some() {
        return Err(Refusal::new("Parameter 'detached-header' is unexpected"));
    }
    let size = options.size("size").unwrap_or_default();
    let passphrase = Passphrase::new(secrets.get(id)?);
    let preallocation = match options.get("preallocation") {
        // There is none besides the header.
        Some("metadata") => Preallocation::Off,
        _ => raw_preallocation(options)?,
    };
    Ok(NewImage::luks(
        size,
        luks(options, "")?,
        passphrase,
        preallocation,
    ))
}

/// What such a disk takes: all of it is written.
pub(super) fn luks_measure(options: &FormatOptions, secrets: &Secrets) -> Result<Measure, Refusal> {
    luks_image(options, secrets)?;
    let size = options.size("size").unwrap_or_default();
    let all = size.checked_add(luks(options, "")?.area_len());
    let all = all.ok_or_else(|| Refusal::new("The image size is too large for file format 'luks'"))?;
    Ok(Measure {
        required: all,
        fully_allocated: all,
    })
}

/// How the data is to be encrypted.
pub(super) fn of_qcow2(options: &FormatOptions, secrets: &Secrets) -> Result<Option<NewEncryption>, Refusal> {
    let format = match (options.is_on("encryption"), options.get("encrypt.format")) {
        (true, Some(_)) => {
            return Err(Refusal::new(
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ));
        }
        (true, None) => "aes",
        (false, Some(format)) => format,
        // Whoever says how is told that nothing would be.
        (false, None) if of_encryption(options).next().is_some() => {
            return Err(Refusal::new("Parameter 'encrypt.format' is missing"));
        }
        (false, None) => return Ok(None),
    };
    if !matches!(format, "aes" | "luks") {
        return Err(not_accepted("format", format));
    }
    let Some(id) = options.get("encrypt.key-secret") else {
        return Err(Refusal::new(
            "Parameter 'encrypt.key-secret' is required for cipher",
        ));
    };
    let only_luks = |name: &&str| !matches!(*name, "encrypt.format" | "encrypt.key-secret");
    if let Some(name) = of_encryption(options).find(only_luks).filter(|_| format == "aes") {
        return Err(Refusal::new(format!("Parameter '{name}' is unexpected")));
    }
    let method = match format {
        "aes" => EncryptionMethod::Aes,
        _ => EncryptionMethod::Luks(luks(options, "encrypt.")?),
    };
    let passphrase = Passphrase::new(secrets.get(id)?);
    Ok(Some(NewEncryption { method, passphrase }))
}

/// What is said of encryption.
fn of_encryption(options: &FormatOptions) -> impl Iterator<Item = &'static str> {
    options.names().filter(|name| name.starts_with("encrypt."))
}

fn luks(options: &FormatOptions, prefix: &str) -> Result<LuksOptions, Refusal> {
    let mut luks = LuksOptions::default();
    set(
        options,
        prefix,
        "cipher-alg",
        &mut luks.spec.cipher,
        Cipher::named,
    )?;
    set(options, prefix, "cipher-mode", &mut luks.spec.mode, Mode::named)?;
    set(
        options,
        prefix,
        "ivgen-alg",
        &mut luks.spec.iv,
        IvGenerator::named,
    )?;
    set(options, prefix, "hash-alg", &mut luks.hash, Hash::named)?;
    // Of vectors that are not hashed, whatever there is may be said.
    let mut hash = Hash::Sha256;
    set(options, prefix, "ivgen-hash-alg", &mut hash, Hash::named)?;
    if luks.spec.iv == IvGenerator::Essiv && hash != Hash::Sha256 {
        return Err(not_accepted("ivgen-hash-alg", hash.name()));
    }
    if let Some(time) = options.number(&format!("{prefix}iter-time")) {
        luks.iterations = Iterations::Time(Duration::from_millis(time.max(1)));
    }
    Ok(luks)
}

fn set<T>(
    options: &FormatOptions,
    prefix: &str,
    key: &str,
    value: &mut T,
    named: impl Fn(&str) -> block::Result<T>,
) -> Result<(), Refusal> {
    if let Some(name) = options.get(&format!("{prefix}{key}")) {
        *value = named(name).map_err(|_| not_accepted(key, name))?;
    }
    Ok(())
}
