//! New images that are encrypted: what options say of it, and disks in LUKS's own form.

use std::time::Duration;

use block::Passphrase;
use encryption::{Cipher, Hash, Iterations, IvGenerator, Luks, LuksOptions, Mode};
use qcow2::{EncryptionMethod, Measure, NewEncryption};

use super::format_options::FormatOptions;
use super::new_image::not_accepted;
use super::refusal::{Refusal, reason};
use super::secret::Secrets;

/// What lies in front of the data of an encrypted disk that is no image (`-f luks`): header and keys.
pub(super) fn luks_area(options: &FormatOptions, secrets: &Secrets) -> Result<Vec<u8>, Refusal> {
    let Some(id) = options.get("key-secret") else {
        return Err(Refusal::new("Parameter 'key-secret' is required for cipher"));
    };
    let made = Luks::format(&luks(options, "")?, secrets.get(id)?);
    made.map(|(_, area)| area)
        .map_err(|error| Refusal::new(reason(&error)))
}

/// What such a disk takes: all of it is written.
pub(super) fn luks_measure(options: &FormatOptions) -> Result<Measure, Refusal> {
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
    let method = match format {
        "aes" => EncryptionMethod::Aes,
        _ => EncryptionMethod::Luks(luks(options, "encrypt.")?),
    };
    let passphrase = Passphrase::new(secrets.get(id)?);
    Ok(Some(NewEncryption { method, passphrase }))
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
    if let Some(hash) = options
        .get("encrypt.ivgen-hash-alg")
        .filter(|hash| *hash != "sha256")
    {
        return Err(not_accepted("ivgen-hash-alg", hash));
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
